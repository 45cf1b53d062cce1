//! Reads the fragments of SDP in which a viewer sends its candidates or restarts ICE (`application/trickle-ice-sdpfrag`,
//! RFC 8840 section 9). Only the ICE credentials are kept: as an ICE-lite agent, the server needs no candidates.

use crate::base::limits;
use crate::session::transport::offer_error::OfferError;
use crate::session::transport::sdp::Offer;
use crate::session::transport::section::Section;

/// Why a fragment was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// The text is not a usable fragment; the value says why.
    #[error("the fragment is malformed: {0}")]
    Malformed(String),
    /// The fragment is for another generation of ICE than the current one.
    #[error("the session has restarted ICE since: its entity tag is another one")]
    OtherTag,
    /// The fragment restarts ICE, but the caller did not say for which generation.
    #[error("an ICE restart needs the header If-Match, with `*` or the session's entity tag")]
    TagRequired,
    /// The fragment is valid, but asks for something that the server cannot do.
    #[error("the fragment cannot be served: {0}")]
    Unsupported(&'static str),
    /// The session has restarted ICE a moment ago.
    #[error("the session has just restarted ICE: try again in {s} s", s = limits::ICE_RESTART_INTERVAL.as_secs())]
    TooSoon,
    /// The session has ended.
    #[error("the session has ended")]
    Gone,
    /// The server failed.
    #[error("ICE could not be restarted: {0}")]
    Internal(String),
}

impl FragmentError {
    /// Returns the HTTP status code and the value of `code` in the JSON error.
    pub fn status_and_code(&self) -> (u16, &'static str) {
        match self {
            Self::Malformed(_) => (400, "invalid_fragment"),
            Self::OtherTag => (412, "other_tag"),
            Self::TagRequired => (428, "tag_required"),
            Self::Unsupported(_) => (422, "unsupported_fragment"),
            Self::TooSoon => (503, "busy"),
            Self::Gone => (404, "no_session"),
            Self::Internal(_) => (500, "internal"),
        }
    }
}

impl From<OfferError> for FragmentError {
    fn from(error: OfferError) -> Self {
        match error {
            OfferError::Malformed(reason) => Self::Malformed(reason),
            OfferError::Unsupported(reason) | OfferError::NoCommonCodec(reason) => Self::Unsupported(reason),
            OfferError::Internal(reason) => Self::Internal(reason),
        }
    }
}

/// What the server uses of a fragment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IceFragment {
    /// Credentials outside any m-line, then those of each m-line.
    parts: Vec<Part>,
    pub(super) is_ice_lite: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// The `mid` of an m-line.
    mid: Option<String>,
    ufrag: Option<String>,
    password: Option<String>,
}

impl IceFragment {
    /// Parses a fragment. The numbers of its m-lines and attributes are bounded as those of an offer.
    ///
    /// # Errors
    /// Returns [`FragmentError::Malformed`] if the text is not a fragment: some line is no line of SDP.
    pub fn parse(text: &str) -> Result<IceFragment, FragmentError> {
        let is_sdp = |line: &str| matches!(line.as_bytes(), [] | [b'a'..=b'z', b'=', ..]);
        if !text.split(['\r', '\n']).all(is_sdp) || text.trim_ascii().is_empty() {
            return Err(FragmentError::Malformed("it is not SDP: each line must begin like a=".to_owned()));
        }
        let Offer { session, media } = Offer::split(text)?;
        let part = |section: &Section<'_>| Part {
            mid: section.mid.map(str::to_owned),
            ufrag: section.ice_ufrag.map(str::to_owned),
            password: section.ice_password.map(str::to_owned),
        };
        let is_ice_lite = session.is_ice_lite || media.iter().any(|section| section.is_ice_lite);
        let outside = Part { mid: None, ..part(&session) };
        Ok(IceFragment {
            parts: std::iter::once(outside).chain(media.iter().map(part)).collect(),
            is_ice_lite,
        })
    }

    /// Returns ufrag and password for the m-line `mid`: its own, else those outside any m-line, else the first ones,
    /// because the bundled m-lines share them.
    pub(super) fn credentials(&self, mid: &str) -> (Option<&str>, Option<&str>) {
        let own = self.parts.iter().filter(|part| part.mid.as_deref() == Some(mid));
        let mut parts = own.chain(&self.parts).filter(|part| part.ufrag.is_some());
        let password = |part: &Part| part.password.is_some();
        let fallback = self.parts.iter().find(|part| password(part));
        parts.next().map_or((None, None), |part| {
            let password = part.password.as_deref().or_else(|| fallback?.password.as_deref());
            (part.ufrag.as_deref(), password)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn credentials(text: &str, mid: &str) -> (Option<String>, Option<String>) {
        let fragment = IceFragment::parse(text).unwrap();
        let (ufrag, password) = fragment.credentials(mid);
        (ufrag.map(str::to_owned), password.map(str::to_owned))
    }

    fn some(ufrag: &str, password: &str) -> (Option<String>, Option<String>) {
        (Some(ufrag.to_owned()), Some(password.to_owned()))
    }

    #[test]
    fn credentials_are_found_at_the_session_or_at_an_m_line() {
        let media = "m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:1\r\n";
        let outside =
            format!("a=ice-ufrag:abcd\r\na=ice-pwd:secret\r\n{media}a=candidate:1 1 udp 1 192.0.2.1 9\r\n");
        assert_eq!(credentials(&outside, "1"), some("abcd", "secret"));
        let inside = format!("{media}a=ice-ufrag:abcd\r\na=ice-pwd:secret\r\n");
        assert_eq!(credentials(&inside, "1"), some("abcd", "secret"));
        assert_eq!(credentials(&inside, "another mid"), some("abcd", "secret"));
        let both = format!("a=ice-ufrag:abcd\na=ice-pwd:secret\n{media}a=ice-ufrag:own\na=ice-pwd:mine\n");
        assert_eq!(credentials(&both, "1"), some("own", "mine"));
        assert_eq!(credentials(&both, ""), some("abcd", "secret"));
        assert_eq!(credentials("a=end-of-candidates\r\n", "1"), (None, None));
        assert_eq!(credentials("a=ice-ufrag:abcd", "1"), (Some("abcd".to_owned()), None));
    }

    #[test]
    fn other_texts_are_malformed() {
        for text in ["", "\r\n", "{}", "<html>", "a=ice-ufrag:x\r\nhello\r\n", "a=\0", "m=video\r\n"] {
            assert!(matches!(IceFragment::parse(text), Err(FragmentError::Malformed(_))), "{text:?}");
        }
        let many = "m=audio 9 RTP/AVP 0\r\n".repeat(crate::base::limits::OFFER_MEDIA_MAX + 1);
        assert!(IceFragment::parse(&many).is_err());
        let many = "a=candidate:1\r\n".repeat(crate::base::limits::OFFER_ATTRIBUTES_MAX + 1);
        assert!(IceFragment::parse(&many).is_err());
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_text_is_parsed_or_refused(text in "(a=(ice-ufrag|ice-pwd|mid|ice-lite):[a-z]{0,5}\r?\n|m=[a-z ]{0,12}\n|.{0,20})*", mid in ".{0,3}") {
            if let Ok(fragment) = IceFragment::parse(&text) {
                let (ufrag, password) = fragment.credentials(&mid);
                let is_in_text = |value: Option<&str>| value.is_none_or(|value| text.contains(value));
                prop_assert!(is_in_text(ufrag) && is_in_text(password));
                prop_assert!(ufrag.is_some() || password.is_none());
            }
        }
    }
}
