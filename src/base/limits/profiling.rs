//! Bounds of profiles.

use std::time::Duration;

/// Maximum number of frames of one stack. Outer callers beyond this number are cut off.
pub const STACK_FRAMES_MAX: usize = 64;

/// Maximum bytes from one frame to its caller's frame. A frame pointer with a larger distance is invalid.
pub const STACK_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Words above the stack pointer that are searched for a return address if there is no frame pointer.
pub const STACK_SEARCH_WORDS_MAX: usize = 128;

/// Maximum number of distinct stacks of one CPU profile.
pub const PROFILE_STACKS_MAX: usize = 4_096;

/// Maximum number of frames of all distinct stacks of one CPU profile together (8 bytes each).
pub const PROFILE_FRAMES_MAX: usize = 48 * 1024;

/// Maximum number of threads sampled by one CPU profile. Further threads are only counted.
pub const PROFILE_THREADS_MAX: usize = 512;

/// Longest CPU profile.
pub const PROFILE_DURATION_MAX: Duration = Duration::from_secs(600);

/// Maximum samples per second of CPU time. A higher rate has no effect, because the kernel checks CPU timers only at
/// its tick, 100 to 1000 times per second.
pub const PROFILE_FREQUENCY_HZ_MAX: u32 = 1_000;

/// Time between two searches for new threads during a CPU profile.
pub const PROFILE_THREAD_SCAN: Duration = Duration::from_millis(100);

/// Maximum time in which threads must report their stack.
pub const PROFILE_ANSWER_MAX: Duration = Duration::from_millis(200);

/// Maximum bytes of a function's mangled name. Longer names are cut off.
pub const PROFILE_NAME_BYTES_MAX: usize = 2_048;

/// Mean number of allocated bytes between two samples of the heap profile (Go's default).
pub const HEAP_SAMPLING_BYTES: usize = 512 * 1024;

/// Maximum number of sampled allocations that are alive at the same time. With one sample per [`HEAP_SAMPLING_BYTES`],
/// they stand for 2 GiB of live memory.
pub const HEAP_LIVE_MAX: usize = 4_096;

/// Maximum number of distinct stacks of the heap profile. Samples of further stacks are counted under one common stack.
pub const HEAP_STACKS_MAX: usize = 1_024;

/// Maximum number of frames of one stack of the heap profile.
pub const HEAP_STACK_FRAMES_MAX: usize = 40;

/// Number of one-byte counters that the allocator reads at every `free`, to find out if the address may belong to a
/// sampled allocation.
pub const HEAP_FILTER_BYTES: usize = 8_192;

const _: () = assert!(PROFILE_STACKS_MAX.is_power_of_two() && HEAP_LIVE_MAX.is_power_of_two());
const _: () = assert!(HEAP_STACKS_MAX.is_power_of_two() && HEAP_FILTER_BYTES.is_power_of_two());
const _: () = assert!(
    8 * PROFILE_FRAMES_MAX + 32 * PROFILE_STACKS_MAX < 1024 * 1024,
    "a CPU profile's tables stay below half of the 2 MB that profiling may take"
);
