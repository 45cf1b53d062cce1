//! The camera may start late, crash, or return on the same or a new segment in another size: viewers stay connected and get
//! the new picture without a reload.
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

fn survives(first: &[String], second: &[String], removed_between: bool, size_after: (u32, u32)) {
    let shm = unique_shm();
    let mut camera = CameraSim::start(&shm, first);
    let mut server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(20);
    camera.kill();
    if removed_between {
        camera.remove_segment();
    }
    wait_until("503 on /ready while the camera is away", || server.get("/ready").status == 503);
    let before = viewer.report();
    camera.restart(second);
    viewer.wait_units(before.units + 40);
    let report = viewer.report();
    assert!(report.connected && !report.ended, "the viewer must stay connected");
    assert_eq!(report.torn + report.duplicated + report.bad_idrs, 0, "{report:?}");
    assert_eq!(report.size, Some(size_after));
    server.wait_ready();
    assert_eq!(server.viewers().len(), 1, "still the same viewer");
    server.assert_healthy();
}

#[test]
fn a_server_started_right_after_a_killed_one_gets_its_udp_port() {
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = holder.local_addr().unwrap().to_string();
    let mut command =
        server::command(&unique_shm(), &["--http", "127.0.0.1:0", "--control", "off", "--udp", &udp]);
    let mut process = Process::spawn("streaming-server", &mut command);
    wait_until("the message that the port is in use", || process.log().contains("is in use, waiting"));
    drop(holder);
    wait_until("the line `listening: `", || process.after("listening: ").is_some());
    process.signal(Signal::TERM);
    assert_eq!(process.wait_exit(Duration::from_secs(30)).code(), Some(0));
}

#[test]
fn a_camera_that_returns_on_a_new_segment_is_seen() {
    survives(&steady("v1"), &steady("v1"), true, (1280, 720));
}

#[test]
fn a_camera_that_returns_in_another_size_is_seen() {
    survives(&steady("v3"), &small("v3"), true, (640, 480));
}

#[test]
fn a_camera_that_returns_with_another_layout_is_seen() {
    survives(&steady("v1"), &small("v3-6"), true, (640, 480));
}

#[test]
fn a_camera_that_returns_with_the_lease_layout_is_seen() {
    survives(&steady("v1"), &small("lease"), true, (640, 480));
    survives(&steady("lease"), &small("lease"), false, (640, 480));
}

#[test]
fn a_camera_that_replaces_the_segment_without_removing_it_first_is_seen() {
    survives(&small("v2"), &small("v2"), false, (640, 480));
}

fn survives_restarts_in_place(layout: &str, onto: &str) {
    let shm = unique_shm();
    let mut arguments = small(layout);
    arguments.extend(words(&format!("--restart-every 45:1.5 --restart {onto}")));
    let _camera = CameraSim::start(&shm, &arguments);
    let mut server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(150);
    let report = viewer.report();
    assert!(report.connected && !report.ended, "the viewer must stay connected");
    assert_eq!(report.torn + report.duplicated + report.reordered + report.bad_idrs, 0, "{report:?}");
    server.assert_healthy();
}

#[test]
fn a_camera_that_continues_in_the_same_segment_is_seen() {
    survives_restarts_in_place("v1", "same");
    survives_restarts_in_place("lease", "same");
}

#[test]
fn a_camera_that_starts_again_in_the_same_segment_is_seen() {
    survives_restarts_in_place("v1", "rewind");
    survives_restarts_in_place("v3-6", "rewind");
}

#[test]
fn a_camera_that_creates_new_segments_repeatedly_is_seen() {
    survives_restarts_in_place("v0", "new");
    survives_restarts_in_place("lease", "new");
}

#[test]
fn a_camera_that_changes_its_size_on_the_fly_is_seen() {
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
fn a_camera_that_starts_after_the_viewer_is_seen() {
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
fn a_camera_that_dies_five_times_is_seen_five_times() {
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
