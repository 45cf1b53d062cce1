//! Latency of each stage. A worker records into its own histograms and publishes them about twice a second.
//!
//! ```text
//!   camera          worker's turn                                    kernel
//!   captured ─────► seen ─────► packetised ─────► encrypted ─────► submitted ─────► sent
//!            once per unit and worker  |      once per unit and viewer
//! ```

use crate::base::counters::Gauge;
use crate::base::histogram::{LatencyRecorder, LatencySummary, LatencyTotals};

/// One step of an access unit through the server. Each step begins where the one before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the camera's timestamp to the start of the turn in which a worker found the unit. Legacy rings do not
    /// say when a unit was published, so this includes the camera's own processing.
    CapturedToSeen,
    /// Until the payloads are ready for all viewers. Recorded only while there are viewers.
    SeenToPacketised,
    /// Until one viewer's datagrams are encrypted, including the time for the viewers before it.
    PacketisedToEncrypted,
    /// Until `io_uring_enter`, including the encryption for the viewers after it.
    EncryptedToSubmitted,
    /// Until the worker reaps the completion of the viewer's last send.
    SubmittedToSent,
    /// The total: from the camera's timestamp to the completion of one viewer's last send.
    CapturedToSent,
}

impl Stage {
    /// Every stage, in the order in which a unit passes them; the total comes last.
    pub const ALL: [Stage; 6] = [
        Stage::CapturedToSeen,
        Stage::SeenToPacketised,
        Stage::PacketisedToEncrypted,
        Stage::EncryptedToSubmitted,
        Stage::SubmittedToSent,
        Stage::CapturedToSent,
    ];

    /// Returns the value of the metrics' label `stage`.
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

/// The worker's own histograms.
#[derive(Debug, Default)]
pub struct StageRecorder([LatencyRecorder; Stage::ALL.len()]);

impl StageRecorder {
    /// Records one latency in nanoseconds. A negative one (a clock was set back) counts as the shortest.
    pub fn record(&mut self, stage: Stage, took_ns: i64) {
        let Some(recorder) = self.0.get_mut(stage as usize) else { return };
        recorder.record(u64::try_from(took_ns).unwrap_or(0));
    }

    /// Moves everything recorded to `totals`; latencies of a stage that a scrape is reading stay for the next
    /// call.
    pub fn publish(&mut self, totals: &StageTotals) {
        self.0.iter_mut().zip(&totals.latencies).for_each(|(from, to)| from.publish(to));
    }
}

/// What one worker recorded since the start, up to half a second ago.
#[derive(Debug, Default)]
pub struct StageTotals {
    latencies: [LatencyTotals; Stage::ALL.len()],
    /// Latest `captured -> seen` in nanoseconds: "read" of the Go server's metrics.
    pub latest_read_ns: Gauge,
    /// Latest `seen -> packetised` in nanoseconds: "process".
    pub latest_process_ns: Gauge,
    /// Latest `packetised -> sent` in nanoseconds: "send".
    pub latest_send_ns: Gauge,
}

/// Merges the totals of all workers, stage by stage.
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
