//! Tests what is recorded of unusual streams: units without a picture, recovery points, B-frames, clocks.

use super::harness::{Harness, SECOND, UNIT_INTERVAL, delta, idr, parameter_sets, slice, start};
use crate::h264::testing;
use crate::recorder::names::Format;

const FORMATS: [(Format, &str); 2] = [(Format::Mp4, "cat.mp4"), (Format::H264, "cat.h264")];

#[test]
fn unit_without_a_picture_is_no_loss() {
    for (format, name) in FORMATS {
        let mut harness = Harness::recording(format);
        harness.publish_units(3);
        let unit = |nal: &[u8]| [&[0, 0, 0, 1], nal].concat();
        let units = [
            unit(&[0x06, 5, 1, 9, 0x80]),
            parameter_sets(80),
            unit(&[0x09, 0xF0]),
            unit(&[0x0A]),
            unit(&[0x0B]),
            unit(&[0x0C, 0xFF, 0x80]),
            unit(&[0x67, 1, 2]),
            unit(&[0x7F, 1]),
            unit(&testing::sps(0, 31, 80, 45)),
            unit(&testing::pps(0, 0, 0)),
        ];
        for bytes in units {
            harness.push(bytes);
            harness.run_until_idle();
        }
        harness.publish_units(4);
        let reply = harness.stop().unwrap();
        assert_eq!(harness.unit_numbers(name), (0..7).collect::<Vec<_>>());
        assert_eq!((reply.report.dropped_units, reply.report.gaps), (0, 0));
        assert_eq!(harness.counters.rejected.get(), 1, "the broken parameter set");
        assert_eq!(harness.counters.filler_bytes.get(), 6);
    }
}

#[test]
fn lone_parameter_sets_are_used_by_a_later_idr() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.push(parameter_sets(40));
    harness.now_ns += UNIT_INTERVAL;
    harness.push([vec![0, 0, 0, 1], slice(0x65, 0)].concat());
    harness.run_until_idle();
    harness.stop().unwrap();
    assert_eq!(harness.unit_numbers("cat.mp4"), [0]);
    let width = testing::sps(0, 31, 40, 45);
    assert!(memchr::memmem::find(&harness.files[&1].bytes, &width).is_some());
}

#[test]
fn recording_starts_at_a_recovery_point() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.push(parameter_sets(80));
    for number in 0..20 {
        let sei = if number % 8 == 5 { testing::recovery_point_sei(3) } else { vec![0x09, 0xF0] };
        harness.now_ns += UNIT_INTERVAL;
        harness.push([&[0, 0, 0, 1], sei.as_slice(), &[0, 0, 1], &slice(0x41, number)].concat());
        harness.run_until_idle();
    }
    let reply = harness.stop().unwrap();
    assert!(reply.kept && reply.report.frame_count == 15, "{reply:?}");
    assert_eq!((reply.report.dropped_units, reply.report.gaps), (0, 0));
    let bytes = &harness.files[&1].bytes;
    for tables in [
        &b"stss\0\0\0\0\0\0\0\0"[..],
        b"sgpd\x01\0\0\0roll\0\0\0\x02\0\0\0\x01\0\x03",
        b"sbgp\0\0\0\0roll\0\0\0\x04",
    ] {
        assert!(memchr::memmem::find(bytes, tables).is_some(), "{}", tables.escape_ascii());
    }
}

#[test]
fn gap_ends_at_a_recovery_point() {
    let mut harness = Harness::recording(Format::H264);
    harness.publish_units(2);
    harness.recording.handle_gap(1);
    for (number, sei) in [(3, vec![0x09, 0xF0]), (4, testing::recovery_point_sei(0)), (5, vec![0x09, 0xF0])] {
        harness.now_ns += UNIT_INTERVAL;
        harness.push([&[0, 0, 0, 1], sei.as_slice(), &[0, 0, 1], &slice(0x41, number)].concat());
        harness.run_until_idle();
    }
    let reply = harness.stop().unwrap();
    assert_eq!((reply.report.frame_count, reply.report.dropped_units, reply.report.gaps), (4, 2, 1));
}

#[test]
fn recovery_point_whose_picture_is_missing_does_not_end_the_gap() {
    let mut harness = Harness::recording(Format::H264);
    harness.publish_units(2);
    harness.push([&[0, 0, 0, 1], testing::recovery_point_sei(0).as_slice()].concat());
    harness.run_until_idle();
    harness.recording.handle_gap(1);
    for number in 4..6 {
        harness.now_ns += UNIT_INTERVAL;
        harness.push(delta(number));
        harness.run_until_idle();
    }
    let reply = harness.stop().unwrap();
    assert_eq!((reply.report.frame_count, reply.report.dropped_units, reply.report.gaps), (2, 3, 1));
}

