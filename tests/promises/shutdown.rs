//! Start and stop: at a stop every session is closed, the exit code is 0, and no file or ring remains. Start-up errors
//! name the cause.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use rustix::process::Signal;
use support::camera::{CameraSim, segment_path, words};
use support::process::Process;
use support::server::{self, Server};
use support::viewer::ViewerSimulator;
use support::{PATIENCE, unique_shm, wait_until};

fn camera(shm: &str) -> CameraSim {
    CameraSim::start(shm, &words("--layout v1 --pattern 640x480 --fps 30 --bitrate-kbps 1000 --gop 30"))
}

fn shared_memory() -> Vec<String> {
    let entries = std::fs::read_dir("/dev/shm").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn closes_sessions(signal: Signal) {
    let shm = unique_shm();
    let _camera = camera(&shm);
    let mut server = Server::start(&shm, &[]);
    let viewers = ViewerSimulator::crowd(server.http, 5);
    server.process.signal(signal);
    let status = server.process.wait_exit(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{}", server.process.log());
    for viewer in &viewers {
        wait_until("the close_notify", || viewer.report().got_close_notify);
    }
    let left: Vec<String> = shared_memory();
    let ours = shm.trim_start_matches('/');
    // The ring belongs to the camera, so it stays. No other shared memory with this test's name may be left.
    assert!(left.iter().filter(|name| name.contains(ours)).all(|name| name == ours), "{left:?}");
    assert!(std::path::Path::new(&segment_path(&shm)).exists(), "the server removed the camera's ring");
}

#[test]
fn sigterm_closes_sessions_and_exits_0() {
    closes_sessions(Signal::TERM);
}

#[test]
fn sigint_closes_sessions_and_exits_0() {
    closes_sessions(Signal::INT);
}

/// The server generates its DTLS certificate in the background after the start, which takes about 40 ms. A stop during
/// that time must also end with exit code 0.
#[test]
fn sigterm_right_after_the_start_exits_0() {
    for _ in 0..40 {
        let mut server = Server::start(&unique_shm(), &[]);
        assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
    }
}

#[test]
fn server_without_camera_and_viewers_stops() {
    let mut server = Server::start(&unique_shm(), &[]);
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
}

#[test]
fn second_signal_stops_at_once() {
    let shm = unique_shm();
    let mut server = Server::start(&shm, &[]);
    server.process.signal(Signal::TERM);
    if server.process.exited().is_none() {
        server.process.signal(Signal::TERM);
    }
    server.process.wait_exit(Duration::from_secs(30));
}

#[test]
fn demo_unlinks_its_ring() {
    let before = shared_memory();
    let mut server = Server::start(&unique_shm(), &["--demo"]);
    server.wait_ready();
    ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text())).wait_units(10);
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
    let id = server.process.id().to_string();
    let left: Vec<String> =
        shared_memory().into_iter().filter(|name| !before.contains(name) && name.contains(&id)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn missing_ring_is_logged_and_waited_for() {
    let shm = unique_shm();
    let mut server = Server::start(&shm, &[]);
    let ready = server.get("/ready");
    assert_eq!(ready.status, 503);
    wait_until("the log names the ring", || server.process.log().contains(&shm));
    server.assert_healthy();
    let _camera = camera(&shm);
    server.wait_ready();
}

fn fails_with(arguments: &[&str], words: &[&str]) {
    let mut command = server::command(&unique_shm(), arguments);
    let mut process = Process::spawn("streaming-server", &mut command);
    let status = process.wait_exit(PATIENCE);
    let log = process.log();
    assert!(!status.success(), "it started:\n{log}");
    assert!(status.code().is_some(), "{status}: a crash is not an error message:\n{log}");
    for word in words {
        assert!(log.contains(word), "no `{word}` in:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn port_in_use_error_names_the_address() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    fails_with(&["--http", &address, "--udp", "127.0.0.1:0"], &[&address, "in use"]);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap().to_string();
    fails_with(&["--http", "127.0.0.1:0", "--udp", &address], &[&address, "cannot open udp", "in use"]);
}

#[test]
fn bad_option_errors_name_the_value() {
    fails_with(&["--no-such-option"], &["no-such-option"]);
    fails_with(&["--http", "nonsense"], &["nonsense"]);
    fails_with(&["--max-viewers", "0"], &["max-viewers"]);
    fails_with(&["--wake", "sometimes"], &["sometimes"]);
    fails_with(&["--config", "/nonexistent/file.toml"], &["/nonexistent/file.toml"]);
}

#[test]
fn help_and_version_exit_0() {
    for (flag, word) in [("--help", "--shm"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let mut command = server::command(&unique_shm(), &[flag]);
        let mut process = Process::spawn("streaming-server", &mut command);
        let status = process.wait_exit(PATIENCE);
        assert!(status.success());
        assert!(process.log().contains(word), "{}", process.log());
    }
}
