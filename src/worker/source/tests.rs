//! Tests of the live side of a worker: where it attaches, what it keeps, and its RTP times.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
use super::*;
use crate::base::clock;
use crate::camera::test_camera::TestCamera;
use crate::camera::test_waiter::TestWaiter;
use crate::camera::{Layout, Wake};

const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
const IDR: &[u8] = &[0, 0, 0, 1, 0x65, 0xb8, 0x80, 0x80];
const DELTA: &[u8] = &[0, 0, 0, 1, 0x41, 0xb8, 0x80, 0x80];

/// A camera whose parameter sets come with each IDR.
struct Stream(TestCamera);

impl Stream {
    fn new(layout: Layout) -> Stream {
        Stream(TestCamera::new(layout))
    }

    fn publish(&mut self, nals: &[&[u8]]) {
        self.0.publish(&nals.concat());
    }

    fn idr(&mut self) {
        self.publish(&[SPS, PPS, IDR]);
    }

    fn deltas(&mut self, count: u32) {
        (0..count).for_each(|_| self.publish(&[DELTA]));
    }

    fn attach(&self) -> Camera {
        self.0.attach()
    }
}

fn now() -> Now {
    clock::now()
}

/// Runs the source as a worker without viewers does, until the ring has no new unit.
fn poll(source: &mut Source, counters: &WorkerCounters) {
    while !matches!(source.poll_unit(now(), false, counters), Polled::Empty) {}
}

/// Returns the numbers of the units of the current GOP.
fn gop(source: &mut Source, counters: &WorkerCounters) -> Option<Vec<u32>> {
    let gop = source.current_gop(now().monotonic_ns, counters)?;
    Some((0..gop.len()).map(|index| gop.at(index).unwrap().info.number).collect())
}

#[test]
fn worker_attached_in_the_middle_of_a_gop_has_it_before_it_has_read_any_unit() {
    for layout in [Layout::V3, Layout::V3Ring6, "lease".parse().unwrap()] {
        let (mut ring, counters) = (Stream::new(layout), WorkerCounters::default());
        ring.idr();
        ring.deltas(3);
        let mut source = Source::new(ring.attach());
        assert_eq!(gop(&mut source, &counters), Some((0..4).collect()), "{layout}: nothing was polled yet");
        ring.deltas(1);
        poll(&mut source, &counters);
        assert_eq!(gop(&mut source, &counters), Some((0..5).collect()), "{layout}");
    }
}

#[test]
fn gop_found_at_the_attach_is_kept_when_it_outgrows_the_ring_before_the_first_viewer_comes() {
    for layout in [Layout::V3, "lease".parse().unwrap()] {
        let (mut ring, counters) = (Stream::new(layout), WorkerCounters::default());
        ring.idr();
        ring.deltas(12);
        let mut source = Source::new(ring.attach());
        for _ in 0..60 {
            ring.deltas(1);
            poll(&mut source, &counters);
        }
        assert_eq!(gop(&mut source, &counters), Some((0..73).collect()), "{layout}");
    }
}

#[test]
fn search_waits_for_an_incomplete_newest_unit_instead_of_giving_up() {
    for layout in [Layout::V0, Layout::V1, Layout::V2] {
        let (mut ring, counters) = (Stream::new(layout), WorkerCounters::default());
        ring.idr();
        ring.deltas(3);
        let camera = ring.attach();
        let mut source = Source::new(camera.clone());
        poll(&mut source, &counters);
        assert_eq!(gop(&mut source, &counters), None, "{layout}: unit 3 may be incomplete");
        let mut waiter = TestWaiter::new(&camera);
        ring.deltas(1);
        waiter.poll(now().monotonic_ns);
        poll(&mut source, &counters);
        assert_eq!(gop(&mut source, &counters), Some((0..4).collect()), "{layout}: unit 4 may be incomplete");
    }
}

#[test]
fn gop_lost_by_a_lapped_worker_is_searched_at_once_and_not_when_the_next_viewer_comes() {
    let (mut ring, counters) = (Stream::new(Layout::V3), WorkerCounters::default());
    ring.idr();
    let mut source = Source::new(ring.attach());
    ring.deltas(40);
    ring.idr();
    ring.deltas(20);
    poll(&mut source, &counters);
    assert!(counters.lapped.get() > 0);
    for _ in 0..60 {
        ring.deltas(1);
        poll(&mut source, &counters);
    }
    assert_eq!(gop(&mut source, &counters), Some((41..122).collect()));
}

#[test]
fn stream_without_idrs_is_kept_from_its_newest_recovery_point() {
    let recovery = [0, 0, 0, 1, 6, 6, 1, 0x84, 0x80];
    for is_live in [false, true] {
        let (mut ring, counters) = (Stream::new(Layout::V3), WorkerCounters::default());
        ring.idr();
        ring.deltas(30);
        let mut source = is_live.then(|| Source::new(ring.attach()));
        for _ in 0..2 {
            ring.publish(&[SPS, PPS, &recovery, DELTA]);
            ring.deltas(4);
            source.iter_mut().for_each(|source| poll(source, &counters));
        }
        let mut source = source.unwrap_or_else(|| Source::new(ring.attach()));
        assert_eq!(gop(&mut source, &counters), Some((36..41).collect()), "live: {is_live}");
        ring.idr();
        ring.publish(&[SPS, PPS, &recovery, DELTA]);
        poll(&mut source, &counters);
        assert_eq!(gop(&mut source, &counters), Some(vec![41, 42]), "an IDR is better: {is_live}");
    }
}

