//! Tests of recording commands and downloads over real sockets.

use std::io::{Read, Write};

use serde_json::{Value, json};
use streaming_server::base::limits;
use streaming_server::http::RecordingCommand;
use streaming_server::metrics::status::{RecordingFilter, RecordingKind, StartRequest};

use super::stub::{CLIP_BYTES, CLIP_GROWTH, Server};

#[test]
fn recording_commands_reach_the_recorder() {
    let server = Server::start();
    let run = |method, path, body: &[u8], reply: Value| {
        let answer = server.request(method, path, "", body);
        assert_eq!((answer.status, answer.json()), (200, reply), "{method} {path}");
        server.backend.commands.lock().unwrap().pop()
    };
    let started =
        json!({ "status": "recording", "filename": "/r/a.mp4", "name": "a.mp4", "waits_for_idr": false });
    let start = "/api/recording/start";
    let defaults = Some(RecordingCommand::Start(Ok(StartRequest::default())));
    assert_eq!(run("POST", start, b"", started.clone()), defaults);
    assert_eq!(run("POST", start, b"{}", started.clone()), defaults);
    let options = StartRequest {
        filename: Some("a".to_owned()),
        pre_roll_s: Some(1.5),
        max_duration_s: Some(60.0),
        heartbeat_s: Some(5.0),
    };
    let body = br#"{"filename":"a","pre_roll_s":1.5,"max_duration_s":60,"heartbeat_s":5}"#;
    assert_eq!(run("POST", start, body, started), Some(RecordingCommand::Start(Ok(options))));
    let stopped = json!({
        "status": "stopped", "filename": "", "name": "", "frame_count": 0, "bytes_written": 0, "duration": 0.0,
        "pre_roll": 0.0, "start_delay": 0.0, "dropped_units": 0, "torn_units": 0, "gaps": 0, "files": [],
        "reason": "asked", "kept": true, "waiting_for_idr": false, "last_idr_age": null,
    });
    assert_eq!(run("POST", "/api/recording/stop", b"", stopped), Some(RecordingCommand::Stop));
    let alive = json!({ "status": "recording" });
    assert_eq!(run("POST", "/api/recording/heartbeat", b"", alive), Some(RecordingCommand::Heartbeat));
    let idle = json!({ "recording": false, "state": "idle" });
    assert_eq!(run("GET", "/api/recording/status", b"", idle), None);
    let none = json!({ "recordings": [], "total": 0, "free_bytes": null });
    let all = RecordingFilter::default();
    assert_eq!(run("GET", "/api/recordings", b"", none.clone()), Some(RecordingCommand::List(all)));
    let some = RecordingFilter {
        kind: Some(RecordingKind::Event),
        label: Some("food bowl".to_owned()),
        day: Some((2026, 11, 9)),
        offset: 20,
        limit: Some(10),
    };
    let query = "/api/recordings?kind=event&label=food%20bowl&day=2026-11-09&offset=20&limit=10";
    assert_eq!(run("GET", query, b"", none), Some(RecordingCommand::List(some)));
    for bad in ["kind=cat", "label=%zz", "day=2026-13-01", "day=today", "offset=-1", "limit=x"] {
        assert_eq!(
            server.request("GET", &format!("/api/recordings?{bad}"), "", b"").code(),
            "bad_filter",
            "{bad}"
        );
    }
    let deleted = json!({ "status": "deleted", "name": "a b.mp4" });
    let delete = Some(RecordingCommand::Delete("a b.mp4".to_owned()));
    assert_eq!(run("DELETE", "/api/recordings/a%20b.mp4", b"", deleted), delete);
    assert_eq!(server.request("POST", start, "", b"[]").code(), "bad_json");
    let large = server.request("POST", "/api/recording/start", "", &[b' '; limits::COMMAND_BYTES_MAX + 1]);
    assert_eq!(large.status, 413);
    let foreign = server.request("DELETE", "/api/recordings/a", "Origin: https://evil.example\r\n", b"");
    assert_eq!(foreign.status, 403);
    assert_eq!(server.get("/api/recordings/a%zz").code(), "bad_name");
    assert_eq!(server.get("/api/recordings/a/b").status, 404);
    let wrong = server.request("POST", "/api/recordings/a", "", b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, DELETE, OPTIONS")));
}

/// Returns bytes `from..to` of the stub's recording.
fn clip(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|offset| (offset & 0xff) as u8).collect()
}

#[test]
fn a_download_is_whole_or_a_range_or_304() {
    let server = Server::start();
    let path = "/api/recordings/a%20b.mp4";
    let whole = server.get(path);
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("video/mp4")));
    assert_eq!((whole.header("accept-ranges"), whole.header("etag")), (Some("bytes"), Some("\"clip\"")));
    assert_eq!(whole.header("content-length"), Some("1000000"));
    assert!(whole.body == clip(0, CLIP_BYTES));
    let part = server.request("GET", path, "Range: bytes=300-999999999\r\n", b"");
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 300-999999/1000000")));
    assert!(part.body == clip(300, CLIP_BYTES));
    let head = server.request("HEAD", path, "", b"");
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("1000000"), 0));
    let beyond = server.request("GET", path, "Range: bytes=1000000-\r\n", b"");
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */1000000")));
    let known = server.request("GET", path, "If-None-Match: \"clip\"\r\n", b"");
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(server.get("/api/recordings/other.mp4").code(), "not_found");
}

#[test]
fn a_growing_recording_can_be_followed() {
    let server = Server::start();
    let reply = server.request("GET", "/api/recordings/a%20b.mp4?follow=1", "Range: bytes=5-\r\n", b"");
    assert_eq!((reply.status, reply.header("transfer-encoding")), (200, Some("chunked")));
    // A player that trusts in ranges looks for the end of the file, which does not exist yet.
    assert_eq!((reply.header("accept-ranges"), reply.header("content-range")), (None, None));
    let mut rest = reply.body.as_slice();
    let mut bytes = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        bytes.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
        if size == 0 {
            break;
        }
    }
    assert!(bytes == clip(0, CLIP_BYTES + CLIP_GROWTH));
}

#[test]
fn readers_that_leave_early_do_no_harm() {
    let server = Server::start();
    for _ in 0..20 {
        let mut stream = server.connect();
        stream.write_all(b"GET /api/recordings/a%20b.mp4 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
    }
    assert_eq!(server.get("/health").status, 200);
}
