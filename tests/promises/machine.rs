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
use support::limits::UnitLimits;
use support::process::Process;
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
    let (mut server, mut log) = StuckLog::spawn(&mut loopback(&shm, CONTROL));
    let control = log.lines.iter().find_map(|line| line.split_once("control: http://"));
    let control = control.and_then(|(_, rest)| rest.split('/').next()).unwrap().parse().unwrap();
    log.fill();
    // The library of the control endpoint writes to stderr for each malformed request.
    for _ in 0..10 {
        http::raw(control, &[b"\0\r\n\r\n"]);
    }
    assert_eq!(http::get(control, "/health").status, 200);
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

/// When the server has all threads that the unit permits, everything still works, or is refused with a reason.
#[test]
fn recording_download_and_stop_need_no_new_thread() {
    let Some(limits) = UnitLimits::new() else {
        eprintln!("skipped: this user may not make control groups");
        return;
    };
    let (shm, directory) = (unique_shm(), Directory::new());
    let _camera = CameraSim::start(&shm, &small("v1"));
    let command =
        loopback(&shm, &[&["--record-path", directory.path(), "--retain-days", "1"], CONTROL].concat());
    let mut server = Server::spawn(&mut limits.command(&command));
    server.wait_ready();
    // The preparation of the first session and the repair of recordings end their threads.
    let viewer = connect(&server);
    viewer.wait_units(10);
    wait_until("only permanent threads", || !threads(&server).iter().any(|name| name == "repair"));
    limits.set_tasks_max(limits.tasks());
    let post = |path: &str| http::request(server.http, "POST", path, &[], b"");
    let started = post("/api/recording/start");
    assert_eq!(started.status, 200, "{}", started.text());
    let second = connect(&server);
    second.wait_units(30);
    viewer.wait_more_units(10);
    let stopped = post("/api/recording/stop");
    assert_eq!(stopped.status, 200, "{}", stopped.text());
    assert_eq!((&stopped.json()["kept"], &stopped.json()["dropped_units"]), (&true.into(), &0.into()));
    let listed = server.get("/api/recordings");
    assert_eq!(listed.status, 200, "{}", listed.text());
    let name = listed.json()["recordings"][0]["name"].as_str().unwrap().to_owned();
    let download = server.get(&format!("/api/recordings/{name}"));
    assert_eq!(
        (download.status, download.body.len() as u64),
        (200, stopped.json()["bytes_written"].as_u64().unwrap())
    );
    let deleted = http::request(server.http, "DELETE", &format!("/api/recordings/{name}"), &[], b"");
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    let control = server.process.after("control: http://").unwrap();
    let control = control.split('/').next().unwrap().parse().unwrap();
    http::get(control, "/debug/pprof/heap").assert_error(&[503]);
    viewer.wait_more_units(10);
    for viewer in [viewer, second] {
        viewer.leave().assert_perfect("a viewer of a server without further threads");
    }
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
}

#[test]
fn start_without_enough_threads_ends_with_the_reason_and_the_cure() {
    let Some(limits) = UnitLimits::new() else {
        eprintln!("skipped: this user may not make control groups");
        return;
    };
    let directory = Directory::new();
    let command = loopback(&unique_shm(), &[&["--record-path", directory.path()], CONTROL].concat());
    for tasks_max in 1..64 {
        limits.set_tasks_max(tasks_max);
        let mut process = Process::spawn("streaming-server", &mut limits.command(&command));
        wait_until("the end or the start", || {
            process.exited().is_some() || process.after("listening: ").is_some()
        });
        if process.after("listening: ").is_some() {
            process.signal(Signal::TERM);
            assert_eq!(process.wait_exit(Duration::from_secs(60)).code(), Some(0), "{}", process.log());
            return;
        }
        let status = process.wait_exit(Duration::from_secs(60));
        assert_eq!(status.code(), Some(1), "{tasks_max}: {status}: {}", process.log());
        // The end of the output may arrive after the exit.
        let says = |text: &str| wait_until(&format!("{text}, {tasks_max}"), || process.log().contains(text));
        says("Resource temporarily unavailable");
        if tasks_max > 1 {
            says("raise TasksMax= of the service unit");
        }
    }
    panic!("the server does not start with 63 threads");
}

fn threads(server: &Server) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process.id())).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}
