//! Tests of a cursor on the legacy rings, one for each guarantee. `lease_tests.rs` has the tests on the lease ring.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::base::clock;
use crate::camera::layout::{FORMAT_H264, Layout};
use crate::camera::segment_follower::SegmentFollower;
use crate::camera::test_ring::{TestRing, attach, metadata, unit};

const MS: i64 = 1_000_000;

#[test]
fn every_unit_arrives_once_and_in_order_on_every_layout() {
    for layout in Layout::LEGACY {
        let mut ring = TestRing::new(layout);
        ring.publish(b"published before");
        let (camera, mut cursor) = attach(ring.name());
        let mut follower = SegmentFollower::new(camera);
        for step in 0..30 {
            follower.poll(step * 20 * MS, None);
        }
        for i in 1..100_u8 {
            assert!(matches!(cursor.next(0), Next::Empty), "{layout}");
            let now_ns = (600 + i64::from(i) * 33) * MS;
            follower.poll(now_ns - 10 * MS, None);
            ring.publish(&vec![i; 1000 + usize::from(i)]);
            for half_ms in 0..4 {
                follower.poll(now_ns + half_ms * MS / 2, None);
            }
            let view = unit(cursor.next(now_ns));
            assert_eq!(view.sequence, u32::from(i), "{layout}");
            assert_eq!(view.frame_number, u64::from(i), "{layout}");
            assert_eq!((view.width, view.height), (1280, 720), "{layout}");
            assert_eq!(view.bytes, vec![i; 1000 + usize::from(i)], "{layout}");
            assert!(view.is_intact(), "{layout}");
        }
    }
}

#[test]
fn cursors_read_independently() {
    let mut ring = TestRing::new(Layout::V3);
    let (camera, mut eager) = attach(ring.name());
    let mut lazy = camera.cursor();
    for i in 0..20_u8 {
        ring.publish(&[i]);
        assert_eq!(unit(eager.next(0)).sequence, u32::from(i));
    }
    assert_eq!((eager.lag_slots(), lazy.lag_slots()), (0, 20));
    for i in 0..20 {
        assert_eq!(unit(lazy.next(0)).sequence, i);
    }
    let mut late = camera.cursor();
    assert!(matches!(late.next(0), Next::Empty), "a new cursor begins with the next unit");
}

#[test]
fn lapped_cursor_reports_it_once_and_continues_with_the_newest_unit() {
    for (layout, slots) in [(Layout::V3, 30), (Layout::V3Ring6, 6), (Layout::V0, 30)] {
        let mut ring = TestRing::new(layout);
        let (_camera, mut cursor) = attach(ring.name());
        (0..slots - 2).for_each(|_| ring.publish(b"still safe"));
        assert_eq!(unit(cursor.next(0)).sequence, 0, "{layout}");
        (0..100).for_each(|_| ring.publish(b"new"));
        // On v0 only a follower finds out that the newest unit is complete. This test has none, so the unit before the
        // newest one is the newest readable unit.
        let newest = ring.index - if layout == Layout::V0 { 2 } else { 1 };
        let Next::Lapped { missed_units } = cursor.next(0) else { panic!("{layout}") };
        assert_eq!(missed_units, newest - 1, "{layout}: units 1 to newest - 1");
        assert_eq!(unit(cursor.next(0)).sequence, newest, "{layout}");
        assert!(matches!(cursor.next(0), Next::Empty), "{layout}");
    }
}

#[test]
fn view_is_intact_until_its_slot_may_be_overwritten() {
    for (layout, slots) in [(Layout::V3, 30), (Layout::V3Ring6, 6)] {
        let mut ring = TestRing::new(layout);
        let (_camera, mut cursor) = attach(ring.name());
        ring.publish(b"held");
        let view = unit(cursor.next(0));
        for age in 1..slots - 1 {
            assert!(view.is_intact(), "{layout}, age {age}");
            ring.publish(b"another");
        }
        assert!(!view.is_intact(), "{layout}: after ring size - 1 units the camera may write this slot");
        assert_eq!(
            view.bytes,
            b"held"[..],
            "{layout}: not overwritten yet: the check keeps a margin of one slot"
        );
    }
}

