//! How long each stage takes, as HDR histograms. One thread records into its own; about twice a second it adds
//! them to the totals, which a scrape reads. Recording may not lock, allocate or use an atomic; adding may not
//! wait.
//!
//! ```text
//!   camera          worker's turn                                    kernel
//!   captured ─────► seen ─────► packetised ─────► encrypted ─────► submitted ─────► sent
//!            once per unit and worker  |      once per unit and viewer
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::{Counter, Histogram};

use super::counters::Gauge;
use crate::base::limits::{LATENCY_MAX_NS, LATENCY_MIN_NS};

/// Significant digits of a latency: within 1 %.
const DIGITS: u8 = 2;

/// A part of an access unit's way, between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The camera's timestamp to the beginning of the turn in which a worker found the unit. Holds the camera's
    /// own time from capture to publishing, which no legacy ring tells.
    CapturedToSeen,
    /// To the payloads being ready for all viewers. Only while somebody watches.
    SeenToPacketised,
    /// To one viewer's datagrams being encrypted, those of viewers before it included.
    PacketisedToEncrypted,
    /// To `io_uring_enter`: the encryption of the viewers after it.
    EncryptedToSubmitted,
    /// To the end of its last send, as the worker learns it.
    SubmittedToSent,
    /// All of them together: from the camera's timestamp to one viewer's last datagram. The headline.
    CapturedToSent,
}

impl Stage {
    /// Every stage, in the order of the data.
    pub const ALL: [Stage; 6] = [
        Stage::CapturedToSeen,
        Stage::SeenToPacketised,
        Stage::PacketisedToEncrypted,
        Stage::EncryptedToSubmitted,
        Stage::SubmittedToSent,
        Stage::CapturedToSent,
    ];

    /// The stage's name in metrics.
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

/// Latencies of one stage and their exact sum.
#[derive(Debug)]
struct Latencies<T: Counter> {
    histogram: Histogram<T>,
    sum_ns: u64,
}

impl<T: Counter> Default for Latencies<T> {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, DIGITS);
        Latencies { histogram: histogram.expect("the bounds are constants hdrhistogram takes"), sum_ns: 0 }
    }
}

/// The writing side, on the worker's thread.
#[derive(Debug, Default)]
pub struct StageRecorder([Latencies<u32>; Stage::ALL.len()]);

impl StageRecorder {
    /// Notes one latency in nanoseconds; a negative one (a clock set back) counts as the shortest.
    pub fn record(&mut self, stage: Stage, took_ns: i64) {
        let Some(latencies) = self.0.get_mut(stage as usize) else { return };
        let took_ns = u64::try_from(took_ns).unwrap_or(0);
        latencies.histogram.saturating_record(took_ns);
        latencies.sum_ns += took_ns;
    }

    /// Adds everything recorded to `totals` and starts anew; keeps it for the next time while a scrape reads.
    pub fn publish(&mut self, totals: &StageTotals) {
        let Ok(mut totals) = totals.latencies.try_lock() else { return };
        for (from, to) in self.0.iter_mut().zip(totals.iter_mut()) {
            if from.histogram.is_empty() {
                continue;
            }
            for step in from.histogram.iter_recorded() {
                let (latency_ns, count) = (step.value_iterated_to(), u64::from(step.count_at_value()));
                to.histogram.saturating_record_n(latency_ns, count);
            }
            to.sum_ns += std::mem::take(&mut from.sum_ns);
            from.histogram.reset();
        }
    }
}

/// What one worker recorded since the start. Up to half a second old.
#[derive(Debug, Default)]
pub struct StageTotals {
    latencies: Mutex<[Latencies<u64>; Stage::ALL.len()]>,
    /// Latest `captured -> seen`, in nanoseconds: "read" of the Go design.
    pub latest_read_ns: Gauge,
    /// Latest `seen -> packetised`, in nanoseconds: "process".
    pub latest_process_ns: Gauge,
    /// Latest `packetised -> sent`, in nanoseconds: "send".
    pub latest_send_ns: Gauge,
}

impl StageTotals {
    fn lock(&self) -> MutexGuard<'_, [Latencies<u64>; Stage::ALL.len()]> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Upper bounds of the exposed buckets in microseconds; what is longer is in none of them.
pub const BOUNDS_US: [u64; 14] =
    [20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000];

/// One stage of all workers together.
#[derive(Clone, Debug)]
pub struct StageSummary {
    /// Which.
    pub stage: Stage,
    /// Latencies in each bucket of [`BOUNDS_US`], not cumulated.
    pub buckets: [u64; BOUNDS_US.len()],
    /// How many there are.
    pub count: u64,
    /// Their sum in nanoseconds, exact.
    pub sum_ns: u64,
    histogram: Histogram<u64>,
}

impl StageSummary {
    /// The latency in nanoseconds that this share of all stays at or below, within 1 %. `None` without any.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        (self.count > 0).then(|| self.histogram.value_at_quantile(share))
    }
}

