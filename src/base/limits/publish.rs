//! Bounds of publishing to a WHIP server.

use std::time::Duration;

/// Maximum bytes of the URL of a WHIP endpoint or session.
pub const WHIP_URL_BYTES_MAX: usize = 2_048;

/// Maximum bytes of the token for a WHIP server. Signed tokens (JWT) have 200 to 2000 bytes.
pub const WHIP_TOKEN_BYTES_MAX: usize = 4_096;

/// Maximum bytes of a WHIP server's answer.
pub const WHIP_ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Maximum bytes of the head of a WHIP server's response.
pub const WHIP_HEAD_BYTES_MAX: usize = 16 * 1024;

/// Maximum number of characters of a WHIP server's error text that are logged.
pub const WHIP_ERROR_CHARS_MAX: usize = 200;

/// Maximum number of redirects that are followed for one request.
pub const WHIP_REDIRECTS_MAX: usize = 5;

/// Stack bytes of the thread that resolves the server's name or reads the trusted certificates.
pub const WHIP_STACK_BYTES: usize = 1024 * 1024;

/// Maximum time of one request: name resolution, connection, TLS and the head of the response.
pub const WHIP_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time from the head of a response until the end of its body.
pub const WHIP_BODY_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum time of a connection attempt to an address of the server, if the server has further addresses.
pub const WHIP_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time for the end of the session with a WHIP server when the program stops.
pub const WHIP_FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two polls of the session with a WHIP server, and of the camera while it is away.
pub const WHIP_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Longest wait after the first failed attempt. It doubles with every further failure.
pub const WHIP_RETRY_FIRST: Duration = Duration::from_millis(500);

/// Longest wait after each of the first [`WHIP_RETRIES_SOON`] failures.
pub const WHIP_RETRY_SOON: Duration = Duration::from_secs(5);

/// Number of failures after which [`WHIP_RETRY_LATER`] applies: the far end is down for longer than a restart takes.
pub const WHIP_RETRIES_SOON: u32 = 16;

/// Longest wait after later failures.
pub const WHIP_RETRY_LATER: Duration = Duration::from_secs(30);

/// Longest wait after a refusal that will probably be repeated, such as a wrong token.
pub const WHIP_RETRY_REFUSED: Duration = Duration::from_secs(60);

/// Longest wait that a server's `Retry-After` can demand.
pub const WHIP_RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Duration of a session after which the next failure counts as the first one.
pub const WHIP_SESSION_STABLE: Duration = Duration::from_secs(10);
