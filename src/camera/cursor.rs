//! One consumer's place in the ring: the next unit, lapped, restarted, a few units back.
//! May not wait, and never holds the camera: the ring is written whether a cursor follows or not.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bytes::Bytes;

pub use super::layout::MetadataError as Rejection;
use super::layout::SlotMetadata;
use super::source::{Attachment, Camera};
use crate::limits::CAPTURE_AGE_MAX_NS;

/// Nanoseconds of CLOCK_MONOTONIC.
pub type MonotonicNs = i64;

/// One access unit borrowed from the ring. Read it, then ask [`UnitView::is_intact`] whether what was read
/// may be used.
#[derive(Clone, Debug)]
pub struct UnitView {
    /// The access unit in place, Annex B. Slices and clones share the mapping; none allocates.
    pub bytes: Bytes,
    /// The unit's number in the ring, wrapping.
    pub sequence: u32,
    /// The camera's own count of pictures.
    pub frame_number: u64,
    /// Capture time as CLOCK_REALTIME nanoseconds, whichever clock the camera used; `None` if it is near
    /// neither clock.
    pub captured_at_ns: Option<i64>,
    /// Capture time as CLOCK_MONOTONIC nanoseconds, never after the `now_ns` it was read at, which it is
    /// when the capture time is unusable.
    pub captured_monotonic_ns: MonotonicNs,
    /// Width in pixels as the slot says.
    pub width: u32,
    /// Height in pixels as the slot says.
    pub height: u32,
    /// +1 for every attach and restart of the camera.
    pub epoch: u32,
    ticket: Arc<Attachment>,
}

impl UnitView {
    /// Whether everything read from `bytes` before this call was this unit. Call it after the last read;
    /// what was read is to be thrown away if not. A `false` is counted (`torn`).
    ///
    /// The margin is one slot more than it seems to need: seeing a byte of the unit that reuses the slot
    /// implies only an index one below that unit's own.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        fence(Ordering::Acquire);
        let mapping = &self.ticket.mapping;
        let is_in_place = is_safe(self.sequence, mapping.write_index(), mapping.layout().slot_count());
        let is_intact = is_in_place && self.ticket.is_current();
        if !is_intact {
            self.ticket.counters.torn.fetch_add(1, Ordering::Relaxed);
        }
        is_intact
    }
}

/// What a cursor finds.
#[derive(Clone, Debug)]
pub enum Next {
    /// The next unit.
    Unit(UnitView),
    /// Nothing new.
    Empty,
    /// The camera overtook the cursor, which jumped to the newest unit. Told once.
    Lapped {
        /// Units that will not be seen.
        missed_units: u32,
    },
    /// One slot was skipped.
    Rejected(Rejection),
    /// The camera began again: expect a new stream.
    Restarted,
    /// No camera is mapped.
    Away,
}

/// One consumer's place in the ring.
#[derive(Clone, Debug)]
pub struct Cursor {
    camera: Camera,
    generation: u64,
    attachment: Option<Arc<Attachment>>,
    /// The unit to be read next.
    position: u32,
    last_frame_number: Option<u64>,
}

impl Cursor {
    pub(super) fn new(camera: Camera) -> Cursor {
        let (generation, attachment) = camera.place();
        let position = attachment.as_ref().map_or(0, |attachment| attachment.mapping.write_index());
        Cursor { camera, generation, attachment, position, last_frame_number: None }
    }

    /// Finds the next unit. Never blocks; call it until `Empty` or `Away`.
    pub fn next(&mut self, now_ns: MonotonicNs) -> Next {
        if self.follow_camera() {
            return Next::Restarted;
        }
        let Some(attachment) = self.attachment.clone() else { return Next::Away };
        if attachment.mapping.is_lost() {
            return Next::Away;
        }
        let available = attachment.available();
        let index = attachment.mapping.write_index();
        if ahead(index, self.position) < 0 {
            self.camera.restart(&attachment, now_ns);
            return if self.follow_camera() { Next::Restarted } else { Next::Empty };
        }
        if ahead(available, self.position) <= 0 {
            return Next::Empty;
        }
        let metadata = attachment.mapping.metadata(self.position);
        let index = attachment.mapping.write_index();
        if !is_safe(self.position, index, attachment.mapping.layout().slot_count()) {
            return self.jump(&attachment);
        }
        self.take(attachment, &metadata, now_ns)
    }

    /// Units published and not yet read.
    #[must_use]
    pub fn lag_slots(&self) -> u32 {
        let lag =
            self.attachment.as_ref().map_or(0, |attachment| ahead(attachment.available(), self.position));
        u32::try_from(lag).unwrap_or(0)
    }

