//! Bounds of the HTTP endpoints.

use std::time::Duration;

/// Bytes of a request body. A browser's SDP offer has 3 to 10 kB.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a request's line and headers. More is answered with 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Bytes that hyper buffers for one connection in each direction.
pub const CONNECTION_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Time between two checks for changes to send to event listeners.
pub const EVENTS_LOOK: Duration = Duration::from_millis(100);

/// Time between two `status` events.
pub const EVENTS_STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Time to wait for the recorder's part of a status. A disk that hangs longer is reported as `unresponsive`.
pub const EVENTS_RECORDER_TIMEOUT: Duration = Duration::from_millis(300);

/// Events kept for a slow listener.
pub const EVENTS_KEPT: usize = 16;

/// Event listeners at once. Part of [`CONNECTIONS_MAX`]: each occupies a connection permanently.
pub const EVENT_LISTENERS_MAX: usize = 128;

/// Retry-After seconds for a listener above the limit.
pub const EVENTS_RETRY_AFTER_S: u32 = 10;

/// Connections served at once. The next one is answered with 503 and closed.
pub const CONNECTIONS_MAX: usize = 256;

/// Refused connections that may wait for their 503 to be read. Further ones are closed at once.
pub const REFUSALS_MAX: usize = 64;

/// Time from accept, or from the end of the last answer, until a request's head is complete. Also closes idle
/// connections.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a request's body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which an answer may remain unacknowledged (`TCP_USER_TIMEOUT`).
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time in which the backend must answer a request.
pub const BACKEND_TIMEOUT: Duration = Duration::from_secs(12);

/// Time for which a connection that the server closes stays open, so that the last answer can be read.
pub const LINGER: Duration = Duration::from_secs(1);

/// Time for answers in progress at shutdown.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of the JSON of a recording command.
pub const COMMAND_BYTES_MAX: usize = 4 * 1024;

/// Bytes read from a recording at a time.
pub const DOWNLOAD_PIECE_BYTES: usize = 128 * 1024;

/// Pieces of a download queued for a slow reader.
pub const DOWNLOAD_PIECES_AHEAD: usize = 2;
