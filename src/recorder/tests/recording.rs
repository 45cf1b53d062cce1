//! Tests what the recording state machine decides, with a fake clock and a disk in memory.

use std::sync::Arc;

use proptest::prelude::*;

use super::harness::{Harness, SECOND, STAMP_0_NS, UNIT_INTERVAL, delta, idr, start};
use crate::base::limits;
use crate::camera::detections::{DetectedBox, Detections};
use crate::recorder::detection_log::Head;
use crate::recorder::names::Format;
use crate::recorder::operation::{Completion, FileFate, Output, Start};
use crate::recorder::types::{Event, RecorderError, RecorderState, RecordingKind, StopReason};

const FORMATS: [(Format, &str); 2] = [(Format::Mp4, "cat.mp4"), (Format::H264, "cat.h264")];

fn event() -> Event {
    let best = DetectedBox { label: "cat".to_owned(), confidence: 0.9, x: 1, y: 2, width: 3, height: 4 };
    Event {
        label: "cat".to_owned(),
        labels: vec!["cat".to_owned()],
        first_stamp_ns: Some(STAMP_0_NS + 1_001 * SECOND),
        last_stamp_ns: None,
        best,
        best_stamp_ns: None,
    }
}

fn event_recording() -> Harness {
    let mut harness = Harness::new();
    let start = Start { event_label: Some("cat".to_owned()), ..start(Format::Mp4) };
    harness.recording.handle_start(harness.now_ns, start).unwrap();
    harness.run_until_idle();
    harness.publish_units(60);
    harness
}

fn head(harness: &Harness) -> Head {
    Head::parse(&harness.files[&1].log_head).unwrap()
}

#[test]
fn recording_of_an_event_ends_with_it() {
    let mut harness = event_recording();
    harness.recording.handle_event_end(harness.now_ns, &event());
    harness.run_until_idle();
    harness.recording.handle_ring_empty(harness.now_ns, false);
    harness.run_until_idle();
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert_eq!(harness.recording.last().0.unwrap().reason, StopReason::EventEnd);
    let head = head(&harness);
    assert_eq!((head.kind, head.labels.join(",")), (RecordingKind::Event, "cat".to_owned()));
    assert!((head.events[0].start - 1.0).abs() < 0.1, "{head:?}");
}

#[test]
fn request_takes_the_recording_of_an_event_over() {
    let mut harness = event_recording();
    let taken = harness.recording.take_over(harness.now_ns, &start(Format::Mp4)).unwrap();
    assert_eq!(taken.name, "cat.mp4");
    assert_eq!(harness.recording.take_over(harness.now_ns, &start(Format::Mp4)), None);
    harness.recording.handle_event_end(harness.now_ns, &event());
    harness.publish_units(30);
    assert_eq!(harness.recording.state(), RecorderState::Recording);
    assert_eq!(harness.stop().unwrap().reason, StopReason::Requested);
    assert_eq!(head(&harness).events.len(), 1);
}

#[test]
fn event_is_noted_in_a_recording_that_a_request_started() {
    let mut harness = Harness::recording(Format::Mp4);
    assert_eq!(harness.recording.take_over(harness.now_ns, &start(Format::Mp4)), None);
    harness.publish_units(60);
    harness.recording.handle_event_end(harness.now_ns, &event());
    harness.publish_units(30);
    assert_eq!(harness.stop().unwrap().report.frame_count, 90);
    let head = head(&harness);
    assert_eq!(
        (head.kind, head.labels.join(","), head.events.len()),
        (RecordingKind::Manual, "cat".to_owned(), 1)
    );
}

#[test]
fn results_of_the_detector_are_logged_with_the_times_of_their_pictures() {
    let mut harness = Harness::recording(Format::Mp4);
    // The first result has a picture before the recording. The others arrive after the next picture.
    let mut captured = vec![harness.now_ns];
    for number in 0..45 {
        captured.push(harness.now_ns + UNIT_INTERVAL);
        harness.publish();
        let captured_at_ns = Some(STAMP_0_NS + captured[number]);
        let result = Detections { frame: Some(number as u64), captured_at_ns, ..Detections::default() };
        harness.recording.push_result(&Arc::new(result));
        harness.tick(0);
    }
    let log = |harness: &Harness| String::from_utf8(harness.files[&1].log.clone()).unwrap();
    assert!(log(&harness).lines().count() > 20, "lines are appended every second");
    harness.stop().unwrap();
    let lines: Vec<serde_json::Value> =
        log(&harness).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 44);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["frame"], index + 1);
        let expected_s = (captured[index + 1] - captured[1]) as f64 / 1e9;
        assert!((line["t"].as_f64().unwrap() - expected_s).abs() < 1e-4, "{line}");
    }
}

