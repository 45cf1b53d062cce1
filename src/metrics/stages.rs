//! Latencies of the stages through which an access unit passes. A worker records them in its own histograms and
//! publishes these about twice a second.
//!
//! ```text
//!   camera          worker's turn                                    kernel
//!   captured ─────► seen ─────► packetised ─────► encrypted ─────► submitted ─────► sent
//!            once per unit and worker  |      once per unit and viewer
//! ```

use crate::base::counters::Gauge;
use crate::base::histogram::{LatencyRecorder, LatencySummary, LatencyTotals};

/// One stage on the way of an access unit through the server. Each stage except the total begins where the previous
/// stage ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the camera's timestamp to the start of the turn in which a worker found the unit. This includes the
    /// camera's own processing, because legacy rings do not state when a unit was published.
    CapturedToSeen,
    /// From the start of that turn until the RTP payloads are ready. Recorded only if the worker has viewers.
    SeenToPacketised,
    /// From the time when the payloads are ready until the datagrams of one viewer are encrypted. This includes the
    /// time for the viewers that were served before.
    PacketisedToEncrypted,
    /// From the encryption of one viewer's datagrams until they are submitted with `io_uring_enter`. This includes the
    /// encryption for the viewers that are served later in the same turn.
    EncryptedToSubmitted,
    /// From the submission until the worker reaps the completion of the last send to the viewer.
    SubmittedToSent,
    /// The total, from the camera's timestamp to the completion of the last send to one viewer.
    CapturedToSent,
}

impl Stage {
    /// All stages, in the order in which a unit passes them. The total comes last.
    pub const ALL: [Stage; 6] = [
        Stage::CapturedToSeen,
        Stage::SeenToPacketised,
        Stage::PacketisedToEncrypted,
        Stage::EncryptedToSubmitted,
        Stage::SubmittedToSent,
        Stage::CapturedToSent,
    ];

    /// Returns the name of the stage, which metrics use as the value of the label `stage`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::CapturedToSeen => "captured_to_seen",
            Stage::SeenToPacketised => "seen_to_packetised",
            Stage::PacketisedToEncrypted => "packetised_to_encrypted",
            Stage::EncryptedToSubmitted => "encrypted_to_submitted",
            Stage::SubmittedToSent => "submitted_to_sent",
            Stage::CapturedToSent => "captured_to_sent",
        }
    }
}

/// The histograms of one worker, one for each stage. Only the worker's thread uses them.
#[derive(Debug, Default)]
pub struct StageRecorder([LatencyRecorder; Stage::ALL.len()]);

impl StageRecorder {
    /// Records one latency in nanoseconds. A negative latency, which occurs if a clock was set back, is recorded as 0.
    pub fn record(&mut self, stage: Stage, took_ns: i64) {
        let Some(recorder) = self.0.get_mut(stage as usize) else { return };
        recorder.record(u64::try_from(took_ns).unwrap_or(0));
    }

    /// Moves all recorded latencies to `totals`. If another thread is reading the totals of a stage, the latencies of
    /// this stage are moved by the next call instead.
    pub fn publish(&mut self, totals: &StageTotals) {
        self.0.iter_mut().zip(&totals.latencies).for_each(|(from, to)| from.publish(to));
    }
}

/// All latencies that one worker has published since the program started. They are up to half a second old.
#[derive(Debug, Default)]
pub struct StageTotals {
    latencies: [LatencyTotals; Stage::ALL.len()],
    /// Latest time from captured to seen, in nanoseconds. Metrics show it as stage "read", as the Go server did.
    pub latest_read_ns: Gauge,
    /// Latest time from seen to packetised, in nanoseconds. Metrics show it as stage "process".
    pub latest_process_ns: Gauge,
    /// Latest time from packetised to sent, in nanoseconds. Metrics show it as stage "send".
    pub latest_send_ns: Gauge,
}

/// Returns the latencies of each stage, summed over all workers.
pub fn summarise<'a>(workers: impl Iterator<Item = &'a StageTotals> + Clone) -> Vec<(Stage, LatencySummary)> {
    let merged = |stage: Stage| {
        let mut latencies = LatencySummary::default();
        let totals = workers.clone().filter_map(|worker| worker.latencies.get(stage as usize));
        totals.for_each(|totals| latencies.merge(totals));
        (stage, latencies)
    };
    Stage::ALL.into_iter().map(merged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::STAGE_BUCKETS_US;

    #[test]
    fn stages_of_all_workers_are_merged() {
        let workers = [StageTotals::default(), StageTotals::default()];
        for worker in &workers {
            let mut recorder = StageRecorder::default();
            recorder.record(Stage::SubmittedToSent, 30_000);
            recorder.publish(worker);
        }
        for (stage, latencies) in summarise(workers.iter()) {
            let count = if stage == Stage::SubmittedToSent { 2 } else { 0 };
            assert_eq!(latencies.count(), count, "{stage:?}");
        }
    }

    #[test]
    fn latencies_out_of_range_are_counted() {
        let totals = StageTotals::default();
        let mut recorder = StageRecorder::default();
        for took_ns in [i64::MIN, -1, 0, 3_600_000_000_000, i64::MAX / 4] {
            recorder.record(Stage::CapturedToSent, took_ns);
        }
        recorder.publish(&totals);
        let latencies = summarise(std::iter::once(&totals)).pop().unwrap().1;
        assert_eq!(latencies.count(), 5);
        assert_eq!(latencies.buckets(&STAGE_BUCKETS_US).iter().sum::<u64>(), 3);
    }
}
