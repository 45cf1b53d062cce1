//! Latency histograms that use a fixed amount of memory and are accurate to 1 % (HDR histograms with two significant
//! digits).
//!
//! A thread of the media path records into its own [`LatencyRecorder`], without lock or atomic operation. At
//! intervals, it moves the recorded latencies to a shared [`LatencyTotals`]. Other threads record directly into a
//! [`LatencyTotals`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::{Counter, Histogram};

use super::limits::{LATENCY_MAX_NS, LATENCY_MIN_NS};

/// Significant digits of a recorded latency. Two digits are an error of at most 1 %.
const DIGITS: u8 = 2; // local bound: precision of the mechanism

/// A histogram of latencies, and their exact sum.
#[derive(Clone, Debug)]
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

impl<T: Counter> Latencies<T> {
    fn record(&mut self, took_ns: u64) {
        self.histogram.saturating_record(took_ns);
        self.sum_ns += took_ns;
    }
}

/// Latencies that one thread recorded since it last published them.
#[derive(Debug, Default)]
pub struct LatencyRecorder(Latencies<u32>);

impl LatencyRecorder {
    /// Records one latency in nanoseconds.
    pub fn record(&mut self, took_ns: u64) {
        self.0.record(took_ns);
    }

    /// Moves all recorded latencies to `totals`. Never waits: if another thread holds the lock of `totals`, the
    /// latencies stay here until the next call.
    pub fn publish(&mut self, totals: &LatencyTotals) {
        if self.0.histogram.is_empty() {
            return;
        }
        let Ok(mut totals) = totals.0.try_lock() else { return };
        for step in self.0.histogram.iter_recorded() {
            let (latency_ns, count) = (step.value_iterated_to(), u64::from(step.count_at_value()));
            totals.histogram.saturating_record_n(latency_ns, count);
        }
        totals.sum_ns += std::mem::take(&mut self.0.sum_ns);
        self.0.histogram.reset();
    }
}

/// Latencies since the start, shared between threads.
#[derive(Debug, Default)]
pub struct LatencyTotals(Mutex<Latencies<u64>>);

impl LatencyTotals {
    /// Records one latency in nanoseconds. Waits some microseconds if another thread uses the totals at the moment.
    pub fn record(&self, took_ns: u64) {
        self.lock().record(took_ns);
    }

    /// Returns a copy of all latencies recorded so far.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        LatencySummary(self.lock().clone())
    }

    fn lock(&self) -> MutexGuard<'_, Latencies<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Latencies of one or more totals at one moment.
#[derive(Clone, Debug, Default)]
pub struct LatencySummary(Latencies<u64>);

impl LatencySummary {
    /// Adds the latencies of `totals` to this summary.
    pub fn merge(&mut self, totals: &LatencyTotals) {
        let totals = totals.lock();
        // `add` fails only if the histograms have different bounds. All histograms of this file have the same bounds.
        let _ = self.0.histogram.add(&totals.histogram);
        self.0.sum_ns += totals.sum_ns;
    }

