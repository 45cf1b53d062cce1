//! Streams of x264 as cameras send them, recorded and compared picture by picture with ffmpeg's decode of the source.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use streaming_server::camera::{Layout, RingWriter};
use streaming_server::h264::nal::kind;
use streaming_server::h264::{NalUnit, scan};
use streaming_server::recorder::names::Format;
use streaming_server::recorder::{RecorderError, RecorderState};
use support::server::{self, Server};
use support::wait_until;

use super::rig::{Rig, SMALL, TemporaryDirectory, TestCamera, named, taken_now, unique};

/// Returns the access units of 3 seconds of video that x264 encodes with these options.
fn encoded(directory: &Path, options: &[&str]) -> Vec<Vec<u8>> {
    let path = directory.join("source.h264");
    let source = ["-v", "error", "-f", "lavfi", "-i", "testsrc2=size=160x96:rate=25:duration=3"];
    let mut encode = Command::new("ffmpeg");
    encode.args(source).args(["-c:v", "libx264", "-pix_fmt", "yuv420p"]).args(options);
    encode.args(["-bsf:v", "h264_metadata=aud=insert", "-y"]).arg(&path);
    let encoded = encode.output().unwrap();
    assert!(encoded.status.success(), "{}", String::from_utf8_lossy(&encoded.stderr));
    let stream = std::fs::read(&path).unwrap();
    let starts: Vec<usize> = memchr::memmem::find_iter(&stream, &[0, 0, 0, 1, 9]).collect();
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    starts.iter().zip(ends).map(|(start, end)| stream[*start..end].to_vec()).collect()
}

/// Returns the checksums of the decoded pictures of a recording in the order in which they are shown. Asserts that their
/// presentation times increase.
fn pictures(path: &Path) -> Vec<String> {
    let pictures = decoded(path, &[]);
    assert!(pictures.is_sorted_by(|a, b| a.0 < b.0), "{}: {pictures:?}", path.display());
    pictures.into_iter().map(|(_, sum)| sum).collect()
}

/// Returns the presentation time, in the unit of the file, and the checksum of each picture that ffmpeg decodes.
fn decoded(path: &Path, options: &[&str]) -> Vec<(i64, String)> {
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error"]).args(options).arg("-i").arg(path);
    decode.args(["-fps_mode", "passthrough", "-enc_time_base", "-1", "-f", "framemd5", "-"]);
    let decoded = decode.output().unwrap();
    assert!(decoded.status.success(), "{}", String::from_utf8_lossy(&decoded.stderr));
    let text = String::from_utf8(decoded.stdout).unwrap();
    let fields =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(',').collect::<Vec<_>>());
    fields.map(|fields| (fields[2].trim().parse().unwrap(), fields[5].trim().to_owned())).collect()
}

/// Publishes these units, 100 a second.
fn publish(writer: &mut RingWriter, units: &[Vec<u8>]) {
    for (number, unit) in (0..).zip(units) {
        std::thread::sleep(Duration::from_millis(10));
        writer.publish(&taken_now(number, (160, 96), unit), unit);
    }
}

/// Records these units to `cat.mp4`, and copies the file to `running.mp4` before it is finished.
fn record(directory: &Path, units: &[Vec<u8>]) -> Rig {
    let name = format!("/{}", unique("ring"));
    let mut writer = RingWriter::create(&name, Layout::V3, 10).unwrap();
    let rig = Rig::new(&name, directory, Format::Mp4);
    while rig.start(named("cat")) == Err(RecorderError::CameraAway) {
        std::thread::sleep(Duration::from_millis(10));
    }
    publish(&mut writer, units);
    rig.wait_recorded(units.len() as u64);
    std::fs::copy(directory.join("cat.mp4"), directory.join("running.mp4")).unwrap();
    let reply = rig.stop().unwrap();
    assert_eq!((reply.report.dropped_units, reply.report.gaps), (0, 0));
    writer.unlink();
    rig
}

