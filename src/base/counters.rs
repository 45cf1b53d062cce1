//! Counters and gauges that any thread may read. All accesses are relaxed: each value is true by itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
///
/// A counter has either one writing thread, which calls [`Counter::add`], or several, which call
/// [`Counter::add_shared`]. Mixing the two loses counts.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n` from the only thread that writes: a load and a store, not a locked instruction.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds `n` from any thread: one atomic read-modify-write.
    pub fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes over a total that the same thread counts elsewhere in a plain integer.
    pub fn set_total(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// Returns the count since the start.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down. One thread writes, any thread reads.
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
