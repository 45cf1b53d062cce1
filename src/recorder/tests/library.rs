//! Tests that the library touches only recordings of this server, and only regular files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::recorder::detection_log::{Head, LogLines};
use crate::recorder::format::fmp4::{self, START_UNFINISHED};
use crate::recorder::format::{Fragment, Track, UnitKind};
use crate::recorder::library::{FileIdentity, Library, Lock};
use crate::recorder::log_file;
use crate::recorder::names::Zone;
use crate::recorder::retention::Retention;
use crate::recorder::sidecar::Sidecar;
use crate::recorder::types::{RecorderError, RecordingFilter, RecordingKind};

/// A library in a directory that the drop removes.
struct TestLibrary(PathBuf, Library);

impl TestLibrary {
    fn new(test: &str) -> TestLibrary {
        let path = std::env::temp_dir().join(format!("ss-library-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let library = Library::new(&path, Arc::default());
        TestLibrary(path, library)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn pipe(&self, name: &str) {
        mknodat(CWD, self.0.join(name), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for TestLibrary {
    fn drop(&mut self) {
        let _ignored = fs::remove_dir_all(&self.0);
    }
}

/// Returns an unfinished MP4 with `units` units.
fn unfinished(units: u32) -> Vec<u8> {
    let configuration = vec![1, 66, 0xc0, 30, 0xff, 0xe1, 0, 4, 0x67, 66, 0xc0, 30, 1, 0, 1, 0x68];
    let mut file =
        fmp4::file_header(&Track { width: 16, height: 16, configuration, started_at_s: 1_800_000_000 });
    for number in 0..units {
        let nal_units = [bytes::Bytes::from_static(&[0x65; 5_000])];
        let fragment = Fragment {
            sequence: number + 1,
            time_90k: u64::from(number) * 3_000,
            composition_90k: 0,
            duration_90k: 3_000,
            unit_bytes: 5_004,
            kind: UnitKind::Idr,
        };
        let mut parts = Vec::new();
        fmp4::gather(&fragment, &nal_units, &mut parts);
        parts.iter().for_each(|part| file.extend_from_slice(part));
    }
    file
}

#[test]
fn repair_deletes_no_file_of_another_program() {
    let test = TestLibrary::new("foreign");
    test.write("empty.mp4", b"");
    test.write("foreign.mp4", b"something else");
    test.write("empty.h264", b"");
    test.write("ours.mp4", &START_UNFINISHED);
    test.write("crashed.h264", b"");
    Sidecar::default().create(&test.0, "crashed.h264").unwrap();
    test.write(".notes.h264.json", b"of another program");
    let library = &test.1;
    assert_eq!(library.unfinished().len(), 2, "{:?}", library.unfinished());
    for name in ["empty.mp4", "foreign.mp4", "empty.h264", "ours.mp4", "crashed.h264"] {
        assert_eq!(library.repair(name), Ok(false), "{name}");
    }
    library.remove_orphans();
    assert_eq!(test.names(), [".notes.h264.json", "empty.h264", "empty.mp4", "foreign.mp4"]);
}

#[test]
fn detection_log_lives_as_long_as_its_recording() {
    let test = TestLibrary::new("log");
    test.write("cat.mp4", &unfinished(3));
    let head = |recording: &str| Head { recording: recording.to_owned(), ..Head::default() }.line();
    let lines = |is_first, lines: &[u8]| LogLines { is_first, head: head("cat.mp4"), lines: lines.to_vec() };
    test.write("cat.json", b"of another program");
    let refused = log_file::append(&test.0, "cat.mp4", &lines(true, b"{}\n")).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    assert!(test.1.open("cat.json", None).is_err());
    assert_eq!(test.1.list().unwrap()[0].detections, None);
    fs::remove_file(test.0.join("cat.json")).unwrap();
    for is_first in [true, false] {
        log_file::append(&test.0, "cat.mp4", &lines(is_first, b"{\"t\":0}\n")).unwrap();
    }
    test.write("dog.json", &head("dog.mp4"));
    test.write("notes.json", b"of another program");
    test.1.remove_orphans();
    assert_eq!(test.names(), ["cat.json", "cat.mp4", "notes.json"]);
    assert_eq!(test.1.list().unwrap()[0].detections.as_deref(), Some("cat.json"));
    let download = test.1.open("cat.json", None).unwrap();
    let mut content = vec![0; usize::try_from(download.bytes).unwrap()];
    assert_eq!(download.read_at(&mut content, 0).unwrap(), content.len());
    assert_eq!(content, [head("cat.mp4"), b"{\"t\":0}\n{\"t\":0}\n".to_vec()].concat());
    for name in ["notes.json", "../cat.json", "a/cat.json", ".cat.h264.json"] {
        assert!(test.1.open(name, None).is_err(), "{name}");
    }
    assert_eq!(test.1.delete("cat.mp4"), Ok(()));
    assert_eq!(test.names(), ["notes.json"]);
}

#[test]
fn recordings_are_found_by_kind_class_and_day() {
    let test = TestLibrary::new("find");
    for (name, label) in [("a.mp4", None), ("b.mp4", Some("cat")), ("c.mp4", Some("dog"))] {
        test.write(name, &unfinished(1));
        assert_eq!(test.1.repair(name), Ok(true));
        let head = Head {
            recording: name.to_owned(),
            kind: if label.is_some() { RecordingKind::Event } else { RecordingKind::Manual },
            labels: label.into_iter().map(str::to_owned).collect(),
            ..Head::default()
        };
        let lines = LogLines { is_first: true, head: head.line(), lines: Vec::new() };
        log_file::append(&test.0, name, &lines).unwrap();
    }
    let find = |filter: RecordingFilter| {
        let (found, total) = test.1.find(&filter).unwrap();
        (found.into_iter().map(|info| info.name).collect::<Vec<_>>().join(" "), total)
    };
    let all = RecordingFilter::default;
    assert_eq!(find(all()), ("c.mp4 b.mp4 a.mp4".to_owned(), 3));
    assert_eq!(find(RecordingFilter { kind: Some(RecordingKind::Manual), ..all() }), ("a.mp4".to_owned(), 1));
    assert_eq!(find(RecordingFilter { label: Some("cat".to_owned()), ..all() }), ("b.mp4".to_owned(), 1));
    assert_eq!(find(RecordingFilter { offset: 1, limit: Some(1), ..all() }), ("b.mp4".to_owned(), 3));
    let day = Zone::local().day(1_800_000_000);
    assert_eq!(find(RecordingFilter { day, ..all() }).1, 3);
    assert_eq!(find(RecordingFilter { day: Some((2020, 1, 1)), ..all() }).1, 0);
}

#[test]
fn file_that_another_server_records_is_neither_repaired_nor_deleted() {
    let test = TestLibrary::new("locked");
    let path = test.write("running.mp4", &unfinished(3));
    let before = fs::read(&path).unwrap();
    let other = File::open(&path).unwrap();
    assert_eq!(Lock::try_take(&other), Lock::Taken);
    assert_eq!(test.1.delete("running.mp4"), Err(RecorderError::InUse("running.mp4".to_owned())));
    assert_eq!(test.1.repair("running.mp4"), Ok(false));
    assert_eq!(fs::read(&path).unwrap(), before);
    drop(other);
    assert_eq!(test.1.repair("running.mp4"), Ok(true));
    assert_eq!(test.1.delete("running.mp4"), Ok(()));
    assert!(test.names().is_empty());
}

#[test]
fn locked_file_is_kept_by_the_retention_rules() {
    let test = TestLibrary::new("retention");
    for name in ["a.mp4", "b.mp4"] {
        test.write(name, &unfinished(1));
        assert_eq!(test.1.repair(name), Ok(true));
    }
    let other = File::open(test.0.join("a.mp4")).unwrap();
    assert_eq!(Lock::try_take(&other), Lock::Taken);
    let rules = Retention { retain_bytes: Some(1), ..Retention::default() };
    assert_eq!(test.1.retain(&rules, 1_900_000_000).unwrap(), ["b.mp4"]);
    assert_eq!(test.names(), ["a.mp4"]);
}

#[test]
fn replaced_file_is_not_removed_and_not_served_as_the_running_one() {
    let test = TestLibrary::new("replaced");
    let path = test.write("cat.mp4", &START_UNFINISHED);
    let ours = File::open(&path).unwrap();
    let progress = test.1.register("cat.mp4", FileIdentity::of(&ours).unwrap());
    progress.send_modify(|progress| progress.committed_bytes = 40);
    assert_eq!(test.1.open("cat.mp4", None).unwrap().bytes, 40);
    assert!(test.1.list().unwrap()[0].recording);
    fs::remove_file(&path).unwrap();
    test.write("cat.mp4", b"of another program");
    assert_eq!(test.1.open("cat.mp4", None).unwrap_err(), RecorderError::NotFound("cat.mp4".to_owned()));
    assert!(!test.1.list().unwrap()[0].recording);
    assert!(test.1.remove_ours("cat.mp4", &ours).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"of another program");
}

#[test]
fn pipes_links_and_directories_are_no_recordings() {
    let test = TestLibrary::new("kinds");
    let secret = test.write("secret", &[b' '; 512]);
    for extension in ["mp4", "h264"] {
        test.pipe(&format!("pipe.{extension}"));
        symlink(&secret, test.0.join(format!("link.{extension}"))).unwrap();
        symlink("/dev/zero", test.0.join(format!("device.{extension}"))).unwrap();
        fs::create_dir(test.0.join(format!("directory.{extension}"))).unwrap();
    }
    test.write("a.h264", b"x");
    test.pipe(".a.h264.json");
    test.write("b.h264", b"x");
    symlink(&secret, test.0.join(".b.h264.json")).unwrap();
    let huge = File::create(test.0.join(".c.h264.json")).unwrap();
    test.write("c.h264", b"x");
    huge.set_len(1 << 40).unwrap();
    let listed: Vec<String> = test.1.list().unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert!(test.1.unfinished().is_empty());
    for name in ["pipe.mp4", "link.mp4", "device.h264", "directory.h264"] {
        assert_eq!(test.1.open(name, None).unwrap_err(), RecorderError::NotFound(name.to_owned()));
        assert_eq!(test.1.delete(name), Err(RecorderError::NotFound(name.to_owned())));
    }
    assert!(Sidecar::default().overwrite(&test.0, "a.h264").is_err(), "a pipe");
    assert!(Sidecar::default().overwrite(&test.0, "b.h264").is_err(), "a link");
    Sidecar::default().create(&test.0, "b.h264").unwrap();
    assert_eq!(fs::read(&secret).unwrap(), [b' '; 512], "the link is replaced, not followed");
}

#[test]
fn start_before_the_clock_was_set_is_unknown() {
    let test = TestLibrary::new("started");
    for (name, started_at_s) in [("a.h264", 0), ("b.h264", 300), ("c.h264", 1_800_000_000)] {
        test.write(name, b"x");
        Sidecar { started_at_s, complete: true, ..Sidecar::default() }.create(&test.0, name).unwrap();
    }
    let list = test.1.list().unwrap();
    let started: Vec<_> = list.iter().filter_map(|info| info.started_at.clone()).collect();
    assert_eq!(started, ["2027-01-15T08:00:00Z"]);
}
