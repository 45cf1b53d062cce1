//! What the state machine decides, on a fake clock and a disk in memory that can be full, broken and
//! short.

use proptest::prelude::*;

use super::harness::{FRAME, Harness, SECOND, idr, start};
use crate::base::limits;
use crate::recorder::names::Format;
use crate::recorder::operation::{Completion, Output, Start};
use crate::recorder::types::{RecorderError, RecorderState, StopReason};

const FORMATS: [(Format, &str); 2] = [(Format::Mp4, "cat.mp4"), (Format::H264, "cat.h264")];

#[test]
fn a_recording_holds_every_unit_from_the_first_idr_on() {
    for (format, name) in FORMATS {
        let mut harness = Harness::recording(format);
        harness.frame = 7;
        harness.pictures(30);
        let reply = harness.stop().unwrap();
        assert_eq!(harness.frames(name), (10..37).collect::<Vec<_>>());
        assert_eq!((reply.report.frame_count, reply.report.dropped_units), (27, 0));
        assert_eq!(reply.report.bytes_written, harness.files[&1].bytes.len() as u64);
        assert_eq!(reply.report.filename, format!("rec/{name}"));
        assert!((reply.report.duration - 27.0 / 30.0).abs() < 0.01, "{}", reply.report.duration);
        assert!(reply.kept && harness.files[&1].finished);
    }
}

#[test]
fn start_and_stop_are_refused_at_the_wrong_time() {
    let mut harness = Harness::new();
    assert_eq!(harness.recording.handle_stop(0), Err(RecorderError::NotRecording));
    assert_eq!(harness.recording.handle_heartbeat(0), Err(RecorderError::NotRecording));
    let now = harness.now_ns;
    harness.recording.handle_start(now, start(Format::Mp4)).unwrap();
    assert_eq!(harness.recording.handle_start(now, start(Format::Mp4)), Err(RecorderError::AlreadyRecording));
    harness.settle();
    harness.picture();
    harness.recording.handle_stop(harness.now_ns).unwrap();
    assert_eq!(harness.recording.handle_stop(harness.now_ns), Err(RecorderError::Stopping));
    harness.recording.handle_ring_empty(harness.now_ns, true);
    assert!(harness.recording.can_take_unit(), "a unit that is begun is waited for");
    harness.recording.handle_ring_empty(harness.now_ns + crate::base::limits::DRAIN_BEGUN_NS_MAX, true);
    assert!(!harness.recording.can_take_unit());
    assert_eq!(
        harness.recording.handle_start(harness.now_ns, start(Format::Mp4)),
        Err(RecorderError::Stopping)
    );
    harness.settle();
    assert_eq!(harness.recording.handle_stop(0), Err(RecorderError::NotRecording));
    harness.taken_names.clear();
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
}

#[test]
fn a_stop_while_starting_removes_the_empty_file() {
    let mut harness = Harness::new();
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.recording.handle_stop(harness.now_ns).unwrap();
    harness.settle();
    assert!(matches!(harness.started.as_slice(), [Ok(_)]));
    let Some(Ok(reply)) = harness.stopped.pop() else { panic!("no answer") };
    assert!(!reply.kept);
    assert_eq!(harness.removed, ["cat.mp4"]);
    assert_eq!(harness.recording.state(), RecorderState::Idle);
}

#[test]
fn a_taken_name_is_an_error_when_asked_for_and_passed_over_otherwise() {
    let mut harness = Harness::new();
    harness.taken_names = vec!["cat.mp4".to_owned(), "cat_2.mp4".to_owned()];
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.settle();
    assert_eq!(harness.started.pop(), Some(Err(RecorderError::Exists { name: "cat.mp4".to_owned() })));
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    harness.recording.handle_start(harness.now_ns, Start { exact: false, ..start(Format::Mp4) }).unwrap();
    harness.settle();
    assert_eq!(harness.started.pop().unwrap().unwrap().name, "cat_3.mp4");
}

#[test]
fn missing_units_are_a_gap_up_to_the_next_idr() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(4);
    harness.recording.handle_gap(2);
    harness.frame += 2;
    harness.now_ns += 2 * FRAME;
    harness.pictures(10);
    let reply = harness.stop().unwrap();
    assert_eq!(harness.frames("cat.mp4"), (0..4).chain(10..16).collect::<Vec<_>>());
    assert_eq!((reply.report.dropped_units, reply.report.gaps), (6, 1));
    assert!((reply.report.duration - 16.0 / 30.0).abs() < 0.01, "the gap keeps its length");
}

#[test]
fn a_torn_unit_is_written_over_and_dropped() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(3);
    harness.torn = true;
    harness.picture();
    harness.torn = false;
    harness.pictures(10);
    let reply = harness.stop().unwrap();
    assert_eq!(harness.frames("cat.mp4"), (0..3).chain(10..14).collect::<Vec<_>>());
    assert_eq!((reply.report.torn_units, reply.report.dropped_units), (1, 7));
}

