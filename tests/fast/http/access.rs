//! Tests of token and login over real sockets: every route without a token, with a wrong and with the right token, over
//! HTTP and TLS; the cookie; the rate limit; foreign host names.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::json;
use streaming_server::base::limits;
use streaming_server::config::{Config, Parsed, Token};
use streaming_server::http::{Access, HttpConfig, HttpTimeouts, routes};

use super::stub::{FRIEND, KEY, Reply, Server, open};
use super::tls::{Authority, exchange};

pub(crate) const TOKEN: &str = "correct-horse-battery";
pub(crate) const OFFER: &str = r#"{"type":"offer","sdp":"v=0"}"#;
// A report of the only session that the stub has.
const REPORT: &str = r#"{"session":"0123456789abcdef","p50_ms":1,"p95_ms":2,"samples":3}"#;

pub(crate) fn token(text: &str) -> Token {
    let arguments = ["--token", text].map(Into::into);
    let absent = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    match Config::from_args(arguments, |_| None, absent).unwrap() {
        Parsed::Run(config) => config.token.unwrap(),
        Parsed::Print(text) => panic!("{text}"),
    }
}

pub(crate) fn access(text: &str, port: u16) -> Arc<Access> {
    Arc::new(Access::new(token(text), port, Arc::default()))
}

pub(crate) fn guarded() -> Server {
    Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        access: Some(access(TOKEN, 8080)),
        ..open(address)
    })
}

pub(crate) fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

pub(crate) fn request_text(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

/// Sends a request and returns the response without its body, which may never end.
pub(crate) fn head(mut stream: impl Read + Write, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).unwrap();
    stream.flush().unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).unwrap(),
            1,
            "the connection ended after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.push(byte[0]);
    }
    Reply::parse(&bytes)
}

pub(crate) fn log_in(server: &Server) -> String {
    let body = json!({ "token": TOKEN }).to_string();
    let reply = server.request("POST", "/api/session", "", body.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("set-cookie").unwrap().to_owned()
}

pub(crate) fn cookie(set_cookie: &str) -> String {
    format!("Cookie: theme=dark; {}\r\n", set_cookie.split(';').next().unwrap())
}

/// Returns one call of every route, with a valid body: method, path, true if the route needs no token, body.
pub(crate) fn every_call() -> Vec<(&'static str, String, bool, &'static str)> {
    let calls = routes::ROUTES.iter().map(|route| {
        let body = match (route.method, route.path) {
            (_, "/api/webrtc/offer") => OFFER,
            ("POST", "/api/session") => r#"{"token":"correct-horse-battery"}"#,
            (_, "/api/viewers/report") => REPORT,
            ("POST", "/STREAM/whep") => "v=0\r\n",
            ("POST", "/api/detections") => r#"{"frame":1,"detections":[]}"#,
            ("PATCH", _) => "a=end-of-candidates\r\n",
            _ => "",
        };
        let path = route.path.replace("NAME", "a%20b.mp4").replace("STREAM", "camera");
        (route.method, path.replace("SESSION", KEY), route.is_open, body)
    });
    calls.collect()
}

// ---- tests: every route with and without a token -------------------------------------------------------

#[test]
fn only_health_page_files_and_login_are_open() {
    let open: Vec<_> = every_call().into_iter().filter(|call| call.2).map(|call| (call.0, call.1)).collect();
    let is_listed = |(method, path): &(&str, String)| {
        let is_file = ["/", "/manifest.json"].contains(&path.as_str())
            || [".js", ".css", ".svg", ".png"].iter().any(|ending| path.ends_with(ending));
        (*method == "GET" && (is_file || path == "/health")) || (*method == "POST" && path == "/api/session")
    };
    assert!(open.iter().all(is_listed), "{open:?}");
    assert!(open.len() >= 7, "{open:?}");
    assert!(every_call().len() > open.len() + 10);
}

/// Calls every route without a token, with a wrong token and with the right token. Each route uses its own source
/// address, because wrong tokens are counted per address.
fn matrix(connect: impl Fn([u8; 4]) -> Box<dyn Connection>) {
    let mut source = [127, 0, 1, 0];
    // Candidates of WHEP need no token: `whep.rs` tests that.
    for (method, path, is_open, body) in every_call().into_iter().filter(|call| call.0 != "PATCH") {
        source[3] += 1;
        let ask = |headers: &str| head(connect(source), &request_text(method, &path, headers, body));
        let refused = |headers: &str, code: &str| {
            let reply = ask(headers);
            if is_open {
                assert_eq!(reply.status, 200, "{method} {path} with {headers:?}");
            } else {
                assert_eq!(reply.status, 401, "{method} {path} with {headers:?}");
                let challenge = reply.header("www-authenticate").unwrap();
                assert!(challenge.starts_with("Bearer "), "{challenge}");
                assert_eq!(challenge.contains("invalid_token"), code == "wrong_token", "{method} {path}");
                assert_eq!(reply.header("set-cookie"), None);
            }
        };
        refused("", "token_required");
        refused("Authorization: Basic Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5\r\n", "token_required");
        refused("Cookie: streaming-8080=1\r\n", "token_required");
        refused(&bearer("correct-horse-batterx"), "wrong_token");
        refused(&bearer("correct-horse-battery2"), "wrong_token");
        refused(&bearer("correct-horse"), "wrong_token");
        let reply = ask(&bearer(TOKEN));
        let is_good = matches!(reply.status, 200..=204) || (reply.status == 503 && path == "/ready");
        assert!(is_good, "{method} {path} with the token: {reply:?}");
    }
}

pub(crate) trait Connection: Read + Write {}
impl<T: Read + Write> Connection for T {}

#[test]
fn every_route_over_http_without_with_wrong_and_with_right_token() {
    let server = guarded();
    matrix(|source| Box::new(server.connect_from(source)));
}

#[test]
fn every_route_over_tls_without_with_wrong_and_with_right_token() {
    let authority = Authority::new();
    let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        access: Some(access(TOKEN, 8080)),
        tls: Some(authority.keys()),
        ..open(address)
    });
    matrix(|source| Box::new(authority.connect(server.connect_from(source))));
}

