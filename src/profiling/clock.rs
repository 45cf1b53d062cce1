//! When a profile was taken and how long it took. May not be used for anything else.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970, for a profile's stamp.
pub(super) fn unix_ns() -> i64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(super) fn monotonic_ns() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
