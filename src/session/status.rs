//! The state and counters of one viewer, as `/api/viewers` and the metrics show them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::session::media::gate::GateState;
use crate::session::media::sender::SentCounters;
use crate::session::viewer::{Phase, Viewer};

/// State of a viewer's connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
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

/// Snapshot of one viewer. Counters start at its offer.
#[derive(Clone, Debug)]
pub struct ViewerStatus {
    /// Number of the viewer, unique in the process.
    pub id: u32,
    /// State of the connection.
    pub state: ViewerState,
    /// State of the gate.
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

impl Viewer {
    /// Returns a snapshot. The viewer's own figures are up to a second old.
    pub fn status(&self, now: Instant) -> ViewerStatus {
        let SentCounters { datagrams, bytes: bytes_sent, retransmits } = self.sender.sent;
        let reception = self.sender.reception;
        let connected = self.connected_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        ViewerStatus {
            id: self.id(),
            state: match self.phase {
                Phase::Connecting => ViewerState::Connecting,
                Phase::Connected => ViewerState::Connected,
                Phase::Closing(_) => ViewerState::Closing,
                Phase::Closed(_) => ViewerState::Closed,
            },
            gate: self.gate.state(),
            remote: self.transport.checked_from,
            profile: self.profile.map(|profile| profile.to_string()),
            connected_ms: milliseconds(connected),
            first_idr_ms: self.first_idr_at.map(|at| milliseconds(at - self.accepted_at)),
            units_sent: self.units_sent,
            units_replayed: self.units_replayed,
            replays: self.catch_up.count,
            units_dropped: self.gate.units_dropped(),
            drops_to_idr: self.gate.drops_to_idr(),
            bytes_sent,
            datagrams,
            datagrams_rejected: self.datagrams_rejected,
            nacks: reception.nacks,
            plis: reception.idr_requests,
            retransmits,
            retransmits_refused: self.sender.cache.refused,
            loss_fraction: reception.loss_fraction,
            rtt_ms: reception.rtt.map(|rtt| rtt.as_secs_f32() * 1e3),
            jitter_ms: reception.jitter.map(|jitter| jitter as f32 / 90.0),
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
