//! Bounds of the HTTP endpoints.

use std::time::Duration;

/// Maximum bytes of a request body. A browser's SDP offer has 3 to 10 kB.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Maximum bytes of a request's first line and headers. A longer head is answered with 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Maximum bytes that hyper buffers for one connection in each direction.
pub const CONNECTION_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Time between two checks if there are changes to send to event listeners.
pub const EVENTS_LOOK: Duration = Duration::from_millis(100);

/// Time between two `status` events.
pub const EVENTS_STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Time to wait for the recorder's part of a status. If the disk hangs for longer, the recorder is reported as
/// `unresponsive`.
pub const EVENTS_RECORDER_TIMEOUT: Duration = Duration::from_millis(300);

/// Number of events kept for a listener that reads slowly: those of a second with 30 detections.
pub const EVENTS_KEPT: usize = 48;

/// Maximum number of simultaneous event listeners. Each listener permanently occupies one of the [`CONNECTIONS_MAX`]
/// connections.
pub const EVENT_LISTENERS_MAX: usize = 128;

/// Seconds in the Retry-After header of the answer to a listener that is refused because of the limit.
pub const EVENTS_RETRY_AFTER_S: u32 = 10;

/// Maximum number of connections served at the same time. Above it, idle connections give way to new ones. If there are
/// none, further connections are answered with 503 and closed.
pub const CONNECTIONS_MAX: usize = 256;

/// Number of free connections below which one address, or one login, may hold at most [`CONNECTIONS_SHARE`].
pub const CONNECTIONS_FREE_LOW: usize = CONNECTIONS_MAX / 4;

/// Number of connections that one address, or one login, may hold while few are free.
pub const CONNECTIONS_SHARE: usize = CONNECTIONS_MAX / 2;

/// Maximum number of refused connections that stay open until the caller has read the 503. Further connections are
/// closed without an answer.
pub const REFUSALS_MAX: usize = 64;

/// Maximum time from accept, or from the end of the last answer, until the next request begins. It exceeds the usual
/// intervals of polling (10, 15, 30 and 60 s), because a request is lost that is sent while the server closes.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Maximum time from the first byte of a request until its head is complete.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time until a request's body is complete.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which sent bytes of an answer may remain unacknowledged, or the caller's receive window may remain closed
/// (`TCP_USER_TIMEOUT` counts both). Then the connection ends. A player that is paused closes its window, so the time
/// has minutes.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// Bytes of a connection's send buffer (`SO_SNDBUF`). The kernel doubles the number. Without this limit, it lets the
/// buffer of a slow reader grow to several megabytes. Twice the number is one round trip of 50 ms at 20 Mbit/s.
pub const CONNECTION_SEND_BYTES: usize = 64 * 1024;

/// Bytes of a connection's receive buffer (`SO_RCVBUF`). The kernel doubles the number. Requests are short.
pub const CONNECTION_RECEIVE_BYTES: usize = 16 * 1024;

/// Maximum time in which the backend must answer a request.
pub const BACKEND_TIMEOUT: Duration = Duration::from_secs(12);

/// Time for which a connection stays open after the server has ended it, so that the caller can read the last answer.
pub const LINGER: Duration = Duration::from_secs(1);

/// Maximum time that a shutdown waits for answers in progress.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of entity tags in `If-Match` that are compared. Further ones are ignored.
pub const ENTITY_TAGS_MAX: usize = 16;

/// Maximum bytes of the JSON of a recording command.
pub const COMMAND_BYTES_MAX: usize = 4 * 1024;

/// Maximum latency that a viewer may report, in milliseconds.
pub const GLASS_MS_MAX: f64 = 60_000.0;

/// Minimum time between two reports of the latency of one session. The page reports every 5 s.
pub const GLASS_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Time after which the metrics no longer show a reported latency. A hidden page does not report.
pub const GLASS_REPORT_FRESH: Duration = Duration::from_secs(30);

/// Bytes that a download reads from a recording in one step.
pub const DOWNLOAD_PIECE_BYTES: usize = 64 * 1024;

/// Maximum number of pieces in the memory of one download: one is being sent, one is being read.
pub const DOWNLOAD_PIECES_MAX: usize = 2;

/// Maximum number of idle buffers for pieces of downloads that are kept for the next download.
pub const DOWNLOAD_PIECES_KEPT: usize = 16;

/// Maximum number of downloads at the same time. Further ones are answered with 503.
pub const DOWNLOADS_MAX: usize = 64;

/// Maximum number of downloads at the same time to one address that is not exempt from the limits per address.
pub const DOWNLOADS_OF_ADDRESS_MAX: usize = DOWNLOADS_MAX / 4;

/// Seconds in the Retry-After header of the answer to a download that is refused because of a limit.
pub const DOWNLOAD_RETRY_AFTER_S: u32 = 5;

/// Bytes up to which the body of a request or an answer is not counted in [`MESSAGES_BYTES_MAX`].
pub const MESSAGE_BYTES_SHORT: usize = 4 * 1024;

/// Maximum bytes of all longer bodies together: of requests that arrive, and of answers that are not sent yet, such as
/// listings and metrics. Beyond it, the answer is 503. A listing of the maximum length has 3 MB.
pub const MESSAGES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Maximum bytes of such bodies for one address that is not exempt from the limits per address.
pub const MESSAGES_OF_ADDRESS_BYTES_MAX: usize = MESSAGES_BYTES_MAX / 2;

/// Maximum number of log lines about refused names in [`REFUSAL_LOG_INTERVAL_NS`].
pub const REFUSAL_LOG_LINES_MAX: usize = 16;

/// Nanoseconds after which a refused name is logged again.
pub const REFUSAL_LOG_INTERVAL_NS: i64 = 3_600_000_000_000;
