//! Recordings of what the detector sees, with real processes: they begin before the first sight and end after the last,
//! their detection log says what is in each picture, a crash leaves it readable, and a webhook gets a message.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use streaming_server::base::limits::REFERENCE_PICTURE;
use streaming_server::simulator::Square;
use support::camera::{CameraSim, words};
use support::server::Server;
use support::{PATIENCE, http, unique_shm, wait_for, wait_until};

use crate::record_live::{Directory, units_of};

const CAMERA: &str = "--layout v1 --pattern 640x480 --fps 30 --gop 15";

/// Starts a camera, and a server that records what its detector sees.
fn start(directory: &Directory, camera: &str, server: &[&str]) -> (CameraSim, Server) {
    let shm = unique_shm();
    let segment = format!("{shm}-detections");
    let camera = CameraSim::start(&shm, &words(&format!("{CAMERA} {}", camera.replace("SEGMENT", &segment))));
    let path = directory.0.to_str().unwrap();
    let server = Server::start(&shm, &[&["--detections", &segment, "--record-path", path], server].concat());
    server.wait_ready();
    (camera, server)
}

/// Returns the finished recordings of events, the oldest first.
fn finished(server: &Server) -> Vec<Value> {
    let listed = server.get("/api/recordings?kind=event").json()["recordings"].clone();
    let mut events = listed.as_array().unwrap().clone();
    events.retain(|recording| recording["complete"] == true);
    events.reverse();
    events
}

/// Returns the whole lines of a detection log after its first one.
fn lines(text: &str) -> Vec<Value> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Asserts that the line has the square of its picture.
fn assert_square(line: &Value) {
    let square = Square::at(line["frame"].as_u64().unwrap(), 640, 480).unwrap();
    let (width, height) = (f64::from(REFERENCE_PICTURE.0) / 640.0, f64::from(REFERENCE_PICTURE.1) / 480.0);
    let expected =
        [f64::from(square.left) * width, f64::from(square.top) * height, f64::from(square.side) * width];
    let found = &line["boxes"][0];
    for (name, expected) in ["x", "y", "width"].into_iter().zip(expected) {
        assert!((number(&found[name]) - expected).abs() <= 1.0, "{name} of {line}, {expected} expected");
    }
}

#[test]
fn event_is_recorded_from_before_its_first_sight_with_a_log_of_every_picture() {
    let directory = Directory::new();
    let options = ["--record-on", "cat,dog:0.1", "--pre-roll", "2", "--post-roll", "1"];
    let (_camera, server) = start(&directory, "--detections SEGMENT --detection-gaps", &options);
    // The ring holds one second. The first event may begin before so much was seen, so the second one is checked.
    wait_until("three seconds in memory", || {
        server.get("/api/status").json()["recording"]["pre_roll_held"]
            .as_f64()
            .is_some_and(|held| held >= 3.0)
    });
    let known = finished(&server).len();
    let events =
        wait_for("two further events", || Some(finished(&server)).filter(|events| events.len() > known + 1));
    let recording = &events[known + 1];
    let (name, event) = (recording["name"].as_str().unwrap(), &recording["events"][0]);
    let label = event["label"].as_str().unwrap();
    assert!(name.starts_with("event_") && name.ends_with(&format!("_{label}.mp4")), "{name}");
    assert_eq!(recording["labels"], json!([label]));
    let (numbers, _) = units_of(&directory.0.join(name));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "units are complete and in order");

    // The detector sees nothing for 90 units before each multiple of 300.
    let first = numbers.iter().position(|number| number % 300 == 0).unwrap();
    let (begin, end, duration) =
        (number(&event["start"]), number(&event["end"]), number(&recording["duration"]));
    assert!((begin - first as f64 / 30.0).abs() < 0.02, "unit {first} of {numbers:?}, {recording}");
    // The times are rounded to ticks of 11 us.
    assert!((1.999..3.5).contains(&begin), "{recording}");
    assert!((end - begin - 209.0 / 30.0).abs() < 0.02, "{recording}");
    assert!(duration - end >= 0.95, "{recording}");

    let log = recording["detections"].as_str().unwrap();
    let text = server.get(&format!("/api/recordings/{log}")).text();
    let lines = lines(&text);
    let seen: Vec<u64> = numbers.iter().copied().filter(|number| number % 300 < 210).collect();
    assert!(lines.len() + 3 >= seen.len(), "{} lines for {} pictures", lines.len(), seen.len());
    for line in &lines {
        let picture = line["frame"].as_u64().unwrap() - numbers[0];
        assert!((number(&line["t"]) - picture as f64 / 30.0).abs() < 0.01, "picture {picture}: {line}");
        assert_square(line);
    }
    let best = lines.iter().find(|line| (number(&line["t"]) - number(&event["best"])).abs() < 0.001).unwrap();
    assert_eq!(best["boxes"][0]["confidence"], event["confidence"]);
    assert_eq!(best["boxes"][0]["x"], event["best_box"][0]);

    let deleted = http::request(server.http, "DELETE", &format!("/api/recordings/{name}"), &[], b"");
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    assert!(!directory.0.join(log).exists());
}