#[test]
fn recording_holds_every_unit_from_the_first_idr() {
    for (format, name) in FORMATS {
        let mut harness = Harness::recording(format);
        harness.unit_number = 7;
        harness.publish_units(30);
        let reply = harness.stop().unwrap();
        assert_eq!(harness.unit_numbers(name), (10..37).collect::<Vec<_>>());
        assert_eq!((reply.report.frame_count, reply.report.dropped_units), (27, 0));
        assert_eq!(reply.report.bytes_written, harness.files[&1].bytes.len() as u64);
        assert_eq!(reply.report.filename, format!("rec/{name}"));
        assert!((reply.report.duration - 27.0 / 30.0).abs() < 0.01, "{}", reply.report.duration);
        assert!(reply.kept && harness.files[&1].finished);
    }
}

#[test]
fn start_and_stop_are_rejected_in_the_wrong_state() {
    let mut harness = Harness::new();
    assert_eq!(harness.recording.handle_stop(0), Err(RecorderError::NotRecording));
    assert_eq!(harness.recording.handle_heartbeat(0), Err(RecorderError::NotRecording));
    let now = harness.now_ns;
    harness.recording.handle_start(now, start(Format::Mp4)).unwrap();
    assert_eq!(harness.recording.handle_start(now, start(Format::Mp4)), Err(RecorderError::AlreadyRecording));
    harness.run_until_idle();
    harness.publish();
    harness.recording.handle_stop(harness.now_ns).unwrap();
    assert_eq!(harness.recording.handle_stop(harness.now_ns), Err(RecorderError::Stopping));
    harness.recording.handle_ring_empty(harness.now_ns, true);
    assert!(harness.recording.can_take_unit(), "a unit that the camera has begun is still recorded");
    harness.recording.handle_ring_empty(harness.now_ns + crate::base::limits::DRAIN_BEGUN_NS_MAX, true);
    assert!(!harness.recording.can_take_unit());
    assert_eq!(
        harness.recording.handle_start(harness.now_ns, start(Format::Mp4)),
        Err(RecorderError::Stopping)
    );
    harness.run_until_idle();
    assert_eq!(harness.recording.handle_stop(0), Err(RecorderError::NotRecording));
    harness.existing_names.clear();
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
}

#[test]
fn stop_while_starting_removes_the_empty_file() {
    let mut harness = Harness::new();
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.recording.handle_stop(harness.now_ns).unwrap();
    harness.run_until_idle();
    assert!(matches!(harness.started.as_slice(), [Ok(_)]));
    let Some(Ok(reply)) = harness.stopped.pop() else { panic!("no answer") };
    assert!(!reply.kept);
    assert_eq!(harness.removed, ["cat.mp4"]);
    assert_eq!(harness.recording.state(), RecorderState::Idle);
}

#[test]
fn existing_name_is_an_error_if_requested_and_skipped_otherwise() {
    let mut harness = Harness::new();
    harness.existing_names = vec!["cat.mp4".to_owned(), "cat_2.mp4".to_owned()];
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.run_until_idle();
    assert_eq!(harness.started.pop(), Some(Err(RecorderError::Exists("cat.mp4".to_owned()))));
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    harness.recording.handle_start(harness.now_ns, Start { exact: false, ..start(Format::Mp4) }).unwrap();
    harness.run_until_idle();
    assert_eq!(harness.started.pop().unwrap().unwrap().name, "cat_3.mp4");
}

#[test]
fn gap_lasts_until_the_next_idr() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(4);
    harness.recording.handle_gap(2);
    harness.unit_number += 2;
    harness.now_ns += 2 * UNIT_INTERVAL;
    harness.publish_units(10);
    let reply = harness.stop().unwrap();
    assert_eq!(harness.unit_numbers("cat.mp4"), (0..4).chain(10..16).collect::<Vec<_>>());
    assert_eq!((reply.report.dropped_units, reply.report.gaps), (6, 1));
    assert!((reply.report.duration - 16.0 / 30.0).abs() < 0.01, "the gap keeps its length");
}