#[test]
fn new_parameter_sets_open_the_next_mp4_and_go_on_in_an_h264() {
    for (format, files) in [(Format::Mp4, vec!["cat.mp4", "cat_2.mp4"]), (Format::H264, vec!["cat.h264"])] {
        let mut harness = Harness::recording(format);
        harness.pictures(10);
        harness.now_ns += FRAME;
        harness.push(idr(10, 40));
        harness.settle();
        harness.frame = 11;
        harness.pictures(5);
        let reply = harness.stop().unwrap();
        assert_eq!(reply.report.files, files);
        assert_eq!(reply.report.frame_count, 16);
        let frames: Vec<u32> = files.iter().flat_map(|name| harness.frames(name)).collect();
        assert_eq!(frames, (0..16).collect::<Vec<_>>());
        assert_eq!(harness.started.len(), 1, "only the first file answers the start");
    }
}

#[test]
fn an_hour_is_split_at_an_idr() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(15);
    harness.now_ns += limits::RECORDING_DURATION_SOFT_NS;
    harness.pictures(10);
    let reply = harness.stop().unwrap();
    assert_eq!(reply.report.files, ["cat.mp4", "cat_2.mp4"]);
    assert_eq!(harness.frames("cat.mp4"), (0..20).collect::<Vec<_>>());
    assert_eq!(harness.frames("cat_2.mp4"), (20..25).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_ends_the_recording_with_a_finished_file() {
    for (format, name) in FORMATS {
        for can_allocate in [true, false] {
            let mut harness = Harness::recording(format);
            (harness.capacity, harness.can_allocate) = (700_000, can_allocate);
            while harness.recording.can_take_unit() {
                harness.picture();
            }
            assert_eq!(harness.recording.state(), RecorderState::Idle);
            let (last, error) = harness.recording.last();
            assert_eq!(error, Some(&RecorderError::DiskFull));
            let (units, reason) = last.map(|last| (last.report.frame_count, last.reason.clone())).unwrap();
            assert_eq!(reason, StopReason::Failed(RecorderError::DiskFull));
            assert!(units > 1_000, "{units}");
            assert_eq!(harness.frames(name), (0..u32::try_from(units).unwrap()).collect::<Vec<_>>());
            // Reserved space is what lets an MP4 be finished on a full disk.
            assert_eq!(harness.files[&1].finished, can_allocate || format == Format::H264);
            harness.capacity = 1 << 40;
            harness.recording.handle_start(harness.now_ns, Start { exact: false, ..start(format) }).unwrap();
            harness.settle();
            harness.frame = 0;
            harness.pictures(3);
            assert_eq!(harness.recording.last().1, None);
            assert!(harness.stop().is_ok());
        }
    }
}

#[test]
fn an_io_error_ends_the_recording_and_keeps_what_is_whole() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(5);
    harness.write_error = Some(libc::EIO);
    harness.picture();
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert!(matches!(harness.recording.last().1, Some(RecorderError::Io { doing: "writing", .. })));
    assert_eq!(harness.frames("cat.mp4"), (0..5).collect::<Vec<_>>());
}

#[test]
fn a_failed_start_is_answered_and_leaves_nothing() {
    let mut harness = Harness::new();
    harness.create_error = Some(RecorderError::Directory { reason: "read-only".to_owned() });
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.settle();
    assert!(matches!(harness.started.as_slice(), [Err(RecorderError::Directory { .. })]));
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert!(harness.recording.last().1.is_some() && harness.files.is_empty());
}

#[test]
fn duration_and_heartbeat_end_a_recording_by_themselves() {
    let limited = Start { max_duration_ns: Some(SECOND), ..start(Format::Mp4) };
    let watched = Start { heartbeat_ns: Some(SECOND), ..start(Format::Mp4) };
    for (start, reason) in [(limited, StopReason::MaxDuration), (watched, StopReason::Heartbeat)] {
        let mut harness = Harness::new();
        harness.recording.handle_start(harness.now_ns, start).unwrap();
        harness.settle();
        harness.pictures(20);
        harness.recording.handle_heartbeat(harness.now_ns).unwrap();
        harness.tick(SECOND / 2);
        if reason == StopReason::Heartbeat {
            assert_eq!(harness.recording.state(), RecorderState::Recording);
            harness.tick(SECOND);
        }
        assert_eq!(harness.recording.state(), RecorderState::Stopping);
        harness.recording.handle_ring_empty(harness.now_ns, false);
        harness.settle();
        assert_eq!(harness.recording.last().0.unwrap().reason, reason);
        assert_eq!(harness.frames("cat.mp4").len(), 20);
    }
}

