//! Keeps the current GOP for viewers who join. Units that the ring is about to lose are kept; the rest is fetched from
//! the ring when a viewer needs it. While the ring holds the whole GOP, nothing is kept.
//!
//! A GOP longer than the ring is kept from its IDR on: then the live payloads are kept as they are. Only units that were
//! not kept at once are assembled and packetised a second time.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::base::limits;
use crate::camera::{Camera, CameraStatus, Cursor, Next, UnitView};
use crate::h264::nal::kind;
use crate::h264::{self, Assembler, Packetizer, Payloads, UnitError};
use crate::metrics::WorkerCounters;
use crate::worker::gop::{Gop, UnitInfo};

/// The kept GOP and a second reader of the ring. The reader has its own packetiser, so that what it keeps does not
/// empty the live one's pool.
pub(super) struct GopBackfill {
    camera: Camera,
    gop: Gop,
    assembler: Assembler,
    packetizer: Packetizer,
    payloads: Vec<Arc<Payloads>>,
    /// Slots of the ring.
    slots: u32,
    /// The ring was searched for an IDR since the last loss.
    is_searched: bool,
}

/// Position of the live cursor.
#[derive(Clone, Copy)]
pub(super) struct Live<'a> {
    pub(super) cursor: &'a Cursor,
    /// Sequence number that the cursor reads next.
    pub(super) position: u32,
    pub(super) now_ns: i64,
}

impl GopBackfill {
    pub(super) fn new(camera: Camera) -> Self {
        GopBackfill {
            camera,
            gop: Gop::default(),
            assembler: Assembler::default(),
            packetizer: Packetizer::for_rtp(),
            payloads: Vec::new(),
            slots: 0,
            is_searched: false,
        }
    }

    /// Starts a GOP with the live IDR at `number`, which `assembler` has just assembled.
    pub(super) fn begin(&mut self, number: u32, assembler: &Assembler) {
        self.assembler.copy_from(assembler);
        self.start(number);
    }

    fn start(&mut self, number: u32) {
        self.gop.begin(number);
        self.slots = match self.camera.status() {
            CameraStatus::Attached { layout, .. } => layout.slot_count(),
            CameraStatus::Away { .. } => 0,
        };
    }

    /// The live side lost a unit.
    pub(super) fn handle_loss(&mut self) {
        self.gop.handle_loss();
        self.is_searched = false;
    }

    /// Returns true if [`GopBackfill::keep_up`] will probably keep the unit before `position` at once: packetise it
    /// even without viewers.
    pub(super) fn keeps_at_once(&self, position: u32) -> bool {
        self.gop.next().is_some() && self.reach(position) == 0
    }

    /// Keeps what the ring is about to lose. Called after every live unit; `payloads` are those of `unit`, or none if it
    /// was not packetised.
    pub(super) fn keep_up(
        &mut self,
        live: Live<'_>,
        unit: UnitInfo,
        payloads: &[Arc<Payloads>],
        counters: &WorkerCounters,
    ) {
        let reach = self.reach(live.position);
        while let Some(next) = self.gop.next()
            && live.position.wrapping_sub(next) > reach
        {
            if next == unit.number && !payloads.is_empty() {
                keep(&mut self.gop, unit, payloads, counters);
            } else {
                self.read(next, live, counters);
            }
        }
        counters.gop_bytes.set(self.gop.bytes() as u64);
    }

    /// Units behind the newest that are left in the ring; 0 when every unit is kept at once.
    fn reach(&self, position: u32) -> u32 {
        if self.gop.is_longer_than(self.slots, position) { 0 } else { ring_reach(self.slots) }
    }

    /// Returns the GOP up to the live side's newest unit, after fetching what is missing from the ring. `None` when the
    /// GOP is not complete.
    pub(super) fn fetch(&mut self, live: Live<'_>, counters: &WorkerCounters) -> Option<&Gop> {
        if self.gop.is_broken() && !std::mem::replace(&mut self.is_searched, true) {
            self.find_idr(live);
        }
        while let Some(next) = self.gop.next()
            && next != live.position
        {
            self.read(next, live, counters);
        }
        counters.gop_bytes.set(self.gop.bytes() as u64);
        self.gop.next().map(|_| &self.gop)
    }

