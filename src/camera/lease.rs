//! PURE: the lease protocol, which uses one atomic word per slot. Its operations are claim, publish, lease, release and
//! reap. This module uses only `core`, and no memory map, file or clock, so that tests/loom can model exactly this
//! code.
//!
//! ```text
//!  word     63 ........ 24 | 23 .. 17 | 16      | 15 .......... 0
//!             sequence       unused     WRITING   one bit per reader
//!
//!            claim: CAS, AcqRel                 publish: store, Release
//!   free ─────────────────────────► WRITING ─────────────────────────► readable ◄──┐
//!    ▲      no reader bit,                                               │         │ release: fetch_and,
//!    └────── never the slot in `latest` ◄────────────────────────────────┤         │ Release
//!                                                                        └─ lease ──┘
//!                                                                           load, Acquire; CAS if it holds
//!                                                                           the unit and is not WRITING
//! ```
//!
//! Unit `f` has sequence `f + 1`. A slot with sequence 0 is empty. If a sequence never appears in any slot, the camera
//! dropped that unit.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::fence;

/// Bit of a slot's word that is set while the writer fills the slot.
pub const WRITING: u64 = 1 << 16;
/// Bits of a slot's word that mark leases. Each reader has one bit.
pub const READERS: u64 = WRITING - 1;
/// Position of the sequence's lowest bit in a slot's word.
pub const SEQUENCE_SHIFT: u32 = 24;
/// Largest sequence. The 40 bits last a thousand years at 30 units a second. This local bound is part of the protocol.
pub const SEQUENCE_MAX: u64 = (1 << (64 - SEQUENCE_SHIFT)) - 1;
/// Position of the sequence's lowest bit in the word `latest`. The 8 bits below hold the slot number.
pub const LATEST_SHIFT: u32 = 8;
/// Maximum attempts of a compare-and-swap, which fails if another process changes the word at the same time.
/// This local bound keeps every call finite.
const ATTEMPTS_MAX: u32 = 64;

/// Maximum number of readers of one ring. This local bound is part of the protocol.
pub const READERS_MAX: u32 = 16;
/// Maximum number of slots of one ring. This local bound is part of the protocol.
pub const SLOTS_MAX: u32 = 1 << LATEST_SHIFT;

/// An atomic word shared between processes. The server uses the standard library's atomic; the model checker uses its
/// own.
pub trait Word {
    /// Loads the value, like [`core::sync::atomic::AtomicU64::load`].
    fn load(&self, order: Ordering) -> u64;
    /// Stores `value`, like [`core::sync::atomic::AtomicU64::store`].
    fn store(&self, value: u64, order: Ordering);
    /// Stores `new` if the value is `current`, and returns true in that case. This is
    /// [`core::sync::atomic::AtomicU64::compare_exchange`] with relaxed ordering on failure.
    fn swap_if(&self, current: u64, new: u64, order: Ordering) -> bool;
    /// Clears the bits that are not in `mask`, like [`core::sync::atomic::AtomicU64::fetch_and`].
    fn and(&self, mask: u64, order: Ordering);
}

impl Word for core::sync::atomic::AtomicU64 {
    /// Loads with relaxed ordering and, for a stronger `order`, adds a fence. Load and fence together order at least as
    /// much as an acquire load. On pages that are mapped read-only, only relaxed loads are allowed.
    fn load(&self, order: Ordering) -> u64 {
        let value = self.load(Relaxed);
        if order != Relaxed {
            fence(order);
        }
        value
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn swap_if(&self, current: u64, new: u64, order: Ordering) -> bool {
        self.compare_exchange(current, new, order, Relaxed).is_ok()
    }

    fn and(&self, mask: u64, order: Ordering) {
        self.fetch_and(mask, order);
    }
}

/// Gives access to the words of all slots of a ring.
pub trait Slots {
    /// Type of a slot's word.
    type Word: Word;

    /// Returns the number of slots, at most [`SLOTS_MAX`].
    fn count(&self) -> u32;

