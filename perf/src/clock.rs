//! Clocks: CLOCK_MONOTONIC as in the camera's stamps, and how far CLOCK_REALTIME, the clock of the kernel's
//! receive timestamps, is ahead of it.

use rustix::time::{ClockId, clock_gettime};

/// Looks taken to find the offset; the narrowest counts.
const OFFSET_LOOKS: usize = 9;

fn read(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> i64 {
    read(ClockId::Monotonic)
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC, in nanoseconds: of several looks the one that took least time, so
/// that being interrupted between the two readings does not count.
pub(crate) fn realtime_offset_ns() -> i64 {
    let look = |_| {
        let before = read(ClockId::Monotonic);
        let realtime = read(ClockId::Realtime);
        let after = read(ClockId::Monotonic);
        (after - before, realtime - (before + (after - before) / 2))
    };
    (0..OFFSET_LOOKS).map(look).min().map_or(0, |(_, offset)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_turns_realtime_into_monotonic() {
        let realtime = read(ClockId::Realtime);
        let monotonic = monotonic_ns();
        let difference = (realtime - realtime_offset_ns()) - monotonic;
        assert!(difference.abs() < 1_000_000_000, "{difference} ns");
    }
}
