//! RTP time from capture time: 90 kHz, strictly increasing even when the camera's clock is not. Pure.

/// Turns capture timestamps (CLOCK_MONOTONIC ns) into extended RTP times (RFC 6184: 90 kHz).
#[derive(Debug, Default)]
pub(super) struct RtpClock {
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    captured_ns: i64,
    rtp_time_90k: u64,
}

/// A larger step is a clock that was set or a wrong timestamp; it advances by one tick.
const STEP_NS_MAX: i64 = 3_600 * 1_000_000_000;

/// Step of a unit whose timestamp is not usable: one tick, so that time still increases.
const STEP_90K_MIN: u64 = 1;

impl RtpClock {
    /// Returns the RTP time of the unit captured at `captured_ns`. Starts at 0; sessions add their own offset.
    /// A backward or too large step advances by one tick, and its timestamp becomes the new reference.
    pub(super) fn rtp_time_90k(&mut self, captured_ns: i64) -> u64 {
        let rtp_time_90k = match self.last {
            None => 0,
            Some(last) => {
                let step_ns = captured_ns.saturating_sub(last.captured_ns);
                let usable = (0..=STEP_NS_MAX).contains(&step_ns);
                let step =
                    if usable { ticks(captured_ns).saturating_sub(ticks(last.captured_ns)) } else { 0 };
                last.rtp_time_90k + step.max(STEP_90K_MIN)
            }
        };
        self.last = Some(Last { captured_ns, rtp_time_90k });
        rtp_time_90k
    }
}

/// Converts nanoseconds to 90 kHz ticks, rounded. Differences of results do not accumulate an error.
fn ticks(ns: i64) -> u64 {
    let ns = u128::from(ns.max(0).unsigned_abs());
    u64::try_from((ns * 9 + 50_000) / 100_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hour_at_30_units_per_second_does_not_drift() {
        let mut clock = RtpClock::default();
        let mut last = 0;
        for unit in 0..108_000_i64 {
            last = clock.rtp_time_90k(1_000_000_000 + unit * 1_000_000_000 / 30);
        }
        assert_eq!(last, 107_999 * 3_000);
    }

    #[test]
    fn time_increases_for_any_sequence_of_timestamps() {
        let mut clock = RtpClock::default();
        let mut last = clock.rtp_time_90k(5_000_000_000);
        for captured_ns in [4_000_000_000, 0, -7, i64::MAX, i64::MIN, 1, 1, 33_333_334] {
            let time = clock.rtp_time_90k(captured_ns);
            assert!(time > last, "{captured_ns}");
            assert!(time - last <= 3_600 * 90_000);
            last = time;
        }
    }

    #[test]
    fn capture_gap_becomes_an_rtp_time_gap() {
        let mut clock = RtpClock::default();
        assert_eq!(clock.rtp_time_90k(1_000_000_000), 0);
        assert_eq!(clock.rtp_time_90k(11_000_000_000), 900_000);
    }
}
