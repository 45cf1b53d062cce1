//! Sends a recording: which part of the file answers a request, and the task that reads the part piece by piece.
//! Keeps a few pieces in memory and blocks no thread that serves other requests.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};

use super::backend::RecordingFile;
use super::login_lifetime::{self, LoginLifetime};
use super::ranges::{Part, part};
use super::request::Head;
use super::response::Response;
use crate::base::limits;

/// The bytes that follow the head of a response.
pub(super) struct FileStream {
    file: Arc<dyn RecordingFile>,
    range: Range<u64>,
    /// True if the body continues with bytes that are recorded during the download.
    follow: bool,
    /// The end of this login ends a followed download.
    login: Option<LoginLifetime>,
}

/// Returns the head of the answer and the bytes that follow it. A download of a known length may finish after its
/// login has ended. A recording that is followed as it grows ends with its login.
pub(super) fn answer(
    head: &Head<'_>,
    file: Arc<dyn RecordingFile>,
    follow: bool,
    login: Option<LoginLifetime>,
) -> (Response, Option<FileStream>) {
    let (bytes, etag) = (file.bytes(), file.etag());
    if head.if_none_match.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag)) && !follow {
        return (Response::empty(304).header("etag", etag), None);
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
    let login = login.filter(|_| follow);
    let stream = (head.method != "HEAD").then_some(FileStream { file, range, follow, login });
    (response, stream)
}

/// Returns the name with characters replaced that a quoted header value must not contain.
fn quotable(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_graphic() && letter != '"' && letter != '\\';
    name.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect()
}

impl FileStream {
    /// Returns the body. A task fills it and ends when the reader has left.
    pub(super) fn into_body(self) -> Channel<Bytes, io::Error> {
        let (sender, body) = Channel::new(limits::DOWNLOAD_PIECES_AHEAD);
        tokio::spawn(self.fill(sender));
        body
    }

    async fn fill(mut self, mut sender: Sender<Bytes, io::Error>) {
        let login = self.login.take();
        let ended = tokio::select! {
            biased;
            () = login_lifetime::ended(login) => Err(io::ErrorKind::PermissionDenied.into()),
            ended = self.send(&mut sender) => ended,
        };
        if let Err(error) = ended {
            // Without the final chunk the reader knows that the file is incomplete.
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

    /// Reads the next piece, on a thread that may wait for the disk.
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
