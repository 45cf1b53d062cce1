//! Defines the types of the API's answers. Types that a stage fills are in [`crate::metrics::status`]. The serde
//! derives in this file define the JSON, so the names of fields and variants are part of the API and must not change.

use serde::Serialize;

use crate::metrics::status::{RecorderState, RecordingInfo, RecordingReport, StartReply};

/// The state of the server without the recorder's details.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// State of the camera.
    pub camera: CameraSummary,
    /// Number of sessions, connected or not.
    pub viewers: u32,
    /// Number of viewers over HTTP live.
    pub http_viewers: u32,
    /// True while a recording runs.
    pub is_recording: bool,
    /// State of the detections.
    pub detections: DetectionsStatus,
    /// State of publishing. `None` without --whip.
    pub publish: Option<PublishStatus>,
}

/// State of publishing to a WHIP server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublishStatus {
    /// Host of the server, and its port unless that is the usual one.
    pub host: String,
    /// What the publisher does now.
    pub state: PublishState,
    /// Why the latest attempt failed or the latest session ended, as a text for the user. `None` while a session is
    /// connected.
    pub error: Option<String>,
    /// Seconds from that failure to the next attempt.
    pub retry_s: Option<u64>,
    /// Access units published since the start.
    pub units_sent: u64,
    /// Round trip in milliseconds, from the latest receiver report.
    pub rtt_ms: Option<f32>,
    /// Share of lost packets in the latest receiver report, from 0 to 1.
    pub loss_fraction: Option<f32>,
}

impl PublishStatus {
    /// Returns the state of a publisher that has just started.
    #[must_use]
    pub fn new(host: String) -> PublishStatus {
        PublishStatus {
            host,
            state: PublishState::WaitingForCamera,
            error: None,
            retry_s: None,
            units_sent: 0,
            rtt_ms: None,
            loss_fraction: None,
        }
    }
}

/// What the publisher does.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishState {
    /// It waits until the camera writes access units.
    WaitingForCamera,
    /// The publisher sends its offer, or waits until ICE and DTLS connect.
    Connecting,
    /// The session is connected.
    Publishing,
    /// The latest attempt failed, and the next one follows.
    Retrying,
    /// The server is stopping.
    Stopped,
}

/// The names of the stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StreamNames {
    /// Name of the stream in URLs.
    pub name: String,
    /// Name of the stream that people see.
    pub title: String,
}

/// State of the camera.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CameraSummary {
    /// The shared memory of the camera is not attached.
    Away {
        /// The reason, as a text for the user.
        reason: String,
    },
    /// Access units arrive.
    Live(CameraPicture),
    /// The shared memory is attached, but no access units arrive.
    Stalled(CameraPicture),
}

/// The picture of an attached camera.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CameraPicture {
    /// Name of the layout of the shared memory.
    pub layout: String,
    /// Width in pixels; 0 before the first IDR.
    pub width: u64,
    /// Height in pixels; 0 before the first IDR.
    pub height: u64,
    /// Access units per second; 0 while the camera is stalled.
    pub fps: f64,
    /// True if the camera sends B-frames. Browsers over WebRTC do not reorder pictures, so the picture stutters.
    pub b_frames: bool,
    /// Bit rate in kbit/s that the camera is requested not to exceed, for the viewers' links. `None` without a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitrate_request_kbps: Option<u64>,
    /// Milliseconds without an access unit after which the camera counts as stalled. Longer for slow cameras.
    pub stalled_after_ms: u64,
    /// Seconds since the newest IDR; `None` if none has arrived.
    pub last_idr_s: Option<u64>,
    /// Why connected viewers see no picture although access units arrive, as a text for the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// What is wrong with the content of the camera's slots, as a text for the user. `None` if each holds one picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_fault: Option<&'static str>,
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
    /// The stream.
    #[serde(flatten)]
    pub stream: StreamNames,
    /// State of the camera.
    pub camera: CameraSummary,
    /// Number of sessions, connected or not.
    pub viewers: u32,
    /// Number of viewers over HTTP live.
    pub http_viewers: u32,
    /// State of the recorder.
    pub recording: RecordingStatus,
    /// State of the detections.
    pub detections: DetectionsStatus,
    /// State of publishing. Missing without --whip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<PublishStatus>,
    /// Version of this program.
    pub version: &'static str,
}