    /// Returns what is kept now.
    pub(super) fn gop(&self) -> &Gop {
        &self.gop
    }

    /// Starts the kept GOP at the newest IDR in the ring. Called when the live cursor has not read that IDR, because it
    /// started or continued after a loss behind it.
    fn find_idr(&mut self, live: Live<'_>) {
        let mut nals = SmallVec::new();
        for back in 1.. {
            let number = live.position.wrapping_sub(back);
            let Some(mut cursor) = live.cursor.units_back(back) else { return };
            let Next::Unit(view) = cursor.next(live.now_ns) else { return };
            let is_idr = h264::scan(&view.bytes, &mut nals).is_ok()
                && nals.iter().any(|nal| nal.kind == kind::IDR_SLICE);
            if !view.is_intact() || view.sequence != number {
                return;
            }
            if is_idr {
                return self.start(number);
            }
        }
    }

    /// Reads unit `number` from the ring a second time and keeps it, or drops the GOP.
    fn read(&mut self, number: u32, live: Live<'_>, counters: &WorkerCounters) {
        let back = live.position.wrapping_sub(number);
        let found = live.cursor.units_back(back).map(|mut cursor| cursor.next(live.now_ns));
        match found {
            Some(Next::Unit(view)) if view.sequence == number => self.packetize(&view, counters),
            _ => self.handle_overwritten(counters),
        }
    }

    fn packetize(&mut self, view: &UnitView, counters: &WorkerCounters) {
        self.payloads.clear();
        let kind = match self.assembler.assemble(&view.bytes) {
            Ok(unit) => {
                self.packetizer.packetize(&unit, &mut self.payloads);
                Some((unit.is_idr(), unit.is_reference()))
            }
            Err(UnitError::NoSlice) => None,
            Err(_) => return self.handle_overwritten(counters),
        };
        if !view.is_intact() {
            return self.handle_overwritten(counters);
        }
        match kind {
            None => self.gop.skip(),
            Some((is_idr, is_reference)) => {
                let (number, captured_at_ns) = (view.sequence, view.captured_at_ns);
                let unit = UnitInfo { number, is_idr, is_reference, captured_at_ns };
                keep(&mut self.gop, unit, &self.payloads, counters);
            }
        }
        self.payloads.clear();
    }

    /// The camera overwrote the unit before it was read a second time.
    fn handle_overwritten(&mut self, counters: &WorkerCounters) {
        counters.gops_missed.add(1);
        self.gop.handle_loss();
    }
}

fn keep(gop: &mut Gop, unit: UnitInfo, payloads: &[Arc<Payloads>], counters: &WorkerCounters) {
    if !gop.keep(unit, payloads) {
        counters.gops_too_large.add(1);
    }
}

