//! Tests of the kept GOP.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
use proptest::prelude::*;

use super::*;
use crate::camera::Layout;
use crate::camera::test_camera::TestCamera;

const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];

/// A camera in the same thread, the live side of a worker, and its backfill.
struct Bench {
    camera: TestCamera,
    cursor: Cursor,
    assembler: Assembler,
    packetizer: Packetizer,
    payloads: Vec<Arc<Payloads>>,
    has_viewers: bool,
    backfill: GopBackfill,
    counters: WorkerCounters,
}

impl Bench {
    fn new(layout: Layout) -> Self {
        let ring = TestCamera::new(layout);
        let camera = ring.attach();
        Bench {
            camera: ring,
            cursor: camera.cursor(),
            assembler: Assembler::default(),
            packetizer: Packetizer::for_rtp(),
            payloads: Vec::new(),
            has_viewers: false,
            backfill: GopBackfill::new(camera),
            counters: WorkerCounters::default(),
        }
    }

    /// Publishes a unit with `bytes` filler bytes. Only the first IDR carries parameter sets. The slice contains the
    /// unit's number.
    fn publish(&mut self, is_idr: bool, bytes: usize) {
        let mut unit = if self.camera.written == 0 { [SPS, PPS].concat() } else { Vec::new() };
        unit.extend_from_slice(&[0, 0, 0, 1, if is_idr { 0x65 } else { 0x41 }, 0xb8]);
        unit.extend(self.camera.written.to_be_bytes().map(|byte| byte | 0x80));
        unit.resize(unit.len() + bytes, 0xa5);
        self.camera.publish(&unit);
    }

    /// Reads all new units, in the same way as `Source::poll_unit`.
    fn take(&mut self) {
        loop {
            match self.cursor.next(0) {
                Next::Unit(view) => self.take_unit(&view),
                Next::Empty | Next::Away => return,
                _ => self.backfill.handle_loss(),
            }
        }
    }

    fn take_unit(&mut self, view: &UnitView) {
        self.payloads.clear();
        let Ok(unit) = self.assembler.assemble(&view.bytes) else {
            return self.backfill.handle_loss();
        };
        if self.has_viewers || self.backfill.keeps_at_once(self.cursor.position()) {
            self.packetizer.packetize(&unit, &mut self.payloads);
        }
        let info = UnitInfo {
            number: view.sequence,
            is_idr: unit.is_idr(),
            is_reference: unit.is_reference(),
            captured_at_ns: view.captured_at_ns,
            ..UnitInfo::default()
        };
        if info.is_idr {
            self.backfill.begin(view.sequence, &self.assembler, false);
        }
        let live = Live { cursor: &self.cursor, now_ns: 0 };
        let unit = PacketizedUnit { info, payloads: &self.payloads };
        self.backfill.keep_up(live, Some(&unit), &self.counters);
    }

    /// Returns true if the newest kept unit shares its payloads with the live unit.
    fn shares_live_payloads(&self) -> bool {
        let gop = &self.backfill.gop;
        let newest = gop.len().checked_sub(1).and_then(|index| gop.at(index));
        newest.is_some_and(|unit| {
            unit.payloads.len() == self.payloads.len()
                && unit.payloads.iter().zip(&self.payloads).all(|(kept, live)| Arc::ptr_eq(kept, live))
        })
    }

    /// Returns the numbers of the GOP's units, read from their payloads.
    fn numbers(&mut self) -> Option<Vec<u32>> {
        let live = Live { cursor: &self.cursor, now_ns: 0 };
        if self.backfill.is_search_due() {
            self.backfill.search(live, &mut self.assembler);
        }
        let gop = self.backfill.fetch(live, &self.counters)?;
        let numbers = (0..gop.len()).map(|index| {
            let kept = gop.at(index).unwrap();
            assert_eq!(kept.info.is_idr, index == 0);
            // Only the IDR has parameter sets. They come first, as a STAP-A packet.
            let mut payloads = kept.payloads.iter().flat_map(|payloads| payloads.iter());
            let first = payloads.next().unwrap();
            assert_eq!(first[0] & 0x1f == 24, index == 0, "unit {}", kept.info.number);
            let slice = if index == 0 { payloads.next().unwrap() } else { first };
            let at = if slice[0] & 0x1f == 28 { 3 } else { 2 };
            let number: [u8; 4] = slice[at..at + 4].try_into().unwrap();
            assert_eq!(number, kept.info.number.to_be_bytes().map(|byte| byte | 0x80));
            kept.info.number
        });
        Some(numbers.collect())
    }
}

#[test]
fn short_ring_holds_nothing_safely() {
    assert_eq!((ring_reach(30), ring_reach(6), ring_reach(1)), (20, 0, 0));
}

