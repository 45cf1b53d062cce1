//! The lease ring between real processes: a server that is stopped, hangs or is killed does not delay the camera.
//! Viewers get the IDRs that they request, and the recorder writes directly from leased slots.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use support::camera::{CameraSim, segment_path, steady, words};
use support::http;
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{unique_shm, wait_until};

/// Stops the camera and returns its log, which ends with the counts of the run.
fn account_of(mut camera: CameraSim) -> String {
    camera.stop();
    wait_until("the camera's account", || camera.log().contains(" units in "));
    camera.log()
}

#[test]
fn stopped_server_delays_neither_camera_nor_other_servers() {
    let shm = unique_shm();
    let camera = CameraSim::start(&shm, &steady("lease"));
    let directory = std::env::temp_dir().join(format!("ss-lease-{}", shm.replace('/', "")));
    let mut slow = Server::start(&shm, &["--record-path", directory.to_str().unwrap()]);
    let server = Server::start(&shm, &[]);
    slow.wait_ready();
    let stalled = ViewerSimulator::connect(slow.http).unwrap_or_else(|r| panic!("{}", r.text()));
    let watching = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    stalled.wait_units(30);
    assert_eq!(http::post_json(slow.http, "/api/recording/start", &json!({ "filename": "x" })).status, 200);
    stalled.wait_more_units(30);
    slow.process.signal(Signal::STOP);
    watching.wait_more_units(75);
    slow.process.signal(Signal::CONT);
    stalled.wait_more_units(60);
    let stopped = http::request(slow.http, "POST", "/api/recording/stop", &[], b"").json();
    assert_eq!(stopped["torn_units"], json!(0), "{stopped}");
    watching.leave().assert_perfect("a viewer of the other server");
    let report = stalled.leave();
    assert_eq!(report.torn + report.duplicated + report.bad_idrs, 0, "{report:?}");
    assert!(slow.metrics().expect("lapped_total") > 0.0, "the server stopped for longer than the ring lasts");
    for server in [&slow, &server] {
        assert_eq!(server.metrics().expect("torn_total"), 0.0);
        assert_eq!(server.metrics().expect("camera_units_dropped_total"), 0.0);
    }
    slow.assert_healthy();
    let account = account_of(camera);
    assert!(account.contains("units/s") && !account.contains("without a slot"), "{account}");
    let _ = std::fs::remove_dir_all(directory);
}

#[test]
fn killed_servers_leave_no_leases() {
    let shm = unique_shm();
    // The GOP is so long that the viewer starts with an IDR that the server requests. Otherwise the camera's next IDR could
    // end the replay of the viewer's first GOP early, and the rest of that GOP would be missing.
    let camera = CameraSim::start(&shm, &words("--layout lease --pattern 320x240 --fps 120 --gop 6000"));
    // The 18 servers are more than a ring has reader numbers, so the numbers of killed servers must be reused.
    for _ in 0..3 {
        let servers: Vec<Server> = (0..6).map(|_| Server::start(&shm, &[])).collect();
        for mut server in servers {
            server.wait_ready();
            server.process.kill();
        }
    }
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(60);
    viewer.leave().assert_perfect("a viewer of the nineteenth server");
    let account = account_of(camera);
    assert!(!account.contains("without a slot"), "{account}");
}

#[test]
fn idr_is_requested_for_a_viewers_pli_and_for_a_late_viewer() {
    let shm = unique_shm();
    // Without a request this camera sends only one IDR per hour.
    let camera = CameraSim::start(
        &shm,
        &words("--layout lease --pattern 640x480 --fps 30 --gop 108000 --bitrate-kbps 1000"),
    );
    wait_until("the camera's ring", || std::path::Path::new(&segment_path(&shm)).exists());
    std::thread::sleep(Duration::from_secs(3)); // wait until the ring no longer holds the first IDR
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let requests = || server.metrics().expect("camera_keyframe_requests_total");
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(30);
    let (idrs, requests_first) = (viewer.report().idrs, requests());
    assert!(idrs >= 1 && requests_first >= 1.0, "{idrs} IDRs, {requests_first} requests");

    std::thread::sleep(Duration::from_millis(600)); // the server requests at most two IDRs per second
    viewer.request_idr();
    // The viewer first gets the current GOP again, and then the new IDR from the camera.
    wait_until("the requested IDR", || viewer.report().idrs > idrs && requests() > requests_first);
    viewer.wait_more_units(45);

    let requests_before = requests();
    let late = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    late.wait_units(30);
    assert!(requests() > requests_before, "the viewer joined late in the GOP");
    for report in [viewer.leave(), late.leave()] {
        assert_eq!(report.torn + report.bad_idrs + report.unstamped, 0, "{report:?}");
        assert!(!report.began_without_idr, "{report:?}");
    }
    let account = account_of(camera);
    assert!(account.contains("IDRs requested"), "{account}");
}

