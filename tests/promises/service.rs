//! The messages that the server sends to a service manager over a real notify socket: ready, status, watchdog,
//! stopping. When a worker hangs, the watchdog messages end, so that the manager restarts the program.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::camera::{CameraSim, words};
use support::debugger::Stopped;
use support::server::{Server, loopback};
use support::viewer::ViewerSimulator;
use support::{http, unique_shm, wait_for, wait_until};

/// A fake service manager: the receiving end of the notify socket, in a temporary directory.
struct Manager {
    socket: UnixDatagram,
    directory: PathBuf,
    /// All lines received so far.
    received: Vec<String>,
}

/// Watchdog timeout that the fake manager announces, as systemd does for `WatchdogSec=`.
const WATCHDOG: Duration = Duration::from_secs(4);

impl Manager {
    fn new() -> Manager {
        let directory = std::env::temp_dir().join(format!("ss-notify{}", unique_shm().replace('/', "-")));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Manager { socket, directory, received: Vec::new() }
    }

    /// Sets the environment variables with which systemd names its notify socket and the watchdog timeout.
    fn introduce(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", self.directory.join("notify"));
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()).env_remove("WATCHDOG_PID");
    }

    /// Receives all waiting messages. Returns every line received so far.
    fn receive(&mut self) -> &[String] {
        let mut buffer = [0; 4_096];
        while let Ok(bytes) = self.socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            self.received.extend(message.lines().map(str::to_owned));
        }
        &self.received
    }

    /// Returns the number of watchdog messages received so far.
    fn watchdog_messages(&mut self) -> usize {
        self.receive().iter().filter(|line| *line == "WATCHDOG=1").count()
    }

    /// Waits until a received line contains all `parts`.
    fn wait_line(&mut self, parts: &[&str]) {
        wait_until(&format!("a line with {parts:?}, received only {:?}", self.received.clone()), || {
            self.receive().iter().any(|line| parts.iter().all(|part| line.contains(part)))
        });
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn camera(shm: &str) -> CameraSim {
    CameraSim::start(shm, &words("--layout v1 --pattern 640x480 --fps 30 --bitrate-kbps 1000 --gop 30"))
}

#[test]
fn manager_receives_ready_status_watchdog_and_stopping() {
    let shm = unique_shm();
    let mut manager = Manager::new();
    let recordings = manager.directory.join("recordings");
    let mut command = loopback(&shm, &["--record-path", recordings.to_str().unwrap()]);
    manager.introduce(&mut command);
    let mut server = Server::spawn(&mut command);
    manager.wait_line(&["READY=1"]);
    assert_eq!(server.get("/health").status, 200, "READY=1 was sent before the server answered requests");
    manager.wait_line(&["STATUS=camera away", "viewers 0", "not recording"]);
    let _camera = camera(&shm);
    manager.wait_line(&["STATUS=camera live 640x480"]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    manager.wait_line(&["viewers 1"]);
    assert_eq!(http::request(server.http, "POST", "/api/recording/start", &[], b"").status, 200);
    manager.wait_line(&["viewers 1, recording"]);
    let before = manager.watchdog_messages();
    wait_until("three more watchdog messages", || manager.watchdog_messages() >= before + 3);
    drop(viewer);
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
    manager.wait_line(&["STOPPING=1"]);
    assert!(!manager.received.iter().any(|line| line.contains("is stuck")), "{:?}", manager.received);
}

#[test]
fn hanging_worker_ends_the_watchdog_messages() {
    let shm = unique_shm();
    let mut manager = Manager::new();
    let _camera = camera(&shm);
    let mut command = loopback(&shm, &["--no-recorder"]);
    manager.introduce(&mut command);
    let mut server = Server::spawn(&mut command);
    wait_until("two watchdog messages", || manager.watchdog_messages() >= 2);
    let worker = Stopped::thread(server.process.id(), "worker-0");
    manager.wait_line(&["STATUS=worker 0 is stuck"]);
    let last = manager.watchdog_messages();
    std::thread::sleep(WATCHDOG + WATCHDOG / 2);
    assert_eq!(manager.watchdog_messages(), last, "a watchdog message although a worker hangs");
    assert!(server.process.log().contains("worker 0 is stuck"), "{}", server.process.log());
    assert_eq!(server.get("/health").status, 200, "only the worker hangs, HTTP still answers");
    assert!(server.process.exited().is_none());
    drop(worker);
    wait_until("watchdog messages after the worker continues", || manager.watchdog_messages() > last + 2);
}

#[test]
fn without_a_watchdog_only_the_status_is_sent() {
    let shm = unique_shm();
    let mut manager = Manager::new();
    let mut command = loopback(&shm, &["--no-recorder"]);
    manager.introduce(&mut command);
    // WATCHDOG_PID names another process, so the server must not send watchdog messages.
    command.env("WATCHDOG_PID", "1");
    let mut server = Server::spawn(&mut command);
    manager.wait_line(&["READY=1"]);
    manager.wait_line(&["STATUS=camera away", "no recorder"]);
    let _camera = camera(&shm);
    manager.wait_line(&["STATUS=camera live"]);
    assert_eq!(manager.watchdog_messages(), 0);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn server_without_recorder_refuses_recordings_and_serves_video() {
    let shm = unique_shm();
    let _camera = camera(&shm);
    let mut server = Server::start(&shm, &["--no-recorder"]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(20);
    for (method, path) in [
        ("GET", "/api/recording/status"),
        ("POST", "/api/recording/start"),
        ("POST", "/api/recording/stop"),
        ("GET", "/api/recordings"),
        ("GET", "/api/recordings/a.mp4"),
    ] {
        let answer = http::request(server.http, method, path, &[], b"");
        answer.assert_error(&[501]);
        assert_eq!(answer.json()["code"], "no_recorder", "{path}");
    }
    let malformed = http::request(server.http, "POST", "/api/recording/start", &[], b"[");
    malformed.assert_error(&[501]);
    let status = server.get("/api/status").json();
    assert_eq!(status["recording"], serde_json::json!({ "recording": false, "state": "off" }));
    wait_until("units in the metrics", || server.metrics().expect("frames_sent_total") >= 20.0);
    assert_eq!(server.metrics().value("recording_active", &[]), None);
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.process.id())).unwrap();
    let names: Vec<String> =
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok()).collect();
    assert!(!names.iter().any(|name| name.trim() == "recorder"), "{names:?}");
    wait_for("the viewer stays", || viewer.report().connected.then_some(()));
    assert_eq!(server.terminate(), Some(0));
}