#[test]
fn b_frames_are_shown_in_order_in_the_running_and_the_finished_file() {
    for options in
        [&["-bf", "2", "-g", "25"][..], &["-bf", "3", "-x264-params", "b-pyramid=normal:keyint=30"]]
    {
        let directory = TemporaryDirectory::new();
        let units = encoded(&directory.0, options);
        let source = pictures_of_stream(&directory.0);
        assert_eq!(source.len(), units.len());
        let _rig = record(&directory.0, &units);
        for name in ["running.mp4", "cat.mp4"] {
            assert_eq!(pictures(&directory.0.join(name)), source, "{name} {options:?}");
        }
    }
}

/// Returns the checksums of the decoded pictures of `source.h264`, which has no times.
fn pictures_of_stream(directory: &Path) -> Vec<String> {
    decoded(&directory.join("source.h264"), &["-r", "25"]).into_iter().map(|(_, sum)| sum).collect()
}

#[test]
fn filler_is_not_recorded() {
    let directory = TemporaryDirectory::new();
    let options = ["-g", "25", "-b:v", "2M", "-x264-params", "nal-hrd=cbr:vbv-maxrate=2000:vbv-bufsize=2000"];
    let units = encoded(&directory.0, &options);
    let source = pictures_of_stream(&directory.0);
    let bytes: usize = units.iter().map(Vec::len).sum();
    let rig = record(&directory.0, &units);
    assert_eq!(pictures(&directory.0.join("cat.mp4")), source);
    let recorded = std::fs::metadata(directory.0.join("cat.mp4")).unwrap().len();
    let filler = rig.handle.counters().filler_bytes.get();
    assert!(filler > bytes as u64 / 2, "{filler} of {bytes} bytes are filler");
    assert!(recorded < bytes as u64 / 2, "{recorded} of {bytes} bytes are recorded");
}

#[test]
fn recording_of_intra_refresh_starts_at_a_recovery_point() {
    let directory = TemporaryDirectory::new();
    let options = ["-bf", "0", "-x264-params", "intra-refresh=1:keyint=10:min-keyint=10"];
    let units = encoded(&directory.0, &options);
    let source = pictures_of_stream(&directory.0);
    let rig = {
        let name = format!("/{}", unique("ring"));
        let mut writer = RingWriter::create(&name, Layout::V3, 10).unwrap();
        let rig = Rig::new(&name, &directory.0, Format::Mp4);
        while rig.start(named("cat")) == Err(RecorderError::CameraAway) {
            std::thread::sleep(Duration::from_millis(10));
        }
        publish(&mut writer, &units[5..]);
        rig.wait_recorded(units.len() as u64 - 10);
        writer.unlink();
        rig
    };
    assert!(rig.stop().unwrap().kept);
    let shown = pictures(&directory.0.join("cat.mp4"));
    let correct = source.len() - 30;
    assert!(shown.len() > correct);
    assert_eq!(shown[shown.len() - correct..], source[30..], "after the first recovery");
}

#[test]
fn file_that_another_program_truncates_or_deletes_ends_the_recording() {
    for (what, code) in
        [("truncated", "truncated"), ("emptied", "truncated"), ("deleted", "removed"), ("renamed", "removed")]
    {
        let directory = TemporaryDirectory::new();
        let camera = TestCamera::new(Layout::V3, SMALL);
        let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
        camera.wait_units(3);
        rig.start(named("cat")).unwrap();
        rig.wait_recorded(70);
        let path = directory.0.join("cat.mp4");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        match what {
            "truncated" => file.set_len(file.metadata().unwrap().len() / 2).unwrap(),
            "emptied" => file.set_len(0).unwrap(),
            "deleted" => std::fs::remove_file(&path).unwrap(),
            _ => std::fs::rename(&path, directory.0.join("moved.mp4")).unwrap(),
        }
        camera.paused.store(what == "truncated", Ordering::SeqCst);
        let error = match rig.stop() {
            Err(RecorderError::NotRecording) => rig.status().error.unwrap(),
            stopped => stopped.unwrap_err(),
        };
        assert_eq!(error.code(), code, "{what}");
        rig.wait_state(RecorderState::Idle);
        match what {
            "truncated" => {
                assert!(pictures(&path).len() > 20, "the part before is kept and plays");
                let info = rig.wait(rig.handle.list()).unwrap().remove(0);
                assert!(info.complete && info.recovered && !info.recording);
            }
            "renamed" => assert!(directory.0.join("moved.mp4").exists() && !path.exists()),
            _ => assert!(!path.exists(), "{what}"),
        }
    }
}

