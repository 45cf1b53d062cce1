//! What the HTTP side may ask of the rest of the program. Holds no code that answers: the worker side
//! implements [`Backend`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

/// A boxed future as the object-safe [`Backend`] needs it.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The program behind the HTTP endpoints. Every call answers quickly: a call that takes longer than
/// `limits::BACKEND_TIMEOUT` is given up and answered 503.
pub trait Backend: Send + Sync + 'static {
    /// Takes a browser's SDP offer and answers it, or says why not (400, 422, 503). The session ends at the latest
    /// when `login_end` is over, the login it was asked for with; without one it has no such end. Must be called on
    /// the runtime that is to poll `login_end`.
    fn offer(&self, sdp: &str, login_end: Option<BoxFuture<()>>) -> BoxFuture<Result<String, ApiError>>;

    /// The connected viewers: a JSON array with one object per viewer.
    fn viewers(&self) -> BoxFuture<Value>;

    /// Whether access units flow; the error is the reason, in words for a person.
    fn ready(&self) -> Result<(), String>;

    /// The state in short. Cheap: it is asked ten times a second while a page listens.
    fn summary(&self) -> Summary;

    /// All metrics in the Prometheus text format 0.0.4.
    fn metrics(&self) -> String;

    /// Asks the recorder; the answer is the response's JSON.
    fn recording(&self, command: RecordingCommand) -> BoxFuture<Result<Value, ApiError>>;

    /// Opens a recording for download.
    fn open_recording(&self, name: String) -> BoxFuture<Result<Arc<dyn RecordingFile>, ApiError>>;
}

/// The state of the server in short.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The camera: `{"state": "away" | "live" | "stalled", "layout", "width", "height", "fps"}`.
    pub camera: Value,
    /// Sessions held, connected or not.
    pub viewers: u32,
    /// Whether a recording runs.
    pub is_recording: bool,
}

/// What the recorder can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingCommand {
    /// Start, with the request's JSON; empty is fine.
    Start(Bytes),
    /// Stop and finish the file.
    Stop,
    /// Somebody still watches.
    Heartbeat,
    /// How it goes.
    Status,
    /// All recordings.
    List,
    /// Delete the recording of this name.
    Delete(String),
}

/// A recording opened for reading.
pub trait RecordingFile: Send + Sync + 'static {
    /// Bytes that can be read now.
    fn bytes(&self) -> u64;

    /// Media type.
    fn content_type(&self) -> &'static str;

    /// Strong entity tag, quotes included.
    fn etag(&self) -> String;

    /// File name, for `Content-Disposition`.
    fn name(&self) -> String;

    /// Reads at `offset`, 0 at the end. Blocks as long as the disk takes.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Waits until more than `bytes` can be read, or the recording is over; gives what can be read then.
    fn grown_beyond(&self, bytes: u64) -> BoxFuture<u64>;
}

/// A refusal, sent as `{"error": message, "code": code}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct ApiError {
    /// HTTP status code.
    pub status: u16,
    /// Stable word for programs, such as `bad_sdp` or `full`.
    pub code: &'static str,
    /// Sentence for persons.
    pub message: String,
    /// Seconds for the `Retry-After` header.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// An error without `Retry-After`.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), retry_after_s: None }
    }
}
