//! Detections with real processes: from the detector's segment, or over HTTP, to listeners of /api/events. Segments that
//! misbehave harm nothing, and each result names exactly the picture in which it was found.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use streaming_server::camera::detections::{SEGMENT_BYTES, field};
use streaming_server::h264::Stamp;
use streaming_server::simulator::Square;
use support::camera::{CameraSim, segment_path, words};
use support::server::{self, Server};
use support::viewer::ViewerSimulator;
use support::{PATIENCE, http, unique_shm, wait_for, wait_until};

/// Reads the `detections` events of a server, on its own thread.
struct Listener(Receiver<Value>);

impl Listener {
    fn new(server: SocketAddr) -> Listener {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /api/events HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").unwrap();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
            while let Some(line) = lines.next() {
                let data = (line == "event: detections").then(|| lines.next()).flatten();
                let data = data.and_then(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
                if data.is_some_and(|data| sender.send(data).is_err()) {
                    return;
                }
            }
        });
        Listener(events)
    }

    fn next(&self) -> Value {
        self.0.recv_timeout(PATIENCE).expect("a detections event")
    }

    /// Returns the next event for which `is_wanted` returns true.
    fn wait_for(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.next();
            if is_wanted(&event) {
                return event;
            }
        }
    }

    /// Discards the events that have arrived.
    fn clear(&self) {
        while self.0.try_recv().is_ok() {}
    }
}

/// A segment that the test writes, as a detector. The drop removes it.
struct Segment {
    name: String,
    file: File,
    version: u32,
}

impl Segment {
    fn create(name: &str) -> Segment {
        let _ = fs::remove_file(segment_path(name));
        let file = File::create_new(segment_path(name)).unwrap();
        file.set_len(SEGMENT_BYTES as u64).unwrap();
        Segment { name: name.to_owned(), file, version: 0 }
    }

    /// Writes a result without boxes.
    fn write(&mut self, frame: u64) {
        self.file.write_all_at(&frame.to_le_bytes(), field::FRAME as u64).unwrap();
        self.version = self.version.wrapping_add(1);
        self.file.write_all_at(&self.version.to_le_bytes(), field::VERSION as u64).unwrap();
    }

    /// Writes results until the listener has received one of them.
    fn write_until_seen(&mut self, listener: &Listener, frame: u64) {
        wait_until("a result of the segment", || {
            self.write(frame);
            listener.0.recv_timeout(Duration::from_millis(100)).is_ok_and(|event| event["frame"] == frame)
        });
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = fs::remove_file(segment_path(&self.name));
    }
}

fn state(server: &Server) -> Value {
    server.get("/api/status").json()["detections"].clone()
}

fn wait_state(server: &Server, wanted: &str) -> Value {
    wait_for(&format!("the state {wanted}"), || Some(state(server)).filter(|state| state["state"] == wanted))
}

/// Starts a camera with a detector, and a server that reads both.
fn start(camera: &str, server: &[&str]) -> (CameraSim, Server, String) {
    let shm = unique_shm();
    let segment = format!("{shm}-detections");
    let camera = CameraSim::start(&shm, &words(&format!("--detections {segment} {camera}")));
    let server = Server::start(&shm, &[&["--detections", &segment], server].concat());
    server.wait_ready();
    (camera, server, segment)
}

/// Returns the RTP timestamp with which the viewer received each unit.
fn rtp_times(viewer: &ViewerSimulator) -> BTreeMap<u64, u64> {
    let number =
        |nals: &[Vec<u8>]| Stamp::find(nals.iter().map(Vec::as_slice)).map(|stamp| stamp.unit_number);
    viewer.kept().iter().filter_map(|unit| Some((number(&unit.nal_units)?, unit.rtp_time.into()))).collect()
}

