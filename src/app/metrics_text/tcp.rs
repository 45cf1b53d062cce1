//! Writes the counters of ICE-TCP as Prometheus text.

use crate::app::backend::AppBackend;
use crate::metrics::Exposition;

/// Adds the `tcp_*` metric families to `text`.
pub(super) fn expose(text: &mut Exposition, from: &AppBackend) {
    text.gauge("tcp_viewers", "Connected viewers whose video travels over TCP (ICE-TCP).")
        .value(from.sum(|w| w.viewers_over_tcp.get()));
    text.gauge("tcp_connections", "TCP connections on the port of --udp.")
        .value(from.sum(|w| w.tcp_connections.get()));
    text.counter("tcp_connections_total", "TCP connections accepted.")
        .value(from.sum(|w| w.tcp_accepted.get()));
    text.counter(
        "tcp_connections_refused_total",
        "TCP connections closed: no frame of a session in time, or too many connections.",
    )
    .value(from.sum(|w| w.tcp_refused.get()));
    text.counter("tcp_frames_received_total", "Frames received over TCP.")
        .value(from.sum(|w| w.tcp_frames_received.get()));
    text.counter("tcp_frames_sent_total", "Frames queued for sending over TCP.")
        .value(from.sum(|w| w.tcp_frames_sent.get()));
    text.counter("tcp_frames_dropped_total", "Frames left out because their connection was closed or full.")
        .value(from.sum(|w| w.tcp_frames_dropped.get()));
    text.counter("tcp_sent_bytes_total", "Bytes sent over TCP.").value(from.sum(|w| w.tcp_bytes_sent.get()));
}