#[test]
fn torn_unit_is_dropped_and_overwritten() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(3);
    harness.torn = true;
    harness.publish();
    harness.torn = false;
    harness.publish_units(10);
    let reply = harness.stop().unwrap();
    assert_eq!(harness.unit_numbers("cat.mp4"), (0..3).chain(10..14).collect::<Vec<_>>());
    assert_eq!((reply.report.torn_units, reply.report.dropped_units), (1, 7));
}

#[test]
fn new_parameter_sets_start_a_new_mp4_but_not_a_new_h264() {
    for (format, files) in [(Format::Mp4, vec!["cat.mp4", "cat_2.mp4"]), (Format::H264, vec!["cat.h264"])] {
        let mut harness = Harness::recording(format);
        harness.publish_units(10);
        harness.now_ns += UNIT_INTERVAL;
        harness.push(idr(10, 40));
        harness.run_until_idle();
        harness.unit_number = 11;
        harness.publish_units(5);
        let reply = harness.stop().unwrap();
        assert_eq!(reply.report.files, files);
        assert_eq!(reply.report.frame_count, 16);
        let numbers: Vec<u32> = files.iter().flat_map(|name| harness.unit_numbers(name)).collect();
        assert_eq!(numbers, (0..16).collect::<Vec<_>>());
        assert_eq!(harness.started.len(), 1, "only the first file sends the start reply");
    }
}

#[test]
fn recording_is_split_at_an_idr_after_an_hour() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(15);
    harness.now_ns += limits::RECORDING_DURATION_SOFT_NS;
    harness.publish_units(10);
    let reply = harness.stop().unwrap();
    assert_eq!(reply.report.files, ["cat.mp4", "cat_2.mp4"]);
    assert_eq!(harness.unit_numbers("cat.mp4"), (0..20).collect::<Vec<_>>());
    assert_eq!(harness.unit_numbers("cat_2.mp4"), (20..25).collect::<Vec<_>>());
}

#[test]
fn full_disk_ends_the_recording_with_a_finished_file() {
    for (format, name) in FORMATS {
        for has_fallocate in [true, false] {
            let mut harness = Harness::recording(format);
            (harness.capacity, harness.has_fallocate) = (700_000, has_fallocate);
            while harness.recording.can_take_unit() {
                harness.publish();
            }
            assert_eq!(harness.recording.state(), RecorderState::Idle);
            let (last, error) = harness.recording.last();
            assert_eq!(error, Some(&RecorderError::DiskFull));
            let (units, reason) = last.map(|last| (last.report.frame_count, last.reason.clone())).unwrap();
            assert_eq!(reason, StopReason::Failed(RecorderError::DiskFull));
            assert!(units > 1_000, "{units}");
            assert_eq!(harness.unit_numbers(name), (0..u32::try_from(units).unwrap()).collect::<Vec<_>>());
            // Finishing an MP4 appends its index, which needs reserved space on a full disk. An .h264 has no index.
            assert_eq!(harness.files[&1].finished, has_fallocate || format == Format::H264);
            harness.capacity = 1 << 40;
            harness.recording.handle_start(harness.now_ns, Start { exact: false, ..start(format) }).unwrap();
            harness.run_until_idle();
            harness.unit_number = 0;
            harness.publish_units(3);
            assert_eq!(harness.recording.last().1, None);
            assert!(harness.stop().is_ok());
        }
    }
}

#[test]
fn io_error_ends_the_recording_and_keeps_whole_units() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(5);
    harness.write_error = Some(libc::EIO);
    harness.publish();
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert!(matches!(harness.recording.last().1, Some(RecorderError::Io { doing: "writing", .. })));
    assert_eq!(harness.unit_numbers("cat.mp4"), (0..5).collect::<Vec<_>>());
}

#[test]
fn failed_start_gets_a_reply_and_leaves_no_file() {
    let mut harness = Harness::new();
    harness.create_error = Some(RecorderError::Directory("read-only".to_owned()));
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.run_until_idle();
    assert!(matches!(harness.started.as_slice(), [Err(RecorderError::Directory(_))]));
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert!(harness.recording.last().1.is_some() && harness.files.is_empty());
}

