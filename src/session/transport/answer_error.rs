//! Reasons for which the answer of a WHIP server is refused.

use super::offer_error::OfferError;

/// Why the answer to our offer cannot be used. The text says what to do where the user can do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The text is not a usable answer; the value says why.
    #[error("the answer is malformed: {0}")]
    Malformed(String),
    /// The answer is valid but cannot be used; the value says why.
    #[error("the answer cannot be used: {0}")]
    Unusable(&'static str),
    /// Every candidate of the answer needs a relay or TCP. The value lists the types of its candidates.
    #[error("the answer has no address that can be reached: {0}")]
    NoCandidate(&'static str),
    /// This program failed to set the session up.
    #[error("the session could not be set up: {0}")]
    Internal(String),
}

/// Offer and answer have the same parts. An error in a part has the same meaning in both.
impl From<OfferError> for AnswerError {
    fn from(error: OfferError) -> AnswerError {
        match error {
            OfferError::Malformed(what) => AnswerError::Malformed(what),
            OfferError::Unsupported(what) | OfferError::NoCommonCodec(what) => AnswerError::Unusable(what),
            OfferError::Internal(what) => AnswerError::Internal(what),
        }
    }
}
