//! No torn picture: a camera publishes a thousand units per second and overwrites units while the server reads them.
//! The server drops and counts such units, and no viewer receives a part of one.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, words};
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{test_seconds, unique_shm};

/// Runs two viewers with a camera that misbehaves as the options in `pace` say. Asserts that no torn unit arrives at a
/// viewer and that the server counts missing units. Returns how many units the server dropped.
fn assert_no_torn_units(layout: &str, pace: &str) -> f64 {
    let shm = unique_shm();
    let line = format!("--layout {layout} --pattern 640x480 --bitrate-kbps 16000 --gop 30 {pace}");
    let _camera = CameraSim::start(&shm, &words(&line));
    let mut server = Server::start(&shm, &[]);
    let viewers = ViewerSimulator::crowd(server.http, 2);
    std::thread::sleep(Duration::from_secs(test_seconds()));
    let metrics = server.metrics();
    let reports: Vec<_> = viewers.into_iter().map(ViewerSimulator::leave).collect();
    let count = |name: &str| metrics.value(name, &[]).unwrap_or(0.0);
    let dropped = count("torn_total") + count("lapped_total") + count("rejected_slots_total");
    for report in &reports {
        let counts = support::account::Report { latencies_ns: Vec::new(), ..report.clone() };
        eprintln!("{layout} {pace}: dropped {dropped} (torn {}), {counts:?}", count("torn_total"));
        assert_eq!(report.torn, 0, "{layout}: torn units reached a viewer");
        assert_eq!(report.duplicated + report.reordered + report.bad_idrs, 0, "{layout}");
        assert!(!report.began_without_idr);
        // A viewer also misses units if an IDR arrives during its replay and ends the replay early. The server counts
        // such replays separately.
        let cut = count("gop_replays_cut_total");
        assert!(report.missing == 0 || dropped + cut > 0.0, "{layout}: units are missing but not counted");
    }
    server.assert_healthy();
    dropped
}

/// Options of a camera that publishes a thousand units per second. It pauses for 300 us in the middle of every seventh
/// unit, so a reader without checks would read torn units.
const FAST: &str = "--fps 1000 --tear 7";
/// Options of a camera that writes units at memory speed, so the ring wraps many times while a reader reads one slot.
const FLAT_OUT: &str = "--flat-out --tear 10:50";

#[test]
fn tearing_camera_on_v0_shows_no_torn_unit() {
    assert_no_torn_units("v0", FAST);
}

#[test]
fn tearing_camera_on_v1_shows_no_torn_unit() {
    assert_no_torn_units("v1", FAST);
}

#[test]
fn tearing_camera_on_v3_with_six_slots_shows_no_torn_unit() {
    assert_no_torn_units("v3-6", FAST);
}

#[test]
fn lapping_camera_shows_no_torn_unit_and_drops_are_counted() {
    for layout in ["v0", "v1", "v3", "v3-6"] {
        let dropped = assert_no_torn_units(layout, FLAT_OUT);
        assert!(dropped > 0.0, "{layout}: no reader keeps up with this camera, so drops must be counted");
    }
}
