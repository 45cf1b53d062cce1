//! The reading side of a lease ring. This module finds units, leases their slots and lends the slots as `Bytes`.
//! Dropping the last clone of the `Bytes` releases the lease. This module must not wait, map memory (`mapping.rs`) or
//! choose the unit to read (`cursor.rs`).
//!
//! One mapping is one reader, no matter how many cursors read through it. So all cursors of a mapping share one bit in
//! a slot's word. This module counts the loans of each slot and releases the lease after the last loan.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fd::OwnedFd;

use super::layout::{FORMAT_H264, SlotMetadata};
use super::lease::{self, Lease, READERS_MAX, SLOTS_MAX, Slots, Sound};
use super::lease_header::{
    FLAG_OBEYS_BITRATE, Geometry, READER_LOCKS, STATE_CLOSED, WRITER_LOCK, control, header,
};
use super::locks::{is_byte_locked, lock_byte};
use super::region::Region;
use super::segment::MappingError;

/// Header and control blocks of a mapped lease ring, and the leases of this reader.
#[derive(Debug)]
pub(super) struct LeaseRing {
    /// The open segment. The lock on the reader number belongs to it.
    file: Arc<OwnedFd>,
    control: Region,
    /// The data of all slots, one after the other.
    data: Bytes,
    geometry: Geometry,
    /// The number of this reader. `None` for a mapping that only inspects the ring.
    reader: Option<u32>,
    leases: Mutex<Leases>,
}

/// The slots that this reader leases.
#[derive(Debug)]
struct Leases {
    /// Number of loans of each slot.
    loans: Box<[u32]>,
    /// Number of slots with at least one loan.
    slots: u32,
}

/// Result of leasing a unit.
#[derive(Debug)]
pub(super) enum Found {
    /// The slot is leased. The metadata is a copy that is not validated yet; the bytes are the whole slot. Dropping the
    /// last clone of the bytes releases the lease.
    Unit(SlotMetadata, Bytes),
    /// No slot of the ring holds the unit.
    Gone,
    /// The unit cannot be leased now: this reader leases as many slots as it may, or other processes keep changing the
    /// slot's word. The caller may try again later.
    Refused,
}

impl LeaseRing {
    /// Creates a ring that can only be inspected. After [`LeaseRing::register_reader`] it can also lease slots.
    pub(super) fn new(file: Arc<OwnedFd>, control: Region, data: Bytes, geometry: Geometry) -> LeaseRing {
        let leases = Leases { loans: vec![0; geometry.slot_count() as usize].into_boxed_slice(), slots: 0 };
        LeaseRing { file, control, data, geometry, reader: None, leases: Mutex::new(leases) }
    }

    /// Takes a free reader number and locks it. `name`, the name of the ring, is used for errors. The mapping must be
    /// writable.
    pub(super) fn register_reader(&mut self, name: &str) -> Result<(), MappingError> {
        if !self.has_writer() {
            return Err(MappingError::NoWriter(name.to_owned()));
        }
        let reader = (0..READERS_MAX)
            .find(|reader| lock_byte(&self.file, READER_LOCKS + i64::from(*reader)))
            .ok_or_else(|| MappingError::ReadersMax(name.to_owned()))?;
        // The reader that had this number before may have ended without releasing its leases, so they are released
        // here.
        lease::reap(self, reader);
        self.reader = Some(reader);
        Ok(())
    }

    /// Returns the number of the newest unit plus one, with wrap-around. A unit that the camera dropped also uses up a
    /// number.
    pub(super) fn write_index(&self) -> u32 {
        let (sequence, _) = lease::latest::<Sound>(self.control.map.long_word(header::LATEST));
        low(sequence)
    }

    /// Returns the epoch. Every new writer of the ring raises it by one.
    pub(super) fn epoch(&self) -> u64 {
        acquire(self.control.map.long_word(header::EPOCH))
    }

    /// Returns the number of the first unit of the current writer.
    pub(super) fn epoch_start(&self) -> u32 {
        low(acquire(self.control.map.long_word(header::EPOCH_SEQUENCE))).wrapping_sub(1)
    }

