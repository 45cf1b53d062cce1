//! Builds the snapshot of one viewer that `/api/viewers` and the metrics show.

use std::time::{Duration, Instant};

use crate::metrics::status::{SessionEnd, Via, ViewerState, ViewerStatus, ViewerTransport};
use crate::session::media::sender::SentCounters;
use crate::session::viewer::{Phase, Viewer};

impl Viewer {
    /// Returns a snapshot. Loss, round trip and jitter come from the viewer's reports and are up to a second old.
    pub fn status(&self, now: Instant) -> ViewerStatus {
        let SentCounters { datagrams, bytes: bytes_sent, retransmits } = self.sender.sent;
        let reception = self.sender.reception;
        let connected = self.connected_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        ViewerStatus {
            id: self.id(),
            is_publisher: self.is_publisher(),
            via: Via::WebRtc,
            state: match self.phase {
                Phase::Connecting => ViewerState::Connecting,
                Phase::Connected => ViewerState::Connected,
                Phase::Closing(_) => ViewerState::Closing,
                Phase::Closed(_) => ViewerState::Closed,
            },
            gate: self.gate.state(),
            remote: self.transport.checked_from,
            transport: self.transport.selected().map(|to| match to.connection {
                Some(_) => ViewerTransport::Tcp,
                None => ViewerTransport::Udp,
            }),
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
            link_kbps: self.sender.link_kbps(),
            stream_kbps: self.sender.stream_kbps(),
            paced: self.sender.pacer.is_some(),
            units_thinned: self.units_thinned,
            lag_ms: None,
            loss_fraction: reception.loss_fraction,
            rtt_ms: reception.rtt.map(|rtt| rtt.as_secs_f32() * 1e3),
            jitter_ms: reception.jitter.map(|jitter| jitter as f32 / 90.0),
            glass_ms: None, // the backend adds it: it is reported over HTTP
            ended: self.ended(),
        }
    }

    /// Returns how the session ended, or `None` if it has not ended.
    fn ended(&self) -> Option<SessionEnd> {
        let (Phase::Closing(reason) | Phase::Closed(reason)) = self.phase else { return None };
        let mut detail = match self.is_publisher() {
            true => reason.explain_publishing(),
            false => reason.explain(self.transport.port()),
        };
        if let Some(error) = self.transport.dtls.error() {
            detail = format!("{detail} [{error}]");
        }
        Some(SessionEnd { reason: reason.end_reason(), detail, ms_ago: 0 })
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