#[test]
fn without_a_token_everything_is_open() {
    let server = Server::start();
    for (method, path, _, body) in every_call() {
        let reply = head(server.connect(), &request_text(method, &path, "", body));
        assert!(matches!(reply.status, 200..=204 | 503), "{method} {path}: {reply:?}");
        assert_eq!(reply.header("set-cookie"), None);
    }
    assert_eq!(server.get("/api/session").json(), json!({ "token_required": false }));
}

#[test]
fn head_requires_the_token_and_a_preflight_does_not() {
    let server = guarded();
    assert_eq!(server.request("HEAD", "/api/status", "", b"").status, 401);
    assert_eq!(server.request("HEAD", "/api/status", &bearer(TOKEN), b"").status, 200);
    let preflight = format!("Origin: {FRIEND}\r\nAccess-Control-Request-Method: GET\r\n");
    assert_eq!(server.request("OPTIONS", "/api/status", &preflight, b"").status, 204);
}

#[test]
fn the_token_is_checked_before_the_body_is_read() {
    let server = guarded();
    let head =
        "POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 60000\r\n\r\n";
    assert_eq!(Reply::parse(&server.raw(head.as_bytes())).status, 401);
}

// ---- tests: the login cookie ---------------------------------------------------------------------------

#[test]
fn the_login_cookie_is_http_only_and_same_site() {
    let server = guarded();
    let plain = log_in(&server);
    let attributes: Vec<&str> = plain.split("; ").skip(1).collect();
    assert_eq!(attributes, ["Path=/", "Max-Age=2592000", "HttpOnly", "SameSite=Strict"]);
    assert!(plain.starts_with("streaming-8080-"));
    assert!(!plain.contains(TOKEN) && plain.len() < 250);
    assert_ne!(log_in(&server), plain, "two logins have the same cookie");
    assert_eq!(server.request("GET", "/api/status", &cookie(&plain), b"").status, 200);
    assert_eq!(
        server.request("GET", "/api/session", &cookie(&plain), b"").json(),
        json!({ "token_required": true })
    );
}

#[test]
fn the_cookie_is_secure_over_tls_and_behind_a_tls_proxy() {
    let authority = Authority::new();
    let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        access: Some(access(TOKEN, 8080)),
        tls: Some(authority.keys()),
        ..open(address)
    });
    let body = json!({ "token": TOKEN }).to_string();
    let request = request_text("POST", "/api/session", "Connection: close\r\n", &body);
    let reply = exchange(authority.connect(server.connect()), request.as_bytes());
    let secure = reply.header("set-cookie").unwrap();
    assert!(
        secure.starts_with("__Host-streaming-8080-") && secure.ends_with("; SameSite=Strict; Secure"),
        "{secure}"
    );
    let status = request_text("GET", "/api/status", &format!("{}Connection: close\r\n", cookie(secure)), "");
    assert_eq!(exchange(authority.connect(server.connect()), status.as_bytes()).status, 200);

    let behind_proxy = guarded();
    let origin = format!("Origin: https://{}\r\n", behind_proxy.address);
    let reply = behind_proxy.request("POST", "/api/session", &origin, body.as_bytes());
    let secure = reply.header("set-cookie").unwrap();
    assert!(secure.starts_with("__Host-") && secure.ends_with("; Secure"), "{secure}");
    assert_eq!(behind_proxy.request("GET", "/api/status", &cookie(secure), b"").status, 200);
}

