//! What the state machine decides, on a fake clock and a disk in memory that can be full, broken and
//! short.

use proptest::prelude::*;

use super::fake_disk::{FRAME, SECOND, World, idr, start};
use super::names::Format;
use super::operation::{Completion, Output, Start};
use super::types::RecorderError;
use crate::base::limits;

const FORMATS: [(Format, &str); 2] = [(Format::Mp4, "cat.mp4"), (Format::H264, "cat.h264")];

#[test]
fn a_recording_holds_every_unit_from_the_first_idr_on() {
    for (format, name) in FORMATS {
        let mut world = World::recording(format);
        world.frame = 7;
        world.pictures(30);
        let reply = world.stop().unwrap();
        assert_eq!(world.frames(name), (10..37).collect::<Vec<_>>());
        assert_eq!((reply.report.frame_count, reply.report.dropped_units), (27, 0));
        assert_eq!(reply.report.bytes_written, world.files[&1].bytes.len() as u64);
        assert_eq!(reply.report.filename, format!("rec/{name}"));
        assert!((reply.report.duration - 27.0 / 30.0).abs() < 0.01, "{}", reply.report.duration);
        assert!(reply.kept && world.files[&1].finished);
    }
}

#[test]
fn start_and_stop_are_refused_at_the_wrong_time() {
    let mut world = World::new();
    assert_eq!(world.recording.handle_stop(0), Err(RecorderError::NotRecording));
    assert_eq!(world.recording.handle_heartbeat(0), Err(RecorderError::NotRecording));
    let now = world.now_ns;
    world.recording.handle_start(now, start(Format::Mp4)).unwrap();
    assert_eq!(world.recording.handle_start(now, start(Format::Mp4)), Err(RecorderError::AlreadyRecording));
    world.settle();
    world.picture();
    world.recording.handle_stop(world.now_ns).unwrap();
    assert_eq!(world.recording.handle_stop(world.now_ns), Err(RecorderError::Stopping));
    world.recording.handle_drained(world.now_ns, true);
    assert!(world.recording.wants_unit(), "a unit that is begun is waited for");
    world.recording.handle_drained(world.now_ns + crate::base::limits::DRAIN_BEGUN_NS_MAX, true);
    assert!(!world.recording.wants_unit());
    assert_eq!(world.recording.handle_start(world.now_ns, start(Format::Mp4)), Err(RecorderError::Stopping));
    world.settle();
    assert_eq!(world.recording.handle_stop(0), Err(RecorderError::NotRecording));
    world.taken_names.clear();
    world.recording.handle_start(world.now_ns, start(Format::Mp4)).unwrap();
}

#[test]
fn a_stop_while_starting_removes_the_empty_file() {
    let mut world = World::new();
    world.recording.handle_start(world.now_ns, start(Format::Mp4)).unwrap();
    world.recording.handle_stop(world.now_ns).unwrap();
    world.settle();
    assert!(matches!(world.started.as_slice(), [Ok(_)]));
    let Some(Ok(reply)) = world.stopped.pop() else { panic!("no answer") };
    assert!(!reply.kept);
    assert_eq!(world.removed, ["cat.mp4"]);
    assert_eq!(world.recording.state(), "idle");
}

#[test]
fn a_taken_name_is_an_error_when_asked_for_and_passed_over_otherwise() {
    let mut world = World::new();
    world.taken_names = vec!["cat.mp4".to_owned(), "cat_2.mp4".to_owned()];
    world.recording.handle_start(world.now_ns, start(Format::Mp4)).unwrap();
    world.settle();
    assert_eq!(world.started.pop(), Some(Err(RecorderError::Exists { name: "cat.mp4".to_owned() })));
    assert_eq!(world.recording.state(), "idle");
    world.recording.handle_start(world.now_ns, Start { exact: false, ..start(Format::Mp4) }).unwrap();
    world.settle();
    assert_eq!(world.started.pop().unwrap().unwrap().name, "cat_3.mp4");
}

#[test]
fn missing_units_are_a_gap_up_to_the_next_idr() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(4);
    world.recording.handle_gap(2);
    world.frame += 2;
    world.now_ns += 2 * FRAME;
    world.pictures(10);
    let reply = world.stop().unwrap();
    assert_eq!(world.frames("cat.mp4"), (0..4).chain(10..16).collect::<Vec<_>>());
    assert_eq!((reply.report.dropped_units, reply.report.gaps), (6, 1));
    assert!((reply.report.duration - 16.0 / 30.0).abs() < 0.01, "the gap keeps its length");
}

