//! Tests of requests of other pages and for other host names: refusals and their texts, and what an allow-listed page may
//! do with token, login and recordings.

use serde_json::json;
use streaming_server::http::{Hosts, HttpConfig, HttpTimeouts, Policy};

use super::access::{OFFER, TOKEN, access, bearer, cookie, every_call, guarded, head, log_in, request_text};
use super::stub::{FRIEND, Reply, Server, open};

#[test]
fn a_foreign_page_is_refused_even_with_the_token_or_a_login() {
    let server = guarded();
    let good = cookie(&log_in(&server));
    for (method, path, _, body) in every_call().into_iter().filter(|call| call.0 != "GET") {
        for proof in [String::new(), bearer(TOKEN), good.clone()] {
            let headers = format!("Origin: https://evil.example\r\n{proof}");
            let reply = server.request(method, &path, &headers, body.as_bytes());
            assert_eq!((reply.status, reply.code().as_str()), (403, "origin_refused"), "{method} {path}");
        }
    }
    assert_eq!(
        server.request("GET", "/api/status", &good, b"").status,
        200,
        "a foreign page must not end a login"
    );
}

#[test]
fn an_allow_listed_page_may_use_the_token() {
    let server = guarded();
    let headers = format!("Origin: {FRIEND}\r\n{}", bearer(TOKEN));
    let reply = server.request("POST", "/api/webrtc/offer", &headers, OFFER.as_bytes());
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some(FRIEND)));
}

/// The answer to a request of an allow-listed page for a recording, without a script: `<video src>`.
#[test]
fn an_allow_listed_page_may_show_a_recording() {
    let server = Server::start();
    let policy_for = |headers: &str| {
        let reply = server.request("GET", "/api/recordings/a%20b.mp4", headers, b"");
        assert_eq!(reply.status, 200);
        reply.header("cross-origin-resource-policy").unwrap().to_owned()
    };
    assert_eq!(policy_for(&format!("Referer: {FRIEND}/\r\n")), "cross-origin");
    assert_eq!(policy_for(&format!("Referer: {FRIEND}/dashboard?x\r\n")), "cross-origin");
    assert_eq!(policy_for(&format!("Origin: {FRIEND}\r\n")), "cross-origin", "<video crossorigin>");
    for foreign in
        ["https://evil.example/", "https://home.example.evil/", "https://home.example@evil/", "nonsense"]
    {
        assert_eq!(policy_for(&format!("Referer: {foreign}\r\n")), "same-origin", "{foreign}");
    }
    assert_eq!(policy_for(""), "same-origin");
}

#[test]
fn a_script_of_an_allow_listed_page_may_read_a_part_of_a_recording() {
    let server = Server::start();
    let from_friend = format!("Origin: {FRIEND}\r\n");
    let preflight = format!(
        "{from_friend}Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: authorization,range\r\n"
    );
    let allowed = server.request("OPTIONS", "/api/recordings/a%20b.mp4", &preflight, b"");
    assert_eq!(allowed.status, 204);
    let lists = |reply: &Reply, header: &str, name: &str| {
        let list = reply.header(header).unwrap().to_owned();
        assert!(list.split(", ").any(|listed| listed == name), "{name} in {header}: {list}");
    };
    for name in ["authorization", "content-type", "range", "if-range", "if-none-match", "last-event-id"] {
        lists(&allowed, "access-control-allow-headers", name);
    }
    for method in ["GET", "HEAD", "DELETE"] {
        lists(&allowed, "access-control-allow-methods", method);
    }
    let part = server.request(
        "GET",
        "/api/recordings/a%20b.mp4",
        &format!("{from_friend}Range: bytes=5-9\r\n"),
        b"",
    );
    assert_eq!((part.status, part.header("access-control-allow-origin")), (206, Some(FRIEND)));
    for name in ["content-range", "accept-ranges", "etag", "content-disposition", "retry-after"] {
        lists(&part, "access-control-expose-headers", name);
    }
}

