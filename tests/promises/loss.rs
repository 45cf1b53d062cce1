//! On a bad network, with 5 % loss each way and a round trip of 30 ms, retransmission repairs the pictures.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, words};
use support::relay::{LossyRelay, Weather, rewrite_answer};
use support::server::Server;
use support::viewer::Offer;
use support::{test_seconds, unique_shm, wait_until};

fn watch_through(kbps: u32, weather: Weather) -> (support::account::Report, support::metrics::Metrics, u64) {
    let shm = unique_shm();
    let line = format!("--layout v1 --pattern 1280x720 --fps 30 --bitrate-kbps {kbps} --gop 30");
    let _camera = CameraSim::start(&shm, &words(&line));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let offer = Offer::create();
    let answer = offer.post(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    let relay = LossyRelay::start(server.udp, weather);
    let viewer = offer.watch(&rewrite_answer(&answer, relay.address));
    viewer.wait_units(1);
    std::thread::sleep(Duration::from_secs(test_seconds()));
    viewer.wait_units((test_seconds() * 30).saturating_sub(10));
    let metrics = server.metrics();
    (viewer.leave(), metrics, relay.lost())
}

#[test]
fn five_percent_loss_is_repaired_by_retransmission() {
    // str0m requests a lost packet up to five times, a round trip apart, but only while it is among the last 100
    // packets. At 1.5 Mbit/s, 100 packets take half a second to send, even if an IDR is among them. That is enough time
    // for all five requests. At 4 Mbit/s, the many packets of an IDR would leave time for one or two requests only.
    let (report, metrics, lost) = watch_through(
        1_500,
        Weather { seed: 42, loss_percent: 5.0, delay: Duration::from_millis(15), reorder_percent: 0.0 },
    );
    assert!(lost > 50, "the relay lost only {lost} datagrams");
    assert!(metrics.expect("nacks_total") > 0.0);
    assert!(metrics.expect("retransmits_total") > 0.0);
    assert_eq!(report.torn + report.duplicated + report.reordered, 0, "{report:?}");
    // A request and its retransmission can be lost too, so one try succeeds with a probability of 0.95 squared. After
    // five tries one lost packet in 100,000 is still missing.
    assert!(report.missing <= 1, "missing {} of {}", report.missing, report.units);
}

#[test]
fn reordering_alone_loses_no_unit() {
    let (report, _, _) = watch_through(
        4_000,
        Weather { seed: 43, loss_percent: 0.0, delay: Duration::from_millis(5), reorder_percent: 2.0 },
    );
    assert_eq!(report.missing + report.torn + report.duplicated + report.reordered, 0, "{report:?}");
}

#[test]
fn idr_request_of_a_viewer_is_counted() {
    let shm = unique_shm();
    let line = "--layout v1 --pattern 640x480 --fps 30 --bitrate-kbps 1000 --gop 30";
    let _camera = CameraSim::start(&shm, &words(line));
    let server = Server::start(&shm, &[]);
    let viewer =
        support::viewer::ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(10);
    viewer.request_idr();
    wait_until("the PLI is counted", || {
        server.metrics().value("keyframe_requests_total", &[]).unwrap_or(0.0) > 0.0
    });
    viewer.wait_more_units(40);
    assert_eq!(viewer.leave().torn, 0);
}