    /// Returns the word of slot number `slot`, which must be below [`Slots::count`].
    fn word(&self, slot: u32) -> &Self::Word;
}

/// All memory orderings and all checks of the protocol, by name. Each test of the loom model weakens one of them and
/// expects the model to fail, which shows that it is needed. The program itself runs with [`Sound`].
pub trait Rules {
    /// Ordering of the compare-and-swap that claims a slot. Acquire: the reads of the slot's last reader happen before
    /// the writer's writes. Release: a reader that sees the claim also sees in `latest` that there is a newer unit.
    const CLAIM: Ordering = AcqRel;
    /// Ordering of the store that publishes a slot. Release: a reader that sees the store also sees what the writer has
    /// written into the slot.
    const PUBLISH: Ordering = Release;
    /// Ordering of the load of a word before its slot is leased. Acquire: the reader's reads happen after the camera's
    /// writes. A reader that sees the slot claimed also sees in `latest` a newer unit. The compare-and-swap that
    /// follows succeeds only if it finds the loaded value, so it needs no ordering of its own.
    const LEASE: Ordering = Acquire;
    /// Ordering of the operation that releases a lease. Release: the reader's reads happen before it.
    const RELEASE: Ordering = Release;
    /// Ordering of the store of `latest`. Release: a reader that sees the new value finds in the slot that unit or a
    /// newer one.
    const LATEST_STORE: Ordering = Release;
    /// Ordering of the load of `latest`. It pairs with [`Rules::LATEST_STORE`].
    const LATEST_LOAD: Ordering = Acquire;
    /// True if the writer does not claim a slot that a reader leases.
    const SPARES_LEASED: bool = true;
    /// True if the writer does not claim the slot in `latest`. The newest unit can then always be leased.
    const SPARES_LATEST: bool = true;
    /// True if a reader does not lease a slot that is being filled.
    const REFUSES_WRITING: bool = true;
    /// True if a reader does not lease a slot that holds another unit than the one that it wants.
    const REFUSES_OTHERS: bool = true;
}

/// The complete protocol, with all orderings and checks.
#[derive(Copy, Clone, Debug)]
pub struct Sound;

impl Rules for Sound {}

/// Returns the sequence in a slot's word. It is 0 for an empty slot.
#[must_use]
pub const fn sequence_of(word: u64) -> u64 {
    word >> SEQUENCE_SHIFT
}

/// Returns true if the slot holds a complete unit.
#[must_use]
pub const fn is_readable(word: u64) -> bool {
    word & WRITING == 0 && sequence_of(word) != 0
}

/// Returns the readers that lease the slot, one bit each.
const fn readers_of(word: u64) -> u64 {
    word & READERS
}

/// Returns the sequence after `sequence`. Sequences wrap at 40 bits and skip 0.
#[must_use]
pub const fn after(sequence: u64) -> u64 {
    if sequence >= SEQUENCE_MAX { 1 } else { sequence + 1 }
}

/// Returns the sequence of the newest unit and the number of its slot. The sequence is 0 before the first unit.
#[must_use]
pub fn latest<R: Rules>(word: &impl Word) -> (u64, u32) {
    let latest = word.load(R::LATEST_LOAD);
    #[expect(clippy::cast_possible_truncation, reason = "the low 8 bits")]
    let slot = (latest as u32) & (SLOTS_MAX - 1);
    (latest >> LATEST_SHIFT, slot)
}

/// Chooses a slot for unit `sequence`, marks it as WRITING and returns its number. Among the slots that no reader
/// leases, it chooses the one with the oldest unit, but never `latest`, the slot of the newest unit. Returns `None` if
/// no slot is free; the writer must then drop the unit.
///
/// Only the ring's single writer may call this. Never waits.
pub fn claim<R: Rules>(slots: &impl Slots, sequence: u64, latest: Option<u32>) -> Option<u32> {
    for _ in 0..ATTEMPTS_MAX {
        let free = |&(slot, word): &(u32, u64)| {
            (!R::SPARES_LEASED || readers_of(word) == 0) && (!R::SPARES_LATEST || Some(slot) != latest)
        };
        let words = (0..slots.count()).map(|slot| (slot, slots.word(slot).load(Relaxed)));
        let (slot, word) = words.filter(free).min_by_key(|&(_, word)| sequence_of(word))?;
        if slots.word(slot).swap_if(word, sequence << SEQUENCE_SHIFT | WRITING, R::CLAIM) {
            return Some(slot);
        }
    }
    None
}

/// Publishes the unit in the claimed slot `slot`, so that readers can lease it.
pub fn publish<R: Rules>(slots: &impl Slots, slot: u32, sequence: u64, latest: &impl Word) {
    slots.word(slot).store(sequence << SEQUENCE_SHIFT, R::PUBLISH);
    latest.store(sequence << LATEST_SHIFT | u64::from(slot), R::LATEST_STORE);
}

/// Makes a claimed slot empty again, without publishing a unit.
pub fn abandon(word: &impl Word) {
    word.store(0, Release);
}

/// Result of [`lease`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// The slot is leased until [`release`].
    Held,
    /// The slot does not hold the wanted unit.
    Gone,
    /// Other processes changed the word during every attempt. The caller may try again later.
    Busy,
}

