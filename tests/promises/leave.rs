//! Every session ends without leftovers: if its viewer closes it, if the viewer vanishes, and if it never connects. A
//! full server refuses new viewers.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, words};
use support::server::Server;
use support::viewer::{Offer, ViewerSimulator};
use support::{PATIENCE, unique_shm};

/// Longest wait until consent has expired: the timeout of 30 s plus 60 s of slack for a busy machine.
const CONSENT: Duration = Duration::from_secs(30 + 60);

fn camera(shm: &str) -> CameraSim {
    CameraSim::start(shm, &words("--layout v1 --pattern 640x480 --fps 30 --bitrate-kbps 1000 --gop 30"))
}

fn resident_kb(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count()
}

#[test]
fn closed_session_ends_at_once() {
    let shm = unique_shm();
    let _camera = camera(&shm);
    let server = Server::start(&shm, &[]);
    let mut viewers = ViewerSimulator::crowd(server.http, 3);
    server.wait_viewers(PATIENCE, 3);
    viewers.pop().unwrap().leave();
    // The wait is shorter than the consent timeout of 30 s, so only the close by the viewer can have ended the session.
    server.wait_viewers(Duration::from_secs(10), 2);
    viewers.iter().for_each(|viewer| viewer.wait_more_units(10));
}

#[test]
fn session_of_a_vanished_viewer_ends_when_consent_expires() {
    let shm = unique_shm();
    let _camera = camera(&shm);
    let server = Server::start(&shm, &[]);
    let mut viewers = ViewerSimulator::crowd(server.http, 2);
    viewers.pop().unwrap().vanish();
    server.wait_viewers(CONSENT, 1);
    viewers.iter().for_each(|viewer| viewer.wait_more_units(10));
    assert_eq!(server.metrics().expect("active_clients"), 1.0);
    let ended = server.ended();
    assert_eq!(
        (ended.len(), ended[0]["ended"]["reason"].as_str()),
        (1, Some("consent_expired")),
        "{ended:?}"
    );
    assert!(server.process.log().contains("session ended: nothing authentic arrived"));
}

#[test]
fn two_hundred_offers_that_never_connect_leave_no_memory() {
    let shm = unique_shm();
    let _camera = camera(&shm);
    let mut server = Server::start(&shm, &["--max-viewers", "300"]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(10);
    let descriptors_before = descriptors(&server);
    let answered = (0..200).filter(|_| Offer::create().post(server.http).is_ok()).count();
    assert_eq!(answered, 200);
    server.wait_viewers(CONSENT, 1);
    let ended = server.ended();
    assert_eq!(ended.len(), 32, "the number of ended sessions is bounded");
    assert!(ended.iter().all(|session| session["ended"]["reason"] == "no_stun"), "{ended:?}");
    let line = format!("no STUN arrived from the viewer on UDP port {}", server.udp.port());
    assert!(server.process.log().contains(&line), "the log says that UDP does not arrive");
    let resident_once = resident_kb(&server);
    let answered = (0..200).filter(|_| Offer::create().post(server.http).is_ok()).count();
    assert_eq!(answered, 200);
    server.wait_viewers(CONSENT, 1);
    let resident_twice = resident_kb(&server);
    // The second 200 sessions reuse the memory of the first. If sessions leaked, 200 of them would take ten times the 4
    // MB that are allowed here.
    assert!(resident_twice < resident_once + 4096, "{resident_once} kB, then {resident_twice} kB");
    assert!(descriptors(&server) <= descriptors_before + 2, "descriptors are leaked");
    viewer.wait_more_units(30);
    viewer.leave().assert_perfect("the viewer beside 400 offers");
    server.assert_healthy();
}

#[test]
fn full_server_refuses_until_a_viewer_leaves() {
    let shm = unique_shm();
    let _camera = camera(&shm);
    let server = Server::start(&shm, &["--max-viewers", "2"]);
    let mut viewers = ViewerSimulator::crowd(server.http, 2);
    let refusal = ViewerSimulator::connect(server.http).err().expect("a third viewer of two");
    refusal.assert_error(&[503]);
    let retry: u32 = refusal.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!(retry > 0);
    viewers.iter().for_each(|viewer| viewer.wait_more_units(10));
    viewers.pop().unwrap().leave();
    server.wait_viewers(Duration::from_secs(10), 1);
    ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text())).wait_units(10);
}
