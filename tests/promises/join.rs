//! A viewer that joins in the middle of a long GOP sees the picture at once, on every layout, and does not affect other
//! viewers.
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

/// Units of a GOP, which lasts half a minute at 30 units per second. Every test here ends before the next IDR.
const GOP: u64 = 900;

fn camera(shm: &str, layout: &str, kbps: u32) -> CameraSim {
    let line = format!("--layout {layout} --pattern 640x480 --fps 30 --bitrate-kbps {kbps} --gop {GOP}");
    CameraSim::start(shm, &words(&line))
}

fn metric(server: &Server, name: &str, labels: &[(&str, &str)]) -> f64 {
    server.metrics().value(name, labels).unwrap_or_else(|| panic!("no {name}"))
}

/// Starts a server and then a camera. Returns both when the ring no longer holds the first IDR, while the first GOP
/// still runs.
fn in_the_middle(layout: &str, kbps: u32) -> (CameraSim, Server) {
    let shm = unique_shm();
    let server = Server::start(&shm, &[]);
    let camera = camera(&shm, layout, kbps);
    server.wait_ready();
    wait_until("the ring to lose the first IDR", || metric(&server, "frames_processed_total", &[]) >= 40.0);
    (camera, server)
}

/// Returns true if no delay made the worker lose a unit. A ring of 6 slots covers a delay of only 0.1 s. After a longer
/// delay viewers rightly wait for the next IDR.
fn was_undisturbed(server: &Server) -> bool {
    ["lapped_total", "torn_total", "gop_missed_total"].iter().all(|name| metric(server, name, &[]) == 0.0)
}

fn connect(server: &Server) -> ViewerSimulator {
    ViewerSimulator::connect(server.http).unwrap_or_else(|refusal| panic!("refused: {}", refusal.text()))
}

#[test]
fn every_viewer_starts_at_the_idr_and_misses_no_unit_on_every_layout() {
    for layout in ["v0", "v1", "v3", "v3-6"] {
        let watched = (0..5).any(|_| two_join(layout));
        assert!(watched, "{layout}: the machine delayed the worker five times");
    }
}

/// Lets two viewers join and checks that they miss no unit. Returns false if the machine delayed the worker, so that
/// nothing was checked.
fn two_join(layout: &str) -> bool {
    let (_camera, server) = in_the_middle(layout, 1_500);
    let viewers = [connect(&server), connect(&server)];
    wait_until("the current GOP and some more units at both viewers", || {
        viewers.iter().all(|viewer| viewer.report().units >= 80) || !was_undisturbed(&server)
    });
    if !was_undisturbed(&server) {
        return false;
    }
    for viewer in &viewers {
        let report = viewer.report();
        assert!(report.last_unit.unwrap() < GOP, "{layout}: too late, the next IDR arrived");
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
fn short_gop_is_not_kept_and_viewers_start_at_its_idr_in_the_ring() {
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
        // If the camera's next IDR arrives during the join, the viewer continues at that IDR and skips the rest of its
        // first GOP.
        assert!(report.missing < 20 && report.lost_packets == 0, "{report:?}");
        assert_eq!(report.duplicated + report.reordered + report.torn + report.bad_idrs, 0, "{report:?}");
        assert!(!report.began_without_idr && report.first_unit.unwrap().is_multiple_of(20));
    }
}

#[test]
fn viewer_that_requests_an_idr_gets_the_gop_again() {
    let (_camera, server) = in_the_middle("v1", 1_500);
    let viewer = connect(&server);
    viewer.wait_units(45);
    let idrs = viewer.report().idrs;
    // The server ignores a request soon after an IDR, because that IDR already answers it. So the viewer waits before
    // it sends the request.
    std::thread::sleep(Duration::from_millis(300));
    viewer.request_idr();
    wait_until("another IDR", || viewer.report().idrs > idrs);
    viewer.wait_more_units(30);
    let report = viewer.report();
    assert!(report.last_unit.unwrap() < GOP, "the IDR was the camera's next one");
    assert_eq!(report.torn + report.bad_idrs + report.missing, 0, "{report:?}");
    assert_eq!(metric(&server, "gop_replays_total", &[("reason", "request")]), 1.0);
}

#[test]
fn joining_viewers_do_not_disturb_a_watching_viewer() {
    let (_camera, server) = in_the_middle("v1", 4_000);
    let watching = connect(&server);
    watching.wait_units(45);
    let before = watching.report().latencies_ns.len();
    for _ in 0..3 {
        let joining = ViewerSimulator::crowd(server.http, 3);
        joining.iter().for_each(|viewer| viewer.wait_units(80));
        joining.into_iter().for_each(|viewer| viewer.leave().assert_perfect("joining viewer"));
    }
    let report = watching.leave();
    report.assert_perfect("watching viewer");
    let mut during = report.latencies_ns[before..].to_vec();
    during.sort_unstable();
    let at = |share: usize| during[(during.len() - 1) * share / 100] / 1_000;
    eprintln!("while 9 joined: p50 {} us, p95 {} us (not a gate)", at(50), at(95));
    // If a join replayed old units to the watching viewer too, its latencies would be seconds.
    assert!(at(50) < 500_000, "p50 {} us", at(50));
}
