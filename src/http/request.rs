//! Defines the part of a request that the routes read: the head as text, and the JSON bodies. Does no I/O.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::backend::ApiError;
use crate::metrics::status::StartRequest;

/// The parts of a request that are known before its body is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// Method in upper case.
    pub method: &'a str,
    /// Path as it was sent, with its percent-encoding.
    pub path: &'a str,
    /// The part of the target after the `?`.
    pub query: Option<&'a str>,
    /// Value of `Host`, or the authority of the target if the target is an absolute URL.
    pub host: Option<&'a str>,
    /// Value of the header `Origin`.
    pub origin: Option<&'a str>,
    /// Value of the header `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// Value of the header `If-Match`.
    pub if_match: Option<&'a str>,
    /// Value of the header `Content-Type`.
    pub content_type: Option<&'a str>,
    /// Value of the header `Range`.
    pub range: Option<&'a str>,
    /// Value of the header `If-Range`.
    pub if_range: Option<&'a str>,
    /// Value of the header `Authorization`.
    pub authorization: Option<&'a str>,
    /// Value of the header `Cookie`.
    pub cookie: Option<&'a str>,
    /// Value of the header `Accept`.
    pub accept: Option<&'a str>,
    /// Value of the header `Accept-Encoding`.
    pub accept_encoding: Option<&'a str>,
    /// Value of the header `Referer`.
    pub referer: Option<&'a str>,
    /// Value of the header `Access-Control-Request-Method`, which is present on a CORS preflight.
    pub requested_method: Option<&'a str>,
}

/// Largest number of characters of foreign text that an error message repeats.
pub(super) const QUOTED_CHARS_MAX: usize = 160; // local bound

#[derive(Deserialize)]
struct OfferBody {
    #[serde(rename = "type")]
    kind: String,
    sdp: String,
}

/// Returns the SDP of `{"type": "offer", "sdp": ...}`. The content type is not checked, because curl sends that of an
/// HTML form by default.
pub(super) fn parse_offer(body: &[u8]) -> Result<String, ApiError> {
    let offer: OfferBody = serde_json::from_slice(body)
        .map_err(|error| bad_json("expected {\"type\": \"offer\", \"sdp\": ...}", &error))?;
    if offer.kind != "offer" {
        return Err(ApiError::new(400, "bad_type", "\"type\" must be \"offer\""));
    }
    if !offer.sdp.trim_start().starts_with("v=0") {
        let message = "\"sdp\" must be a session description that starts with v=0";
        return Err(ApiError::new(400, "bad_sdp", message));
    }
    Ok(offer.sdp)
}

/// Returns the options of a command that starts a recording. An empty body means the defaults.
pub(super) fn parse_start(body: &[u8]) -> Result<StartRequest, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(StartRequest::default());
    }
    // The body is parsed as a map first, because serde would also accept an array for a struct.
    let fields = parse_object(body).and_then(|fields| serde_json::from_value(Value::Object(fields)));
    fields.map_err(|error| {
        let expected =
            "expected {\"filename\", \"pre_roll_s\", \"max_duration_s\", \"heartbeat_s\"}, all optional";
        bad_json(expected, &error)
    })
}

/// The body of a login.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct LogIn {
    /// The token as it was sent.
    pub token: String,
    /// True if another site's page frames the page that logs in.
    #[serde(default, rename = "framed")]
    pub is_framed: bool,
}

impl fmt::Debug for LogIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret, so it is not shown.
        f.debug_struct("LogIn").field("is_framed", &self.is_framed).finish_non_exhaustive()
    }
}

/// Returns the fields of `{"token": "...", "framed": true}`. The error does not repeat the body, which may contain the
/// token.
pub(super) fn parse_login(body: &[u8]) -> Result<LogIn, ApiError> {
    let bad = |_| ApiError::new(400, "bad_json", "expected {\"token\": \"...\"}");
    serde_json::from_slice::<LogIn>(body).map_err(bad)
}

/// Parses a JSON object.
pub(super) fn parse_object(body: &[u8]) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_slice(body)
}

pub(super) fn bad_json(expected: &str, error: &serde_json::Error) -> ApiError {
    // The message of the parser may quote the input, so its length is limited.
    let reason: String = error.to_string().chars().take(QUOTED_CHARS_MAX).collect();
    ApiError::new(400, "bad_json", format!("{expected}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_start_body_means_the_defaults() {
        for body in ["", " \r\n", "{}"] {
            assert_eq!(parse_start(body.as_bytes()).unwrap(), StartRequest::default());
        }
        let request = parse_start(br#"{"filename":"a.h264","pre_roll_s":1.5}"#).unwrap();
        assert_eq!((request.filename.as_deref(), request.pre_roll_s), (Some("a.h264"), Some(1.5)));
    }

    #[test]
    fn a_malformed_start_body_is_refused_with_400() {
        for body in ["[]", "{", "\"a\"", "{\"filename\":5}", "\0"] {
            let error = parse_start(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.code), (400, "bad_json"), "{body}");
        }
    }
}
