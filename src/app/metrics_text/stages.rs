//! Stage latencies and statistics of every viewer as Prometheus text.

use std::sync::Arc;

use crate::base::histogram::LatencySummary;
use crate::base::limits::STAGE_BUCKETS_US;
use crate::metrics::exposition::Seconds;
use crate::metrics::stages::{Stage, StageTotals, summarise};
use crate::metrics::{Exposition, ViewerFigures, WorkerCounters};

/// Percentiles in addition to the buckets, within 1 %, since the start.
const PERCENTILES: [(&str, f64); 3] = [("50", 0.5), ("99", 0.99), ("99.9", 0.999)];

/// Adds the latency and `viewer_*` families.
pub(super) fn expose(text: &mut Exposition, workers: &[Arc<WorkerCounters>]) {
    let stages = summarise(workers.iter().map(|worker| &worker.stages));
    histograms(text, &stages);
    percentiles(text, &stages);
    latest(text, workers);
    viewers(text, workers);
}

fn histograms(text: &mut Exposition, stages: &[(Stage, LatencySummary)]) {
    text.histogram("stage_latency_seconds", "Time of an access unit from one stage to the next.");
    for (stage, latencies) in stages {
        let label = format!("stage=\"{}\",", stage.name());
        let buckets = STAGE_BUCKETS_US.into_iter().zip(latencies.buckets(&STAGE_BUCKETS_US));
        text.distribution(&label, buckets, latencies.count(), latencies.sum_ns());
    }
}

fn percentiles(text: &mut Exposition, stages: &[(Stage, LatencySummary)]) {
    text.gauge(
        "stage_latency_percentile_seconds",
        "Percentiles of stage_latency_seconds since the start, within 1 %.",
    );
    for (stage, latencies) in stages {
        for (name, share) in PERCENTILES {
            if let Some(latency_ns) = latencies.quantile_ns(share) {
                let labels = [("stage", stage.name()), ("percentile", name)];
                text.with_labels(&labels, &Seconds(latency_ns));
            }
        }
    }
}

/// The latency gauges of the Go server.
fn latest(text: &mut Exposition, workers: &[Arc<WorkerCounters>]) {
    let slowest_us = |get: fn(&StageTotals) -> u64| {
        workers.iter().map(|worker| get(&worker.stages)).max().unwrap_or(0) / 1_000
    };
    text.gauge(
        "latency_microseconds",
        "Latest latency: capture to wake-up (read), packetising (process), sending (send).",
    )
    .labelled("stage", "read", slowest_us(|stages| stages.latest_read_ns.get()))
    .labelled("stage", "process", slowest_us(|stages| stages.latest_process_ns.get()))
    .labelled("stage", "send", slowest_us(|stages| stages.latest_send_ns.get()));
}

fn viewers(text: &mut Exposition, workers: &[Arc<WorkerCounters>]) {
    let all: Vec<ViewerFigures> = workers.iter().flat_map(|worker| worker.viewer_figures.get()).collect();
    let family = |text: &mut Exposition, get: fn(&ViewerFigures) -> Option<f32>| {
        for figures in &all {
            if let Some(value) = get(figures) {
                text.labelled("viewer", &figures.id.to_string(), value);
            }
        }
    };
    text.gauge("viewer_loss_ratio", "Share of packets lost, from the viewer's latest report.");
    family(text, |figures| figures.loss_ratio);
    text.gauge("viewer_rtt_seconds", "Round trip to the viewer.");
    family(text, |figures| figures.rtt_s);
    text.gauge("viewer_jitter_seconds", "Jitter of the packets' arrival at the viewer.");
    family(text, |figures| figures.jitter_s);
    text.gauge("viewer_first_idr_seconds", "Time from the viewer's offer to the first IDR sent to it.");
    family(text, |figures| figures.first_idr_s);
    let count = |text: &mut Exposition, get: fn(&ViewerFigures) -> u64| {
        for figures in &all {
            text.labelled("viewer", &figures.id.to_string(), get(figures));
        }
    };
    text.counter("viewer_drops_total", "Access units not sent to the viewer.");
    count(text, |figures| figures.drops);
    text.counter("viewer_nacks_total", "NACK messages of the viewer.");
    count(text, |figures| figures.nacks);
    text.counter("viewer_plis_total", "PLI and FIR messages of the viewer.");
    count(text, |figures| figures.plis);
}
