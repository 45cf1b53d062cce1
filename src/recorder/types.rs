//! Requests, replies and errors of the recorder.

use std::io;
use std::path::PathBuf;

use super::names::{Format, NameError};
use super::retention::Retention;
pub use crate::metrics::status::{RecorderState, RecordingInfo, RecordingReport, StartReply, StartRequest};

/// Options of the recorder.
#[derive(Clone, Debug)]
pub struct RecorderConfig {
    /// Directory of the files. Created (0755) when the first recording starts.
    pub directory: PathBuf,
    /// Format of a recording whose name has no extension.
    pub format: Format,
    /// Rules for deleting old recordings.
    pub retention: Retention,
}

/// Reply to a stop.
#[derive(Clone, Debug, PartialEq)]
pub struct StopReply {
    /// Final figures of the recording.
    pub report: RecordingReport,
    /// Why the recording stopped.
    pub reason: StopReason,
    /// False if no access unit was recorded and the empty file was removed.
    pub kept: bool,
}

/// Why a recording stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop request.
    Requested,
    /// `max_duration_s` passed.
    MaxDuration,
    /// No heartbeat came for `heartbeat_s`.
    Heartbeat,
    /// The program ends.
    Shutdown,
    /// An error ended it. [`StopReason::as_str`] gives its code.
    Failed(RecorderError),
}

impl StopReason {
    /// Returns the reason as the HTTP interface and log lines show it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            StopReason::Requested => "asked",
            StopReason::MaxDuration => "max_duration",
            StopReason::Heartbeat => "heartbeat",
            StopReason::Shutdown => "shutdown",
            StopReason::Failed(error) => error.code(),
        }
    }
}

/// State of the recorder and figures of its recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// True in [`RecorderState::Recording`] only.
    pub recording: bool,
    /// What the recorder is doing.
    pub state: RecorderState,
    /// Figures of the running recording, else of the last one.
    pub report: Option<RecordingReport>,
    /// Why the last recording stopped; only while idle.
    pub reason: Option<StopReason>,
    /// The error that ended the last recording or prevented its start.
    pub error: Option<RecorderError>,
}

/// Progress of a file that is being written.
#[derive(Copy, Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Bytes of whole units in the file. Only these may be served.
    pub committed_bytes: u64,
    /// Seconds recorded so far.
    pub duration_s: f64,
    /// Capture time of the first unit, seconds since 1970.
    pub started_at_s: u64,
    /// True once the file is finished. Finishing changes its first bytes and its length.
    pub finished: bool,
}

/// Why the recorder refused a request or ended a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecorderError {
    /// Only one recording runs at a time.
    #[error("already recording")]
    AlreadyRecording,
    /// There is no recording to stop.
    #[error("not recording")]
    NotRecording,
    /// A stop is in progress.
    #[error("the recording is being stopped")]
    Stopping,
    /// The requested file name is not allowed.
    #[error("bad file name: {0}")]
    Name(#[from] NameError),
    /// A requested number of seconds is out of range. Holds the name of the request field.
    #[error("{0} must be a number of seconds between 0 and 2592000")]
    Seconds(&'static str),
    /// Files are never overwritten. Holds the file name.
    #[error("a recording named {0} exists")]
    Exists(String),
    /// No recording has this file name.
    #[error("no recording is named {0}")]
    NotFound(String),
    /// The file of this name is being written.
    #[error("{0} is being recorded")]
    InUse(String),
    /// No camera writes to the ring.
    #[error("no camera: nothing to record")]
    CameraAway,
    /// No space is left, or the quota is used up.
    #[error("the disk is full")]
    DiskFull,
    /// The directory of recordings cannot be read or written. Holds the system's error text.
    #[error("the directory of recordings can't be used: {0}")]
    Directory(String),
    /// The file was deleted while it was recorded.
    #[error("the file was deleted while it was recorded")]
    Removed,
    /// Any other failed operation on a file.
    #[error("{doing} failed: {reason}")]
    Io {
        /// The operation, such as `writing`.
        doing: &'static str,
        /// The system's error text.
        reason: String,
    },
    /// The recording reached its maximum number of files.
    #[error("the recording has too many files")]
    TooManyFiles,
    /// No reply in time: the disk hangs, or the command queue is full.
    #[error("the recorder does not answer")]
    Unresponsive,
}

impl RecorderError {
    /// Returns the HTTP status of this error.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status_and_code().0
    }

    /// Returns the stable code that programs compare.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.status_and_code().1
    }

    fn status_and_code(&self) -> (u16, &'static str) {
        use RecorderError as E;
        match self {
            E::AlreadyRecording => (409, "already_recording"),
            E::NotRecording => (409, "not_recording"),
            E::Stopping => (409, "stopping"),
            E::Name(_) => (400, "bad_name"),
            E::Seconds(_) => (400, "bad_seconds"),
            E::Exists(_) => (409, "exists"),
            E::NotFound(_) => (404, "not_found"),
            E::InUse(_) => (409, "in_use"),
            E::CameraAway => (503, "camera_away"),
            E::DiskFull => (507, "disk_full"),
            E::Directory(_) => (500, "directory"),
            E::Removed => (500, "removed"),
            E::Io { .. } => (500, "io"),
            E::TooManyFiles => (500, "too_many_files"),
            E::Unresponsive => (503, "recorder_busy"),
        }
    }

    /// Returns the error of a failed file operation; [`RecorderError::DiskFull`] for ENOSPC and EDQUOT.
    #[must_use]
    pub fn io(doing: &'static str, error: &io::Error) -> RecorderError {
        if is_full(error) {
            return RecorderError::DiskFull;
        }
        RecorderError::Io { doing, reason: error.to_string() }
    }
}

/// Returns true if no space is left (ENOSPC), or the quota is used up (EDQUOT).
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
