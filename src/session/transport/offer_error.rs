//! Reasons for which an offer is refused, with their HTTP status codes.

/// Why an offer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// The text is not a usable offer; the value says why.
    #[error("the offer is malformed: {0}")]
    Malformed(String),
    /// The offer is valid but needs something that the server cannot do; the value says what.
    #[error("the offer cannot be served: {0}")]
    Unsupported(&'static str),
    /// The video of the offer has no H.264 that the server can send; the value says why.
    #[error("the offer has no video that can be served: {0}")]
    NoCommonCodec(&'static str),
    /// The server failed to set the session up.
    #[error("the session could not be set up: {0}")]
    Internal(String),
}

impl OfferError {
    /// Returns the HTTP status code for this error.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::Unsupported(_) | Self::NoCommonCodec(_) => 422,
            Self::Internal(_) => 500,
        }
    }

    /// Returns the value of `code` in the JSON error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "invalid_offer",
            Self::Unsupported(_) => "unsupported_offer",
            Self::NoCommonCodec(_) => "no_common_codec",
            Self::Internal(_) => "internal",
        }
    }
}

/// Returns [`OfferError::Malformed`].
pub(super) fn malformed<T>(what: impl Into<String>) -> Result<T, OfferError> {
    Err(OfferError::Malformed(what.into()))
}
