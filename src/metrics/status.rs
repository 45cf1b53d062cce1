//! State and counters of viewers and recordings. Sessions and the recorder fill these types, and `http` serialises
//! them. The names of their fields and variants are part of the HTTP API, so they must not change.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

// ---- viewers -------------------------------------------------------------------------------------------

/// State and counters of one viewer, an entry of `GET /api/viewers`. The counters start when the server accepts the
/// viewer's offer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ViewerStatus {
    /// Number of the viewer. The running server never uses it for another viewer.
    pub id: u32,
    /// True for the session with a WHIP server, to which this program publishes. `GET /api/viewers` leaves it out.
    #[serde(skip)]
    pub is_publisher: bool,
    /// How the viewer gets the stream. Of a viewer over HTTP, the fields about RTP, RTCP and the link have no value or
    /// are 0.
    pub via: Via,
    /// State of the connection.
    pub state: ViewerState,
    /// State of the gate that decides which access units are sent.
    pub gate: GateState,
    /// Source address of the viewer's latest authenticated STUN request. `None` before the first.
    pub remote: Option<SocketAddr>,
    /// How media and reports reach the viewer. `None` before its first authenticated STUN request.
    pub transport: Option<ViewerTransport>,
    /// Negotiated SRTP profile. `None` until DTLS has finished.
    pub profile: Option<String>,
    /// Milliseconds since DTLS finished. 0 before that.
    pub connected_ms: u64,
    /// Milliseconds from the offer to the first IDR sent. `None` before the first IDR is sent.
    pub first_idr_ms: Option<u64>,
    /// Access units sent to the viewer.
    pub units_sent: u64,
    /// Those of `units_sent` that were replayed from the current GOP because the viewer joined or requested an IDR.
    pub units_replayed: u64,
    /// Number of GOP replays that were started for the viewer.
    pub replays: u64,
    /// Access units that were not sent, although an earlier unit was already sent.
    pub units_dropped: u64,
    /// How often all units had to be held back until the next IDR, after a unit was lost or because of congestion.
    pub drops_to_idr: u64,
    /// UDP payload bytes sent to the viewer.
    pub bytes_sent: u64,
    /// Datagrams sent to the viewer.
    pub datagrams: u64,
    /// Datagrams received from the viewer that were malformed, not authenticated or unexpected.
    pub datagrams_rejected: u64,
    /// NACK messages received from the viewer.
    pub nacks: u64,
    /// IDR requests (PLI and FIR messages) received from the viewer.
    pub plis: u64,
    /// RTP packets that were retransmitted.
    pub retransmits: u64,
    /// Requested RTP packets that were not retransmitted, because the budget of the second was used up or the packet
    /// had been retransmitted less than [`RESEND_GUARD`] ago.
    ///
    /// [`RESEND_GUARD`]: crate::base::limits::RESEND_GUARD
    pub retransmits_refused: u64,
    /// What the viewer's link carries, in kbit/s, as measured with the viewer's transport-wide feedback. `None` if the
    /// viewer is not paced.
    pub link_kbps: Option<u64>,
    /// Rate of the whole stream in kbit/s, without headers, to compare with `link_kbps`. `None` if the viewer is not
    /// paced.
    pub stream_kbps: Option<u64>,
    /// True if what is sent to the viewer is spread out, because its link is slow or loses packets.
    pub paced: bool,
    /// Those of `units_dropped` that were left out because the link carries less than the stream.
    pub units_thinned: u64,
    /// Milliseconds of video that a viewer over HTTP is behind, because it reads too slowly. `None` over WebRTC.
    pub lag_ms: Option<u64>,
    /// Share of lost packets in the viewer's latest receiver report, from 0 to 1.
    pub loss_fraction: Option<f32>,
    /// Round-trip time from the latest receiver report, in milliseconds.
    pub rtt_ms: Option<f32>,
    /// Interarrival jitter from the latest receiver report, in milliseconds.
    pub jitter_ms: Option<f32>,
    /// Latency from the capture of a picture to the viewer's screen, as the viewer's page has reported it last. `None`
    /// without a report.
    pub glass_ms: Option<GlassStatus>,
    /// Why the session ended. `None` while it lasts. `GET /api/viewers` lists the sessions that ended last behind the
    /// others, with the state `closed`.
    pub ended: Option<SessionEnd>,
}