#[test]
fn kill_in_an_event_leaves_its_recording_and_a_readable_log() {
    let directory = Directory::new();
    let options = ["--record-on", "cat,dog:0.1", "--post-roll", "60"];
    let (_camera, mut server) = start(&directory, "--detections SEGMENT", &options);
    let log = || {
        fs::read_dir(&directory.0).unwrap().flatten().find_map(|entry| {
            let path = entry.path();
            path.extension().is_some_and(|extension| extension == "json").then_some(path)
        })
    };
    let path = wait_for("the log", log);
    wait_until("some lines", || fs::read_to_string(&path).unwrap().lines().count() > 40);
    server.process.kill();
    let text = fs::read_to_string(&path).unwrap();
    let logged = lines(&text);
    logged.iter().for_each(assert_square);

    let again = Server::start(&unique_shm(), &["--record-path", directory.0.to_str().unwrap()]);
    let recording = wait_for("the repaired recording", || finished(&again).pop());
    assert_eq!((&recording["recovered"], &recording["kind"]), (&json!(true), &json!("event")));
    assert_eq!(recording["detections"], json!(path.file_name().unwrap().to_str().unwrap()));
    let last = number(&logged.last().unwrap()["t"]);
    assert!(number(&recording["duration"]) + 1.5 > last, "{recording}, last line at {last}");
}

/// A server that gets messages. It refuses the first ones.
struct Receiving {
    url: String,
    messages: Receiver<(Value, String)>,
}

impl Receiving {
    fn start(refused: usize, secret: &'static [u8]) -> Receiving {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for (index, socket) in listener.incoming().flatten().enumerate() {
                let mut reader = BufReader::new(&socket);
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    head.push(line.trim().to_ascii_lowercase());
                }
                let header =
                    |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).unwrap().trim();
                let mut body = vec![0; header("content-length:").parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                let status = if index < refused { "500 Broken" } else { "204 No Content" };
                write!(&socket, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
                if index >= refused {
                    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &body);
                    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                    assert_eq!(header("x-signature-256:"), format!("sha256={hex}"));
                    let _ = sender.send((serde_json::from_slice(&body).unwrap(), head[0].clone()));
                }
            }
        });
        Receiving { url, messages }
    }
}

#[test]
fn webhook_gets_each_message_even_if_it_fails_at_first() {
    let (directory, secrets) = (Directory::new(), Directory::new());
    let secret = secrets.0.join("secret");
    fs::write(&secret, "0123456789abcdef0123\n").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let receiving = Receiving::start(2, b"0123456789abcdef0123");
    let secret: &Path = &secret;
    let options = ["--record-on", "fox", "--post-roll", "1", "--webhook", &receiving.url];
    let options = [&options[..], &["--webhook-secret-file", secret.to_str().unwrap()]].concat();
    let (_camera, server) = start(&directory, "", &options);
    let fox = json!({ "class_name": "fox", "confidence": 0.9, "x": 1, "y": 2, "w": 3, "h": 4 });
    for frame in 0..5 {
        let posted = json!({ "frame": frame, "detections": [fox] });
        let answer = http::post_json(server.http, "/api/detections", &posted);
        assert_eq!(answer.status, 204, "{}", answer.text());
        std::thread::sleep(Duration::from_millis(100));
    }
    let next = || receiving.messages.recv_timeout(PATIENCE).expect("a message");
    let (begin, head) = next();
    assert!(head.starts_with("post /hook "), "{head}");
    assert_eq!((&begin["type"], &begin["label"]), (&json!("event_begin"), &json!("fox")));
    let recording = begin["recording"].as_str().unwrap();
    assert!(recording.starts_with("event_") && recording.ends_with("_fox.mp4"), "{recording}");
    let (end, _) = next();
    assert_eq!((&end["type"], &end["recording"]), (&json!("event_end"), &json!(recording)));
    assert_eq!(end["event"]["labels"], json!(["fox"]));
    wait_until("the finished recording", || {
        finished(&server).iter().any(|finished| finished["name"] == recording)
    });
}