#[test]
fn recording_that_waits_for_an_idr_says_so() {
    let mut harness = Harness::new();
    harness.recording.remember(harness.now_ns, &idr(0, 80), harness.now_ns);
    harness.recording.handle_start(harness.now_ns, start(Format::Mp4)).unwrap();
    harness.run_until_idle();
    for number in 1..61 {
        harness.now_ns += UNIT_INTERVAL;
        harness.push(delta(number));
    }
    let report = harness.recording.report(harness.now_ns).unwrap();
    let text = report.waiting_text().unwrap();
    assert_eq!(text, "waiting for the camera's next IDR, last one 2 s ago");
    let reply = harness.stop().unwrap();
    assert!(!reply.kept && reply.report.files.is_empty() && !reply.report.waiting_for_idr);
    assert!(
        reply.not_kept_text().contains("the last one was 2 s before the stop"),
        "{}",
        reply.not_kept_text()
    );
    let mut fresh = Harness::recording(Format::Mp4);
    let text = fresh.recording.report(fresh.now_ns).unwrap().waiting_text().unwrap();
    assert_eq!(text, "waiting for the camera's first IDR");
    fresh.publish_units(1);
    assert_eq!(fresh.recording.report(fresh.now_ns).unwrap().waiting_text(), None);
    assert!(fresh.stop().unwrap().kept);
}

#[test]
fn last_unit_of_a_slow_camera_lasts_one_interval() {
    for interval in [2 * SECOND, SECOND / 50] {
        let mut harness = Harness::recording(Format::Mp4);
        for number in 0..4 {
            harness.now_ns += interval;
            harness.push(if number == 0 { idr(0, 80) } else { delta(number) });
            harness.run_until_idle();
        }
        let reply = harness.stop().unwrap();
        let expected = 4.0 * interval as f64 / SECOND as f64;
        assert!((reply.report.duration - expected).abs() < 0.01, "{} of {expected}", reply.report.duration);
    }
}

#[test]
fn clock_set_back_in_a_recording_does_not_squeeze_its_units() {
    let mut harness = Harness::recording(Format::Mp4);
    harness.publish_units(20);
    for number in 20..40 {
        harness.now_ns += UNIT_INTERVAL;
        let bytes = if number % 10 == 0 { idr(number, 80) } else { delta(number) };
        harness.push_captured(bytes, harness.now_ns - 7 * SECOND);
        harness.run_until_idle();
    }
    let reply = harness.stop().unwrap();
    assert!((reply.report.duration - 40.0 / 30.0).abs() < 0.01, "{}", reply.report.duration);
}

#[test]
fn b_frames_are_recorded_with_composition_times() {
    for is_stamped_as_shown in [false, true] {
        let mut harness = Harness::recording(Format::Mp4);
        let begin = harness.now_ns - 5 * SECOND;
        for (sent, place) in (0..).zip([0, 3, 1, 2, 6, 4, 5, 0, 3, 1, 2]) {
            let shown = place + if sent < 7 { 0 } else { 7 };
            let stamp = if is_stamped_as_shown { shown } else { sent };
            let unit = testing::b_frame_unit(place, place % 3 != 0, &[]);
            harness.push_captured(unit, begin + i64::from(stamp) * SECOND / 25);
            harness.run_until_idle();
        }
        harness.stop().unwrap();
        let bytes = &harness.files[&1].bytes;
        let offsets = [0, 2, -1, -1, 2, -1, -1, 0, 2, -1, -1].map(|intervals: i32| intervals * 3_600);
        let mut rows: Vec<[i32; 2]> = Vec::new();
        for offset in offsets {
            match rows.last_mut() {
                Some([count, same]) if *same == offset => *count += 1,
                _ => rows.push([1, offset]),
            }
        }
        let table = rows.as_flattened().iter().flat_map(|value| value.to_be_bytes());
        let count = u32::try_from(rows.len()).unwrap().to_be_bytes();
        let ctts: Vec<u8> = b"ctts\x01\0\0\0".iter().copied().chain(count).chain(table).collect();
        assert!(memchr::memmem::find(bytes, &ctts).is_some(), "stamped as shown: {is_stamped_as_shown}");
        let stts = b"stts\0\0\0\0\0\0\0\x01\0\0\0\x0b\0\0\x0e\x10"; // 11 units of 3600 ticks each
        assert!(memchr::memmem::find(bytes, stts).is_some(), "stamped as shown: {is_stamped_as_shown}");
    }
}

#[test]
fn pictures_before_a_recovery_point_are_not_recorded() {
    let mut harness = Harness::recording(Format::Mp4);
    let begin = harness.now_ns - 5 * SECOND;
    for (sent, place) in (0..).zip([0, 3, 1, 2, 6, 4, 5, 9, 7, 8]) {
        let unit = testing::b_frame_unit(place, place % 3 != 0, &[]);
        let sei =
            if place == 6 { [&[0, 0, 1][..], &testing::recovery_point_sei(0)].concat() } else { vec![] };
        if sent == 0 {
            harness.recording.remember(harness.now_ns, &unit, begin);
        } else {
            harness.push_captured([sei, unit].concat(), begin + sent * SECOND / 25);
            harness.run_until_idle();
        }
    }
    let reply = harness.stop().unwrap();
    assert_eq!(reply.report.frame_count, 4, "6, 9, 7 and 8");
    assert_eq!(reply.report.gaps, 0);
}
