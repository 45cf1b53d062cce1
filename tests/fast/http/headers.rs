//! No response has a header twice, on any route. [`Reply::parse`] checks each response; the requests here reach them all.

use std::io::{Read, Write};

use streaming_server::http::{HttpConfig, HttpTimeouts};

use super::access::{TOKEN, access, bearer};
use super::stub::{FRIEND, KEY, Reply, Server, open};

/// Sends a request and returns the response without its body, which may have no end.
fn head(server: &Server, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let mut stream = server.connect();
    let host =
        if headers.contains("Host: ") { String::new() } else { format!("Host: {}\r\n", server.address) };
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\n{host}Content-Length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4_096]);
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).unwrap();
        assert_ne!(count, 0, "{method} {path} got no response");
        bytes.extend_from_slice(&chunk[..count]);
    }
    Reply::parse(&bytes)
}

/// Returns all paths of the description of the API, with these values in the place of their variable parts.
fn paths(server: &Server, headers: &str) -> Vec<String> {
    let description = server.request("GET", "/api/openapi.json", headers, b"").json();
    let described = description["paths"].as_object().unwrap().keys();
    let filled = described
        .map(|path| path.replace("{stream}", "camera").replace("{session}", KEY).replace("{name}", "a.mp4"));
    filled.collect()
}

/// Returns the bodies to send with this method to this path: valid ones and invalid ones.
fn bodies(method: &str, path: &str) -> &'static [&'static str] {
    match method {
        "POST" if path.ends_with("/whep") => &["v=0\r\n", "v=0 full", "v=0 vp8", "hello"],
        "POST" if path.ends_with("/offer") => &["{\"type\":\"offer\",\"sdp\":\"v=0\"}", "{"],
        "POST" if path.ends_with("/session") => &["{\"token\":\"correct-horse-battery\"}", "{"],
        "POST" => &["{}", "{"],
        "PATCH" => &["a=end-of-candidates\r\n", "a=ice-ufrag:new\r\n"],
        _ => &[""],
    }
}

/// Sends requests of all kinds to all paths. Returns the number of different statuses.
fn visit_all(server: &Server, authorization: &str) -> usize {
    let friend = format!("Origin: {FRIEND}\r\n");
    let preflight = format!("{friend}Access-Control-Request-Method: POST\r\n");
    let kinds = [
        "",
        &friend,
        &preflight,
        "Origin: https://foreign.example\r\n",
        "Accept: text/html\r\n",
        "Connection: close\r\nIf-Match: *\r\n",
        "If-None-Match: *\r\nRange: bytes=0-1\r\n",
        "Range: bytes=99999999-\r\n",
        "Host: a\r\nHost: b\r\n",
    ];
    let mut statuses = std::collections::BTreeSet::new();
    let unknown = "/unknown".to_owned();
    for path in paths(server, authorization).iter().chain([&unknown]) {
        for method in ["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT"] {
            for body in bodies(method, path) {
                for kind in kinds {
                    let mut variants = vec![kind.to_owned(), format!("{authorization}{kind}")];
                    variants.dedup();
                    for headers in variants {
                        statuses.insert(head(server, method, path, &headers, body).status);
                    }
                }
            }
        }
        let long = "x".repeat(70_000);
        statuses.insert(
            head(server, "POST", path, &format!("{authorization}Connection: close\r\n"), &long).status,
        );
    }
    println!("{statuses:?}");
    statuses.len()
}

#[test]
fn no_response_has_a_header_twice() {
    let without_token = Server::start();
    assert!(visit_all(&without_token, "") >= 12);
    let with_token = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        access: Some(access(TOKEN, 8080)),
        ..open(address)
    });
    assert!(visit_all(&with_token, &bearer(TOKEN)) >= 12);
}
