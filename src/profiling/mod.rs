//! UNSAFE. Profiles that `go tool pprof` reads, taken in this process: CPU time, heap, threads. Idle it costs
//! nothing but the heap's countdown. May use none of the other rooms; who asks and over what is not known here.
//!
//! ```text
//!  cpu      timers ─► SIGPROF ─► signal ─► stack ─► table ─┐
//!  threads  tgkill ─► SIGPROF ─► signal ─► stack ─► table ─┼─► symbols (elf) ─► pprof ─► gzip'd profile.proto
//!  heap     allocator ─► heap ─► stack ─► sites ───────────┘
//! ```
//!
//! All functions block the calling thread; [`cpu_profile`] for as long as it measures.

mod allocator;
mod cpu;
mod elf;
mod heap;
mod pprof;
mod signal;
mod stack;
mod symbols;
mod table;
mod tasks;
mod threads;
mod timers;

use std::io;

pub use allocator::Allocator;
pub use cpu::cpu_profile;
pub use heap::{Heap, heap_profile};
pub use threads::threads;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// One at a time.
    #[error("another profile is being taken; try again when it is done")]
    Busy,
    /// An argument is 0 or beyond its bound.
    #[error("{0} out of range")]
    Range(&'static str),
    /// The kernel refused the signal handler.
    #[error("cannot handle SIGPROF: {0}")]
    Signal(#[source] io::Error),
    /// The profile could not be written or its symbols not be read.
    #[error("cannot encode the profile: {0}")]
    Encode(#[source] io::Error),
}

/// Two profiles of Go's that have nothing to show here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contention {
    /// Waiting for locks (`mutex`).
    Mutex,
    /// Waiting for anything (`block`).
    Block,
}

/// A valid profile without samples that says why: waiting is not recorded in this program.
///
/// # Errors
/// [`ProfileError::Encode`] when the result cannot be written.
pub fn contention_profile(kind: Contention) -> Result<Vec<u8>, ProfileError> {
    let what = match kind {
        Contention::Mutex => "waiting for locks",
        Contention::Block => "blocking",
    };
    let description = pprof::Description {
        sample_types: vec![("contentions", "count"), ("delay", "nanoseconds")],
        default_type: "delay",
        period_type: ("contentions", "count"),
        period: 1,
        comments: vec![format!(
            "empty: {what} is not recorded; see the goroutine profile for what waits now"
        )],
        ..pprof::Description::default()
    };
    pprof::encode(&description, &|_| {}).map_err(ProfileError::Encode)
}

/// The command line, arguments separated by NUL as Go gives it. Empty when /proc is not there.
#[must_use]
pub fn cmdline() -> Vec<u8> {
    let mut line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    if line.last() == Some(&0) {
        line.pop();
    }
    line
}

/// What there is below /debug/pprof/, as text.
#[must_use]
pub fn index() -> &'static str {
    "/debug/pprof/

profile    CPU time of all threads, ?seconds=N (30): go tool pprof http://HOST/debug/pprof/profile?seconds=10
heap       memory in use by stack, sampled every 512 kB: go tool pprof http://HOST/debug/pprof/heap
allocs     the same samples, memory allocated since the start
goroutine  one sample for each thread (there are no goroutines) with its name and current stack;
           ?debug=1 a list of the threads as text, ?debug=2 with stacks
mutex      empty: waiting for locks is not recorded in this program
block      empty: blocking is not recorded in this program
cmdline    the command line, arguments separated by NUL

One profile at a time; a second one is refused while the first is taken. Threads are labelled:
go tool pprof -tagfocus thread=worker-0 FILE
"
}
