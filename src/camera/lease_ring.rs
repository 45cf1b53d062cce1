//! The reading side of a lease ring: finds units, leases their slots, lends them as `Bytes` that give the lease
//! back when the last clone is dropped. May not wait, map (`mapping.rs`) or decide which unit to read (`cursor.rs`).
//!
//! One mapping is one reader, whatever number of cursors read through it: the slots it holds are counted here, the
//! shared word has one bit for all of them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fd::OwnedFd;

use super::layout::{FORMAT_H264, SlotMetadata};
use super::lease::{self, Lease, READERS_MAX, SLOTS_MAX, Slots, Sound};
use super::lease_header::{Geometry, READER_LOCKS, STATE_CLOSED, WRITER_LOCK, control, header};
use super::locks::{is_byte_locked, lock_byte};
use super::mapping::{Access, MappingError, Region};

/// Header and control blocks of a mapped lease ring, and what this reader holds of it.
#[derive(Debug)]
pub(super) struct LeaseRing {
    /// The locks go with it.
    file: Arc<OwnedFd>,
    control: Region,
    /// All slots.
    data: Bytes,
    geometry: Geometry,
    /// The number this reader has; `None` where it only looks.
    reader: Option<u32>,
    held: Mutex<Held>,
}

/// The slots this reader holds.
#[derive(Debug)]
struct Held {
    /// How many times each slot is lent.
    lent: Box<[u32]>,
    /// Slots that are lent at all.
    slots: u32,
}

/// A unit in its slot.
#[derive(Debug)]
pub(super) struct LeasedUnit {
    /// What the slot says about it.
    pub(super) metadata: SlotMetadata,
    /// The whole slot; dropping the last clone of it gives the lease back.
    pub(super) slot: Bytes,
}

/// What looking for a unit gave.
#[derive(Debug)]
pub(super) enum Found {
    /// It is there, and ours until it is dropped.
    Unit(LeasedUnit),
    /// No slot holds it (any more).
    Gone,
    /// This reader holds as many slots as it may, or others change the word all the time: try later.
    Refused,
}

impl LeaseRing {
    pub(super) fn new(
        name: &str,
        file: Arc<OwnedFd>,
        control: Region,
        data: Bytes,
        geometry: Geometry,
        access: Access,
    ) -> Result<LeaseRing, MappingError> {
        let held = Held { lent: vec![0; geometry.slot_count() as usize].into_boxed_slice(), slots: 0 };
        let mut ring = LeaseRing { file, control, data, geometry, reader: None, held: Mutex::new(held) };
        if access != Access::Inspect {
            if !ring.has_writer() {
                return Err(MappingError::NoWriter { name: name.to_owned() });
            }
            let reader = (0..READERS_MAX)
                .find(|reader| lock_byte(&ring.file, READER_LOCKS + i64::from(*reader)))
                .ok_or_else(|| MappingError::ReadersMax { name: name.to_owned() })?;
            // Whoever had the number before is gone, perhaps without giving its slots back.
            lease::reap(&ring.words(), reader);
            ring.reader = Some(reader);
        }
        Ok(ring)
    }

    /// Units published so far, dropped ones counted, wrapping: the number after the newest one's.
    pub(super) fn write_index(&self) -> u32 {
        let (sequence, _) = lease::latest::<Sound>(self.control.long_word(header::LATEST));
        low(sequence)
    }

    /// Which writer it is, counted up.
    pub(super) fn epoch(&self) -> u64 {
        acquire(self.control.long_word(header::EPOCH))
    }

    /// The number of the first unit of the present writer.
    pub(super) fn epoch_start(&self) -> u32 {
        low(acquire(self.control.long_word(header::EPOCH_SEQUENCE))).wrapping_sub(1)
    }

    /// The word that changes with every unit, for waiting.
    pub(super) fn futex(&self) -> &AtomicU32 {
        self.control.word(header::FUTEX)
    }

    /// Asks the camera for an IDR.
    pub(super) fn request_idr(&self) {
        if self.reader.is_some() {
            self.control.word(header::KEYFRAME_REQUEST).store(1, Ordering::Relaxed);
        }
    }

    /// Units the camera had no slot for.
    pub(super) fn dropped(&self) -> u64 {
        self.control.long_word(header::DROPPED).load(Ordering::Relaxed)
    }

    /// Whether a writer lives and has not said that it is done.
    pub(super) fn has_writer(&self) -> bool {
        self.control.word(header::STATE).load(Ordering::Relaxed) != STATE_CLOSED
            && is_byte_locked(&self.file, WRITER_LOCK)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.control.is_lost()
    }

    /// Whether a slot holds unit `unit`.
    pub(super) fn holds(&self, unit: u32) -> bool {
        self.find(unit).is_some()
    }

