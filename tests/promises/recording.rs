//! The recorder end to end: a real ring, a real recorder thread and real files, checked with ffprobe and ffmpeg.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test"
)]

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use streaming_server::camera::Layout;
use streaming_server::recorder::names::Format;
use streaming_server::recorder::retention::Retention;
use streaming_server::recorder::{RecorderError, RecorderState, StartRequest, StopReason};

mod kill;
pub(crate) mod rig;
mod streams;
use rig::{
    Mounted, Picture, Rig, SMALL, TemporaryDirectory, TestCamera, assert_complete, assert_plays, byte_stream,
    named, unit_numbers,
};

const FORMATS: [Format; 2] = [Format::Mp4, Format::H264];

#[test]
fn recording_is_complete_plays_and_has_little_overhead() {
    let picture = Picture { width: 1280, height: 720, bitrate_kbps: Some(8_000), fps: 30 };
    for format in FORMATS {
        let directory = TemporaryDirectory::new();
        let camera = TestCamera::new(Layout::V1, picture);
        let rig = Rig::new(&camera.name, &directory.0, format);
        camera.wait_units(5);
        let first = camera.count();
        let name = rig.start(StartRequest::default()).unwrap();
        assert!(name.starts_with("recording_2") && name.ends_with(format.extension()), "{name}");
        camera.wait_units(75);
        let last = camera.count() - 1;
        let reply = rig.stop().unwrap();
        let path = directory.0.join(&name);
        let numbers = unit_numbers(&path);
        assert_complete(&numbers);
        assert!(numbers[0] <= first, "the file starts at the IDR before the request: {} {first}", numbers[0]);
        assert!(*numbers.last().unwrap() >= last, "the file holds all units published before the stop");
        assert_eq!(numbers.len() as u64, reply.report.frame_count);
        assert_eq!(assert_plays(&path), numbers.len());
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert_eq!(bytes, reply.report.bytes_written);
        let payload = byte_stream(&path).len() as u64;
        assert!(bytes < payload + payload / 100, "{bytes} for {payload}");
        assert!((reply.report.duration - numbers.len() as f64 / 30.0).abs() < 0.5, "{:?}", reply.report);
        assert_eq!((reply.report.dropped_units, reply.reason), (0, StopReason::Requested));
        let latency = rig.handle.counters().write_latency.summary();
        eprintln!(
            "{format}: writes p50 {} us, p99 {} us, max {} us",
            latency.quantile_ns(0.5).unwrap_or(0) / 1_000,
            latency.quantile_ns(0.99).unwrap_or(0) / 1_000,
            latency.quantile_ns(1.0).unwrap_or(0) / 1_000
        );
    }
}

#[test]
fn running_file_can_be_downloaded_and_plays_up_to_its_last_unit() {
    for format in FORMATS {
        let directory = TemporaryDirectory::new();
        let camera = TestCamera::new(Layout::V3, SMALL);
        let rig = Rig::new(&camera.name, &directory.0, format);
        camera.wait_units(5);
        let name = rig.start(named("live")).unwrap();
        rig.wait_recorded(45);
        let download = rig.wait(rig.handle.open(name.clone(), None)).unwrap();
        assert!(!download.complete && download.progress.is_some());
        let info = rig.wait(rig.handle.list()).unwrap().remove(0);
        assert!(info.recording && !info.complete && info.bytes >= download.bytes && info.duration.is_some());
        assert_eq!(rig.wait(rig.handle.delete(name.clone())), Err(RecorderError::InUse(name.clone())));
        let early = copy(&download, &directory.0.join(format!("early.{format}")));
        assert!(rig.stop().is_ok());
        // A download that was opened before the stop still reads the file as it was before the recorder finished it.
        let late = copy(&download, &directory.0.join(format!("late.{format}")));
        for path in [early, late] {
            let numbers = unit_numbers(&path);
            assert_complete(&numbers);
            assert!(numbers.len() >= 45);
            assert_eq!(assert_plays(&path), numbers.len());
        }
        let finished = rig.wait(rig.handle.open(name.clone(), None)).unwrap();
        assert!(finished.complete && finished.progress.is_none() && finished.etag != download.etag);
        assert!(download.progress.unwrap().borrow().finished);
        assert_eq!(rig.wait(rig.handle.delete(name.clone())), Ok(()));
        assert_eq!(rig.wait(rig.handle.delete(name.clone())), Err(RecorderError::NotFound(name)));
    }
}

