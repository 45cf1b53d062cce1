//! The cursor, which is one consumer's position in the ring. This module must not wait. A cursor never delays the
//! camera.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bytes::Bytes;

use super::layout::{MetadataError, SlotMetadata};
use super::lease_ring::{Found, LeaseRing};
use super::sequence::{ahead, is_in_ring};
use super::source::{Attachment, Camera, MonotonicNs};
use crate::base::limits::{CAPTURE_AGE_MAX_NS, CAPTURE_FRESH_NS};

/// One access unit borrowed from the ring. Read the unit, then call [`UnitView::is_intact`] before using what was read.
/// On a lease ring, the slot is leased until the last clone or slice of `bytes` is dropped.
#[derive(Clone, Debug)]
pub struct UnitView {
    /// The access unit in its slot, in Annex B format. Slices and clones share the mapping or the lease, and copy
    /// nothing.
    pub bytes: Bytes,
    /// The unit's number in the ring. It wraps at 32 bits.
    pub sequence: u32,
    /// The camera's own picture count.
    pub frame_number: u64,
    /// Capture time in CLOCK_REALTIME nanoseconds, converted if the camera uses CLOCK_MONOTONIC. `None` if the capture
    /// time is near the current time of neither clock.
    pub captured_at_ns: Option<i64>,
    /// Capture time in CLOCK_MONOTONIC nanoseconds, not later than the time of the read. If the capture time is
    /// unusable, this is the time of the read.
    pub captured_monotonic_ns: MonotonicNs,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC in nanoseconds, with which the capture time was converted.
    pub realtime_offset_ns: i64,
    /// Width in pixels, from the slot.
    pub width: u32,
    /// Height in pixels, from the slot.
    pub height: u32,
    attachment: Arc<Attachment>,
}

impl UnitView {
    /// Returns true if everything read from `bytes` before this call belongs to this unit. Call this after the last
    /// read. If the result is false, discard what was read.
    ///
    /// On a lease ring, the camera does not overwrite a leased slot. There, false means that the camera restarted or
    /// that its segment shrank.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        fence(Ordering::Acquire);
        let mapping = &self.attachment.mapping;
        if mapping.leases().is_some() {
            return !mapping.is_lost() && self.attachment.has_its_writer();
        }
        is_in_ring(self.sequence, mapping.write_index(), mapping.layout().slot_count())
            && self.attachment.is_current()
    }
}

/// Result of [`Cursor::next`].
#[derive(Clone, Debug)]
pub enum Next {
    /// The next unit.
    Unit(UnitView),
    /// There is no new unit.
    Empty,
    /// The camera has overwritten or dropped units that the cursor had not read. The cursor skipped to the next unit
    /// that it can read.
    Lapped {
        /// Number of units skipped.
        missed_units: u32,
    },
    /// One slot was skipped, because its metadata is invalid.
    Rejected(MetadataError),
    /// The camera restarted: a new stream begins.
    Restarted,
    /// No camera is mapped.
    Away,
}

/// One consumer's position in the ring. Cursors are independent of each other.
#[derive(Clone, Debug)]
pub struct Cursor {
    camera: Camera,
    generation: u64,
    attachment: Option<Arc<Attachment>>,
    /// Number of the unit to read next.
    position: u32,
    last_frame_number: Option<u64>,
}

impl Camera {
    /// Returns a cursor whose first unit is the next one that the camera begins. [`Cursor::units_back`] gives access to
    /// earlier units.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let (generation, attachment) = self.current();
        let position = attachment.as_ref().map_or(0, |attachment| attachment.mapping.write_index());
        Cursor { camera: self.clone(), generation, attachment, position, last_frame_number: None }
    }
}

impl Camera {
    /// Converts a stamp in nanoseconds, on the clock that the camera uses, to its capture time on CLOCK_REALTIME and on
    /// CLOCK_MONOTONIC, exactly as for a unit with this stamp. Returns `None` if the stamp is near the current time of
    /// neither clock.
    #[must_use]
    pub fn capture_times_of(&self, stamp_ns: i64, now_ns: MonotonicNs) -> Option<(i64, MonotonicNs)> {
        let (timestamp_s, timestamp_ns) = (stamp_ns.div_euclid(NS_PER_S), stamp_ns.rem_euclid(NS_PER_S));
        let metadata = SlotMetadata { timestamp_s, timestamp_ns, ..SlotMetadata::default() };
        let captured = Captured::find(&metadata, now_ns, self.realtime_offset_ns());
        captured.realtime_ns.map(|realtime_ns| (realtime_ns, captured.monotonic_ns))
    }
}

const NS_PER_S: i64 = 1_000_000_000; // local bound: a conversion factor