#[test]
fn unit_is_not_returned_while_it_is_copied() {
    let mut ring = TestRing::new(Layout::V0);
    (0..40).for_each(|i| ring.publish(&[i; 1000]));
    let (camera, mut cursor) = attach(ring.name());
    let mut follower = SegmentFollower::new(camera);
    for step in 0..30 {
        follower.poll(step * 20 * MS, None); // commits the newest unit and records the pre-image of the next one
    }
    let sequence = ring.begin();
    for step in 0..20_usize {
        if step == 3 {
            ring.write_metadata(sequence, &ring.metadata(&[99; 1000]));
        }
        ring.write_data(sequence, 0, &vec![99; 940 + step]);
        follower.poll((600 + step as i64) * MS, None);
        assert!(matches!(cursor.next(0), Next::Empty), "step {step}");
    }
    ring.write_data(sequence, 0, &[99; 1000]);
    follower.poll(621 * MS, None);
    assert!(matches!(cursor.next(0), Next::Empty), "one poll is not enough");
    follower.poll(622 * MS, None);
    assert_eq!(unit(cursor.next(0)).bytes, [99; 1000][..]);
}

#[test]
fn unit_is_complete_when_the_next_one_begins() {
    let mut ring = TestRing::new(Layout::V1);
    let (_camera, mut cursor) = attach(ring.name());
    ring.publish(b"first");
    assert!(matches!(cursor.next(0), Next::Empty), "not known to be complete");
    ring.begin();
    assert_eq!(unit(cursor.next(0)).bytes, b"first"[..]);
    assert!(matches!(cursor.next(0), Next::Empty));
}

#[test]
fn index_reset_is_a_restart_at_its_first_unit() {
    for old_units in [1, 5, 500] {
        let mut ring = TestRing::new(Layout::V3);
        let (camera, mut cursor) = attach(ring.name());
        let mut other = camera.cursor();
        for _ in 0..old_units {
            ring.publish(b"old");
            unit(cursor.next(0));
        }
        let held = unit(cursor.units_back(1).unwrap().next(0));
        assert!(held.is_intact());
        ring.set_index(0);
        ring.frame_number = 0;
        assert!(!held.is_intact(), "after {old_units}: index 0 proves no unit");
        assert!(matches!(cursor.next(0), Next::Restarted), "after {old_units}");
        assert!(matches!(cursor.next(0), Next::Empty), "after {old_units}: reported once");
        (0..old_units.min(28)).for_each(|_| ring.publish(b"new"));
        assert!(!held.is_intact(), "after {old_units}: another run in the same slots");
        assert!(matches!(other.next(0), Next::Restarted), "every cursor reports it");
        for cursor in [&mut cursor, &mut other] {
            let view = unit(cursor.next(0));
            assert_eq!((view.sequence, &view.bytes[..]), (0, &b"new"[..]));
        }
    }
}

#[test]
fn frame_number_reset_is_a_restart() {
    let mut ring = TestRing::new(Layout::V3);
    ring.frame_number = 700;
    let (_camera, mut cursor) = attach(ring.name());
    ring.publish(b"old");
    unit(cursor.next(0));
    ring.frame_number = 0;
    ring.publish(b"new");
    assert!(matches!(cursor.next(0), Next::Restarted));
    assert_eq!(unit(cursor.next(0)).bytes, b"new"[..]);
}

#[test]
fn index_wraps_without_loss() {
    for layout in [Layout::V3, Layout::V3Ring6] {
        let mut ring = TestRing::new(layout);
        ring.set_index(u32::MAX - 40);
        let (_camera, mut cursor) = attach(ring.name());
        for i in 0..100_u32 {
            ring.publish(&i.to_ne_bytes());
            let view = unit(cursor.next(0));
            assert_eq!(view.sequence, (u32::MAX - 40).wrapping_add(i), "{layout}");
            assert_eq!(view.bytes, i.to_ne_bytes()[..], "{layout}");
            assert!(view.is_intact(), "{layout}");
        }
    }
}

