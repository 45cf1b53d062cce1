//! Bounds of token, logins and TLS.

use std::time::Duration;

use super::CONNECTIONS_MAX;

/// Minimum bytes of a token. At 4 bits per character it has 64 bits, out of reach at the allowed rate of attempts.
pub const TOKEN_BYTES_MIN: usize = 16;

/// Maximum bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 256;

/// Bytes of a login's body: the token as JSON with every character escaped.
pub const LOGIN_BYTES_MAX: usize = 2048;

const _: () = assert!(TOKEN_BYTES_MAX * 6 + 64 < LOGIN_BYTES_MAX, "any token can be sent");

/// Time for which an unused login is valid.
pub const LOGIN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Time between two checks if the login of an endless response has expired. Ending a login takes effect at once.
pub const LOGIN_LOOK: Duration = Duration::from_secs(60);

/// Rounds of PBKDF2 from the token to the key that signs logins. A stolen cookie thus makes every guess at the token
/// expensive. 20 ms at start on a Cortex-A55.
pub const LOGIN_KEY_ROUNDS: u32 = 10_000;

/// Remembered logins that were ended before they expired.
pub const LOGOUTS_MAX: usize = 1024;

/// Cookies of our name checked per request. A sibling host can add some.
pub const COOKIES_TRIED_MAX: usize = 4;

/// Wrong tokens that one address (one /64 of IPv6) may send at once.
pub const ATTEMPTS_OF_ADDRESS: u32 = 10;

/// Time after which such an address may send one more.
pub const ATTEMPT_INTERVAL_OF_ADDRESS: Duration = Duration::from_secs(6);

/// Wrong tokens that all addresses together may send at once. Addresses that sent the right token are exempt.
pub const ATTEMPTS_OF_ALL: u32 = 200;

/// Time after which all addresses together may send one more.
pub const ATTEMPT_INTERVAL_OF_ALL: Duration = Duration::from_millis(500);

/// Addresses whose attempts are remembered. At the limit, the one with the most attempts left is replaced.
pub const ATTEMPT_ADDRESSES_MAX: usize = 1024;

/// Bytes of a host name (RFC 1035 section 2.3.4).
pub const HOST_BYTES_MAX: usize = 253;

/// Time from accept until the TLS handshake must be complete.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);

/// TLS handshakes in progress. At the limit the oldest is dropped, so that silent callers cannot block new ones.
pub const TLS_HANDSHAKES_MAX: usize = 64;

const _: () =
    assert!(TLS_HANDSHAKES_MAX < CONNECTIONS_MAX, "pending handshakes leave room for other connections");

/// Remembered TLS sessions. A returning phone saves the handshake's signature.
pub const TLS_SESSIONS_MAX: usize = 128;

/// Bytes of a certificate or key file.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Days for which a self-signed certificate is valid. iOS accepts at most 825.
pub const SELF_SIGNED_DAYS: u64 = 800;

const _: () = assert!(SELF_SIGNED_DAYS < 825, "with a day on each side for clocks that differ");

/// Days of remaining validity below which a certificate causes a warning. The next start replaces a self-signed one.
pub const CERTIFICATE_DAYS_LOW: u64 = 21;