#[test]
fn server_says_that_the_camera_sends_b_frames_and_counts_no_unit_without_a_picture_as_error() {
    let directory = TemporaryDirectory::new();
    let units = encoded(&directory.0, &["-bf", "2", "-g", "25"]);
    let shm = support::unique_shm();
    let mut writer = RingWriter::create(&shm, Layout::V3, 10).unwrap();
    let record_path = directory.0.join("recordings");
    let server = Server::start(&shm, &["--record-path", record_path.to_str().unwrap()]);
    let with_lone_sei: Vec<Vec<u8>> =
        units.into_iter().flat_map(|unit| [unit, vec![0, 0, 0, 1, 0x06, 5, 1, 9, 0x80]]).collect();
    wait_until("the camera is attached", || server.get("/api/status").json()["camera"]["state"] != "away");
    publish(&mut writer, &with_lone_sei);
    wait_until("b_frames in the status", || server.get("/api/status").json()["camera"]["b_frames"] == true);
    let metrics = server.get("/metrics").text();
    for line in ["errors_total{type=\"process\"} 0", "camera_bidirectional_pictures 1"] {
        assert!(metrics.lines().any(|found| found.ends_with(line)), "no `{line}` in {metrics}");
    }
    let log = server.process.log();
    assert_eq!(log.matches("the camera sends B-frames").count(), 1, "{log}");
    let report = doctor(&shm);
    assert!(report.contains("with B-frames: turn B-frames off"), "{report}");
    writer.unlink();
}

/// Returns what `streaming-server doctor` prints.
fn doctor(shm: &str) -> String {
    let options = server::command(shm, &[]);
    let mut doctor = Command::new(options.get_program());
    let doctor = doctor.arg("doctor").args(options.get_args()).output().unwrap();
    String::from_utf8_lossy(&doctor.stdout).into_owned()
}

/// Returns the slices of a unit, the first one with everything before it.
fn slices(unit: &[u8]) -> Vec<Vec<u8>> {
    let mut nals = smallvec::SmallVec::new();
    scan(unit, &mut nals).unwrap();
    let is_slice = |nal: &&NalUnit| matches!(nal.kind, kind::SLICE | kind::IDR_SLICE);
    let starts = nals.iter().filter(is_slice).skip(1).map(|nal| nal.start as usize - 3);
    let cuts: Vec<usize> = [0].into_iter().chain(starts).chain([unit.len()]).collect();
    cuts.windows(2).map(|cut| unit[cut[0]..cut[1]].to_vec()).collect()
}

#[test]
fn server_says_that_slots_hold_several_pictures_or_parts_of_one() {
    let directory = TemporaryDirectory::new();
    let units = encoded(&directory.0, &["-bf", "0", "-g", "10", "-x264-params", "slices=3"]);
    let pairs = units.chunks(2).map(|pair| pair.concat()).collect();
    let parts = units.iter().flat_map(|unit| slices(unit)).collect();
    let alright: Vec<Vec<u8>> = units;
    for (slots, fault) in [
        (alright, None),
        (pairs, Some("the camera writes several pictures into one slot")),
        (parts, Some("the camera writes parts of a picture into slots of their own")),
    ] {
        let shm = support::unique_shm();
        let mut writer = RingWriter::create(&shm, Layout::V3, 10).unwrap();
        let server = Server::start(&shm, &[]);
        wait_until("the camera is attached", || {
            server.get("/api/status").json()["camera"]["state"] != "away"
        });
        publish(&mut writer, &slots);
        let read = slots.len() as f64;
        wait_until("all slots are read", || server.metrics().expect("frames_read_total") >= read);
        let (camera, log) = (server.get("/api/status").json()["camera"].clone(), server.process.log());
        let (said, report) = (camera["slot_fault"].as_str(), doctor(&shm));
        assert_eq!(said.is_some(), fault.is_some(), "{camera}");
        let fault = fault.unwrap_or("the camera writes");
        assert!(said.is_none_or(|said| said.starts_with(fault)), "{camera}");
        let times = usize::from(said.is_some());
        assert_eq!(
            (log.matches(fault).count(), report.matches(fault).count()),
            (times, times),
            "{log}{report}"
        );
        writer.unlink();
    }
}
