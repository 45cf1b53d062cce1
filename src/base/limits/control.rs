//! Bounds of the control endpoint.

use std::time::Duration;

/// Number of threads of the control endpoint.
pub const LOCAL_WORKERS: usize = 2;

/// Number of finished coroutines that are kept for reuse.
pub const LOCAL_COROUTINE_POOL: usize = 8;

/// Stack bytes of a coroutine. A coroutine only parses the head of a request and waits; other threads do the rest.
pub const LOCAL_STACK_BYTES: usize = 64 * 1024;

/// Bytes of one connection that the kernel buffers before the program reads them (`SO_RCVBUF`).
pub const LOCAL_RECEIVE_BYTES: usize = 16 * 1024;

/// Maximum number of simultaneous connections to the control endpoint. Above it, the connection that has waited longest
/// for a request is closed.
pub const LOCAL_CONNECTIONS_MAX: usize = 16;

/// Maximum time from accept, or from the last answer, until a request is complete. After this time the connection is
/// closed, even if it is idle.
///
/// It exceeds the usual intervals of polling, because a request is lost that is sent while the server closes.
pub const LOCAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

/// Maximum time from the first byte of a request until the request is complete.
pub const LOCAL_BEGUN_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two checks for connections that have exceeded [`LOCAL_REQUEST_TIMEOUT`].
pub const LOCAL_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Time between two checks of the process's memory while a request is incomplete.
pub const LOCAL_MEMORY_INTERVAL: Duration = Duration::from_millis(20);

/// Growth of the process's memory, in bytes, above which connections with incomplete requests are closed. The HTTP
/// library keeps all bytes of an incomplete request.
pub const LOCAL_GROWTH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of answers after which a connection is closed. A caller that sends requests but reads no answers costs at most
/// this much memory, plus the last answer.
pub const LOCAL_CONNECTION_BYTES_MAX: usize = 1024 * 1024;

/// Maximum bytes of a request's path and query together.
pub const LOCAL_TARGET_BYTES_MAX: usize = 2_048;

/// Maximum number of distinct header lines in all answers together. They are never freed.
pub const LOCAL_HEADER_LINES_MAX: usize = 128;

/// Stack bytes of the thread that takes a profile.
pub const INSPECTION_STACK_BYTES: usize = 1024 * 1024;

/// Maximum number of profiles and traces taken at the same time. Further requests are answered with 503.
pub const INSPECTIONS_MAX: u32 = 4;

/// Longest measurement of a profile in seconds.
pub const INSPECTION_SECONDS_MAX: u32 = 300;

/// Longest trace of the flight recorder in seconds.
pub const TRACE_SECONDS_MAX: u32 = 60;

/// Time that a profile may take in addition to its measurement, to resolve symbols and to compress the result.
pub const INSPECTION_GRACE: Duration = Duration::from_secs(30);

/// Samples of a CPU profile per second of CPU time (Go uses the same number).
pub const PROFILE_FREQUENCY_HZ: u32 = 100;
