//! Defines what the HTTP endpoints need from the rest of the program: the trait [`Backend`], which the module `app`
//! implements, and the types of its methods.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{Notify, broadcast};

use super::types::{PostedDetections, RecordingReply, RecordingStatus, StreamNames, Summary};
use crate::metrics::status::{GlassReport, StartRequest, ViewerStatus};

/// A boxed future. [`Backend`] must be object-safe, so its methods return boxed futures.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An offer to watch the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewerOffer {
    /// The SDP offer.
    pub sdp: String,
    /// Longest time in milliseconds for which the viewer may hold pictures back, up to
    /// `limits::PLAYOUT_DELAY_MAX_MS`. With 0, browsers show each picture at once.
    pub playout_delay_max_ms: u16,
}

/// Where an offer comes from.
#[derive(Default)]
pub struct OfferOrigin {
    /// The address of this machine on which the offer arrived, if it is known.
    pub local: Option<IpAddr>,
    /// Who holds the viewer's place. `None` if many users share the address, so that there is no share: this machine
    /// and the proxies of --trusted-proxy.
    pub holder: Option<PlaceHolder>,
    /// Completes when the login ends, which ends the session. `None` if the session depends on no login.
    pub login_end: Option<BoxFuture<()>>,
}

/// Who holds a place for a viewer. When few places are free, each holder may have only half of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceHolder {
    /// An address, or a /64 of IPv6.
    Address(IpAddr),
    /// A login, by its id.
    Login([u8; 16]),
}

/// Gives the HTTP endpoints access to the rest of the program. If a returned future takes longer than
/// `limits::BACKEND_TIMEOUT`, the request is answered with 503.
pub trait Backend: Send + Sync + 'static {
    /// Starts a session for an SDP offer and returns the SDP answer, or an error (400, 422, 503). Must be called on a
    /// tokio runtime, because a new task polls the end of the login.
    fn offer(&self, offer: ViewerOffer, origin: OfferOrigin) -> BoxFuture<Result<Offered, ApiError>>;

    /// Does something with the session that has this key. Returns the error 404 if there is none.
    fn session(&self, key: &str, command: SessionCommand) -> BoxFuture<Result<SessionReply, ApiError>>;

    /// Opens the stream for a viewer over HTTP. The future waits until the first bytes are known. It returns the error
    /// 503 if there is no camera, no IDR or no place. Must be called on a tokio runtime.
    fn live(
        &self,
        format: LiveFormat,
        origin: LiveOrigin,
    ) -> BoxFuture<Result<Box<dyn LiveStream>, ApiError>>;

    /// Returns the names of the stream.
    fn stream(&self) -> StreamNames;

    /// Returns the state of every session.
    fn viewers(&self) -> BoxFuture<Vec<ViewerStatus>>;

    /// Returns `Ok` if access units arrive, otherwise the reason as a text for the user.
    fn ready(&self) -> Result<(), String>;

    /// Returns a short summary of the server's state. Must be cheap, because it is called ten times a second while a
    /// page listens to events.
    fn summary(&self) -> Summary;

    /// Returns a receiver of what is found in each picture from now on, as the text of `detections` events. A receiver
    /// that is too slow loses events.
    fn detections(&self) -> broadcast::Receiver<Bytes>;

    /// Takes what a detector found in a picture. Returns the error 400 if a value is out of range, and 429 if there are
    /// too many results.
    ///
    /// # Errors
    /// See above.
    fn post_detections(&self, posted: PostedDetections) -> Result<(), ApiError>;

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

/// Form in which a viewer over HTTP gets the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveFormat {
    /// A fragmented MP4 without an end.
    Mp4,
    /// A byte stream (Rec. ITU-T H.264, Annex B).
    AnnexB,
}

/// A viewer over HTTP.
pub struct LiveOrigin {
    /// Who holds the viewer's place, see [`OfferOrigin::holder`].
    pub holder: Option<PlaceHolder>,
    /// Address at which the connection begins: that of the viewer or of a proxy.
    pub remote: SocketAddr,
    /// Notified by the backend if the connection must be closed although it does not read.
    pub must_close: Arc<Notify>,
}

/// The stream of a viewer over HTTP. The viewer's place is free when this value is dropped.
pub trait LiveStream: Send + 'static {
    /// Returns the next bytes, or `None` at the end of the stream. If there are none now, arranges that the task of
    /// `context` wakes when there are some.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

/// A session that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The SDP answer.
    pub answer: String,
    /// Key of the session, for [`Backend::session`]: letters and digits, which cannot be guessed.
    pub key: String,
    /// Name of the current generation of ICE.
    pub tag: String,
}

/// What to do with a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCommand {
    /// Check that the session exists.
    Find,
    /// End the session.
    Delete,
    /// Note the latency that the viewer has measured.
    Report(GlassReport),
    /// Take candidates of the viewer, or restart ICE.
    Fragment {
        /// The fragment of SDP.
        text: String,
        /// Names of the generations of ICE for which the fragment is valid; `*` is any. `None` if the caller did not
        /// say.
        if_match: Option<Vec<String>>,
    },
}

/// Answer to a [`SessionCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionReply {
    /// The session exists, or its report was noted.
    Found,
    /// The session has ended.
    Deleted,
    /// The candidates were taken.
    Accepted,
    /// ICE was restarted.
    Restarted {
        /// The server's fragment of SDP, with its new credentials.
        fragment: String,
        /// Name of the new generation of ICE.
        tag: String,
    },
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
