//! Recording commands and downloads over real sockets.

use streaming_server::base::limits;

use super::stub::{CLIP_BYTES, CLIP_GROWTH, Server};
use std::io::{Read, Write};

#[test]
fn recording_commands_reach_the_recorder() {
    let server = Server::start();
    let command = |method, path, body: &[u8]| {
        let reply = server.request(method, path, "", body);
        assert_eq!(reply.status, 200, "{method} {path}");
        reply.json()["command"].as_str().unwrap().to_owned()
    };
    assert_eq!(command("POST", "/api/recording/start", b""), "Start(b\"\")");
    assert_eq!(command("POST", "/api/recording/start", b"{}"), "Start(b\"{}\")");
    assert_eq!(command("POST", "/api/recording/stop", b""), "Stop");
    assert_eq!(command("POST", "/api/recording/heartbeat", b""), "Heartbeat");
    assert_eq!(command("GET", "/api/recording/status", b""), "Status");
    assert_eq!(command("GET", "/api/recordings", b""), "List");
    assert_eq!(command("DELETE", "/api/recordings/a%20b.mp4", b""), "Delete(\"a b.mp4\")");
    let large = server.request("POST", "/api/recording/start", "", &[b' '; limits::COMMAND_BYTES_MAX + 1]);
    assert_eq!(large.status, 413);
    let foreign = server.request("DELETE", "/api/recordings/a", "Origin: https://evil.example\r\n", b"");
    assert_eq!(foreign.status, 403);
    assert_eq!(server.get("/api/recordings/a%zz").code(), "bad_name");
    assert_eq!(server.get("/api/recordings/a/b").status, 404);
    let wrong = server.request("POST", "/api/recordings/a", "", b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, DELETE, OPTIONS")));
}

/// Bytes `from..to` of the stub's recording.
fn clip(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|place| (place & 0xff) as u8).collect()
}

#[test]
fn a_recording_is_downloaded_whole_in_part_or_not_again() {
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
fn a_recording_that_grows_can_be_followed() {
    let server = Server::start();
    let reply = server.get("/api/recordings/a%20b.mp4?follow=1");
    assert_eq!((reply.status, reply.header("transfer-encoding")), (200, Some("chunked")));
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
fn a_reader_that_leaves_in_the_middle_harms_nobody() {
    let server = Server::start();
    for _ in 0..20 {
        let mut stream = server.connect();
        stream.write_all(b"GET /api/recordings/a%20b.mp4 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
    }
    assert_eq!(server.get("/health").status, 200);
}