#[test]
fn a_cookie_with_one_changed_letter_is_refused() {
    let server = guarded();
    let good = log_in(&server);
    let pair = good.split(';').next().unwrap();
    let start = pair.find('=').unwrap() + 1;
    for at in start..pair.len() {
        let mut bytes = pair.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(bytes).unwrap();
        let reply = server.request("GET", "/api/status", &format!("Cookie: {changed}\r\n"), b"");
        assert_eq!((reply.status, reply.code().as_str()), (401, "token_required"), "{changed}");
    }
    assert_eq!(
        server.request("GET", "/api/status", &cookie(&good), b"").status,
        200,
        "a wrong cookie must not count as a wrong token"
    );
}

#[test]
fn a_logout_ends_that_login_only() {
    let server = guarded();
    let (mine, other) = (log_in(&server), log_in(&server));
    let reply = server.request("DELETE", "/api/session", &cookie(&mine), b"");
    assert_eq!(reply.status, 200);
    let removed: Vec<_> = reply.headers.iter().filter(|header| header.0 == "set-cookie").collect();
    assert_eq!(removed.len(), 3, "all cookies are removed");
    assert!(removed.iter().all(|header| header.1.contains("=; ") && header.1.contains("Max-Age=0")));
    assert_eq!(server.request("GET", "/api/status", &cookie(&mine), b"").status, 401);
    assert_eq!(server.request("GET", "/api/status", &cookie(&other), b"").status, 200);
}

#[test]
fn a_login_survives_a_restart_but_not_another_token_or_port() {
    let good = log_in(&guarded());
    let with = |text: &'static str, port| {
        let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
            access: Some(access(text, port)),
            ..open(address)
        });
        server.request("GET", "/api/status", &cookie(&good), b"").status
    };
    assert_eq!(with(TOKEN, 8080), 200, "a login must survive a restart");
    assert_eq!(with("another-token-than-before", 8080), 401);
    assert_eq!(with(TOKEN, 8081), 401, "the name of the cookie contains the port");
}

