//! What joining viewers were given, as Prometheus text. May not decide anything.

use std::sync::Arc;

use crate::metrics::{Exposition, WorkerCounters};

/// Adds the `gop_*` families.
pub(super) fn expose(text: &mut Exposition, workers: &[Arc<WorkerCounters>]) {
    let sum = |get: fn(&WorkerCounters) -> u64| workers.iter().map(|worker| get(worker)).sum::<u64>();
    text.counter(
        "gop_replays_total",
        "Viewers given the GOP so far: when they joined, or on request (PLI, FIR).",
    )
    .labelled("reason", "join", sum(|w| w.replays_of_joins.get()))
    .labelled("reason", "request", sum(|w| w.replays_of_requests.get()));
    text.counter("gop_replayed_units_total", "Access units given to viewers that way.")
        .value(sum(|w| w.units_replayed.get()));
    text.counter(
        "gop_replays_cut_total",
        "Times the camera's next IDR came before the end of the GOP so far: its other units were left out.",
    )
    .value(sum(|w| w.replays_cut.get()));
    text.counter("gop_waits_total", "Times a viewer had to wait for the camera's next IDR instead.")
        .value(sum(|w| w.idr_waits.get()));
    text.counter(
        "gop_missed_total",
        "GOPs overwritten by the camera before they were kept for viewers who join.",
    )
    .value(workers.iter().map(|w| w.gops_missed.get()).max().unwrap_or(0));
    text.counter("gop_too_large_total", "GOPs larger than what is kept for viewers who join.")
        .value(workers.iter().map(|w| w.gops_too_large.get()).max().unwrap_or(0));
    text.gauge("gop_cache_bytes", "Bytes of the newest GOP kept beside the camera's ring, by all workers.")
        .value(sum(|w| w.gop_bytes.get()));
}
