//! The machine works against the server: the ring is truncated, a signal reports a fault, the log is not read.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::process::Signal;
use support::camera::{CameraSim, segment_path, words};
use support::server::{Server, loopback};
use support::stuck::StuckLog;
use support::viewer::ViewerSimulator;
use support::{http, unique_shm, wait_until};

const CONTROL: &[&str] = &["--control", "127.0.0.1:0"];

/// A directory for recordings that is removed on drop.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("ss-machine{}", unique_shm().replace('/', "-")));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn small(layout: &str) -> Vec<String> {
    words(&format!("--layout {layout} --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30"))
}

fn connect(server: &Server) -> ViewerSimulator {
    ViewerSimulator::connect(server.http).unwrap_or_else(|refused| panic!("{}", refused.text()))
}

/// Truncates the ring under a server that streams and records. The server must then follow a new ring.
fn truncated_ring_is_survived(layout: &str, control: &[&str], is_camera_first: bool) {
    let (shm, directory) = (unique_shm(), Directory::new());
    let start = |shm: &str| CameraSim::start(shm, &small(layout));
    let mut camera = is_camera_first.then(|| start(&shm));
    let mut server = Server::start(&shm, &[&["--record-path", directory.path()], control].concat());
    let camera = camera.get_or_insert_with(|| start(&shm));
    server.wait_ready();
    let viewer = connect(&server);
    viewer.wait_units(10);
    assert_eq!(http::request(server.http, "POST", "/api/recording/start", &[], b"").status, 200);
    viewer.wait_more_units(10);
    std::fs::File::options().write(true).open(segment_path(&shm)).unwrap().set_len(0).unwrap();
    wait_until("503 on /ready", || server.get("/ready").status == 503);
    camera.remove_segment();
    camera.restart(&small(layout));
    viewer.wait_more_units(40);
    let stopped = http::request(server.http, "POST", "/api/recording/stop", &[], b"");
    assert_eq!(stopped.status, 200, "the recorder does not hang: {}", stopped.text());
    assert!(viewer.report().connected);
    server.assert_healthy();
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
}

#[test]
fn ring_truncated_under_the_server_is_followed_by_a_new_one() {
    for layout in ["v1", "lease"] {
        for is_camera_first in [true, false] {
            truncated_ring_is_survived(layout, CONTROL, is_camera_first);
        }
    }
    truncated_ring_is_survived("v3-6", &[], true);
}

#[test]
fn signal_of_a_fault_ends_the_process_with_a_message() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &small("v1"));
    for (signal, control) in
        [(Signal::SEGV, CONTROL), (Signal::BUS, CONTROL), (Signal::SEGV, &[]), (Signal::BUS, &[])]
    {
        let mut server = Server::start(&shm, control);
        server.wait_ready();
        server.process.signal(signal);
        let status = server.process.wait_exit(Duration::from_secs(60));
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
        wait_until("the message", || server.process.log().contains("streaming-server ends: SIG"));
    }
    let (mut server, mut log) = StuckLog::spawn(&mut loopback(&shm, CONTROL));
    log.fill();
    server.process.signal(Signal::SEGV);
    let status = server.process.wait_exit(Duration::from_secs(60));
    assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()), "{status}");
}

#[test]
fn unread_log_stops_nothing_and_what_was_dropped_is_said() {
    let shm = unique_shm();
    let (mut server, mut log) = StuckLog::spawn(&mut loopback(&shm, &[]));
    log.fill();
    // Each refused recording is logged. Many of them fill the queue.
    let refuse =
        || assert_eq!(http::request(server.http, "POST", "/api/recording/start", &[], b"").status, 503);
    let dropped = || server.metrics().expect("log_lines_dropped_total");
    wait_until("dropped lines", || {
        (0..200).for_each(|_| refuse());
        dropped() > 0.0
    });
    let _camera = CameraSim::start(&shm, &small("v1"));
    server.wait_ready();
    let viewers = ViewerSimulator::crowd(server.http, 3);
    viewers.iter().for_each(|viewer| viewer.wait_units(30));
    let reported = log.read_to("log lines were dropped");
    assert!(reported.starts_with("WARN "), "{reported}");
    log.fill();
    let viewer = connect(&server);
    viewer.wait_units(30);
    assert_eq!(server.terminate(), Some(0));
    viewers.iter().for_each(|viewer| wait_until("the close_notify", || viewer.report().got_close_notify));
}
