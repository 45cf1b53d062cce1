//! Converts an [`Instant`] to an NTP timestamp (RFC 3550 section 4). The monotonic clocks are paired once, at start. The
//! offset to the wall clock follows the capture times, so that a step of the system clock moves both.

use std::time::{Duration, Instant};

use crate::base::{clock, limits};

/// Seconds from the NTP epoch (1900) to the Unix epoch (1970).
const UNIX_EPOCH_S: u64 = 2_208_988_800;

/// The same instant on both scales of the monotonic clock, and the offset to the realtime clock.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) struct Wallclock {
    instant: Instant,
    monotonic_ns: i64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC in nanoseconds.
    pub(super) realtime_offset_ns: i64,
}

impl Wallclock {
    /// Reads the clocks.
    pub(in crate::session) fn read() -> Wallclock {
        let now = clock::now();
        let realtime_offset_ns = clock::realtime_ns() - now.monotonic_ns;
        Wallclock { instant: now.instant, monotonic_ns: now.monotonic_ns, realtime_offset_ns }
    }

    /// Returns the clock as it was when the offset was `realtime_offset_ns`.
    pub(super) fn with_offset(self, realtime_offset_ns: i64) -> Wallclock {
        Wallclock { realtime_offset_ns, ..self }
    }

    #[cfg(test)]
    pub(super) fn monotonic_ns(&self) -> i64 {
        self.monotonic_ns
    }

    /// Returns `at` as an NTP timestamp: seconds since 1900 in the upper 32 bits, the fraction of a second in the lower
    /// 32.
    pub(super) fn ntp(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.instant);
        let before = self.instant.saturating_duration_since(at);
        let start_ns = self.monotonic_ns.saturating_add(self.realtime_offset_ns);
        let start = Duration::from_nanos(u64::try_from(start_ns).unwrap_or(0));
        ntp((start + after).saturating_sub(before))
    }
}

/// Returns the NTP timestamp of a time given as the span since 1970.
pub(super) fn ntp(since_unix_epoch: Duration) -> u64 {
    let fraction = (u64::from(since_unix_epoch.subsec_nanos()) << 32) / 1_000_000_000;
    (since_unix_epoch.as_secs().wrapping_add(UNIX_EPOCH_S) << 32) | fraction
}

/// The latest sender reports: the middle 32 bits of their NTP time, and the offset of the wall clock at their sending.
/// After a step of the system clock, reports with another offset are still on their way.
#[derive(Default)]
pub(super) struct SentReports {
    pub(super) reports: [Option<(u32, i64)>; limits::SENDER_REPORTS_KEPT],
    next: usize,
}

impl SentReports {
    pub(super) fn push(&mut self, ntp: u64, offset_ns: i64) {
        if let Some(report) = self.reports.get_mut(self.next) {
            *report = Some((middle(ntp), offset_ns));
        }
        self.next = (self.next + 1) % self.reports.len();
    }

    /// Returns the offset at the sending of the report with these middle 32 bits. Some viewers convert the time to another
    /// form and back, so it may differ by one.
    pub(super) fn offset_of(&self, middle: u32) -> Option<i64> {
        let is_it = |sent: u32| sent.wrapping_sub(middle).wrapping_add(1) <= 2;
        let report = self.reports.iter().flatten().find(|(sent, _)| is_it(*sent));
        report.map(|(_, offset_ns)| *offset_ns)
    }
}

/// Returns the middle 32 bits of an NTP timestamp.
#[expect(clippy::cast_possible_truncation, reason = "reports carry the middle 32 bits")]
fn middle(ntp: u64) -> u32 {
    (ntp >> 16) as u32
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

    #[test]
    fn wall_clock_that_is_set_moves_the_ntp_time() {
        let mut clock = Wallclock::read();
        let before = clock.ntp(clock.instant);
        clock.realtime_offset_ns += 3_600_000_000_000;
        assert_eq!((clock.ntp(clock.instant) - before) >> 32, 3_600);
    }

    #[test]
    fn report_is_found_by_a_time_that_was_rounded() {
        let mut sent = SentReports::default();
        sent.push(0x1234_5678_9abc_def0, 7);
        for (middle, found) in [(0x5678_9abb, Some(7)), (0x5678_9abd, Some(7)), (0x5678_9abe, None)] {
            assert_eq!(sent.offset_of(middle), found);
        }
    }
}
