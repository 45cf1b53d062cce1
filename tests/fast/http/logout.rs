//! Tests that a logout ends all responses of unknown length that belong to this login, on every connection, and no
//! response of another login.

use std::io::{Read, Write};
use std::net::TcpStream;

use streaming_server::base::limits::EVENT_LISTENERS_MAX;

use super::access::{TOKEN, bearer, cookie, guarded, log_in};
use super::events::Listener;
use super::stub::{ENDLESS_BYTES, Server, read_to_end};

fn log_out(server: &Server, set_cookie: &str) {
    assert_eq!(server.request("DELETE", "/api/session", &cookie(set_cookie), b"").status, 200);
    assert_eq!(server.request("GET", "/api/status", &cookie(set_cookie), b"").status, 401);
}

#[test]
fn a_logout_ends_the_event_streams_of_that_login_only() {
    let server = guarded();
    let (mine, other) = (log_in(&server), log_in(&server));
    let listen = |headers: &str| {
        let mut listener = Listener::with(&server, headers);
        listener.wait_for("status");
        listener
    };
    let (mut first, mut second) = (listen(&cookie(&mine)), listen(&cookie(&mine)));
    let (mut of_other, mut of_token) = (listen(&cookie(&other)), listen(&bearer(TOKEN)));
    log_out(&server, &mine);
    for listener in [&mut first, &mut second] {
        while listener.event().is_some() {}
    }
    for listener in [&mut of_other, &mut of_token] {
        for _ in 0..3 {
            listener.wait_for("status");
        }
    }
}

#[test]
fn a_logout_frees_the_slots_of_listeners_that_do_not_read() {
    let server = guarded();
    let (mine, other) = (log_in(&server), log_in(&server));
    let unread: Vec<Listener> =
        (0..EVENT_LISTENERS_MAX).map(|_| Listener::with(&server, &cookie(&mine))).collect();
    assert!(unread.iter().all(|listener| listener.head[0].contains(" 200 ")));
    assert!(Listener::with(&server, &cookie(&other)).head[0].contains(" 503 "));
    log_out(&server, &mine);
    // The connections are still open, but the server no longer counts them as listeners.
    while !Listener::with(&server, &cookie(&other)).head[0].contains(" 200 ") {}
}

/// Starts a download, reads its first bytes, and returns the connection.
fn download(server: &Server, query: &str, headers: &str) -> TcpStream {
    let mut stream = server.connect();
    let path = format!("/api/recordings/endless.mp4{query}");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut first = [0; 1000];
    stream.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&first));
    stream
}

#[test]
fn a_logout_ends_a_followed_recording() {
    let server = guarded();
    let mine = log_in(&server);
    let mut stream = download(&server, "?follow=1", &cookie(&mine));
    log_out(&server, &mine);
    // A followed recording never ends by itself here, so this read returns only because of the logout.
    let rest = read_to_end(&mut stream);
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "the final chunk would claim a complete file");
}

#[test]
fn a_download_in_progress_may_finish_after_a_logout() {
    let server = guarded();
    let mine = log_in(&server);
    let mut stream = download(&server, "", &cookie(&mine));
    log_out(&server, &mine);
    let rest = read_to_end(&mut stream).len() as u64;
    assert!((ENDLESS_BYTES - 1000..ENDLESS_BYTES).contains(&rest), "{rest}");
}
