//! A rate limit for log lines and for other messages that must not repeat too often.

use std::sync::atomic::{AtomicI64, Ordering};

use super::limits::LOG_INTERVAL_NS;

/// A rate limit that all threads share: one event may pass per interval.
#[derive(Debug)]
pub struct LogLimit {
    interval_ns: i64,
    last_ns: AtomicI64,
}

impl LogLimit {
    /// Creates a limit of one event per `interval_ns`. The first event always passes.
    #[must_use]
    pub const fn new(interval_ns: i64) -> LogLimit {
        LogLimit { interval_ns, last_ns: AtomicI64::new(i64::MIN) }
    }

    /// Returns true if an event at `now_ns` (`CLOCK_MONOTONIC`) may pass. In that case a new interval begins.
    pub fn allows(&self, now_ns: i64) -> bool {
        let last_ns = self.last_ns.load(Ordering::Relaxed);
        if now_ns.saturating_sub(last_ns) < self.interval_ns {
            return false;
        }
        self.last_ns.compare_exchange(last_ns, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Default for LogLimit {
    /// Creates a limit of one log line per minute.
    fn default() -> LogLimit {
        LogLimit::new(LOG_INTERVAL_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_passes_per_interval() {
        let limit = LogLimit::new(1000);
        let passed = (0..5000).filter(|now| limit.allows(*now)).count();
        assert_eq!(passed, 5);
    }
}
