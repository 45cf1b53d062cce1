//! Detects when too many access units are dropped. It reads no clock and no counters: both are passed as arguments.

use std::collections::VecDeque;

use crate::base::log_limit::LogLimit;

/// Percentage of dropped units above which a warning is logged.
pub const DROPS_MAX_PERCENT: u64 = 5; // local bound: threshold of this warning

/// Length in nanoseconds of the time window for which the percentage is computed.
const WINDOW_NS: i64 = 10_000_000_000; // local bound: only this file uses it

/// Minimum number of units in the window for a warning. The percentage of fewer units means little.
const UNITS_MIN: u64 = 60; // local bound: only this file uses it

/// The totals at one point in time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at_ns: i64,
    sent: u64,
    dropped: u64,
}

/// Computes the percentage of dropped units from the totals of sent and dropped units.
#[derive(Debug, Default)]
pub struct DropWatch {
    /// The totals at each second of the window, the oldest first.
    marks: VecDeque<Mark>,
    warnings: LogLimit,
}

impl DropWatch {
    /// Records the totals of sent and dropped units at `now_ns` (CLOCK_MONOTONIC). Must be called at least once a
    /// second.
    ///
    /// If a warning must be logged, returns the percentage of the units of the last 10 s that were dropped. This is the
    /// case if the percentage exceeds [`DROPS_MAX_PERCENT`], the last warning was at least a minute ago, and the window
    /// has at least `UNITS_MIN` units.
    pub fn look(&mut self, now_ns: i64, sent: u64, dropped: u64) -> Option<u64> {
        let oldest = self.mark(Mark { at_ns: now_ns, sent, dropped });
        let lost = dropped.saturating_sub(oldest.dropped);
        let units = lost + sent.saturating_sub(oldest.sent);
        let is_high = units >= UNITS_MIN && lost * 100 > units * DROPS_MAX_PERCENT;
        (is_high && self.warnings.allows(now_ns)).then(|| lost * 100 / units)
    }

    /// Stores the mark if the newest stored mark is at least a second old. Returns the oldest mark in the window.
    fn mark(&mut self, mark: Mark) -> Mark {
        let is_due = |newest: &Mark| mark.at_ns - newest.at_ns >= WINDOW_NS / 10;
        if self.marks.back().is_none_or(is_due) {
            self.marks.push_back(mark);
        }
        let is_old = |oldest: &mut Mark| mark.at_ns - oldest.at_ns > WINDOW_NS + WINDOW_NS / 20;
        while self.marks.pop_front_if(is_old).is_some() {}
        self.marks.front().copied().unwrap_or(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: i64 = 1_000_000_000;

    /// Simulates ten viewers for `seconds`, of whose units `percent` percent are dropped. Returns the times, in
    /// seconds, at which a warning was logged.
    fn run(
        watch: &mut DropWatch,
        from_s: i64,
        seconds: i64,
        percent: u64,
        totals: &mut (u64, u64),
    ) -> Vec<i64> {
        let mut warned = Vec::new();
        for half_second in 0..seconds * 2 {
            totals.0 += 150 - 150 * percent / 100;
            totals.1 += 150 * percent / 100;
            let now_ns = from_s * SECOND_NS + half_second * SECOND_NS / 2;
            if watch.look(now_ns, totals.0, totals.1).is_some() {
                warned.push(from_s + half_second / 2);
            }
        }
        warned
    }

    #[test]
    fn ten_percent_drops_warn_once_a_minute() {
        let mut totals = (0, 0);
        let warned = run(&mut DropWatch::default(), 1_000, 130, 10, &mut totals);
        assert_eq!(warned.len(), 3, "{warned:?}");
        assert!(warned[1] - warned[0] >= 60 && warned[2] - warned[1] >= 60, "{warned:?}");
    }

    #[test]
    fn few_or_old_drops_do_not_warn() {
        let (mut watch, mut totals) = (DropWatch::default(), (0, 0));
        assert!(run(&mut watch, 0, 30, 4, &mut totals).is_empty());
        assert!(!run(&mut watch, 30, 20, 50, &mut totals).is_empty());
        let later = run(&mut watch, 50, 100, 0, &mut totals);
        assert!(later.is_empty(), "{later:?}");
    }

    #[test]
    fn share_covers_the_last_ten_seconds() {
        let (mut watch, mut totals) = (DropWatch::default(), (0, 0));
        run(&mut watch, 0, 1_000, 0, &mut totals);
        totals.1 += 1_000;
        let percent = watch.look(1_000 * SECOND_NS, totals.0, totals.1);
        assert_eq!(percent, Some(100_000 / (3_000 + 1_000)), "1000 of 4000");
    }
}
