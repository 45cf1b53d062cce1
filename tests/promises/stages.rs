//! Latency and viewer metrics: every stage and every `viewer_*` metric changes when it should. The values agree with
//! each other and with what viewers measure.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, steady, words};
use support::metrics::Metrics;
use support::relay::{LossyRelay, Weather, rewrite_answer};
use support::server::Server;
use support::viewer::{Offer, ViewerSimulator};
use support::{test_seconds, unique_shm, wait_for, wait_until};

const STAGES: [&str; 6] = [
    "captured_to_seen",
    "seen_to_packetised",
    "packetised_to_encrypted",
    "encrypted_to_submitted",
    "submitted_to_sent",
    "captured_to_sent",
];

fn stage(metrics: &Metrics, what: &str, stage: &str) -> f64 {
    metrics
        .value(&format!("stage_latency_seconds_{what}"), &[("stage", stage)])
        .unwrap_or_else(|| panic!("no {what} of {stage}"))
}

fn percentile(metrics: &Metrics, stage: &str, percentile: &str) -> f64 {
    let labels = [("stage", stage), ("percentile", percentile)];
    metrics.value("stage_latency_percentile_seconds", &labels).unwrap()
}

#[test]
fn every_stage_counts_the_units_of_every_viewer() {
    const VIEWERS: usize = 10;
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v3"));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let viewers = ViewerSimulator::crowd(server.http, VIEWERS);
    viewers.iter().for_each(|viewer| viewer.wait_units(test_seconds() * 30));
    let reports: Vec<_> = viewers.into_iter().map(ViewerSimulator::leave).collect();
    let units: u64 = reports.iter().map(|report| report.units).sum();
    // The worker publishes its histograms about twice a second. It does not time the units that it replays to joining
    // viewers, because they are old.
    let metrics = wait_for("the histograms of the last units", || {
        let metrics = server.metrics();
        let live = units as f64 - metrics.expect("gop_replayed_units_total");
        (stage(&metrics, "count", "captured_to_sent") >= live).then_some(metrics)
    });
    for name in STAGES {
        assert!(stage(&metrics, "count", name) > 0.0 && stage(&metrics, "sum", name) > 0.0, "{name}");
        let (p50, p99) = (percentile(&metrics, name, "50"), percentile(&metrics, name, "99"));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= percentile(&metrics, name, "99.9"), "{name}: {p50} {p99}");
        eprintln!("{name}: p50 {:.0} us, p99 {:.0} us (not a gate)", p50 * 1e6, p99 * 1e6);
    }
    // These stages count each unit once per viewer. At most one unit per viewer was still being sent when the viewer
    // left.
    let per_viewer = ["packetised_to_encrypted", "encrypted_to_submitted", "submitted_to_sent"];
    let counts = per_viewer.map(|name| stage(&metrics, "count", name));
    assert!(counts[0] >= counts[2] && counts[2] + VIEWERS as f64 >= counts[0], "{counts:?}");
    // The time from capture to sent includes the time from submitted to sent, so its sum is at least as large.
    assert!(stage(&metrics, "sum", "captured_to_sent") >= stage(&metrics, "sum", "submitted_to_sent"));
    for name in ["read", "process", "send"] {
        assert!(metrics.value("latency_microseconds", &[("stage", name)]).unwrap() > 0.0, "{name}");
    }
    eprintln!(
        "a viewer saw published -> received p50 {} us, p99 {} us (not a gate)",
        reports[0].latency_ns(0.5) / 1000,
        reports[0].latency_ns(0.99) / 1000
    );
}

#[test]
fn buckets_are_cumulative_up_to_the_count() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v1"));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(30);
    let metrics = wait_for("a first publication", || {
        Some(server.metrics()).filter(|m| stage(m, "count", STAGES[5]) > 0.0)
    });
    for name in STAGES {
        let bucket =
            |le: &str| metrics.value("stage_latency_seconds_bucket", &[("stage", name), ("le", le)]).unwrap();
        let counts = ["0.00002", "0.0005", "0.005", "0.05", "1.0", "+Inf"].map(bucket);
        assert!(counts.is_sorted(), "{name}: {counts:?}");
        assert_eq!(counts[5], stage(&metrics, "count", name));
    }
}

#[test]
fn lossy_viewer_changes_only_its_own_metrics_which_end_with_it() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &words("--layout v1 --pattern 640x480 --bitrate-kbps 4000"));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let offer = Offer::create();
    let answer = offer.post(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    let weather =
        Weather { seed: 3, loss_percent: 6.0, delay: Duration::from_millis(10), reorder_percent: 0.0 };
    let relay = LossyRelay::start(server.udp, weather);
    let viewer = offer.watch(&rewrite_answer(&answer, relay.address));
    viewer.wait_units(30);
    let viewers = server.viewers();
    assert!(viewers[0]["first_idr_ms"].as_u64().is_some(), "{viewers:?}");
    let id = server.viewers()[0]["id"].to_string();
    for name in [
        "viewer_loss_ratio",
        "viewer_rtt_seconds",
        "viewer_jitter_seconds",
        "viewer_nacks_total",
        "viewer_plis_total",
        "viewer_first_idr_seconds",
    ] {
        wait_until(&format!("{name} above 0"), || {
            // The viewer repeats its request in every pass, because the relay may lose one.
            viewer.request_idr();
            server.metrics().value(name, &[("viewer", &id)]).is_some_and(|value| value > 0.0)
        });
    }
    viewer.leave();
    wait_until("the removal of the viewer's metrics", || {
        server.metrics().value("viewer_nacks_total", &[("viewer", &id)]).is_none()
    });
}

#[test]
fn drops_are_counted_per_viewer_and_logged() {
    let shm = unique_shm();
    let line = "--layout v1 --pattern 640x480 --bitrate-kbps 2000 --gop 30 --lie 10";
    let _camera = CameraSim::start(&shm, &words(line));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let _viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    wait_until("drops of the viewer", || {
        server.metrics().value("viewer_drops_total", &[]).is_some_and(|drops| drops > 0.0)
    });
    wait_until("a warning in the log", || server.process.log().contains("% of the access units for viewers"));
}
