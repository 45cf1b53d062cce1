//! Checks at start that the system permits all threads of the server (`TasksMax=`, the limit of processes of a user or
//! a container). Otherwise a part of the server would fail after others have started, and the library `may` would
//! abort the process.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::base::limits;
use crate::config::Config;
use crate::recorder;

/// Returns the number of threads that the server makes at start, besides this one and the one that writes the log.
/// `workers` is the number of workers, and `has_manager` is true if there is a service manager to report to.
pub(super) fn needed(config: &Config, workers: usize, has_manager: bool) -> usize {
    // The library `may` has a thread for timers, and one thread enforces the limits of the endpoint.
    let control = if config.control.is_some() { limits::LOCAL_WORKERS + 2 } else { 0 };
    let recorder = if config.no_recorder { 0 } else { recorder::START_THREADS };
    // The camera wait, the shutdown, and the preparation of sessions, which ends soon.
    let always = 3;
    workers + control + recorder + always + usize::from(config.demo) + usize::from(has_manager)
}

/// Makes `count` threads that exist at the same time, and ends them again.
///
/// # Errors
/// Returns the error of the first thread that the system refuses.
pub(super) fn check(count: usize) -> io::Result<()> {
    let (hold, held) = channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let start = |_| {
        let held = Arc::clone(&held);
        Builder::new().stack_size(limits::HELPER_STACK_BYTES).spawn(move || wait_for_end(&held))
    };
    let mut threads: Vec<JoinHandle<()>> = Vec::with_capacity(count);
    let made = (0..count).map(start).try_for_each(|thread| thread.map(|thread| threads.push(thread)));
    drop(hold);
    for thread in threads {
        // The result is ignored: the thread cannot panic.
        let _ = thread.join();
    }
    made
}

/// Waits until the sender of the channel is dropped.
fn wait_for_end(held: &Mutex<Receiver<()>>) {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner);
    // The result is always the error that says that the sender is gone.
    let _ = held.recv();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_exist_at_the_same_time_and_end() {
        check(50).unwrap();
    }
}
