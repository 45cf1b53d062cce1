//! Bounds of the control endpoint.

use std::time::Duration;

/// Threads of the control endpoint.
pub const LOCAL_WORKERS: usize = 2;

/// Coroutines kept for reuse.
pub const LOCAL_COROUTINE_POOL: usize = 8;

/// Stack of a coroutine. It parses a head and waits; other threads do the rest.
pub const LOCAL_STACK_BYTES: usize = 64 * 1024;

/// Unread bytes of one connection that the kernel keeps.
pub const LOCAL_RECEIVE_BYTES: usize = 16 * 1024;

/// Connections to the control endpoint at once. Further ones are closed.
pub const LOCAL_CONNECTIONS_MAX: usize = 16;

/// Time from accept, or from the last answer, until a request is complete. Also closes idle connections.
pub const LOCAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two checks for late connections.
pub const LOCAL_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Time between two checks of the memory while a request is incomplete.
pub const LOCAL_MEMORY_INTERVAL: Duration = Duration::from_millis(20);

/// Growth of the process's memory at which incomplete requests are dropped: the library keeps all bytes of them.
pub const LOCAL_GROWTH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes answered on one connection before it is closed. A caller that sends requests and reads no answers costs at
/// most this much memory, plus the last answer.
pub const LOCAL_CONNECTION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of a request path with its query.
pub const LOCAL_TARGET_BYTES_MAX: usize = 2_048;

/// Different header lines in all answers.
pub const LOCAL_HEADER_LINES_MAX: usize = 128;

/// Stack of the thread that takes a profile.
pub const INSPECTION_STACK_BYTES: usize = 1024 * 1024;

/// Profiles and traces taken at once. Further ones are answered with 503.
pub const INSPECTIONS_MAX: u32 = 4;

/// Longest measurement of a profile in seconds.
pub const INSPECTION_SECONDS_MAX: u32 = 300;

/// Longest trace of the flight recorder in seconds.
pub const TRACE_SECONDS_MAX: u32 = 60;

/// Time that a profile may take besides its measurement: symbols, gzip.
pub const INSPECTION_GRACE: Duration = Duration::from_secs(30);

/// Samples of a CPU profile per second of CPU time (as Go's).
pub const PROFILE_FREQUENCY_HZ: u32 = 100;
