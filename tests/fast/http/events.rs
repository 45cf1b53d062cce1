//! Tests of GET /api/events: the events that a listener receives, and listeners that misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use streaming_server::base::limits::EVENT_LISTENERS_MAX;

use super::stub::{Reply, Server};

/// A client that reads /api/events event by event.
pub(crate) struct Listener {
    lines: BufReader<TcpStream>,
    pub(crate) head: Vec<String>,
}

impl Listener {
    fn new(server: &Server) -> Listener {
        Listener::with(server, "")
    }

    /// Connects with additional request headers. Each header must end with its line break.
    pub(crate) fn with(server: &Server, headers: &str) -> Listener {
        let mut stream = server.connect();
        write!(stream, "GET /api/events HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", server.address).unwrap();
        let mut listener = Listener { lines: BufReader::new(stream), head: Vec::new() };
        loop {
            let line = listener.line().unwrap();
            if line.is_empty() {
                return listener;
            }
            listener.head.push(line.to_ascii_lowercase());
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.lines.read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_owned())
    }

    /// Returns the name and data of the next event, or `None` at the end of the stream. Chunk framing is skipped.
    pub(crate) fn event(&mut self) -> Option<(String, Value)> {
        let name = loop {
            if let Some(name) = self.line()?.strip_prefix("event: ") {
                break name.to_owned();
            }
        };
        let line = self.line()?;
        Some((name, serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()))
    }

    /// Returns the data of the next event with this name.
    pub(crate) fn wait_for(&mut self, wanted: &str) -> Value {
        loop {
            let (name, data) = self.event().unwrap();
            if name == wanted {
                return data;
            }
        }
    }
}

#[test]
fn a_listener_gets_the_status_at_once_and_periodically() {
    let server = Server::start();
    let mut listener = Listener::new(&server);
    assert!(listener.head[0].contains(" 200 "), "{:?}", listener.head);
    for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
        assert!(listener.head.iter().any(|line| line == header), "{header}: {:?}", listener.head);
    }
    let (name, first) = listener.event().unwrap();
    assert_eq!(name, "status");
    assert_eq!(first, server.get("/api/status").json());
    assert_eq!(
        (&first["camera"], &first["viewers"]),
        (&json!({ "state": "away", "reason": "no camera" }), &json!(2))
    );
    assert!(first["recording"].is_object());
    assert_eq!(listener.wait_for("status"), first);
    assert_eq!(listener.wait_for("status"), first);
}

#[test]
fn every_change_has_its_own_event() {
    let server = Server::start();
    let mut listener = Listener::new(&server);
    listener.event().unwrap();
    listener.wait_for("status"); // this event shows that the feed has polled the old state
    server.backend.is_ready.store(true, Ordering::Relaxed);
    let live = json!({
        "state": "live", "layout": "v3", "width": 1280, "height": 720, "fps": 29.9,
        "b_frames": false, "stalled_after_ms": 1_500, "last_idr_s": null,
    });
    assert_eq!(listener.wait_for("camera"), live);
    server.backend.viewers.store(7, Ordering::Relaxed);
    assert_eq!(listener.wait_for("viewers"), json!(7));
    server.backend.is_recording.store(true, Ordering::Relaxed);
    assert_eq!(listener.wait_for("recording"), json!({ "recording": true, "state": "recording" }));
    let status = listener.wait_for("status");
    assert_eq!((&status["camera"]["state"], &status["viewers"]), (&json!("live"), &json!(7)));
}

#[test]
fn listeners_that_never_read_do_not_delay_others() {
    let server = Server::start();
    let _unread: Vec<Listener> = (0..10).map(|_| Listener::new(&server)).collect();
    let mut listener = Listener::new(&server);
    for _ in 0..3 {
        listener.wait_for("status");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_listener_above_the_limit_gets_503() {
    let server = Server::start();
    let mut listeners: Vec<Listener> = (0..EVENT_LISTENERS_MAX).map(|_| Listener::new(&server)).collect();
    let refused = server.get("/api/events");
    assert_eq!((refused.status, refused.code().as_str()), (503, "too_many_listeners"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get("/api/status").status, 200);
    listeners.pop();
    // The server notices a closed listener only when it fails to deliver the next event, so the attempt is repeated.
    while !Listener::new(&server).head[0].contains(" 200 ") {}
}

#[test]
fn head_of_events_has_no_body_and_counts_as_no_listener() {
    let server = Server::start();
    for _ in 0..=EVENT_LISTENERS_MAX {
        let head = server.request("HEAD", "/api/events", "", b"");
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
        assert!(head.body.is_empty());
    }
    let wrong = server.request("POST", "/api/events", "", b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
}

#[test]
fn event_streams_end_when_the_server_stops() {
    let mut server = Server::start();
    let mut listeners: Vec<Listener> = (0..3).map(|_| Listener::new(&server)).collect();
    server.stop();
    for listener in &mut listeners {
        while listener.event().is_some() {}
    }
}

#[test]
fn a_request_after_events_on_the_same_connection_is_answered() {
    let server = Server::start();
    let mut stream = server.connect();
    write!(
        stream,
        "HEAD /api/events HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let bytes = super::stub::read_to_end(&mut stream);
    let text = String::from_utf8(bytes).unwrap();
    let second = text.find("\r\n\r\n").unwrap() + 4;
    assert_eq!(Reply::parse(&text.as_bytes()[second..]).json(), json!({ "status": "ok" }));
}