#[test]
fn recent_units_can_be_read_again() {
    let mut ring = TestRing::new(Layout::V3);
    let (_camera, mut cursor) = attach(ring.name());
    for i in 0..100_u8 {
        ring.publish(&[i]);
        unit(cursor.next(0));
    }
    let mut back = cursor.units_back(28).unwrap();
    for i in 72..100 {
        let view = unit(back.next(0));
        assert_eq!((view.sequence, view.is_intact()), (i, true));
    }
    assert!(matches!(back.next(0), Next::Empty));
    assert!(cursor.units_back(29).is_none(), "that slot may be overwritten");
    assert!(matches!(cursor.units_back(0).unwrap().next(0), Next::Empty));
    let fresh = TestRing::new(Layout::V3);
    let (_camera, cursor) = attach(fresh.name());
    assert!(cursor.units_back(1).is_none(), "the ring has no unit yet");
}

#[test]
fn slots_with_invalid_metadata_are_skipped() {
    let mut ring = TestRing::new(Layout::V3);
    let (_camera, mut cursor) = attach(ring.name());
    let good = ring.metadata(b"data");
    ring.publish_as(&SlotMetadata { format: 1, ..good }, b"data");
    ring.publish_as(&SlotMetadata { data_bytes: 1 << 40, ..good }, b"data");
    ring.publish_as(&SlotMetadata { height: -1, ..good }, b"data");
    ring.publish_as(&SlotMetadata { format: FORMAT_H264, ..good }, b"data");
    assert!(matches!(cursor.next(0), Next::Rejected(MetadataError::NotH264 { format: 1 })));
    assert!(matches!(cursor.next(0), Next::Rejected(MetadataError::DataBytes { .. })));
    assert!(matches!(cursor.next(0), Next::Rejected(MetadataError::Dimensions { .. })));
    assert_eq!(unit(cursor.next(0)).bytes, b"data"[..]);
}

#[test]
fn capture_times_convert_to_both_clocks() {
    const OFFSET: i64 = 1_700_000_000_000_000_000;
    let now_ns = 5_000_000_000_000;
    let at = |ns: i64| SlotMetadata {
        timestamp_s: ns.div_euclid(1_000_000_000),
        timestamp_ns: ns.rem_euclid(1_000_000_000),
        ..SlotMetadata::default()
    };
    let both = Captured { realtime_ns: Some(now_ns - 20 * MS + OFFSET), monotonic_ns: now_ns - 20 * MS };
    assert_eq!(Captured::find(&at(now_ns - 20 * MS), now_ns, OFFSET), both);
    assert_eq!(Captured::find(&at(now_ns - 20 * MS + OFFSET), now_ns, OFFSET), both);
    let unusable = Captured { realtime_ns: None, monotonic_ns: now_ns };
    for ns in [0, now_ns / 2, OFFSET / 2, now_ns + OFFSET - 11_000 * MS] {
        assert_eq!(Captured::find(&at(ns), now_ns, OFFSET), unusable);
    }
    let invalid = SlotMetadata { timestamp_s: i64::MAX, timestamp_ns: i64::MIN, ..at(0) };
    assert_eq!(Captured::find(&invalid, now_ns, OFFSET), unusable);
    let early = Captured::find(&at(now_ns + 5 * MS), now_ns, OFFSET);
    assert_eq!(early.monotonic_ns, now_ns, "a capture time is at most the read time");
}

#[test]
fn clock_of_a_camera_is_found_on_a_board_whose_clock_started_in_1970() {
    let (now_ns, age_ns) = (100_000 * MS, 20 * MS);
    for offset_ns in [-3_000 * MS, -300 * MS, 300 * MS, 3_000 * MS] {
        for of_clock_ns in [now_ns, now_ns + offset_ns] {
            let time_ns = of_clock_ns - age_ns;
            let metadata = SlotMetadata {
                timestamp_s: time_ns.div_euclid(1_000_000_000),
                timestamp_ns: time_ns.rem_euclid(1_000_000_000),
                ..SlotMetadata::default()
            };
            let expected =
                Captured { realtime_ns: Some(now_ns - age_ns + offset_ns), monotonic_ns: now_ns - age_ns };
            assert_eq!(Captured::find(&metadata, now_ns, offset_ns), expected, "{offset_ns} {of_clock_ns}");
        }
    }
}

