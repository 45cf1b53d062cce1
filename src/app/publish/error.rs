//! Reasons for which an attempt to publish fails, and how soon the next one follows.

use std::time::Duration;

use crate::base::limits;
use crate::config::UrlError;
use crate::session::{AnswerError, OfferError};
use crate::worker::commands::MailboxFull;

/// Why an attempt to publish has failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum PublishError {
    /// The server cannot be reached.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, #[source] std::io::Error),
    /// TLS failed, usually because the certificate is not trusted.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, #[source] std::io::Error),
    /// There are no certificates to verify the server with.
    #[error("no trusted certificates: {0}. Install ca-certificates, or give the server's with --whip-ca")]
    NoRoots(String),
    /// The response is not HTTP, or the connection ended before the response was complete.
    #[error("{0} does not answer with a complete HTTP response: {1}")]
    Http(String, String),
    /// The response did not arrive in time.
    #[error("{0} did not answer within {timeout} s", timeout = limits::WHIP_REQUEST_TIMEOUT.as_secs())]
    Timeout(String),
    /// The body of the response is longer than the bound.
    #[error("the answer of {0} is longer than {max} bytes: is this a WHIP endpoint?", max = limits::WHIP_ANSWER_BYTES_MAX)]
    TooLong(String),
    /// There were too many redirects.
    #[error("more than {max} redirects, the last one to {0}", max = limits::WHIP_REDIRECTS_MAX)]
    Redirects(String),
    /// A redirect or a session URL leads from https to http.
    #[error("{0} leads from https to http, which is refused")]
    Downgrade(String),
    /// The `Location` header is missing.
    #[error("{0} answers {1} without Location: is this a WHIP endpoint?")]
    NoLocation(String, u16),
    /// The `Location` header is not a usable URL.
    #[error("the Location of {0} is not {1}")]
    Location(String, #[source] UrlError),
    /// The server refuses.
    #[error("{host} answers {status}{}", explain(*status, text))]
    Status {
        /// Host of the server.
        host: String,
        /// HTTP status code.
        status: u16,
        /// Beginning of the body.
        text: String,
        /// Wait that the server demands.
        retry_after: Option<Duration>,
    },
    /// The receiver of messages refuses one.
    #[error("{host} answers {status} [{text}]")]
    Refused {
        /// Host of the server.
        host: String,
        /// HTTP status code.
        status: u16,
        /// Beginning of the body.
        text: String,
        /// Wait that the server demands.
        retry_after: Option<Duration>,
    },
    /// The body is not SDP.
    #[error("{0} answers with {1} instead of application/sdp: is this a WHIP endpoint?")]
    NotSdp(String, String),
    /// The answer cannot be used.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The offer could not be made.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The worker has no room for the session.
    #[error(transparent)]
    Worker(#[from] MailboxFull),
    /// The session ended; the text says why.
    #[error("{0}")]
    Ended(String),
}

/// Returns the text behind the status of a refusal.
fn explain(status: u16, text: &str) -> String {
    let advice = match status {
        200..=299 => ", but WHIP needs 201: is this a WHIP endpoint?",
        301..=303 => ": redirects with this status are not followed, because they would change POST to GET",
        401 | 403 => ": the token is missing or wrong (--whip-token-file)",
        404 => ": is the path of --whip right?",
        406 | 415 | 422 => ": it does not accept the offer",
        409 => ": another publisher may be connected",
        _ => "",
    };
    if text.is_empty() { advice.to_owned() } else { format!("{advice} [{text}]") }
}

impl PublishError {
    /// Returns the name of the kind of error, a value of the label `reason` of the metric `whip_failures_total`.
    pub(in crate::app) fn reason(&self) -> usize {
        match self {
            Self::Connect(..) | Self::Timeout(_) => 0,
            Self::Tls(..) | Self::NoRoots(_) | Self::Downgrade(_) => 1,
            Self::Status { status: 401 | 403, .. } => 2,
            Self::Status { .. } | Self::Refused { .. } | Self::Redirects(_) => 3,
            Self::Http(..) | Self::TooLong(_) | Self::NoLocation(..) | Self::Location(..) => 4,
            Self::NotSdp(..) | Self::Answer(_) => 4,
            Self::Ended(_) => 5,
            Self::Offer(_) | Self::Worker(_) => 6,
        }
    }

    /// Returns true if the next attempt will probably fail in the same way, until the user changes something.
    pub(in crate::app) fn is_refusal(&self) -> bool {
        match self {
            Self::Status { status, .. } | Self::Refused { status, .. } => {
                (200..500).contains(status) && !matches!(status, 408 | 409 | 425 | 429)
            }
            Self::Connect(..) | Self::Timeout(_) | Self::Http(..) | Self::Ended(_) => false,
            // rustls reports alerts and bad certificates as invalid data. Other errors are those of a connection that
            // broke, for example because the server restarts.
            Self::Tls(_, error) => error.kind() == std::io::ErrorKind::InvalidData,
            Self::Offer(_) | Self::Worker(_) => false,
            _ => true,
        }
    }

    /// Returns the wait that the server demands.
    pub(in crate::app) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Names of the values of [`PublishError::reason`].
pub(in crate::app) const REASONS: [&str; 7] =
    ["connect", "tls", "unauthorized", "status", "answer", "session", "internal"];
