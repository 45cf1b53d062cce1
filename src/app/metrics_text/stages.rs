//! Writes the latencies of the stages and the statistics of every viewer as Prometheus text.

use std::sync::Arc;
use std::time::Duration;

use crate::base::histogram::LatencySummary;
use crate::base::limits::STAGE_BUCKETS_US;
use crate::metrics::exposition::Seconds;
use crate::metrics::stages::{Stage, StageTotals, summarise};
use crate::metrics::status::ViewerStatus;
use crate::metrics::{Exposition, WorkerCounters};

/// Percentiles that are reported in addition to the histogram's buckets: the label, and the percentile as a fraction.
/// The values cover the time since the start and are exact within 1 %.
const PERCENTILES: [(&str, f64); 3] = [("50", 0.5), ("99", 0.99), ("99.9", 0.999)];

/// Adds the metric families of the latencies and the `viewer_*` families to `text`.
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

/// Adds the latency gauges that the earlier Go server had. Each shows the latest value of the slowest worker.
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
    let all: Vec<ViewerStatus> = workers
        .iter()
        .flat_map(|worker| worker.viewer_statuses.get())
        .filter(|status| !status.is_publisher)
        .collect();
    let family = |text: &mut Exposition, get: fn(&ViewerStatus) -> Option<f32>| {
        for status in &all {
            if let Some(value) = get(status) {
                text.labelled("viewer", &status.id.to_string(), value);
            }
        }
    };
    text.gauge("viewer_loss_ratio", "Share of packets lost, from the viewer's latest report.");
    family(text, |status| status.loss_fraction);
    text.gauge("viewer_rtt_seconds", "Round trip to the viewer.");
    family(text, |status| status.rtt_ms.map(|rtt_ms| rtt_ms / 1e3));
    text.gauge("viewer_jitter_seconds", "Jitter of the packets' arrival at the viewer.");
    family(text, |status| status.jitter_ms.map(|jitter_ms| jitter_ms / 1e3));
    text.gauge(
        "viewer_link_bytes_per_second",
        "Estimate of what the viewer's link carries, while it is paced.",
    );
    family(text, |status| status.link_kbps.map(|kbps| kbps as f32 * 125.0));
    text.gauge("viewer_first_idr_seconds", "Time from the viewer's offer to the first IDR sent to it.");
    family(text, |status| status.first_idr_ms.map(|ms| Duration::from_millis(ms).as_secs_f32()));
    let count = |text: &mut Exposition, get: fn(&ViewerStatus) -> u64| {
        for status in &all {
            text.labelled("viewer", &status.id.to_string(), get(status));
        }
    };
    text.counter("viewer_drops_total", "Access units not sent to the viewer.");
    count(text, |status| status.units_dropped);
    text.counter("viewer_thinned_total", "Access units left out because the viewer's link is too slow.");
    count(text, |status| status.units_thinned);
    text.counter("viewer_resends_refused_total", "Requested packets that were not sent again.");
    count(text, |status| status.retransmits_refused);
    text.gauge("viewer_paced", "1 if what is sent to the viewer is spread out, else 0.");
    count(text, |status| status.paced.into());
    text.counter("viewer_nacks_total", "NACK messages of the viewer.");
    count(text, |status| status.nacks);
    text.counter("viewer_plis_total", "PLI and FIR messages of the viewer.");
    count(text, |status| status.plis);
}