#[test]
fn a_torn_unit_is_written_over_and_dropped() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(3);
    world.torn = true;
    world.picture();
    world.torn = false;
    world.pictures(10);
    let reply = world.stop().unwrap();
    assert_eq!(world.frames("cat.mp4"), (0..3).chain(10..14).collect::<Vec<_>>());
    assert_eq!((reply.report.torn_units, reply.report.dropped_units), (1, 7));
}

#[test]
fn new_parameter_sets_open_the_next_mp4_and_go_on_in_an_h264() {
    for (format, files) in [(Format::Mp4, vec!["cat.mp4", "cat_2.mp4"]), (Format::H264, vec!["cat.h264"])] {
        let mut world = World::recording(format);
        world.pictures(10);
        world.now_ns += FRAME;
        world.push(idr(10, 40));
        world.settle();
        world.frame = 11;
        world.pictures(5);
        let reply = world.stop().unwrap();
        assert_eq!(reply.report.files, files);
        assert_eq!(reply.report.frame_count, 16);
        let frames: Vec<u32> = files.iter().flat_map(|name| world.frames(name)).collect();
        assert_eq!(frames, (0..16).collect::<Vec<_>>());
        assert_eq!(world.started.len(), 1, "only the first file answers the start");
    }
}

#[test]
fn an_hour_is_split_at_an_idr() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(15);
    world.now_ns += limits::RECORDING_DURATION_SOFT_NS;
    world.pictures(10);
    let reply = world.stop().unwrap();
    assert_eq!(reply.report.files, ["cat.mp4", "cat_2.mp4"]);
    assert_eq!(world.frames("cat.mp4"), (0..20).collect::<Vec<_>>());
    assert_eq!(world.frames("cat_2.mp4"), (20..25).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_ends_the_recording_with_a_finished_file() {
    for (format, name) in FORMATS {
        for can_allocate in [true, false] {
            let mut world = World::recording(format);
            (world.capacity, world.can_allocate) = (700_000, can_allocate);
            while world.recording.wants_unit() {
                world.picture();
            }
            assert_eq!(world.recording.state(), "idle");
            let (last, error) = world.recording.last();
            assert_eq!(error, Some(&RecorderError::DiskFull));
            let (units, reason) = last.map(|last| (last.report.frame_count, last.reason)).unwrap();
            assert_eq!(reason, "disk_full");
            assert!(units > 1_000, "{units}");
            assert_eq!(world.frames(name), (0..u32::try_from(units).unwrap()).collect::<Vec<_>>());
            // Reserved space is what lets an MP4 be finished on a full disk.
            assert_eq!(world.files[&1].finished, can_allocate || format == Format::H264);
            world.capacity = 1 << 40;
            world.recording.handle_start(world.now_ns, Start { exact: false, ..start(format) }).unwrap();
            world.settle();
            world.frame = 0;
            world.pictures(3);
            assert_eq!(world.recording.last().1, None);
            assert!(world.stop().is_ok());
        }
    }
}

#[test]
fn an_io_error_ends_the_recording_and_keeps_what_is_whole() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(5);
    world.write_error = Some(libc::EIO);
    world.picture();
    assert_eq!(world.recording.state(), "idle");
    assert!(matches!(world.recording.last().1, Some(RecorderError::Io { doing: "writing", .. })));
    assert_eq!(world.frames("cat.mp4"), (0..5).collect::<Vec<_>>());
}

#[test]
fn a_failed_start_is_answered_and_leaves_nothing() {
    let mut world = World::new();
    world.create_error = Some(RecorderError::Directory { reason: "read-only".to_owned() });
    world.recording.handle_start(world.now_ns, start(Format::Mp4)).unwrap();
    world.settle();
    assert!(matches!(world.started.as_slice(), [Err(RecorderError::Directory { .. })]));
    assert_eq!(world.recording.state(), "idle");
    assert!(world.recording.last().1.is_some() && world.files.is_empty());
}

#[test]
fn duration_and_heartbeat_end_a_recording_by_themselves() {
    let limited = Start { max_duration_ns: Some(SECOND), ..start(Format::Mp4) };
    let watched = Start { heartbeat_ns: Some(SECOND), ..start(Format::Mp4) };
    for (start, reason) in [(limited, "max_duration"), (watched, "heartbeat")] {
        let mut world = World::new();
        world.recording.handle_start(world.now_ns, start).unwrap();
        world.settle();
        world.pictures(20);
        world.recording.handle_heartbeat(world.now_ns).unwrap();
        world.tick(SECOND / 2);
        if reason == "heartbeat" {
            assert_eq!(world.recording.state(), "recording");
            world.tick(SECOND);
        }
        assert_eq!(world.recording.state(), "stopping");
        world.recording.handle_drained(world.now_ns, false);
        world.settle();
        assert_eq!(world.recording.last().0.unwrap().reason, reason);
        assert_eq!(world.frames("cat.mp4").len(), 20);
    }
}