impl Cursor {
    /// Returns the next unit or event. Never blocks. Call this until it returns `Empty` or `Away`.
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
        if !is_in_ring(self.position, index, attachment.mapping.layout().slot_count()) {
            let newest = attachment.available().wrapping_sub(1);
            return self.skip_to(newest);
        }
        let bytes = usize::try_from(metadata.data_bytes).unwrap_or(usize::MAX);
        let mapping = Arc::clone(&attachment.mapping);
        self.lend(attachment, &metadata, now_ns, |unit| mapping.slot_bytes(unit, bytes))
    }

    fn next_leased(
        &mut self,
        attachment: Arc<Attachment>,
        ring: &Arc<LeaseRing>,
        now_ns: MonotonicNs,
    ) -> Next {
        match ring.lease(self.position) {
            Found::Unit(metadata, slot) => {
                let bytes = usize::try_from(metadata.data_bytes).unwrap_or(usize::MAX);
                if bytes > slot.len() {
                    let reason = MetadataError::DataBytes { data_bytes: metadata.data_bytes };
                    return self.reject(reason, now_ns);
                }
                self.lend(attachment, &metadata, now_ns, |_| slot.slice(..bytes))
            }
            Found::Refused => {
                self.camera.counters().leases_refused.add_shared(1);
                Next::Empty
            }
            Found::Gone => self.skip_missing(&attachment, ring),
        }
    }

    /// Skips a unit that no slot of the lease ring holds. If the cursor is at most half a ring behind, the camera
    /// dropped the unit, and the cursor continues with the next readable unit. If the cursor is further behind, it
    /// continues with the newest unit.
    fn skip_missing(&mut self, attachment: &Attachment, ring: &LeaseRing) -> Next {
        let lag = attachment.mapping.write_index().wrapping_sub(self.position);
        let is_in_time = lag <= attachment.mapping.layout().slot_count() / 2;
        let Some(position) = ring.after(self.position, is_in_time) else { return Next::Empty };
        self.skip_to(position)
    }

    /// Returns the number of the unit that this cursor reads next.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Returns the number of readable units that this cursor has not read yet.
    #[must_use]
    pub fn lag_slots(&self) -> u32 {
        let lag =
            self.attachment.as_ref().map_or(0, |attachment| ahead(attachment.available(), self.position));
        u32::try_from(lag).unwrap_or(0)
    }

    /// Returns the number of units that the camera has begun and this cursor has not read yet. The number includes
    /// units that are not known to be complete.
    #[must_use]
    pub fn begun_slots(&self) -> u32 {
        let begun = self
            .attachment
            .as_ref()
            .map_or(0, |attachment| ahead(attachment.mapping.write_index(), self.position));
        u32::try_from(begun).unwrap_or(0)
    }

    /// Returns a second cursor that is `count` units before this one, for pre-roll and instant start. Returns `None` if
    /// the ring may no longer hold the unit at that position, or if that unit is from an earlier run of the camera.
    #[must_use]
    pub fn units_back(&self, count: u32) -> Option<Cursor> {
        let attachment = self.attachment.as_ref()?;
        let position = self.position.checked_sub(count).filter(|position| *position >= attachment.floor)?;
        let mapping = &attachment.mapping;
        let index = mapping.write_index();
        let is_in_slot = match mapping.leases() {
            Some(ring) => ring.holds(position),
            None => is_in_ring(position, index, mapping.layout().slot_count()),
        };
        let is_readable = position == index || is_in_slot;
        (is_readable && attachment.is_current()).then(|| Cursor {
            position,
            last_frame_number: None,
            ..self.clone()
        })
    }

    /// Moves the cursor to the camera's current run. Returns true if a new run has begun.
    fn follow_camera(&mut self) -> bool {
        if self.camera.generation() == self.generation {
            return false;
        }
        let (generation, attachment) = self.camera.current();
        self.generation = generation;
        self.last_frame_number = None;
        self.attachment = attachment;
        if let Some(attachment) = &self.attachment {
            self.position = attachment.start;
        }
        self.attachment.is_some()
    }

    /// Moves the cursor to unit `position`, and returns how many units it has skipped.
    fn skip_to(&mut self, position: u32) -> Next {
        let missed_units = u32::try_from(ahead(position, self.position)).unwrap_or(0);
        self.position = position;
        self.last_frame_number = None;
        Next::Lapped { missed_units }
    }

    fn reject(&mut self, reason: MetadataError, now_ns: MonotonicNs) -> Next {
        self.position = self.position.wrapping_add(1);
        self.camera.log_rejection(reason, now_ns);
        Next::Rejected(reason)
    }

    /// Validates the metadata, moves the cursor to the next unit and returns a view of this unit. `bytes_of` borrows
    /// the bytes of the unit with the given number.
    fn lend(
        &mut self,
        attachment: Arc<Attachment>,
        metadata: &SlotMetadata,
        now_ns: MonotonicNs,
        bytes_of: impl FnOnce(u32) -> Bytes,
    ) -> Next {
        let sequence = self.position;
        if let Err(reason) = metadata.validate() {
            return self.reject(reason, now_ns);
        }
        // A camera may restart in the same segment without resetting the index. It then counts its pictures from 0
        // again, so a lower frame number shows the restart.
        if self.last_frame_number.take().is_some_and(|last| metadata.frame_number < last) {
            return Next::Restarted;
        }
        self.position = sequence.wrapping_add(1);
        self.last_frame_number = Some(metadata.frame_number);
        let (captured, realtime_offset_ns) = self.captured(metadata, now_ns);
        Next::Unit(UnitView {
            bytes: bytes_of(sequence),
            sequence,
            frame_number: metadata.frame_number,
            captured_at_ns: captured.realtime_ns,
            captured_monotonic_ns: captured.monotonic_ns,
            realtime_offset_ns,
            width: metadata.width.unsigned_abs(),
            height: metadata.height.unsigned_abs(),
            attachment,
        })
    }
}