#[test]
fn fresh_capture_times_are_found_the_short_way_with_the_same_result() {
    let now_ns = 100_000 * MS;
    let fresh =
        |ns: i64| [-1, 0, 1, 20 * MS, CAPTURE_FRESH_NS - 1, CAPTURE_FRESH_NS].map(|age_ns| ns - age_ns);
    let offsets = [0, 100, 400, 401, 3_000, 1_700_000_000_000].map(|offset_ms| offset_ms * MS);
    for offset_ns in offsets.into_iter().flat_map(|offset_ns| [offset_ns, -offset_ns]) {
        let stamps = fresh(now_ns).into_iter().chain(fresh(now_ns + offset_ns));
        let found = stamps.filter(|time_ns| {
            let metadata = SlotMetadata {
                timestamp_s: time_ns.div_euclid(1_000_000_000),
                timestamp_ns: time_ns.rem_euclid(1_000_000_000),
                ..SlotMetadata::default()
            };
            let short = Captured::find_fresh(&metadata, now_ns, offset_ns);
            let long = Captured::find(&metadata, now_ns, offset_ns);
            short.is_some_and(|short| {
                assert_eq!(short, long, "{time_ns} {offset_ns}");
                true
            })
        });
        let is_clear = offset_ns.abs() >= 400 * MS;
        assert_eq!(found.count(), if is_clear { 8 } else { 0 }, "{offset_ns}");
    }
}

#[test]
fn capture_times_follow_a_clock_that_was_set_at_once() {
    let mut ring = TestRing::new(Layout::V3);
    let (camera, mut cursor) = attach(ring.name());
    // The clocks were measured before the system clock was set by minus 5 s and by plus an hour.
    for step_s in [-5_i64, 3_600] {
        let (now_ns, realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        camera.set_realtime_offset_ns(realtime_ns - now_ns - step_s * 1_000_000_000);
        let captured_ns = realtime_ns - 20 * MS;
        let stamp = SlotMetadata {
            timestamp_s: captured_ns / 1_000_000_000,
            timestamp_ns: captured_ns % 1_000_000_000,
            ..metadata(0, b"unit")
        };
        ring.publish_as(&stamp, b"unit");
        let unit = unit(cursor.next(now_ns));
        assert!((unit.captured_at_ns.unwrap() - captured_ns).abs() < MS, "{step_s}");
        assert!((now_ns - unit.captured_monotonic_ns - 20 * MS).abs() < MS, "{step_s}");
        assert!((unit.realtime_offset_ns - (realtime_ns - now_ns)).abs() < MS, "{step_s}");
        std::thread::sleep(std::time::Duration::from_millis(20)); // the clocks are not measured more often
    }
}

#[test]
fn no_torn_unit_passes_at_full_camera_speed() {
    for layout in [Layout::V3, Layout::V3Ring6, Layout::V0] {
        let mut ring = TestRing::new(layout);
        let (camera, cursor) = attach(ring.name());
        let done = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers = [(cursor, 0), (camera.cursor(), 3)];
            let readers = readers.map(|(cursor, pause)| scope.spawn(move || read_all(cursor, pause, done)));
            for i in 0..60_000_u32 {
                ring.publish(&i.to_ne_bytes().repeat(1 + i as usize % 3000));
                if i % 64 == 0 {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Release);
            for reader in readers {
                assert!(reader.join().unwrap() > 0, "{layout}: units were read");
            }
        });
    }
}

/// Reads units until `done` is set. Checks that no unit reported as intact is torn, and returns the number of intact
/// units.
fn read_all(mut cursor: Cursor, pause: u32, done: &AtomicBool) -> u32 {
    let mut intact = 0;
    loop {
        let is_last = done.load(Ordering::Acquire);
        match cursor.next(0) {
            Next::Unit(view) => {
                let first = view.bytes.slice(..4);
                (0..pause).for_each(|_| std::thread::yield_now());
                let is_whole = view.bytes.chunks_exact(4).all(|word| word == first);
                let number = u32::from_ne_bytes(first[..].try_into().unwrap());
                if view.is_intact() {
                    assert!(is_whole, "unit {} is torn", view.sequence);
                    assert_eq!((u64::from(number), number), (view.frame_number, view.sequence));
                    intact += 1;
                }
            }
            Next::Empty if is_last => return intact,
            Next::Empty | Next::Lapped { .. } => std::hint::spin_loop(),
            other => panic!("{other:?}"),
        }
    }
}
