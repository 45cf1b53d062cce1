//! What time it is, for who is let in and until when: read here, an argument everywhere else.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A moment on both clocks: one that never jumps, one that others know.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For waiting times.
    pub steady: Instant,
    /// Seconds since 1970, for what lapses.
    pub unix_s: u64,
}

impl Moment {
    /// This one.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "an edge: how long callers wait, when certificates lapse")]
    pub fn now() -> Moment {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Moment { steady: Instant::now(), unix_s: since_1970.map_or(0, |since| since.as_secs()) }
    }
}