/// Units behind the newest that a ring of `slots` holds safely even if the worker is delayed; 0 when the ring is too
/// short for that.
fn ring_reach(slots: u32) -> u32 {
    slots.saturating_sub(2 + limits::GOP_MARGIN_UNITS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::camera::{FORMAT_H264, Layout, RingWriter, SlotMetadata, Wake};

    const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];

    /// A camera in the same thread, the live side of a worker, and its backfill.
    struct Bench {
        writer: RingWriter,
        written: u32,
        cursor: Cursor,
        position: u32,
        assembler: Assembler,
        packetizer: Packetizer,
        payloads: Vec<Arc<Payloads>>,
        has_viewers: bool,
        backfill: GopBackfill,
        counters: WorkerCounters,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.writer.unlink();
        }
    }

    impl Bench {
        fn new(layout: Layout) -> Self {
            static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let name = format!("/ss-test-backfill-{}-{number}", std::process::id());
            let writer = RingWriter::create(&name, layout, 33).unwrap();
            let camera = Camera::new(&name, Wake::Poll);
            Bench {
                writer,
                written: 0,
                cursor: camera.cursor(),
                position: 0,
                assembler: Assembler::default(),
                packetizer: Packetizer::for_rtp(),
                payloads: Vec::new(),
                has_viewers: false,
                backfill: GopBackfill::new(camera),
                counters: WorkerCounters::default(),
            }
        }

        /// Only the first IDR carries parameter sets. The slice contains its number.
        fn publish(&mut self, is_idr: bool, bytes: usize) {
            let mut unit = if self.written == 0 { [SPS, PPS].concat() } else { Vec::new() };
            unit.extend_from_slice(&[0, 0, 0, 1, if is_idr { 0x65 } else { 0x41 }, 0xb8]);
            unit.extend(self.written.to_be_bytes().map(|byte| byte | 0x80));
            unit.resize(unit.len() + bytes, 0xa5);
            let metadata = SlotMetadata {
                frame_number: u64::from(self.written),
                timestamp_s: 0,
                timestamp_ns: 0,
                camera_id: 0,
                width: 640,
                height: 352,
                format: FORMAT_H264,
                data_bytes: unit.len() as u64,
            };
            self.writer.publish(&metadata, &unit);
            self.written += 1;
        }

        /// As `Source::poll_unit`.
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
            self.position = view.sequence.wrapping_add(1);
            self.payloads.clear();
            let Ok(unit) = self.assembler.assemble(&view.bytes) else {
                return self.backfill.handle_loss();
            };
            if self.has_viewers || self.backfill.keeps_at_once(self.position) {
                self.packetizer.packetize(&unit, &mut self.payloads);
            }
            let info = UnitInfo {
                number: view.sequence,
                is_idr: unit.is_idr(),
                is_reference: unit.is_reference(),
                captured_at_ns: view.captured_at_ns,
            };
            if info.is_idr {
                self.backfill.begin(view.sequence, &self.assembler);
            }
            let live = Live { cursor: &self.cursor, position: self.position, now_ns: 0 };
            self.backfill.keep_up(live, info, &self.payloads, &self.counters);
        }

        /// Returns true if the newest kept unit has the live payloads themselves.
        fn shares_live_payloads(&self) -> bool {
            let gop = self.backfill.gop();
            let newest = gop.len().checked_sub(1).and_then(|index| gop.at(index));
            newest.is_some_and(|unit| {
                unit.payloads.len() == self.payloads.len()
                    && unit.payloads.iter().zip(&self.payloads).all(|(kept, live)| Arc::ptr_eq(kept, live))
            })
        }

        /// Returns the numbers of the GOP's units, read from their payloads.
        fn numbers(&mut self) -> Option<Vec<u32>> {
            let live = Live { cursor: &self.cursor, position: self.position, now_ns: 0 };
            let gop = self.backfill.fetch(live, &self.counters)?;
            let numbers = (0..gop.len()).map(|index| {
                let kept = gop.at(index).unwrap();
                assert_eq!(kept.info.is_idr, index == 0);
                // Parameter sets come first, as a STAP-A, and only with the IDR.
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
            kept.push(bench.backfill.gop().len());
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
        // The next GOP is expected to be long too, from its IDR on.
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
        // Lapped again, and the ring holds no IDR: the next one starts a GOP.
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

        /// At any pace of the worker, a returned GOP is complete: from an IDR to the newest unit taken.
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
                    let is_idr = bench.written == 0 || (idr == 0 && index == 0);
                    if is_idr {
                        idrs.push(bench.written);
                    }
                    bench.publish(is_idr, 40);
                }
                bench.take();
                if is_fetched && let Some(numbers) = bench.numbers() {
                    let newest = bench.written - 1;
                    let expected: Vec<u32> = (*idrs.last().unwrap()..=newest).collect();
                    prop_assert_eq!(numbers, expected);
                }
            }
        }
    }
}
