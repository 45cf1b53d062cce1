//! WHEP with a real server and simulated viewers: sessions start, change and end by HTTP, and leave nothing behind.

use std::net::SocketAddr;
use std::thread;

use support::http::{self, Response};
use support::server::Server;
use support::viewer::{Offer, ViewerSimulator};
use support::{PATIENCE, unique_shm, wait_for};

fn start(more: &[&str]) -> Server {
    let server = Server::start(&unique_shm(), &[&["--demo"], more].concat());
    server.wait_ready();
    server
}

/// Posts an offer. Returns the response, and the path of the session if there is one.
fn post(server: SocketAddr, offer: &Offer) -> (Response, String) {
    let reply = http::request(
        server,
        "POST",
        "/camera/whep",
        &[("Content-Type", "application/sdp")],
        offer.sdp.as_bytes(),
    );
    let path = reply.header("location").unwrap_or_default().to_owned();
    (reply, path)
}

fn watch(server: &Server) -> (ViewerSimulator, String) {
    let offer = Offer::create();
    let (reply, path) = post(server.http, &offer);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let viewer = offer.watch(&reply.text());
    viewer.wait_units(10);
    (viewer, path)
}

fn patch(server: &Server, path: &str, if_match: &[(&str, &str)], body: &str) -> Response {
    let headers = [&[("Content-Type", "application/trickle-ice-sdpfrag")], if_match].concat();
    http::request(server.http, "PATCH", path, &headers, body.as_bytes())
}

fn status(server: SocketAddr, method: &str, path: &str) -> u16 {
    http::request(server, method, path, &[], b"").status
}

#[test]
fn a_session_is_watched_changed_and_deleted_by_its_url() {
    for workers in ["1", "2"] {
        let mut server = start(&["--workers", workers, "--name", "camera", "--title", "Front door"]);
        let (other, other_path) = watch(&server);
        let offer = Offer::create();
        let (reply, path) = post(server.http, &offer);
        assert_eq!(reply.header("content-type"), Some("application/sdp"));
        let key = path.strip_prefix("/camera/whep/").unwrap();
        assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{path}");
        assert_ne!(path, other_path);
        let viewer = offer.watch(&reply.text());
        viewer.wait_units(10);
        assert_eq!(status(server.http, "HEAD", &path), 200);
        let etag = reply.header("etag").unwrap();

        // The candidates of this viewer, and an empty list, change nothing.
        for if_match in [&[][..], &[("If-Match", "*")], &[("If-Match", etag)]] {
            assert_eq!(patch(&server, &path, if_match, "a=end-of-candidates\r\n").status, 204);
        }
        let foreign = format!("a=ice-ufrag:stranger\r\na=ice-pwd:{}\r\n", "x".repeat(24));
        patch(&server, &path, &[], &foreign).assert_error(&[428]);
        patch(&server, &path, &[("If-Match", "\"other\"")], &foreign).assert_error(&[412]);
        patch(&server, &path, &[("If-Match", "*")], "a=ice-ufrag:stranger\r\n").assert_error(&[400]);
        patch(&server, &path, &[], &"a=x\r\n".repeat(12_000)).assert_error(&[413]);
        viewer.wait_more_units(10);

        // A restart is done, and the media goes on over the paths that are proven.
        let restart = patch(&server, &path, &[("If-Match", "*")], &foreign);
        assert_eq!(restart.status, 200);
        assert_eq!(restart.header("content-type"), Some("application/trickle-ice-sdpfrag"));
        assert_ne!(restart.header("etag"), Some(etag));
        patch(&server, &path, &[("If-Match", etag)], &foreign).assert_error(&[412]);
        viewer.wait_more_units(10);

        let deleted = http::request(server.http, "DELETE", &path, &[], b"");
        assert_eq!((deleted.status, deleted.body.len()), (200, 0));
        assert_eq!(server.viewers().len(), 1, "the session is over when DELETE is answered");
        assert_eq!(server.ended()[0]["ended"]["reason"], "viewer_closed");
        wait_for("the goodbye", || viewer.report().got_close_notify.then_some(()));
        for method in ["DELETE", "GET", "HEAD"] {
            assert_eq!(status(server.http, method, &path), 404, "{method}");
        }
        patch(&server, &path, &[], "a=end-of-candidates\r\n").assert_error(&[404]);
        let guessed = format!("/whep/{}", "0".repeat(32));
        http::request(server.http, "DELETE", &guessed, &[], b"").assert_error(&[404]);

        other.wait_more_units(10);
        let state = server.get("/api/status").json();
        assert_eq!((&state["name"], &state["title"]), (&"camera".into(), &"Front door".into()));
        server.assert_healthy();
    }
}