    /// Returns the number of latencies.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.histogram.len()
    }

    /// Returns the exact sum of all latencies, in nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.0.sum_ns
    }

    /// Returns the latency in nanoseconds that the given share (0 to 1) of all latencies does not exceed. Returns
    /// `None` if no latency was recorded.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        (self.count() > 0).then(|| self.0.histogram.value_at_quantile(share))
    }

    /// Returns the number of latencies in each bucket. The counts are not cumulative. `bounds_us` has the upper bounds
    /// of the buckets in microseconds, in rising order.
    ///
    /// Latencies above the last bound are in no bucket. A latency within 1 % of a bound may be counted on either side
    /// of that bound.
    #[must_use]
    pub fn buckets<const N: usize>(&self, bounds_us: &[u64; N]) -> [u64; N] {
        let mut buckets = [0; N];
        for step in self.0.histogram.iter_recorded() {
            let latency_ns = self.0.histogram.median_equivalent(step.value_iterated_to());
            let index = bounds_us.partition_point(|bound_us| bound_us * 1_000 < latency_ns);
            if let Some(bucket) = buckets.get_mut(index) {
                *bucket += step.count_at_value();
            }
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::base::limits::{STAGE_BUCKETS_US, WRITE_BUCKETS_US};

    #[test]
    fn totals_of_two_threads_merge_into_one_distribution() {
        let totals = [LatencyTotals::default(), LatencyTotals::default()];
        for (thread, took_us) in [(0, 30), (0, 30), (1, 700), (1, 2_000_000)] {
            let mut recorder = LatencyRecorder::default();
            recorder.record(took_us * 1_000);
            recorder.publish(&totals[thread]);
        }
        let mut summary = LatencySummary::default();
        assert_eq!(summary.quantile_ns(0.5), None);
        totals.iter().for_each(|totals| summary.merge(totals));
        assert_eq!((summary.count(), summary.sum_ns()), (4, 2_000_760_000));
        let buckets = summary.buckets(&STAGE_BUCKETS_US);
        assert_eq!((buckets[1], buckets[5], buckets.iter().sum::<u64>()), (2, 1, 3));
        let p75 = summary.quantile_ns(0.75).unwrap();
        assert!((693_000..=707_000).contains(&p75), "{p75}");
    }

    #[test]
    fn publishing_during_a_read_neither_loses_nor_doubles_latencies() {
        let totals = LatencyTotals::default();
        let mut recorder = LatencyRecorder::default();
        recorder.record(5_000);
        {
            let _reading = totals.lock();
            recorder.publish(&totals);
        }
        recorder.record(7_000);
        recorder.publish(&totals);
        recorder.publish(&totals);
        let summary = totals.summary();
        assert_eq!((summary.count(), summary.sum_ns()), (2, 12_000));
    }

    #[test]
    fn writes_count_in_their_buckets() {
        let totals = LatencyTotals::default();
        for took_us in [10, 50, 51, 900, 3_000_000] {
            totals.record(took_us * 1_000);
        }
        let summary = totals.summary();
        let buckets = summary.buckets(&WRITE_BUCKETS_US);
        assert_eq!((summary.count(), buckets[0], buckets[1], buckets[4]), (5, 2, 1, 1));
        assert_eq!(buckets.iter().sum::<u64>(), 4, "3 s are above the last bound");
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn buckets_and_quantiles_agree_with_the_sorted_list(
            mut list in prop::collection::vec(1_000_u64..9_000_000_000, 1..200),
        ) {
            let (totals, mut recorder) = (LatencyTotals::default(), LatencyRecorder::default());
            list.iter().for_each(|&took_ns| recorder.record(took_ns));
            recorder.publish(&totals);
            let summary = totals.summary();
            list.sort_unstable();
            prop_assert_eq!(summary.sum_ns(), list.iter().sum::<u64>());
            for (share, index) in [(0.5, (list.len() - 1) / 2), (1.0, list.len() - 1)] {
                let (exact, found) = (list[index] as f64, summary.quantile_ns(share).unwrap() as f64);
                prop_assert!((found - exact).abs() <= exact * 0.01 + 512.0, "{found} for {exact}");
            }
            let mut below = 0;
            for (bound_us, own) in STAGE_BUCKETS_US.into_iter().zip(summary.buckets(&STAGE_BUCKETS_US)) {
                below += own;
                let bound = (bound_us * 1_000) as f64;
                let least = list.iter().filter(|&&took| (took as f64) < bound * 0.99 - 512.0).count() as u64;
                let most = list.iter().filter(|&&took| (took as f64) <= bound * 1.01 + 512.0).count() as u64;
                prop_assert!((least..=most).contains(&below), "{below} below {bound_us} us");
            }
        }
    }
}
