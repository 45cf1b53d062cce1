//! Counters and gauges that any thread may read. All accesses use relaxed memory ordering: each value is correct, but
//! values read together may be from different moments.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
///
/// If only one thread writes a counter, the thread calls [`Counter::add`]. If several threads write a counter, all of
/// them call [`Counter::add_shared`]. Using both functions on one counter loses counts.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the counter's single writing thread may call this, because the load and the store are separate.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds `n` with one atomic read-modify-write, so that any thread may call this.
    pub fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the counter to `total`, which the only writing thread has counted in a plain integer.
    pub fn set_total(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// Returns the count since the start.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down. Any thread may read it; only one thread should write it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the latest value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_adds_and_takes_over_totals() {
        let counter = Counter::default();
        counter.add(3);
        counter.add_shared(4);
        assert_eq!(counter.get(), 7);
        counter.set_total(2);
        assert_eq!(counter.get(), 2);
    }
}
