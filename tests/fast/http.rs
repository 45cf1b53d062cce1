//! Tests of the HTTP endpoint over real sockets and with raw bytes, in front of a stub backend: every route and every
//! refusal. They do not use the rest of the program.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a failed test may panic"
)]

mod access;
mod bounds;
mod detections;
mod downloads;
mod events;
mod headers;
mod live;
mod logout;
mod origins;
mod places;
mod recordings;
mod stub;
mod tls;
mod whep;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use streaming_server::http::SessionCommand;
use streaming_server::metrics::status::GlassReport;
use stub::{FRIEND, KEY, Reply, Server};

const PATHS: [(&str, &str); 15] = [
    ("/api/webrtc/offer", "POST"),
    ("/api/detections", "POST"),
    ("/api/viewers", "GET"),
    ("/api/status", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
    ("/", "GET"),
    ("/viewer.js", "GET"),
    ("/login.js", "GET"),
    ("/events.js", "GET"),
    ("/live.js", "GET"),
    ("/remedies.js", "GET"),
    ("/viewer.css", "GET"),
    ("/icon.svg", "GET"),
];

// ---- tests: routes ------------------------------------------------------------------------------------

#[test]
fn an_offer_gets_an_answer() {
    let server = Server::start();
    let reply = server.offer(br#"{"type":"offer","sdp":"v=0\r\n"}"#);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json(), json!({ "type": "answer", "sdp": "v=0 answer to 5 bytes", "session": KEY }));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
}

#[test]
fn an_offer_may_ask_to_hold_pictures_back() {
    let server = Server::start();
    let asked = || server.backend.playout_delay_max_ms.load(Ordering::Relaxed);
    let offer = |more: &str| server.offer(format!(r#"{{"type":"offer","sdp":"v=0"{more}}}"#).as_bytes());
    assert_eq!((offer(r#","playout_delay_max_ms":500"#).status, asked()), (200, 500));
    assert_eq!((offer("").status, asked()), (200, 0));
    let refused = offer(r#","playout_delay_max_ms":501"#);
    assert_eq!((refused.status, refused.code().as_str()), (400, "bad_playout_delay"));
}

#[test]
fn a_report_reaches_the_session_of_its_key() {
    let server = Server::start();
    let report = |key: &str, samples: u32| {
        let body = json!({ "session": key, "p50_ms": 35.5, "p95_ms": 60, "samples": samples }).to_string();
        server.request("POST", "/api/viewers/report", "", body.as_bytes())
    };
    let noted = report(KEY, 300);
    assert_eq!((noted.status, noted.body.len()), (204, 0));
    let (p50, p95) = (Duration::from_micros(35_500), Duration::from_millis(60));
    let command = SessionCommand::Report(GlassReport { p50, p95, samples: 300 });
    assert_eq!(*server.backend.sessions.lock().unwrap(), [(KEY.to_owned(), command)]);
    let unknown = report("fedcba", 300);
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "no_session"));
    let soon = report(KEY, 429);
    assert_eq!((soon.status, soon.code().as_str(), soon.header("retry-after")), (429, "too_soon", Some("1")));
    let bad = server.request("POST", "/api/viewers/report", "", b"{}");
    assert_eq!((bad.status, bad.code().as_str()), (400, "bad_report"));
    let foreign = "Origin: https://elsewhere.example\r\n";
    assert_eq!(server.request("POST", "/api/viewers/report", foreign, b"{}").status, 403);
}

#[test]
fn an_offer_may_come_with_any_content_type_and_further_fields() {
    let server = Server::start();
    let body = br#"{"sdp":"v=0","toJSON":{"a":[1]},"type":"offer"}"#;
    for kind in ["application/x-www-form-urlencoded", "application/json; charset=utf-8", "text/plain"] {
        let reply = server.request("POST", "/api/webrtc/offer", &format!("Content-Type: {kind}\r\n"), body);
        assert_eq!(reply.status, 200, "{kind}");
    }
}

#[test]
fn a_chunked_offer_gets_an_answer() {
    let server = Server::start();
    let reply = server.raw(
        b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
          10\r\n{\"type\":\"offer\",\r\nc\r\n\"sdp\":\"v=0\"}\r\n0\r\n\r\n",
    );
    assert_eq!(Reply::parse(&reply).status, 200);
}

#[test]
fn refusals_of_the_backend_reach_the_caller() {
    let server = Server::start();
    let full = server.offer(br#"{"type":"offer","sdp":"v=0 full"}"#);
    assert_eq!((full.status, full.code().as_str(), full.header("retry-after")), (503, "full", Some("5")));
    let codec = server.offer(br#"{"type":"offer","sdp":"v=0 vp8"}"#);
    assert_eq!((codec.status, codec.code().as_str()), (422, "no_common_codec"));
    assert_eq!(codec.header("retry-after"), None);
}

#[test]
fn simple_routes_answer() {
    let server = Server::start();
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    assert_eq!(server.get("/health?now=1").status, 200);
    let viewers = server.get("/api/viewers").json();
    assert_eq!((&viewers[0]["id"], &viewers[1]["id"]), (&json!(1), &json!(2)));
    let status = server.get("/api/status").json();
    assert_eq!(status["camera"], json!({ "state": "away", "reason": "no camera" }));
    assert_eq!(status["recording"], json!({ "recording": false, "state": "idle" }));
    assert_eq!(status["viewers"], json!(2));
    assert_eq!((&status["name"], &status["title"]), (&json!("camera"), &json!("Front door")));
    assert_eq!(status["version"], json!(env!("CARGO_PKG_VERSION")));
    let metrics = server.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert_eq!(metrics.body, b"# TYPE up gauge\nup 1\n");
}

#[test]
fn viewers_have_all_their_fields() {
    let server = Server::start();
    let viewers = server.get("/api/viewers").json();
    assert_eq!(
        viewers[0],
        json!({
            "id": 1, "via": "webrtc", "state": "connected", "gate": "waiting_for_idr", "remote": "192.0.2.1:5000",
            "transport": "udp", "profile": null, "connected_ms": 1, "first_idr_ms": null, "units_sent": 0,
            "units_replayed": 0, "replays": 0, "units_dropped": 0, "drops_to_idr": 0, "bytes_sent": 0,
            "datagrams": 0, "datagrams_rejected": 0, "nacks": 0, "plis": 0, "retransmits": 0,
            "retransmits_refused": 0, "link_kbps": null, "stream_kbps": null, "paced": false, "units_thinned": 0, "lag_ms": null, "loss_fraction": 0.5, "rtt_ms": null, "jitter_ms": null, "glass_ms": null, "ended": null,
        })
    );
}

#[test]
fn ready_gives_the_reason_of_a_503() {
    let server = Server::start();
    let reply = server.get("/ready");
    assert_eq!((reply.status, reply.json()), (503, json!({ "status": "waiting", "reason": "no camera" })));
    server.backend.is_ready.store(true, Ordering::Relaxed);
    let reply = server.get("/ready");
    assert_eq!((reply.status, reply.json()), (200, json!({ "status": "ready" })));
}

#[test]
fn the_page_loads_its_own_files_only() {
    let server = Server::start();
    let page = server.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"));
    assert!(
        policy.ends_with(&format!("; frame-ancestors 'self' {FRIEND}")),
        "only allow-listed pages may frame ours: {policy}"
    );
    let html = String::from_utf8(page.body).unwrap();
    for file in ["viewer.js", "viewer.css", "icon.svg"] {
        assert!(html.contains(&format!("\"{file}\"")), "{file}");
        assert_eq!(server.get(&format!("/{file}")).status, 200);
    }
    for inline in ["<style", "style=", " onclick", "javascript:", "http://", "https://", "//cdn"] {
        assert!(!html.contains(inline), "{inline}");
    }
}

#[test]
fn files_are_revalidated_by_etag() {
    let server = Server::start();
    let first = server.get("/viewer.js");
    let etag = first.header("etag").unwrap();
    assert_eq!(first.header("cache-control"), Some("no-cache"));
    for tags in [etag.to_owned(), format!("\"other\", W/{etag}"), "*".to_owned()] {
        let again = server.request("GET", "/viewer.js", &format!("If-None-Match: {tags}\r\n"), b"");
        assert_eq!((again.status, again.body.len()), (304, 0), "{tags}");
        assert_eq!(again.header("etag"), Some(etag));
    }
    // A browser overwrites the headers of its cached page with those of a 304 response, so the 304 must not carry
    // a Content-Security-Policy that differs from that of the page.
    let page = server.get("/");
    let headers = format!("If-None-Match: {}\r\n", page.header("etag").unwrap());
    let again = server.request("GET", "/", &headers, b"");
    let policy = again.header("content-security-policy");
    assert_eq!(again.status, 304);
    assert!(policy.is_none() || policy == page.header("content-security-policy"), "{policy:?}");
    let other = server.request("GET", "/viewer.js", "If-None-Match: \"other\"\r\n", b"");
    assert_eq!(other.status, 200);
}

#[test]
fn files_are_sent_compressed_to_callers_that_accept_gzip() {
    let server = Server::start();
    for path in ["/", "/viewer.js"] {
        let plain = server.get(path);
        let gzip = server.request("GET", path, "Accept-Encoding: gzip, deflate, br\r\n", b"");
        assert_eq!(gzip.header("content-encoding"), Some("gzip"));
        assert_eq!(plain.header("content-encoding"), None);
        assert_eq!(
            (gzip.header("vary"), plain.header("vary")),
            (Some("accept-encoding"), Some("accept-encoding"))
        );
        assert!(gzip.body.starts_with(&[0x1f, 0x8b]) && 2 * gzip.body.len() < plain.body.len());
        assert_ne!(gzip.header("etag"), plain.header("etag"));
        let head = server.request("HEAD", path, "Accept-Encoding: gzip\r\n", b"");
        assert_eq!(head.header("content-length"), Some(gzip.body.len().to_string().as_str()));
        let tags = format!("Accept-Encoding: gzip\r\nIf-None-Match: {}\r\n", gzip.header("etag").unwrap());
        assert_eq!(server.request("GET", path, &tags, b"").status, 304);
    }
}

#[test]
fn every_response_carries_the_safety_headers() {
    let server = Server::start();
    for path in ["/", "/health", "/nothing", "/api/viewers"] {
        let reply = server.get(path);
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(reply.header("cross-origin-resource-policy"), Some("same-origin"), "{path}");
        assert_eq!(reply.header("strict-transport-security"), None, "browsers store this header for years");
        assert!(reply.header("content-security-policy").unwrap().contains("frame-ancestors"), "{path}");
        assert!(matches!(reply.header("cache-control"), Some("no-store" | "no-cache")), "{path}");
        assert!(reply.header("content-security-policy").unwrap().contains("default-src 'none'"), "{path}");
    }
}

// ---- tests: methods and paths -------------------------------------------------------------------------

#[test]
fn a_wrong_method_is_405_with_the_allowed_methods() {
    let server = Server::start();
    for (path, right) in PATHS {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"] {
            if method == right {
                continue;
            }
            let reply = server.request(method, path, "", b"");
            assert_eq!((reply.status, reply.code().as_str()), (405, "method_not_allowed"), "{method} {path}");
            let allow = reply.header("allow").unwrap();
            assert_eq!(allow, if right == "GET" { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" });
        }
    }
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let server = Server::start();
    for (path, _) in PATHS.iter().filter(|(_, method)| *method == "GET") {
        let get = server.get(path);
        let head = server.request("HEAD", path, "", b"");
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        for name in ["content-length", "content-type", "etag", "content-security-policy"] {
            assert_eq!(head.header(name), get.header(name), "{name} of {path}");
        }
        assert!(get.header("content-length").is_some());
    }
    assert_eq!(server.request("HEAD", "/api/webrtc/offer", "", b"").status, 405);
}

#[test]
fn paths_outside_of_the_table_are_404() {
    let server = Server::start();
    for path in [
        "/nothing",
        "/health/",
        "//health",
        "/HEALTH",
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/viewer.js/../../Cargo.toml",
        "/..%5c..%5cwindows",
        "/api",
        "/api/webrtc/offer%00",
        "/?/../../etc/passwd/..",
    ] {
        let reply = server.get(path);
        if path.starts_with("/?") {
            assert_eq!(reply.status, 200, "a query is not a path");
        } else {
            assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"), "{path}");
        }
    }
    assert_eq!(server.request("POST", "/nothing", "", b"{}").status, 404);
}

#[test]
fn an_absolute_target_is_routed_by_its_path() {
    let server = Server::start();
    let reply = server.get(&format!("http://{}/health", server.address));
    assert_eq!(reply.status, 200);
}

// ---- tests: requests from foreign pages ---------------------------------------------------------------

#[test]
fn only_our_page_and_allow_listed_pages_may_post() {
    let server = Server::start();
    let own = format!("http://{}", server.address);
    let foreign_port = format!("http://127.0.0.1:{}", server.address.port() ^ 1);
    let own_tls = format!("https://{}", server.address);
    let cases = [
        (None, 200),
        (Some(own.as_str()), 200),
        (Some(own_tls.as_str()), 200),
        (Some(FRIEND), 200),
        (Some("https://evil.example"), 403),
        (Some("https://home.example.evil"), 403),
        (Some("http://home.example"), 403),
        (Some(foreign_port.as_str()), 403),
        (Some("null"), 403),
        (Some("nonsense"), 403),
    ];
    let body = br#"{"type":"offer","sdp":"v=0"}"#;
    for (origin, status) in cases {
        let header = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let reply = server.request("POST", "/api/webrtc/offer", &header, body);
        assert_eq!(reply.status, status, "{origin:?}");
        if status == 403 {
            assert_eq!(reply.code(), "origin_refused");
        }
        let shared = reply.header("access-control-allow-origin");
        assert_eq!(shared, (origin == Some(FRIEND)).then_some(FRIEND), "{origin:?}");
        assert_eq!(reply.header("vary"), Some("origin, referer"));
    }
}

#[test]
fn only_allow_listed_pages_may_read_an_answer() {
    let server = Server::start();
    let foreign = server.request("GET", "/api/status", "Origin: https://evil.example\r\n", b"");
    assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (200, None));
    let listed = server.request("GET", "/api/status", &format!("Origin: {FRIEND}\r\n"), b"");
    assert_eq!(listed.header("access-control-allow-origin"), Some(FRIEND));
}

#[test]
fn only_preflights_of_allow_listed_pages_succeed() {
    let server = Server::start();
    let ask = |origin: &str| {
        let headers = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        server.request("OPTIONS", "/api/webrtc/offer", &headers, b"")
    };
    let listed = ask(FRIEND);
    assert_eq!((listed.status, listed.header("access-control-allow-origin")), (204, Some(FRIEND)));
    assert_eq!(listed.header("access-control-allow-methods"), Some("POST, OPTIONS"));
    let foreign = ask("https://evil.example");
    assert_eq!((foreign.status, foreign.header("access-control-allow-methods")), (403, None));
}

#[test]
fn options_names_the_methods_of_a_path() {
    let server = Server::start();
    for (path, method) in PATHS {
        let reply = server.request("OPTIONS", path, "", b"");
        assert_eq!(reply.status, 204, "{path}");
        assert!(reply.header("allow").unwrap().contains(method), "{path}");
    }
}
