//! Converts requests and responses between the types of hyper and those of this module. Does no I/O.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::http::uri::Authority;
use hyper::{StatusCode, Version};

use super::download::DownloadBody;
use super::live::LiveBody;
use super::request::Head;
use super::response::{BodyStream, Response};

/// A body that is produced while it is sent: events, a recording, or the live stream.
pub(super) type StreamedBody = Either<BodyStream, Either<DownloadBody, LiveBody>>;

/// The body of a response: complete, or produced while it is sent.
pub(super) type AnswerBody = Either<Full<Bytes>, StreamedBody>;

/// Returns the parts of the head that [`super::routes`] reads, or a 400 response if a header is invalid. HTTP/1.1
/// requires exactly one Host header (RFC 9112 section 3.2). Two Origin headers are invalid, because a browser never
/// sends two.
pub(super) fn head_of(parts: &request::Parts) -> Result<Head<'_>, Response> {
    let host = single(&parts.headers, &header::HOST)?;
    if host.is_none() && parts.version == Version::HTTP_11 {
        return Err(bad_header(&header::HOST));
    }
    Ok(Head {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query(),
        host: parts.uri.authority().map(Authority::as_str).or(host),
        origin: single(&parts.headers, &header::ORIGIN)?,
        authorization: single(&parts.headers, &header::AUTHORIZATION)?,
        cookie: text(&parts.headers, &header::COOKIE),
        if_none_match: text(&parts.headers, &header::IF_NONE_MATCH),
        if_match: single(&parts.headers, &header::IF_MATCH)?,
        content_type: single(&parts.headers, &header::CONTENT_TYPE)?,
        range: text(&parts.headers, &header::RANGE),
        if_range: text(&parts.headers, &header::IF_RANGE),
        accept: text(&parts.headers, &header::ACCEPT),
        accept_encoding: text(&parts.headers, &header::ACCEPT_ENCODING),
        referer: text(&parts.headers, &header::REFERER),
        requested_method: single(&parts.headers, &header::ACCESS_CONTROL_REQUEST_METHOD)?,
    })
}

/// Returns a header as text, or `None` if it is missing or not text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Returns a header as text, or `None` if it is missing. A header that was sent twice or is not text is refused with
/// 400.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Response> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(HeaderValue::to_str).transpose().map_err(|_| bad_header(name))?;
    if values.next().is_some() { Err(bad_header(name)) } else { Ok(first) }
}

fn bad_header(name: &HeaderName) -> Response {
    let message = format!("the header {name} is missing, was sent twice or is not text");
    Response::error(400, "bad_header", &message).closing()
}

/// Returns the response in hyper's type. A malformed header is omitted.
pub(super) fn into_hyper(response: Response, stream: Option<StreamedBody>) -> hyper::Response<AnswerBody> {
    let body = stream.map_or_else(|| Either::Left(Full::new(response.body)), Either::Right);
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = response.content_type.map(|kind| ("content-type", kind.to_owned()));
    for (name, value) in content_type.into_iter().chain(response.headers) {
        match HeaderValue::try_from(value) {
            Ok(value) => {
                answer.headers_mut().append(HeaderName::from_static(name), value);
            }
            Err(error) => log::error!("http: response header {name} is malformed and was omitted: {error}"),
        }
    }
    answer
}
