//! Requests, replies and errors of the recorder. `app` converts them to the types of the HTTP interface.

use std::io;
use std::path::PathBuf;

use super::names::{Format, NameError};
use super::retention::Retention;

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

/// A request to start a recording. Every field is optional.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartRequest {
    /// File name, with or without extension. Empty or missing: a name made from the local time.
    pub filename: Option<String>,
    /// Seconds before the request at which the recording shall begin. Limited by what the ring still holds;
    /// [`Report::pre_roll`] says how much it was.
    pub pre_roll_s: Option<f64>,
    /// Seconds after which the recording stops by itself.
    pub max_duration_s: Option<f64>,
    /// Seconds without a heartbeat after which the recording stops by itself.
    pub heartbeat_s: Option<f64>,
}

/// Reply to a start.
#[derive(Clone, Debug, PartialEq)]
pub struct StartReply {
    /// Path of the file.
    pub filename: String,
    /// File name in the list of recordings.
    pub name: String,
    /// True if the ring holds no IDR: the recording then begins at the camera's next one.
    pub waits_for_idr: bool,
}

/// Figures of one recording, running or finished.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Path of the newest file.
    pub filename: String,
    /// Name of the newest file in the list of recordings.
    pub name: String,
    /// Access units written.
    pub frame_count: u64,
    /// Bytes of all files of this recording.
    pub bytes_written: u64,
    /// Seconds recorded.
    pub duration: f64,
    /// Seconds recorded from before the request, back to an IDR that the ring still held.
    pub pre_roll: f64,
    /// Seconds missing after the request because the ring held no IDR.
    pub start_delay: f64,
    /// Access units that the camera published and the file lacks.
    pub dropped_units: u64,
    /// Dropped units that the camera overwrote while the disk read them.
    pub torn_units: u64,
    /// Number of gaps: stretches of consecutive dropped units.
    pub gaps: u64,
    /// Names of all files, in order.
    pub files: Vec<String>,
}

/// Reply to a stop.
#[derive(Clone, Debug, PartialEq)]
pub struct StopReply {
    /// Final figures of the recording.
    pub report: Report,
    /// Why the recording stopped.
    pub reason: StopReason,
    /// False if no access unit was recorded and the empty file was removed.
    pub kept: bool,
}

/// What the recorder is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RecorderState {
    /// No recording exists.
    Idle,
    /// The first file is being created.
    Starting,
    /// Access units are written as they are published.
    Recording,
    /// Units published before the stop are written, then the files are finished.
    Stopping,
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
    pub report: Option<Report>,
    /// Why the last recording stopped; only while idle.
    pub reason: Option<StopReason>,
    /// The error that ended the last recording or prevented its start.
    pub error: Option<RecorderError>,
}

/// One file in the list of recordings.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordingInfo {
    /// File name.
    pub name: String,
    /// Bytes that can be downloaded.
    pub bytes: u64,
    /// Seconds. None if only decoding the whole file would give it.
    pub duration: Option<f64>,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// True if the file has its index. False while recording.
    pub complete: bool,
    /// True if the file was repaired after a crash.
    pub recovered: bool,
    /// True while the file is being written.
    pub recording: bool,
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
