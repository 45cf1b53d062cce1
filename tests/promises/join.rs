//! A viewer that joins in the middle of a long GOP gets the picture at once, on every layout, without a cost for others.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, words};
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{unique_shm, wait_until};

/// Units of a GOP: half a minute. No viewer here waits for the next IDR.
const GOP: u64 = 900;

fn camera(shm: &str, layout: &str, kbps: u32) -> CameraSim {
    let line = format!("--layout {layout} --pattern 640x480 --fps 30 --bitrate-kbps {kbps} --gop {GOP}");
    CameraSim::start(shm, &words(&line))
}

fn metric(server: &Server, name: &str, labels: &[(&str, &str)]) -> f64 {
    server.metrics().value(name, labels).unwrap_or_else(|| panic!("no {name}"))
}

/// A camera and a server that has followed its first GOP for a few seconds.
fn in_the_middle(layout: &str, kbps: u32) -> (CameraSim, Server) {
    let shm = unique_shm();
    let server = Server::start(&shm, &[]);
    let camera = camera(&shm, layout, kbps);
    server.wait_ready();
    wait_until("an IDR that the ring no longer holds", || {
        metric(&server, "frames_processed_total", &[]) >= 40.0
    });
    (camera, server)
}

/// Returns true if the worker was never delayed for longer than the ring lasts, a tenth of a second on 6 slots. After such
/// a delay viewers wait for the next IDR, as they should.
fn was_undisturbed(server: &Server) -> bool {
    ["lapped_total", "torn_total", "gop_missed_total"].iter().all(|name| metric(server, name, &[]) == 0.0)
}

fn connect(server: &Server) -> ViewerSimulator {
    ViewerSimulator::connect(server.http).unwrap_or_else(|refusal| panic!("refused: {}", refusal.text()))
}

#[test]
fn a_joining_viewer_starts_at_the_past_idr_on_every_layout() {
    for layout in ["v0", "v1", "v3", "v3-6"] {
        let watched = (0..5).any(|_| two_join(layout));
        assert!(watched, "{layout}: the machine was too busy five times");
    }
}

/// Returns false if the machine was too busy for the test.
fn two_join(layout: &str) -> bool {
    let (_camera, server) = in_the_middle(layout, 1_500);
    let viewers = [connect(&server), connect(&server)];
    wait_until("the GOP so far and more units at both", || {
        viewers.iter().all(|viewer| viewer.report().units >= 80) || !was_undisturbed(&server)
    });
    if !was_undisturbed(&server) {
        return false;
    }
    for viewer in &viewers {
        let report = viewer.report();
        assert!(report.last_unit.unwrap() < GOP, "{layout}: the next IDR came first");
        report.assert_perfect(layout);
        assert_eq!((report.first_unit, report.idrs), (Some(0), 1), "{layout}");
    }
    let listed = server.viewers();
    assert!(listed.iter().all(|viewer| viewer["first_idr_ms"].as_u64().is_some()), "{listed:?}");
    assert!(listed.iter().all(|viewer| viewer["units_replayed"].as_u64() >= Some(40)), "{listed:?}");
    assert_eq!(metric(&server, "gop_replays_total", &[("reason", "join")]), 2.0, "{layout}");
    assert!(metric(&server, "gop_replayed_units_total", &[]) >= 80.0, "{layout}");
    assert!(metric(&server, "gop_cache_bytes", &[]) > 50_000.0, "{layout}");
    assert_eq!(metric(&server, "gop_waits_total", &[]), 0.0, "{layout}");
    true
}

#[test]
fn short_gops_are_replayed_from_the_ring_without_a_copy() {
    let shm = unique_shm();
    let line = "--layout v3 --pattern 640x480 --fps 30 --bitrate-kbps 1500 --gop 20";
    let _camera = CameraSim::start(&shm, &words(line));
    let server = Server::start(&shm, &[]);
    server.wait_ready();
    wait_until("a few GOPs", || metric(&server, "frames_processed_total", &[]) >= 60.0);
    assert_eq!(metric(&server, "gop_cache_bytes", &[]), 0.0);
    for _ in 0..3 {
        let viewer = connect(&server);
        viewer.wait_units(25);
        let report = viewer.leave();
        // A viewer that joins just before the next IDR starts with that one; the rest of the old GOP is skipped.
        assert!(report.missing < 20 && report.lost_packets == 0, "{report:?}");
        assert_eq!(report.duplicated + report.reordered + report.torn + report.bad_idrs, 0, "{report:?}");
        assert!(!report.began_without_idr && report.first_unit.unwrap().is_multiple_of(20));
    }
}

#[test]
fn a_viewer_that_requests_an_idr_gets_the_gop_again() {
    let (_camera, server) = in_the_middle("v1", 1_500);
    let viewer = connect(&server);
    viewer.wait_units(45);
    let idrs = viewer.report().idrs;
    // Long enough after the first IDR that the request is not answered by it.
    std::thread::sleep(Duration::from_millis(300));
    viewer.request_idr();
    wait_until("another IDR", || viewer.report().idrs > idrs);
    viewer.wait_more_units(30);
    let report = viewer.report();
    assert!(report.last_unit.unwrap() < GOP, "it was the next IDR of the camera");
    assert_eq!(report.torn + report.bad_idrs + report.missing, 0, "{report:?}");
    assert_eq!(metric(&server, "gop_replays_total", &[("reason", "request")]), 1.0);
}

#[test]
fn joining_viewers_do_not_disturb_a_watching_one() {
    let (_camera, server) = in_the_middle("v1", 4_000);
    let watching = connect(&server);
    watching.wait_units(45);
    let before = watching.report().latencies_ns.len();
    for _ in 0..3 {
        let joining = ViewerSimulator::crowd(server.http, 3);
        joining.iter().for_each(|viewer| viewer.wait_units(80));
        joining.into_iter().for_each(|viewer| viewer.leave().assert_perfect("a joining viewer"));
    }
    let report = watching.leave();
    report.assert_perfect("the watching viewer");
    let mut during = report.latencies_ns[before..].to_vec();
    during.sort_unstable();
    let at = |share: usize| during[(during.len() - 1) * share / 100] / 1_000;
    eprintln!("while 9 joined: p50 {} us, p95 {} us (not a gate)", at(50), at(95));
    // If it were given the GOP again, its latency would be seconds.
    assert!(at(50) < 500_000, "p50 {} us", at(50));
}
