//! Recorder processes are killed with SIGKILL at random moments. Every file plays before and after the repair.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use streaming_server::camera::Layout;
use streaming_server::recorder::format::recovery::whole_fragments;
use streaming_server::recorder::names::Format;

use super::rig::{
    Rig, SMALL, TemporaryDirectory, TestCamera, assert_complete, assert_plays, named, unit_numbers,
};

const RING: &str = "SS_TEST_RING";
const DIRECTORY: &str = "SS_TEST_DIRECTORY";
const FORMAT: &str = "SS_TEST_FORMAT";

/// Runs in the child process that the test kills. Without the environment variables this test returns at once.
#[test]
fn child_records_until_killed() {
    let Ok(ring) = std::env::var(RING) else { return };
    let directory = std::env::var(DIRECTORY).unwrap();
    let format = Format::of(&format!("x.{}", std::env::var(FORMAT).unwrap())).unwrap();
    let rig = Rig::new(&ring, Path::new(&directory), format);
    while rig.start(named("killed")).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn child(ring: &str, directory: &Path, format: Format) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "recording::kill::child_records_until_killed", "--nocapture"])
        .env(RING, ring)
        .env(DIRECTORY, directory)
        .env(FORMAT, format.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Bytes with which a recorder marks a new MP4 as its own, before the first unit.
const MARK_BYTES: u64 = 48;

/// Kills a recorder process `after_us` microseconds after the first unit was written to its file. Returns the size of the file in
/// bytes.
fn record_and_kill(camera: &TestCamera, path: &Path, format: Format, after_us: u64) -> u64 {
    let mut child = child(&camera.name, path.parent().unwrap(), format);
    let bytes = || std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    while bytes() <= MARK_BYTES {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_micros(after_us));
    child.kill().unwrap();
    child.wait().unwrap();
    bytes()
}

/// Returns true if the kill hit between two units. Otherwise the last unit is truncated and players report an error.
/// Returns false for every `.h264` file, because only a decoder could tell whether its last unit is whole.
fn is_whole(path: &Path) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let whole = whole_fragments(&file).unwrap().map(|whole| whole.end);
    whole == Some(file.metadata().unwrap().len())
}

#[test]
fn killed_recorder_loses_at_most_its_last_unit() {
    let kills: u64 = std::env::var("RECORDING_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let camera = TestCamera::new(Layout::V3, SMALL);
    camera.wait_units(25);
    for kill in 0..kills {
        let format = if kill % 4 == 3 { Format::H264 } else { Format::Mp4 };
        let directory = TemporaryDirectory::new();
        let path = directory.0.join(format!("killed.{format}"));
        // The delays are spread over one second and are not multiples of the interval of the camera.
        let left = record_and_kill(&camera, &path, format, kill * 7_919_331 % 1_000_003);
        // A copy of the file must play before any repair, unless the kill truncated its last unit.
        let copy = directory.0.join(format!("unrepaired.{format}"));
        std::fs::copy(&path, &copy).unwrap();
        let before = is_whole(&copy).then(|| {
            let before = unit_numbers(&copy);
            assert_complete(&before);
            assert_eq!(assert_plays(&copy), before.len(), "kill {kill}");
            before
        });
        std::fs::remove_file(&copy).unwrap();
        // The next recorder that starts on the directory repairs the file.
        let rig = Rig::new(&camera.name, &directory.0, format);
        while rig.handle.counters().recovered.get() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let info = rig.wait(rig.handle.list()).unwrap().remove(0);
        assert!(info.complete && info.recovered && !info.recording, "{info:?}");
        let after = unit_numbers(&path);
        assert_complete(&after);
        assert_eq!(assert_plays(&path), after.len());
        if format == Format::Mp4 {
            assert!(
                before.is_none_or(|before| before == after),
                "kill {kill}: the repair removed a whole fragment"
            );
            assert!(info.duration.is_some_and(|duration| duration > 0.0) && info.started_at.is_some());
        }
        assert!(left > 0);
        // After the repair no file counts as unfinished, and another start of a recorder does not change the repaired
        // file.
        assert!(rig.handle.library().unfinished().is_empty());
        let bytes = std::fs::read(&path).unwrap();
        drop(rig);
        drop(Rig::new(&camera.name, &directory.0, format));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn file_locked_by_another_server_is_not_repaired() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(3);
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(5);
    let other = Rig::new(&camera.name, &directory.0, Format::Mp4);
    rig.wait_recorded(400);
    assert_eq!(other.handle.counters().recovered.get(), 0);
    rig.stop().unwrap();
    let path = directory.0.join("cat.mp4");
    assert_complete(&unit_numbers(&path));
    assert_plays(&path);
}

#[test]
fn truncated_files_are_repaired_and_play() {
    let directory = TemporaryDirectory::new();
    let camera = TestCamera::new(Layout::V3, SMALL);
    let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
    camera.wait_units(3);
    rig.start(named("cat")).unwrap();
    rig.wait_recorded(40);
    let download = rig.wait(rig.handle.open("cat.mp4".to_owned(), None)).unwrap();
    let mut bytes = vec![0; download.bytes as usize];
    let mut read = 0;
    while read < bytes.len() {
        read += download.read_at(&mut bytes[read..], read as u64).unwrap();
    }
    rig.stop().unwrap();
    drop(rig);
    for cut in (0..12).map(|cut| bytes.len() - 1 - cut * bytes.len() / 14) {
        let path = directory.0.join("cut.mp4");
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let rig = Rig::new(&camera.name, &directory.0, Format::Mp4);
        while rig.handle.counters().recovered.get() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let numbers = unit_numbers(&path);
        assert_complete(&numbers);
        assert_eq!(assert_plays(&path), numbers.len());
    }
}
