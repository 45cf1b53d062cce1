//! Runs a server from start to exit in a few seconds, with doctor, a camera, a viewer, a recording, a profile and
//! SIGTERM. scripts/test-arm64 runs this test in an emulated machine too, to check the real aarch64 binary.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::thread;

use serde_json::json;
use support::account::Report;
use support::camera::{CameraSim, words};
use support::metrics::Metrics;
use support::process::Process;
use support::profile::Profile;
use support::server::{self, Server};
use support::viewer::ViewerSimulator;
use support::{PATIENCE, http, unique_shm, wait_until};

const LOOPBACK: [&str; 6] = ["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "127.0.0.1:0"];

/// Asserts that `doctor` finds all that the server needs on this machine.
fn doctor_finds_no_problem(shm: &str, directory: &str) {
    let mut command = server::command(shm, &["--record-path", directory]);
    command.args(LOOPBACK);
    let program = command.get_program().to_owned();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut doctor =
        Process::spawn("doctor", std::process::Command::new(program).arg("doctor").args(arguments));
    let status = doctor.wait_exit(PATIENCE);
    let report = doctor.log();
    eprintln!("{report}");
    assert!(status.success(), "{report}");
    for line in ["ok    ring", "io_uring", "gso", "recordings"] {
        assert!(report.contains(line), "no `{line}` in\n{report}");
    }
}

/// Records at least 30 units, downloads the file as a browser would, and asserts that it is complete.
fn records(server: &Server) {
    let started = http::post_json(server.http, "/api/recording/start", &json!({ "filename": "smoke" }));
    assert_eq!(started.status, 200, "{}", started.text());
    wait_until("a second recorded", || {
        server.get("/api/recording/status").json()["frame_count"].as_u64().unwrap_or(0) >= 30
    });
    let stopped = http::request(server.http, "POST", "/api/recording/stop", &[], b"").json();
    assert_eq!((&stopped["status"], &stopped["dropped_units"]), (&json!("stopped"), &json!(0)), "{stopped}");
    let file = server.get("/api/recordings/smoke.mp4");
    assert_eq!((file.status, &file.body[4..8]), (200, &b"ftyp"[..]));
    assert!(memchr::memmem::find(&file.body, b"moov").is_some(), "the file is finished");
    let listed = server.get("/api/recordings").json()["recordings"][0].clone();
    assert_eq!((&listed["complete"], listed["bytes"].as_u64()), (&json!(true), Some(file.body.len() as u64)));
}

/// Asserts that the profiler walks stacks on this architecture and finds the names of functions in the binary.
fn is_profiled(server: &Server) {
    let control = server.process.after("control: http://").unwrap();
    let control = control.split('/').next().unwrap().parse().unwrap();
    let profile = thread::spawn(move || http::get(control, "/debug/pprof/profile?seconds=2"));
    // The requests keep the server busy during the profile, because a server with one viewer is idle most of the time.
    while !profile.is_finished() {
        server.get("/metrics");
    }
    let answer = profile.join().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let profile = Profile::decode(&answer.body);
    let ours = |name: &String| name.contains("streaming_server::");
    let deepest = profile.samples.iter().map(|sample| sample.stack.len()).max().unwrap_or(0);
    let named = profile.total(0, |sample| sample.stack.iter().any(ours));
    eprintln!("{} samples name our functions, the deepest stack has {deepest} frames", named);
    assert!(named > 0, "{:?}", profile.samples);
    assert!(deepest >= 4, "stacks are walked: {:?}", profile.samples);
    let threads = http::get(control, "/debug/pprof/goroutine?debug=2").text();
    assert!(threads.contains("worker-0") && threads.contains("streaming_server::"), "{threads}");
}

/// Asserts that all received units are intact and that the first is an IDR. On a slow emulated machine units may be
/// missing, but the server must have counted each of them as dropped.
fn is_accounted_for(report: Report, metrics: &Metrics) {
    let dropped = metrics.value("frames_dropped_total", &[("component", "webrtc")]).unwrap();
    let counted_drops = dropped + metrics.expect("lapped_total") + metrics.expect("torn_total");
    let counts = Report { latencies_ns: Vec::new(), ..report };
    assert!(counts.missing as f64 <= counted_drops, "{counted_drops} of {counts:?}");
    Report { missing: 0, ..counts }.assert_perfect("the viewer");
}

#[test]
fn a_server_serves_records_profiles_and_exits() {
    let shm = unique_shm();
    let directory = std::env::temp_dir().join(format!("ss-smoke{}", shm.replace('/', "-")));
    let shown = directory.to_str().unwrap();
    let camera =
        CameraSim::start(&shm, &words("--layout v1 --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30"));
    wait_until("the camera's ring", || camera.log().contains("test card"));
    doctor_finds_no_problem(&shm, shown);
    let mut command = server::command(&shm, &["--record-path", shown]);
    let mut server = Server::spawn(command.args(LOOPBACK));
    server.wait_ready();
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(30);
    records(&server);
    is_profiled(&server);
    let report = viewer.leave();
    eprintln!(
        "the viewer got {} units, p50 {} us, p99 {} us (not a gate)",
        report.units,
        report.latency_ns(0.5) / 1000,
        report.latency_ns(0.99) / 1000
    );
    let metrics = server.metrics();
    is_accounted_for(report, &metrics);
    assert!(metrics.expect("frames_sent_total") >= 30.0);
    for name in ["SINGLE_ISSUER", "DEFER_TASKRUN", "COOP_TASKRUN", "SUBMIT_ALL", "multishot receive", "GSO"] {
        let is_used = metrics.value("io_uring_feature", &[("feature", name)]);
        eprintln!("io_uring {name}: {is_used:?}");
        assert!(is_used.is_some());
    }
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
    let _ = std::fs::remove_dir_all(&directory);
}