/// Leases the slot of `word` for `reader` if the slot holds unit `sequence`. The reader must not already lease this
/// slot.
pub fn lease<R: Rules>(word: &impl Word, sequence: u64, reader: u32) -> Lease {
    for _ in 0..ATTEMPTS_MAX {
        let current = word.load(R::LEASE);
        if (R::REFUSES_OTHERS && sequence_of(current) != sequence)
            || (R::REFUSES_WRITING && current & WRITING != 0)
        {
            return Lease::Gone;
        }
        if word.swap_if(current, current | bit(reader), Relaxed) {
            return Lease::Held;
        }
    }
    Lease::Busy
}

/// Releases the lease of `reader` on the slot of `word`.
pub fn release<R: Rules>(word: &impl Word, reader: u32) {
    word.and(!bit(reader), R::RELEASE);
}

/// Releases every lease of a reader that has ended. The caller must hold the lock of that reader number during the
/// call. Otherwise a new reader could take the number, and this call would release the new reader's leases.
pub fn reap(slots: &impl Slots, reader: u32) {
    for slot in 0..slots.count() {
        let word = slots.word(slot);
        if word.load(Relaxed) & bit(reader) != 0 {
            word.and(!bit(reader), Release);
        }
    }
}

/// Returns the overdue readers, one bit each, at the time when the writer wants to claim a slot for `sequence`. A
/// reader is overdue if it leases a unit that a ring without leases would already have overwritten.
pub fn overdue(slots: &impl Slots, sequence: u64) -> u64 {
    let oldest = sequence.saturating_sub(u64::from(slots.count()));
    let words = (0..slots.count()).map(|slot| slots.word(slot).load(Relaxed));
    words.filter(|&word| sequence_of(word) <= oldest).fold(0, |readers, word| readers | readers_of(word))
}

/// Empties the slots that a dead writer left as WRITING. The leases on other slots stay. Only the ring's single writer
/// may call this.
pub fn sweep(slots: &impl Slots) {
    for slot in 0..slots.count() {
        let word = slots.word(slot);
        if word.load(Relaxed) & WRITING != 0 {
            word.store(0, Release);
        }
    }
}

