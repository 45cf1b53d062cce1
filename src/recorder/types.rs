//! What the recorder is asked and answers: the JSON of `/api/recording/*` and `/api/recordings`.
//! Field names of the Go design where it has them. Decides nothing.

use serde::{Deserialize, Serialize};

use super::names::NameError;

/// Body of `POST /api/recording/start`; everything may be missing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartRequest {
    /// Name of the file, with or without extension; empty or missing: the local time.
    pub filename: Option<String>,
    /// Seconds before the request to begin with, as far as the ring still holds them; [`Report::pre_roll`]
    /// says what it was.
    pub pre_roll_s: Option<f64>,
    /// Seconds after which the recording stops by itself.
    pub max_duration_s: Option<f64>,
    /// Seconds without a heartbeat after which the recording stops by itself.
    pub heartbeat_s: Option<f64>,
}

/// Answer to a start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StartReply {
    /// `recording`.
    pub status: &'static str,
    /// Path of the file, as the Go design shows it.
    pub filename: String,
    /// Name of the file in `/api/recordings`.
    pub name: String,
    /// The ring holds no IDR to begin with: the recording begins with the camera's next one.
    pub waits_for_idr: bool,
}

/// Numbers of one recording, running or over.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Path of the newest file.
    pub filename: String,
    /// Name of the newest file in `/api/recordings`.
    pub name: String,
    /// Access units written.
    pub frame_count: u64,
    /// Bytes of all files of this recording.
    pub bytes_written: u64,
    /// Seconds recorded.
    pub duration: f64,
    /// Seconds of them from before the request: what the ring still held, back to an IDR.
    pub pre_roll: f64,
    /// Seconds after the request that are missing because the ring held no IDR.
    pub start_delay: f64,
    /// Units that were published and are missing in the file.
    pub dropped_units: u64,
    /// Of those, overwritten by the camera while the disk read them.
    pub torn_units: u64,
    /// How often units are missing in a row.
    pub gaps: u64,
    /// Names of all files, in order.
    pub files: Vec<String>,
}

/// Answer to a stop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StopReply {
    /// `stopped`.
    pub status: &'static str,
    /// The recording's numbers.
    #[serde(flatten)]
    pub report: Report,
    /// Why it stopped: `asked`, `max_duration`, `heartbeat`, `shutdown` or an error's code.
    pub reason: &'static str,
    /// `false` if nothing was recorded (no picture came) and the empty file was removed.
    pub kept: bool,
}

/// Answer to `GET /api/recording/status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Whether a recording runs.
    pub recording: bool,
    /// `idle`, `starting`, `recording` or `stopping`.
    pub state: &'static str,
    /// Numbers of the running recording, else of the last.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Why the last recording stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// What ended the last recording or kept it from starting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// An error as JSON tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorReport {
    /// For people.
    pub error: String,
    /// For programs.
    pub code: &'static str,
    /// The HTTP status it stands for.
    pub status: u16,
}

/// One line of `GET /api/recordings`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordingInfo {
    /// File name.
    pub name: String,
    /// Bytes that can be downloaded.
    pub bytes: u64,
    /// Seconds; missing where only playing would tell.
    pub duration: Option<f64>,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// Has its index; `false` while recording.
    pub complete: bool,
    /// Was repaired after a crash.
    pub recovered: bool,
    /// Is being written now.
    pub recording: bool,
}

/// Why the recorder didn't do what it was asked, or stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecorderError {
    /// One recording at a time.
    #[error("already recording")]
    AlreadyRecording,
    /// Nothing to stop.
    #[error("not recording")]
    NotRecording,
    /// A stop is under way.
    #[error("the recording is being stopped")]
    Stopping,
    /// The name asked for.
    #[error("bad file name: {0}")]
    Name(#[from] NameError),
    /// A number of seconds asked for.
    #[error("{field} must be a number of seconds between 0 and 2592000")]
    Seconds {
        /// Which.
        field: &'static str,
    },
    /// Files are never overwritten.
    #[error("a recording named {name} exists")]
    Exists {
        /// Which.
        name: String,
    },
    /// No such recording.
    #[error("no recording is named {name}")]
    NotFound {
        /// Which.
        name: String,
    },
    /// It is being written.
    #[error("{name} is being recorded")]
    InUse {
        /// Which.
        name: String,
    },
    /// No picture to record.
    #[error("no camera: nothing to record")]
    CameraAway,
    /// No space left, or over quota.
    #[error("the disk is full")]
    DiskFull,
    /// The directory of recordings can't be written to.
    #[error("the directory of recordings can't be used: {reason}")]
    Directory {
        /// What the system said.
        reason: String,
    },
    /// Somebody deleted the file while it was recorded.
    #[error("the file was deleted while it was recorded")]
    Removed,
    /// Anything else the system said about a file.
    #[error("{doing} failed: {reason}")]
    Io {
        /// What the recorder was doing.
        doing: &'static str,
        /// What the system said.
        reason: String,
    },
    /// A bound on files of one recording.
    #[error("the recording has too many files")]
    TooManyFiles,
    /// No answer in time: the disk hangs, or too many commands wait.
    #[error("the recorder does not answer")]
    Unresponsive,
}

impl RecorderError {
    /// The HTTP status that tells it.
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

    /// The code programs tell it by.
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

    /// As JSON tells it.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        ErrorReport { error: self.to_string(), code: self.code(), status: self.status() }
    }

    /// The error of a failed operation on a file: a full disk is told apart.
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
