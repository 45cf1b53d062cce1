//! Writes the counters of GOP replays to viewers as Prometheus text.

use crate::app::backend::AppBackend;
use crate::metrics::Exposition;

/// Adds the `gop_*` metric families to `text`.
pub(super) fn expose(text: &mut Exposition, from: &AppBackend) {
    text.counter(
        "gop_replays_total",
        "Replays of the current GOP to a viewer: on join or on request (PLI, FIR).",
    )
    .labelled("reason", "join", from.sum(|w| w.replays_of_joins.get()))
    .labelled("reason", "request", from.sum(|w| w.replays_of_requests.get()));
    text.counter("gop_replayed_units_total", "Access units sent in replays.")
        .value(from.sum(|w| w.units_replayed.get()));
    text.counter("gop_replays_cut_total", "Replays that the camera's next IDR ended early.")
        .value(from.sum(|w| w.replays_cut.get()));
    text.counter("gop_waits_total", "Times that a viewer waited for the camera's next IDR instead.")
        .value(from.sum(|w| w.idr_waits.get()));
    text.counter("gop_missed_total", "GOPs that the camera overwrote before they were saved for replays.")
        .value(from.most(|w| w.gops_missed.get()));
    text.counter("gop_too_large_total", "GOPs too large to be saved for replays.")
        .value(from.most(|w| w.gops_too_large.get()));
    text.gauge("gop_cache_bytes", "Bytes of the newest GOP saved outside the ring, by all workers.")
        .value(from.sum(|w| w.gop_bytes.get()));
}
