//! Writes the metrics of publishing to a WHIP server.

use crate::app::publish::board::PublishBoard;
use crate::app::publish::error::REASONS;
use crate::base::counters::Counter;
use crate::http::PublishState;
use crate::metrics::Exposition;

pub(super) fn expose(text: &mut Exposition, board: &PublishBoard) {
    let status = board.status();
    text.gauge("whip_connected", "1 while the stream is published to the server of --whip.")
        .value(u8::from(status.state == PublishState::Publishing));
    text.counter("whip_attempts_total", "Attempts to publish.").value(board.attempts.get());
    text.counter("whip_sessions_total", "Attempts that led to a connected session.")
        .value(board.sessions.get());
    let failures = text.counter("whip_failures_total", "Failed attempts and ended sessions, by reason.");
    for (count, reason) in board.failures.iter().zip(REASONS) {
        failures.labelled("reason", reason, Counter::get(count));
    }
    let totals = board.totals();
    text.counter("whip_units_sent_total", "Access units published.").value(totals.units_sent);
    text.counter("whip_units_dropped_total", "Access units not published because of congestion or a loss.")
        .value(totals.units_dropped);
    text.counter("whip_sent_bytes_total", "Payload bytes of the datagrams of publishing.")
        .value(totals.bytes_sent);
    text.counter("whip_retransmits_total", "RTP packets retransmitted to the WHIP server.")
        .value(totals.retransmits);
    text.counter("whip_keyframe_requests_total", "PLI and FIR messages of the WHIP server.")
        .value(totals.idr_requests);
}