#[test]
fn duration_limit_and_missing_heartbeat_end_a_recording() {
    let limited = Start { max_duration_ns: Some(SECOND), ..start(Format::Mp4) };
    let watched = Start { heartbeat_ns: Some(SECOND), ..start(Format::Mp4) };
    for (start, reason) in [(limited, StopReason::MaxDuration), (watched, StopReason::Heartbeat)] {
        let mut harness = Harness::new();
        harness.recording.handle_start(harness.now_ns, start).unwrap();
        harness.run_until_idle();
        harness.publish_units(20);
        harness.recording.handle_heartbeat(harness.now_ns).unwrap();
        harness.tick(SECOND / 2);
        if reason == StopReason::Heartbeat {
            assert_eq!(harness.recording.state(), RecorderState::Recording);
            harness.tick(SECOND);
        }
        assert_eq!(harness.recording.state(), RecorderState::Stopping);
        harness.recording.handle_ring_empty(harness.now_ns, false);
        harness.run_until_idle();
        assert_eq!(harness.recording.last().0.unwrap().reason, reason);
        assert_eq!(harness.unit_numbers("cat.mp4").len(), 20);
    }
}

#[test]
fn stop_writes_units_published_before_it_and_none_after() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(5);
    harness.recording.handle_stop(harness.now_ns + 2 * UNIT_INTERVAL + UNIT_INTERVAL / 2).unwrap();
    harness.publish();
    harness.publish();
    harness.publish();
    harness.run_until_idle();
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert_eq!(harness.unit_numbers("cat.mp4"), (0..7).collect::<Vec<_>>());
}

#[test]
fn written_data_is_synced_about_once_a_second() {
    let mut harness = Harness::recording(Format::Mp4);
    for _ in 0..300 {
        harness.publish();
        harness.tick(0);
    }
    let syncs = harness.files[&1].syncs;
    assert!((9..=11).contains(&syncs), "{syncs}");
    harness.tick(5 * SECOND);
    let quiet = harness.files[&1].syncs;
    harness.tick(5 * SECOND);
    assert_eq!(harness.files[&1].syncs, quiet, "no sync without new data");
}

#[test]
fn deleted_file_ends_the_recording() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(3);
    harness.now_ns += 2 * SECOND;
    harness.recording.handle_tick(harness.now_ns);
    let Some(Output::Sync { file, .. }) = harness.recording.poll_output() else { panic!("no sync") };
    harness.recording.handle_completion(harness.now_ns, file, Completion::Synced(Ok(FileFate::Removed)));
    harness.run_until_idle();
    assert_eq!(harness.recording.last().1, Some(&RecorderError::Removed));
}

#[test]
fn file_deleted_during_a_write_ends_the_recording() {
    for write_max in [usize::MAX, 64] {
        let mut harness = Harness::recording(Format::Mp4);
        harness.publish_units(3);
        harness.write_max = write_max;
        harness.now_ns += 2 * SECOND;
        harness.recording.handle_tick(harness.now_ns);
        let Some(Output::Sync { file, .. }) = harness.recording.poll_output() else { panic!("no sync") };
        harness.push(delta(3));
        harness.execute_outputs();
        assert_eq!(harness.completions.len(), 1, "the write is in flight");
        harness.recording.handle_completion(harness.now_ns, file, Completion::Synced(Ok(FileFate::Removed)));
        assert!(harness.recording.has_pending_unit(), "the disk still reads the slot");
        harness.run_until_idle();
        assert_eq!(harness.recording.state(), RecorderState::Idle, "write of at most {write_max} bytes");
        assert_eq!(harness.recording.last().1, Some(&RecorderError::Removed));
        assert_eq!(
            harness.unit_numbers("cat.mp4"),
            if write_max == 64 { 0..3 } else { 0..4 }.collect::<Vec<_>>()
        );
    }
}