#[test]
fn recovery_point_whose_picture_is_missing_is_no_place_to_start() {
    let recovery = [0, 0, 0, 1, 6, 6, 1, 0x84, 0x80];
    let (mut ring, counters) = (Stream::new(Layout::V3), WorkerCounters::default());
    ring.idr();
    let mut source = Source::new(ring.attach());
    poll(&mut source, &counters);
    for lapped_units in [100, 0] {
        ring.publish(&[&recovery]);
        poll(&mut source, &counters);
        ring.deltas(lapped_units + 1);
        while !matches!(source.poll_unit(now(), false, &counters), Polled::Unit(_)) {}
        let unit = source.unit().info;
        assert_eq!((unit.gap_before, unit.is_recovery_point), (lapped_units > 0, lapped_units == 0));
        poll(&mut source, &counters);
    }
}

#[test]
fn parameter_sets_in_slots_of_their_own_before_the_idr_are_found() {
    let (mut ring, counters) = (Stream::new(Layout::V3), WorkerCounters::default());
    ring.publish(&[SPS]);
    ring.publish(&[PPS]);
    ring.publish(&[IDR]);
    ring.deltas(3);
    let mut source = Source::new(ring.attach());
    assert_eq!(gop(&mut source, &counters), Some((2..6).collect()));
    // The stream never repeats its parameter sets, so the live side takes them from the ring, too.
    ring.publish(&[IDR]);
    poll(&mut source, &counters);
    assert_eq!((gop(&mut source, &counters), counters.missing_parameter_sets.get()), (Some(vec![6]), 0));
}

/// Returns the RTP times of units that were captured at these times.
fn rtp_times(captured: impl IntoIterator<Item = i64>) -> Vec<u64> {
    let mut source = Source::new(Camera::new("/ss-test-no-camera", Wake::Poll));
    let times = captured.into_iter().map(|captured_ns| {
        source.timeline.advance(captured_ns, captured_ns);
        source.unit.rtp_time_90k = source.rtp_time_90k(&source.timeline);
        source.taken_at = Some(now().instant);
        source.unit.rtp_time_90k
    });
    times.collect()
}

#[test]
fn hour_at_30_units_per_second_does_not_drift() {
    let times = rtp_times((0..108_000).map(|unit| 1_000_000_000 + unit * 1_000_000_000 / 30));
    assert_eq!(times.last(), Some(&(90_000 + 107_999 * 3_000)));
}

#[test]
fn units_in_presentation_order_do_not_speed_the_rtp_clock_up() {
    let order = (0..300).flat_map(|gop| [3, 1, 2].map(|picture| 3 * gop + picture));
    let times = rtp_times(std::iter::once(0).chain(order).map(|picture| picture * 1_000_000_000 / 30));
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    let expected = 900 * 3_000;
    assert!((expected..expected + 3).contains(times.last().unwrap()), "{:?}", times.last());
}

#[test]
fn time_increases_for_any_sequence_of_timestamps() {
    let times = rtp_times([5_000_000_000, 4_000_000_000, 0, -7, i64::MAX, i64::MIN, 1, 1, 33_333_334]);
    for pair in times.windows(2) {
        assert!((1..=3_600 * 90_000).contains(&(pair[1] - pair[0])), "{times:?}");
    }
}

#[test]
fn capture_gap_becomes_an_rtp_time_gap() {
    assert_eq!(rtp_times([1_000_000_000, 11_000_000_000]), [90_000, 990_000]);
}

#[test]
fn workers_that_begin_with_different_units_agree_on_the_rtp_times() {
    let captured: Vec<i64> = (0..300).map(|unit| 7_123_456_789 + unit * 33_333_333).collect();
    let all = rtp_times(captured.iter().copied());
    assert_eq!(rtp_times(captured[123..].iter().copied()), all[123..]);
}

#[test]
fn rtp_time_of_a_unit_is_found_by_its_capture_time() {
    let (mut ring, counters) = (Stream::new(Layout::V3), WorkerCounters::default());
    let mut source = Source::new(ring.attach());
    let start_ns = clock::realtime_ns() - 400_000_000;
    let captured_ns: Vec<i64> = (0..10).map(|unit| start_ns + unit * 33_333_333).collect();
    let mut expected = Vec::new();
    for captured_ns in &captured_ns {
        ring.0.publish_stamped(&[SPS, PPS, IDR].concat(), *captured_ns);
        poll(&mut source, &counters);
        expected.push(u32::try_from(source.unit().info.rtp_time_90k & 0xffff_ffff).ok());
    }
    let found: Vec<Option<u32>> = captured_ns.iter().map(|ns| counters.rtp_times.find(*ns)).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_replayed_before_the_first_live_unit_comes_just_before_it() {
    let (mut ring, counters) = (Stream::new(Layout::V3), WorkerCounters::default());
    ring.idr();
    ring.deltas(3);
    let mut source = Source::new(ring.attach());
    let (before, _) = source.newest(now());
    assert_eq!(before.number, 3);
    ring.deltas(1);
    poll(&mut source, &counters);
    let first = source.unit().info.rtp_time_90k;
    assert!(first.abs_diff(before.rtp_time_90k) < 90_000 * 60, "{first} after {}", before.rtp_time_90k);
}
