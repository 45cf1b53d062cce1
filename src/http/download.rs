//! A recording as a response: which part of it, and the task that reads it piece by piece. Holds no more than a
//! few pieces in memory, and blocks no thread that serves others.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};

use super::backend::RecordingFile;
use super::login_lifetime::{self, LoginLifetime};
use super::ranges::{Part, part};
use super::response::Response;
use super::routes::Head;
use crate::base::limits;

/// The bytes that follow a response's head.
pub(super) struct Stream {
    file: Arc<dyn RecordingFile>,
    range: Range<u64>,
    /// Go on with what is recorded meanwhile.
    follow: bool,
    /// The login that what has no end ends with.
    lifetime: Option<LoginLifetime>,
}

/// What answers a request for `file`: the head, and what to stream after it. What is there may be read to its end
/// whatever becomes of the login; who follows a recording as it grows is cut off.
pub(super) fn answer(
    head: &Head<'_>,
    file: Arc<dyn RecordingFile>,
    follow: bool,
    lifetime: Option<LoginLifetime>,
) -> (Response, Option<Stream>) {
    let (bytes, etag) = (file.bytes(), file.etag());
    if head.if_none_match.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag)) && !follow {
        return (Response::empty(304).header("etag", etag), None);
    }
    let asked = if follow { Part::Whole } else { part(head.range, head.if_range, &etag, bytes) };
    let (status, range) = match asked {
        Part::Whole => (200, 0..bytes),
        Part::Some(range) => (206, range),
        Part::Nothing => {
            let response = Response::error(416, "range", "nothing of that range is in the file")
                .header("content-range", format!("bytes */{bytes}"));
            return (response, None);
        }
    };
    let mut response = Response::empty(status)
        .header("content-type", file.content_type())
        .header("etag", etag)
        .header("accept-ranges", "bytes")
        .header("cache-control", "no-cache")
        .header("content-disposition", format!("inline; filename=\"{}\"", quotable(&file.name())));
    if status == 206 {
        let last = range.end.saturating_sub(1);
        response = response.header("content-range", format!("bytes {}-{last}/{bytes}", range.start));
    }
    if !follow {
        response = response.header("content-length", (range.end - range.start).to_string());
    }
    let stream = (head.method != "HEAD").then_some(Stream {
        file,
        range,
        follow,
        lifetime: lifetime.filter(|_| follow),
    });
    (response, stream)
}

/// A name as it may stand between quotes in a header.
fn quotable(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_graphic() && letter != '"' && letter != '\\';
    name.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect()
}

impl Stream {
    /// The body, filled by a task of its own; that task ends when the reader is gone.
    pub(super) fn into_body(self) -> Channel<Bytes, io::Error> {
        let (sender, body) = Channel::new(limits::DOWNLOAD_PIECES_AHEAD);
        tokio::spawn(self.fill(sender));
        body
    }

    async fn fill(mut self, mut sender: Sender<Bytes, io::Error>) {
        let lifetime = self.lifetime.take();
        let ended = tokio::select! {
            biased;
            () = login_lifetime::over(lifetime) => Err(io::ErrorKind::PermissionDenied.into()),
            ended = self.send(&mut sender) => ended,
        };
        if let Err(error) = ended {
            // The reader sees that this is not the whole of it.
            sender.abort(error);
        }
    }

    async fn send(&mut self, sender: &mut Sender<Bytes, io::Error>) -> io::Result<()> {
        loop {
            while self.range.start < self.range.end {
                let piece = self.piece().await?;
                if piece.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.range.start += piece.len() as u64;
                if sender.send_data(piece).await.is_err() {
                    return Ok(());
                }
            }
            let end = self.range.end;
            if !self.follow {
                return Ok(());
            }
            self.range.end = self.file.grown_beyond(end).await;
            if self.range.end <= end {
                return Ok(());
            }
        }
    }

    /// The next piece, read on a thread that may wait for the disk.
    async fn piece(&self) -> io::Result<Bytes> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let (file, offset, bytes) =
            (Arc::clone(&self.file), self.range.start, left.min(limits::DOWNLOAD_PIECE_BYTES));
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; bytes];
            let filled = file.read_at(&mut piece, offset)?;
            piece.truncate(filled);
            Ok(Bytes::from(piece))
        });
        read.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
