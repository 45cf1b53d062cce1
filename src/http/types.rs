//! What the API answers and takes, as types. The serde derives in this file define the JSON: names of fields and
//! variants are part of the API and stay.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The state of the server without the recorder's details.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// State of the camera.
    pub camera: CameraSummary,
    /// Number of sessions, connected or not.
    pub viewers: u32,
    /// True while a recording runs.
    pub is_recording: bool,
}

/// State of the camera.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CameraSummary {
    /// The shared memory of the camera is not attached.
    Away {
        /// The reason, in words for a person.
        reason: String,
    },
    /// Access units arrive.
    Live(CameraPicture),
    /// The shared memory is attached, but no access units arrive.
    Stalled(CameraPicture),
}

/// The picture of an attached camera.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CameraPicture {
    /// Layout of the shared memory.
    pub layout: String,
    /// Pixels; 0 before the first IDR.
    pub width: u64,
    /// Pixels; 0 before the first IDR.
    pub height: u64,
    /// Access units per second; 0 while the camera is stalled.
    pub fps: f64,
}

impl CameraSummary {
    /// Returns the picture, or `None` while the camera is away.
    #[must_use]
    pub fn picture(&self) -> Option<&CameraPicture> {
        match self {
            CameraSummary::Away { .. } => None,
            CameraSummary::Live(picture) | CameraSummary::Stalled(picture) => Some(picture),
        }
    }
}

/// Body of `GET /api/status` and of the event `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// State of the camera.
    pub camera: CameraSummary,
    /// Number of sessions, connected or not.
    pub viewers: u32,
    /// State of the recorder.
    pub recording: RecordingStatus,
    /// Version of this program.
    pub version: &'static str,
}

// ---- viewers -------------------------------------------------------------------------------------------

/// One entry of `GET /api/viewers`. All counters start at the offer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ViewerStatus {
    /// Number of the session, unique within one run of the server.
    pub id: u32,
    /// State of the connection.
    pub state: ViewerState,
    /// State of the gate that decides which access units are sent.
    pub gate: ViewerGate,
    /// Source address of the last authenticated STUN request.
    pub remote: Option<SocketAddr>,
    /// Negotiated SRTP profile.
    pub profile: Option<String>,
    /// Milliseconds since DTLS finished.
    pub connected_ms: u64,
    /// Milliseconds from the offer to the first IDR that was sent.
    pub first_idr_ms: Option<u64>,
    /// Access units sent.
    pub units_sent: u64,
    /// Of these, the units sent late, because the viewer joined or requested an IDR in the middle of a GOP.
    pub units_replayed: u64,
    /// Replays of the current GOP, each from its IDR on, after a join or an IDR request.
    pub replays: u64,
    /// Access units not sent after the first one was sent.
    pub units_dropped: u64,
    /// How many times the viewer had to wait for the next IDR because a unit was not sent.
    pub drops_to_idr: u64,
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Received datagrams that were malformed, not authenticated or unexpected.
    pub datagrams_rejected: u64,
    /// NACK messages received.
    pub nacks: u64,
    /// IDR requests received (PLI and FIR).
    pub plis: u64,
    /// RTP packets retransmitted.
    pub retransmits: u64,
    /// Requests for a retransmission that were refused by a rate limit.
    pub retransmits_refused: u64,
    /// Fraction of lost packets in the latest receiver reports, 0 to 1.
    pub loss_fraction: Option<f32>,
    /// Round trip in milliseconds, from the latest receiver report.
    pub rtt_ms: Option<f32>,
    /// Interarrival jitter at the viewer in milliseconds.
    pub jitter_ms: Option<f32>,
}

/// State of a viewer's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewerState {
    /// ICE or DTLS has not finished.
    Connecting,
    /// Media can flow.
    Connected,
    /// The DTLS close is being sent.
    Closing,
    /// The session is over.
    Closed,
}

/// State of a viewer's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewerGate {
    /// Nothing was sent yet.
    WaitingForIdr,
    /// All reference units since the last IDR were sent.
    Live,
    /// A unit was not sent. Nothing is sent before the next IDR.
    DroppedToIdr,
}

// ---- recordings ----------------------------------------------------------------------------------------

/// Body of `POST /api/recording/start`. All fields are optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartRecording {
    /// Name of the file, with or without extension. Empty or missing: the local time.
    pub filename: Option<String>,
    /// Seconds before the request that the recording should include, as far as the ring still has them.
    pub pre_roll_s: Option<f64>,
    /// Seconds after which the recording stops.
    pub max_duration_s: Option<f64>,
    /// Seconds without a heartbeat after which the recording stops.
    pub heartbeat_s: Option<f64>,
}

/// Answer to a recording command.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "status")]
pub enum RecordingReply {
    /// To a start.
    #[serde(rename = "recording")]
    Started {
        /// Path of the file.
        filename: String,
        /// Name of the file in `/api/recordings`.
        name: String,
        /// True if the ring held no IDR: the recording begins with the next IDR of the camera.
        waits_for_idr: bool,
    },
    /// To a stop.
    #[serde(rename = "stopped")]
    Stopped {
        /// Totals of the recording.
        #[serde(flatten)]
        report: RecordingReport,
        /// Why it stopped: `asked`, `max_duration`, `heartbeat`, `shutdown` or the code of an error.
        reason: &'static str,
        /// False if no unit was recorded; the empty file is then removed.
        kept: bool,
    },
    /// To a heartbeat.
    #[serde(rename = "recording")]
    HeartbeatAccepted,
    /// To a deletion.
    #[serde(rename = "deleted")]
    Deleted {
        /// Name of the deleted file.
        name: String,
    },
    /// To a request for the list.
    #[serde(untagged)]
    List {
        /// All recordings, newest first.
        recordings: Vec<RecordingInfo>,
    },
}