    /// Units begun and not yet read; those that are not whole, or not yet known to be, are among them.
    #[must_use]
    pub fn begun_slots(&self) -> u32 {
        let begun = self
            .attachment
            .as_ref()
            .map_or(0, |attachment| ahead(attachment.mapping.write_index(), self.position));
        u32::try_from(begun).unwrap_or(0)
    }

    /// A second cursor `count` units before this one, for pre-roll and instant start; `None` if that unit
    /// is not safely in the ring or belongs to an earlier run of the camera.
    #[must_use]
    pub fn units_back(&self, count: u32) -> Option<Cursor> {
        let attachment = self.attachment.as_ref()?;
        let position = self.position.checked_sub(count).filter(|position| *position >= attachment.floor)?;
        let mapping = &attachment.mapping;
        let index = mapping.write_index();
        let is_there = position == index || is_safe(position, index, mapping.layout().slot_count());
        (is_there && attachment.is_current()).then(|| Cursor {
            position,
            last_frame_number: None,
            ..self.clone()
        })
    }

    /// Moves to the camera's current run; says whether there is a new one.
    fn follow_camera(&mut self) -> bool {
        if self.camera.generation() == self.generation {
            return false;
        }
        let (generation, attachment) = self.camera.place();
        self.generation = generation;
        self.last_frame_number = None;
        self.attachment = attachment;
        if let Some(attachment) = &self.attachment {
            self.position = attachment.start;
        }
        self.attachment.is_some()
    }

    /// The slot of this cursor's unit is being written again: go on with the newest whole unit.
    fn jump(&mut self, attachment: &Attachment) -> Next {
        let newest = attachment.available().wrapping_sub(1);
        let missed_units = u32::try_from(ahead(newest, self.position)).unwrap_or(0);
        self.position = newest;
        self.last_frame_number = None;
        attachment.counters.lapped_units.fetch_add(u64::from(missed_units), Ordering::Relaxed);
        Next::Lapped { missed_units }
    }

    fn take(&mut self, attachment: Arc<Attachment>, metadata: &SlotMetadata, now_ns: MonotonicNs) -> Next {
        let sequence = self.position;
        if let Err(rejection) = metadata.validate() {
            self.position = sequence.wrapping_add(1);
            self.camera.note_rejection(rejection, now_ns);
            return Next::Rejected(rejection);
        }
        // A camera that goes on in the same segment without resetting the index counts its pictures anew.
        if self.last_frame_number.take().is_some_and(|last| metadata.frame_number < last) {
            return Next::Restarted;
        }
        self.position = sequence.wrapping_add(1);
        self.last_frame_number = Some(metadata.frame_number);
        let bytes = usize::try_from(metadata.data_bytes).unwrap_or(usize::MAX);
        let captured = Captured::find(metadata, now_ns, self.camera.realtime_offset_ns());
        Next::Unit(UnitView {
            bytes: attachment.mapping.slot_bytes(sequence, bytes),
            sequence,
            frame_number: metadata.frame_number,
            captured_at_ns: captured.realtime_ns,
            captured_monotonic_ns: captured.monotonic_ns,
            width: metadata.width.unsigned_abs(),
            height: metadata.height.unsigned_abs(),
            epoch: attachment.epoch,
            ticket: attachment,
        })
    }
}

/// How far `a` is ahead of `b`, both wrapping; negative when it is behind.
pub(super) fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// Whether the slot of unit `unit` certainly holds it when the index is `index`.
///
/// The next unit in the same slot is `unit + slots`, but where the index wraps: the slot is the unit's
/// number modulo the ring's size, and 2^32 is no multiple of that. There the numbering of slots breaks off
/// and begins again with slot 0.
pub(super) fn is_safe(unit: u32, index: u32, slots: u32) -> bool {
    let next_in_slot = unit.checked_add(slots).unwrap_or(unit % slots);
    let age = index.wrapping_sub(unit);
    // 0 is not published, or the index was reset; huge is an index that jumped back.
    age >= 1 && age < next_in_slot.wrapping_sub(unit).saturating_sub(1)
}

/// A capture time on both clocks.
#[derive(Debug, PartialEq, Eq)]
struct Captured {
    realtime_ns: Option<i64>,
    monotonic_ns: MonotonicNs,
}

