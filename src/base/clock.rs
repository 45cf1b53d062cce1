//! Reads the clocks. Every other module takes the time as an argument or calls a function of this file.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

const NS_PER_S: i64 = 1_000_000_000; // local bound: a conversion factor

/// The same moment on two scales: one for sessions, one for the camera's ring.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Time for sessions and deadlines.
    pub instant: Instant,
    /// `CLOCK_MONOTONIC` in nanoseconds, for cursors on the camera's ring and for latencies.
    pub monotonic_ns: i64,
}

/// The same moment on two clocks, as logins and certificates need it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Time for waiting times and rate limits. It never jumps when the system clock is set.
    pub steady: Instant,
    /// Seconds since 1970, for expiry dates.
    pub unix_s: u64,
}

impl Moment {
    /// Returns the current time of both clocks.
    #[must_use]
    pub fn now() -> Moment {
        Moment { steady: instant(), unix_s: u64::try_from(unix_s()).unwrap_or(0) }
    }
}

/// Returns the current time. A worker calls this once per turn.
pub fn now() -> Now {
    Now { instant: instant(), monotonic_ns: monotonic_ns() }
}

/// Returns the current time of `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> i64 {
    nanoseconds(ClockId::Monotonic)
}

/// Returns the current time of `CLOCK_REALTIME` in nanoseconds since 1970.
pub fn realtime_ns() -> i64 {
    nanoseconds(ClockId::Realtime)
}

/// Returns the current time of `CLOCK_REALTIME` in whole seconds since 1970.
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
