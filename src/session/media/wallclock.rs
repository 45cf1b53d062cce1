//! What time it is for the viewers' clocks: NTP timestamps (RFC 3550 section 4) of moments that sessions know as
//! [`Instant`]. Reads both clocks once, at start; decides nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seconds from 1900 to 1970.
const UNIX_EPOCH_S: u64 = 2_208_988_800;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) struct Wallclock {
    instant: Instant,
    since_unix_epoch: Duration,
}

impl Wallclock {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "the two clocks are paired once, at start")]
    pub(in crate::session) fn read() -> Wallclock {
        let since_unix_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Wallclock { instant: Instant::now(), since_unix_epoch }
    }

    /// `at` as an NTP timestamp: seconds since 1900 in the upper 32 bits, fractions in the lower.
    pub(in crate::session) fn ntp(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.instant);
        let before = self.instant.saturating_duration_since(at);
        ntp((self.since_unix_epoch + after).saturating_sub(before))
    }
}

/// The NTP timestamp of a moment so long after 1970.
pub(in crate::session) fn ntp(since_unix_epoch: Duration) -> u64 {
    let fraction = (u64::from(since_unix_epoch.subsec_nanos()) << 32) / 1_000_000_000;
    (since_unix_epoch.as_secs().wrapping_add(UNIX_EPOCH_S) << 32) | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ntp_counts_from_1900_in_fractions_of_two_to_the_32nd() {
        assert_eq!(ntp(Duration::ZERO), 2_208_988_800 << 32);
        assert_eq!(ntp(Duration::from_millis(1_500)), (2_208_988_801 << 32) | 0x8000_0000);
        assert_eq!(ntp(Duration::from_nanos(999_999_999)) >> 32, 2_208_988_800);
    }

    #[test]
    fn moments_before_and_after_the_reading_are_as_far_apart_as_their_instants() {
        let clock = Wallclock::read();
        let at = clock.instant + Duration::from_secs(5);
        assert_eq!((clock.ntp(at) - clock.ntp(clock.instant)) >> 32, 5);
        if let Some(before) = clock.instant.checked_sub(Duration::from_secs(3)) {
            assert_eq!((clock.ntp(clock.instant) - clock.ntp(before)) >> 32, 3);
        }
    }
}