#[test]
fn part_of_a_growing_mp4_reads_as_a_finished_file_of_constant_bytes() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(5);
    let name = rig.start(named("live")).unwrap();
    rig.wait_recorded(45);
    let open = |until| rig.wait(rig.handle.open(name.clone(), until));
    let until = open(None).unwrap().finished_until().unwrap();
    let part = open(Some(until)).unwrap();
    assert!(part.bytes > until && part.finished_until().is_none());
    assert_eq!(open(Some(until - 1)).map(drop), Err(RecorderError::Until));
    let early = copy(&part, &directory.0.join("early.mp4"));
    rig.wait_recorded(30);
    let again = open(Some(until)).unwrap();
    assert_eq!((again.bytes, &again.etag), (part.bytes, &part.etag), "later requests see the same file");
    let later = copy(&again, &directory.0.join("later.mp4"));
    assert!(rig.stop().is_ok());
    let last = copy(&part, &directory.0.join("last.mp4"));
    let numbers = unit_numbers(&early);
    assert_complete(&numbers);
    assert!(numbers.len() >= 45 && assert_plays(&early) == numbers.len());
    for path in [later, last] {
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(&early).unwrap());
    }
    // After the recording has ended, a request with the same `until` reads the finished file. The units have the same
    // offsets there, so a player that read the part can continue in the finished file.
    let (finished, part) = (std::fs::read(directory.0.join(&name)).unwrap(), std::fs::read(&early).unwrap());
    assert!(finished[48..until as usize] == part[48..until as usize]);
    assert!(open(Some(until)).unwrap().complete);
}

fn copy(download: &streaming_server::recorder::library::Download, to: &Path) -> std::path::PathBuf {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 10_007];
    while (bytes.len() as u64) < download.bytes {
        let read = download.read_at(&mut buffer, bytes.len() as u64).unwrap();
        assert!(read > 0);
        bytes.extend_from_slice(&buffer[..read]);
    }
    bytes.truncate(download.bytes as usize);
    std::fs::write(to, bytes).unwrap();
    to.to_owned()
}

#[test]
fn invalid_requests_are_rejected_with_their_error_code() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    let codes =
        |result: Result<String, RecorderError>| result.map_err(|error| (error.status(), error.code()));
    assert_eq!(rig.stop().unwrap_err().status(), 409);
    let long = "x".repeat(300);
    for name in ["../x", "/etc/passwd", "a/b.mp4", ".hidden", "a\0b", "a\nb", "..", &long] {
        assert_eq!(codes(rig.start(named(name))), Err((400, "bad_name")), "{name:?}");
    }
    for seconds in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
        let request = StartRequest { pre_roll_s: Some(seconds), ..StartRequest::default() };
        assert_eq!(codes(rig.start(request)), Err((400, "bad_seconds")));
    }
    assert_eq!(codes(rig.start(named("cat"))), Ok("cat.mp4".to_owned()));
    assert_eq!(codes(rig.start(named("cat"))), Err((409, "already_recording")));
    rig.wait_recorded(3);
    assert!(rig.stop().is_ok());
    let before = std::fs::read(directory.0.join("cat.mp4")).unwrap();
    assert_eq!(codes(rig.start(named("cat"))), Err((409, "exists")));
    assert_eq!(
        std::fs::read(directory.0.join("cat.mp4")).unwrap(),
        before,
        "an existing file is never overwritten"
    );
    let status = rig.status();
    assert!(!status.recording && status.report.is_some_and(|report| report.frame_count >= 3));
    for name in ["../x", "none.mp4", "a.txt", ".cat.mp4"] {
        assert!(rig.wait(rig.handle.open(name.to_owned(), None)).is_err());
        assert!(rig.wait(rig.handle.delete(name.to_owned())).is_err());
    }
    std::os::unix::fs::symlink("/etc/passwd", directory.0.join("link.mp4")).unwrap();
    assert_eq!(rig.wait(rig.handle.open("link.mp4".to_owned(), None)).unwrap_err().status(), 404);
}

#[test]
fn pre_roll_starts_before_the_request() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, Picture { fps: 10, ..SMALL });
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(43);
    // Units 20 and 40 are IDRs. At 2.1 s before the request unit 22 was the newest, so the recording starts at the IDR
    // before it, unit 20.
    rig.start(StartRequest { pre_roll_s: Some(2.1), ..named("early") }).unwrap();
    rig.wait_recorded(30);
    rig.stop().unwrap();
    let numbers = unit_numbers(&directory.0.join("early.mp4"));
    assert_complete(&numbers);
    assert_eq!(numbers[0], 20);
    assert_plays(&directory.0.join("early.mp4"));
}