#[test]
fn a_login_requires_json_and_its_answer_does_not_repeat_the_token() {
    let server = guarded();
    let bodies = ["", "{}", "[]", "null", "token=correct-horse-battery", r#"{"token":7}"#, r#"{"token":"a"#];
    for body in bodies {
        let reply = server.request("POST", "/api/session", "", body.as_bytes());
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_json"), "{body}");
        assert!(!String::from_utf8(reply.body).unwrap().contains("correct"), "{body}");
    }
    let wrong = server.request("POST", "/api/session", "", br#"{"token":"wrong-horse-battery"}"#);
    assert_eq!((wrong.status, wrong.code().as_str()), (401, "wrong_token"));
    assert_eq!(wrong.header("set-cookie"), None);
    let long = vec![b' '; limits::LOGIN_BYTES_MAX + 1];
    assert_eq!(server.request("POST", "/api/session", "", &long).status, 413);
}

// ---- tests: the rate limit for wrong tokens ------------------------------------------------------------

#[test]
fn wrong_tokens_throttle_their_address_only() {
    let server = guarded();
    let good = log_in(&server);
    let guesser = [127, 0, 9, 9];
    let guess = |token: &str| {
        head(server.connect_from(guesser), &request_text("GET", "/api/status", &bearer(token), ""))
    };
    for count in 0..limits::ATTEMPTS_OF_ADDRESS {
        assert_eq!(guess(&format!("wrong-token-number-{count}")).status, 401);
    }
    // A slow machine spreads the attempts over more time, so the limit may allow a few more of them before it refuses.
    let mut late = (0..40).map(|_| guess("wrong-token-once-more")).filter(|reply| reply.status == 429);
    let reply = late.next().unwrap();
    let retry_after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=limits::ATTEMPT_INTERVAL_OF_ADDRESS.as_secs() + 1).contains(&retry_after), "{retry_after}");
    let body = json!({ "token": "wrong-token-number-x" }).to_string();
    let login = (0..40)
        .map(|_| head(server.connect_from(guesser), &request_text("POST", "/api/session", "", &body)).status);
    assert!(login.into_iter().any(|status| status == 429), "the login shares the limit with the header");

    let status = |source, headers: &str| {
        head(server.connect_from(source), &request_text("GET", "/api/status", headers, "")).status
    };
    assert_eq!(status(guesser, &cookie(&good)), 200, "a login is not throttled");
    assert_eq!(status([127, 0, 9, 10], &bearer(TOKEN)), 200, "other addresses are not throttled");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_throttled_address_is_refused_even_with_the_right_token() {
    let server = guarded();
    let ask = |token: &str| {
        head(server.connect_from([127, 0, 9, 11]), &request_text("GET", "/api/status", &bearer(token), ""))
            .status
    };
    let mut wrong = 0;
    while ask("wrong-token-wrong-token") != 429 {
        wrong += 1;
        assert!(wrong < 100);
    }
    // The right token must be refused while the limit is exhausted. On a slow machine the limit may already allow the
    // next attempt, so both requests are repeated until both are refused.
    let refused = (0..20).any(|_| ask("wrong-token-wrong-token") == 429 && ask(TOKEN) == 429);
    assert!(refused);
}

#[test]
fn requests_without_a_token_are_not_counted() {
    let server = guarded();
    for _ in 0..3 * limits::ATTEMPTS_OF_ADDRESS {
        assert_eq!(server.get("/api/status").status, 401);
    }
    assert_eq!(server.request("GET", "/api/status", &bearer(TOKEN), b"").status, 200);
}

// ---- tests: hostile headers ----------------------------------------------------------------------------

#[test]
fn ambiguous_headers_are_refused() {
    let server = guarded();
    let twice = format!("{}{}", bearer(TOKEN), bearer("something-else-here"));
    assert_eq!(server.request("GET", "/api/status", &twice, b"").status, 400);
    let mut bytes =
        b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
            .to_vec();
    assert_eq!(Reply::parse(&server.raw(&bytes)).status, 400);
    bytes.splice(54.., b"Cookie: streaming-8080=\xff\xfe\r\n\r\n".iter().copied());
    assert!(matches!(Reply::parse(&server.raw(&bytes)).status, 400 | 401));
    let empty_bearer = server.request("GET", "/api/status", "Authorization: Bearer \r\n", b"");
    assert_eq!((empty_bearer.status, empty_bearer.code().as_str()), (401, "token_required"));
}

#[test]
fn random_credentials_are_refused() {
    let server = guarded();
    let mut connection: Option<TcpStream> = None;
    let mut source = 0_u8;
    let strategy = prop_oneof![
        "Authorization: [!-~]{0,20} ?[ -~]{0,60}",
        "Cookie: (streaming-8080=[ -~]{0,150}; ?){0,8}",
        "Cookie: streaming-8080=[0-9a-f]{16}\\.[0-9a-f]{32}\\.[0-9a-f]{64}",
    ];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..400 {
        let line = strategy.new_tree(&mut runner).unwrap().current();
        // The source address changes after a few requests, because wrong tokens are counted per address.
        source = source.wrapping_add(1);
        let mut stream =
            connection.take().unwrap_or_else(|| server.connect_from([127, 0, 77, source.max(1)]));
        let reply = head(&mut stream, &request_text("HEAD", "/api/status", &format!("{line}\r\n"), ""));
        assert!(matches!(reply.status, 401 | 429), "{line}: {reply:?}");
        connection = (!source.is_multiple_of(5)).then_some(stream);
    }
}

// ---- tests: comparison of the token in constant time ---------------------------------------------------

/// Reads the source text, because a timing measurement would fail on a busy machine. The only comparison of the token
/// must be the constant-time one.
#[test]
fn the_token_is_compared_in_constant_time_and_nowhere_else() {
    let token = include_str!("../../../src/config/security.rs");
    let compare = token.split("pub fn is(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    assert!(compare.contains("verify_slices_are_equal(mine.as_ref(), theirs.as_ref())"), "{compare}");
    assert!(!compare.contains("=="), "{compare}");
    let equal = token.split("impl PartialEq for Token").nth(1).unwrap().split("\n}\n").next().unwrap();
    assert!(equal.contains("self.is(other.expose())"), "{equal}");
    let access = include_str!("../../../src/http/access.rs");
    assert_eq!(
        access.matches(".expose()").count(),
        1,
        "only the derivation of the login key may read the token"
    );
    assert!(access.contains("self.token.is(") && access.contains("hmac::verify("));
    assert!(!access.contains("seal =="));
}
