//! HTTP live of a real server: ffmpeg decodes both formats without an error, a slow reader harms no other viewer, a
//! restarted camera and a stop of the server end nothing in the middle of a picture.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use support::camera::{CameraSim, steady, words};
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{PATIENCE, http, unique_shm, wait_until};

use super::recording::rig::{TemporaryDirectory, assert_plays, unit_numbers};

/// Starts a camera and a server.
fn start(camera: &[String], arguments: &[&str]) -> (CameraSim, Server) {
    let shm = unique_shm();
    let camera = CameraSim::start(&shm, camera);
    let server = Server::start(&shm, &[&["--no-recorder"], arguments].concat());
    server.wait_ready();
    (camera, server)
}

/// An answer of HTTP live that is being read.
struct Answer {
    body: BufReader<TcpStream>,
}

impl Answer {
    fn of(server: &Server, path: &str) -> Answer {
        let mut stream = TcpStream::connect(server.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", server.http).unwrap();
        let mut body = BufReader::new(stream);
        let mut line = String::new();
        body.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n", "{path}");
        while line != "\r\n" {
            line.clear();
            body.read_line(&mut line).unwrap();
        }
        Answer { body }
    }

    /// Returns the next bytes of the body, or `None` after its regular end.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.body.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.body.read_exact(&mut chunk).unwrap();
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// Returns the bytes of the body up to its end.
    fn rest(mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.chunk()).flatten().collect()
    }
}

/// A thread that reads an answer to its end.
struct Reading {
    bytes: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<u8>>,
}

impl Reading {
    fn start(mut answer: Answer) -> Reading {
        let bytes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk() {
                body.extend(chunk);
                count.store(body.len(), Ordering::Relaxed);
            }
            body
        });
        Reading { bytes, thread }
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn body(self) -> Vec<u8> {
        self.thread.join().unwrap()
    }
}

