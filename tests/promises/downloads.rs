//! Many downloads at once beside live viewers and a recording, under the memory limit of the systemd unit. Nothing is
//! lost, the memory is bounded while the readers are slow, and it is free again after they have left.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use streaming_server::base::limits;
use support::camera::{CameraSim, steady, words};
use support::http;
use support::limits::UnitLimits;
use support::server::{self, Server};
use support::viewer::{Offer, ViewerSimulator};
use support::{unique_shm, wait_until};

use super::recording::rig::TemporaryDirectory;

/// `MemoryMax` of the systemd unit.
const UNIT_BYTES: u64 = 256 << 20;
const LARGE_BYTES: u64 = 64 << 20;
const DOWNLOADS: usize = 200;
const VIEWERS: usize = 10;
/// Growth of the memory that may remain after all callers have left.
const REMAINS_BYTES: u64 = 10 << 20;

/// A server under the limit of its unit, with a large recording to download.
struct Stage {
    server: Server,
    directory: TemporaryDirectory,
    _camera: CameraSim,
    cgroup: Option<UnitLimits>,
}

impl Stage {
    fn new(arguments: &[&str]) -> Stage {
        Stage::with_camera(&steady("lease"), arguments)
    }

    fn with_camera(camera: &[String], arguments: &[&str]) -> Stage {
        let (shm, directory) = (unique_shm(), TemporaryDirectory::new());
        let camera = CameraSim::start(&shm, camera);
        fs::File::create(directory.0.join("large.mp4")).unwrap().set_len(LARGE_BYTES).unwrap();
        let path = directory.0.to_str().unwrap();
        let command = server::loopback(&shm, &[&["--record-path", path], arguments].concat());
        let cgroup = UnitLimits::new();
        cgroup.iter().for_each(|cgroup| cgroup.set_memory_max(UNIT_BYTES));
        let inside = cgroup.as_ref().map(|cgroup| cgroup.command(&command));
        let server = Server::spawn(&mut inside.unwrap_or(command));
        server.wait_ready();
        Stage { server, directory, _camera: camera, cgroup }
    }

