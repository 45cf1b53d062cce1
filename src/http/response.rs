//! Holds an HTTP response as plain data, before an adapter turns it into bytes. Does no I/O.

use std::io;

use bytes::Bytes;
use http_body_util::channel::Channel;
use serde::Serialize;
use serde_json::json;

use super::backend::ApiError;

/// A body that a task produces while the body is being sent.
pub(super) type BodyStream = Channel<Bytes, io::Error>;

/// A response: status, headers, body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Value of the header `Content-Type`; `None` for an empty body.
    pub content_type: Option<&'static str>,
    /// The other headers, with names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body. An adapter omits it for HEAD.
    pub body: Bytes,
    /// A line for the log, if the operator can change this response with an option.
    pub log_line: Option<String>,
}

impl Response {
    /// Returns a response without a body.
    #[must_use]
    pub fn empty(status: u16) -> Response {
        Response { status, content_type: None, headers: Vec::new(), body: Bytes::new(), log_line: None }
    }

    /// Returns a response with a body of the given type.
    #[must_use]
    pub fn with_body(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
        Response { content_type: Some(content_type), body: body.into(), ..Response::empty(status) }
    }

    /// Returns a JSON response that must not be cached.
    #[must_use]
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        Response::with_body(status, "application/json", json_text(value)).header("cache-control", "no-store")
    }

    /// Returns a response whose body is `{"error": message, "code": code}`.
    #[must_use]
    pub fn error(status: u16, code: &'static str, message: &str) -> Response {
        Response::json(status, &json!({ "error": message, "code": code }))
    }

    /// Returns the same response with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// Returns the same response with a line for the log.
    #[must_use]
    pub fn logged(self, line: impl Into<String>) -> Response {
        Response { log_line: Some(line.into()), ..self }
    }

    /// Returns the same response with `connection: close`, after which the adapter closes the connection.
    #[must_use]
    pub fn closing(self) -> Response {
        self.header("connection", "close")
    }
}

/// Returns the value as JSON in one line, with sorted keys.
pub(super) fn json_text(value: &impl Serialize) -> String {
    // Serialising fails only for a map whose keys are not strings. Our types have no such map.
    serde_json::to_value(value).unwrap_or_default().to_string()
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Response {
        let response = Response::error(error.status, error.code, &error.message);
        match error.retry_after_s {
            Some(seconds) => response.header("retry-after", seconds.to_string()),
            None => response,
        }
    }
}