#[test]
fn report_tells_pre_roll_and_start_delay() {
    for (layout, waits) in [(Layout::V1, false), (Layout::V3Ring6, true)] {
        let directory = TemporaryDirectory::new();
        let camera = TestCamera::new(layout, Picture { fps: 10, ..SMALL });
        let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
        camera.wait_units(46);
        // Unit 40 is the newest IDR and unit 60 the next one. A ring of 30 slots still holds unit 40, so the recording
        // starts there. A ring of 6 slots no longer does, so the recording waits for unit 60.
        let request = StartRequest { pre_roll_s: Some(0.1), ..named("cat") };
        assert_eq!(rig.wait(rig.handle.start(request)).unwrap().waits_for_idr, waits, "{layout}");
        rig.wait_recorded(3);
        let report = rig.stop().unwrap().report;
        let numbers = unit_numbers(&directory.0.join("cat.mp4"));
        assert_complete(&numbers);
        if waits {
            assert_eq!((numbers[0], report.pre_roll), (60, 0.0), "{layout}");
            assert!((0.1..1.5).contains(&report.start_delay), "{layout}: {report:?}");
        } else {
            assert_eq!((numbers[0], report.start_delay), (40, 0.0), "{layout}");
            assert!(report.pre_roll > 0.4, "{layout}: {report:?}");
        }
    }
}

#[test]
fn new_resolution_starts_a_new_mp4_but_not_a_new_h264() {
    for (format, files) in [(Format::Mp4, vec!["cat.mp4", "cat_2.mp4"]), (Format::H264, vec!["cat.h264"])] {
        let directory = TemporaryDirectory::new();
        let camera = TestCamera::new(Layout::V3, SMALL);
        let rig = Rig::new(&camera.name, &directory.0, format);
        camera.wait_units(3);
        rig.start(named("cat")).unwrap();
        rig.wait_recorded(30);
        camera.change(|picture| (picture.width, picture.height) = (640, 368));
        camera.wait_units(50);
        let reply = rig.stop().unwrap();
        assert_eq!(reply.report.files, files);
        let numbers: Vec<u64> = files.iter().flat_map(|name| unit_numbers(&directory.0.join(name))).collect();
        assert_complete(&numbers);
        assert_eq!(numbers.len() as u64, reply.report.frame_count);
        for name in files {
            assert_plays(&directory.0.join(name));
        }
    }
}

#[test]
fn absent_camera_leaves_a_gap_of_its_length() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(3);
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(30);
    camera.paused.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(rig.status().recording);
    camera.paused.store(false, Ordering::SeqCst);
    camera.wait_units(30);
    let reply = rig.stop().unwrap();
    assert_complete(&unit_numbers(&directory.0.join("cat.mp4")));
    let without_gap = reply.report.frame_count as f64 / 60.0;
    assert!(reply.report.duration > without_gap + 1.0, "{:?}", reply.report);
}

#[test]
fn start_without_a_camera_is_rejected() {
    let directory = TemporaryDirectory::new();
    let rig = Rig::new("/ss-test-no-such-ring", &directory.0, Format::Mp4);
    let error = rig.start(StartRequest::default()).unwrap_err();
    assert_eq!((error.status(), error.code()), (503, "camera_away"));
    assert!(!rig.status().recording);
    assert!(rig.wait(rig.handle.list()).unwrap().is_empty());
}

#[test]
fn recording_without_a_unit_leaves_no_file() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    camera.paused.store(true, Ordering::SeqCst);
    let rig = Rig::new(&camera.name, &directory.0, Format::H264);
    std::thread::sleep(Duration::from_millis(100));
    if camera.count() > 0 {
        return; // the camera published a unit before the pause, so the case cannot be tested
    }
    rig.start(named("cat")).unwrap();
    let reply = rig.stop().unwrap();
    assert!(!reply.kept && reply.report.frame_count == 0);
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0);
}

#[test]
fn shutdown_finishes_the_recording() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(3);
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(20);
    drop(rig);
    let path = directory.0.join("cat.mp4");
    assert_complete(&unit_numbers(&path));
    assert_plays(&path);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    let info = rig.wait(rig.handle.list()).unwrap().remove(0);
    assert!(info.complete && !info.recovered && info.started_at.is_some());
}

#[test]
fn duration_limit_and_missing_heartbeat_stop_the_recording() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(3);
    rig.start(StartRequest { max_duration_s: Some(0.5), ..named("short") }).unwrap();
    rig.wait_state(RecorderState::Idle);
    assert_eq!(rig.status().reason, Some(StopReason::MaxDuration));
    rig.start(StartRequest { heartbeat_s: Some(1.0), ..named("watched") }).unwrap();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(400));
        rig.wait(rig.handle.heartbeat()).unwrap();
    }
    assert!(rig.status().recording);
    rig.wait_state(RecorderState::Idle);
    assert_eq!(rig.status().reason, Some(StopReason::Heartbeat));
    assert_complete(&unit_numbers(&directory.0.join("watched.mp4")));
}

