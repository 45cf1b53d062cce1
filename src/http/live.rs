//! HTTP live: GET /NAME/live.mp4 and /NAME/live.h264 send the stream without an end. Decides about its paths, builds
//! its responses, and sends what the backend provides. `/live.mp4` is the only stream under its short name.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::watch;

use super::backend::{ApiError, Backend, BoxFuture, LiveFormat, LiveOrigin, LiveStream};
use super::login_lifetime;
use super::request::Head;
use super::response::Response;
use crate::base::limits;

/// Paths in the table of routes: `STREAM` is the name of the stream.
pub(super) const MP4: &str = "/STREAM/live.mp4";
pub(super) const H264: &str = "/STREAM/live.h264";

/// A path of HTTP live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Name of the stream; `None` in the short form, which means the only stream.
    stream: Option<&'a str>,
    format: LiveFormat,
}

impl<'a> Target<'a> {
    /// Parses a path. Returns `None` if it is not a path of HTTP live.
    pub(super) fn of(path: &'a str) -> Option<Target<'a>> {
        let path = path.strip_prefix('/')?;
        let (stream, file) = match path.split_once('/') {
            Some((stream, file)) => (Some(stream), file),
            None => (None, path),
        };
        let format = match file {
            "live.mp4" => LiveFormat::Mp4,
            "live.h264" => LiveFormat::AnnexB,
            _ => return None,
        };
        Some(Target { stream, format })
    }

    /// Returns the path as it is written in the table of routes.
    pub(super) fn template(self) -> &'static str {
        match self.format {
            LiveFormat::Mp4 => MP4,
            LiveFormat::AnnexB => H264,
        }
    }

    /// Returns true if the stream of this path is the stream `served`.
    pub(super) fn is_served(self, served: &str) -> bool {
        self.stream.is_none_or(|stream| stream == served)
    }
}

/// Opens the stream and returns the response. The body ends when `end` completes.
///
/// # Errors
/// Returns the error of the backend. For HEAD, which opens no stream, returns 503 if no access units arrive.
pub(super) async fn answer(
    backend: &dyn Backend,
    head: &Head<'_>,
    format: LiveFormat,
    origin: LiveOrigin,
    end: BoxFuture<()>,
) -> Result<(Response, Option<LiveBody>), ApiError> {
    let body = if head.method == "HEAD" {
        let busy =
            |reason| ApiError { code: "no_picture", ..ApiError::busy(reason, limits::LIVE_RETRY_AFTER_S) };
        backend.ready().map_err(busy)?;
        None
    } else {
        Some(LiveBody { stream: Some(backend.live(format, origin).await?), end })
    };
    let content_type = match format {
        LiveFormat::Mp4 => "video/mp4",
        LiveFormat::AnnexB => "video/h264",
    };
    let response = Response::empty(200)
        .header("content-type", content_type)
        .header("cache-control", "no-store")
        .header("accept-ranges", "none")
        // Without this header, nginx collects bytes before it passes them on.
        .header("x-accel-buffering", "no");
    Ok((response, body))
}

/// Returns a future that completes when the login ends or the server stops.
pub(super) fn end(login_end: Option<BoxFuture<()>>, mut stop: watch::Receiver<bool>) -> BoxFuture<()> {
    Box::pin(async move {
        tokio::select! {
            () = login_lifetime::ended(login_end) => {}
            _ = stop.wait_for(|&stopped| stopped) => {}
        }
    })
}

/// The body of a response. Its next bytes are taken when the connection has room for them.
pub(super) struct LiveBody {
    /// `None` after the end.
    stream: Option<Box<dyn LiveStream>>,
    end: BoxFuture<()>,
}

impl Body for LiveBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        let next =
            if this.end.as_mut().poll(context).is_ready() { None } else { ready!(stream.poll_next(context)) };
        if next.is_none() {
            this.stream = None;
        }
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_formats_are_parsed() {
        let target = |stream, format| Some(Target { stream, format });
        assert_eq!(Target::of("/live.mp4"), target(None, LiveFormat::Mp4));
        assert_eq!(Target::of("/camera/live.h264"), target(Some("camera"), LiveFormat::AnnexB));
        for path in [
            "",
            "/",
            "live.mp4",
            "/live",
            "/camera/live.mp4/",
            "/a/b/live.mp4",
            "/live.mp4/x",
            "/camera/live.MP4",
        ] {
            assert_eq!(Target::of(path), None, "{path}");
        }
        assert!(Target::of("/camera/live.mp4").unwrap().is_served("camera"));
        assert!(Target::of("/live.mp4").unwrap().is_served("camera"));
        assert!(!Target::of("//live.mp4").unwrap().is_served("camera"));
        assert!(!Target::of("/garden/live.mp4").unwrap().is_served("camera"));
    }
}