/// Every result must name the picture in which the detector saw the square, for all viewers.
fn results_name_their_picture(layout: &str, arguments: &[&str], viewers: usize) {
    let (_camera, server, segment) =
        start(&format!("--layout {layout} --pattern 640x480 --fps 30 --gop 15"), arguments);
    let viewers: Vec<ViewerSimulator> =
        (0..viewers).map(|_| ViewerSimulator::connect_keeping(server.http).ok().unwrap()).collect();
    viewers.iter().for_each(|viewer| viewer.wait_units(30));
    // What is replayed to a new viewer has other times, so only pictures that are captured from now on count.
    let newest = viewers.iter().filter_map(|viewer| viewer.report().last_unit).max().unwrap();
    let listener = Listener::new(server.http);
    let first = listener.wait_for(|event| event["frame"].as_u64().unwrap() > newest + 5);
    let events: Vec<Value> = std::iter::once(first).chain((0..60).map(|_| listener.next())).collect();
    viewers.iter().for_each(|viewer| viewer.wait_more_units(5));
    for (index, known) in viewers.iter().map(rtp_times).enumerate() {
        // On a busy machine, a worker may read a picture after its result, and a viewer may lose a picture.
        let pairs = events.iter().filter_map(|event| {
            let at_viewer = known.get(&event["frame"].as_u64()?)?;
            Some((event["rtp_time"].as_u64()?, *at_viewer, event))
        });
        let pairs: Vec<(u64, u64, &Value)> = pairs.collect();
        assert!(pairs.len() > 30, "viewer {index}: {} of {} are known", pairs.len(), events.len());
        for (named, at_viewer, event) in pairs {
            assert_eq!(named, at_viewer, "viewer {index}: {event}");
        }
    }
    for event in &events {
        let square = Square::at(event["frame"].as_u64().unwrap(), 640, 480).unwrap();
        let expected = [square.left * 2, square.top * 3 / 2, square.side * 2, square.side * 3 / 2];
        let found = &event["boxes"][0];
        assert_eq!(json!([found["x"], found["y"], found["width"], found["height"]]), json!(expected));
        assert!(event["delay_ms"].as_f64().unwrap() >= 16.0, "{event}");
        assert!(event["captured_at_ms"].as_f64().unwrap() > 1e12, "{event}");
    }
    let live = wait_state(&server, "live");
    assert_eq!((&live["source"], &live["fault"]), (&json!(segment), &Value::Null));
    let metrics = server.metrics();
    assert!(metrics.expect("detections_total") >= 60.0);
    assert!(metrics.expect("detection_delay_seconds_count") >= 60.0);
}

#[test]
fn results_name_their_picture_with_one_worker() {
    results_name_their_picture("v3", &["--workers", "1"], 2);
}

#[test]
fn results_name_their_picture_with_two_workers_and_a_lease_ring() {
    results_name_their_picture("lease", &["--workers", "2"], 4);
}

#[test]
fn results_name_their_picture_with_stamps_of_the_monotonic_clock() {
    results_name_their_picture("v1 --clock monotonic", &[], 1);
}

