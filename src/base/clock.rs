//! The only place of the live path that reads a clock: once per turn, both views of the same
//! moment, and once per stage for the histograms.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// One moment, as sessions and as the ring count it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For sessions and deadlines.
    pub instant: Instant,
    /// CLOCK_MONOTONIC nanoseconds, for the ring's cursor and latency.
    pub monotonic_ns: i64,
}

/// Reads the clock.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
pub fn now() -> Now {
    Now { instant: Instant::now(), monotonic_ns: monotonic_ns() }
}

/// Reads CLOCK_MONOTONIC, in nanoseconds: for the stages within a turn.
pub fn monotonic_ns() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