#[test]
fn invalid_units_are_dropped() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(2);
    for invalid in [vec![], vec![0; 100], vec![0xff; 1_000], vec![0, 0, 1, 0x65]] {
        harness.push(invalid);
        harness.run_until_idle();
    }
    harness.unit_number = 10;
    harness.publish_units(2);
    let reply = harness.stop().unwrap();
    assert_eq!(harness.unit_numbers("cat.mp4"), [0, 1, 10, 11]);
    assert_eq!(reply.report.dropped_units, 4);
}

#[test]
fn file_truncated_by_another_program_ends_the_recording() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(3);
    harness.now_ns += 2 * SECOND;
    harness.recording.handle_tick(harness.now_ns);
    let Some(Output::Sync { file, whole }) = harness.recording.poll_output() else { panic!("no sync") };
    assert_eq!(whole, 0..harness.files[&1].bytes.len() as u64);
    harness.recording.handle_completion(harness.now_ns, file, Completion::Synced(Ok(FileFate::Truncated)));
    harness.run_until_idle();
    assert_eq!(harness.recording.last().1, Some(&RecorderError::Truncated));
}

#[derive(Clone, Debug)]
enum Step {
    Units(u32),
    Gap(u32),
    Torn,
    Resize(u32),
    Tick(i64),
    ShortWrites(usize),
    Full,
    Stop,
    Start,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u32..25).prop_map(Step::Units),
        2 => (0u32..40).prop_map(Step::Gap),
        1 => Just(Step::Torn),
        1 => (1u32..90).prop_map(Step::Resize),
        2 => (0i64..4_000_000_000).prop_map(Step::Tick),
        2 => (1usize..400).prop_map(Step::ShortWrites),
        1 => Just(Step::Full),
        1 => Just(Step::Stop),
        2 => Just(Step::Start),
    ]
}

proptest! {
    #![proptest_config(support::properties_of(200))]

    /// Checks after random steps that every file contains only whole units, in order, and each unit only once.
    #[test]
    fn files_are_always_valid(steps in prop::collection::vec(step(), 1..40), mp4: bool) {
        let format = if mp4 { Format::Mp4 } else { Format::H264 };
        let mut harness = Harness::new();
        let mut written = 0;
        for step in steps {
            match step {
                Step::Units(count) => {
                    for _ in 0..count {
                        if harness.recording.can_take_unit() {
                            harness.publish();
                        }
                    }
                }
                Step::Gap(missed) => {
                    harness.recording.handle_gap(missed);
                    harness.unit_number += missed;
                }
                Step::Torn => {
                    harness.torn = true;
                    if harness.recording.can_take_unit() {
                        harness.publish();
                    }
                    harness.torn = false;
                }
                Step::Resize(width) => {
                    if harness.recording.can_take_unit() {
                        harness.push(idr(harness.unit_number, width));
                        harness.unit_number += 1;
                        harness.run_until_idle();
                    }
                }
                Step::Tick(ns) => harness.tick(ns),
                Step::ShortWrites(max) => harness.write_max = if max > 200 { usize::MAX } else { max.max(60) },
                Step::Full => {
                    harness.capacity = harness.capacity - harness.free() + 50_000;
                }
                Step::Stop => {
                    let _refused = harness.recording.handle_stop(harness.now_ns);
                    harness.run_until_idle();
                    harness.recording.handle_ring_empty(harness.now_ns, false);
                    harness.run_until_idle();
                    prop_assert_eq!(harness.recording.state(), RecorderState::Idle);
                }
                Step::Start => {
                    harness.capacity = 1 << 40;
                    let start = Start { exact: false, ..start(format) };
                    let _refused = harness.recording.handle_start(harness.now_ns, start);
                    harness.run_until_idle();
                }
            }
        }
        harness.write_max = usize::MAX;
        harness.recording.handle_shutdown(harness.now_ns);
        harness.run_until_idle();
        harness.recording.handle_ring_empty(harness.now_ns, false);
        harness.run_until_idle();
        prop_assert_eq!(harness.recording.state(), RecorderState::Idle);
        let names: Vec<String> = harness.files.values().map(|file| file.name.clone()).collect();
        let mut last = None;
        for name in names {
            for number in harness.unit_numbers(&name) {
                prop_assert!(last < Some(number), "{} after {:?}", number, last);
                last = Some(number);
                written += 1;
            }
        }
        prop_assert!(harness.completions.is_empty());
        prop_assert!(written <= harness.unit_number);
    }
}