    /// The next unit after `unit` that a slot holds: the nearest, or the newest one.
    pub(super) fn after(&self, unit: u32, nearest: bool) -> Option<u32> {
        let units = (0..self.geometry.slot_count()).filter_map(|slot| {
            let word = acquire(self.word(slot));
            let ahead = low(lease::sequence_of(word)).wrapping_sub(1).wrapping_sub(unit);
            (lease::is_readable(word) && ahead.cast_signed() > 0).then_some(ahead)
        });
        let ahead = if nearest { units.min() } else { units.max() };
        ahead.map(|ahead| unit.wrapping_add(ahead))
    }

    /// Leases the slot of unit `unit`.
    pub(super) fn lease(self: &Arc<Self>, unit: u32) -> Found {
        let Some(reader) = self.reader else { return Found::Refused };
        let Some((slot, sequence)) = self.find(unit) else { return Found::Gone };
        let mut held = self.held();
        let is_full = held.slots >= self.geometry.leases_max();
        let Some(lent) = held.lent.get_mut(slot as usize) else { return Found::Gone };
        if *lent == 0 {
            if is_full {
                return Found::Refused;
            }
            match lease::lease::<Sound>(self.word(slot), sequence, reader) {
                Lease::Held => {}
                Lease::Gone => return Found::Gone,
                Lease::Busy => return Found::Refused,
            }
        } else if lease::sequence_of(self.word(slot).load(Ordering::Relaxed)) != sequence {
            return Found::Gone; // found before another cursor of ours leased what came into the slot
        }
        *lent += 1;
        held.slots += u32::from(held.lent.get(slot as usize) == Some(&1));
        drop(held);
        let start = self.geometry.data_of(slot);
        let data = self.data.slice(start..start + self.geometry.slot_bytes());
        let owner = LeasedSlot { ring: Arc::clone(self), slot, data };
        Found::Unit(LeasedUnit { metadata: self.metadata(slot), slot: Bytes::from_owner(owner) })
    }

    /// What a slot says about unit `unit`, read without a lease: for people, not for decisions.
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
        let word = |offset: usize| self.control.word(block + offset).load(Ordering::Relaxed);
        let long = |offset: usize| self.control.long_word(block + offset).load(Ordering::Relaxed);
        let side = |own: usize, general: usize| {
            let pixels = match word(own) {
                0 => self.control.word(general).load(Ordering::Relaxed),
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

    /// The slot that holds unit `unit`, and the whole sequence in its word.
    fn find(&self, unit: u32) -> Option<(u32, u64)> {
        let wanted = unit.wrapping_add(1);
        let look = |slot: u32| {
            let word = acquire(self.word(slot));
            let sequence = lease::sequence_of(word);
            (lease::is_readable(word) && low(sequence) == wanted).then_some((slot, sequence))
        };
        // Usually the newest is wanted.
        let (_, newest) = lease::latest::<Sound>(self.control.long_word(header::LATEST));
        let newest = (newest < self.geometry.slot_count()).then_some(newest);
        newest.and_then(look).or_else(|| (0..self.geometry.slot_count()).find_map(look))
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        self.control.long_word(self.geometry.control_of(slot) + control::WORD)
    }

    fn words(&self) -> Words<'_> {
        Words { control: &self.control, geometry: &self.geometry }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, slot: u32) {
        let mut held = self.held();
        let Some(lent) = held.lent.get_mut(slot as usize) else { return };
        *lent = lent.saturating_sub(1);
        if *lent == 0 {
            // Under the lock: else the bit of a cursor that leases it right now would go.
            if let Some(reader) = self.reader {
                lease::release::<Sound>(self.word(slot), reader);
            }
            held.slots = held.slots.saturating_sub(1);
        }
    }
}

/// The words of a mapped ring, for the protocol.
pub(super) struct Words<'a> {
    pub(super) control: &'a Region,
    pub(super) geometry: &'a Geometry,
}

impl Slots for Words<'_> {
    type Word = AtomicU64;

    fn count(&self) -> u32 {
        self.geometry.slot_count()
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        self.control.long_word(self.geometry.control_of(slot) + control::WORD)
    }
}

impl AsRef<AtomicU32> for LeaseRing {
    /// The word that changes with every unit.
    fn as_ref(&self) -> &AtomicU32 {
        self.futex()
    }
}

/// A lent slot as the owner of `Bytes`.
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
        self.ring.give_back(self.slot);
    }
}

fn acquire(word: &AtomicU64) -> u64 {
    lease::Word::load(word, Ordering::Acquire)
}

/// Cursors count units by 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits")]
const fn low(sequence: u64) -> u32 {
    sequence as u32
}

const _: () =
    assert!(SLOTS_MAX as usize * 4 < u16::MAX as usize, "a unit's distance in the ring is never negative");
