//! Takes any text as a request head, one field per line. Each request must be routed or refused. A foreign page or host
//! must change nothing, a byte range must lie within the file, and only the right token may be admitted.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use streaming_server::base::clock::Moment;
use streaming_server::config::{Config, Parsed};
use streaming_server::http::Hosts;
use streaming_server::http::access::Access;
use streaming_server::http::ranges::{self, Part};
use streaming_server::http::request::Head;
use streaming_server::http::routes::{self, Action, Policy};

const FILE_BYTES: u64 = 1_000;
const OWN: &str = "camera.example:8080";
const FRIEND: &str = "https://home.example";

const TOKEN: &str = "correct-horse-battery";

static ACCESS: LazyLock<Access> = LazyLock::new(|| {
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let parsed = Config::from_args(["--token".into(), TOKEN.into()], |_| None, no_file);
    let Ok(Parsed::Run(config)) = parsed else { panic!("the options of the test are valid") };
    Access::new(config.token.expect("a token"), 8080, Arc::default())
});

fn decide(policy: &Policy, head: &Head<'_>, body: &[u8]) -> Action {
    routes::admit(policy, head).map_or_else(Action::Respond, |route| route.act(head, body))
}

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
        if_match: field(),
        content_type: field(),
        range: field(),
        if_range: field(),
        authorization: field(),
        cookie: field(),
        accept: field(),
        referer: field(),
        requested_method: field(),
        accept_encoding: field(),
    };
    let body = lines.next().unwrap_or_default().as_bytes();
    let policy = Policy { allow_origin: vec![FRIEND.to_owned()], hosts: None, ..Policy::default() };
    let action = decide(&policy, &head, body);
    assert_eq!(action, decide(&policy, &head, body), "the same request must give the same decision");
    if let Action::Respond(response) = action {
        let _ = routes::finish(&policy, &head, response);
    }

    let foreign = Head { host: Some(OWN), origin: Some("https://foreign.example"), ..head };
    if !matches!(foreign.method, "GET" | "HEAD" | "OPTIONS") {
        assert!(matches!(decide(&policy, &foreign, body), Action::Respond(_)), "{foreign:?}");
    }

    let hosts = Some(Hosts::new("camera", []));
    let rebound = Head { host: Some("foreign.example"), ..head };
    if rebound.path != "/health" {
        let action = decide(&Policy { hosts, ..policy.clone() }, &rebound, body);
        assert!(matches!(action, Action::Respond(_)), "{rebound:?}");
    }

    match ACCESS.check(&head, IpAddr::V4(Ipv4Addr::LOCALHOST), Moment::now()) {
        Ok(None) => assert!(head.authorization.is_some_and(|header| {
            header.contains(TOKEN) || header.to_ascii_lowercase().contains("basic ")
        })),
        Ok(Some(login)) => panic!("a forged cookie was admitted: {login:?}"),
        Err(error) => assert!(matches!(error.status, 401 | 429), "{error}"),
    }

    if let Part::Some(bytes) = ranges::part(head.range, head.if_range, "\"etag\"", FILE_BYTES) {
        assert!(bytes.start < bytes.end && bytes.end <= FILE_BYTES, "{bytes:?}");
    }
    if let Some(decoded) = ranges::decode_segment(head.path) {
        assert!(decoded.len() <= head.path.len());
    }
});