const fn bit(reader: u32) -> u64 {
    (1 << (reader % READERS_MAX)) & READERS
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    struct Ring {
        words: Vec<AtomicU64>,
        latest: AtomicU64,
        /// Two words per slot. A reader with a lease must find the sequence in both.
        data: Vec<[AtomicU64; 2]>,
    }

    impl Slots for Ring {
        type Word = AtomicU64;

        fn count(&self) -> u32 {
            u32::try_from(self.words.len()).unwrap()
        }

        fn word(&self, slot: u32) -> &AtomicU64 {
            &self.words[slot as usize]
        }
    }

    impl Ring {
        fn new(slots: usize) -> Ring {
            Ring {
                words: (0..slots).map(|_| AtomicU64::new(0)).collect(),
                latest: AtomicU64::new(0),
                data: (0..slots).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            }
        }

        fn newest_slot(&self) -> Option<u32> {
            let (sequence, slot) = latest::<Sound>(&self.latest);
            (sequence != 0).then_some(slot)
        }

        fn write(&self, sequence: u64) -> Option<u32> {
            let slot = claim::<Sound>(self, sequence, self.newest_slot())?;
            self.data[slot as usize].iter().for_each(|word| word.store(sequence, Relaxed));
            publish::<Sound>(self, slot, sequence, &self.latest);
            Some(slot)
        }
    }

    #[test]
    fn units_rotate_through_the_slots_and_latest_follows() {
        let ring = Ring::new(4);
        for sequence in 1..=20 {
            assert_eq!(ring.write(sequence), Some(((sequence - 1) % 4) as u32));
            assert_eq!(latest::<Sound>(&ring.latest).0, sequence);
        }
    }

    #[test]
    fn claim_skips_leased_slots_and_takes_the_oldest_unit() {
        let ring = Ring::new(4);
        (1..=4).for_each(|sequence| assert!(ring.write(sequence).is_some()));
        assert_eq!(lease::<Sound>(&ring.words[0], 1, 7), Lease::Held);
        assert_eq!(ring.write(5), Some(1));
        assert_eq!(ring.write(6), Some(2));
        assert_eq!(overdue(&ring, 7), 1 << 7);
        release::<Sound>(&ring.words[0], 7);
        assert_eq!(overdue(&ring, 7), 0);
        assert_eq!(ring.write(7), Some(0), "the oldest unit's slot");
    }

    #[test]
    fn unit_is_dropped_when_all_other_slots_are_leased() {
        let ring = Ring::new(4);
        (1..=4).for_each(|sequence| assert!(ring.write(sequence).is_some()));
        (0..3).for_each(|slot| assert_eq!(lease::<Sound>(ring.word(slot), slot.into(), 0), Lease::Gone));
        (0..3)
            .for_each(|slot| assert_eq!(lease::<Sound>(ring.word(slot), (slot + 1).into(), 0), Lease::Held));
        assert_eq!(ring.write(5), None);
        assert_eq!(lease::<Sound>(ring.word(3), 4, 1), Lease::Held, "the newest can always be leased");
        reap(&ring, 0);
        assert_eq!(ring.write(6), Some(0));
    }

    #[test]
    fn slot_that_is_written_or_holds_another_unit_is_not_leased() {
        let ring = Ring::new(2);
        ring.write(1);
        let slot = claim::<Sound>(&ring, 2, ring.newest_slot()).unwrap();
        assert_eq!(lease::<Sound>(ring.word(slot), 2, 0), Lease::Gone);
        assert!(!is_readable(ring.word(slot).load(Relaxed)));
        sweep(&ring);
        assert_eq!(ring.word(slot).load(Relaxed), 0);
        assert_eq!(lease::<Sound>(ring.word(0), 2, 0), Lease::Gone);
        assert_eq!(lease::<Sound>(ring.word(0), 1, 0), Lease::Held);
        sweep(&ring);
        assert_eq!(readers_of(ring.word(0).load(Relaxed)), 1, "a sweep keeps leases");
    }

    #[test]
    fn sequences_wrap_past_zero() {
        assert_eq!(after(0), 1);
        assert_eq!(after(SEQUENCE_MAX), 1);
        assert_eq!(sequence_of(SEQUENCE_MAX << SEQUENCE_SHIFT | WRITING | READERS), SEQUENCE_MAX);
    }

    #[test]
    fn unit_read_under_a_lease_is_never_torn() {
        let (ring, done) = (Ring::new(4), AtomicBool::new(false));
        // Miri is slow, so the test writes fewer units under Miri.
        let units = if cfg!(miri) { 200 } else { 200_000 };
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (ring, done) = (&ring, &done);
                scope.spawn(move || {
                    while !done.load(Relaxed) {
                        let (sequence, slot) = latest::<Sound>(&ring.latest);
                        if lease::<Sound>(ring.word(slot), sequence, reader) != Lease::Held {
                            continue;
                        }
                        for word in &ring.data[slot as usize] {
                            assert_eq!(word.load(Relaxed), sequence);
                            std::thread::yield_now();
                        }
                        release::<Sound>(ring.word(slot), reader);
                    }
                });
            }
            let written = (1..=units).filter(|sequence| ring.write(*sequence).is_some()).count();
            assert!(written > 0);
            done.store(true, Relaxed);
        });
        assert!(ring.words.iter().all(|word| readers_of(word.load(Relaxed)) == 0));
    }
}
