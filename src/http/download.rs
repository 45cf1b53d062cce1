//! Sends a recording: decides which part of the file answers the request, and starts a task that reads the part piece
//! by piece. Only a few pieces are in memory at a time. The thread that serves other requests is never blocked.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};

use super::backend::{BoxFuture, RecordingFile};
use super::login_lifetime;
use super::ranges::{Part, part};
use super::request::Head;
use super::response::{BodyStream, Response};
use crate::base::limits;

/// Returns the head of the response, and the body if the response has one. A new task fills the body until it is
/// complete or the reader has left. A download of a known length may finish after its login has ended. With `follow`,
/// the download continues while the recording grows, and stops when its login ends.
pub(super) fn answer(
    head: &Head<'_>,
    file: Arc<dyn RecordingFile>,
    follow: bool,
    login_end: Option<BoxFuture<()>>,
) -> (Response, Option<BodyStream>) {
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
    if head.method == "HEAD" {
        return (response, None);
    }
    let (mut sender, body) = Channel::new(limits::DOWNLOAD_PIECES_AHEAD);
    tokio::spawn(async move {
        let sent = tokio::select! {
            biased;
            () = login_lifetime::ended(login_end.filter(|_| follow)) => Err(io::ErrorKind::PermissionDenied.into()),
            sent = send(&file, range, follow, &mut sender) => sent,
        };
        if let Err(error) = sent {
            // The abort omits the final chunk of the body. From that the reader knows that the file is incomplete.
            sender.abort(error);
        }
    });
    (response, Some(body))
}

/// Returns the name for a quoted header value: each character that such a value must not contain is replaced by `_`.
fn quotable(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_graphic() && letter != '"' && letter != '\\';
    name.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect()
}

/// Sends the bytes of `range`. With `follow`, then sends new bytes as they are recorded, until the recording ends.
/// Returns early if the reader has left.
async fn send(
    file: &Arc<dyn RecordingFile>,
    mut range: Range<u64>,
    follow: bool,
    sender: &mut Sender<Bytes, io::Error>,
) -> io::Result<()> {
    loop {
        while range.start < range.end {
            let piece = read_piece(Arc::clone(file), range.clone()).await?;
            if piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            range.start += piece.len() as u64;
            if sender.send_data(piece).await.is_err() {
                return Ok(());
            }
        }
        if !follow {
            return Ok(());
        }
        range.end = file.grown_beyond(range.end).await;
        if range.end <= range.start {
            return Ok(());
        }
    }
}

/// Reads the first piece of `range`. A separate thread does this, because the read may wait for the disk.
async fn read_piece(file: Arc<dyn RecordingFile>, range: Range<u64>) -> io::Result<Bytes> {
    let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; left.min(limits::DOWNLOAD_PIECE_BYTES)];
        let filled = file.read_at(&mut piece, range.start)?;
        piece.truncate(filled);
        Ok(Bytes::from(piece))
    });
    read.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
