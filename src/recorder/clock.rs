//! What time it is, for the recorder's thread. Everything else of this room gets time as an argument.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(super) fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Seconds since 1970.
pub(super) fn unix_s() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}
