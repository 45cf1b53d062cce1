//! Looks at the newest GOP a second time: keeps what the ring is about to lose, and fetches the rest when a viewer
//! needs it. While the ring holds the whole GOP nothing is kept. May not touch a session.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::base::limits;
use crate::camera::{Camera, CameraStatus, Cursor, Next, UnitView};
use crate::h264::nal::kind;
use crate::h264::{self, Assembler, Packetizer, Payloads, UnitError};
use crate::metrics::WorkerCounters;
use crate::worker::gop::{Gop, UnitInfo};

/// The second look. Its packetiser is its own, so that what is kept does not cost the live one its buffers.
pub(super) struct GopBackfill {
    camera: Camera,
    gop: Gop,
    assembler: Assembler,
    packetizer: Packetizer,
    payloads: Vec<Arc<Payloads>>,
    /// Slots of the ring.
    slots: u32,
    /// The ring was searched for the IDR that the live side did not see, since it last lost something.
    is_searched: bool,
}

/// Where the live cursor stands.
#[derive(Clone, Copy)]
pub(super) struct Live<'a> {
    pub(super) cursor: &'a Cursor,
    /// The unit it reads next.
    pub(super) position: u32,
    pub(super) now_ns: i64,
}

impl GopBackfill {
    pub(super) fn new(camera: Camera) -> Self {
        GopBackfill {
            camera,
            gop: Gop::default(),
            assembler: Assembler::new(),
            packetizer: Packetizer::for_rtp(),
            payloads: Vec::new(),
            slots: 0,
            is_searched: false,
        }
    }

    /// The live side took an IDR as unit `number`; `assembler` has just assembled it.
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
    pub(super) fn lose(&mut self) {
        self.gop.lose();
        self.is_searched = false;
    }

    /// Keeps what the ring is about to lose. Called after every unit of the live side.
    pub(super) fn keep_up(&mut self, live: Live<'_>, counters: &WorkerCounters) {
        let reach = if self.gop.is_longer_than(self.slots, live.position) { 0 } else { reach(self.slots) };
        while let Some(next) = self.gop.next()
            && live.position.wrapping_sub(next) > reach
        {
            self.look_at(next, live, counters);
        }
        counters.gop_bytes.set(self.gop.bytes() as u64);
    }

    /// The GOP, everything up to the live side's newest unit fetched; `None` where it cannot be given.
    pub(super) fn fetch(&mut self, live: Live<'_>, counters: &WorkerCounters) -> Option<&Gop> {
        if self.gop.is_broken() && !std::mem::replace(&mut self.is_searched, true) {
            self.search(live);
        }
        while let Some(next) = self.gop.next()
            && next != live.position
        {
            self.look_at(next, live, counters);
        }
        counters.gop_bytes.set(self.gop.bytes() as u64);
        self.gop.next().map(|_| &self.gop)
    }

    /// What is kept now.
    pub(super) fn gop(&self) -> &Gop {
        &self.gop
    }

    /// Begins at the newest IDR that is safely in the ring: the live side began, or went on, after it.
    fn search(&mut self, live: Live<'_>) {
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

    /// Moves on by exactly one unit, or gives the GOP up.
    fn look_at(&mut self, number: u32, live: Live<'_>, counters: &WorkerCounters) {
        let back = live.position.wrapping_sub(number);
        let found = live.cursor.units_back(back).map(|mut cursor| cursor.next(live.now_ns));
        match found {
            Some(Next::Unit(view)) if view.sequence == number => self.look(&view, counters),
            _ => self.miss(counters),
        }
    }

    fn look(&mut self, view: &UnitView, counters: &WorkerCounters) {
        self.payloads.clear();
        let kind = match self.assembler.assemble(&view.bytes) {
            Ok(unit) => {
                self.packetizer.packetize(&unit, &mut self.payloads);
                Some((unit.is_idr(), unit.is_reference()))
            }
            Err(UnitError::NoSlice) => None,
            Err(_) => return self.miss(counters),
        };
        if !view.is_intact() {
            return self.miss(counters);
        }
        match kind {
            None => self.gop.pass(),
            Some((is_idr, is_reference)) => {
                let (number, captured_at_ns) = (view.sequence, view.captured_at_ns);
                let unit = UnitInfo { number, is_idr, is_reference, captured_at_ns };
                if !self.gop.keep(unit, &self.payloads) {
                    counters.gops_too_large.add(1);
                }
            }
        }
        self.payloads.clear();
    }

    /// The camera was there before the second look.
    fn miss(&mut self, counters: &WorkerCounters) {
        counters.gops_missed.add(1);
        self.gop.lose();
    }
}

/// Units behind the newest that a ring of `slots` is trusted to hold while the worker may be held up; 0 where the
/// ring is too short for that.
fn reach(slots: u32) -> u32 {
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

    /// A camera in the same thread, the live side of a worker, and its second look.
    struct Bench {
        writer: RingWriter,
        written: u32,
        cursor: Cursor,
        position: u32,
        assembler: Assembler,
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
                assembler: Assembler::new(),
                backfill: GopBackfill::new(camera),
                counters: WorkerCounters::default(),
            }
        }

