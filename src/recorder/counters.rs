//! Counters of the recorder: written by its thread, read by whoever scrapes. Relaxed atomics only.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Upper bounds of the write latency buckets in microseconds; one more bucket holds all above.
pub const LATENCY_BOUNDS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000,
];

/// How long writes took, from submission to completion.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencySnapshot {
    /// Writes in each bucket of [`LATENCY_BOUNDS_US`], not cumulated, and above the last bound.
    pub buckets: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// All of them together.
    pub sum_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

impl LatencyHistogram {
    /// Notes one write.
    pub fn record(&self, took_ns: u64) {
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound_us| bound_us * 1_000 < took_ns);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum_ns.fetch_add(took_ns, Relaxed);
        self.max_ns.fetch_max(took_ns, Relaxed);
    }

    /// Reads it.
    #[must_use]
    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            buckets: std::array::from_fn(|i| self.buckets.get(i).map_or(0, |bucket| bucket.load(Relaxed))),
            sum_ns: self.sum_ns.load(Relaxed),
            max_ns: self.max_ns.load(Relaxed),
        }
    }
}

impl LatencySnapshot {
    /// Writes noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The bound below which this share of the writes lies (at most the slowest), in nanoseconds.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let mut left = share * self.count() as f64;
        for (bucket, bound_us) in self.buckets.iter().zip(LATENCY_BOUNDS_US) {
            left -= *bucket as f64;
            if left <= 0.0 {
                return (bound_us * 1_000).min(self.max_ns);
            }
        }
        self.max_ns
    }
}

/// What the recorder did since the program started.
#[derive(Debug, Default)]
pub struct RecorderCounters {
    /// A recording runs.
    pub active: AtomicBool,
    /// Access units written whole.
    pub units: AtomicU64,
    /// Bytes of files committed, headers included.
    pub bytes: AtomicU64,
    /// Units that a recording lacks, for whatever reason.
    pub dropped: AtomicU64,
    /// Of those: overwritten by the camera while the disk read them.
    pub torn: AtomicU64,
    /// Of those: overtaken by the camera before they were read (slow disk).
    pub lapped: AtomicU64,
    /// Of those: not an access unit of H.264.
    pub rejected: AtomicU64,
    /// Failed operations on files.
    pub disk_errors: AtomicU64,
    /// Recordings started.
    pub started: AtomicU64,
    /// Files finished with an index.
    pub finished: AtomicU64,
    /// Files repaired after a crash.
    pub recovered: AtomicU64,
    /// Files deleted by the retention rules.
    pub retired: AtomicU64,
    /// Submission to completion of each write.
    pub write_latency: LatencyHistogram,
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_counts_in_its_bucket() {
        let histogram = LatencyHistogram::default();
        for took_us in [10, 50, 51, 900, 3_000_000] {
            histogram.record(took_us * 1_000);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 5);
        assert_eq!(snapshot.buckets[0], 2);
        assert_eq!(snapshot.buckets[1], 1);
        assert_eq!(snapshot.buckets[15], 1);
        assert_eq!(snapshot.quantile_ns(0.4), 50_000);
        assert_eq!(snapshot.quantile_ns(1.0), 3_000_000_000);
    }
}
