//! One consumer's place in the ring: the next unit, lapped, restarted, a few units back.
//! May not wait, and never holds the camera: the ring is written whether a cursor follows or not.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bytes::Bytes;

pub use super::layout::MetadataError as Rejection;
use super::layout::SlotMetadata;
use super::lease_ring::{Found, LeaseRing, LeasedUnit};
use super::source::{Attachment, Camera};
use crate::base::limits::CAPTURE_AGE_MAX_NS;

/// Nanoseconds of CLOCK_MONOTONIC.
pub type MonotonicNs = i64;

/// One access unit borrowed from the ring. Read it, then ask [`UnitView::is_intact`] whether what was read
/// may be used. On a lease ring the slot is leased until the last clone or slice of `bytes` is dropped.
#[derive(Clone, Debug)]
pub struct UnitView {
    /// The access unit in place, Annex B. Slices and clones share the mapping or the lease; none allocates.
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
    ///
    /// On a lease ring nothing is overwritten while it is leased: `false` only says that the camera began anew
    /// or its segment was cut, and counts nothing.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        fence(Ordering::Acquire);
        let mapping = &self.ticket.mapping;
        if mapping.leases().is_some() {
            return !mapping.is_lost() && self.ticket.has_its_writer();
        }
        let is_in_place = is_safe(self.sequence, mapping.write_index(), mapping.layout().slot_count());
        let is_intact = is_in_place && self.ticket.is_current();
        if !is_intact {
            self.ticket.counters.torn.add_shared(1);
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
        if !attachment.has_its_writer() {
            self.camera.restart(&attachment, now_ns);
            return if self.follow_camera() { Next::Restarted } else { Next::Empty };
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
        if let Some(ring) = attachment.mapping.leases().cloned() {
            return self.next_leased(attachment, &ring, now_ns);
        }
        let metadata = attachment.mapping.metadata(self.position);
        let index = attachment.mapping.write_index();
        if !is_safe(self.position, index, attachment.mapping.layout().slot_count()) {
            let newest = attachment.available().wrapping_sub(1);
            return self.jump(&attachment, newest);
        }
        let bytes = usize::try_from(metadata.data_bytes).unwrap_or(usize::MAX);
        let mapping = Arc::clone(&attachment.mapping);
        self.take(attachment, &metadata, now_ns, |unit| mapping.slot_bytes(unit, bytes))
    }

    fn next_leased(
        &mut self,
        attachment: Arc<Attachment>,
        ring: &Arc<LeaseRing>,
        now_ns: MonotonicNs,
    ) -> Next {
        match ring.lease(self.position) {
            Found::Unit(LeasedUnit { metadata, slot }) => {
                let bytes = usize::try_from(metadata.data_bytes).unwrap_or(usize::MAX);
                if bytes > slot.len() {
                    let rejection = Rejection::DataBytes { data_bytes: metadata.data_bytes };
                    return self.reject(rejection, now_ns);
                }
                self.take(attachment, &metadata, now_ns, |_| slot.slice(..bytes))
            }
            Found::Refused => {
                attachment.counters.leases_refused.add_shared(1);
                Next::Empty
            }
            Found::Gone => self.skip(&attachment, ring),
        }
    }

    /// No slot of the lease ring holds this cursor's unit: a late cursor goes on with the newest one, one that is
    /// in time met a unit that the camera had to drop.
    fn skip(&mut self, attachment: &Attachment, ring: &LeaseRing) -> Next {
        let lag = attachment.mapping.write_index().wrapping_sub(self.position);
        let is_in_time = lag <= attachment.mapping.layout().slot_count() / 2;
        let Some(position) = ring.after(self.position, is_in_time) else { return Next::Empty };
        self.jump(attachment, position)
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
        let is_in_slot = match mapping.leases() {
            Some(ring) => ring.holds(position),
            None => is_safe(position, index, mapping.layout().slot_count()),
        };
        let is_there = position == index || is_in_slot;
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

    /// The slot of this cursor's unit is being written again: go on with unit `to`.
    fn jump(&mut self, attachment: &Attachment, to: u32) -> Next {
        let missed_units = u32::try_from(ahead(to, self.position)).unwrap_or(0);
        self.position = to;
        self.last_frame_number = None;
        attachment.counters.lapped_units.add_shared(u64::from(missed_units));
        Next::Lapped { missed_units }
    }

    fn reject(&mut self, rejection: Rejection, now_ns: MonotonicNs) -> Next {
        self.position = self.position.wrapping_add(1);
        self.camera.note_rejection(rejection, now_ns);
        Next::Rejected(rejection)
    }

    fn take(
        &mut self,
        attachment: Arc<Attachment>,
        metadata: &SlotMetadata,
        now_ns: MonotonicNs,
        lend: impl FnOnce(u32) -> Bytes,
    ) -> Next {
        let sequence = self.position;
        if let Err(rejection) = metadata.validate() {
            return self.reject(rejection, now_ns);
        }
        // A camera that goes on in the same segment without resetting the index counts its pictures anew.
        if self.last_frame_number.take().is_some_and(|last| metadata.frame_number < last) {
            return Next::Restarted;
        }
        self.position = sequence.wrapping_add(1);
        self.last_frame_number = Some(metadata.frame_number);
        let captured = Captured::find(metadata, now_ns, self.camera.realtime_offset_ns());
        Next::Unit(UnitView {
            bytes: lend(sequence),
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
mod tests;
