//! Tests of the backlog with units made by hand. A test's viewer drops the bytes of a unit when its connection would
//! have sent them.

use std::pin::pin;
use std::task::{Context, Poll};

use proptest::prelude::*;

use super::*;
use crate::base::clock::now;

/// Ticks between two units: 30 units/s.
const INTERVAL_90K: u64 = 3_000;
const GOP: u64 = 30;

/// The camera: makes numbered units. Every [`GOP`]th is an IDR.
#[derive(Default)]
struct Stream {
    backlog: Backlog,
    number: u64,
}

impl Stream {
    fn unit(&self, bytes: usize) -> FragmentedUnit {
        let is_idr = self.number.is_multiple_of(GOP);
        let mut content = self.number.to_be_bytes().to_vec();
        content.resize(content.len().max(bytes), 0);
        FragmentedUnit {
            bytes: content,
            header_bytes: 8,
            time_90k: self.number * INTERVAL_90K,
            is_idr,
            is_start: is_idr,
            file_header: (self.number == 0).then(|| b"header".to_vec()),
        }
    }

    fn push(&mut self, unit: FragmentedUnit) -> bool {
        self.number += 1;
        self.backlog.push(unit)
    }

    fn push_units(&mut self, count: u64) {
        for _ in 0..count {
            let unit = self.unit(100);
            assert!(self.push(unit));
        }
    }

    fn viewer(&mut self) -> TestViewer {
        self.viewer_of(Format::Mp4)
    }

    fn viewer_of(&mut self, format: Format) -> TestViewer {
        let must_close = Arc::new(Notify::new());
        let origin = ViewerOrigin { id: 7, remote: ([192, 0, 2, 1], 5000).into(), since: now().instant };
        TestViewer { id: self.backlog.add_viewer(origin, format, Arc::clone(&must_close)), must_close }
    }

    fn take(&mut self, viewer: &TestViewer) -> Taken {
        self.backlog.take(viewer.id, Waker::noop())
    }

    /// Returns the number of the viewer's next unit, and how many were skipped.
    fn next(&mut self, viewer: &TestViewer) -> Option<(u64, u64)> {
        match self.take(viewer) {
            Taken::Unit { bytes, skipped, .. } => Some((number_of(&bytes), skipped)),
            Taken::Wait => None,
            Taken::End => panic!("the stream has ended"),
        }
    }

    /// Returns the numbers of all units that the viewer can take now.
    fn all(&mut self, viewer: &TestViewer) -> Vec<u64> {
        std::iter::from_fn(|| self.next(viewer)).map(|(number, _)| number).collect()
    }
}

struct TestViewer {
    id: u64,
    must_close: Arc<Notify>,
}

impl TestViewer {
    fn must_close(&self) -> bool {
        pin!(self.must_close.notified()).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }
}

fn number_of(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().unwrap())
}

#[test]
fn new_viewer_begins_with_the_current_gop_and_its_header() {
    let mut stream = Stream::default();
    let early = stream.viewer();
    assert_eq!(stream.take(&early), Taken::Wait);
    stream.push_units(GOP + 10);
    let viewer = stream.viewer();
    let Taken::Unit { file_header, bytes, skipped, .. } = stream.take(&viewer) else { panic!("no unit") };
    assert_eq!((file_header.as_deref(), number_of(&bytes), skipped), (Some(b"header".as_slice()), GOP, 0));
    assert_eq!(stream.all(&viewer), (GOP + 1..GOP + 10).collect::<Vec<_>>());
    stream.push_units(1);
    let Taken::Unit { file_header, bytes, .. } = stream.take(&viewer) else { panic!("no unit") };
    assert_eq!((file_header, number_of(&bytes)), (None, GOP + 10), "the header comes once");
    let bytes_only = stream.viewer_of(Format::AnnexB);
    let Taken::Unit { file_header, .. } = stream.take(&bytes_only) else { panic!("no unit") };
    assert_eq!(file_header, None);
}

#[test]
fn viewer_that_waits_is_woken_by_the_next_unit() {
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let mut stream = Stream::default();
    let viewer = stream.viewer();
    assert_eq!(stream.backlog.take(viewer.id, &Waker::from(Arc::clone(&count))), Taken::Wait);
    stream.push_units(3);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(stream.all(&viewer), [0, 1, 2]);
}

#[test]
fn viewer_that_is_a_little_late_gets_every_unit() {
    let mut stream = Stream::default();
    let viewer = stream.viewer();
    let mut taken = Vec::new();
    for _ in 0..20 {
        stream.push_units(GOP * 2 / 3);
        taken.extend(stream.all(&viewer));
    }
    assert_eq!(taken, (0..20 * GOP * 2 / 3).collect::<Vec<_>>());
}