/// A viewer's own measurement of the latency from the capture of a picture to its screen, over the newest pictures.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GlassReport {
    /// Median.
    pub p50: Duration,
    /// 95th percentile.
    pub p95: Duration,
    /// Number of pictures that were measured.
    pub samples: u32,
}

/// The latest [`GlassReport`] of a viewer, in milliseconds.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct GlassStatus {
    /// Median.
    pub p50: f32,
    /// 95th percentile.
    pub p95: f32,
    /// Number of pictures that were measured.
    pub samples: u32,
    /// Seconds since the report.
    pub age_s: u64,
}

/// How a viewer gets the stream.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Over WebRTC.
    WebRtc,
    /// Over HTTP live.
    Http,
}

/// How datagrams travel between server and viewer.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewerTransport {
    /// As UDP datagrams.
    Udp,
    /// As frames on a TCP connection (ICE-TCP, RFC 6544).
    Tcp,
}

/// The end of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionEnd {
    /// The reason, a value of the label `reason` of the metric `sessions_ended_total`.
    pub reason: EndReason,
    /// What happened and what to do about it, as text.
    pub detail: String,
    /// Milliseconds since the end.
    pub ms_ago: u64,
}

/// Why a session ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// No authenticated STUN request arrived in time.
    NoStun,
    /// STUN arrived, but the DTLS handshake did not finish in time.
    HandshakeTimeout,
    /// Nothing authentic arrived from the viewer any more.
    ConsentExpired,
    /// The viewer closed the session.
    ViewerClosed,
    /// The server stopped.
    ServerStopping,
    /// The login of the viewer ended.
    LoginEnded,
    /// Another viewer needed the place, and no STUN had arrived in this session.
    GaveWay,
    /// The viewer has no ECDSA certificate.
    UnsupportedCertificate,
    /// The viewer's certificate does not have the fingerprint of the offer.
    FingerprintMismatch,
    /// No common SRTP profile.
    NoSrtpProfile,
    /// No common DTLS version, cipher suite or curve.
    IncompatibleDtls,
    /// The viewer sent a fatal DTLS alert.
    ViewerAlert,
    /// The DTLS handshake failed in another way.
    DtlsFailed,
}

impl EndReason {
    /// All reasons and their names in the metrics, in the order of their discriminants.
    pub const ALL: [(EndReason, &str); 13] = [
        (EndReason::NoStun, "no_stun"),
        (EndReason::HandshakeTimeout, "handshake_timeout"),
        (EndReason::ConsentExpired, "consent_expired"),
        (EndReason::ViewerClosed, "viewer_closed"),
        (EndReason::ServerStopping, "server_stopping"),
        (EndReason::LoginEnded, "login_ended"),
        (EndReason::GaveWay, "gave_way"),
        (EndReason::UnsupportedCertificate, "unsupported_certificate"),
        (EndReason::FingerprintMismatch, "fingerprint_mismatch"),
        (EndReason::NoSrtpProfile, "no_srtp_profile"),
        (EndReason::IncompatibleDtls, "incompatible_dtls"),
        (EndReason::ViewerAlert, "viewer_alert"),
        (EndReason::DtlsFailed, "dtls_failed"),
    ];
}

/// State of a viewer's connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewerState {
    /// ICE or DTLS is not finished yet.
    Connecting,
    /// ICE and DTLS are finished, so media can be sent.
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
    /// No unit was sent yet. The first unit sent will be an IDR.
    WaitingForIdr,
    /// All units that later units need were sent since the last IDR.
    Live,
    /// A unit was lost or could not be sent, so all units are held back until the next IDR.
    DroppedToIdr,
}

// ---- recordings ----------------------------------------------------------------------------------------

/// A request to start a recording, the body of `POST /api/recording/start`. Every field is optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StartRequest {
    /// File name, with or without extension. If it is empty or missing, the server makes a name from the local time.
    pub filename: Option<String>,
    /// Number of seconds before the request at which the recording shall begin. The ring may no longer hold units that
    /// old. [`RecordingReport::pre_roll`] states how many seconds were really recorded.
    pub pre_roll_s: Option<f64>,
    /// Number of seconds after which the recorder stops the recording.
    pub max_duration_s: Option<f64>,
    /// Number of seconds without a heartbeat after which the recorder stops the recording.
    pub heartbeat_s: Option<f64>,
}

/// Reply to a start request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StartReply {
    /// Path of the file.
    pub filename: String,
    /// File name in the list of recordings.
    pub name: String,
    /// True if the ring held no IDR at the start. The recording then begins at the camera's next IDR.
    pub waits_for_idr: bool,
}

