//! Defines the part of a request that the routes read: the head as text, and the JSON bodies. Does no I/O.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::backend::{ApiError, ViewerOffer};
use crate::base::limits;
use crate::metrics::status::{GlassReport, StartRequest};

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
    #[serde(default)]
    playout_delay_max_ms: u16,
}

/// Parses `{"type": "offer", "sdp": ..., "playout_delay_max_ms": ...}`; the delay is optional. The content type is not
/// checked, because curl sends that of an HTML form by default.
pub(super) fn parse_offer(body: &[u8]) -> Result<ViewerOffer, ApiError> {
    let offer: OfferBody = serde_json::from_slice(body)
        .map_err(|error| bad_json("expected {\"type\": \"offer\", \"sdp\": ...}", &error))?;
    if offer.kind != "offer" {
        return Err(ApiError::new(400, "bad_type", "\"type\" must be \"offer\""));
    }
    if !offer.sdp.trim_start().starts_with("v=0") {
        let message = "\"sdp\" must be a session description that starts with v=0";
        return Err(ApiError::new(400, "bad_sdp", message));
    }
    if offer.playout_delay_max_ms > limits::PLAYOUT_DELAY_MAX_MS {
        let message = format!("\"playout_delay_max_ms\" must be at most {}", limits::PLAYOUT_DELAY_MAX_MS);
        return Err(ApiError::new(400, "bad_playout_delay", message));
    }
    Ok(ViewerOffer { sdp: offer.sdp, playout_delay_max_ms: offer.playout_delay_max_ms })
}

/// Parses `{"session": KEY, "p50_ms": ..., "p95_ms": ..., "samples": ...}`. Returns the key and the measurement.
pub(super) fn parse_report(body: &[u8]) -> Result<(String, GlassReport), ApiError> {
    let fields: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| bad_json("expected {\"session\", \"p50_ms\", \"p95_ms\", \"samples\"}", &error))?;
    let Some(session) = fields.get("session").and_then(Value::as_str) else {
        return Err(bad_report("\"session\" must be the key of a session".to_owned()));
    };
    let latency = |name: &str| match fields.get(name).and_then(Value::as_f64) {
        Some(ms @ 0.0..=limits::GLASS_MS_MAX) => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err(bad_report(format!("\"{name}\" must be from 0 to {}", limits::GLASS_MS_MAX))),
    };
    let (p50, p95) = (latency("p50_ms")?, latency("p95_ms")?);
    if p95 < p50 {
        return Err(bad_report("\"p95_ms\" must not be less than \"p50_ms\"".to_owned()));
    }
    let samples = fields.get("samples").and_then(Value::as_u64).and_then(|samples| samples.try_into().ok());
    match samples.filter(|samples| *samples > 0) {
        Some(samples) => Ok((session.to_owned(), GlassReport { p50, p95, samples })),
        None => Err(bad_report(format!("\"samples\" must be from 1 to {}", u32::MAX))),
    }
}

fn bad_report(message: String) -> ApiError {
    ApiError::new(400, "bad_report", message)
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
    fn an_offer_may_ask_for_a_playout_delay_within_the_limit() {
        let offer = |delay: &str| parse_offer(format!(r#"{{"type":"offer","sdp":"v=0"{delay}}}"#).as_bytes());
        assert_eq!(offer("").unwrap().playout_delay_max_ms, 0);
        assert_eq!(offer(r#","playout_delay_max_ms":500"#).unwrap().playout_delay_max_ms, 500);
        for (delay, code) in [
            ("501", "bad_playout_delay"),
            ("65536", "bad_json"),
            ("-1", "bad_json"),
            ("1.5", "bad_json"),
            ("null", "bad_json"),
            ("\"9\"", "bad_json"),
        ] {
            let error = offer(&format!(r#","playout_delay_max_ms":{delay}"#)).unwrap_err();
            assert_eq!((error.status, error.code), (400, code), "{delay}");
        }
    }

    #[test]
    fn a_report_has_latencies_within_the_limit() {
        let report = |p50: &str, p95: &str, samples: &str| {
            let body = format!(r#"{{"session":"k","p50_ms":{p50},"p95_ms":{p95},"samples":{samples}}}"#);
            parse_report(body.as_bytes())
        };
        let (session, read) = report("35.5", "60000", "300").unwrap();
        assert_eq!((session.as_str(), read.samples), ("k", 300));
        assert_eq!((read.p50, read.p95), (Duration::from_micros(35_500), Duration::from_secs(60)));
        assert!(report("0", "0", "1").is_ok());
        for (p50, p95, samples, code) in [
            ("-1", "2", "1", "bad_report"),
            ("1", "60000.1", "1", "bad_report"),
            ("2", "1", "1", "bad_report"),
            ("1", "2", "0", "bad_report"),
            ("1e999", "2", "1", "bad_json"),
            ("NaN", "2", "1", "bad_json"),
            ("null", "2", "1", "bad_report"),
            ("1", "2", "4294967296", "bad_report"),
            ("1", "2", "1.5", "bad_report"),
        ] {
            let error = report(p50, p95, samples).unwrap_err();
            assert_eq!((error.status, error.code), (400, code), "{p50} {p95} {samples}");
        }
        assert_eq!(parse_report(b"[\"k\",1,2,3]").unwrap_err().code, "bad_json");
        assert_eq!(parse_report(br#"{"p50_ms":1,"p95_ms":2,"samples":3}"#).unwrap_err().code, "bad_report");
    }

    #[test]
    fn a_malformed_start_body_is_refused_with_400() {
        for body in ["[]", "{", "\"a\"", "{\"filename\":5}", "\0"] {
            let error = parse_start(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.code), (400, "bad_json"), "{body}");
        }
    }
}
