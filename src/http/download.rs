//! Sends a recording: decides which part of the file answers the request, and reads the part piece by piece while it is
//! sent. Only two pieces are in memory at a time. The thread that serves other requests is never blocked.

use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::backend::{ApiError, BoxFuture, RecordingFile};
use super::ranges::{Part, part};
use super::request::Head;
use super::response::Response;
use super::shares::{Refusal, Share};
use crate::base::limits;

/// Returns the head of the response, and the body if the response has one. The download counts in `share` until the
/// body is dropped. A download of a known length may finish after its login has ended. With `follow`, the download
/// continues while the recording grows, and stops when its login ends.
pub(super) fn answer(
    head: &Head<'_>,
    file: Arc<dyn RecordingFile>,
    follow: bool,
    login_end: Option<BoxFuture<()>>,
    share: Share,
) -> (Response, Option<DownloadBody>) {
    let (bytes, etag) = (file.bytes(), file.etag());
    if head.if_none_match.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag)) && !follow {
        return (Response::empty(304).header("etag", etag), None);
    }
    if !follow
        && let Some(until) = file.finished_until()
        && head.range.is_some_and(is_from_first_byte)
    {
        return (redirect(head.query, until), None);
    }
    let requested = if follow { Part::Whole } else { part(head.range, head.if_range, &etag, bytes) };
    let (status, range) = match requested {
        Part::Whole => (200, 0..bytes),
        Part::Some(range) => (206, range),
        Part::Nothing => {
            let message = format!("the range lies outside of the file, which has {bytes} bytes");
            let response =
                Response::error(416, "range", &message).header("content-range", format!("bytes */{bytes}"));
            return (response, None);
        }
    };
    let mut response = Response::empty(status)
        .header("content-type", file.content_type())
        .header("etag", etag)
        .header("cache-control", "no-cache")
        .header("content-disposition", content_disposition(&file.name()));
    if status == 206 {
        let last = range.end.saturating_sub(1);
        response = response.header("content-range", format!("bytes {}-{last}/{bytes}", range.start));
    }
    if !follow {
        // With `follow` the end is unknown, so a range cannot be served, and none is offered.
        let length = range.end - range.start;
        response = response.header("accept-ranges", "bytes").header("content-length", length.to_string());
    }
    if head.method == "HEAD" {
        return (response, None);
    }
    let login_end = login_end.filter(|_| follow);
    (response, Some(DownloadBody { file, range, follow, login_end, step: Step::Next, _share: share }))
}

/// Returns true for the range with which players begin: from the first byte on.
fn is_from_first_byte(range: &str) -> bool {
    range.trim().strip_prefix("bytes=").is_some_and(|range| range.trim_start().starts_with("0-"))
}

/// Redirects the first request of a player for a growing recording to the part that exists now. The player then sends
/// its other requests to that address, whose bytes and length stay the same.
fn redirect(query: Option<&str>, until: u64) -> Response {
    let query = query.map_or_else(String::new, |query| format!("{query}&"));
    Response::empty(307)
        .header("location", format!("?{query}until={until}"))
        .header("cache-control", "no-store")
}

/// Returns the error for a download above a limit.
pub(super) fn refusal(refusal: Refusal) -> ApiError {
    let message = match refusal {
        Refusal::All => format!("all {} downloads are in use", limits::DOWNLOADS_MAX),
        Refusal::Address => {
            format!("{} downloads to this address are in progress", limits::DOWNLOADS_OF_ADDRESS_MAX)
        }
    };
    ApiError {
        status: 503,
        code: "too_many_downloads",
        message: format!("{message}: try again when one has ended"),
        retry_after_s: Some(limits::DOWNLOAD_RETRY_AFTER_S),
    }
}

/// Returns the value of `Content-Disposition` for this file name (RFC 6266). A name of plain ASCII is sent as it is.
/// Any other name is sent twice: percent-encoded in UTF-8 as `filename*` (RFC 8187), and for old programs as
/// `filename` with `_` in the place of each other character.
fn content_disposition(name: &str) -> String {
    // Some browsers decode percent-encoding in `filename` too, so `%` counts as an other character.
    let is_plain = |letter: char| matches!(letter, ' '..='~') && !matches!(letter, '"' | '\\' | '%');
    let fallback: String = name.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    let mut value = format!("inline; filename=\"{fallback}\"");
    if fallback != name {
        value.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                value.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(value, "%{byte:02X}");
            }
        }
    }
    value
}

/// The body of a download. A piece is read when the connection can take it.
pub(super) struct DownloadBody {
    file: Arc<dyn RecordingFile>,
    /// The bytes that are still to be read.
    range: Range<u64>,
    /// True if the download continues while the recording grows.
    follow: bool,
    /// Completes when the login of a download with `follow` ends.
    login_end: Option<BoxFuture<()>>,
    step: Step,
    _share: Share,
}

enum Step {
    Next,
    Read(BoxFuture<io::Result<Bytes>>),
    Grow(BoxFuture<u64>),
    Done,
}

impl Body for DownloadBody {
    type Data = Bytes;
    type Error = io::Error;

    /// Returns the next piece. After an error, hyper omits the final chunk of the body. From that the reader knows that
    /// the file is incomplete.
    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.login_end.as_mut().is_some_and(|login_end| login_end.as_mut().poll(context).is_ready()) {
            (this.login_end, this.step) = (None, Step::Done);
            return Poll::Ready(Some(Err(io::ErrorKind::PermissionDenied.into())));
        }
        loop {
            let Range { start, end } = this.range;
            let next = match &mut this.step {
                Step::Next if start < end => Step::Read(this.file.read(start, end - start)),
                Step::Next if this.follow => Step::Grow(this.file.grown_beyond(end)),
                Step::Next | Step::Done => return Poll::Ready(None),
                Step::Read(reading) => {
                    let read = ready!(reading.as_mut().poll(context));
                    let piece = match read {
                        Ok(piece) if piece.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
                        read => read,
                    };
                    this.step = if piece.is_ok() { Step::Next } else { Step::Done };
                    this.range.start += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                    return Poll::Ready(Some(piece.map(Frame::data)));
                }
                Step::Grow(growing) => {
                    let grown = ready!(growing.as_mut().poll(context));
                    this.range.end = grown.max(end);
                    if grown > end { Step::Next } else { Step::Done }
                }
            };
            this.step = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_name_is_sent_in_a_form_that_browsers_decode() {
        for (name, value) in [
            ("a b.mp4", "inline; filename=\"a b.mp4\""),
            ("Küche 1.mp4", "inline; filename=\"K_che 1.mp4\"; filename*=UTF-8''K%C3%BCche%201.mp4"),
            ("猫.mp4", "inline; filename=\"_.mp4\"; filename*=UTF-8''%E7%8C%AB.mp4"),
            ("100%.mp4", "inline; filename=\"100_.mp4\"; filename*=UTF-8''100%25.mp4"),
            ("a\"b\\.mp4", "inline; filename=\"a_b_.mp4\"; filename*=UTF-8''a%22b%5C.mp4"),
            ("a'(b);*.mp4", "inline; filename=\"a'(b);*.mp4\""),
            ("ü'*().mp4", "inline; filename=\"_'*().mp4\"; filename*=UTF-8''%C3%BC%27%2A%28%29.mp4"),
        ] {
            assert_eq!(content_disposition(name), value);
            assert!(value.is_ascii(), "a header has ASCII only");
        }
    }
}
