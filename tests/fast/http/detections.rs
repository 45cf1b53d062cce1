//! Tests of detections in the API: the event `detections` and POST /api/detections.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use streaming_server::base::limits::{DETECTIONS_BODY_BYTES_MAX, EVENTS_KEPT};

use super::events::Listener;
use super::stub::Server;

const PATH: &str = "/api/detections";

fn event(frame: u64) -> Bytes {
    Bytes::from(format!("event: detections\ndata: {{\"frame\":{frame}}}\n\n"))
}

/// Returns a listener that gets all later events of the detector.
fn listener(server: &Server) -> Listener {
    let listener = Listener::with(server, "");
    while server.backend.detections.receiver_count() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    listener
}

#[test]
fn every_listener_gets_results_in_order_and_status_events_go_on() {
    let server = Server::start();
    let mut listeners = [listener(&server), listener(&server)];
    for frame in 0..EVENTS_KEPT as u64 / 2 {
        server.backend.detections.send(event(frame)).unwrap();
    }
    for listener in &mut listeners {
        for frame in 0..EVENTS_KEPT as u64 / 2 {
            assert_eq!(listener.wait_for("detections")["frame"], json!(frame));
        }
        listener.wait_for("status");
        listener.wait_for("status");
    }
}

#[test]
fn without_listeners_the_backend_is_not_asked_for_results() {
    let server = Server::start();
    drop(listener(&server));
    // The server notices a closed connection when it sends the next event.
    while server.backend.detections.receiver_count() > 0 {
        let _ = server.backend.detections.send(event(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_posted_result_reaches_the_backend() {
    let server = Server::start();
    let body = json!({
        "frame": 7, "timestamp": 1_767_000_000.5_f64, "width": 640, "height": 360,
        "detections": [{ "class_name": "cat", "confidence": 0.5, "x": 1, "y": 2, "w": 3, "h": 4 }],
    });
    let reply = server.request("POST", PATH, "", body.to_string().as_bytes());
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    let empty = server.request("POST", PATH, "", br#"{"timestamp":5,"detections":[]}"#);
    assert_eq!(empty.status, 204);
    let posted = server.backend.posted.lock().unwrap();
    assert_eq!(posted.len(), 2);
    assert_eq!(
        (posted[0].frame, posted[0].timestamp, posted[0].picture),
        (Some(7), Some(1_767_000_000.5), (640, 360))
    );
    assert_eq!((posted[0].boxes[0].rectangle, posted[1].boxes.len()), ([1, 2, 3, 4], 0));
}

#[test]
fn a_wrong_body_gets_400_with_the_field_and_a_long_one_413() {
    let server = Server::start();
    for (body, code, field) in [
        (
            r#"{"timestamp":5,"detections":[{"class_name":"cat"}]}"#,
            "bad_detections",
            "detections[0].confidence",
        ),
        (r#"{"timestamp":"now","detections":[]}"#, "bad_detections", "timestamp"),
        (r#"{"detections":[]}"#, "bad_detections", "timestamp"),
        ("{", "bad_json", "expected"),
    ] {
        let reply = server.request("POST", PATH, "", body.as_bytes());
        assert_eq!((reply.status, reply.code().as_str()), (400, code), "{body}");
        let message = reply.json()["error"].as_str().map(str::to_owned).unwrap();
        assert!(message.contains(field), "{message}");
    }
    let long = vec![b' '; DETECTIONS_BODY_BYTES_MAX + 1];
    let reply = server.request("POST", PATH, "", &long);
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    assert!(server.backend.posted.lock().unwrap().is_empty());
}

#[test]
fn a_foreign_page_cannot_post_results() {
    let server = Server::start();
    let reply =
        server.request("POST", PATH, "Origin: https://evil.example\r\n", br#"{"frame":5,"detections":[]}"#);
    assert_eq!(reply.status, 403);
    assert!(server.backend.posted.lock().unwrap().is_empty());
    let status: Value = server.get("/api/status").json();
    assert_eq!(status["detections"]["state"], json!("off"));
}