        /// Only the first IDR of all carries parameter sets. The slice says its number.
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

        /// As `Source::take`.
        fn take(&mut self) {
            loop {
                match self.cursor.next(0) {
                    Next::Unit(view) => {
                        self.position = view.sequence.wrapping_add(1);
                        match self.assembler.assemble(&view.bytes).map(|unit| unit.is_idr()) {
                            Ok(true) => self.backfill.begin(view.sequence, &self.assembler),
                            Ok(false) => {}
                            Err(_) => self.backfill.lose(),
                        }
                        let live = Live { cursor: &self.cursor, position: self.position, now_ns: 0 };
                        self.backfill.keep_up(live, &self.counters);
                    }
                    Next::Empty | Next::Away => return,
                    _ => self.backfill.lose(),
                }
            }
        }

        /// Numbers of the GOP's units, as their payloads say.
        fn numbers(&mut self) -> Option<Vec<u32>> {
            let live = Live { cursor: &self.cursor, position: self.position, now_ns: 0 };
            let gop = self.backfill.fetch(live, &self.counters)?;
            let numbers = (0..gop.len()).map(|index| {
                let kept = gop.at(index).unwrap();
                assert_eq!(kept.unit.is_idr, index == 0);
                // Parameter sets come first, as a STAP-A, and only with the IDR.
                let mut payloads = kept.payloads.iter().flat_map(|payloads| payloads.iter());
                let first = payloads.next().unwrap();
                assert_eq!(first[0] & 0x1f == 24, index == 0, "unit {}", kept.unit.number);
                let slice = if index == 0 { payloads.next().unwrap() } else { first };
                let at = if slice[0] & 0x1f == 28 { 3 } else { 2 };
                let number: [u8; 4] = slice[at..at + 4].try_into().unwrap();
                assert_eq!(number, kept.unit.number.to_be_bytes().map(|byte| byte | 0x80));
                kept.unit.number
            });
            Some(numbers.collect())
        }
    }

    #[test]
    fn a_short_ring_is_trusted_with_nothing() {
        assert_eq!((reach(30), reach(6), reach(1)), (20, 0, 0));
    }

    #[test]
    fn nothing_is_kept_while_the_ring_suffices_and_little_at_the_end_of_its_reach() {
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
    fn a_long_gop_is_kept_even_by_a_worker_that_is_held_up_for_nearly_a_ring() {
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
        // The next one is expected to be long too, from its beginning.
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
    fn the_gop_so_far_is_to_be_had_at_every_moment_on_every_ring() {
        for layout in [Layout::V0, Layout::V1, Layout::V2, Layout::V3, Layout::V3Ring6] {
            // Index-first layouts: nobody says here that the newest unit is whole.
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
    fn a_gop_that_was_lost_is_not_given() {
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
    fn a_worker_that_comes_in_the_middle_of_a_gop_finds_its_idr_in_the_ring() {
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
        assert_eq!(bench.numbers(), Some((0..63).collect()), "kept like any other from then on");
    }

    #[test]
    fn a_worker_that_was_lapped_finds_the_newest_idr_in_the_ring() {
        let mut bench = Bench::new(Layout::V3);
        bench.publish(true, 100);
        bench.take();
        (1..=60).for_each(|number| bench.publish(number == 40 || number == 50, 100));
        bench.take();
        assert_eq!(bench.numbers(), Some((50..61).collect()));
        // Once more, and the ring holds no IDR: nothing is given before the next.
        (0..60).for_each(|_| bench.publish(false, 100));
        bench.take();
        assert_eq!((bench.numbers(), bench.numbers()), (None, None));
        bench.publish(true, 100);
        bench.take();
        assert_eq!(bench.numbers(), Some(vec![121]));
    }

    #[test]
    fn a_gop_that_is_too_large_is_counted_once_and_over_with_the_next_idr() {
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

    proptest! {
        #![proptest_config(support::properties_of(40))]

        /// Whatever the pace of the worker, what it gives is whole: from an IDR to the newest unit it took.
        #[test]
        fn what_is_given_is_always_whole(
            steps in prop::collection::vec((0..9_u32, 0..40_u8, any::<bool>()), 1..120),
            is_short: bool,
        ) {
            let mut bench = Bench::new(if is_short { Layout::V3Ring6 } else { Layout::V3 });
            let mut idrs = Vec::new();
            for (burst, idr, looks) in steps {
                for index in 0..=burst {
                    let is_idr = bench.written == 0 || (idr == 0 && index == 0);
                    if is_idr {
                        idrs.push(bench.written);
                    }
                    bench.publish(is_idr, 40);
                }
                bench.take();
                if looks && let Some(numbers) = bench.numbers() {
                    let newest = bench.written - 1;
                    let expected: Vec<u32> = (*idrs.last().unwrap()..=newest).collect();
                    prop_assert_eq!(numbers, expected);
                }
            }
        }
    }
}
