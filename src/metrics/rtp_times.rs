//! The RTP times of a worker's newest access units, to be found by their capture time. The worker writes one entry per
//! unit with a relaxed store; any thread may read them. An entry is one word, so it is never torn.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::limits::{RTP_TIME_MATCH_NS, RTP_TIMES_KEPT};

/// Nanoseconds of one step of the capture time in an entry. 32 bits of such steps wrap after twelve hours.
const STEP_NS: i64 = 10_000; // local bound: precision of the mechanism

/// The newest units of one worker.
#[derive(Debug)]
pub struct RtpTimes {
    /// The low 32 bits of the capture time in steps, and in the lower half the RTP time. 0 marks a free entry.
    entries: [AtomicU64; RTP_TIMES_KEPT],
}

impl Default for RtpTimes {
    /// Returns an empty table.
    fn default() -> RtpTimes {
        RtpTimes { entries: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl RtpTimes {
    /// Stores the RTP time of unit `number`. It replaces that of an earlier unit.
    pub fn put(&self, number: u32, captured_at_ns: i64, rtp_time: u32) {
        let entry = self.entries.get(number as usize % RTP_TIMES_KEPT);
        let value = u64::from(steps(captured_at_ns)) << 32 | u64::from(rtp_time);
        entry.into_iter().for_each(|entry| entry.store(value, Ordering::Relaxed));
    }

    /// Returns the RTP time of the unit whose capture time is nearest to `captured_at_ns`. Returns `None` if no unit was
    /// captured within [`RTP_TIME_MATCH_NS`] of it.
    pub fn find(&self, captured_at_ns: i64) -> Option<u32> {
        let wanted = steps(captured_at_ns);
        let distance = |value: u64| {
            let step = u32::try_from(value >> 32).unwrap_or(0).wrapping_sub(wanted);
            step.min(step.wrapping_neg())
        };
        let known =
            self.entries.iter().map(|entry| entry.load(Ordering::Relaxed)).filter(|value| *value != 0);
        let nearest = known.min_by_key(|value| distance(*value))?;
        let is_near = i64::from(distance(nearest)) * STEP_NS <= RTP_TIME_MATCH_NS;
        is_near.then(|| low32(nearest))
    }
}

/// Returns the low 32 bits of the capture time in steps, rounded.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the low bits are the key")]
fn steps(ns: i64) -> u32 {
    (ns.saturating_add(STEP_NS / 2).div_euclid(STEP_NS)) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of the entry")]
fn low32(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_NS: i64 = 1_767_000_000_123_456_789;
    const INTERVAL_NS: i64 = 33_333_333;

    fn of_units(units: u32) -> RtpTimes {
        let times = RtpTimes::default();
        for unit in 0..units {
            times.put(unit.wrapping_sub(5), START_NS + i64::from(unit) * INTERVAL_NS, 7 + unit * 3_000);
        }
        times
    }

    #[test]
    fn newest_units_are_found_by_their_stamp() {
        let times = of_units(1_000);
        for unit in [999, 998, 1_000 - u32::try_from(RTP_TIMES_KEPT).unwrap()] {
            let captured_ns = START_NS + i64::from(unit) * INTERVAL_NS;
            for error_ns in [0, 300, -300, 900_000, -900_000] {
                assert_eq!(times.find(captured_ns + error_ns), Some(7 + unit * 3_000), "{unit} {error_ns}");
            }
        }
    }

    #[test]
    fn other_times_are_not_found() {
        let times = of_units(1_000);
        let newest_ns = START_NS + 999 * INTERVAL_NS;
        for other_ns in
            [newest_ns + INTERVAL_NS, newest_ns - INTERVAL_NS / 2, START_NS, 0, i64::MAX, i64::MIN]
        {
            assert_eq!(times.find(other_ns), None, "{other_ns}");
        }
        assert_eq!(RtpTimes::default().find(0), None, "an empty table");
    }
}