#[test]
fn slow_viewer_skips_to_the_newest_idr_and_delays_no_other() {
    let mut stream = Stream::default();
    let (slow, fast) = (stream.viewer(), stream.viewer());
    stream.push_units(3);
    assert_eq!(stream.next(&slow), Some((0, 0)));
    let mut of_fast = stream.all(&fast);
    for _ in 0..3 * GOP {
        stream.push_units(1);
        of_fast.extend(stream.all(&fast));
    }
    assert_eq!(of_fast, (0..3 * GOP + 3).collect::<Vec<_>>());
    assert_eq!(stream.next(&slow), Some((3 * GOP, 3 * GOP - 1)));
    assert_eq!(stream.next(&slow), Some((3 * GOP + 1, 0)));
    assert!(stream.backlog.units.len() as u64 <= 2 * GOP, "old units are not kept for the slow viewer");
}

#[test]
fn viewer_that_never_reads_costs_bounded_memory_and_is_closed_when_memory_is_short() {
    const LARGE: usize = 1 << 20;
    let mut stream = Stream::default();
    let good = stream.viewer();
    let (mut stuck, mut closed, mut of_good): (Vec<(TestViewer, Bytes)>, usize, Vec<u64>) =
        Default::default();
    for _ in 0..100 {
        // Each viewer takes an IDR, of which its connection sends nothing.
        let viewer = stream.viewer();
        for place in 0..GOP {
            let unit = stream.unit(if place == 0 { LARGE } else { 1_000 });
            assert!(stream.push(unit), "the other viewers get every unit");
            if place == 0 {
                let Taken::Unit { bytes, .. } = stream.take(&viewer) else { panic!("no unit") };
                stuck.push((TestViewer { id: viewer.id, must_close: Arc::clone(&viewer.must_close) }, bytes));
            }
            of_good.extend(stream.all(&good));
            assert!(stream.backlog.held_bytes() <= limits::LIVE_BYTES_MAX);
            let before = stuck.len();
            for (viewer, _) in stuck.extract_if(.., |(viewer, _)| viewer.must_close()) {
                assert_eq!(stream.take(&viewer), Taken::End);
                stream.backlog.remove_viewer(viewer.id);
            }
            closed += before - stuck.len();
        }
    }
    assert_eq!(of_good, (0..100 * GOP).collect::<Vec<_>>());
    assert!(!good.must_close() && closed > 80, "{closed} of 100 connections were closed");
}

#[test]
fn units_that_find_no_room_are_refused_until_connections_give_theirs_back() {
    let mut stream = Stream::default();
    let viewer = stream.viewer();
    let mut held = Vec::new();
    while held.len() < 15 {
        let unit = FragmentedUnit { is_start: true, is_idr: true, ..stream.unit(1 << 20) };
        assert!(stream.push(unit));
        let Taken::Unit { bytes, .. } = stream.take(&viewer) else { panic!("no unit") };
        held.push(bytes);
    }
    let unit = stream.unit(1 << 20);
    assert!(!stream.push(unit));
    assert!(stream.backlog.held_bytes() <= limits::LIVE_BYTES_MAX);
    held.clear();
    let unit = FragmentedUnit { is_start: true, is_idr: true, ..stream.unit(1 << 20) };
    assert!(stream.push(unit));
    let Taken::Unit { bytes, .. } = stream.take(&viewer) else { panic!("no unit") };
    assert_eq!(number_of(&bytes), 16);
    drop(bytes);
    stream.backlog.clear();
    assert_eq!(stream.backlog.held_bytes(), 0);
}

#[test]
fn gop_above_the_bound_goes_on_for_viewers_that_keep_up() {
    let mut stream = Stream::default();
    let viewer = stream.viewer();
    let mut taken = Vec::new();
    for number in 0..200 {
        let is_idr = number == 0;
        let unit = FragmentedUnit { is_idr, is_start: is_idr, ..stream.unit(200_000) };
        assert!(stream.push(unit));
        taken.extend(stream.all(&viewer));
        assert!(stream.backlog.held_bytes() <= limits::LIVE_BYTES_MAX);
    }
    assert_eq!(taken, (0..200).collect::<Vec<_>>());
    let joining = stream.viewer();
    assert_eq!(stream.next(&joining), None, "the IDR is no longer kept");
    let unit = FragmentedUnit { is_idr: true, is_start: true, ..stream.unit(1_000) };
    stream.push(unit);
    assert_eq!((stream.next(&joining), stream.next(&viewer)), (Some((200, 0)), Some((200, 0))));
}