/// State of the detections, as `GET /api/status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DetectionsStatus {
    /// What the detections do now.
    pub state: DetectionsState,
    /// Name of the detector's segment, or `post` if the newest result came over HTTP. `None` if there is neither.
    pub source: Option<String>,
    /// Why no results can be read, as a text for the user.
    pub fault: Option<String>,
    /// Results taken since the start.
    pub results: u64,
    /// Results and single entries that were refused since the start.
    pub rejected: u64,
    /// Learned interval between results in milliseconds. `None` while it is unknown.
    pub interval_ms: Option<u64>,
}

/// What the detections do.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DetectionsState {
    /// No segment is read, and no result has come over HTTP.
    #[default]
    Off,
    /// No result has arrived yet.
    Waiting,
    /// The newest result is shown.
    Live,
    /// The newest result is too old to be shown.
    Expired,
    /// The segment cannot be read.
    Faulty,
}

/// Body of `POST /api/detections`. The fields have the right types, but their values are not checked yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PostedDetections {
    /// The camera's number of the picture.
    pub frame: Option<u64>,
    /// The camera's stamp of the picture in seconds.
    pub timestamp: Option<f64>,
    /// Width and height in pixels of the picture that the boxes refer to.
    pub picture: (u32, u32),
    /// What was found.
    pub boxes: Vec<PostedBox>,
}

/// One entry of [`PostedDetections`]. Its coordinates are rounded to pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct PostedBox {
    /// Value of `class_name`.
    pub label: String,
    /// Value of `confidence`.
    pub confidence: f32,
    /// Values of `x`, `y`, `w` and `h`.
    pub rectangle: [i64; 4],
}

/// Answer to a recording command.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "status")]
pub enum RecordingReply {
    /// Answer to the command `start`.
    #[serde(rename = "recording")]
    Started(StartReply),
    /// Answer to the command `stop`.
    #[serde(rename = "stopped")]
    Stopped {
        /// Totals of the recording.
        #[serde(flatten)]
        report: RecordingReport,
        /// Why the recording stopped: `asked`, `max_duration`, `heartbeat`, `shutdown` or the code of an error.
        reason: &'static str,
        /// False if no unit was recorded; the empty file is then removed.
        kept: bool,
        /// Why no unit was recorded.
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Answer to the command `heartbeat`.
    #[serde(rename = "recording")]
    HeartbeatAccepted,
    /// Answer to the command that deletes a recording.
    #[serde(rename = "deleted")]
    Deleted {
        /// Name of the deleted file.
        name: String,
    },
    /// Answer to the request for the list of recordings.
    #[serde(untagged)]
    List {
        /// All recordings, newest first.
        recordings: Vec<RecordingInfo>,
        /// Bytes that are free for further recordings. `None` if they are unknown.
        free_bytes: Option<u64>,
    },
}

/// Body of `GET /api/recording/status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordingStatus {
    /// True while a recording runs.
    pub recording: bool,
    /// State of the recorder.
    pub state: RecorderState,
    /// Totals of the running recording or, if none runs, of the last one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub report: Option<RecordingReport>,
    /// Why the last recording stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The error that ended the last recording or prevented its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<RecordingFailure>,
    /// What the running recording waits for, as a text for the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl RecordingStatus {
    /// Returns a status without details.
    #[must_use]
    pub fn bare(state: RecorderState, is_recording: bool) -> RecordingStatus {
        RecordingStatus {
            recording: is_recording,
            state,
            report: None,
            reason: None,
            error: None,
            message: None,
        }
    }
}