impl Captured {
    /// The daemon's header promises CLOCK_MONOTONIC, the daemon writes CLOCK_REALTIME: the time is of
    /// that clock whose present it is near.
    fn find(metadata: &SlotMetadata, now_ns: MonotonicNs, realtime_offset_ns: i64) -> Captured {
        let time_ns = metadata
            .timestamp_s
            .checked_mul(1_000_000_000)
            .and_then(|ns| ns.checked_add(metadata.timestamp_ns))
            .filter(|_| (0..1_000_000_000).contains(&metadata.timestamp_ns));
        let is_near =
            |clock_ns: i64| time_ns.filter(|ns| ns.abs_diff(clock_ns) < CAPTURE_AGE_MAX_NS.unsigned_abs());
        let monotonic_ns = is_near(now_ns.saturating_add(realtime_offset_ns))
            .map(|ns| ns.saturating_sub(realtime_offset_ns))
            .or_else(|| is_near(now_ns))
            .map(|ns| ns.min(now_ns));
        Captured {
            realtime_ns: monotonic_ns.map(|ns| ns.saturating_add(realtime_offset_ns)),
            monotonic_ns: monotonic_ns.unwrap_or(now_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;
    use crate::camera::layout::{FORMAT_H264, Layout};
    use crate::camera::source::Wake;
    use crate::camera::test_ring::TestRing;
    use crate::camera::watch::Watch;

    const MS: i64 = 1_000_000;

    fn attach(ring: &TestRing) -> (Camera, Cursor) {
        let camera = Camera::new(ring.name(), Wake::Poll);
        let cursor = camera.cursor();
        (camera, cursor)
    }

    fn unit(next: Next) -> UnitView {
        match next {
            Next::Unit(unit) => unit,
            other => panic!("no unit but {other:?}"),
        }
    }

    #[test]
    fn every_unit_comes_once_and_in_order_on_every_layout() {
        for layout in Layout::ALL {
            let mut ring = TestRing::new(layout);
            ring.publish(b"published before");
            let (camera, mut cursor) = attach(&ring);
            let mut watch = Watch::new(camera);
            for step in 0..30 {
                watch.look(step * 20 * MS, None);
            }
            for i in 1..100_u8 {
                assert!(matches!(cursor.next(0), Next::Empty), "{layout}");
                let now_ns = (600 + i64::from(i) * 33) * MS;
                watch.look(now_ns - 10 * MS, None);
                ring.publish(&vec![i; 1000 + usize::from(i)]);
                for half_ms in 0..4 {
                    watch.look(now_ns + half_ms * MS / 2, None);
                }
                let view = unit(cursor.next(now_ns));
                assert_eq!(view.sequence, u32::from(i), "{layout}");
                assert_eq!(view.frame_number, u64::from(i), "{layout}");
                assert_eq!((view.width, view.height, view.epoch), (1280, 720, 1), "{layout}");
                assert_eq!(view.bytes, vec![i; 1000 + usize::from(i)], "{layout}");
                assert!(view.is_intact(), "{layout}");
            }
        }
    }

    #[test]
    fn several_cursors_read_at_their_own_pace() {
        let mut ring = TestRing::new(Layout::V3);
        let (camera, mut eager) = attach(&ring);
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
        assert!(matches!(late.next(0), Next::Empty), "begins with the next unit");
    }

    #[test]
    fn a_lapped_cursor_is_told_once_and_goes_on_with_the_newest() {
        for (layout, slots) in [(Layout::V3, 30), (Layout::V3Ring6, 6), (Layout::V0, 30)] {
            let mut ring = TestRing::new(layout);
            let (camera, mut cursor) = attach(&ring);
            (0..slots - 2).for_each(|_| ring.publish(b"still safe"));
            assert_eq!(unit(cursor.next(0)).sequence, 0, "{layout}");
            (0..100).for_each(|_| ring.publish(b"new"));
            // On v0 nobody says here that the newest unit is whole.
            let newest = ring.index - if layout == Layout::V0 { 2 } else { 1 };
            let Next::Lapped { missed_units } = cursor.next(0) else { panic!("{layout}") };
            assert_eq!(missed_units, newest - 1, "{layout}: units 1 to newest - 1");
            assert_eq!(unit(cursor.next(0)).sequence, newest, "{layout}");
            assert!(matches!(cursor.next(0), Next::Empty), "{layout}");
            let lapped = camera.counters().lapped_units.load(Ordering::Relaxed);
            assert_eq!(lapped, u64::from(missed_units), "{layout}");
        }
    }

    #[test]
    fn a_view_is_intact_until_its_slot_may_be_written_again() {
        for (layout, slots) in [(Layout::V3, 30), (Layout::V3Ring6, 6)] {
            let mut ring = TestRing::new(layout);
            let (camera, mut cursor) = attach(&ring);
            ring.publish(b"held");
            let view = unit(cursor.next(0));
            for age in 1..slots - 1 {
                assert!(view.is_intact(), "{layout}, age {age}");
                ring.publish(b"another");
            }
            assert!(!view.is_intact(), "{layout}: ring - 1 more: the camera may be writing this slot");
            assert_eq!(
                view.bytes,
                b"held"[..],
                "{layout}: not overwritten yet: the check has a slot to spare"
            );
            assert_eq!(camera.counters().torn.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn a_unit_in_the_middle_of_its_copy_is_not_returned() {
        let mut ring = TestRing::new(Layout::V0);
        (0..40).for_each(|i| ring.publish(&[i; 1000]));
        let (camera, mut cursor) = attach(&ring);
        let mut watch = Watch::new(camera);
        for step in 0..30 {
            watch.look(step * 20 * MS, None); // the newest settles, the next slot is scouted
        }
        let sequence = ring.begin();
        for step in 0..20_usize {
            if step == 3 {
                ring.write_metadata(sequence, &ring.metadata(&[99; 1000]));
            }
            ring.write_data(sequence, 0, &vec![99; 940 + step]);
            watch.look((600 + step as i64) * MS, None);
            assert!(matches!(cursor.next(0), Next::Empty), "step {step}");
        }
        ring.write_data(sequence, 0, &[99; 1000]);
        watch.look(621 * MS, None);
        assert!(matches!(cursor.next(0), Next::Empty), "one look is not enough");
        watch.look(622 * MS, None);
        assert_eq!(unit(cursor.next(0)).bytes, [99; 1000][..]);
    }

    #[test]
    fn a_unit_is_whole_when_the_next_one_is_begun() {
        let mut ring = TestRing::new(Layout::V1);
        let (_camera, mut cursor) = attach(&ring);
        ring.publish(b"first");
        assert!(matches!(cursor.next(0), Next::Empty), "nobody says it is whole");
        ring.begin();
        assert_eq!(unit(cursor.next(0)).bytes, b"first"[..]);
        assert!(matches!(cursor.next(0), Next::Empty));
    }

    #[test]
    fn an_index_that_is_reset_is_a_restart_and_starts_with_its_first_unit() {
        for old_units in [1, 5, 500] {
            let mut ring = TestRing::new(Layout::V3);
            let (camera, mut cursor) = attach(&ring);
            let mut other = camera.cursor();
            for _ in 0..old_units {
                ring.publish(b"old");
                unit(cursor.next(0));
            }
            let held = unit(cursor.units_back(1).unwrap().next(0));
            assert!(held.is_intact());
            ring.set_index(0);
            ring.frame_number = 0;
            assert!(!held.is_intact(), "after {old_units}: index 0 vouches for no unit");
            assert!(matches!(cursor.next(0), Next::Restarted), "after {old_units}");
            assert!(matches!(cursor.next(0), Next::Empty), "after {old_units}: told once");
            (0..old_units.min(28)).for_each(|_| ring.publish(b"new"));
            assert!(!held.is_intact(), "after {old_units}: another run in the same slots");
            assert!(matches!(other.next(0), Next::Restarted), "every cursor is told");
            for cursor in [&mut cursor, &mut other] {
                let view = unit(cursor.next(0));
                assert_eq!((view.sequence, view.epoch, &view.bytes[..]), (0, 2, &b"new"[..]));
            }
            assert_eq!(camera.counters().restarted.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn frame_numbers_that_begin_again_are_a_restart() {
        let mut ring = TestRing::new(Layout::V3);
        ring.frame_number = 700;
        let (_camera, mut cursor) = attach(&ring);
        ring.publish(b"old");
        unit(cursor.next(0));
        ring.frame_number = 0;
        ring.publish(b"new");
        assert!(matches!(cursor.next(0), Next::Restarted));
        assert_eq!(unit(cursor.next(0)).bytes, b"new"[..]);
    }

    #[test]
    fn the_index_wraps_without_a_loss() {
        for layout in [Layout::V3, Layout::V3Ring6] {
            let mut ring = TestRing::new(layout);
            ring.set_index(u32::MAX - 40);
            let (camera, mut cursor) = attach(&ring);
            for i in 0..100_u32 {
                ring.publish(&i.to_ne_bytes());
                let view = unit(cursor.next(0));
                assert_eq!(view.sequence, (u32::MAX - 40).wrapping_add(i), "{layout}");
                assert_eq!(view.bytes, i.to_ne_bytes()[..], "{layout}");
                assert!(view.is_intact(), "{layout}");
            }
            assert_eq!(camera.counters().restarted.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_few_units_back_can_be_read_again() {
        let mut ring = TestRing::new(Layout::V3);
        let (_camera, mut cursor) = attach(&ring);
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
        assert!(cursor.units_back(29).is_none(), "that slot may be written");
        assert!(matches!(cursor.units_back(0).unwrap().next(0), Next::Empty));
        let fresh = TestRing::new(Layout::V3);
        let (_camera, cursor) = attach(&fresh);
        assert!(cursor.units_back(1).is_none(), "before the first unit there is none");
    }

    #[test]
    fn slots_that_lie_are_skipped_and_counted() {
        let mut ring = TestRing::new(Layout::V3);
        let (camera, mut cursor) = attach(&ring);
        let good = ring.metadata(b"data");
        ring.publish_as(&SlotMetadata { format: 1, ..good }, b"data");
        ring.publish_as(&SlotMetadata { data_bytes: 1 << 40, ..good }, b"data");
        ring.publish_as(&SlotMetadata { height: -1, ..good }, b"data");
        ring.publish_as(&SlotMetadata { format: FORMAT_H264, ..good }, b"data");
        assert!(matches!(cursor.next(0), Next::Rejected(Rejection::NotH264 { format: 1 })));
        assert!(matches!(cursor.next(0), Next::Rejected(Rejection::DataBytes { .. })));
        assert!(matches!(cursor.next(0), Next::Rejected(Rejection::Dimensions { .. })));
        assert_eq!(unit(cursor.next(0)).bytes, b"data"[..]);
        let counters = camera.counters();
        for counter in
            [&counters.rejected_format, &counters.rejected_data_bytes, &counters.rejected_dimensions]
        {
            assert_eq!(counter.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn capture_times_of_either_clock_become_both() {
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
        let lie = SlotMetadata { timestamp_s: i64::MAX, timestamp_ns: i64::MIN, ..at(0) };
        assert_eq!(Captured::find(&lie, now_ns, OFFSET), unusable);
        let early = Captured::find(&at(now_ns + 5 * MS), now_ns, OFFSET);
        assert_eq!(early.monotonic_ns, now_ns, "no unit was captured later than it is read");
    }

    proptest! {
        #[test]
        fn a_safe_unit_is_one_whose_slot_no_unit_near_the_index_uses(
            unit in prop_oneof![0..100_u32, (u32::MAX - 100)..=u32::MAX, any::<u32>()],
            age in 0..100_u32,
            slots in prop_oneof![Just(6_u32), Just(30_u32)],
        ) {
            // Naive: published, and neither the unit being written nor the one after it nor any since
            // then shares the slot.
            let index = unit.wrapping_add(age);
            let naive = age >= 1 && (1..=age + 1).all(|i| unit.wrapping_add(i) % slots != unit % slots);
            prop_assert_eq!(is_safe(unit, index, slots), naive);
        }
    }

    #[test]
    fn nothing_torn_passes_beside_a_camera_at_full_speed() {
        for layout in [Layout::V3, Layout::V3Ring6, Layout::V0] {
            let mut ring = TestRing::new(layout);
            let (camera, cursor) = attach(&ring);
            let done = &AtomicBool::new(false);
            std::thread::scope(|scope| {
                let readers = [(cursor, 0), (camera.cursor(), 3)];
                let readers =
                    readers.map(|(cursor, pause)| scope.spawn(move || read_all(cursor, pause, done)));
                for i in 0..60_000_u32 {
                    ring.publish(&i.to_ne_bytes().repeat(1 + i as usize % 3000));
                    if i % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
                done.store(true, Ordering::Release);
                for reader in readers {
                    assert!(reader.join().unwrap() > 0, "{layout}: some units were read");
                }
            });
        }
    }

    /// Reads until `done`; every unit that is intact must be of one piece. Returns how many were.
    fn read_all(mut cursor: Cursor, pause: u32, done: &AtomicBool) -> u32 {
        let mut intact = 0;
        loop {
            let is_last = done.load(Ordering::Acquire);
            match cursor.next(0) {
                Next::Unit(view) => {
                    let first = view.bytes.slice(..4);
                    (0..pause).for_each(|_| std::thread::yield_now());
                    let whole = view.bytes.chunks_exact(4).all(|word| word == first);
                    let number = u32::from_ne_bytes(first[..].try_into().unwrap());
                    if view.is_intact() {
                        assert!(whole, "unit {} is torn", view.sequence);
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
}
