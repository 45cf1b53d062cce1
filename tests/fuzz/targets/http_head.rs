//! Any request head, one field a line: it is routed or refused, a foreign page changes nothing, and a byte range lies
//! inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming_server::http::ranges::{self, Part};
use streaming_server::http::routes::{self, Action, Head, Policy};

const FILE_BYTES: u64 = 1_000;
const OWN: &str = "camera.example:8080";
const FRIEND: &str = "https://home.example";

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut field = || lines.next().filter(|line| !line.is_empty());
    let head = Head {
        method: field().unwrap_or("GET"),
        path: field().unwrap_or("/"),
        query: field(),
        host: field(),
        origin: field(),
        if_none_match: field(),
        range: field(),
        if_range: field(),
        authorization: field(),
        cookie: field(),
        requested_method: field(),
    };
    let body = lines.next().unwrap_or_default().as_bytes();
    let policy = Policy { allow_origin: vec![FRIEND.to_owned()], hosts: None };
    let action = routes::route(&policy, &head, body);
    assert_eq!(action, routes::route(&policy, &head, body), "the same request, another decision");
    if let Action::Respond(response) = action {
        let _ = routes::finish(&policy, &head, response);
    }

    let foreign = Head { host: Some(OWN), origin: Some("https://foreign.example"), ..head };
    if !matches!(foreign.method, "GET" | "HEAD" | "OPTIONS") {
        assert!(matches!(routes::route(&policy, &foreign, body), Action::Respond(_)), "{foreign:?}");
    }

    if let Part::Some(bytes) = ranges::part(head.range, head.if_range, "\"etag\"", FILE_BYTES) {
        assert!(bytes.start < bytes.end && bytes.end <= FILE_BYTES, "{bytes:?}");
    }
    if let Some(decoded) = ranges::decode_segment(head.path) {
        assert!(decoded.len() <= head.path.len());
    }
});