#[test]
fn units_are_kept_only_when_the_ring_is_about_to_lose_them() {
    let mut bench = Bench::new(Layout::V3);
    let mut kept = Vec::new();
    for number in 0..90 {
        bench.publish(number % 30 == 0, 500);
        bench.take();
        kept.push(bench.backfill.gop.len());
    }
    assert!(kept[..20].iter().chain(&kept[30..50]).all(|units| *units == 0), "{kept:?}");
    assert_eq!(kept[50..60], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert!(bench.counters.gop_bytes.get() > 0);
}

#[test]
fn long_gop_is_kept_by_a_worker_delayed_for_almost_a_ring() {
    let mut bench = Bench::new(Layout::V3);
    for number in 0..32 {
        bench.publish(number == 0, 100);
        bench.take();
    }
    for _ in 0..20 {
        (0..27).for_each(|_| bench.publish(false, 100));
        bench.take();
    }
    assert_eq!(bench.numbers().map(|numbers| numbers.len()), Some(32 + 20 * 27));
    // The next GOP is expected to be long too, so it is kept from its IDR on.
    bench.publish(true, 100);
    bench.take();
    (0..27).for_each(|_| bench.publish(false, 100));
    bench.take();
    assert_eq!(
        (bench.numbers().map(|numbers| numbers.len()), bench.counters.gops_missed.get()),
        (Some(28), 0)
    );
}

#[test]
fn current_gop_is_complete_after_every_unit_on_every_layout() {
    for layout in [Layout::V0, Layout::V1, Layout::V2, Layout::V3, Layout::V3Ring6] {
        // On index-first layouts a reader needs a signal that the newest unit is complete. This test gives none, so
        // that unit is not available yet.
        let unseen = u32::from(matches!(layout, Layout::V0 | Layout::V1 | Layout::V2));
        let mut bench = Bench::new(layout);
        for number in 0..150_u32 {
            bench.publish(number.is_multiple_of(70), 3_000);
            bench.take();
            let Some(newest) = number.checked_sub(unseen) else { continue };
            let expected: Vec<u32> = (newest / 70 * 70..=newest).collect();
            assert_eq!(bench.numbers(), Some(expected), "{layout}, unit {number}");
        }
    }
}

#[test]
fn lost_gop_is_not_returned() {
    let mut bench = Bench::new(Layout::V3Ring6);
    bench.publish(true, 100);
    bench.take();
    (0..20).for_each(|_| bench.publish(false, 100));
    bench.take();
    assert_eq!(bench.numbers(), None, "lapped");
    bench.publish(true, 100);
    bench.publish(false, 100);
    bench.take();
    assert_eq!(bench.numbers(), Some(vec![21, 22]));
}

#[test]
fn worker_that_starts_within_a_gop_finds_its_idr_in_the_ring() {
    let mut bench = Bench::new(Layout::V3);
    (0..12).for_each(|number| bench.publish(number == 0, 100));
    bench.cursor = bench.backfill.camera.cursor();
    bench.publish(false, 100);
    bench.take();
    assert_eq!(bench.numbers(), Some((0..13).collect()));
    (0..50).for_each(|_| {
        bench.publish(false, 100);
        bench.take();
    });
    assert_eq!(bench.numbers(), Some((0..63).collect()), "kept like any other GOP from then on");
}

#[test]
fn lapped_worker_finds_the_newest_idr_in_the_ring() {
    let mut bench = Bench::new(Layout::V3);
    bench.publish(true, 100);
    bench.take();
    (1..=60).for_each(|number| bench.publish(number == 40 || number == 50, 100));
    bench.take();
    assert_eq!(bench.numbers(), Some((50..61).collect()));
    // The worker is lapped again, and the ring holds no IDR. Only the next IDR starts a GOP.
    (0..60).for_each(|_| bench.publish(false, 100));
    bench.take();
    assert_eq!((bench.numbers(), bench.numbers()), (None, None));
    bench.publish(true, 100);
    bench.take();
    assert_eq!(bench.numbers(), Some(vec![121]));
}

#[test]
fn gop_that_is_too_large_is_counted_once_until_the_next_idr() {
    let mut bench = Bench::new(Layout::V3Ring6);
    for number in 0..12 {
        bench.publish(number == 0, limits::GOP_BYTES_MAX / 8);
        bench.take();
    }
    assert_eq!((bench.numbers(), bench.counters.gops_too_large.get()), (None, 1));
    assert_eq!(bench.counters.gop_bytes.get(), 0);
    bench.publish(true, 100);
    bench.take();
    assert_eq!(bench.numbers(), Some(vec![12]));
}

#[test]
fn gop_longer_than_the_ring_keeps_the_live_payloads() {
    for has_viewers in [true, false] {
        let mut bench = Bench::new(Layout::V3);
        bench.has_viewers = has_viewers;
        let mut shared = Vec::new();
        for number in 0..120 {
            bench.publish(number % 60 == 0, 2_000);
            bench.take();
            shared.push(bench.shares_live_payloads());
        }
        assert!(shared[..30].iter().all(|is_shared| !is_shared), "the ring still holds the GOP");
        assert!(shared[31..].iter().all(|is_shared| *is_shared), "{shared:?}");
        assert_eq!(bench.numbers(), Some((60..120).collect()));
    }
}

proptest! {
    #![proptest_config(support::properties_of(40))]

    /// At any pace of the worker, a returned GOP has every unit from its IDR to the newest unit that the worker has
    /// read.
    #[test]
    fn returned_gop_is_always_complete(
        steps in prop::collection::vec((0..9_u32, 0..40_u8, any::<bool>()), 1..120),
        is_short: bool,
        has_viewers: bool,
    ) {
        let mut bench = Bench::new(if is_short { Layout::V3Ring6 } else { Layout::V3 });
        bench.has_viewers = has_viewers;
        let mut idrs = Vec::new();
        for (burst, idr, is_fetched) in steps {
            for index in 0..=burst {
                let is_idr = bench.camera.written == 0 || (idr == 0 && index == 0);
                if is_idr {
                    idrs.push(bench.camera.written);
                }
                bench.publish(is_idr, 40);
            }
            bench.take();
            if is_fetched && let Some(numbers) = bench.numbers() {
                let newest = bench.camera.written - 1;
                let expected: Vec<u32> = (*idrs.last().unwrap()..=newest).collect();
                prop_assert_eq!(numbers, expected);
            }
        }
    }
}

// ---- the kept part -----------------------------------------------------------------------------------

fn unit(number: u32) -> UnitInfo {
    UnitInfo { number, is_reference: true, ..UnitInfo::default() }
}

fn payloads(count: usize, bytes: usize) -> Vec<Arc<Payloads>> {
    (0..count).map(|_| Arc::new(std::iter::once(vec![7; bytes]).collect())).collect()
}

#[test]
fn units_are_kept_in_order_until_the_next_idr() {
    let mut gop = Gop::default();
    assert_eq!((gop.next(), gop.len()), (None, 0), "no IDR yet");
    gop.begin(u32::MAX - 1);
    for (index, number) in [u32::MAX - 1, u32::MAX, 0, 1].into_iter().enumerate() {
        assert_eq!(gop.next(), Some(number));
        assert!(gop.keep(&PacketizedUnit { info: unit(number), payloads: &payloads(index + 1, 100) }));
    }
    assert_eq!(gop.size(), GopSize { units: 4, packets: 10, bytes: 1_000 });
    let third = gop.at(2).unwrap();
    assert_eq!((third.info.number, third.payloads.len(), third.bytes()), (0, 3, 300));
    assert!(gop.at(4).is_none());
    gop.begin(2);
    assert_eq!((gop.next(), gop.size()), (Some(2), GopSize { units: 0, packets: 0, bytes: 0 }));
}

#[test]
fn loss_drops_the_gop_until_the_next_idr() {
    let mut gop = Gop::default();
    gop.begin(5);
    gop.keep(&PacketizedUnit { info: unit(5), payloads: &payloads(1, 10) });
    gop.handle_loss();
    assert_eq!((gop.next(), gop.len(), gop.bytes), (None, 0, 0));
    gop.skip();
    assert_eq!(gop.next(), None);
    gop.begin(9);
    assert_eq!(gop.next(), Some(9));
}

#[test]
fn slot_without_a_picture_is_skipped() {
    let mut gop = Gop::default();
    gop.begin(5);
    gop.skip();
    assert_eq!((gop.next(), gop.len()), (Some(6), 0));
}

#[test]
fn gop_that_is_too_large_is_dropped_until_the_next_idr() {
    let mut gop = Gop::default();
    gop.begin(0);
    let large = payloads(256, limits::GOP_BYTES_MAX / 1_024);
    let kept = (0..10)
        .take_while(|number| gop.keep(&PacketizedUnit { info: unit(*number), payloads: &large }))
        .count();
    assert_eq!((kept, gop.len(), gop.bytes, gop.next()), (4, 0, 0, None));
    gop.begin(10);
    let small = payloads(1, 1);
    let kept = (0..2_000)
        .take_while(|number| gop.keep(&PacketizedUnit { info: unit(*number), payloads: &small }))
        .count();
    assert_eq!((kept, gop.next()), (limits::GOP_UNITS_MAX, None));
}

#[test]
fn next_idr_is_expected_after_the_length_of_the_last_gop() {
    let mut gop = Gop::default();
    gop.begin(100);
    assert_eq!(gop.units_to_idr(110), None, "no earlier GOP to measure");
    gop.begin(130);
    assert_eq!((gop.units_to_idr(130), gop.units_to_idr(158)), (Some(30), Some(2)));
    assert_eq!(gop.units_to_idr(161), None, "already longer than the one before");
    gop.handle_loss();
    gop.begin(190);
    assert_eq!(gop.units_to_idr(191), None, "the GOP before was not complete");
}
