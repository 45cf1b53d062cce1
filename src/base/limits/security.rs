//! Bounds of the token, logins and TLS.

use std::time::Duration;

use super::CONNECTIONS_MAX;

/// Minimum bytes of a token. With 4 random bits per character, the shortest token has 64 bits. At the allowed rate of
/// attempts, it cannot be guessed.
pub const TOKEN_BYTES_MIN: usize = 16;

/// Maximum bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 256;

/// Maximum bytes of the body of a login request. The longest token fits as JSON even if every character is escaped.
pub const LOGIN_BYTES_MAX: usize = 2048;

const _: () = assert!(TOKEN_BYTES_MAX * 6 + 64 < LOGIN_BYTES_MAX, "any token can be sent");

/// Time for which a login is valid if it is not used.
pub const LOGIN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Time between two checks for expired logins of endless responses. A logout ends such a response without waiting for
/// the next check.
pub const LOGIN_LOOK: Duration = Duration::from_secs(60);

/// Rounds of PBKDF2 that derive the key for signing logins from the token. An attacker with a stolen cookie must
/// compute all rounds for every guess at the token. They take 20 ms at start on a Cortex-A55.
pub const LOGIN_KEY_ROUNDS: u32 = 10_000;

/// Maximum number of remembered logouts: logins that were ended before they expired.
pub const LOGOUTS_MAX: usize = 1024;

/// Maximum number of cookies with the login's name that are checked per request. Another host of the same domain can
/// add cookies with this name.
pub const COOKIES_TRIED_MAX: usize = 4;

/// Number of wrong tokens that one address (one /64 of IPv6) may send in a burst before the rate limit applies.
pub const ATTEMPTS_OF_ADDRESS: u32 = 10;

/// Time after which such an address may send one more wrong token.
pub const ATTEMPT_INTERVAL_OF_ADDRESS: Duration = Duration::from_secs(6);

/// Maximum number of addresses whose attempts are remembered. At the limit, the address with the most attempts left is
/// forgotten.
pub const ATTEMPT_ADDRESSES_MAX: usize = 1024;

/// Maximum bytes of a host name (RFC 1035 section 2.3.4).
pub const HOST_BYTES_MAX: usize = 253;

/// Maximum time from accept until the TLS handshake is complete.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);

/// Maximum number of TLS handshakes in progress. At the limit, the oldest handshake is dropped, so that silent callers
/// cannot block new handshakes.
pub const TLS_HANDSHAKES_MAX: usize = 64;

const _: () =
    assert!(TLS_HANDSHAKES_MAX < CONNECTIONS_MAX, "pending handshakes leave room for other connections");

/// Maximum bytes of answers that wait in a TLS connection for its socket.
pub const TLS_BUFFER_BYTES: usize = 16 * 1024;

/// Maximum number of remembered TLS sessions. A client that resumes a session needs no signature in its handshake.
pub const TLS_SESSIONS_MAX: usize = 128;

/// Maximum bytes of a certificate file or key file.
pub const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Days for which a self-signed certificate is valid. iOS accepts at most 825.
pub const SELF_SIGNED_DAYS: u64 = 800;

const _: () = assert!(SELF_SIGNED_DAYS < 825, "with a day on each side for clocks that differ");

/// Days of remaining validity below which a certificate causes a warning. If the certificate is self-signed, the next
/// start replaces it.
pub const CERTIFICATE_DAYS_LOW: u64 = 21;