    /// Returns the memory that the server holds. Without a cgroup, sockets are not included.
    fn held_bytes(&self) -> u64 {
        if let Some(cgroup) = &self.cgroup {
            return cgroup.held_bytes();
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    fn assert_not_killed(&mut self) {
        assert_eq!(self.cgroup.as_ref().map_or(0, UnitLimits::kills), 0);
        self.server.assert_healthy();
    }
}

fn request(server: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    // The server may refuse and close the connection before.
    let _ = stream.write_all(head.as_bytes());
    stream
}

/// Reads a large recording again and again until `stop`: every eighth reader as fast as it can, the others slowly.
/// Counts whole downloads and refusals.
fn read_repeatedly(
    server: SocketAddr,
    number: usize,
    stop: &AtomicBool,
    whole: &AtomicU64,
    refused: &AtomicU64,
) {
    let is_fast = number.is_multiple_of(8);
    let path = if number.is_multiple_of(5) { "live.mp4?follow=1" } else { "large.mp4" };
    let mut piece = vec![0; if is_fast { 256 * 1024 } else { 4_096 }];
    while !stop.load(Ordering::Relaxed) {
        let mut stream = request(server, &format!("/api/recordings/{path}"));
        let mut first = [0; 12];
        let is_answered = stream.read_exact(&mut first).is_ok();
        if first != *b"HTTP/1.1 200" {
            // Connections far above the limit are closed without an answer.
            assert!(!is_answered || first == *b"HTTP/1.1 503", "{}", String::from_utf8_lossy(&first));
            refused.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(300));
            continue;
        }
        let mut bytes = 0;
        while !stop.load(Ordering::Relaxed) {
            match stream.read(&mut piece).unwrap() {
                0 => break,
                read => bytes += read as u64,
            }
            std::thread::sleep(Duration::from_millis(if is_fast { 2 } else { 100 }));
        }
        whole.fetch_add(u64::from(bytes >= LARGE_BYTES), Ordering::Relaxed);
    }
}

/// Asserts that ffprobe reads the duration of the growing recording, which has at least two seconds.
fn assert_ffprobe_finds_the_end(server: SocketAddr) {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"]);
    let probed = probe.arg(format!("http://{server}/api/recordings/live.mp4")).output().unwrap();
    let text = [probed.stdout, probed.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let duration = text[0].trim().parse::<f64>();
    assert!(duration.is_ok_and(|duration| duration > 1.5), "{text:?}");
}

#[test]
fn downloads_lose_nothing_and_leave_no_memory_behind() {
    let mut stage = Stage::new(&[]);
    let address = stage.server.http;
    let viewers = ViewerSimulator::crowd(address, VIEWERS);
    let started = http::post_json(address, "/api/recording/start", &json!({ "filename": "live" }));
    assert_eq!(started.status, 200, "{}", started.text());
    viewers[0].wait_more_units(60);
    assert_ffprobe_finds_the_end(address);
    let before = stage.held_bytes();

    let (stop, whole, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut most = 0;
    std::thread::scope(|scope| {
        for number in 0..DOWNLOADS {
            let (stop, whole, refused) = (&stop, &whole, &refused);
            let name = format!("reader {number}");
            let thread = std::thread::Builder::new().name(name).stack_size(512 * 1024);
            thread
                .spawn_scoped(scope, move || read_repeatedly(address, number, stop, whole, refused))
                .unwrap();
        }
        wait_until("some downloads are complete", || {
            most = stage.held_bytes().max(most);
            whole.load(Ordering::Relaxed) >= 5 || stage.server.process.exited().is_some()
        });
        viewers[0].wait_more_units(60);
        most = stage.held_bytes().max(most);
        stop.store(true, Ordering::Relaxed);
    });
    let (whole, refused) = (whole.into_inner(), refused.into_inner());
    eprintln!(
        "held {before} bytes before, at most {most} during {DOWNLOADS} downloads; {whole} whole, {refused} refused"
    );
    stage.assert_not_killed();
    assert!(refused > 0, "more than {} downloads ran at once", limits::DOWNLOADS_MAX);
    assert!(most < before + limits::HTTP_HELD_BYTES_MAX, "{before} bytes grew to {most}");
    wait_until("the memory is free again", || stage.held_bytes() < before + REMAINS_BYTES);

    for viewer in viewers {
        viewer.leave().assert_perfect("viewer beside downloads");
    }
    let stopped = http::post_json(address, "/api/recording/stop", &json!({})).json();
    assert_eq!((&stopped["dropped_units"], &stopped["kept"]), (&json!(0), &json!(true)), "{stopped}");
    assert!(stage.directory.0.join("live.mp4").exists());
}

#[test]
fn callers_that_read_nothing_hold_no_more_than_the_table_says() {
    let mut stage = Stage::new(&[]);
    let address = stage.server.http;
    for number in 0..3_000 {
        let name = format!("{number:0150}.h264");
        fs::write(stage.directory.0.join(name), b"").unwrap();
    }
    // Each thread that serves callers has done its work once, so that only what the callers below leave behind counts.
    std::thread::scope(|scope| {
        for path in
            ["/api/recordings", "/api/recordings/large.mp4", "/api/recordings", "/api/recordings/large.mp4"]
        {
            scope.spawn(move || io::copy(&mut request(address, path), &mut io::sink()).unwrap());
        }
    });
    let before = stage.held_bytes();
    let mut held = Vec::new();
    for _ in 0..limits::DOWNLOADS_MAX {
        held.push(request(address, "/api/recordings/large.mp4"));
    }
    for _ in 0..20 {
        held.push(request(address, "/api/recordings"));
    }
    for _ in 0..limits::EVENT_LISTENERS_MAX {
        held.push(request(address, "/api/events"));
    }
    while held.len() < limits::CONNECTIONS_MAX - 10 {
        let mut stream = TcpStream::connect(address).unwrap();
        let bytes = limits::BODY_BYTES_MAX;
        let head =
            format!("POST /api/webrtc/offer HTTP/1.1\r\nHost: {address}\r\nContent-Length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; bytes - 1]).unwrap();
        held.push(stream);
    }
    let mut most = 0;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        most = stage.held_bytes().max(most);
        stage.server.assert_healthy();
    }
    eprintln!("held {before} bytes before, at most {most} with {} callers that read nothing", held.len());
    assert!(most < before + limits::HTTP_HELD_BYTES_MAX, "{before} bytes grew to {most}");
    drop(held);
    // The allocator returns freed memory to the system when it is used again, such as for a health check.
    wait_until("the memory is free again", || {
        stage.server.assert_healthy();
        stage.held_bytes() < before + REMAINS_BYTES
    });
    stage.assert_not_killed();
}

/// Drives what viewers and senders of datagrams make the server hold to its bound at once: all sessions, a large copy of
/// a GOP that is longer than the ring, and a full receive buffer.
#[test]
fn viewers_and_floods_hold_no_more_than_the_table_says() {
    let camera = words("--layout v3 --pattern 1280x720 --fps 30 --bitrate-kbps 12000 --gop 300");
    let mut stage = Stage::with_camera(&camera, &["--workers", "1"]);
    let mut most = stage.held_bytes();
    let viewers = ViewerSimulator::crowd(stage.server.http, VIEWERS);
    for _ in VIEWERS..limits::VIEWERS_DEFAULT {
        assert!(Offer::create().post(stage.server.http).is_ok());
    }
    let enough = limits::GOP_BYTES_MAX as f64 / 2.0;
    wait_until("a large copy of the GOP", || {
        most = stage.held_bytes().max(most);
        stage.server.metrics().expect("gop_cache_bytes") >= enough
    });
    let bound = limits::sum(limits::HELD_BY_VIEWERS) + limits::sum(limits::HELD_ALONE);
    // A stopped server reads nothing, so the flood fills its receive buffer. The flood would exceed the bound of everything.
    stage.server.process.signal(Signal::STOP);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..bound / 1_200 {
        // The kernel drops the datagrams that the buffer does not hold.
        let _ = socket.send_to(&[0x80; 1_200], stage.server.udp);
    }
    most = stage.held_bytes().max(most);
    stage.server.process.signal(Signal::CONT);
    eprintln!("held at most {most} of {bound} bytes with {} sessions and a flood", limits::VIEWERS_DEFAULT);
    assert!(most < bound, "{most} of {bound} bytes");
    viewers.iter().for_each(|viewer| viewer.wait_more_units(30));
    stage.assert_not_killed();
}
