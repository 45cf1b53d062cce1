//! Publishing to a WHIP server: every unit arrives, a restarted server gets the picture back, and a hostile server harms
//! neither viewers nor the recording.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::camera::{CameraSim, steady};
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::whip::{WhipAction, WhipServer};
use support::{PATIENCE, http, test_seconds, unique_shm, wait_for, wait_until};

fn publish_status(server: &Server) -> Value {
    server.get("/api/status").json()["publish"].clone()
}

fn wait_state(server: &Server, state: &str) -> Value {
    wait_for(&format!("the state {state} of publishing"), || {
        Some(publish_status(server)).filter(|status| status["state"] == state)
    })
}

fn counter(server: &Server, name: &str) -> f64 {
    server.metrics().expect(name)
}

#[test]
fn every_unit_is_published_beside_a_full_house_and_the_session_is_deleted() {
    let whip = WhipServer::start();
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("lease"));
    // Two workers: the publisher's session may be on the one that does not receive.
    let mut server = Server::start(&shm, &["--whip", &whip.url(), "--max-viewers", "1", "--workers", "2"]);
    let viewer =
        ViewerSimulator::connect(server.http).unwrap_or_else(|_| panic!("the publisher takes no place"));
    wait_state(&server, "publishing");
    let units = test_seconds() * 30;
    whip.wait_units(30);
    let joined = whip.report().unwrap();
    whip.wait_units(units);
    viewer.wait_units(1);
    whip.request_idr();
    wait_until("the IDR request at the server", || counter(&server, "whip_keyframe_requests_total") >= 1.0);
    assert_eq!(server.viewers().len(), 1, "the publisher is no viewer");
    let status = server.get("/api/status").json();
    assert_eq!(
        (&status["viewers"], &status["publish"]["error"]),
        (&Value::from(1), &Value::Null),
        "{status}"
    );
    assert_eq!(status["publish"]["host"], whip.address.to_string());
    assert_eq!((counter(&server, "whip_connected"), counter(&server, "whip_sessions_total")), (1.0, 1.0));
    assert!(counter(&server, "whip_units_sent_total") >= units as f64 / 2.0);
    viewer.leave();
    assert_eq!(server.terminate(), Some(0));
    let report = whip.report().unwrap();
    // An IDR of the camera may end the replay to a new viewer early. After that no unit may be missing.
    assert_eq!(
        (report.missing - joined.missing, report.torn, report.bad_idrs),
        (0, 0, 0),
        "{:?}",
        (report.units, report.duplicated)
    );
    wait_until("the goodbye", || whip.report().unwrap().got_close_notify);
    let deleted: Vec<String> = whip.requests("DELETE").into_iter().map(|request| request.target).collect();
    assert_eq!(deleted, ["/camera/session/1"]);
}

#[test]
fn session_whose_answer_comes_while_the_program_stops_is_deleted() {
    let (ask, asked) = mpsc::channel();
    let (allow, allowed) = mpsc::channel();
    let whip = WhipServer::scripted(move |_| {
        ask.send(()).unwrap();
        let _ = allowed.recv(); // fails if the test has failed
        WhipAction::Accept
    });
    let allow = allow; // dropped before the server, which waits for it
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v3"));
    let mut server = Server::start(&shm, &["--whip", &whip.url()]);
    asked.recv().unwrap();
    server.process.signal(Signal::TERM);
    wait_until("the stop", || server.process.log().contains("SIGTERM: stopping"));
    allow.send(()).unwrap();
    assert_eq!(server.process.wait_exit(PATIENCE).code(), Some(0), "{}", server.process.log());
    let deleted: Vec<String> = whip.requests("DELETE").into_iter().map(|request| request.target).collect();
    assert_eq!(deleted, ["/camera/session/1"]);
}

#[test]
fn restarted_whip_server_gets_the_picture_back() {
    let whip = WhipServer::start();
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v3"));
    let mut server = Server::start(&shm, &["--whip", &whip.url()]);
    whip.wait_units(30);
    whip.kill();
    let failed = wait_state(&server, "retrying");
    assert!(failed["error"].is_string() && failed["retry_s"].is_u64(), "{failed}");
    assert_eq!(counter(&server, "whip_connected"), 0.0);
    whip.restart();
    whip.wait_units(30);
    wait_state(&server, "publishing");
    let joined = whip.report().unwrap();
    whip.wait_units(60);
    let report = whip.report().unwrap();
    let later = (report.missing - joined.missing, report.duplicated, report.torn, report.bad_idrs);
    assert_eq!((later, report.began_without_idr), ((0, 0, 0, 0), false));
    assert_eq!(counter(&server, "whip_sessions_total"), 2.0);
    server.assert_healthy();
}

#[test]
fn wrong_token_is_logged_once() {
    let whip = WhipServer::scripted(|_| WhipAction::status("401 Unauthorized", ""));
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v3"));
    let server = Server::start(&shm, &["--whip", &whip.url()]);
    let status = wait_state(&server, "retrying");
    assert!(status["error"].as_str().unwrap().contains("token is missing or wrong"), "{status}");
    assert!(status["retry_s"].as_u64().unwrap() >= 30, "{status}");
    std::thread::sleep(Duration::from_secs(test_seconds()));
    assert_eq!(whip.requests("POST").len(), 1, "no storm of attempts");
    assert_eq!(server.process.log().matches("publishing to").count(), 1, "{}", server.process.log());
}

#[test]
fn hostile_whip_server_harms_neither_viewers_nor_the_recording() {
    let turn = Arc::new(AtomicUsize::new(0));
    let next = Arc::clone(&turn);
    // Only answers after which the next attempt follows soon.
    let whip = WhipServer::scripted(move |_| match next.fetch_add(1, Ordering::Relaxed) % 4 {
        0 => WhipAction::Raw(Vec::new()),
        1 => {
            WhipAction::Raw(b"HTTP/1.1 201 Created\r\nLocation: x\r\nContent-Length: 999\r\n\r\nv=0".to_vec())
        }
        2 => {
            WhipAction::Raw([b"HTTP/1.1 500 x\r\nContent-Length: 90\r\n\r\n", [7_u8; 90].as_slice()].concat())
        }
        // With another ufrag neither side accepts the STUN of the other.
        _ => WhipAction::AcceptEdited(|answer| answer.replace("a=ice-ufrag:", "a=ice-ufrag:other")),
    });
    let directory = tempfile();
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &steady("v3"));
    let mut server =
        Server::start(&shm, &["--whip", &whip.url(), "--record-path", directory.0.to_str().unwrap()]);
    server.wait_ready();
    assert_eq!(http::post_json(server.http, "/api/recording/start", &serde_json::json!({})).status, 200);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|_| panic!("refused"));
    viewer.wait_units(30);
    let joined = viewer.report();
    wait_until("every kind of answer", || turn.load(Ordering::Relaxed) >= 5);
    let report = viewer.leave();
    let later = (report.missing - joined.missing, report.duplicated, report.torn);
    assert_eq!(later, (0, 0, 0), "the viewer misses nothing");
    let stopped = http::post_json(server.http, "/api/recording/stop", &serde_json::json!({})).json();
    assert_eq!(
        (&stopped["dropped_units"], &stopped["gaps"]),
        (&Value::from(0), &Value::from(0)),
        "{stopped}"
    );
    assert!(counter(&server, "whip_attempts_total") >= 5.0);
    server.assert_healthy();
}

/// A directory that is removed when the value is dropped.
struct Directory(std::path::PathBuf);

fn tempfile() -> Directory {
    let path = std::env::temp_dir().join(format!("whip-promise-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Directory(path)
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