#[test]
fn a_stop_still_writes_what_was_published_before_it_and_nothing_after() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(5);
    harness.recording.handle_stop(harness.now_ns + 2 * FRAME + FRAME / 2).unwrap();
    harness.picture();
    harness.picture();
    harness.picture();
    harness.settle();
    assert_eq!(harness.recording.state(), RecorderState::Idle);
    assert_eq!(harness.frames("cat.mp4"), (0..7).collect::<Vec<_>>());
}

#[test]
fn what_is_written_is_made_durable_about_once_a_second() {
    let mut harness = Harness::recording(Format::Mp4);
    for _ in 0..300 {
        harness.picture();
        harness.tick(0);
    }
    let syncs = harness.files[&1].syncs;
    assert!((9..=11).contains(&syncs), "{syncs}");
    harness.tick(5 * SECOND);
    let quiet = harness.files[&1].syncs;
    harness.tick(5 * SECOND);
    assert_eq!(harness.files[&1].syncs, quiet, "nothing written, nothing to sync");
}

#[test]
fn a_deleted_file_ends_the_recording() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(3);
    harness.now_ns += 2 * SECOND;
    harness.recording.handle_tick(harness.now_ns);
    let Some(Output::Sync { file }) = harness.recording.poll_output() else { panic!("no sync") };
    harness.recording.handle_completion(harness.now_ns, file, Completion::Synced(Ok(false)));
    harness.settle();
    assert_eq!(harness.recording.last().1, Some(&RecorderError::Removed));
}

#[test]
fn garbage_units_are_dropped() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.pictures(2);
    for garbage in [vec![], vec![0; 100], vec![0xff; 1_000], vec![0, 0, 1, 0x67, 1, 2]] {
        harness.push(garbage);
        harness.settle();
    }
    harness.frame = 10;
    harness.pictures(2);
    let reply = harness.stop().unwrap();
    assert_eq!(harness.frames("cat.mp4"), [0, 1, 10, 11]);
    assert_eq!(reply.report.dropped_units, 4);
}

#[derive(Clone, Debug)]
enum Step {
    Pictures(u32),
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
        6 => (1u32..25).prop_map(Step::Pictures),
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

    /// Whatever happens, every file holds only whole units, in order, each once, from an IDR on.
    #[test]
    fn files_are_always_valid(steps in prop::collection::vec(step(), 1..40), mp4: bool) {
        let format = if mp4 { Format::Mp4 } else { Format::H264 };
        let mut harness = Harness::new();
        let mut written = 0;
        for step in steps {
            match step {
                Step::Pictures(count) => {
                    for _ in 0..count {
                        if harness.recording.can_take_unit() {
                            harness.picture();
                        }
                    }
                }
                Step::Gap(missed) => {
                    harness.recording.handle_gap(missed);
                    harness.frame += missed;
                }
                Step::Torn => {
                    harness.torn = true;
                    if harness.recording.can_take_unit() {
                        harness.picture();
                    }
                    harness.torn = false;
                }
                Step::Resize(width) => {
                    if harness.recording.can_take_unit() {
                        harness.push(idr(harness.frame, width));
                        harness.frame += 1;
                        harness.settle();
                    }
                }
                Step::Tick(ns) => harness.tick(ns),
                Step::ShortWrites(max) => harness.write_max = if max > 200 { usize::MAX } else { max.max(60) },
                Step::Full => {
                    harness.capacity = harness.capacity - harness.free() + 50_000;
                }
                Step::Stop => {
                    let _refused = harness.recording.handle_stop(harness.now_ns);
                    harness.settle();
                    harness.recording.handle_ring_empty(harness.now_ns, false);
                    harness.settle();
                    prop_assert_eq!(harness.recording.state(), RecorderState::Idle);
                }
                Step::Start => {
                    harness.capacity = 1 << 40;
                    let start = Start { exact: false, ..start(format) };
                    let _refused = harness.recording.handle_start(harness.now_ns, start);
                    harness.settle();
                }
            }
        }
        harness.write_max = usize::MAX;
        harness.recording.handle_shutdown(harness.now_ns);
        harness.settle();
        harness.recording.handle_ring_empty(harness.now_ns, false);
        harness.settle();
        prop_assert_eq!(harness.recording.state(), RecorderState::Idle);
        let names: Vec<String> = harness.files.values().map(|file| file.name.clone()).collect();
        let mut last = None;
        for name in names {
            for frame in harness.frames(&name) {
                prop_assert!(last < Some(frame), "{} after {:?}", frame, last);
                last = Some(frame);
                written += 1;
            }
        }
        prop_assert!(harness.waiting.is_empty());
        prop_assert!(written <= harness.frame);
    }
}