#[test]
fn two_clients_that_delete_at_once_get_one_success() {
    let mut server = start(&[]);
    let http = server.http;
    for _ in 0..5 {
        let (_viewer, path) = watch(&server);
        let delete = |path: String| thread::spawn(move || status(http, "DELETE", &path));
        let threads: Vec<_> = (0..4).map(|_| delete(path.clone())).collect();
        let mut replies: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        replies.sort_unstable();
        assert_eq!(replies, [200, 404, 404, 404]);
    }
    server.assert_healthy();
}

#[test]
fn the_last_place_is_given_once() {
    let server = start(&["--max-viewers", "2"]);
    let http = server.http;
    let (first, _) = watch(&server);
    // An offer that has not connected gives way, so of these sessions only one stays.
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(move || post(http, &Offer::create()))).collect();
    let replies: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(replies.iter().all(|(reply, _)| reply.status == 201));
    let left = replies.iter().filter(|(_, path)| status(http, "HEAD", path) == 200).count();
    assert_eq!(left, 1);
    let (second, path) = watch(&server);
    let (full, _) = post(http, &Offer::create());
    full.assert_error(&[503]);
    assert!(full.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    // DELETE frees the place at once.
    assert_eq!(status(http, "DELETE", &path), 200);
    let (third, _) = watch(&server);
    [&first, &third].into_iter().for_each(|viewer| viewer.wait_more_units(10));
    drop(second);
}

fn resident_kb(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Some players never send DELETE. Their sessions end with the goodbye of DTLS, by giving way, or when no STUN comes.
#[test]
fn a_thousand_sessions_that_are_never_deleted_leave_nothing_behind() {
    let mut server = start(&[]);
    let (stays, _) = watch(&server);
    // The first sessions fill caches.
    let mut watching: Vec<_> = (0..10).map(|_| watch(&server)).collect();
    let before_kb = resident_kb(&server);
    watching.extend((0..20).map(|_| watch(&server)));
    let grown_kb = resident_kb(&server).saturating_sub(before_kb);
    println!("{} kB for each of 20 further connected sessions", grown_kb / 20);
    let leave = |(viewer, path): (ViewerSimulator, String)| {
        viewer.leave();
        path
    };
    let left: Vec<String> = watching.into_iter().map(leave).collect();
    let offers = |count: usize| -> Vec<String> {
        (0..count)
            .map(|_| {
                let (reply, path) = post(server.http, &Offer::create());
                assert_eq!(reply.status, 201, "{}", reply.text());
                path
            })
            .collect()
    };
    // The first offers fill caches and the places.
    let mut paths = offers(100);
    let before_kb = resident_kb(&server);
    paths.extend(offers(900));
    let last = paths.split_off(paths.len() - 31);
    for path in left.iter().chain(&paths) {
        assert_eq!(status(server.http, "HEAD", path), 404, "{path}");
    }
    let last_found = last.iter().filter(|path| status(server.http, "HEAD", path) == 200).count();
    println!("{last_found} of the last sessions still exist");
    let after_kb = resident_kb(&server);
    assert!(after_kb < before_kb + 4_096, "{before_kb} kB before, {after_kb} kB after 900 further sessions");
    server.wait_viewers(PATIENCE, 1);
    stays.wait_more_units(10);
    assert!(last.iter().all(|path| status(server.http, "HEAD", path) == 404));
    server.assert_healthy();
}
