//! Tests how the places for connections are shared when they run out: idle connections give way, and neither one
//! address nor one login can take all of them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use streaming_server::base::limits::{CONNECTIONS_MAX, CONNECTIONS_SHARE};
use streaming_server::http::{HttpConfig, HttpTimeouts};

use super::access::{TOKEN, access, cookie, log_in};
use super::bounds::ask;
use super::stub::{Reply, Server, open, read_to_end};

const OFFER: &str = r#"{"type":"offer","sdp":"v=0 hang"}"#;

/// Starts a server whose requests may take as long as the test does.
fn start(token: Option<&str>) -> Server {
    let patient = Duration::from_secs(3600);
    let timeouts = HttpTimeouts {
        handshake: patient,
        idle: patient,
        header: patient,
        body: patient,
        backend: patient,
        live: patient,
    };
    let access = token.map(|token| access(token, 8080));
    Server::configured(timeouts, |address| HttpConfig { access, ..open(address) })
}

/// Sends a request that the server answers never, so the connection is always busy. Returns false if the server refuses
/// it.
fn occupy(stream: &mut TcpStream, headers: &str) -> bool {
    let head = format!(
        "POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        OFFER.len()
    );
    // The server may already have closed a refused connection, so the result is ignored. The answer is read below.
    let _ = stream.write_all(head.as_bytes());
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    match &status {
        // The interim answer shows that the request is in progress.
        b"HTTP/1.1 100" => {
            stream.write_all(OFFER.as_bytes()).unwrap();
            true
        }
        b"HTTP/1.1 503" => false,
        other => panic!("{}", String::from_utf8_lossy(other)),
    }
}

/// Returns a loopback address. The server counts each as the address of another caller.
fn source(number: usize) -> [u8; 4] {
    [127, 0, 80, u8::try_from(number).unwrap()]
}

fn busy(server: &Server, number: usize) -> TcpStream {
    let mut stream = server.connect_from(source(number));
    assert!(occupy(&mut stream, ""), "a connection of address {number} was refused");
    stream
}

fn idle(server: &Server, number: usize) -> TcpStream {
    let mut stream = server.connect_from(source(number));
    assert_eq!(ask(&mut stream).unwrap().status, 200);
    stream
}

#[test]
fn connections_above_the_limit_get_503_while_all_others_are_busy() {
    let server = start(None);
    let _held: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|number| busy(&server, number % 8)).collect();
    for _ in 0..44 {
        let reply = Reply::parse(&server.raw(b""));
        assert_eq!((reply.status, reply.code().as_str()), (503, "too_many_connections"));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
}

#[test]
fn idle_connections_and_slow_heads_give_way_to_new_connections() {
    let server = start(None);
    let mut slow = server.connect_from(source(1));
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    let idle: Vec<TcpStream> = (1..CONNECTIONS_MAX).map(|number| idle(&server, 10 + number % 8)).collect();
    let mut held: Vec<TcpStream> =
        (1..CONNECTIONS_MAX).map(|number| busy(&server, 20 + number % 8)).collect();
    for mut stream in idle {
        assert_eq!(read_to_end(&mut stream), b"", "closed without an answer");
    }
    held.push(busy(&server, 30));
    assert_eq!(read_to_end(&mut slow), b"", "an unfinished request goes after the idle connections");
    assert!(!occupy(&mut server.connect(), ""), "requests in progress stay");
}

#[test]
fn one_address_cannot_take_all_connections() {
    let server = start(None);
    let mut held = Vec::new();
    loop {
        let mut stream = server.connect_from(source(1));
        if !occupy(&mut stream, "") {
            break;
        }
        held.push(stream);
        assert!(held.len() < CONNECTIONS_MAX, "one address has all connections");
    }
    assert!(held.len() >= CONNECTIONS_SHARE);
    let others: Vec<TcpStream> = (0..CONNECTIONS_SHARE).map(|number| busy(&server, 2 + number % 4)).collect();
    assert_eq!(others.len(), CONNECTIONS_MAX - CONNECTIONS_SHARE, "others get their half");
}

#[test]
fn one_login_cannot_take_all_connections_from_many_addresses() {
    let server = start(Some(TOKEN));
    let (mine, other) = (cookie(&log_in(&server)), cookie(&log_in(&server)));
    let mut held = Vec::new();
    loop {
        let mut stream = server.connect_from(source(held.len() % 8));
        if !occupy(&mut stream, &mine) {
            break;
        }
        held.push(stream);
        assert!(held.len() < CONNECTIONS_MAX, "one login has all connections");
    }
    assert!(held.len() >= CONNECTIONS_SHARE);
    assert!(occupy(&mut server.connect_from(source(3)), &other));
}

/// Connections that say nothing are idle too: a caller cannot keep the server busy with them.
#[test]
fn silent_connections_give_way() {
    let server = start(None);
    let _silent: Vec<TcpStream> =
        (0..2 * CONNECTIONS_MAX).map(|number| server.connect_from(source(1 + number % 100))).collect();
    assert_eq!(server.get("/health").status, 200);
}
