//! Tests of what downloads and other large answers may hold: places, memory, and the time of a reader that pauses.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use streaming_server::base::limits;

use super::stub::{ENDLESS_BYTES, Reply, Server, read_to_end};

/// Sends a request for the path and reads only the first bytes of the answer, which must contain this status.
fn begin(server: &Server, path: &str, status: &str) -> TcpStream {
    let mut stream = server.connect();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(first, format!("HTTP/1.1 {status}").as_bytes(), "{path}");
    stream
}

#[test]
fn downloads_above_the_limit_get_503_until_others_end() {
    let server = Server::start();
    let path = "/api/recordings/endless.mp4";
    let mut unread: Vec<TcpStream> =
        (0..limits::DOWNLOADS_MAX).map(|_| begin(&server, path, "200")).collect();
    for query in ["", "?follow=1"] {
        let reply = server.get(&format!("{path}{query}"));
        assert_eq!((reply.status, reply.code().as_str()), (503, "too_many_downloads"));
        assert_eq!(reply.header("retry-after"), Some("5"));
    }
    assert_eq!(server.get("/health").status, 200);
    // A followed recording and a complete answer give their places back too.
    unread.truncate(limits::DOWNLOADS_MAX - 2);
    while server.request("HEAD", path, "", b"").status != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..20 {
        assert_eq!(server.request("HEAD", path, "", b"").status, 200);
        assert_eq!(server.request("GET", path, "Range: bytes=0-99\r\n", b"").body.len(), 100);
    }
}

#[test]
fn unread_listings_take_a_bounded_amount_of_memory() {
    let server = Server::start();
    server.backend.listed.store(10_000, Ordering::Relaxed);
    let whole = server.get("/api/recordings").body.len();
    assert!(whole > 1_000_000, "{whole}");
    let mut unread: Vec<TcpStream> = Vec::new();
    let refused = loop {
        let mut stream = server.connect();
        stream.write_all(b"GET /api/recordings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        if first == *b"HTTP/1.1 503" {
            break [first.to_vec(), read_to_end(&mut stream)].concat();
        }
        unread.push(stream);
        assert!(unread.len() * whole <= limits::MESSAGES_BYTES_MAX, "no listing was refused");
    };
    let refused = Reply::parse(&refused);
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("busy", Some("1")));
    assert_eq!(server.get("/health").status, 200);
    drop(unread);
    while server.get("/api/recordings").status != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_reader_that_pauses_for_15_seconds_gets_the_rest() {
    let server = Server::start();
    let mut stream = begin(&server, "/api/recordings/endless.mp4", "200");
    // The receive window closes at once, because nothing is read.
    std::thread::sleep(Duration::from_secs(15));
    let rest = read_to_end(&mut stream).len() as u64;
    assert!(rest >= ENDLESS_BYTES, "{rest} bytes of {ENDLESS_BYTES}");
}

#[test]
fn a_file_name_beyond_ascii_reaches_the_browser() {
    let server = Server::start();
    let reply = server.get("/api/recordings/K%C3%BCche%201.mp4");
    assert_eq!(
        reply.header("content-disposition"),
        Some("inline; filename=\"K_che 1.mp4\"; filename*=UTF-8''K%C3%BCche%201.mp4")
    );
}

#[test]
fn a_player_of_a_growing_recording_is_sent_to_the_part_that_exists() {
    let server = Server::start();
    let path = "/api/recordings/growing%3A1.mp4";
    let get = |query: &str, range: &str| server.request("GET", &format!("{path}{query}"), range, b"");
    for (query, location) in [("", "?until=1000000"), ("?key=a%2Fb", "?key=a%2Fb&until=1000000")] {
        for range in ["Range: bytes=0-\r\n", "Range: bytes=0-1\r\n"] {
            let reply = get(query, range);
            assert_eq!((reply.status, reply.header("location")), (307, Some(location)), "{range}");
        }
    }
    let part = get("?until=1000000", "Range: bytes=0-\r\n");
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 0-1000099/1000100")));
    // Without a range, and to continue a download, the file is sent as it is on disk.
    assert_eq!(get("", "").status, 200);
    let rest = get("", "Range: bytes=5-\r\n");
    assert_eq!((rest.status, rest.header("content-range")), (206, Some("bytes 5-999999/1000000")));
    assert_eq!(get("?follow=1", "Range: bytes=0-\r\n").status, 200);
    for query in ["?until=", "?until=-1", "?until=x", "?until=99999999999999999999"] {
        assert_eq!(get(query, "").code(), "bad_until", "{query}");
    }
}