impl Cursor {
    /// Converts the unit's capture time to both clocks. Returns it with the offset between the clocks.
    fn captured(&self, metadata: &SlotMetadata, now_ns: MonotonicNs) -> (Captured, i64) {
        let offset_ns = self.camera.realtime_offset_ns();
        match Captured::find_fresh(metadata, now_ns, offset_ns) {
            Some(captured) => (captured, offset_ns),
            None => self.captured_unusually(metadata, now_ns, offset_ns),
        }
    }

    /// Does the same as [`Cursor::captured`] for any capture time. If the capture time is not just before `now_ns`, the
    /// system clock may have been set, so the offset is measured again.
    #[cold]
    fn captured_unusually(
        &self,
        metadata: &SlotMetadata,
        now_ns: MonotonicNs,
        offset_ns: i64,
    ) -> (Captured, i64) {
        let captured = Captured::find(metadata, now_ns, offset_ns);
        let age_ns = now_ns - captured.monotonic_ns;
        if (1..CAPTURE_FRESH_NS).contains(&age_ns) || !self.camera.refresh_clocks_again(now_ns) {
            return (captured, offset_ns);
        }
        let offset_ns = self.camera.realtime_offset_ns();
        (Captured::find(metadata, now_ns, offset_ns), offset_ns)
    }
}

/// A capture time on both clocks.
#[derive(Debug, PartialEq, Eq)]
struct Captured {
    realtime_ns: Option<i64>,
    monotonic_ns: MonotonicNs,
}

impl Captured {
    /// Returns what [`Captured::find`] returns, for nearly every unit with few instructions: one capture time is just
    /// before `now_ns`. The other one is then further away, because the clocks are further apart. Returns `None`
    /// otherwise.
    fn find_fresh(metadata: &SlotMetadata, now_ns: MonotonicNs, realtime_offset_ns: i64) -> Option<Captured> {
        let is_fresh = |ns: i64| (0..CAPTURE_FRESH_NS).contains(&now_ns.wrapping_sub(ns));
        if realtime_offset_ns.unsigned_abs() < 2 * CAPTURE_FRESH_NS.unsigned_abs() {
            return None;
        }
        let time_ns = nanoseconds(metadata)?;
        let converted_ns = time_ns.wrapping_sub(realtime_offset_ns);
        let (monotonic_ns, realtime_ns) = if is_fresh(converted_ns) {
            (converted_ns, time_ns)
        } else if is_fresh(time_ns) {
            (time_ns, time_ns.wrapping_add(realtime_offset_ns))
        } else {
            return None;
        };
        Some(Captured { realtime_ns: Some(realtime_ns), monotonic_ns })
    }

    /// Converts the capture time to both clocks. The camera used the clock whose current time is just after the capture
    /// time. The check is needed because the daemon's header documents CLOCK_MONOTONIC, but the daemon writes
    /// CLOCK_REALTIME. On a board that has not set its clock yet, both clocks are near.
    fn find(metadata: &SlotMetadata, now_ns: MonotonicNs, realtime_offset_ns: i64) -> Captured {
        let Some(time_ns) = nanoseconds(metadata) else {
            return Captured { realtime_ns: None, monotonic_ns: now_ns };
        };
        let candidates = [time_ns.saturating_sub(realtime_offset_ns), time_ns];
        let age_ns = |monotonic_ns: &i64| now_ns.saturating_sub(*monotonic_ns);
        let monotonic_ns = candidates
            .into_iter()
            .filter(|ns| age_ns(ns).saturating_abs() < CAPTURE_AGE_MAX_NS)
            .min_by_key(|ns| (age_ns(ns) < -CAPTURE_FRESH_NS, age_ns(ns).saturating_abs()))
            .map(|ns| ns.min(now_ns));
        Captured {
            realtime_ns: monotonic_ns.map(|ns| ns.saturating_add(realtime_offset_ns)),
            monotonic_ns: monotonic_ns.unwrap_or(now_ns),
        }
    }
}

/// Returns the capture time in nanoseconds, or `None` if its fields are out of range.
fn nanoseconds(metadata: &SlotMetadata) -> Option<i64> {
    let is_valid = (0..1_000_000_000).contains(&metadata.timestamp_ns);
    let whole_ns = metadata.timestamp_s.checked_mul(1_000_000_000)?;
    whole_ns.checked_add(metadata.timestamp_ns).filter(|_| is_valid)
}

#[cfg(test)]
mod tests;