fn assert_consecutive(numbers: &[u64], at_least: usize) {
    assert!(numbers.len() >= at_least, "{} units", numbers.len());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

fn write(directory: &TemporaryDirectory, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = directory.0.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn metric(server: &Server, name: &str) -> f64 {
    server.metrics().expect(name)
}

/// Checks that /api/viewers lists one session and four viewers over HTTP, of which two read and two are behind.
fn assert_viewers_are_listed(server: &Server) {
    let viewers = server.get("/api/viewers").json();
    let viewers = viewers.as_array().unwrap();
    let via = |way: &str| viewers.iter().filter(|viewer| viewer["via"] == way).collect::<Vec<_>>();
    assert_eq!((via("webrtc").len(), via("http").len(), viewers.len()), (1, 4, 5), "{viewers:?}");
    assert!(via("webrtc")[0]["lag_ms"].is_null());
    for viewer in via("http") {
        assert_eq!((&viewer["state"], &viewer["gate"]), (&json!("connected"), &json!("live")), "{viewer}");
        assert!(viewer["remote"].as_str().unwrap().starts_with("127.0.0.1:"), "{viewer}");
        assert!(viewer["connected_ms"].as_u64().unwrap() > 0 && viewer["bytes_sent"].as_u64().unwrap() > 0);
    }
    let ids: std::collections::HashSet<u64> = viewers.iter().map(|v| v["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 5);
    let bytes = |viewer: &&&Value| viewer["bytes_sent"].as_u64().unwrap() >= 5_000_000;
    assert!(via("http").iter().filter(bytes).count() >= 2, "{viewers:?}");
    let is_behind = |viewer: &&&Value| {
        viewer["lag_ms"].as_u64().unwrap() > 0 || viewer["units_dropped"].as_u64().unwrap() > 0
    };
    assert!(via("http").iter().filter(is_behind).count() >= 1, "{viewers:?}");
}

#[test]
fn ffmpeg_decodes_every_picture_of_both_formats_beside_a_slow_reader() {
    for layout in ["v3", "lease"] {
        let (_camera, mut server) = start(&steady(layout), &[]);
        assert_eq!(metric(&server, "http_live_viewers"), 0.0);
        // These two take next to nothing. One of them never reads.
        let _stuck = Answer::of(&server, "/live.mp4");
        let mut slow = Answer::of(&server, "/live.h264");
        let session = ViewerSimulator::connect(server.http).unwrap();
        let readings =
            ["/live.mp4", "/camera/live.h264"].map(|path| Reading::start(Answer::of(&server, path)));
        assert_eq!(metric(&server, "http_live_viewers"), 4.0);
        assert_eq!(server.get("/api/status").json()["http_viewers"], 4);
        while readings.iter().any(|reading| reading.bytes() < 5_000_000) {
            assert!(slow.chunk().is_some());
            thread::sleep(Duration::from_millis(50));
        }
        assert_viewers_are_listed(&server);
        session.wait_units(60);
        session.leave().assert_perfect("the session beside them");
        // The server ends the answers after a whole picture.
        assert_eq!(server.terminate(), Some(0));
        let bodies = readings.map(Reading::body);
        let directory = TemporaryDirectory::new();
        for (name, body) in [("a.mp4", &bodies[0]), ("a.h264", &bodies[1])] {
            let path = write(&directory, name, body);
            let pictures = assert_plays(&path);
            let numbers = unit_numbers(&path);
            assert_consecutive(&numbers, 60);
            assert_eq!(pictures, numbers.len(), "{name}");
        }
    }
}

#[test]
fn ffprobe_and_curl_read_the_stream_by_its_address() {
    let (_camera, server) = start(&words("--layout v3 --pattern 320x240 --fps 60"), &["--name", "door"]);
    for path in ["door/live.mp4", "live.h264"] {
        let url = format!("http://{}/{path}", server.http);
        let mut probe = Command::new("ffmpeg");
        probe.args(["-v", "error", "-i", &url, "-frames:v", "60", "-f", "framecrc", "-"]);
        let output = probe.stdin(Stdio::null()).output().unwrap();
        assert!(output.stderr.is_empty(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        let pictures =
            String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(pictures, 60, "{path}");
    }
    wait_until("the viewers have left", || metric(&server, "http_live_viewers") == 0.0);
    http::get(server.http, "/camera/live.mp4").assert_error(&[404]);
}

#[test]
fn places_and_the_camera_decide_who_gets_the_stream() {
    let shm = unique_shm();
    let server = Server::start(&shm, &["--no-recorder", "--max-viewers", "2"]);
    let away = server.get("/live.mp4");
    away.assert_error(&[503]);
    assert_eq!((&away.json()["code"], away.header("retry-after")), (&"camera_away".into(), Some("5")));
    let _camera = CameraSim::start(&shm, &words("--layout v3 --pattern 320x240"));
    server.wait_ready();
    let (first, _second) = (Answer::of(&server, "/live.mp4"), Answer::of(&server, "/live.h264"));
    let full = server.get("/live.mp4");
    full.assert_error(&[503]);
    assert_eq!((&full.json()["code"], full.header("retry-after").is_some()), (&"full".into(), true));
    drop(first);
    wait_until("the place is free", || metric(&server, "http_live_viewers") == 1.0);
    let _third = Answer::of(&server, "/live.mp4");
    let refused = ViewerSimulator::connect(server.http).err().unwrap();
    refused.assert_error(&[503]);
}

#[test]
fn stream_goes_on_after_a_restart_and_ends_at_another_picture_size() {
    let (mut camera, server) = start(&words("--layout v3 --pattern 320x240"), &[]);
    // Each chunk is one picture, and the first one is the header.
    let mut mp4 = Answer::of(&server, "/live.mp4");
    let mut bytes: Vec<u8> = (0..45).flat_map(|_| mp4.chunk().unwrap()).collect();
    camera.restart(&words("--layout v3 --pattern 320x240"));
    bytes.extend((0..45).flat_map(|_| mp4.chunk().unwrap()));
    camera.restart(&words("--layout v3 --pattern 640x480"));
    bytes.extend(mp4.rest());
    let directory = TemporaryDirectory::new();
    assert!(assert_plays(&write(&directory, "a.mp4", &bytes)) >= 89);
    // The stream with the new size is another file.
    let mut next = Answer::of(&server, "/live.mp4");
    let bytes: Vec<u8> = (0..10).flat_map(|_| next.chunk().unwrap()).collect();
    assert_width(&write(&directory, "b.mp4", &bytes), "640");
}

fn assert_width(path: &Path, width: &str) {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "quiet", "-show_entries", "stream=width", "-of", "csv=p=0"]).arg(path);
    let output = probe.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), width);
}
