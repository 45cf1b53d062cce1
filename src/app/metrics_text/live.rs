//! Writes the counters of HTTP live as Prometheus text.

use crate::live::Live;
use crate::metrics::Exposition;

/// Adds the `http_live_*` metric families to `text`.
pub(super) fn expose(text: &mut Exposition, live: &Live) {
    text.gauge("http_live_viewers", "Viewers of the stream over HTTP.").value(live.viewer_count());
    text.counter("http_live_units_sent_total", "Access units sent over HTTP, counted once per viewer.")
        .value(live.counters().units_sent.get());
    text.counter(
        "http_live_units_dropped_total",
        "Access units that viewers over HTTP skipped because they read too slowly.",
    )
    .value(live.counters().units_dropped.get());
    text.gauge("http_live_held_bytes", "Bytes of access units held for viewers over HTTP.")
        .value(live.held_bytes());
}
