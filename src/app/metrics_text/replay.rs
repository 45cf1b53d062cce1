//! GOP replays to viewers as Prometheus text.

use std::sync::Arc;

use crate::metrics::{Exposition, WorkerCounters};

/// Adds the `gop_*` families.
pub(super) fn expose(text: &mut Exposition, workers: &[Arc<WorkerCounters>]) {
    let sum = |get: fn(&WorkerCounters) -> u64| workers.iter().map(|worker| get(worker)).sum::<u64>();
    text.counter(
        "gop_replays_total",
        "Replays of the current GOP to a viewer: on join or on request (PLI, FIR).",
    )
    .labelled("reason", "join", sum(|w| w.replays_of_joins.get()))
    .labelled("reason", "request", sum(|w| w.replays_of_requests.get()));
    text.counter("gop_replayed_units_total", "Access units sent in replays.")
        .value(sum(|w| w.units_replayed.get()));
    text.counter("gop_replays_cut_total", "Replays that the camera's next IDR ended early.")
        .value(sum(|w| w.replays_cut.get()));
    text.counter("gop_waits_total", "Times that a viewer waited for the camera's next IDR instead.")
        .value(sum(|w| w.idr_waits.get()));
    text.counter("gop_missed_total", "GOPs that the camera overwrote before they were saved for replays.")
        .value(workers.iter().map(|w| w.gops_missed.get()).max().unwrap_or(0));
    text.counter("gop_too_large_total", "GOPs too large to be saved for replays.")
        .value(workers.iter().map(|w| w.gops_too_large.get()).max().unwrap_or(0));
    text.gauge("gop_cache_bytes", "Bytes of the newest GOP saved outside the ring, by all workers.")
        .value(sum(|w| w.gop_bytes.get()));
}
