//! The clocks. Every other module takes time as an argument or calls a function of this file.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

const NS_PER_S: i64 = 1_000_000_000; // local bound: a unit

/// One moment, in the two forms that a worker needs.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For sessions and deadlines.
    pub instant: Instant,
    /// `CLOCK_MONOTONIC` in nanoseconds, for the ring's cursor and for latencies.
    pub monotonic_ns: i64,
}

/// One moment, as logins and certificates need it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For waiting times and rate limits.
    pub steady: Instant,
    /// Seconds since 1970, for expiry dates.
    pub unix_s: u64,
}

impl Moment {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Moment {
        Moment { steady: instant(), unix_s: u64::try_from(unix_s()).unwrap_or(0) }
    }
}

/// Reads the clock once for a turn of a worker.
pub fn now() -> Now {
    Now { instant: instant(), monotonic_ns: monotonic_ns() }
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> i64 {
    nanoseconds(ClockId::Monotonic)
}

/// Returns `CLOCK_REALTIME` in nanoseconds since 1970.
pub fn realtime_ns() -> i64 {
    nanoseconds(ClockId::Realtime)
}

/// Returns seconds since 1970.
pub fn unix_s() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * NS_PER_S + time.tv_nsec
}

#[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
fn instant() -> Instant {
    Instant::now()
}
