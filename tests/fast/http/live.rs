//! Tests of HTTP live in front of a stub backend, whose streams never end.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use streaming_server::http::HttpTimeouts;
use support::wait_until;

use super::access::{TOKEN, bearer, cookie, guarded, head, log_in, request_text};
use super::stub::{FRIEND, Server, read_to_end};

const PATHS: [(&str, &str, &str); 4] = [
    ("/live.mp4", "video/mp4", "fragment"),
    ("/camera/live.mp4", "video/mp4", "fragment"),
    ("/live.h264", "video/h264", "nal unit"),
    ("/camera/live.h264", "video/h264", "nal unit"),
];

/// Requests the stream and reads its first bytes.
fn watch(server: &Server, headers: &str) -> TcpStream {
    let mut stream = server.connect();
    let reply = head(&mut stream, &request_text("GET", "/live.mp4", headers, ""));
    assert_eq!(reply.status, 200, "{reply:?}");
    stream
}

impl Server {
    fn live_counts(&self) -> (u32, u32) {
        let live = &self.backend.live;
        (live.opened.load(Ordering::Relaxed), live.ended.load(Ordering::Relaxed))
    }
}

#[test]
fn both_formats_are_streams_without_a_length_that_are_never_stored() {
    let server = Server::start();
    for (path, content_type, piece) in PATHS {
        let mut stream = server.connect();
        let reply = head(&mut stream, &request_text("GET", path, &format!("Origin: {FRIEND}\r\n"), ""));
        for (name, value) in [
            ("content-type", content_type),
            ("cache-control", "no-store"),
            ("accept-ranges", "none"),
            ("transfer-encoding", "chunked"),
            ("access-control-allow-origin", FRIEND),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path}: {name}");
        }
        assert_eq!((reply.status, reply.header("content-length")), (200, None), "{path}");
        let mut first = [0; 100_000];
        stream.read_exact(&mut first).unwrap();
        assert!(String::from_utf8_lossy(&first).contains(&piece.repeat(3)), "{path}");
    }
    wait_until("streams end with their connections", || server.live_counts() == (4, 4));
}

#[test]
fn head_has_the_headers_and_opens_no_stream() {
    let server = Server::start();
    for (path, content_type, _) in PATHS {
        let waiting = server.request("HEAD", path, "", b"");
        assert_eq!((waiting.status, waiting.header("retry-after")), (503, Some("2")), "{path}");
        server.backend.is_ready.store(true, Ordering::Relaxed);
        let ready = server.request("HEAD", path, "", b"");
        assert_eq!((ready.status, ready.header("content-type")), (200, Some(content_type)), "{path}");
        assert!(ready.body.is_empty());
        server.backend.is_ready.store(false, Ordering::Relaxed);
    }
    assert_eq!(server.live_counts(), (0, 0));
}

#[test]
fn other_streams_and_other_methods_are_refused() {
    let server = Server::start();
    for path in ["/garden/live.mp4", "//live.mp4", "/camera/live.mkv", "/camera/live.mp4/1", "/live.mp4/"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    let wrong = server.request("POST", "/camera/live.mp4", "", b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(server.live_counts(), (0, 0));
}

#[test]
fn stream_ends_with_its_login_and_others_go_on() {
    let server = guarded();
    let (mine, other) = (log_in(&server), log_in(&server));
    let (mut ended, mut of_other) = (watch(&server, &cookie(&mine)), watch(&server, &cookie(&other)));
    let mut of_token = watch(&server, &bearer(TOKEN));
    assert_eq!(server.request("DELETE", "/api/session", &cookie(&mine), b"").status, 200);
    // The body has a regular end, and the connection stays open for the next request.
    let mut last = [0; 5];
    while !last.ends_with(b"\r\n0\r\n") {
        last.rotate_left(1);
        ended.read_exact(&mut last[4..]).unwrap();
    }
    for stream in [&mut of_other, &mut of_token] {
        stream.read_exact(&mut [0; 1_000_000]).unwrap();
    }
}

#[test]
fn stream_ends_when_the_server_stops() {
    let mut server = Server::start();
    let mut stream = watch(&server, "");
    let reading = std::thread::spawn(move || read_to_end(&mut stream));
    server.stop();
    assert!(reading.join().unwrap().ends_with(b"\r\n0\r\n\r\n"));
}

#[test]
fn connection_of_a_viewer_that_does_not_read_ends() {
    let short = Duration::from_millis(200);
    let server = Server::with_timeouts(HttpTimeouts { live: short, ..HttpTimeouts::default() });
    let _stuck = watch(&server, "");
    wait_until("the viewer that does not read ends", || server.live_counts() == (1, 1));
}

#[test]
fn backend_can_close_a_connection_that_does_not_read() {
    let server = Server::start();
    let mut stuck = watch(&server, "");
    for connection in server.backend.live.connections.lock().unwrap().drain(..) {
        connection.notify_one();
    }
    wait_until("the viewer ends", || server.live_counts() == (1, 1));
    read_to_end(&mut stuck);
}
