//! PURE: computes presentation times from capture times. Time is an argument.

use crate::base::limits::CAPTURE_AGE_MAX_NS;

/// Returns the presentation time, in 1/90000 s, of a unit that was captured `since_first_ns` after the first unit of
/// its file. `last_90k` is the time of the previous unit.
///
/// The times are computed from capture times, so gaps (dropped units, an absent camera) keep their length. The result
/// is always greater than `last_90k`, even if the camera's clock is faulty.
pub(crate) fn time_90k(since_first_ns: i64, last_90k: u64) -> u64 {
    let time_90k =
        u64::try_from(since_first_ns).map_or(0, |ns| ns / 100_000 * 9 + ns % 100_000 * 9 / 100_000);
    time_90k.max(last_90k + 1)
}

/// Returns the capture time. If it is in the future or older than [`CAPTURE_AGE_MAX_NS`], returns the time of arrival,
/// `now_ns`, instead.
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
        for (captured, last, expected) in [(SECOND / 30, 0, 2_999), (7 * SECOND, 2_999, 630_000)] {
            assert_eq!(time_90k(captured, last), expected);
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
        let (first, now, mut last) = (5 * SECOND, 6 * SECOND, 0);
        for captured in [5 * SECOND, 4 * SECOND, i64::MAX, 6 * SECOND] {
            let time = time_90k(plausible(captured, now) - first, last);
            assert!(last < time);
            last = time;
        }
    }
}