#[test]
fn server_started_in_mid_gop_shows_it_from_its_idr() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &words("--layout v3 --pattern 320x240 --fps 2 --gop 1200"));
    wait_until("the camera's ring", || std::path::Path::new(&segment_path(&shm)).exists());
    // Wait until the camera has published a few units of a GOP of ten minutes.
    std::thread::sleep(Duration::from_millis(1_500));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(8);
    let report = viewer.leave();
    report.assert_perfect("a viewer of a GOP whose IDR is older than the server");
    assert_eq!((report.first_unit, report.idrs), (Some(0), 1));
}

#[test]
fn misbehaving_camera_on_a_lease_ring_shows_no_torn_unit() {
    let shm = unique_shm();
    let camera = CameraSim::start(
        &shm,
        &words("--layout lease --pattern 640x480 --fps 60 --gop 30 --tear 2:3000 --burst 40:8 --lie 50"),
    );
    let mut server = Server::start(&shm, &[]);
    server.wait_ready();
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(200);
    let report = viewer.leave();
    assert_eq!(report.duplicated + report.reordered + report.bad_idrs, 0, "{report:?}");
    assert_eq!(server.metrics().expect("torn_total"), 0.0, "a lease ring publishes only complete units");
    server.assert_healthy();
    let account = account_of(camera);
    assert!(
        account.contains(" torn") && account.contains(" malformed"),
        "the camera misbehaved as configured: {account}"
    );
}

/// Prints CPU use and latencies of a server, by turns on a v3 ring and on a lease ring. Run it on a quiet machine:
/// `cargo test --release --test promises lease_ring_and_v3_in_turn -- --ignored --nocapture`.
#[test]
#[ignore = "measures only, has no assertion"]
fn lease_ring_and_v3_in_turn() {
    const ROUNDS: usize = 6;
    const VIEWERS: usize = 4;
    for round in 0..2 * ROUNDS {
        let layout = if (round + round / 2) % 2 == 0 { "v3" } else { "lease" };
        let shm = unique_shm();
        let _camera = CameraSim::start(&shm, &steady(layout));
        let server = Server::start(&shm, &[]);
        server.wait_ready();
        let viewers = ViewerSimulator::crowd(server.http, VIEWERS);
        let cpu = || server.metrics().expect("process_cpu_seconds_total");
        let before = cpu();
        std::thread::sleep(Duration::from_secs(8));
        let share = 100.0 * (cpu() - before) / 8.0;
        let metrics = server.metrics();
        let stage = |stage: &str, percentile: &str| {
            let labels = [("stage", stage), ("percentile", percentile)];
            1e6 * metrics.value("stage_latency_percentile_seconds", &labels).unwrap_or(f64::NAN)
        };
        let mut arrived: Vec<i64> =
            viewers.into_iter().flat_map(|viewer| viewer.leave().latencies_ns).collect();
        arrived.sort_unstable();
        let at = |fraction: f64| arrived[((arrived.len() - 1) as f64 * fraction) as usize] / 1000;
        eprintln!(
            "{layout:5}  CPU {share:5.2} %  published to last datagram p50 {} us, p90 {} us, p99 {} us; captured to \
             seen p50 {:.0} us, p99 {:.0} us; seen to packetised p50 {:.0} us, p99 {:.0} us",
            at(0.5),
            at(0.9),
            at(0.99),
            stage("captured_to_seen", "50"),
            stage("captured_to_seen", "99"),
            stage("seen_to_packetised", "50"),
            stage("seen_to_packetised", "99"),
        );
    }
}