/// Totals of one recording, running or finished.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecordingReport {
    /// Path of the newest file.
    pub filename: String,
    /// Name of the newest file in `/api/recordings`.
    pub name: String,
    /// Access units written.
    pub frame_count: u64,
    /// Bytes of all files.
    pub bytes_written: u64,
    /// Seconds recorded.
    pub duration: f64,
    /// Of these, the seconds before the request.
    pub pre_roll: f64,
    /// Seconds after the request that are missing because the ring held no IDR.
    pub start_delay: f64,
    /// Published access units that are missing in the file.
    pub dropped_units: u64,
    /// Of these, the units that the camera overwrote while they were written to disk.
    pub torn_units: u64,
    /// Number of places in the file where units are missing.
    pub gaps: u64,
    /// Names of all files, in order.
    pub files: Vec<String>,
}

/// Body of `GET /api/recording/status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordingStatus {
    /// True while a recording runs.
    pub recording: bool,
    /// State of the recorder.
    pub state: RecordingState,
    /// Totals of the running recording, otherwise of the last one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub report: Option<RecordingReport>,
    /// Why the last recording stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The error that ended the last recording or prevented its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<RecordingFailure>,
}

impl RecordingStatus {
    /// A status without details.
    #[must_use]
    pub fn bare(state: RecordingState, is_recording: bool) -> RecordingStatus {
        RecordingStatus { recording: is_recording, state, report: None, reason: None, error: None }
    }
}

/// State of the recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingState {
    /// No recording runs.
    Idle,
    /// The file is being created, or the first IDR has not arrived.
    Starting,
    /// A recording runs.
    Recording,
    /// The file is being finished.
    Stopping,
    /// The server was started with --no-recorder.
    Off,
    /// The recorder did not answer in time, for example because the disk hangs.
    Unresponsive,
}

/// An error of the recorder within a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordingFailure {
    /// Sentence for a person.
    pub error: String,
    /// Stable word for programs.
    pub code: &'static str,
    /// HTTP status of the same error as an answer.
    pub status: u16,
}

/// One entry of `GET /api/recordings`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordingInfo {
    /// File name.
    pub name: String,
    /// Bytes that can be downloaded.
    pub bytes: u64,
    /// Seconds; `None` if only reading the whole file would tell.
    pub duration: Option<f64>,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// True if the file has its index; false while it is recorded.
    pub complete: bool,
    /// True if the file was repaired after a crash.
    pub recovered: bool,
    /// True while the file is recorded.
    pub recording: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn json_of(value: &impl Serialize) -> Value {
        serde_json::to_value(value).unwrap()
    }

    #[test]
    fn camera_states_have_their_fields_beside_the_state() {
        let picture = CameraPicture { layout: "v3".to_owned(), width: 1280, height: 720, fps: 29.9 };
        assert_eq!(
            json_of(&CameraSummary::Live(picture)),
            json!({ "state": "live", "layout": "v3", "width": 1280, "height": 720, "fps": 29.9 })
        );
        let away = CameraSummary::Away { reason: "no ring".to_owned() };
        assert_eq!(json_of(&away), json!({ "state": "away", "reason": "no ring" }));
    }

    #[test]
    fn recording_replies_carry_their_status_word() {
        let started = RecordingReply::Started {
            filename: "/r/a.mp4".to_owned(),
            name: "a.mp4".to_owned(),
            waits_for_idr: false,
        };
        assert_eq!(
            json_of(&started),
            json!({ "status": "recording", "filename": "/r/a.mp4", "name": "a.mp4", "waits_for_idr": false })
        );
        let stopped =
            RecordingReply::Stopped { report: RecordingReport::default(), reason: "asked", kept: true };
        let stopped = json_of(&stopped);
        assert_eq!((&stopped["status"], &stopped["frame_count"]), (&json!("stopped"), &json!(0)));
        assert_eq!(json_of(&RecordingReply::HeartbeatAccepted), json!({ "status": "recording" }));
        let deleted = RecordingReply::Deleted { name: "a.mp4".to_owned() };
        assert_eq!(json_of(&deleted), json!({ "status": "deleted", "name": "a.mp4" }));
        assert_eq!(json_of(&RecordingReply::List { recordings: Vec::new() }), json!({ "recordings": [] }));
    }

    #[test]
    fn a_failed_recording_status_has_reason_and_error() {
        let (error, code, status) = ("the disk is full".to_owned(), "disk_full", 507);
        let failed = RecordingStatus {
            reason: Some("disk_full"),
            error: Some(RecordingFailure { error, code, status }),
            ..RecordingStatus::bare(RecordingState::Idle, false)
        };
        let error = json!({ "error": "the disk is full", "code": "disk_full", "status": 507 });
        assert_eq!(
            json_of(&failed),
            json!({ "recording": false, "state": "idle", "reason": "disk_full", "error": error })
        );
        let report = Some(RecordingReport { frame_count: 7, ..RecordingReport::default() });
        let running = RecordingStatus { report, ..RecordingStatus::bare(RecordingState::Recording, true) };
        assert_eq!(json_of(&running)["frame_count"], json!(7));
    }

    #[test]
    fn a_bare_recording_status_has_two_fields() {
        let off = RecordingStatus::bare(RecordingState::Off, false);
        assert_eq!(json_of(&off), json!({ "recording": false, "state": "off" }));
    }
}