    /// Sets the flag in the header that requests an IDR from the camera. A mapping that only inspects does nothing.
    pub(super) fn request_idr(&self) {
        if self.reader.is_some() {
            self.control.map.word(header::KEYFRAME_REQUEST).store(1, Ordering::Relaxed);
        }
    }

    /// Requests that the camera uses at most `kbps` kbit/s, until `now_s` plus the validity of a request; 0 withdraws the
    /// request. Returns false, and requests nothing, if the camera does not obey. This reader never uses what it reads
    /// from these fields, because any process may write them.
    pub(super) fn request_bitrate(&self, kbps: u32, now_s: u32) -> bool {
        let flags = self.control.map.word(header::FLAGS).load(Ordering::Relaxed);
        let obeys = self.reader.is_some() && flags & FLAG_OBEYS_BITRATE != 0;
        if obeys {
            self.control.map.word(header::BITRATE_REQUESTED_S).store(now_s, Ordering::Relaxed);
            self.control.map.word(header::BITRATE_REQUEST).store(kbps, Ordering::Relaxed);
        }
        obeys
    }

    /// Returns the number of units that the camera has dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.control.map.long_word(header::DROPPED).load(Ordering::Relaxed)
    }

    /// Returns true if a writer lives and has not closed the ring.
    pub(super) fn has_writer(&self) -> bool {
        self.control.map.word(header::STATE).load(Ordering::Relaxed) != STATE_CLOSED
            && is_byte_locked(&self.file, WRITER_LOCK)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.control.is_lost()
    }

    /// Returns true if a slot holds `unit`.
    pub(super) fn holds(&self, unit: u32) -> bool {
        self.find(unit).is_some()
    }

    /// Returns a unit after `unit` that a slot holds: the oldest such unit if `nearest` is true, otherwise the newest.
    /// Returns `None` if no slot holds a later unit.
    pub(super) fn after(&self, unit: u32, nearest: bool) -> Option<u32> {
        let units = (0..self.geometry.slot_count()).filter_map(|slot| {
            let word = acquire(self.word(slot));
            let ahead = low(lease::sequence_of(word)).wrapping_sub(1).wrapping_sub(unit);
            (lease::is_readable(word) && ahead.cast_signed() > 0).then_some(ahead)
        });
        let ahead = if nearest { units.min() } else { units.max() };
        ahead.map(|ahead| unit.wrapping_add(ahead))
    }

    /// Leases the slot of `unit`, or adds a loan if this reader already leases that slot.
    pub(super) fn lease(self: &Arc<Self>, unit: u32) -> Found {
        let Some(reader) = self.reader else { return Found::Refused };
        let Some((slot, sequence)) = self.find(unit) else { return Found::Gone };
        let mut leases = self.leases();
        let is_full = leases.slots >= self.geometry.leases_max();
        let Some(loans) = leases.loans.get_mut(slot as usize) else { return Found::Gone };
        if *loans == 0 {
            if is_full {
                return Found::Refused;
            }
            match lease::lease::<Sound>(self.word(slot), sequence, reader) {
                Lease::Held => {}
                Lease::Gone => return Found::Gone,
                Lease::Busy => return Found::Refused,
            }
        } else if lease::sequence_of(self.word(slot).load(Ordering::Relaxed)) != sequence {
            return Found::Gone; // meanwhile another cursor of this mapping has leased a newer unit in this slot
        }
        *loans += 1;
        let is_first_loan = *loans == 1;
        leases.slots += u32::from(is_first_loan);
        drop(leases);
        let start = self.geometry.data_of(slot);
        let data = self.data.slice(start..start + self.geometry.slot_bytes());
        let owner = LeasedSlot { ring: Arc::clone(self), slot, data };
        Found::Unit(self.metadata(slot), Bytes::from_owner(owner))
    }

    /// Returns the metadata of `unit` without leasing its slot, for display only and not for decisions. Returns zeros
    /// if no slot holds the unit, or if the camera overwrites the slot during the read.
    pub(super) fn metadata_of(&self, unit: u32) -> SlotMetadata {
        let Some((slot, sequence)) = self.find(unit) else { return SlotMetadata::default() };
        let metadata = self.metadata(slot);
        std::sync::atomic::fence(Ordering::Acquire);
        let word = self.word(slot).load(Ordering::Relaxed);
        let is_same = lease::is_readable(word) && lease::sequence_of(word) == sequence;
        if is_same { metadata } else { SlotMetadata::default() }
    }

    fn metadata(&self, slot: u32) -> SlotMetadata {
        let block = self.geometry.control_of(slot);
        let word = |offset: usize| self.control.map.word(block + offset).load(Ordering::Relaxed);
        let long = |offset: usize| self.control.map.long_word(block + offset).load(Ordering::Relaxed);
        let side = |own: usize, general: usize| {
            let pixels = match word(own) {
                0 => self.control.map.word(general).load(Ordering::Relaxed),
                pixels => pixels,
            };
            i32::try_from(pixels).unwrap_or(-1)
        };
        let captured_ns = i64::try_from(long(control::CAPTURED_NS)).unwrap_or(0);
        SlotMetadata {
            frame_number: long(control::FRAME_NUMBER),
            timestamp_s: captured_ns.div_euclid(1_000_000_000),
            timestamp_ns: captured_ns.rem_euclid(1_000_000_000),
            camera_id: 0,
            width: side(control::WIDTH, header::WIDTH),
            height: side(control::HEIGHT, header::HEIGHT),
            format: FORMAT_H264,
            data_bytes: u64::from(word(control::LEN)),
        }
    }

    /// Returns the number of the slot that holds `unit`, and the 40-bit sequence in that slot's word.
    fn find(&self, unit: u32) -> Option<(u32, u64)> {
        let sequence_low = unit.wrapping_add(1);
        let holds_unit = |slot: u32| {
            let word = acquire(self.word(slot));
            let sequence = lease::sequence_of(word);
            (lease::is_readable(word) && low(sequence) == sequence_low).then_some((slot, sequence))
        };
        // Cursors mostly read the newest unit, so its slot is tried first.
        let (_, newest) = lease::latest::<Sound>(self.control.map.long_word(header::LATEST));
        let newest = (newest < self.geometry.slot_count()).then_some(newest);
        newest.and_then(holds_unit).or_else(|| (0..self.geometry.slot_count()).find_map(holds_unit))
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends one loan of `slot`. When the last loan ends, the lease is released.
    fn release(&self, slot: u32) {
        let mut leases = self.leases();
        let Some(loans) = leases.loans.get_mut(slot as usize) else { return };
        *loans = loans.saturating_sub(1);
        if *loans == 0 {
            // The lock is still held here. Without it, this could clear the bit after another cursor has leased the
            // slot.
            if let Some(reader) = self.reader {
                lease::release::<Sound>(self.word(slot), reader);
            }
            leases.slots = leases.slots.saturating_sub(1);
        }
    }
}

impl Slots for LeaseRing {
    type Word = AtomicU64;

    fn count(&self) -> u32 {
        self.geometry.slot_count()
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        self.control.map.long_word(self.geometry.control_of(slot) + control::WORD)
    }
}

impl AsRef<AtomicU32> for LeaseRing {
    /// Returns the futex word that changes with every unit.
    fn as_ref(&self) -> &AtomicU32 {
        self.control.map.word(header::FUTEX)
    }
}

/// One loan of a slot. The `Bytes` that borrow from the slot own this value, and dropping it ends the loan.
struct LeasedSlot {
    ring: Arc<LeaseRing>,
    slot: u32,
    data: Bytes,
}

impl AsRef<[u8]> for LeasedSlot {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for LeasedSlot {
    fn drop(&mut self) {
        self.ring.release(self.slot);
    }
}

fn acquire(word: &AtomicU64) -> u64 {
    lease::Word::load(word, Ordering::Acquire)
}

/// Returns the low 32 bits of a sequence, because cursors number units with 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits")]
const fn low(sequence: u64) -> u32 {
    sequence as u32
}

const _: () =
    assert!(SLOTS_MAX as usize * 4 < u16::MAX as usize, "distances within the ring stay positive in 32 bits");
