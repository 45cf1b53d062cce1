//! Converts an [`Instant`] to an NTP timestamp (RFC 3550 section 4). Both clocks are read once, at start.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seconds from the NTP epoch (1900) to the Unix epoch (1970).
const UNIX_EPOCH_S: u64 = 2_208_988_800;

/// The same instant on the monotonic and on the realtime clock.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) struct Wallclock {
    instant: Instant,
    since_unix_epoch: Duration,
}

impl Wallclock {
    /// Reads both clocks and returns the pair.
    #[expect(clippy::disallowed_methods, reason = "the two clocks are paired once, at start")]
    pub(in crate::session) fn read() -> Wallclock {
        let since_unix_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Wallclock { instant: Instant::now(), since_unix_epoch }
    }

    /// Returns `at` as an NTP timestamp: seconds since 1900 in the upper 32 bits, the fraction of a second in the lower
    /// 32.
    pub(super) fn ntp(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.instant);
        let before = self.instant.saturating_duration_since(at);
        ntp((self.since_unix_epoch + after).saturating_sub(before))
    }
}

/// Returns the NTP timestamp of a time given as the span since 1970.
pub(super) fn ntp(since_unix_epoch: Duration) -> u64 {
    let fraction = (u64::from(since_unix_epoch.subsec_nanos()) << 32) / 1_000_000_000;
    (since_unix_epoch.as_secs().wrapping_add(UNIX_EPOCH_S) << 32) | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ntp_counts_seconds_since_1900_and_fractions_of_2_32() {
        assert_eq!(ntp(Duration::ZERO), 2_208_988_800 << 32);
        assert_eq!(ntp(Duration::from_millis(1_500)), (2_208_988_801 << 32) | 0x8000_0000);
        assert_eq!(ntp(Duration::from_nanos(999_999_999)) >> 32, 2_208_988_800);
    }

    #[test]
    fn instants_before_and_after_the_reading_keep_their_distance() {
        let clock = Wallclock::read();
        let at = clock.instant + Duration::from_secs(5);
        assert_eq!((clock.ntp(at) - clock.ntp(clock.instant)) >> 32, 5);
        if let Some(before) = clock.instant.checked_sub(Duration::from_secs(3)) {
            assert_eq!((clock.ntp(clock.instant) - clock.ntp(before)) >> 32, 3);
        }
    }
}
