//! Tests of WHEP over HTTP, in front of the stub backend.

use std::io::{Read, Write};

use streaming_server::config::{Config, IceServer, Parsed};
use streaming_server::http::{HttpConfig, HttpTimeouts, SessionCommand, WhepPolicy};

use super::access::{TOKEN, access};
use super::stub::{FRIEND, KEY, Reply, Server, open};

const OFFER: &str = "v=0\r\n";
const SDP: &str = "Content-Type: application/sdp\r\n";
const FRAGMENT: &str = "Content-Type: application/trickle-ice-sdpfrag\r\n";
const CANDIDATES: &[u8] = b"a=ice-ufrag:same\r\na=end-of-candidates\r\n";

fn session() -> String {
    format!("/camera/whep/{KEY}")
}

fn post(server: &Server, path: &str, headers: &str, body: &[u8]) -> Reply {
    server.request("POST", path, headers, body)
}

fn patch(server: &Server, headers: &str, body: &[u8]) -> Reply {
    server.request("PATCH", &session(), &format!("{FRAGMENT}{headers}"), body)
}

/// Returns the servers of these values of --ice-server.
fn ice_servers(values: &[&str]) -> Vec<IceServer> {
    let arguments = values.iter().flat_map(|value| ["--ice-server", value]).map(Into::into);
    let absent = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    match Config::from_args(arguments, |_| None, absent).unwrap() {
        Parsed::Run(config) => config.ice_servers,
        Parsed::Print(text) => panic!("{text}"),
    }
}

fn with_ice_servers(token: bool) -> Server {
    Server::configured(HttpTimeouts::default(), |address| {
        let ice_servers = ice_servers(&["stun:stun.example", "turn:me:secret@turn.example:3478"]);
        let mut config = HttpConfig { access: token.then(|| access(TOKEN, 8080)), ..open(address) };
        config.policy.whep = WhepPolicy { ice_servers, ..WhepPolicy::default() };
        config
    })
}

fn links(reply: &Reply) -> Vec<&str> {
    let links = reply.headers.iter().filter(|(name, _)| name == "link");
    links.map(|(_, value)| value.as_str()).collect()
}

const LINKS: [&str; 2] = [
    "<stun:stun.example>; rel=\"ice-server\"",
    "<turn:turn.example:3478>; rel=\"ice-server\"; username=\"me\"; credential=\"secret\"; credential-type=\"password\"",
];

#[test]
fn an_offer_starts_a_session_whose_url_is_below_the_endpoint() {
    let server = Server::start();
    for path in ["/whep", "/camera/whep"] {
        let reply = post(&server, path, SDP, OFFER.as_bytes());
        assert_eq!(reply.status, 201);
        assert_eq!(reply.header("content-type"), Some("application/sdp"));
        assert_eq!(reply.body, b"v=0 answer to 5 bytes");
        assert_eq!(reply.header("location"), Some(format!("{path}/{KEY}").as_str()));
        assert_eq!(reply.header("etag"), Some("\"1f/tag\""));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(links(&reply), [""; 0]);
    }
    for kind in ["", "Content-Type: Application/SDP; charset=utf-8\r\n"] {
        assert_eq!(post(&server, "/whep", kind, OFFER.as_bytes()).status, 201, "{kind}");
    }
}

#[test]
fn offers_that_cannot_be_served_are_refused_with_the_statuses_that_players_expect() {
    let server = Server::start();
    let codec = post(&server, "/whep", SDP, b"v=0 vp8");
    assert_eq!((codec.status, codec.code().as_str()), (422, "no_common_codec"));
    let full = post(&server, "/whep", SDP, b"v=0 full");
    assert_eq!((full.status, full.header("retry-after")), (503, Some("5")));
    let json = post(&server, "/whep", "Content-Type: application/json\r\n", b"{}");
    assert_eq!((json.status, json.code().as_str()), (415, "wrong_content_type"));
    for body in [&b""[..], b"hello", b"\xff"] {
        assert_eq!(post(&server, "/whep", SDP, body).status, 400);
    }
    let long = post(&server, "/whep", SDP, &vec![b'a'; 64 * 1024 + 1]);
    assert_eq!(long.status, 413);
    assert_eq!(post(&server, "/garden/whep", SDP, OFFER.as_bytes()).status, 404);
    assert_eq!(server.request("PUT", "/whep", SDP, OFFER.as_bytes()).status, 405);
}

#[test]
fn endpoints_and_sessions_answer_get_and_head_without_content() {
    let server = Server::start();
    for path in ["/whep", "/camera/whep", &session()] {
        for method in ["GET", "HEAD"] {
            let reply = server.request(method, path, "", b"");
            assert_eq!((reply.status, reply.body.len()), (200, 0), "{method} {path}");
            assert_eq!(reply.header("content-type"), Some("application/sdp"));
        }
    }
    let gone = server.get("/camera/whep/another");
    assert_eq!((gone.status, gone.code().as_str()), (404, "no_session"));
    for path in ["/garden/whep", &format!("/garden/whep/{KEY}"), "/whep/", "/camera/whep/a/b", "/api/whep"] {
        assert_eq!(server.get(path).code(), "not_found", "{path}");
    }
}

