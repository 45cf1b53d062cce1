//! Bounds of profiles.

use std::time::Duration;

/// Frames of one stack. Outer callers beyond it are cut.
pub const STACK_FRAMES_MAX: usize = 64;

/// Bytes from one frame to its caller's frame. A frame pointer with a larger distance is invalid.
pub const STACK_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Words above the stack pointer that are searched for a return address if there is no frame pointer.
pub const STACK_SEARCH_WORDS_MAX: usize = 128;

/// Distinct stacks of one CPU profile.
pub const PROFILE_STACKS_MAX: usize = 4_096;

/// Frames of all distinct stacks of one CPU profile (8 bytes each).
pub const PROFILE_FRAMES_MAX: usize = 48 * 1024;

/// Threads sampled by one CPU profile. Further ones are only counted.
pub const PROFILE_THREADS_MAX: usize = 512;

/// Longest CPU profile.
pub const PROFILE_DURATION_MAX: Duration = Duration::from_secs(600);

/// Samples per CPU second. The kernel checks CPU timers at its tick, 100 to 1000 Hz.
pub const PROFILE_FREQUENCY_HZ_MAX: u32 = 1_000;

/// Time between two searches for new threads during a CPU profile.
pub const PROFILE_THREAD_SCAN: Duration = Duration::from_millis(100);

/// Time in which threads must report their stack.
pub const PROFILE_ANSWER_MAX: Duration = Duration::from_millis(200);

/// Bytes of a function's mangled name. Longer names are cut.
pub const PROFILE_NAME_BYTES_MAX: usize = 2_048;

/// Mean allocated bytes between two samples of the heap profile (Go's default).
pub const HEAP_SAMPLING_BYTES: usize = 512 * 1024;

/// Sampled allocations alive at once: 2 GiB of live memory at the sampling distance.
pub const HEAP_LIVE_MAX: usize = 4_096;

/// Distinct stacks of the heap profile. Further samples are counted under one common stack.
pub const HEAP_STACKS_MAX: usize = 1_024;

/// Frames of one stack of the heap profile.
pub const HEAP_STACK_FRAMES_MAX: usize = 40;

/// One-byte counters that tell at every `free` if the address may be a sampled one.
pub const HEAP_FILTER_BYTES: usize = 8_192;

const _: () = assert!(PROFILE_STACKS_MAX.is_power_of_two() && HEAP_LIVE_MAX.is_power_of_two());
const _: () = assert!(HEAP_STACKS_MAX.is_power_of_two() && HEAP_FILTER_BYTES.is_power_of_two());
const _: () = assert!(
    8 * PROFILE_FRAMES_MAX + 32 * PROFILE_STACKS_MAX < 1024 * 1024,
    "a CPU profile's tables stay below half of the 2 MB that profiling may take"
);
