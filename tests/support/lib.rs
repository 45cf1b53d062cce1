//! Code that tests and benches share: real processes, real sockets, and str0m in the place of a browser.
//! No wait in this crate judges speed. Each wait has a generous timeout and fails only if the awaited event never
//! happens.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "test code: a panic is the report, and the clock is the real one"
)]

pub mod account;
pub mod c;
pub mod camera;
pub mod debugger;
pub mod depacketize;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod process;
pub mod profile;
pub mod random;
pub mod relay;
pub mod server;
pub mod session_peer;
pub mod stuck;
pub mod valgrind;
pub mod viewer;
pub mod whip;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, FileFailurePersistence};

/// Timeout of every wait in the tests. It is long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Returns how many seconds a steady-state test runs: the value of `SS_TEST_SECONDS`, or 6 if it is not set.
pub fn test_seconds() -> u64 {
    std::env::var("SS_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// Returns the path of a binary of this package. If `SS_BIN` is set, the binary is in that directory. Otherwise it is
/// in the target directory of Cargo that contains the running test.
pub fn program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("SS_BIN") {
        return PathBuf::from(directory).join(name);
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().with_file_name(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// Returns a proptest configuration with the usual number of cases. The seeds of failures are stored beside the source
/// file of the test.
pub fn properties() -> Config {
    let beside_source = FileFailurePersistence::WithSource("proptest-regressions");
    Config { failure_persistence: Some(Box::new(beside_source)), ..Config::default() }
}

/// Returns the same configuration as [`properties`], but with `cases` cases.
pub fn properties_of(cases: u32) -> Config {
    Config { cases, ..properties() }
}

/// Returns a shared-memory name that no other test uses.
pub fn unique_shm() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/ss-test-{}-{:05}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Calls `look` every 20 ms until it returns a value. Panics after [`PATIENCE`] with a message that contains `what`.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, look)
}

/// Waits like [`wait_for`], with the timeout `patience`.
pub fn wait_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out after {patience:?} while waiting for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits like [`wait_for`] until `holds` returns true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Returns CLOCK_MONOTONIC in nanoseconds. The stamp in every access unit uses the same clock.
pub fn monotonic_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
