//! State and counters of viewers and recordings. Sessions and the recorder fill these types, `http` serialises them:
//! names of fields and variants are part of the API and stay.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

// ---- viewers -------------------------------------------------------------------------------------------

/// Snapshot of one viewer, an entry of `GET /api/viewers`. Counters start at its offer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ViewerStatus {
    /// Number of the viewer, unique in the process.
    pub id: u32,
    /// State of the connection.
    pub state: ViewerState,
    /// State of the gate that decides which access units are sent.
    pub gate: GateState,
    /// Source of the latest authenticated STUN request.
    pub remote: Option<SocketAddr>,
    /// Negotiated SRTP profile.
    pub profile: Option<String>,
    /// Milliseconds since DTLS finished.
    pub connected_ms: u64,
    /// Milliseconds from the offer to the first IDR sent; `None` until then.
    pub first_idr_ms: Option<u64>,
    /// Access units sent.
    pub units_sent: u64,
    /// Access units of `units_sent` that were replayed from the GOP because the viewer joined or requested an IDR.
    pub units_replayed: u64,
    /// GOP replays begun.
    pub replays: u64,
    /// Access units held back after the first one was sent.
    pub units_dropped: u64,
    /// Times the viewer dropped to the next IDR.
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
    /// Packets retransmitted.
    pub retransmits: u64,
    /// Packets not retransmitted: over the budget of a second, or requested again within [`RESEND_GUARD`].
    ///
    /// [`RESEND_GUARD`]: crate::base::limits::RESEND_GUARD
    pub retransmits_refused: u64,
    /// Loss reported by the viewer's latest receiver report, 0 to 1.
    pub loss_fraction: Option<f32>,
    /// Round-trip time from the latest receiver report, in milliseconds.
    pub rtt_ms: Option<f32>,
    /// Interarrival jitter from the latest receiver report, in milliseconds.
    pub jitter_ms: Option<f32>,
}

/// State of a viewer's connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewerState {
    /// ICE and DTLS are not finished.
    Connecting,
    /// Media can be sent.
    Connected,
    /// The goodbye (RTCP BYE, DTLS close_notify) is being sent.
    Closing,
    /// The session is over.
    Closed,
}

/// State of the gate that decides which access units a viewer gets.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateState {
    /// No unit was sent yet; the first will be an IDR.
    WaitingForIdr,
    /// Everything since the last IDR was sent.
    Live,
    /// A unit was not sent; all units are held back until the next IDR.
    DroppedToIdr,
}

// ---- recordings ----------------------------------------------------------------------------------------

/// A request to start a recording, the body of `POST /api/recording/start`. Every field is optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartRequest {
    /// File name, with or without extension. Empty or missing: a name made from the local time.
    pub filename: Option<String>,
    /// Seconds before the request at which the recording shall begin. Limited by what the ring still holds;
    /// [`RecordingReport::pre_roll`] says how much it was.
    pub pre_roll_s: Option<f64>,
    /// Seconds after which the recording stops by itself.
    pub max_duration_s: Option<f64>,
    /// Seconds without a heartbeat after which the recording stops by itself.
    pub heartbeat_s: Option<f64>,
}

/// Reply to a start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StartReply {
    /// Path of the file.
    pub filename: String,
    /// File name in the list of recordings.
    pub name: String,
    /// True if the ring holds no IDR: the recording then begins at the camera's next one.
    pub waits_for_idr: bool,
}

/// Figures of one recording, running or finished.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecordingReport {
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

/// State of the recorder.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecorderState {
    /// No recording exists.
    Idle,
    /// The file is being created, or the first IDR has not arrived.
    Starting,
    /// Access units are written as they are published.
    Recording,
    /// Units published before the stop are written, then the files are finished.
    Stopping,
    /// The server was started with --no-recorder. Only `http` reports this state and the next one.
    Off,
    /// The recorder did not answer in time, for example because the disk hangs.
    Unresponsive,
}

/// One file, an entry of `GET /api/recordings`.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