/// The workers' totals, merged stage by stage.
pub fn summarise<'a>(workers: impl Iterator<Item = &'a StageTotals> + Clone) -> Vec<StageSummary> {
    let merged = |stage: Stage| {
        let mut all = Latencies::<u64>::default();
        for worker in workers.clone() {
            let totals = worker.lock();
            let Some(latencies) = totals.get(stage as usize) else { continue };
            // Both have the same bounds, the only thing that could go wrong.
            let _ = all.histogram.add(&latencies.histogram);
            all.sum_ns += latencies.sum_ns;
        }
        StageSummary {
            stage,
            buckets: buckets(&all.histogram),
            count: all.histogram.len(),
            sum_ns: all.sum_ns,
            histogram: all.histogram,
        }
    };
    Stage::ALL.into_iter().map(merged).collect()
}

/// A histogram's counts in the buckets of [`BOUNDS_US`]; at a bucket's edge within its resolution.
fn buckets(histogram: &Histogram<u64>) -> [u64; BOUNDS_US.len()] {
    let mut buckets = [0; BOUNDS_US.len()];
    for step in histogram.iter_recorded() {
        let latency_ns = histogram.median_equivalent(step.value_iterated_to());
        let place = BOUNDS_US.partition_point(|bound_us| bound_us * 1_000 < latency_ns);
        if let Some(bucket) = buckets.get_mut(place) {
            *bucket += step.count_at_value();
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn summary(stage: Stage, workers: &[StageTotals]) -> StageSummary {
        summarise(workers.iter()).into_iter().find(|summary| summary.stage == stage).unwrap()
    }

    #[test]
    fn what_two_workers_record_is_one_distribution() {
        let workers = [StageTotals::default(), StageTotals::default()];
        for (worker, took_us) in [(0, 30), (0, 30), (1, 700), (1, 2_000_000)] {
            let mut recorder = StageRecorder::default();
            recorder.record(Stage::SubmittedToSent, took_us * 1_000);
            recorder.publish(&workers[worker]);
        }
        let summary = summary(Stage::SubmittedToSent, &workers);
        assert_eq!(summary.count, 4);
        assert_eq!(summary.sum_ns, 2_000_760_000);
        assert_eq!((summary.buckets[1], summary.buckets[5], summary.buckets.iter().sum::<u64>()), (2, 1, 3));
        let p75 = summary.quantile_ns(0.75).unwrap();
        assert!((693_000..=707_000).contains(&p75), "{p75}");
        assert_eq!(super::summarise(workers.iter())[0].quantile_ns(0.5), None);
    }

    #[test]
    fn nothing_is_lost_or_doubled_while_a_scrape_reads() {
        let totals = StageTotals::default();
        let mut recorder = StageRecorder::default();
        recorder.record(Stage::SeenToPacketised, 5_000);
        {
            let _reading = totals.lock();
            recorder.publish(&totals);
        }
        recorder.record(Stage::SeenToPacketised, 7_000);
        recorder.publish(&totals);
        recorder.publish(&totals);
        let summary = summary(Stage::SeenToPacketised, std::slice::from_ref(&totals));
        assert_eq!((summary.count, summary.sum_ns), (2, 12_000));
    }

    #[test]
    fn the_shortest_and_the_longest_are_counted_too() {
        let totals = StageTotals::default();
        let mut recorder = StageRecorder::default();
        for took_ns in [i64::MIN, -1, 0, 3_600_000_000_000, i64::MAX / 4] {
            recorder.record(Stage::CapturedToSent, took_ns);
        }
        recorder.publish(&totals);
        let summary = summary(Stage::CapturedToSent, std::slice::from_ref(&totals));
        assert_eq!(summary.count, 5);
        assert_eq!(summary.buckets.iter().sum::<u64>(), 3);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn buckets_and_quantiles_are_those_of_the_sorted_list(
            mut list in prop::collection::vec(1_000_i64..9_000_000_000, 1..200),
        ) {
            let (totals, mut recorder) = (StageTotals::default(), StageRecorder::default());
            list.iter().for_each(|&took_ns| recorder.record(Stage::CapturedToSeen, took_ns));
            recorder.publish(&totals);
            let summary = summary(Stage::CapturedToSeen, std::slice::from_ref(&totals));
            list.sort_unstable();
            prop_assert_eq!(summary.sum_ns, list.iter().sum::<i64>().cast_unsigned());
            for (share, index) in [(0.5, (list.len() - 1) / 2), (1.0, list.len() - 1)] {
                let (real, told) = (list[index] as f64, summary.quantile_ns(share).unwrap() as f64);
                prop_assert!((told - real).abs() <= real * 0.01 + 512.0, "{told} for {real}");
            }
            let mut below = 0;
            for (bound_us, own) in BOUNDS_US.into_iter().zip(summary.buckets) {
                below += own;
                let bound = (bound_us * 1_000) as f64;
                let least = list.iter().filter(|&&took| (took as f64) < bound * 0.99 - 512.0).count() as u64;
                let most = list.iter().filter(|&&took| (took as f64) <= bound * 1.01 + 512.0).count() as u64;
                prop_assert!((least..=most).contains(&below), "{below} below {bound_us} us");
            }
        }
    }
}