#[test]
fn an_allow_listed_page_may_log_in_and_use_the_login_over_tls() {
    let server = guarded();
    let body = json!({ "token": TOKEN }).to_string();
    let from_friend = format!("Origin: {FRIEND}\r\n");
    let reply = server.request("POST", "/api/session", &from_friend, body.as_bytes());
    assert_eq!((reply.status, reply.header("access-control-allow-credentials")), (200, Some("true")));
    let set = reply.header("set-cookie").unwrap();
    assert!(set.ends_with("; SameSite=None; Secure; Partitioned"), "{set}");
    let status = server.request("GET", "/api/status", &format!("{from_friend}{}", cookie(set)), b"");
    assert_eq!((status.status, status.header("access-control-allow-credentials")), (200, Some("true")));
    let foreign = "Origin: https://evil.example\r\n";
    let evil = server.request("GET", "/api/status", &format!("{foreign}{}", cookie(set)), b"");
    assert_eq!(evil.header("access-control-allow-credentials"), None);
    assert_eq!(server.request("POST", "/api/session", foreign, body.as_bytes()).status, 403);
}

#[test]
fn a_framed_page_gets_a_cookie_that_frames_send_if_a_site_is_listed_and_tls_is_used() {
    let body = json!({ "token": TOKEN, "framed": true }).to_string();
    let log_in = |server: &Server, scheme: &str| {
        let origin = format!("Origin: {scheme}://{}\r\n", server.address);
        let reply = server.request("POST", "/api/session", &origin, body.as_bytes());
        assert_eq!(reply.status, 200);
        reply.header("set-cookie").unwrap().to_owned()
    };
    let listed = guarded();
    let framed = log_in(&listed, "https");
    assert!(framed.ends_with("; HttpOnly; SameSite=None; Secure; Partitioned"), "{framed}");
    assert_eq!(listed.request("GET", "/api/status", &cookie(&framed), b"").status, 200);
    // Browsers accept SameSite=None only with Secure, which plain HTTP does not have.
    assert!(log_in(&listed, "http").ends_with("; SameSite=Strict"));
    let unlisted =
        Server::unlisted(|address| HttpConfig { access: Some(access(TOKEN, 8080)), ..open(address) });
    assert!(log_in(&unlisted, "https").ends_with("; SameSite=Strict; Secure"));
}

#[test]
fn cameras_behind_one_host_name_do_not_end_each_others_logins() {
    let one = guarded();
    let other = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        access: Some(access("another-token-than-before", 8080)),
        ..open(address)
    });
    let mine = log_in(&one);
    let reply = other.request("POST", "/api/session", "", br#"{"token":"another-token-than-before"}"#);
    let theirs = reply.header("set-cookie").unwrap();
    let name = |set: &str| set.split('=').next().unwrap().to_owned();
    assert_ne!(name(&mine), name(theirs), "the browser replaces a cookie of the same name");
    let both =
        format!("Cookie: {}; {}\r\n", mine.split(';').next().unwrap(), theirs.split(';').next().unwrap());
    for server in [&one, &other] {
        assert_eq!(server.request("GET", "/api/status", &both, b"").status, 200);
    }
}

#[test]
fn a_foreign_host_name_is_refused_on_every_route_but_health() {
    let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        policy: Policy { hosts: Some(Hosts::new("camera", ["cam.example".to_owned()])), ..Policy::default() },
        ..open(address)
    });
    let ask = |method: &str, path: &str, host: &str, body: &str| {
        let text = request_text(method, path, "", body).replace("Host: x", &format!("Host: {host}"));
        head(server.connect(), &text)
    };
    for (method, path, _, body) in every_call() {
        let foreign = ask(method, &path, "rebound.evil.example:8080", body);
        let absolute = ask(method, &format!("http://rebound.evil.example{path}"), "cam.example", body);
        let expected = if path == "/health" { 200 } else { 403 };
        assert_eq!((foreign.status, absolute.status), (expected, expected), "{method} {path}");
        for host in ["cam.example", "camera.local:8080", "192.0.2.1:8080", "localhost"] {
            assert!(
                matches!(ask(method, &path, host, body).status, 200..=204 | 503),
                "{method} {path} at {host}"
            );
        }
    }
    let preflight = ask("OPTIONS", "/api/status", "evil.example", "");
    assert_eq!(preflight.status, 403);
}

