//! Requests, replies and errors of the recorder.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{Index, Track};
use super::names::{Format, NameError};
pub use super::pre_roll::PreRollRules;
use super::retention::Retention;
use crate::camera::detections::{DetectedBox, Results};
pub use crate::metrics::status::{
    RecordedEvent, RecorderState, RecordingFilter, RecordingInfo, RecordingKind, RecordingReport, StartReply,
    StartRequest,
};

/// Options of the recorder.
#[derive(Clone, Debug)]
pub struct RecorderConfig {
    /// Directory of the recordings. The first recording creates it with mode 0755.
    pub directory: PathBuf,
    /// Format of a recording whose name has no extension.
    pub format: Format,
    /// Rules for deleting old recordings.
    pub retention: Retention,
    /// What is kept in memory for recordings that begin earlier than the ring reaches. `None` to keep nothing.
    pub pre_roll: Option<PreRollRules>,
    /// Results of the object detector. `None` if there is no detector.
    pub results: Option<Results>,
}

/// An event: a time in which the object detector saw something that is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Class that began the event.
    pub label: String,
    /// All recorded classes that were seen, each once.
    pub labels: Vec<String>,
    /// Capture time of the first picture that shows one of them, in nanoseconds of CLOCK_REALTIME. `None` if it is
    /// unknown.
    pub first_stamp_ns: Option<i64>,
    /// Capture time of the last such picture.
    pub last_stamp_ns: Option<i64>,
    /// The sight with the highest confidence.
    pub best: DetectedBox,
    /// Capture time of the picture with that sight.
    pub best_stamp_ns: Option<i64>,
}

/// Reply to a stop request.
#[derive(Clone, Debug, PartialEq)]
pub struct StopReply {
    /// Final figures of the stopped recording.
    pub report: RecordingReport,
    /// Why the recording stopped.
    pub reason: StopReason,
    /// False if no access unit was recorded. The empty file was then removed.
    pub kept: bool,
}

impl StopReply {
    /// Returns why the recording kept no file, as a text for the user.
    #[must_use]
    pub fn not_kept_text(&self) -> String {
        match self.report.last_idr_age {
            Some(age_s) => format!(
                "nothing was recorded, because the camera sent no IDR while the recording ran; the last one was \
                 {age_s:.0} s before the stop"
            ),
            None => "nothing was recorded, because the camera has not sent an IDR yet".to_owned(),
        }
    }
}

/// Why a recording stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop request ended the recording.
    Requested,
    /// The `max_duration_s` of the start request passed.
    MaxDuration,
    /// No heartbeat arrived for the `heartbeat_s` of the start request.
    Heartbeat,
    /// What the detector saw is gone.
    EventEnd,
    /// The server shut down.
    Shutdown,
    /// An error ended the recording. [`StopReason::as_str`] returns the code of the error.
    Failed(RecorderError),
}

impl StopReason {
    /// Returns the reason as the HTTP API and the log show it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            StopReason::Requested => "asked",
            StopReason::MaxDuration => "max_duration",
            StopReason::Heartbeat => "heartbeat",
            StopReason::EventEnd => "event_end",
            StopReason::Shutdown => "shutdown",
            StopReason::Failed(error) => error.code(),
        }
    }
}

/// State of the recorder and figures of its recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// True if `state` is [`RecorderState::Recording`].
    pub recording: bool,
    /// What the recorder is doing.
    pub state: RecorderState,
    /// Figures of the running recording. If none runs, the figures of the last recording.
    pub report: Option<RecordingReport>,
    /// Why the last recording stopped. `None` unless `state` is [`RecorderState::Idle`].
    pub reason: Option<StopReason>,
    /// The error that ended the last recording or prevented its start.
    pub error: Option<RecorderError>,
    /// Seconds of video in memory for the next recording. `None` if none is kept.
    pub pre_roll_held_s: Option<f64>,
}

/// Progress of a file that is being written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Bytes of whole units in the file. Downloads must not read beyond them.
    pub committed_bytes: u64,
    /// Duration of the file so far, in seconds.
    pub duration_s: f64,
    /// Capture time of the first unit, in seconds since 1970.
    pub started_at_s: u64,
    /// True once the file is finished. Finishing an MP4 changes the first bytes and the length of the file.
    pub finished: bool,
    /// The units of an MP4 so far.
    pub units: Option<UnitsSoFar>,
}

