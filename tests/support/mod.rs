//! What the integration tests stand on: real processes, real sockets, real browsers' protocol.
//! Nothing in here asserts how fast something is: every wait has a generous bound and fails only because
//! the thing awaited never came.
#![allow(dead_code, reason = "every test file uses its own part of this module")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "test code: a panic is the report, and the clock is the real one"
)]

pub(crate) mod account;
pub(crate) mod c;
pub(crate) mod camera;
pub(crate) mod debugger;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod relay;
pub(crate) mod server;
pub(crate) mod viewer;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a wait lasts before the thing awaited counts as absent. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// Seconds a steady-state test runs: `SS_TEST_SECONDS`, else 6.
pub(crate) fn test_seconds() -> u64 {
    std::env::var("SS_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// A shared-memory name no other test uses.
pub(crate) fn unique_shm() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/ss-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Looks every 20 ms until `look` gives a value; panics with `what` after [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, look)
}

/// As [`wait_for`], with its own patience.
pub(crate) fn wait_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`wait_for`] for a condition.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the stamp in every access unit.
pub(crate) fn monotonic_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
