//! UNSAFE. Takes profiles of this process (CPU time, heap, threads) in the format that `go tool pprof` reads. While no
//! profile is being taken, the only cost is the byte countdown that every allocation makes for the heap profile. This
//! module must not use any other module except `base`.
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
pub use threads::{own_stack, threads};

/// Reasons why a profile cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Another profile is being taken. Only one can be taken at a time.
    #[error("another profile is being taken; try again later")]
    Busy,
    /// The named argument is 0 or above its maximum.
    #[error("the {0} is out of range")]
    Range(&'static str),
    /// The kernel refused the signal handler.
    #[error("cannot handle SIGPROF: {0}")]
    Signal(#[source] io::Error),
}

/// Two of the profiles that Go programs offer. Both are always empty in this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contention {
    /// The profile `mutex`, which shows the time spent waiting for locks.
    Mutex,
    /// The profile `block`, which shows the time spent blocked for any reason.
    Block,
}

/// Returns a valid profile without samples. A comment in the profile says that this program does not record waiting.
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

/// Returns the command line of this process with a NUL byte between the arguments, as Go does. Returns an empty vector
/// if /proc is not mounted.
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