#[test]
fn new_parameter_sets_end_an_mp4_and_not_a_byte_stream() {
    let mut stream = Stream::default();
    let (mp4, bytes_only) = (stream.viewer(), stream.viewer_of(Format::AnnexB));
    stream.push_units(1);
    assert_eq!((stream.next(&mp4), stream.next(&bytes_only)), (Some((0, 0)), Some((0, 0))));
    stream.push_units(GOP - 1);
    let unit = FragmentedUnit { file_header: Some(b"other".to_vec()), ..stream.unit(100) };
    assert!(stream.push(unit));
    let units: Vec<u64> = (1..GOP).map(|_| stream.next(&mp4).unwrap().0).collect();
    assert_eq!(units, (1..GOP).collect::<Vec<_>>(), "all units with the old parameter sets");
    assert_eq!((stream.take(&mp4), stream.take(&mp4)), (Taken::End, Taken::End));
    assert_eq!(stream.all(&bytes_only), (1..=GOP).collect::<Vec<_>>());
    let next = stream.viewer();
    let Taken::Unit { file_header, bytes, .. } = stream.take(&next) else { panic!("no unit") };
    assert_eq!((file_header.as_deref(), number_of(&bytes)), (Some(b"other".as_slice()), GOP));
}

#[test]
fn recovery_points_are_starts_only_without_an_idr() {
    let mut stream = Stream::default();
    stream.push_units(GOP);
    let recovery = FragmentedUnit { is_idr: false, is_start: true, ..stream.unit(100) };
    assert!(stream.push(recovery));
    let viewer = stream.viewer();
    assert_eq!(stream.next(&viewer), Some((0, 0)));
    stream.backlog.clear();
    for number in GOP + 1..GOP + 21 {
        let is_start = number.is_multiple_of(10);
        let unit = FragmentedUnit { is_idr: false, is_start, ..stream.unit(100) };
        assert!(stream.push(unit));
    }
    let viewer = stream.viewer();
    assert_eq!(stream.next(&viewer), Some((GOP + 20, 0)), "the newest one");
}

#[test]
fn ended_and_removed_viewers_get_nothing_more() {
    let mut stream = Stream::default();
    let (first, second) = (stream.viewer(), stream.viewer());
    stream.push_units(5);
    stream.backlog.remove_viewer(first.id);
    assert_eq!((stream.take(&first), stream.backlog.viewer_count()), (Taken::End, 1));
    stream.backlog.end_viewers();
    assert_eq!(stream.take(&second), Taken::End);
    let third = stream.viewer();
    assert_eq!(stream.all(&third), [0, 1, 2, 3, 4]);
}

proptest! {
    #![proptest_config(support::properties())]

    /// Each step pushes up to 20 units, some of them large, and lets each viewer take up to that many.
    #[test]
    fn no_viewer_gets_a_unit_without_its_reference(
        steps in prop::collection::vec((1_u64..20, prop::collection::vec(0_usize..25, 3), any::<bool>()), 1..20),
    ) {
        let mut stream = Stream::default();
        let viewers = [stream.viewer(), stream.viewer(), stream.viewer_of(Format::AnnexB)];
        let mut last = [None; 3];
        let mut skipped_count = [0; 3];
        for (count, takes, is_large) in steps {
            for _ in 0..count {
                let unit = stream.unit(if is_large { 150_000 } else { 500 });
                prop_assert!(stream.push(unit));
            }
            prop_assert!(stream.backlog.held_bytes() <= limits::LIVE_BYTES_MAX);
            for (viewer, take_count) in takes.into_iter().enumerate() {
                for _ in 0..take_count {
                    let Some((number, skipped)) = stream.next(&viewers[viewer]) else { break };
                    let follows = last[viewer].is_some_and(|last: u64| number == last + 1);
                    prop_assert!(follows || number.is_multiple_of(GOP), "{number} after {:?}", last[viewer]);
                    prop_assert!(last[viewer].is_none_or(|last| number > last));
                    prop_assert_eq!(skipped, last[viewer].map_or(0, |last| number - last - 1));
                    last[viewer] = Some(number);
                    skipped_count[viewer] += skipped;
                }
            }
        }
    }
}

#[test]
fn state_of_a_viewer_shows_what_it_took_and_skipped_and_how_far_it_is_behind() {
    let mut stream = Stream::default();
    let (slow, fast) = (stream.viewer(), stream.viewer());
    stream.push_units(10);
    assert_eq!(stream.all(&fast).len(), 10);
    stream.next(&slow);
    let state = |stream: &Stream, index: usize| stream.backlog.viewer_states().get(index).cloned().unwrap();
    let before = state(&stream, 0);
    assert_eq!((before.units_taken, before.bytes_taken, before.units_skipped), (1, 100, 0));
    assert_eq!((before.origin.id, before.has_begun, before.lag_90k), (7, true, 9 * INTERVAL_90K));
    assert_eq!((state(&stream, 1).units_taken, state(&stream, 1).lag_90k), (10, 0));
    stream.push_units(200);
    assert_eq!(state(&stream, 0).lag_90k, 209 * INTERVAL_90K, "also if its next unit is no longer kept");
    assert!(stream.next(&slow).is_some());
    assert!(state(&stream, 0).units_skipped > 100);
    let newcomer = stream.viewer();
    assert!(!state(&stream, 2).has_begun);
    stream.backlog.remove_viewer(newcomer.id);
    assert_eq!(stream.backlog.viewer_states().len(), 2);
}
