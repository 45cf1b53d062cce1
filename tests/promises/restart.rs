//! The camera may start late or crash, and return on the same or a new segment with another picture size. Viewers stay
//! connected and see the new picture without a reload.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::net::UdpSocket;
use std::time::Duration;

use rustix::process::Signal;

use support::camera::{CameraSim, steady, words};
use support::process::Process;
use support::server::{self, Server};
use support::viewer::ViewerSimulator;
use support::{unique_shm, wait_until};

fn small(layout: &str) -> Vec<String> {
    words(&format!("--layout {layout} --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30"))
}

fn viewer_survives_restart(
    first: &[String],
    second: &[String],
    removed_between: bool,
    size_after: (u32, u32),
) {
    let shm = unique_shm();
    let mut camera = CameraSim::start(&shm, first);
    let mut server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(20);
    camera.kill();
    if removed_between {
        camera.remove_segment();
    }
    wait_until("/ready returns 503 while the camera is away", || server.get("/ready").status == 503);
    let before = viewer.report();
    camera.restart(second);
    viewer.wait_units(before.units + 40);
    let report = viewer.report();
    assert!(report.connected && !report.ended, "the viewer stayed connected");
    assert_eq!(report.torn + report.duplicated + report.bad_idrs, 0, "{report:?}");
    assert_eq!(report.size, Some(size_after));
    server.wait_ready();
    assert_eq!(server.viewers().len(), 1, "still the same viewer");
    server.assert_healthy();
}

#[test]
fn server_waits_for_the_udp_port_of_a_killed_one() {
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = holder.local_addr().unwrap().to_string();
    let mut command =
        server::command(&unique_shm(), &["--http", "127.0.0.1:0", "--control", "off", "--udp", &udp]);
    let mut process = Process::spawn("streaming-server", &mut command);
    wait_until("the port-in-use message", || process.log().contains("is in use: waiting"));
    drop(holder);
    wait_until("the listening message", || process.after("listening: ").is_some());
    process.signal(Signal::TERM);
    assert_eq!(process.wait_exit(Duration::from_secs(30)).code(), Some(0));
}

#[test]
fn camera_on_a_new_segment_is_followed() {
    viewer_survives_restart(&steady("v1"), &steady("v1"), true, (1280, 720));
}

#[test]
fn camera_with_another_picture_size_is_followed() {
    viewer_survives_restart(&steady("v3"), &small("v3"), true, (640, 480));
}

#[test]
fn camera_with_another_layout_is_followed() {
    viewer_survives_restart(&steady("v1"), &small("v3-6"), true, (640, 480));
}

#[test]
fn camera_with_the_lease_layout_is_followed() {
    viewer_survives_restart(&steady("v1"), &small("lease"), true, (640, 480));
    viewer_survives_restart(&steady("lease"), &small("lease"), false, (640, 480));
}

#[test]
fn camera_that_replaces_its_segment_is_followed() {
    viewer_survives_restart(&small("v2"), &small("v2"), false, (640, 480));
}

fn viewer_survives_repeated_restarts(layout: &str, onto: &str) {
    let shm = unique_shm();
    let mut arguments = small(layout);
    arguments.extend(words(&format!("--restart-every 45:1.5 --restart {onto}")));
    let _camera = CameraSim::start(&shm, &arguments);
    let mut server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(150);
    let report = viewer.report();
    assert!(report.connected && !report.ended, "the viewer stayed connected");
    assert_eq!(report.torn + report.duplicated + report.reordered + report.bad_idrs, 0, "{report:?}");
    server.assert_healthy();
}

#[test]
fn camera_that_continues_in_its_segment_is_followed() {
    viewer_survives_repeated_restarts("v1", "same");
    viewer_survives_repeated_restarts("lease", "same");
}

#[test]
fn camera_that_rewinds_its_segment_is_followed() {
    viewer_survives_repeated_restarts("v1", "rewind");
    viewer_survives_repeated_restarts("v3-6", "rewind");
}

#[test]
fn camera_with_repeated_new_segments_is_followed() {
    viewer_survives_repeated_restarts("v0", "new");
    viewer_survives_repeated_restarts("lease", "new");
}

#[test]
fn picture_size_change_without_restart_is_followed() {
    let shm = unique_shm();
    let mut arguments = small("v1");
    arguments.extend(words("--change-resolution 45:320x240"));
    let _camera = CameraSim::start(&shm, &arguments);
    let server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    for size in [(320, 240), (640, 480), (320, 240)] {
        support::wait_until("the next size", || viewer.report().size == Some(size));
    }
    viewer.leave().assert_perfect("a viewer of two sizes");
}

#[test]
fn camera_that_starts_after_the_viewer_is_seen() {
    let shm = unique_shm();
    let server = Server::start(&shm, &[]);
    assert_eq!(server.get("/ready").status, 503);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    wait_until("the viewer is connected without a camera", || viewer.report().connected);
    std::thread::sleep(Duration::from_millis(500));
    let _camera = CameraSim::start(&shm, &small("v1"));
    viewer.wait_units(20);
    viewer.leave().assert_perfect("early viewer");
}

#[test]
fn viewer_survives_five_camera_crashes() {
    let shm = unique_shm();
    let mut camera = CameraSim::start(&shm, &small("v3"));
    let server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    for _ in 0..5 {
        viewer.wait_more_units(10);
        camera.restart(&small("v3"));
    }
    viewer.wait_more_units(40);
    let report = viewer.leave();
    assert_eq!(report.torn + report.duplicated + report.bad_idrs, 0, "{report:?}");
}
