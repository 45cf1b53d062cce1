//! The time limits of connections.

use std::time::Duration;

use crate::base::limits;

/// Time limits of a connection. Tests shorten the defaults.
#[derive(Clone, Copy, Debug)]
pub struct HttpTimeouts {
    /// Longest time from the accept until the TLS handshake is complete.
    pub handshake: Duration,
    /// Longest time from the accept, the TLS handshake or the last answer until the next request begins.
    pub idle: Duration,
    /// Longest time from the first byte of a request until its head is complete.
    pub header: Duration,
    /// Longest time for the body of a request to arrive.
    pub body: Duration,
    /// Time for the backend to answer.
    pub backend: Duration,
    /// Longest time for which a viewer of HTTP live may take no byte.
    pub live: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> HttpTimeouts {
        HttpTimeouts {
            handshake: limits::TLS_HANDSHAKE_TIMEOUT,
            idle: limits::IDLE_TIMEOUT,
            header: limits::HEADER_TIMEOUT,
            body: limits::BODY_TIMEOUT,
            backend: limits::BACKEND_TIMEOUT,
            live: limits::LIVE_STALL_TIMEOUT,
        }
    }
}
