//! PURE: computes presentation times from capture times. Time is an argument.

use crate::base::limits::CAPTURE_AGE_MAX_NS;

/// Time axis of one file, 90000 ticks per second.
///
/// Times come from the capture clock, so gaps (dropped units, an absent camera) keep their length.
/// Times always increase, even with a faulty camera clock. A capture time in the future or implausibly old is replaced
/// by the time of arrival.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    placed: Option<Placed>,
}

#[derive(Copy, Clone, Debug)]
struct Placed {
    origin_ns: i64,
    last_90k: u64,
}

impl Timeline {
    /// Returns the time of a unit captured at `captured_ns` (`CLOCK_MONOTONIC`). Changes nothing until
    /// [`Timeline::commit`], because the write may fail.
    pub(crate) fn place(&self, captured_ns: i64, now_ns: i64) -> u64 {
        let Some(placed) = self.placed else { return 0 };
        let since_ns = plausible(captured_ns, now_ns).saturating_sub(placed.origin_ns);
        let time_90k = u64::try_from(since_ns).map_or(0, |ns| ns / 100_000 * 9 + ns % 100_000 * 9 / 100_000);
        time_90k.max(placed.last_90k + 1)
    }

    /// Records that the unit was written with `time_90k`.
    pub(crate) fn commit(&mut self, captured_ns: i64, now_ns: i64, time_90k: u64) {
        let origin_ns = self.placed.map_or(plausible(captured_ns, now_ns), |placed| placed.origin_ns);
        self.placed = Some(Placed { origin_ns, last_90k: time_90k });
    }
}

/// Returns the capture time, or the time of arrival if the capture time is not plausible.
pub(crate) fn plausible(captured_ns: i64, now_ns: i64) -> i64 {
    let age_ns = now_ns.saturating_sub(captured_ns);
    if (0..=CAPTURE_AGE_MAX_NS).contains(&age_ns) { captured_ns } else { now_ns }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn gaps_keep_their_length() {
        let mut timeline = Timeline::default();
        let start = 50 * SECOND;
        for (captured, expected) in [(0, 0), (SECOND / 30, 2_999), (7 * SECOND, 630_000)] {
            let time = timeline.place(start + captured, start + captured + 1_000);
            assert_eq!(time, expected);
            timeline.commit(start + captured, start + captured + 1_000, time);
        }
    }

    #[test]
    fn implausible_capture_times_fall_back_to_the_arrival_time() {
        let now = 1_000 * SECOND;
        for captured in [0, i64::MIN, i64::MAX, now + 1, now - CAPTURE_AGE_MAX_NS - 1] {
            assert_eq!(plausible(captured, now), now);
        }
        assert_eq!(plausible(now - 5, now), now - 5);
    }

    #[test]
    fn times_increase_even_if_capture_times_repeat_or_go_back() {
        let mut timeline = Timeline::default();
        let mut last = None;
        for captured in [5 * SECOND, 5 * SECOND, 4 * SECOND, i64::MAX, 6 * SECOND] {
            let now = 6 * SECOND;
            let time = timeline.place(captured, now);
            timeline.commit(captured, now, time);
            assert!(last < Some(time));
            last = Some(time);
        }
    }
}
