//! GET /api/events: what a listener hears, and what listeners that don't behave can do to others.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use streaming_server::base::limits::EVENT_LISTENERS_MAX;

use super::stub::{Reply, Server};

/// A listener reading event by event.
pub(crate) struct Listener {
    lines: BufReader<TcpStream>,
    pub(crate) head: Vec<String>,
}

impl Listener {
    fn new(server: &Server) -> Listener {
        Listener::with(server, "")
    }

    /// With further headers, each with its line's end.
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

    /// The next event's name and data, past the framing of chunks; `None` at the end.
    pub(crate) fn event(&mut self) -> Option<(String, Value)> {
        let name = loop {
            if let Some(name) = self.line()?.strip_prefix("event: ") {
                break name.to_owned();
            }
        };
        let line = self.line()?;
        Some((name, serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()))
    }

    /// The next event of this name.
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
fn a_listener_hears_the_status_at_once_and_again_and_again() {
    let server = Server::start();
    let mut listener = Listener::new(&server);
    assert!(listener.head[0].contains(" 200 "), "{:?}", listener.head);
    for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
        assert!(listener.head.iter().any(|line| line == header), "{header}: {:?}", listener.head);
    }
    let (name, first) = listener.event().unwrap();
    assert_eq!(name, "status");
    assert_eq!(first, server.get("/api/status").json());
    assert_eq!((&first["camera"], &first["viewers"]), (&json!({ "state": "away" }), &json!(2)));
    assert!(first["recording"].is_object());
    assert_eq!(listener.wait_for("status"), first);
    assert_eq!(listener.wait_for("status"), first);
}

#[test]
fn every_change_is_an_event_of_its_own() {
    let server = Server::start();
    let mut listener = Listener::new(&server);
    listener.event().unwrap();
    listener.wait_for("status"); // the feed has looked by now
    server.backend.is_ready.store(true, Ordering::Relaxed);
    assert_eq!(listener.wait_for("camera"), json!({ "state": "live" }));
    server.backend.viewers.store(7, Ordering::Relaxed);
    assert_eq!(listener.wait_for("viewers"), json!(7));
    server.backend.is_recording.store(true, Ordering::Relaxed);
    assert!(listener.wait_for("recording").is_object());
    let status = listener.wait_for("status");
    assert_eq!((&status["camera"]["state"], &status["viewers"]), (&json!("live"), &json!(7)));
}

#[test]
fn a_listener_that_never_reads_holds_up_nobody() {
    let server = Server::start();
    let _deaf: Vec<Listener> = (0..10).map(|_| Listener::new(&server)).collect();
    let mut listener = Listener::new(&server);
    for _ in 0..3 {
        listener.wait_for("status");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn beyond_the_bound_a_listener_is_told_to_ask_instead() {
    let server = Server::start();
    let mut listeners: Vec<Listener> = (0..EVENT_LISTENERS_MAX).map(|_| Listener::new(&server)).collect();
    let refused = server.get("/api/events");
    assert_eq!((refused.status, refused.code().as_str()), (503, "too_many_listeners"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get("/api/status").status, 200);
    listeners.pop();
    // Its place is free when the server notices, at the next event it cannot deliver.
    while !Listener::new(&server).head[0].contains(" 200 ") {}
}

#[test]
fn head_of_events_has_no_body_and_takes_no_place() {
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
fn listeners_hear_the_end_when_the_server_stops() {
    let mut server = Server::start();
    let mut listeners: Vec<Listener> = (0..3).map(|_| Listener::new(&server)).collect();
    server.stop();
    for listener in &mut listeners {
        while listener.event().is_some() {}
    }
}

#[test]
fn a_request_after_a_listener_on_the_same_connection_is_not_smuggled() {
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
