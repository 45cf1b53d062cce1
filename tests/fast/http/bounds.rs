//! Tests of hostile and slow clients: malformed or too large bodies and heads, timeouts, many connections, and
//! shutdown.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use streaming_server::base::limits;
use streaming_server::http::HttpTimeouts;

use super::stub::{PATIENCE, Reply, Server, read_to_end};

// ---- tests: malformed and too large bodies ------------------------------------------------------------

#[test]
fn bad_offers_are_400_with_the_fitting_code() {
    let server = Server::start();
    let deep = "[".repeat(10_000);
    let deep_field = format!("{{\"type\":\"offer\",\"x\":{deep}");
    let cases: [(&[u8], &str); 14] = [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"null", "bad_json"),
        (b"[]", "bad_json"),
        (b"\"v=0\"", "bad_json"),
        (b"{}", "bad_json"),
        (br#"{"type":"offer"}"#, "bad_json"),
        (br#"{"type":"offer","sdp":7}"#, "bad_json"),
        (b"\x00\xff\xfe\x80binary", "bad_json"),
        (deep.as_bytes(), "bad_json"),
        (deep_field.as_bytes(), "bad_json"),
        (br#"{"type":"answer","sdp":"v=0"}"#, "bad_type"),
        (br#"{"type":"offer","sdp":""}"#, "bad_sdp"),
        (br#"{"type":"offer","sdp":"<html>"}"#, "bad_sdp"),
    ];
    for (body, code) in cases {
        let reply = server.offer(body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert_eq!((reply.status, reply.code().as_str()), (400, code), "{shown}");
        assert!(reply.body.len() < 1_000, "{shown}");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_body_of_10_mb_is_refused() {
    let server = Server::start();
    let reply = server.offer(&vec![b'x'; 10_000_000]);
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    assert_eq!(reply.header("connection"), Some("close"));
}

#[test]
fn a_too_large_content_length_is_refused_before_the_body() {
    let server = Server::start();
    let head = "POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(Reply::parse(&read_to_end(&mut stream)).status, 413);
}

#[test]
fn too_many_chunks_are_refused() {
    let server = Server::start();
    let mut bytes =
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..limits::BODY_BYTES_MAX / 4096 + 2 {
        bytes.extend_from_slice(b"1000\r\n");
        bytes.extend_from_slice(&[b' '; 4096]);
        bytes.extend_from_slice(b"\r\n");
    }
    assert_eq!(Reply::parse(&server.raw(&bytes)).status, 413);
}

#[test]
fn a_body_of_exactly_the_bound_is_read() {
    let server = Server::start();
    let mut body = br#"{"type":"offer","sdp":"v=0"}"#.to_vec();
    body.resize(limits::BODY_BYTES_MAX, b' ');
    assert_eq!(server.offer(&body).status, 200);
    body.push(b' ');
    assert_eq!(server.offer(&body).status, 413);
}

#[test]
fn a_body_on_a_route_without_one_is_refused() {
    let server = Server::start();
    assert_eq!(server.request("GET", "/health", "", b"hello").status, 413);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn broken_chunks_are_400() {
    let server = Server::start();
    let reply = server.raw(
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    );
    assert_eq!(Reply::parse(&reply).status, 400);
}

// ---- tests: malformed and too large heads -------------------------------------------------------------

#[test]
fn malformed_heads_are_refused() {
    let server = Server::start();
    let cases: [&[u8]; 12] = [
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nOrigin: http://b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET /he alth HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client hello\r\n\r\n",
        b"\r\n\r\nGET\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
    ];
    for case in cases {
        let reply = Reply::parse(&server.raw(case));
        assert_eq!(reply.status, 400, "{}", String::from_utf8_lossy(case));
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn http_1_0_needs_no_host() {
    let server = Server::start();
    assert_eq!(Reply::parse(&server.raw(b"GET /health HTTP/1.0\r\n\r\n")).status, 200);
}

#[test]
fn an_endless_header_is_431() {
    let server = Server::start();
    let mut bytes = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ".to_vec();
    bytes.resize(4_000_000, b'a');
    assert_eq!(Reply::parse(&server.raw(&bytes)).status, 431);
}

#[test]
fn too_many_headers_are_431() {
    let server = Server::start();
    let many = "X-Header: 1\r\n".repeat(500);
    assert_eq!(server.request("GET", "/health", &many, b"").status, 431);
}

#[test]
fn a_head_below_the_bound_is_read() {
    let server = Server::start();
    let cookie = format!("Cookie: {}\r\n", "c".repeat(limits::HEADER_BYTES_MAX - 1_000));
    assert_eq!(server.request("GET", "/health", &cookie, b"").status, 200);
}

// ---- tests: timeouts ----------------------------------------------------------------------------------

pub(crate) fn short() -> HttpTimeouts {
    let short = Duration::from_millis(150);
    HttpTimeouts { handshake: short, idle: short, header: short, body: short, backend: short, live: short }
}

#[test]
fn a_slow_head_ends_the_connection() {
    // The time for an idle connection is longer, and does not count once the head has begun.
    let server = Server::with_timeouts(HttpTimeouts { idle: PATIENCE, ..short() });
    let mut stream = server.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut slow = stream.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while slow.write_all(b"X-Drip: 1\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(read_to_end(&mut stream), b"");
    drop(stream);
    drip.join().unwrap();
}

#[test]
fn an_idle_connection_is_closed_before_and_between_requests() {
    let server = Server::with_timeouts(short());
    assert_eq!(read_to_end(&mut server.connect()), b"");
    let mut stream = server.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(Reply::parse(&read_to_end(&mut stream)).status, 200);
}

/// A script that polls in the interval of the timeout must not lose requests because the server closes just then.
#[test]
fn an_idle_connection_stays_open_for_longer_than_a_head_may_take() {
    let server = Server::with_timeouts(HttpTimeouts { idle: PATIENCE, ..short() });
    let mut stream = server.connect();
    for _ in 0..3 {
        std::thread::sleep(2 * short().header);
        assert_eq!(ask(&mut stream).unwrap().status, 200);
    }
    assert!(
        limits::IDLE_TIMEOUT > Duration::from_secs(60) && limits::HEADER_TIMEOUT <= Duration::from_secs(10)
    );
}

#[test]
fn a_slow_body_is_408() {
    let server = Server::with_timeouts(short());
    let mut stream = server.connect();
    let head = "POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"type\"";
    stream.write_all(head.as_bytes()).unwrap();
    let reply = Reply::parse(&read_to_end(&mut stream));
    assert_eq!((reply.status, reply.code().as_str()), (408, "timeout"));
}

#[test]
fn a_hanging_backend_is_503() {
    let server = Server::with_timeouts(short());
    let reply = server.offer(br#"{"type":"offer","sdp":"v=0 hang"}"#);
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (503, "busy", Some("1")));
}

// ---- tests: many requests and many connections --------------------------------------------------------

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut bytes = Vec::new();
    for path in ["/health", "/nothing", "/metrics", "/viewer.css"] {
        bytes.extend_from_slice(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"GET /api/viewers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let replies = String::from_utf8(server.raw(&bytes)).unwrap();
    let statuses: Vec<&str> = replies.split("HTTP/1.1 ").skip(1).map(|reply| &reply[..3]).collect();
    assert_eq!(statuses, ["200", "404", "200", "200", "200"]);
    let order =
        ["\"ok\"", "not_found", "up 1", "color-scheme", "\"id\":2"].map(|part| replies.find(part).unwrap());
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn a_thousand_pipelined_requests_are_all_answered() {
    let server = Server::start();
    let mut stream = server.connect();
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for _ in 0..1_000 {
            writer.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let replies = String::from_utf8(read_to_end(&mut stream)).unwrap();
    sender.join().unwrap();
    assert_eq!(replies.matches("HTTP/1.1 200").count(), 1_000);
}

/// Sends a request on an open connection and returns the response, whose body must end in `}`. Returns `None` if the
/// connection is closed.
pub(crate) fn ask(stream: &mut TcpStream) -> Option<Reply> {
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"}") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    Some(Reply::parse(&bytes))
}

// ---- tests: shutdown ----------------------------------------------------------------------------------

#[test]
fn stop_finishes_answers_in_progress_and_closes_idle_connections() {
    let mut server = Server::start();
    let mut idle = server.connect();
    assert_eq!(ask(&mut idle).unwrap().status, 200);
    let mut busy = server.connect();
    let body = r#"{"type":"offer","sdp":"v=0 slow"}"#;
    let head = format!(
        "POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    busy.write_all(head.as_bytes()).unwrap();
    // The interim response 100 Continue shows that the server is already serving the request.
    let mut interim = [0; 25];
    busy.read_exact(&mut interim).unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100 "));
    busy.write_all(body.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    server.stop.send_replace(true);
    assert_eq!(read_to_end(&mut idle), b"");
    assert_eq!(Reply::parse(&read_to_end(&mut busy)).status, 200);
    server.stop();
    assert!(TcpStream::connect(server.address).is_err(), "the port is still open");
}

#[test]
fn stop_does_not_wait_for_an_incomplete_request() {
    let mut server = Server::start();
    let mut stream = server.connect();
    stream.write_all(b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    server.stop();
    assert_eq!(read_to_end(&mut stream), b"");
}