/// What a reader needs to know of a growing MP4 to read its units as a finished file. A clone is cheap.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitsSoFar {
    pub(super) track: Arc<Track>,
    pub(super) index: Index,
    /// File offset of the first fragment.
    pub(super) fragments_offset: u64,
}

/// Why the recorder refused a request or ended a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecorderError {
    /// A start was requested, but a recording already runs. Only one can run at a time.
    #[error("already recording")]
    AlreadyRecording,
    /// A stop or a heartbeat was requested, but no recording runs.
    #[error("not recording")]
    NotRecording,
    /// The recording is already being stopped.
    #[error("the recording is being stopped")]
    Stopping,
    /// The requested file name is not allowed.
    #[error("bad file name: {0}")]
    Name(#[from] NameError),
    /// A request for a part of a growing file names an offset at which no access unit ends.
    #[error("`until` is not the end of a picture: request the recording without it")]
    Until,
    /// A requested number of seconds is out of range. Holds the name of the request field.
    #[error("{0} must be a number of seconds between 0 and 2592000")]
    Seconds(&'static str),
    /// A file with the requested name exists, and files are never overwritten. Holds the file name.
    #[error("a recording named {0} exists")]
    Exists(String),
    /// No recording has the requested name. Holds the file name.
    #[error("no recording is named {0}")]
    NotFound(String),
    /// The file cannot be deleted, because it is being written. Holds the file name.
    #[error("{0} is being recorded")]
    InUse(String),
    /// No camera writes to the ring.
    #[error("no camera: nothing to record")]
    CameraAway,
    /// The disk has no space left, or the disk quota is used up.
    #[error("the disk is full")]
    DiskFull,
    /// The directory of recordings cannot be read or written. Holds the system's error text.
    #[error("the directory of recordings can't be used: {0}")]
    Directory(String),
    /// The file was deleted, renamed or replaced while the recorder wrote it.
    #[error("another program deleted, renamed or replaced the file while it was recorded")]
    Removed,
    /// The file lacks bytes that the recorder has written.
    #[error("another program truncated the file while it was recorded; the part before is kept")]
    Truncated,
    /// Another operation on a file failed.
    #[error("{doing} failed: {reason}")]
    Io {
        /// The operation, such as `writing`.
        doing: &'static str,
        /// The system's error text.
        reason: String,
    },
    /// The recording needs another file, but has the maximum number of files or finds no free name.
    #[error("the recording has too many files")]
    TooManyFiles,
    /// The recorder did not reply in time because the disk hangs, its command queue is full, or it is shutting down.
    #[error("the recorder does not answer")]
    Unresponsive,
}

impl RecorderError {
    /// Returns the HTTP status code for this error.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status_and_code().0
    }

    /// Returns the code of this error. It never changes, so that programs can compare it.
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
            E::Until => (400, "bad_until"),
            E::Seconds(_) => (400, "bad_seconds"),
            E::Exists(_) => (409, "exists"),
            E::NotFound(_) => (404, "not_found"),
            E::InUse(_) => (409, "in_use"),
            E::CameraAway => (503, "camera_away"),
            E::DiskFull => (507, "disk_full"),
            E::Directory(_) => (500, "directory"),
            E::Removed => (500, "removed"),
            E::Truncated => (500, "truncated"),
            E::Io { .. } => (500, "io"),
            E::TooManyFiles => (500, "too_many_files"),
            E::Unresponsive => (503, "recorder_busy"),
        }
    }

    /// Converts the error of a file operation: ENOSPC and EDQUOT to [`RecorderError::DiskFull`], all others to
    /// [`RecorderError::Io`].
    #[must_use]
    pub fn io(doing: &'static str, error: &io::Error) -> RecorderError {
        if is_full(error) {
            return RecorderError::DiskFull;
        }
        RecorderError::Io { doing, reason: error.to_string() }
    }
}

/// Returns true if the disk has no space left (ENOSPC) or the disk quota is used up (EDQUOT).
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
