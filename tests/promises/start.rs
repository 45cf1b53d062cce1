//! Viewers that join right after the server has started begin with the GOP whose IDR the ring holds, not with the
//! camera's next IDR. If there is none, `/api/status` and the log say what the viewer waits for.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::time::Duration;

use support::camera::{CameraSim, segment_path, words};
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{unique_shm, wait_until};

/// A camera whose ring has a few units of a GOP of minutes. The ring holds `30 / fps` seconds.
fn camera_in_its_first_gop(fps: u32) -> (CameraSim, String) {
    let shm = unique_shm();
    let line = format!("--layout v3 --pattern 320x240 --fps {fps} --gop 3600 --bitrate-kbps 500");
    let camera = CameraSim::start(&shm, &words(&line));
    wait_until("the camera's ring", || std::path::Path::new(&segment_path(&shm)).exists());
    std::thread::sleep(Duration::from_millis(3_500 / u64::from(fps)));
    (camera, shm)
}

/// Starts a server and joins it at once with `count` viewers. Returns the viewers after their first units.
fn join_at_once(shm: &str, workers: &str, count: usize) -> (Server, Vec<ViewerSimulator>) {
    let server = Server::start(shm, &["--workers", workers, "--max-viewers", "128"]);
    let connect = |_| ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    let viewers: Vec<_> = (0..count).map(connect).collect();
    viewers.iter().for_each(|viewer| viewer.wait_units(3));
    (server, viewers)
}

#[test]
fn viewers_that_join_right_after_the_start_begin_with_the_idr_in_the_ring() {
    for workers in ["1", "2"] {
        for round in 0..2 {
            let (_camera, shm) = camera_in_its_first_gop(5);
            let (_server, viewers) = join_at_once(&shm, workers, 2);
            for viewer in viewers {
                let report = viewer.leave();
                assert_eq!(report.first_unit, Some(0), "{workers} workers, round {round}: {report:?}");
                assert_eq!(report.missing, 0, "{workers} workers, round {round}");
            }
        }
    }
}

#[test]
fn viewer_that_no_gop_can_be_replayed_to_is_kept_and_told_what_it_waits_for() {
    // The ring loses the IDR before the server starts. The next one comes after eight seconds.
    let shm = unique_shm();
    let line = "--layout v3-6 --pattern 320x240 --fps 10 --gop 80 --bitrate-kbps 500";
    let _camera = CameraSim::start(&shm, &words(line));
    wait_until("the camera's ring", || std::path::Path::new(&segment_path(&shm)).exists());
    std::thread::sleep(Duration::from_millis(1_500));
    let server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    let camera = || server.get("/api/status").json()["camera"].clone();
    wait_until("the notice in /api/status", || {
        let notice = camera()["notice"].as_str().unwrap_or_default().to_owned();
        notice.contains("waiting for the camera's next IDR") || viewer.report().units > 0
    });
    viewer.wait_units(10);
    wait_until("the end of the notice", || camera()["notice"].is_null());
    assert!(camera()["last_idr_s"].is_u64(), "{}", camera());
    let report = viewer.leave();
    assert!(report.first_unit.unwrap().is_multiple_of(80), "{report:?}");
    assert!(server.process.after("waiting for the camera's next IDR").is_some(), "{}", server.process.log());
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// Measures JOINS joins right after the start, AT_ONCE viewers per start, with WORKERS workers. Prints the time from the
/// end of the viewer's DTLS handshake to its first datagram of media. `scripts/joins` runs this test.
#[test]
#[ignore = "long, and it measures time: scripts/joins runs it"]
fn joins() {
    let (joins, at_once) = (number("JOINS", 200), number("AT_ONCE", 1));
    let workers = number("WORKERS", 1).to_string();
    let (mut delays_ms, mut late_starts) = (Vec::new(), 0);
    while delays_ms.len() < joins {
        let (_camera, shm) = camera_in_its_first_gop(10);
        let (_server, viewers) = join_at_once(&shm, &workers, at_once);
        for report in viewers.into_iter().map(ViewerSimulator::leave) {
            late_starts += usize::from(report.first_unit != Some(0));
            let delay_ns = report.first_media_at_ns.unwrap() - report.connected_at_ns.unwrap();
            delays_ms.push(delay_ns as f64 / 1e6);
        }
    }
    delays_ms.truncate(joins);
    delays_ms.sort_by(f64::total_cmp);
    let at = |share: usize| delays_ms[(delays_ms.len() - 1) * share / 100];
    let in_time = delays_ms.iter().filter(|ms| **ms < 100.0).count();
    println!(
        "{workers} workers, {at_once} at once: {in_time} of {joins} joins within 100 ms, \
         {late_starts} began with another IDR; p50 {:.1}, p95 {:.1}, max {:.1} ms",
        at(50),
        at(95),
        at(100)
    );
    assert_eq!(late_starts, 0, "joins that did not begin with the IDR in the ring");
}
