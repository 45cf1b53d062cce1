//! The main promise: every published access unit reaches every viewer once, whole and in order, on every ring layout.
//! The tests use real processes and sockets, and a steady camera of 1280x720 at 8 Mbit/s.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, steady};
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{test_seconds, unique_shm};

const VIEWERS: usize = 10;

fn every_viewer_gets_every_unit(layout: &str, server_arguments: &[&str]) {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady(layout));
    let mut server = Server::start(&shm, server_arguments);
    server.wait_ready();
    let viewers = ViewerSimulator::crowd(server.http, VIEWERS);
    let units_due = test_seconds() * 30;
    std::thread::sleep(Duration::from_secs(test_seconds()));
    for viewer in &viewers {
        viewer.wait_units(units_due.saturating_sub(5));
    }
    let reports: Vec<_> = viewers.into_iter().map(ViewerSimulator::leave).collect();
    for (index, report) in reports.iter().enumerate() {
        report.assert_perfect(&format!("{layout}, viewer {index}"));
        assert_eq!(report.size, Some((1280, 720)));
    }
    let first = &reports[0];
    eprintln!(
        "{layout}: {} units each, publish -> last datagram received p50 {} us, p99 {} us (not a gate)",
        first.units,
        first.latency_ns(0.5) / 1000,
        first.latency_ns(0.99) / 1000,
    );
    let metrics = server.metrics();
    assert_eq!(metrics.value("torn_total", &[]).unwrap_or(0.0), 0.0);
    assert_eq!(metrics.value("lapped_total", &[]).unwrap_or(0.0), 0.0);
    assert!(metrics.expect("frames_sent_total") >= (units_due.saturating_sub(5) * VIEWERS as u64) as f64);
    server.assert_healthy();
}

#[test]
fn layout_v0_every_unit_reaches_ten_viewers() {
    every_viewer_gets_every_unit("v0", &[]);
}

#[test]
fn layout_v1_every_unit_reaches_ten_viewers() {
    every_viewer_gets_every_unit("v1", &[]);
}

#[test]
fn layout_v2_every_unit_reaches_ten_viewers() {
    every_viewer_gets_every_unit("v2", &[]);
}

#[test]
fn layout_v3_every_unit_reaches_ten_viewers() {
    every_viewer_gets_every_unit("v3", &[]);
}

#[test]
fn layout_v3_with_six_slots_every_unit_reaches_ten_viewers() {
    every_viewer_gets_every_unit("v3-6", &[]);
}

#[test]
fn layout_lease_every_unit_reaches_ten_viewers() {
    every_viewer_gets_every_unit("lease", &[]);
}

#[test]
fn polled_lease_ring_loses_no_unit() {
    every_viewer_gets_every_unit("lease", &["--wake", "poll"]);
}

#[test]
fn polled_v1_ring_loses_no_unit() {
    every_viewer_gets_every_unit("v1", &["--wake", "poll"]);
}

#[test]
fn two_servers_on_one_ring_lose_no_unit() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v1"));
    let older = Server::start(&shm, &["--wake", "semaphore"]);
    let newer = Server::start(&shm, &["--wake", "poll", "--no-recorder"]);
    let watched = [&older, &newer].map(|server| {
        server.wait_ready();
        ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()))
    });
    std::thread::sleep(Duration::from_secs(test_seconds()));
    for viewer in &watched {
        viewer.wait_units((test_seconds() * 30).saturating_sub(5));
    }
    for (viewer, who) in watched.into_iter().zip(["a viewer of the older", "a viewer of the newer"]) {
        viewer.leave().assert_perfect(who);
    }
    for server in [&older, &newer] {
        assert_eq!(server.metrics().expect("lapped_total"), 0.0);
    }
    let log = older.process.log();
    assert!(!log.contains("wake-ups are unusable"), "the semaphore was taken from the older server:\n{log}");
}

#[test]
fn every_unit_reaches_the_viewers_of_two_workers() {
    every_viewer_gets_every_unit("v3", &["--workers", "2"]);
}

#[test]
fn late_viewer_starts_with_an_idr() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v1"));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(370));
        let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
        viewer.wait_units(20);
        viewer.leave().assert_perfect("late viewer");
    }
}