#[test]
fn retention_deletes_own_recordings_and_keeps_foreign_files() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let retention = Retention { retain_bytes: Some(1), ..Retention::default() };
    std::fs::write(directory.0.join("foreign.mp4"), b"not ours").unwrap();
    std::fs::write(directory.0.join("foreign.h264"), b"not ours").unwrap();
    let rig = Rig::with(&camera.name, &directory.0, Format::Mp4, retention);
    camera.wait_units(3);
    for name in ["one.mp4", "two.h264", "three"] {
        rig.start(named(name)).unwrap();
        rig.wait_recorded(5);
        rig.stop().unwrap();
    }
    while rig.handle.counters().retired.get() < 3 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut left: Vec<String> =
        rig.wait(rig.handle.list()).unwrap().into_iter().map(|info| info.name).collect();
    left.sort();
    assert_eq!(left, ["foreign.h264", "foreign.mp4"]);
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 2, "no sidecar is left");
}

#[test]
fn full_disk_ends_the_recording_and_leaves_a_playable_file() {
    let picture = Picture { bitrate_kbps: Some(20_000), ..SMALL };
    for format in FORMATS {
        for ext4 in [false, true] {
            let mounted = if ext4 { Mounted::ext4(24 << 20) } else { Mounted::tmpfs(12 << 20) };
            let Some(disk) = mounted else {
                eprintln!("skipped: this process may not mount file systems");
                continue;
            };
            let camera = TestCamera::new(Layout::V3, picture);
            let rig = Rig::new(&camera.name, &disk.path, format);
            camera.wait_units(3);
            let name = rig.start(named("full")).unwrap();
            rig.wait_state(RecorderState::Idle);
            let status = rig.status();
            assert_eq!(status.error, Some(RecorderError::DiskFull));
            assert_eq!(status.reason, Some(StopReason::Failed(RecorderError::DiskFull)));
            let path = disk.path.join(&name);
            let numbers = unit_numbers(&path);
            assert_complete(&numbers);
            assert_eq!(numbers.len() as u64, status.report.unwrap().frame_count);
            assert_eq!(assert_plays(&path), numbers.len());
            let info = rig.wait(rig.handle.list()).unwrap().remove(0);
            assert!(info.complete, "space for the index was reserved");
            std::fs::write(disk.path.join("filler"), vec![1; 32 << 20]).unwrap_err();
            assert_eq!(rig.start(named("again")).unwrap_err().status(), 507);
            std::fs::remove_file(disk.path.join("filler")).unwrap();
            rig.wait(rig.handle.delete(name)).unwrap();
            rig.start(named("again")).unwrap();
            rig.wait_recorded(30);
            rig.stop().unwrap();
            assert_complete(&unit_numbers(&disk.path.join(format!("again.{format}"))));
            assert_eq!(rig.status().error, None);
        }
    }
}

#[test]
fn hanging_disk_delays_only_the_recorder() {
    let Some(disk) = Mounted::ext4(128 << 20) else {
        eprintln!("skipped: this process may not mount file systems");
        return;
    };
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &disk.path, Format::Mp4);
    camera.wait_units(3);
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(30);
    if !disk.run("fsfreeze", &["-f"]) {
        return;
    }
    camera.wait_units(90);
    assert_eq!(rig.status().state, RecorderState::Recording, "the recorder replies while the disk hangs");
    assert!(disk.run("fsfreeze", &["-u"]));
    camera.wait_units(60);
    let reply = rig.stop().unwrap();
    assert!(reply.report.dropped_units >= 30 && reply.report.gaps == 1, "{:?}", reply.report);
    let path = disk.path.join("cat.mp4");
    let numbers = unit_numbers(&path);
    let steps: Vec<u64> =
        numbers.windows(2).map(|pair| pair[1] - pair[0]).filter(|step| *step != 1).collect();
    assert_eq!(steps.len(), 1, "exactly one gap: {steps:?}");
    assert_eq!(steps[0] - 1, reply.report.dropped_units, "every missing unit is counted");
    assert_eq!(assert_plays(&path), numbers.len());
}

#[test]
fn unusable_directory_is_an_error_and_works_again_once_repaired() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let recordings = directory.0.join("recordings");
    std::fs::write(&recordings, b"a file in its place").unwrap();
    let rig = Rig::new(&camera.name, &recordings, Format::Mp4);
    camera.wait_units(3);
    let error = rig.start(named("cat")).unwrap_err();
    assert_eq!((error.status(), error.code()), (500, "directory"));
    std::fs::remove_file(&recordings).unwrap();
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(5);
    std::fs::remove_dir_all(&recordings).unwrap();
    rig.wait_state(RecorderState::Idle);
    assert_eq!(rig.status().error, Some(RecorderError::Removed));
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(5);
    rig.stop().unwrap();
    assert_complete(&unit_numbers(&recordings.join("cat.mp4")));
    if let Some(disk) = Mounted::tmpfs(1 << 24) {
        assert!(disk.run("mount", &["-o", "remount,ro"]));
        let rig = Rig::new(&camera.name, &disk.path, Format::Mp4);
        assert_eq!(rig.start(named("cat")).unwrap_err().code(), "directory");
    }
}
