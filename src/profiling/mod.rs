//! UNSAFE. Takes profiles of this process in the format of `go tool pprof`: CPU time, heap, threads. When no profile is
//! being taken, it only costs the countdown of the heap profile. It must not use any other module except `base`.
//!
//! ```text
//!  cpu      timers ─► SIGPROF ─► signal ─► stack ─► table ─┐
//!  threads  tgkill ─► SIGPROF ─► signal ─► stack ─► table ─┼─► symbols (elf) ─► pprof ─► gzip'd profile.proto
//!  heap     allocator ─► heap ─► stack ─► sites ───────────┘
//! ```
//!
//! All functions block the calling thread; [`cpu_profile`] blocks for the whole measurement.

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

/// Reasons why a profile cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Only one profile can be taken at a time.
    #[error("another profile is being taken; try again later")]
    Busy,
    /// An argument is 0 or above its bound.
    #[error("the {0} is out of range")]
    Range(&'static str),
    /// The kernel refused the signal handler.
    #[error("cannot handle SIGPROF: {0}")]
    Signal(#[source] io::Error),
}

/// Two profiles of Go that are always empty here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contention {
    /// Waiting for locks (`mutex`).
    Mutex,
    /// Waiting for anything (`block`).
    Block,
}

/// Returns a valid profile without samples. A comment in it says that waiting is not recorded in this program.
#[must_use]
pub fn contention_profile(kind: Contention) -> Vec<u8> {
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
            "empty: {what} is not recorded; the goroutine profile shows what threads wait for now"
        )],
        ..pprof::Description::default()
    };
    pprof::encode(&description, &|_| {})
}

/// Returns the command line with NUL between the arguments, like Go. Empty without /proc.
#[must_use]
pub fn cmdline() -> Vec<u8> {
    let mut line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    if line.last() == Some(&0) {
        line.pop();
    }
    line
}

/// Returns the list of pages below /debug/pprof/ as text.
#[must_use]
pub fn index() -> &'static str {
    "/debug/pprof/

profile    CPU time of all threads, ?seconds=N (30): go tool pprof http://HOST/debug/pprof/profile?seconds=10
heap       memory in use by stack, sampled every 512 kB: go tool pprof http://HOST/debug/pprof/heap
allocs     the same samples: memory allocated since the start
goroutine  one sample per thread (there are no goroutines) with its name and current stack;
           ?debug=1 lists the threads as text, ?debug=2 with stacks
mutex      empty: waiting for locks is not recorded in this program
block      empty: blocking is not recorded in this program
cmdline    the command line, arguments separated by NUL

Only one profile is taken at a time; a second request is refused. Threads are labelled:
go tool pprof -tagfocus thread=worker-0 FILE
"
}
