//! What the HTTP endpoints need from the rest of the program. The module `app` implements [`Backend`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use super::types::{RecordingReply, RecordingStatus, Summary};
use crate::metrics::status::{StartRequest, ViewerStatus};

/// A boxed future, as the object-safe [`Backend`] needs it.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The program behind the HTTP endpoints. A call that takes longer than `limits::BACKEND_TIMEOUT` is dropped and
/// the request is answered with 503.
pub trait Backend: Send + Sync + 'static {
    /// Starts a session for a browser's SDP offer and returns the SDP answer, or an error (400, 422, 503).
    ///
    /// The session ends at the latest when `login_end` completes. Without it, no login limits the session. Call this
    /// on the runtime that polls `login_end`.
    fn offer(&self, sdp: &str, login_end: Option<BoxFuture<()>>) -> BoxFuture<Result<String, ApiError>>;

    /// Returns the state of every session.
    fn viewers(&self) -> BoxFuture<Vec<ViewerStatus>>;

    /// Returns `Ok` if access units arrive, otherwise the reason in words for a person.
    fn ready(&self) -> Result<(), String>;

    /// Returns the short state of the server. Cheap: it is called ten times a second while a page listens.
    fn summary(&self) -> Summary;

    /// Returns all metrics in the Prometheus text format 0.0.4.
    fn metrics(&self) -> String;

    /// Runs a command of the recorder.
    fn recording(&self, command: RecordingCommand) -> BoxFuture<Result<RecordingReply, ApiError>>;

    /// Returns the state of the recorder; 501 if the server has none.
    fn recording_status(&self) -> BoxFuture<Result<RecordingStatus, ApiError>>;

    /// Takes a profile, a trace or another view of this process. Blocks; [`Inspection::Cpu`] blocks while it measures.
    ///
    /// # Errors
    /// 503 while another profile is taken, 500 if the operating system refuses.
    fn inspect(&self, what: Inspection) -> Result<Vec<u8>, ApiError>;

    /// Opens a recording for download.
    fn open_recording(&self, name: String) -> BoxFuture<Result<Arc<dyn RecordingFile>, ApiError>>;
}

/// A command of the recorder.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordingCommand {
    /// Start a recording. The error of a malformed request comes after 501: a server without a recorder reads no request.
    Start(Result<StartRequest, ApiError>),
    /// Stop and finish the file.
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
    /// CPU time of all threads, gzip'd profile.proto.
    Cpu {
        /// Duration of the measurement.
        seconds: u32,
    },
    /// Memory in use per stack, gzip'd profile.proto.
    Heap,
    /// The same samples, with memory allocated since the start as the default view.
    Allocs,
    /// All threads: 0 as profile.proto, 1 as a text list, 2 as text with stacks.
    Threads {
        /// As in Go's `?debug=`.
        debug: u8,
    },
    /// Lock contention; always an empty profile.
    Mutex,
    /// Blocking calls; always an empty profile.
    Block,
    /// The command line, NUL-separated.
    Cmdline,
    /// All access units and batches of the last seconds, Trace Event Format.
    Trace {
        /// Seconds back from now.
        seconds: u32,
    },
}

/// A recording opened for reading.
pub trait RecordingFile: Send + Sync + 'static {
    /// Returns the number of bytes that can be read now.
    fn bytes(&self) -> u64;

    /// Returns the media type.
    fn content_type(&self) -> &'static str;

    /// Returns the strong entity tag, quotes included.
    fn etag(&self) -> String;

    /// Returns the file name, for `Content-Disposition`.
    fn name(&self) -> String;

    /// Reads at `offset` and returns the number of bytes, 0 at the end. Blocks until the disk has answered.
    ///
    /// # Errors
    /// The error of the operating system.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Waits until more than `bytes` can be read or the recording has ended. Returns the bytes that can be read then.
    fn grown_beyond(&self, bytes: u64) -> BoxFuture<u64>;
}

/// An error answer, sent as `{"error": message, "code": code}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct ApiError {
    /// HTTP status code.
    pub status: u16,
    /// Stable word for programs, such as `bad_sdp` or `full`.
    pub code: &'static str,
    /// Sentence for a person.
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

    /// 503: the caller may try again after these seconds.
    #[must_use]
    pub fn busy(message: impl Into<String>, retry_after_s: u32) -> ApiError {
        ApiError { retry_after_s: Some(retry_after_s), ..ApiError::new(503, "busy", message) }
    }
}