#[test]
fn a_stop_still_writes_what_was_published_before_it_and_nothing_after() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(5);
    world.recording.handle_stop(world.now_ns + 2 * FRAME + FRAME / 2).unwrap();
    world.picture();
    world.picture();
    world.picture();
    world.settle();
    assert_eq!(world.recording.state(), "idle");
    assert_eq!(world.frames("cat.mp4"), (0..7).collect::<Vec<_>>());
}

#[test]
fn what_is_written_is_made_durable_about_once_a_second() {
    let mut world = World::recording(Format::Mp4);
    for _ in 0..300 {
        world.picture();
        world.tick(0);
    }
    let syncs = world.files[&1].syncs;
    assert!((9..=11).contains(&syncs), "{syncs}");
    world.tick(5 * SECOND);
    let quiet = world.files[&1].syncs;
    world.tick(5 * SECOND);
    assert_eq!(world.files[&1].syncs, quiet, "nothing written, nothing to sync");
}

#[test]
fn a_deleted_file_ends_the_recording() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(3);
    world.now_ns += 2 * SECOND;
    world.recording.handle_tick(world.now_ns);
    let Some(Output::Sync { file }) = world.recording.poll_output() else { panic!("no sync") };
    world.recording.handle_completion(world.now_ns, file, Completion::Synced(Ok(false)));
    world.settle();
    assert_eq!(world.recording.last().1, Some(&RecorderError::Removed));
}

#[test]
fn garbage_units_are_dropped() {
    let mut world = World::recording(Format::Mp4);
    world.pictures(2);
    for garbage in [vec![], vec![0; 100], vec![0xff; 1_000], vec![0, 0, 1, 0x67, 1, 2]] {
        world.push(garbage);
        world.settle();
    }
    world.frame = 10;
    world.pictures(2);
    let reply = world.stop().unwrap();
    assert_eq!(world.frames("cat.mp4"), [0, 1, 10, 11]);
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
        let mut world = World::new();
        let mut written = 0;
        for step in steps {
            match step {
                Step::Pictures(count) => {
                    for _ in 0..count {
                        if world.recording.wants_unit() {
                            world.picture();
                        }
                    }
                }
                Step::Gap(missed) => {
                    world.recording.handle_gap(missed);
                    world.frame += missed;
                }
                Step::Torn => {
                    world.torn = true;
                    if world.recording.wants_unit() {
                        world.picture();
                    }
                    world.torn = false;
                }
                Step::Resize(width) => {
                    if world.recording.wants_unit() {
                        world.push(idr(world.frame, width));
                        world.frame += 1;
                        world.settle();
                    }
                }
                Step::Tick(ns) => world.tick(ns),
                Step::ShortWrites(max) => world.write_max = if max > 200 { usize::MAX } else { max.max(60) },
                Step::Full => {
                    world.capacity = world.capacity - world.free() + 50_000;
                }
                Step::Stop => {
                    let _refused = world.recording.handle_stop(world.now_ns);
                    world.settle();
                    world.recording.handle_drained(world.now_ns, false);
                    world.settle();
                    prop_assert_eq!(world.recording.state(), "idle");
                }
                Step::Start => {
                    world.capacity = 1 << 40;
                    let start = Start { exact: false, ..start(format) };
                    let _refused = world.recording.handle_start(world.now_ns, start);
                    world.settle();
                }
            }
        }
        world.write_max = usize::MAX;
        world.recording.handle_shutdown(world.now_ns);
        world.settle();
        world.recording.handle_drained(world.now_ns, false);
        world.settle();
        prop_assert_eq!(world.recording.state(), "idle");
        let names: Vec<String> = world.files.values().map(|file| file.name.clone()).collect();
        let mut last = None;
        for name in names {
            for frame in world.frames(&name) {
                prop_assert!(last < Some(frame), "{} after {:?}", frame, last);
                last = Some(frame);
                written += 1;
            }
        }
        prop_assert!(world.waiting.is_empty());
        prop_assert!(written <= world.frame);
    }
}
