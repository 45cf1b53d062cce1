//! Requests, replies and errors of the recorder.

use super::names::NameError;
pub use crate::metrics::status::{RecorderState, RecordingInfo, RecordingReport, StartReply, StartRequest};

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
    /// A requested number of seconds is out of range.
    #[error("{field} must be a number of seconds between 0 and 2592000")]
    Seconds {
        /// Name of the request field.
        field: &'static str,
    },
    /// Files are never overwritten.
    #[error("a recording named {name} exists")]
    Exists {
        /// File name.
        name: String,
    },
    /// No such recording.
    #[error("no recording is named {name}")]
    NotFound {
        /// File name.
        name: String,
    },
    /// The file is being written.
    #[error("{name} is being recorded")]
    InUse {
        /// File name.
        name: String,
    },
    /// No camera writes to the ring.
    #[error("no camera: nothing to record")]
    CameraAway,
    /// No space is left, or the quota is used up.
    #[error("the disk is full")]
    DiskFull,
    /// The directory of recordings cannot be read or written.
    #[error("the directory of recordings can't be used: {reason}")]
    Directory {
        /// The system's error text.
        reason: String,
    },
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
        use RecorderError as E;
        match self {
            E::Name(_) | E::Seconds { .. } => 400,
            E::NotFound { .. } => 404,
            E::AlreadyRecording | E::NotRecording | E::Stopping | E::Exists { .. } | E::InUse { .. } => 409,
            E::Directory { .. } | E::Removed | E::Io { .. } | E::TooManyFiles => 500,
            E::CameraAway | E::Unresponsive => 503,
            E::DiskFull => 507,
        }
    }

    /// Returns the stable code that programs compare.
    #[must_use]
    pub fn code(&self) -> &'static str {
        use RecorderError as E;
        match self {
            E::AlreadyRecording => "already_recording",
            E::NotRecording => "not_recording",
            E::Stopping => "stopping",
            E::Name(_) => "bad_name",
            E::Seconds { .. } => "bad_seconds",
            E::Exists { .. } => "exists",
            E::NotFound { .. } => "not_found",
            E::InUse { .. } => "in_use",
            E::CameraAway => "camera_away",
            E::DiskFull => "disk_full",
            E::Directory { .. } => "directory",
            E::Removed => "removed",
            E::Io { .. } => "io",
            E::TooManyFiles => "too_many_files",
            E::Unresponsive => "recorder_busy",
        }
    }

    /// Returns the error of a failed file operation; [`RecorderError::DiskFull`] for ENOSPC and EDQUOT.
    #[must_use]
    pub fn io(doing: &'static str, error: &std::io::Error) -> RecorderError {
        let full =
            [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
        if full.contains(&error.raw_os_error()) {
            return RecorderError::DiskFull;
        }
        RecorderError::Io { doing, reason: error.to_string() }
    }
}
