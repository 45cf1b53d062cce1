//! What a viewer tells of itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::viewer::{Counters, Phase, Viewer};
use crate::session::media::gate::GateState;
use crate::session::media::sender::SentCounters;

/// Where a viewer's connection stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ViewerState {
    /// ICE and DTLS are not finished.
    Connecting,
    /// Media can be sent.
    Connected,
    /// The goodbye is being sent.
    Closing,
    /// The session is over.
    Closed,
}

/// One viewer as told to the outside; counters since its offer.
#[derive(Clone, Debug)]
pub struct ViewerStatus {
    /// Its number.
    pub id: u32,
    /// Where the connection stands.
    pub state: ViewerState,
    /// Where the gate stands.
    pub gate: GateState,
    /// Where the last authenticated STUN request came from.
    pub remote: Option<SocketAddr>,
    /// SRTP profile agreed on.
    pub profile: Option<String>,
    /// Milliseconds since DTLS finished.
    pub connected_ms: u64,
    /// Milliseconds from the offer to the first IDR sent; `None` until then.
    pub first_idr_ms: Option<u64>,
    /// Access units sent.
    pub units_sent: u64,
    /// Of them, those sent late because the viewer joined, or asked for an IDR, in the middle of a GOP.
    pub units_replayed: u64,
    /// How often it was given the GOP so far.
    pub replays: u64,
    /// Access units held back after the first one was sent.
    pub units_dropped: u64,
    /// How often the viewer dropped to the next IDR.
    pub drops_to_idr: u64,
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Datagrams that were malformed, not authenticated or unexpected.
    pub datagrams_rejected: u64,
    /// NACK messages received.
    pub nacks: u64,
    /// Requests for an IDR received (PLI and FIR).
    pub plis: u64,
    /// Packets sent again.
    pub retransmits: u64,
    /// Packets not sent again: the viewer asked for too many, or for the same again within a round trip.
    pub retransmits_refused: u64,
    /// Packets lost according to the viewer's latest reports, 0 to 1.
    pub loss_fraction: Option<f32>,
    /// Round trip, from the latest report.
    pub rtt_ms: Option<f32>,
    /// Jitter of the arrival times at the viewer.
    pub jitter_ms: Option<f32>,
}

impl Viewer {
    /// How the viewer is doing. What it reports is about a second old.
    pub fn status(&self, now: Instant) -> ViewerStatus {
        let Counters { units_sent, datagrams_rejected, .. } = self.counters;
        let SentCounters { datagrams, bytes: bytes_sent, retransmits } = self.sender.tally;
        let reception = self.sender.reception;
        let connected = self.connected_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        ViewerStatus {
            id: self.id,
            state: match self.phase {
                Phase::Connecting => ViewerState::Connecting,
                Phase::Connected => ViewerState::Connected,
                Phase::Closing(_) => ViewerState::Closing,
                Phase::Closed(_) => ViewerState::Closed,
            },
            gate: self.gate.state(),
            remote: self.heard_from,
            profile: self.profile.map(|profile| profile.to_string()),
            connected_ms: milliseconds(connected),
            first_idr_ms: self.first_idr_at.map(|at| milliseconds(at - self.accepted_at)),
            units_sent,
            units_replayed: self.replays.units,
            replays: self.replays.count,
            units_dropped: self.gate.units_dropped(),
            drops_to_idr: self.gate.drops_to_idr(),
            bytes_sent,
            datagrams,
            datagrams_rejected,
            nacks: reception.nacks,
            plis: reception.idr_requests,
            retransmits,
            retransmits_refused: self.sender.refused(),
            loss_fraction: reception.loss_fraction,
            rtt_ms: self.rtt().map(|rtt| rtt.as_secs_f32() * 1e3),
            jitter_ms: reception.jitter.map(|jitter| jitter as f32 / 90.0),
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