/// An error of the recorder within a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordingFailure {
    /// Error message for the user.
    pub error: String,
    /// Error code for programs. It never changes.
    pub code: &'static str,
    /// HTTP status with which a command that fails with this error is answered.
    pub status: u16,
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
        let picture = CameraPicture {
            layout: "v3".to_owned(),
            width: 1280,
            height: 720,
            fps: 29.9,
            stalled_after_ms: 1_500,
            ..CameraPicture::default()
        };
        let mut live = json!({
            "state": "live", "layout": "v3", "width": 1280, "height": 720, "fps": 29.9,
            "b_frames": false, "stalled_after_ms": 1_500, "last_idr_s": null,
        });
        assert_eq!(json_of(&CameraSummary::Live(picture.clone())), live);
        let waiting = CameraPicture { last_idr_s: Some(7), notice: Some("waiting".to_owned()), ..picture };
        (live["last_idr_s"], live["notice"]) = (json!(7), json!("waiting"));
        assert_eq!(json_of(&CameraSummary::Live(waiting.clone())), live);
        live["slot_fault"] = json!("two pictures");
        let faulty = CameraPicture { slot_fault: Some("two pictures"), ..waiting };
        assert_eq!(json_of(&CameraSummary::Live(faulty)), live);
        let away = CameraSummary::Away { reason: "no ring".to_owned() };
        assert_eq!(json_of(&away), json!({ "state": "away", "reason": "no ring" }));
    }

    #[test]
    fn recording_replies_carry_their_status_word() {
        let started = RecordingReply::Started(StartReply {
            filename: "/r/a.mp4".to_owned(),
            name: "a.mp4".to_owned(),
            waits_for_idr: false,
        });
        assert_eq!(
            json_of(&started),
            json!({ "status": "recording", "filename": "/r/a.mp4", "name": "a.mp4", "waits_for_idr": false })
        );
        let stopped = RecordingReply::Stopped {
            report: RecordingReport::default(),
            reason: "asked",
            kept: true,
            message: None,
        };
        let stopped = json_of(&stopped);
        assert_eq!((&stopped["status"], &stopped["frame_count"]), (&json!("stopped"), &json!(0)));
        assert_eq!(json_of(&RecordingReply::HeartbeatAccepted), json!({ "status": "recording" }));
        let deleted = RecordingReply::Deleted { name: "a.mp4".to_owned() };
        assert_eq!(json_of(&deleted), json!({ "status": "deleted", "name": "a.mp4" }));
        let list = RecordingReply::List { recordings: Vec::new(), free_bytes: Some(7) };
        assert_eq!(json_of(&list), json!({ "recordings": [], "free_bytes": 7 }));
    }

    #[test]
    fn a_failed_recording_status_has_reason_and_error() {
        let (error, code, status) = ("the disk is full".to_owned(), "disk_full", 507);
        let failed = RecordingStatus {
            reason: Some("disk_full"),
            error: Some(RecordingFailure { error, code, status }),
            ..RecordingStatus::bare(RecorderState::Idle, false)
        };
        let error = json!({ "error": "the disk is full", "code": "disk_full", "status": 507 });
        assert_eq!(
            json_of(&failed),
            json!({ "recording": false, "state": "idle", "reason": "disk_full", "error": error })
        );
        let report = Some(RecordingReport { frame_count: 7, ..RecordingReport::default() });
        let running = RecordingStatus { report, ..RecordingStatus::bare(RecorderState::Recording, true) };
        assert_eq!(json_of(&running)["frame_count"], json!(7));
    }

    #[test]
    fn a_bare_recording_status_has_two_fields() {
        let off = RecordingStatus::bare(RecorderState::Off, false);
        assert_eq!(json_of(&off), json!({ "recording": false, "state": "off" }));
    }
}