/// Figures of one recording that is running or finished.
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
    /// Total duration of all files, in seconds.
    pub duration: f64,
    /// Number of seconds recorded from the time before the request. The recording begins at an IDR that the ring still
    /// held.
    pub pre_roll: f64,
    /// Number of seconds after the request that are missing, because the ring held no IDR.
    pub start_delay: f64,
    /// Access units that the camera published after the first recorded unit, but that the files lack.
    pub dropped_units: u64,
    /// Those of `dropped_units` that the camera overwrote while they were written to the disk.
    pub torn_units: u64,
    /// Number of gaps in the recording. A gap is a series of consecutive dropped units.
    pub gaps: u64,
    /// Names of all files of the recording, the oldest first.
    pub files: Vec<String>,
    /// True if nothing is recorded yet, because the recording begins at the camera's next IDR.
    pub waiting_for_idr: bool,
    /// Seconds since the camera's last IDR or recovery point. `None` if the server has seen none.
    pub last_idr_age: Option<f64>,
}

impl RecordingReport {
    /// Returns what a recording waits for, as a text for the user. Returns `None` if it does not wait.
    #[must_use]
    pub fn waiting_text(&self) -> Option<String> {
        self.waiting_for_idr.then(|| match self.last_idr_age {
            Some(age_s) => format!("waiting for the camera's next IDR, last one {age_s:.0} s ago"),
            None => "waiting for the camera's first IDR".to_owned(),
        })
    }
}

/// State of the recorder.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecorderState {
    /// No recording is active.
    Idle,
    /// The file of the recording is being created.
    Starting,
    /// Access units are written to the file as the camera publishes them, from the first IDR on.
    Recording,
    /// The units that were published before the stop are being written, or the files are being finished.
    Stopping,
    /// The server was started with --no-recorder. Only `http` reports this state and [`RecorderState::Unresponsive`].
    Off,
    /// The recorder did not answer in time, for example because the disk hangs.
    Unresponsive,
}

/// One file of a recording, an entry of `GET /api/recordings`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecordingInfo {
    /// File name.
    pub name: String,
    /// Bytes that can be downloaded.
    pub bytes: u64,
    /// Duration in seconds. `None` if it is unknown and could only be found by decoding the whole file.
    pub duration: Option<f64>,
    /// Capture time of the first unit, as RFC 3339 text in UTC. `None` if it is unknown.
    pub started_at: Option<String>,
    /// False while the file is being written, and if a crash left it unfinished.
    pub complete: bool,
    /// True if the file was repaired after a crash.
    pub recovered: bool,
    /// True while the file is being written.
    pub recording: bool,
    /// File name of the detection log. `None` if the recording has no boxes.
    pub detections: Option<String>,
    /// Why it was recorded.
    pub kind: RecordingKind,
    /// Classes of the detector that the events of this recording show.
    pub labels: Vec<String>,
    /// The newest events that ended in this recording, the oldest first.
    pub events: Vec<RecordedEvent>,
}

/// Which recordings `GET /api/recordings` lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordingFilter {
    /// Only recordings of this kind.
    pub kind: Option<RecordingKind>,
    /// Only recordings with this class in `labels`.
    pub label: Option<String>,
    /// Only recordings that began on this local day, as year, month and day.
    pub day: Option<(u16, u8, u8)>,
    /// Number of the newest matching recordings that are left out.
    pub offset: usize,
    /// Maximum number of recordings. `None` for all.
    pub limit: Option<usize>,
}

/// Why something was recorded.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingKind {
    /// A request started the recording.
    #[default]
    Manual,
    /// The detector saw something that `--record-on` names.
    Event,
}

/// Something that the detector saw for a while. All times are in seconds of the recording's own time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Class that began the event.
    pub label: String,
    /// All classes that `--record-on` names and that were seen.
    pub labels: Vec<String>,
    /// Time of the first picture that shows one of them.
    pub start: f64,
    /// Time of the last such picture.
    pub end: f64,
    /// Highest confidence, from 0 to 1.
    pub confidence: f64,
    /// Time of the picture with that confidence.
    pub best: f64,
    /// Left, upper edge, width and height of the box in that picture, in pixels of the detector's picture.
    pub best_box: [u32; 4],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_api_name_the_reasons_alike_in_order() {
        for (index, (reason, name)) in EndReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(serde_json::to_value(reason).ok(), Some(serde_json::Value::from(name)));
        }
    }
}