#[test]
fn a_segment_that_appears_vanishes_and_is_replaced_is_followed() {
    let (shm, name) = (unique_shm(), unique_shm());
    let server = Server::start(&shm, &["--detections", &name]);
    let waiting = state(&server);
    assert_eq!((&waiting["state"], &waiting["results"]), (&json!("waiting"), &json!(0)));
    let listener = Listener::new(server.http);
    let mut segment = Segment::create(&name);
    segment.write_until_seen(&listener, 1);
    wait_state(&server, "live");
    wait_state(&server, "expired");
    let mut replaced = Segment::create(&name);
    replaced.write_until_seen(&listener, 2);
    segment.write(3);
    drop(replaced);
    wait_state(&server, "expired");
    let mut back = Segment::create(&name);
    back.version = u32::MAX - 1;
    back.write_until_seen(&listener, 4);
    back.write_until_seen(&listener, 1);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn what_is_no_segment_is_a_fault_with_its_reason_until_there_is_one() {
    let (shm, name) = (unique_shm(), unique_shm());
    let path = segment_path(&name);
    let server = Server::start(&shm, &["--detections", &name]);
    let listener = Listener::new(server.http);
    let make: [(&dyn Fn(), &str); 4] = [
        (&|| mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap(), "pipe"),
        (&|| symlink("/dev/zero", &path).unwrap(), "link"),
        (&|| File::create_new(&path).unwrap().set_len(575).unwrap(), "575 bytes"),
        (&|| File::create_new(&path).unwrap().set_len(1 << 40).unwrap(), "1099511627776 bytes"),
    ];
    for (make, reason) in make {
        make();
        wait_for(reason, || {
            let state = state(&server);
            let is_named = state["fault"].as_str().is_some_and(|fault| fault.contains(reason));
            (state["state"] == "faulty" && is_named).then_some(())
        });
        fs::remove_file(&path).unwrap();
    }
    Segment::create(&name).write_until_seen(&listener, 9);
    wait_state(&server, "live");
}

#[test]
fn hostile_results_are_counted_and_never_passed_on() {
    for (fault, reason) in [("nan", "confidence"), ("count", "count"), ("outside", "box"), ("name", "label")]
    {
        let (_camera, server, _) =
            start(&format!("--layout v3 --pattern 320x240 --detection-fault {fault}"), &[]);
        let listener = Listener::new(server.http);
        wait_until("rejections", || {
            server.metrics().value("detections_rejected_total", &[("reason", reason)]).unwrap_or(0.0) >= 5.0
        });
        // The result of a picture with a wrong entry is passed on without that entry.
        while let Ok(event) = listener.0.try_recv() {
            assert!(fault != "count" && event["boxes"] == json!([]), "{fault}: {event}");
        }
        assert!(state(&server)["rejected"].as_u64().unwrap() >= 5);
    }
    let (_camera, server, _) = start("--layout v3 --pattern 320x240 --detection-fault size", &[]);
    let _listener = Listener::new(server.http);
    assert!(wait_state(&server, "faulty")["fault"].as_str().unwrap().contains("600 bytes"));
}

#[test]
fn torn_writes_and_gaps_never_give_an_invalid_box() {
    let (_camera, server, _) = start(
        "--layout v3 --pattern 320x240 --fps 60 --detection-fault torn --detection-delay-ms 0-5 --detection-gaps",
        &[],
    );
    let listener = Listener::new(server.http);
    for _ in 0..60 {
        for found in listener.next()["boxes"].as_array().unwrap() {
            let number = |name: &str| found[name].as_u64().unwrap();
            assert!(number("x") + number("width") <= 1_280 && number("y") + number("height") <= 720);
        }
    }
}

#[test]
fn a_thousand_results_a_second_are_forwarded_at_the_limit() {
    let (shm, name) = (unique_shm(), unique_shm());
    let server = Server::start(&shm, &["--detections", &name]);
    let listener = Listener::new(server.http);
    let mut segment = Segment::create(&name);
    segment.write_until_seen(&listener, 1);
    let before = state(&server)["results"].as_u64().unwrap();
    let begun_ns = support::monotonic_ns();
    for frame in 0..3_000 {
        segment.write(frame);
        std::thread::sleep(Duration::from_millis(1));
    }
    let taken = state(&server)["results"].as_u64().unwrap() - before;
    let most = (support::monotonic_ns() - begun_ns) * 120 / 1_000_000_000 + 20;
    assert!(taken > 0 && taken <= most.unsigned_abs(), "{taken}, at most {most}");
    listener.clear();
    segment.write_until_seen(&listener, 9_999);
}

#[test]
fn posted_results_are_checked_limited_and_passed_on() {
    let server = Server::start(&unique_shm(), &["--detections", "off"]);
    let listener = Listener::new(server.http);
    assert_eq!(state(&server)["state"], "off");
    let cat = |confidence: f64| {
        json!({ "timestamp": 5, "detections": [
            { "class_name": "cat", "confidence": confidence, "x": 1, "y": 2, "w": 3, "h": 4 }] })
    };
    wait_until("the listener", || {
        assert_eq!(http::post_json(server.http, "/api/detections", &cat(0.5)).status, 204);
        listener.0.recv_timeout(Duration::from_millis(100)).is_ok()
    });
    listener.clear();
    let wrong = http::post_json(server.http, "/api/detections", &cat(1.5));
    wrong.assert_error(&[400]);
    assert!(wrong.text().contains("detections[0].confidence"), "{}", wrong.text());
    let clear = json!({ "frame": 5, "detections": [] });
    assert_eq!(http::post_json(server.http, "/api/detections", &clear).status, 204);
    let cleared = listener.wait_for(|event| event["frame"] == 5);
    assert_eq!((&cleared["boxes"], &cleared["rtp_time"]), (&json!([]), &Value::Null));
    assert_eq!(state(&server)["source"], "post");
    let huge = vec![b' '; 10 << 20];
    let refused = http::request(server.http, "POST", "/api/detections", &[], &huge);
    assert!(refused.status == 413 || refused.status == 0, "{}", refused.status);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_token_protects_posted_results() {
    let shm = unique_shm();
    let server = Server::start(&shm, &["--token", "correct-horse-battery"]);
    let body = br#"{"frame":1,"detections":[]}"#;
    assert_eq!(http::request(server.http, "POST", "/api/detections", &[], body).status, 401);
    let headers = [("Authorization", "Bearer correct-horse-battery")];
    assert_eq!(http::request(server.http, "POST", "/api/detections", &headers, body).status, 204);
}

/// A result whose stamp is of no clock, or of a clock that was set, has no picture. Later results have theirs again.
#[test]
fn a_clock_that_jumps_costs_the_picture_of_its_results_only() {
    let (_camera, server, _segment) = start("--layout v3 --pattern 320x240 --fps 30", &[]);
    let listener = Listener::new(server.http);
    listener.wait_for(|event| event["rtp_time"].is_number());
    for timestamp in [1_000.0, 4_000_000_000.0, 0.0] {
        let posted = json!({ "frame": 77_777_777, "timestamp": timestamp, "detections": [] });
        assert_eq!(http::post_json(server.http, "/api/detections", &posted).status, 204);
        let event = listener.wait_for(|event| event["frame"] == 77_777_777);
        assert_eq!((&event["rtp_time"], &event["captured_at_ms"]), (&Value::Null, &Value::Null));
    }
    listener.wait_for(|event| event["frame"] != 77_777_777 && event["rtp_time"].is_number());
}

#[test]
fn doctor_says_if_results_arrive() {
    let doctor = |segment: &str| {
        let options = server::loopback(&unique_shm(), &["--detections", segment]);
        let output = Command::new(options.get_program()).arg("doctor").args(options.get_args()).output();
        let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
        text.lines().find(|line| line.contains("detections")).unwrap_or_default().to_owned()
    };
    let (_camera, _server, segment) = start("--layout v3 --pattern 320x240", &[]);
    assert!(doctor(&segment).ends_with("results arrive"), "{}", doctor(&segment));
    assert!(doctor(&unique_shm()).starts_with("ok    detections"), "a detector may start later");
    let broken = unique_shm();
    File::create_new(segment_path(&broken)).unwrap().set_len(5).unwrap();
    let said = doctor(&broken);
    fs::remove_file(segment_path(&broken)).unwrap();
    assert!(said.starts_with("warn  detections") && said.contains("5 bytes"), "{said}");
    assert_eq!(doctor("off"), "");
}

#[test]
fn the_demo_detects_its_square() {
    let mut server = Server::start("/ignored", &["--demo"]);
    let listener = Listener::new(server.http);
    let event = listener.wait_for(|event| event["rtp_time"].is_number());
    let square = Square::at(event["frame"].as_u64().unwrap(), 1_280, 720).unwrap();
    assert_eq!((&event["boxes"][0]["x"], &event["boxes"][0]["label"]), (&json!(square.left), &json!("cat")));
    let name = state(&server)["source"].as_str().unwrap().to_owned();
    assert_eq!(server.terminate(), Some(0));
    assert!(!fs::exists(segment_path(&name)).unwrap(), "{name} is left behind");
}
