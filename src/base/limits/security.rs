//! The bounds of token, logins and TLS.

use std::time::Duration;

use super::CONNECTIONS_MAX;

/// Bytes of a token: at 4 bits a character still 64 bits, out of reach at the rate attempts are allowed.
pub const TOKEN_BYTES_MIN: usize = 16;

/// Bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 256;

/// Bytes of the body of a login: the token as JSON, every character escaped.
pub const LOGIN_BYTES_MAX: usize = 2048;

const _: () = assert!(TOKEN_BYTES_MAX * 6 + 64 < LOGIN_BYTES_MAX, "any token can be sent");

/// How long a login lasts that is not used again.
pub const LOGIN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Between two looks whether the login of an answer without end has lapsed; one that is ended is noticed at once.
pub const LOGIN_LOOK: Duration = Duration::from_secs(60);

/// Rounds of PBKDF2 between the token and the key that signs logins: who steals a cookie pays so much for every
/// guess at the token. 20 ms at start on a Cortex-A55.
pub const LOGIN_KEY_ROUNDS: u32 = 10_000;

/// Logins ended by their owner before they lapsed that are remembered.
pub const LOGOUTS_MAX: usize = 1024;

/// Cookies of our name that are tried on one request: a sibling host can add some.
pub const COOKIES_TRIED_MAX: usize = 4;

/// Wrong tokens one address (one /64 of IPv6) may send at once, and the time until it may send one more.
pub const ATTEMPTS_OF_ADDRESS: u32 = 10;

/// See [`ATTEMPTS_OF_ADDRESS`].
pub const ATTEMPT_INTERVAL_OF_ADDRESS: Duration = Duration::from_secs(6);

/// Wrong tokens all addresses together may send at once, and the time until one more. Addresses that have sent
/// the right one are not held to this.
pub const ATTEMPTS_OF_ALL: u32 = 200;

/// See [`ATTEMPTS_OF_ALL`].
pub const ATTEMPT_INTERVAL_OF_ALL: Duration = Duration::from_millis(500);

/// Addresses remembered for their attempts; beyond it the one that attempted longest ago is forgotten.
pub const ATTEMPT_ADDRESSES_MAX: usize = 1024;

/// Bytes of a host name (RFC 1035 section 2.3.4).
pub const HOST_BYTES_MAX: usize = 253;

/// Time from accept until a TLS handshake is complete.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);

/// TLS handshakes in progress; one more ends the oldest, so that callers who say nothing cannot keep others out.
pub const TLS_HANDSHAKES_MAX: usize = 64;

const _: () = assert!(TLS_HANDSHAKES_MAX < CONNECTIONS_MAX, "half-open handshakes leave room for the others");

/// TLS sessions remembered, so that a phone that comes back is spared the handshake's signature.
pub const TLS_SESSIONS_MAX: usize = 128;

/// Bytes of a certificate or key file.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How long a self-signed certificate holds: iOS takes 825 days at most.
pub const SELF_SIGNED_DAYS: u64 = 800;

const _: () = assert!(SELF_SIGNED_DAYS < 825, "with a day on each side for clocks that differ");

/// A certificate that ends within so many days is warned about; a self-signed one is made anew at the next start.
pub const CERTIFICATE_DAYS_LOW: u64 = 21;
