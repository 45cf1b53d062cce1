//! Clocks: CLOCK_MONOTONIC, as in the camera's stamps, and the offset of CLOCK_REALTIME, the clock of the kernel's
//! receive timestamps.

pub(crate) use streaming_server::base::clock::monotonic_ns;
use streaming_server::base::clock::realtime_ns;

/// Number of readings to determine the offset; the shortest one counts.
const OFFSET_READINGS: usize = 9;

/// Returns CLOCK_REALTIME minus CLOCK_MONOTONIC in nanoseconds. Uses the shortest of several readings, so that an
/// interruption between the two clocks does not matter.
pub(crate) fn realtime_offset_ns() -> i64 {
    let reading = |_| {
        let before = monotonic_ns();
        let realtime = realtime_ns();
        let after = monotonic_ns();
        (after - before, realtime - (before + (after - before) / 2))
    };
    (0..OFFSET_READINGS).map(reading).min().map_or(0, |(_, offset)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_converts_realtime_to_monotonic() {
        let realtime = realtime_ns();
        let monotonic = monotonic_ns();
        let difference = (realtime - realtime_offset_ns()) - monotonic;
        assert!(difference.abs() < 1_000_000_000, "{difference} ns");
    }
}