#[test]
fn a_refused_host_name_or_origin_is_explained_with_the_option_that_allows_it() {
    let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        policy: Policy { hosts: Some(Hosts::new("camera", [])), ..Policy::default() },
        ..open(address)
    });
    let ask = |method: &str, host: &str, headers: &str| {
        let headers = format!("Connection: close\r\n{headers}");
        let text = request_text(method, "/api/recording/stop", &headers, "");
        Reply::parse(&server.raw(text.replace("Host: x", &format!("Host: {host}")).as_bytes()))
    };
    let message = |reply: &Reply| reply.json()["error"].as_str().unwrap().to_owned();
    let refused = ask("POST", "Cam.Tailnet.ts.net:8080", "");
    assert_eq!((refused.status, refused.code().as_str()), (403, "host_refused"));
    assert!(message(&refused).contains("--allow-host cam.tailnet.ts.net"), "{}", message(&refused));

    // A proxy that does not pass the Host header on makes our own page look foreign.
    let proxied = ask("POST", "127.0.0.1:8080", "Origin: https://cam.example.org\r\n");
    assert_eq!((proxied.status, proxied.code().as_str()), (403, "origin_refused"));
    let text = message(&proxied);
    assert!(
        text.contains("--allow-origin https://cam.example.org") && text.contains("127.0.0.1:8080"),
        "{text}"
    );
    let preflight = ask(
        "OPTIONS",
        "127.0.0.1:8080",
        "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n",
    );
    assert!(message(&preflight).contains("--allow-origin http://evil.example"));
    for origin in ["null", "https://$(reboot)", "https://a.example\"; reboot", "https://a@b.example"] {
        let text = message(&ask("POST", "127.0.0.1:8080", &format!("Origin: {origin}\r\n")));
        assert!(!text.contains("--allow-origin"), "no option allows {origin}: {text}");
    }
    // The operator may copy an option into a shell, so none is named for text that is no host name.
    for host in ["$(reboot).example", "a.example;reboot", "[$(reboot)]", "[::1%25eth0]:1", "a@b.example"] {
        let refused = ask("POST", host, "");
        assert_eq!(refused.code(), "host_refused", "{host}");
        assert!(!message(&refused).contains("--allow-host"), "{}", message(&refused));
    }
}

#[test]
fn a_person_gets_a_page_instead_of_json() {
    let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        policy: Policy { hosts: Some(Hosts::new("camera", [])), ..Policy::default() },
        access: Some(access(TOKEN, 8080)),
        ..open(address)
    });
    let browser = "Connection: close\r\nAccept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
    let ask = |host: &str, path: &str| {
        let text = request_text("GET", path, browser, "").replace("Host: x", &format!("Host: {host}"));
        Reply::parse(&server.raw(text.as_bytes()))
    };
    for (host, path, status, part) in [
        ("cam.tailnet.ts.net", "/", 403, "--allow-host cam.tailnet.ts.net"),
        ("<b>.evil.example", "/", 403, "&lt;b&gt;"),
        ("localhost", "/nothing", 404, "does not exist"),
        ("localhost", "/api/status", 401, "token"),
    ] {
        let reply = ask(host, path);
        let page = String::from_utf8(reply.body.clone()).unwrap();
        assert_eq!((reply.status, reply.header("content-type")), (status, Some("text/html; charset=utf-8")));
        assert!(page.contains(part) && !page.contains("<b>"), "{page}");
        let policy = reply.header("content-security-policy").unwrap();
        assert_eq!(policy, "default-src 'none'; frame-ancestors 'none'");
    }
}
