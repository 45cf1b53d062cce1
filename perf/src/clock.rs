//! Reads CLOCK_MONOTONIC, which the camera's stamps use, and the offset of CLOCK_REALTIME, which the kernel's receive
//! timestamps use.

pub(crate) use streaming_server::base::clock::monotonic_ns;
use streaming_server::base::clock::realtime_ns;

/// Number of readings to determine the offset. Only the shortest reading is used.
const OFFSET_READINGS: usize = 9;

/// Returns CLOCK_REALTIME minus CLOCK_MONOTONIC in nanoseconds. Uses the shortest of several readings, so that an
/// interruption while the two clocks are read does not matter.
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