#[test]
fn candidates_are_acknowledged_and_a_restart_gets_a_new_tag() {
    let server = Server::start();
    let trickle = patch(&server, "If-Match: *\r\n", CANDIDATES);
    assert_eq!((trickle.status, trickle.body.len(), trickle.header("etag")), (204, 0, None));
    let restart = patch(&server, "If-Match: \"1f/tag\", W/\"x\"\r\n", b"a=ice-ufrag:new\r\n");
    assert_eq!((restart.status, restart.header("etag")), (200, Some("\"2f/tag\"")));
    assert_eq!(restart.header("content-type"), Some("application/trickle-ice-sdpfrag"));
    assert_eq!(restart.body, b"a=ice-ufrag:ours\r\n");
    assert_eq!(patch(&server, "", CANDIDATES).status, 204);
    let tags: Vec<_> = server
        .backend
        .sessions
        .lock()
        .unwrap()
        .iter()
        .map(|(_, command)| match command {
            SessionCommand::Fragment { if_match, .. } => if_match.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let list = |tags: &[&str]| Some(tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>());
    assert_eq!(tags, [list(&["*"]), list(&["1f/tag"]), None]);
}

#[test]
fn malformed_changes_of_a_session_are_refused() {
    let server = Server::start();
    let path = session();
    assert_eq!(server.request("PATCH", &path, SDP, CANDIDATES).code(), "wrong_content_type");
    assert_eq!(patch(&server, "", &vec![b'a'; 60 * 1024]).status, 413);
    assert_eq!(patch(&server, "", b"\xff\xfe").status, 400);
    assert_eq!(patch(&server, "If-Match: \"a\"\r\nIf-Match: \"b\"\r\n", CANDIDATES).code(), "bad_header");
    assert_eq!(patch(&server, "If-Match: é\r\n", CANDIDATES).status, 400);
    assert_eq!(server.request("POST", &path, FRAGMENT, CANDIDATES).status, 405);
    assert_eq!(server.request("PATCH", "/camera/whep", FRAGMENT, CANDIDATES).status, 405);
    assert!(server.backend.sessions.lock().unwrap().is_empty());
}

#[test]
fn a_session_is_deleted_by_its_url_only() {
    let server = Server::start();
    let deleted = server.request("DELETE", &session(), "", b"");
    assert_eq!((deleted.status, deleted.body.len()), (200, 0));
    assert_eq!(server.request("DELETE", "/whep/another", "", b"").status, 404);
    assert_eq!(server.request("DELETE", "/whep", "", b"").status, 405);
    let keys: Vec<_> = server.backend.sessions.lock().unwrap().clone();
    assert_eq!(
        keys,
        [(KEY.to_owned(), SessionCommand::Delete), ("another".to_owned(), SessionCommand::Delete)]
    );
}

#[test]
fn options_names_methods_and_types() {
    let server = Server::start();
    let endpoint = server.request("OPTIONS", "/whep", "", b"");
    assert_eq!((endpoint.status, endpoint.header("accept-post")), (204, Some("application/sdp")));
    assert_eq!(endpoint.header("allow"), Some("POST, GET, HEAD, OPTIONS"));
    let of_session = server.request("OPTIONS", &session(), "", b"");
    assert_eq!(of_session.header("accept-patch"), Some("application/trickle-ice-sdpfrag"));
    assert_eq!(of_session.header("allow"), Some("GET, HEAD, PATCH, DELETE, OPTIONS"));
    assert_eq!(server.request("OPTIONS", "/garden/whep", "", b"").status, 404);
}

#[test]
fn a_page_of_an_allowed_origin_can_play_and_no_other_page() {
    let server = Server::start();
    for (path, method) in [("/camera/whep", "POST"), (&*session(), "PATCH"), (&*session(), "DELETE")] {
        let preflight = |origin: &str| {
            let headers = format!("Origin: {origin}\r\nAccess-Control-Request-Method: {method}\r\n");
            server.request("OPTIONS", path, &headers, b"")
        };
        let allowed = preflight(FRIEND);
        let list = |name| allowed.header(name).unwrap().split(", ").collect::<Vec<_>>();
        assert!(list("access-control-allow-methods").contains(&method));
        for header in ["authorization", "content-type", "if-match"] {
            assert!(list("access-control-allow-headers").contains(&header), "{header}");
        }
        let origin = allowed.header("access-control-allow-origin");
        assert_eq!((allowed.status, origin), (204, Some(FRIEND)));
        assert_eq!(preflight("https://foreign.example").status, 403);
    }
    let headers = format!("{SDP}Origin: {FRIEND}\r\n");
    let reply = post(&server, "/whep", &headers, OFFER.as_bytes());
    let exposed: Vec<_> = reply.header("access-control-expose-headers").unwrap().split(", ").collect();
    for header in ["location", "etag", "link"] {
        assert!(exposed.contains(&header), "{header}");
    }
    let foreign = format!("{SDP}Origin: https://foreign.example\r\n");
    assert_eq!(post(&server, "/whep", &foreign, OFFER.as_bytes()).code(), "origin_refused");
}

#[test]
fn bearer_and_basic_carry_the_token() {
    let server = Server::configured(HttpTimeouts::default(), |address| HttpConfig {
        access: Some(access(TOKEN, 8080)),
        ..open(address)
    });
    // The user is "camera", the password is TOKEN.
    let basic = "Authorization: Basic Y2FtZXJhOmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==\r\n";
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    for authorization in [basic, &bearer] {
        let headers = format!("{SDP}{authorization}");
        assert_eq!(post(&server, "/whep", &headers, OFFER.as_bytes()).status, 201, "{authorization}");
        assert_eq!(patch(&server, authorization, CANDIDATES).status, 204);
        assert_eq!(server.request("DELETE", &session(), authorization, b"").status, 200);
    }
    let without = post(&server, "/whep", SDP, OFFER.as_bytes());
    assert_eq!((without.status, without.code().as_str()), (401, "token_required"));
    assert!(without.header("www-authenticate").unwrap().starts_with("Bearer"));
    assert_eq!(server.request("DELETE", &session(), "", b"").status, 401);
    assert_eq!(server.get(&session()).status, 401);
    // Some players send the token with the offer only. Their candidates have no effect, so they are acknowledged.
    for if_match in ["", "If-Match: *\r\n", "If-Match: \"1f/tag\"\r\n"] {
        assert_eq!(patch(&server, if_match, CANDIDATES).status, 204, "{if_match}");
        let restart = patch(&server, if_match, b"a=ice-ufrag:new\r\n");
        assert_eq!((restart.status, restart.code().as_str()), (401, "token_required"), "{if_match}");
        assert!(restart.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    let wrong = patch(&server, "Authorization: Bearer wrong\r\n", CANDIDATES);
    assert_eq!((wrong.status, wrong.code().as_str()), (401, "wrong_token"));
    assert_eq!(server.request("PATCH", "/whep/another", FRAGMENT, CANDIDATES).code(), "no_session");
    assert_eq!(patch(&server, "If-Match: *\r\n", b"\xff").status, 400);
    let wrong = post(&server, "/whep", &format!("{SDP}Authorization: Basic Ondyb25n\r\n"), OFFER.as_bytes());
    assert_eq!((wrong.status, wrong.code().as_str()), (401, "wrong_token"));
}

#[test]
fn players_learn_the_stun_and_turn_servers() {
    let server = with_ice_servers(false);
    assert_eq!(links(&post(&server, "/whep", SDP, OFFER.as_bytes())), LINKS);
    assert_eq!(links(&server.request("OPTIONS", "/whep", "", b"")), LINKS);
    let preflight = format!("Origin: {FRIEND}\r\nAccess-Control-Request-Method: POST\r\n");
    assert_eq!(links(&server.request("OPTIONS", "/whep", &preflight, b"")), [""; 0]);
    assert_eq!(links(&server.request("OPTIONS", &session(), "", b"")), [""; 0]);
    let codec = post(&server, "/whep", SDP, b"v=0 vp8");
    assert_eq!(links(&codec), [""; 0]);
}

#[test]
fn credentials_of_turn_servers_need_the_token() {
    let server = with_ice_servers(true);
    let options = |headers: &str| server.request("OPTIONS", "/whep", headers, b"");
    for headers in ["", "Authorization: Bearer wrong-wrong-wrong\r\n"] {
        let reply = options(headers);
        assert_eq!((reply.status, links(&reply)), (204, vec![]));
    }
    assert_eq!(links(&options(&format!("Authorization: Bearer {TOKEN}\r\n"))), LINKS);
}

#[test]
fn a_flood_of_options_is_answered_one_by_one() {
    let server = Server::start();
    let mut stream = server.connect();
    let request = format!("OPTIONS /whep HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let mut reader = stream.try_clone().unwrap();
    let count = 2_000;
    let flood = std::thread::spawn(move || {
        for _ in 0..count {
            stream.write_all(request.as_bytes()).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut answers = String::new();
    reader.read_to_string(&mut answers).unwrap();
    flood.join().unwrap();
    assert_eq!(answers.matches("HTTP/1.1 204").count(), count);
    assert_eq!(server.get("/health").status, 200);
}
