//! Defines what the HTTP endpoints need from the rest of the program: the trait [`Backend`], which the module `app`
//! implements, and the types of its methods.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::types::{RecordingReply, RecordingStatus, Summary};
use crate::metrics::status::{StartRequest, ViewerStatus};

/// A boxed future. [`Backend`] must be object-safe, so its methods return boxed futures.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Gives the HTTP endpoints access to the rest of the program. If a returned future takes longer than
/// `limits::BACKEND_TIMEOUT`, the request is answered with 503.
pub trait Backend: Send + Sync + 'static {
    /// Starts a session for a browser's SDP offer and returns the SDP answer, or an error (400, 422, 503).
    ///
    /// The session ends when `login_end` completes, or earlier. If `login_end` is `None`, the session depends on no
    /// login. Must be called on a tokio runtime, because a new task polls `login_end`.
    fn offer(&self, sdp: &str, login_end: Option<BoxFuture<()>>) -> BoxFuture<Result<String, ApiError>>;

    /// Returns the state of every session.
    fn viewers(&self) -> BoxFuture<Vec<ViewerStatus>>;

    /// Returns `Ok` if access units arrive, otherwise the reason as a text for the user.
    fn ready(&self) -> Result<(), String>;

    /// Returns a short summary of the server's state. Must be cheap, because it is called ten times a second while a
    /// page listens to events.
    fn summary(&self) -> Summary;

    /// Returns all metrics in the Prometheus text format 0.0.4.
    fn metrics(&self) -> String;

    /// Runs a command on the recorder and returns its reply.
    fn recording(&self, command: RecordingCommand) -> BoxFuture<Result<RecordingReply, ApiError>>;

    /// Returns the state of the recorder, or the error 501 if the server has no recorder.
    fn recording_status(&self) -> BoxFuture<Result<RecordingStatus, ApiError>>;

    /// Takes a profile, a trace or another view of this process, and returns the bytes of the response body. The call
    /// blocks. With [`Inspection::Cpu`] it blocks until the measurement has ended.
    ///
    /// # Errors
    /// Returns 503 while another profile is being taken, 400 for a value out of range, and 500 if the operating system
    /// refuses.
    fn inspect(&self, what: Inspection) -> Result<Vec<u8>, ApiError>;

    /// Opens a recording for download. With `until`, the bytes of a growing recording before this offset are read as a
    /// finished file.
    fn open_recording(
        &self,
        name: String,
        until: Option<u64>,
    ) -> BoxFuture<Result<Arc<dyn RecordingFile>, ApiError>>;
}

/// A command for the recorder.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordingCommand {
    /// Start a recording with these options. If the request was malformed, this is the error to answer. A server
    /// without a recorder answers 501 instead.
    Start(Result<StartRequest, ApiError>),
    /// Stop the recording and finish its file.
    Stop,
    /// Postpone the stop of a recording that was started with `heartbeat_s`.
    Heartbeat,
    /// List all recordings.
    List,
    /// Delete the recording with this name.
    Delete(String),
}

/// A profile, a trace or another view of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// List of the profiles, as text.
    Index,
    /// CPU time of all threads, as a gzip-compressed profile.proto.
    Cpu {
        /// Duration of the measurement.
        seconds: u32,
    },
    /// Memory in use per stack, as a gzip-compressed profile.proto.
    Heap,
    /// The samples of [`Inspection::Heap`], but with the memory allocated since the start as the default view.
    Allocs,
    /// All threads, in the format that `debug` selects.
    Threads {
        /// Value of the query `?debug=`, as in Go: 0 selects profile.proto, 1 a list as text, 2 a text with stacks.
        debug: u8,
    },
    /// Lock contention. The profile is always empty.
    Mutex,
    /// Blocking calls. The profile is always empty.
    Block,
    /// The command line, with NUL bytes between the arguments.
    Cmdline,
    /// All access units and batches of the last seconds, in the Trace Event Format.
    Trace {
        /// Number of seconds before now at which the trace starts.
        seconds: u32,
    },
}

/// A recording opened for reading.
pub trait RecordingFile: Send + Sync + 'static {
    /// Returns the number of bytes that can be read now.
    fn bytes(&self) -> u64;

    /// Returns the media type.
    fn content_type(&self) -> &'static str;

    /// Returns the strong entity tag, including its quotes.
    fn etag(&self) -> String;

    /// Returns the file name for the header `Content-Disposition`.
    fn name(&self) -> String;

    /// Reads bytes from `offset` on: at least one and at most `bytes_max`, or none at the end of the file. The future
    /// waits for the disk, on a thread of its own.
    fn read(&self, offset: u64, bytes_max: u64) -> BoxFuture<io::Result<Bytes>>;

    /// Returns the offset to which a growing recording can be opened as a finished file now. Returns `None` if the
    /// recording is not growing.
    fn finished_until(&self) -> Option<u64>;

    /// Waits until more than `bytes` can be read or the recording has ended. Returns the number of bytes that can then
    /// be read.
    fn grown_beyond(&self, bytes: u64) -> BoxFuture<u64>;
}

/// An error response. Its body is `{"error": message, "code": code}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct ApiError {
    /// HTTP status code.
    pub status: u16,
    /// Error code for programs, such as `bad_sdp` or `full`. It never changes.
    pub code: &'static str,
    /// Error message for the user.
    pub message: String,
    /// Seconds in the `Retry-After` header; `None` to omit the header.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// Returns an error without a `Retry-After` header.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), retry_after_s: None }
    }

    /// Returns an error 503. Its `Retry-After` header says that the caller may try again after `retry_after_s` seconds.
    #[must_use]
    pub fn busy(message: impl Into<String>, retry_after_s: u32) -> ApiError {
        ApiError { retry_after_s: Some(retry_after_s), ..ApiError::new(503, "busy", message) }
    }
}
