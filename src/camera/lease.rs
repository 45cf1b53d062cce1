//! PURE: the lease protocol, on one atomic word per slot: claim, publish, lease, release, reap. Knows no memory
//! map, no file and no time; may use nothing but `core`, so that tests/loom can model exactly this code.
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
//!                                                                           look, Acquire; CAS iff it is
//!                                                                           that unit and nobody writes
//! ```
//!
//! Unit `f` has sequence `f + 1`; sequence 0 is an empty slot. A sequence that no slot ever gets is a unit the
//! camera had to drop.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::fence;

/// The slot is being filled.
pub const WRITING: u64 = 1 << 16;
/// One bit for each reader.
pub const READERS: u64 = WRITING - 1;
/// Where the sequence starts in the word.
pub const SEQUENCE_SHIFT: u32 = 24;
/// Sequences have 40 bits: a thousand years of 30 units a second.
pub const SEQUENCE_MAX: u64 = (1 << (64 - SEQUENCE_SHIFT)) - 1;
/// `latest` is a sequence and a slot of 8 bits.
pub const LATEST_SHIFT: u32 = 8;
/// Times a compare-and-swap is tried again because somebody else's bit changed.
const ATTEMPTS_MAX: u32 = 64;

/// Readers a ring can tell apart.
pub const READERS_MAX: u32 = 16;
/// Slots a ring can have.
pub const SLOTS_MAX: u32 = 1 << LATEST_SHIFT;

/// A shared word: the standard library's atomic, or the model checker's.
pub trait Word {
    /// As [`core::sync::atomic::AtomicU64::load`].
    fn load(&self, order: Ordering) -> u64;
    /// As [`core::sync::atomic::AtomicU64::store`].
    fn store(&self, value: u64, order: Ordering);
    /// As [`core::sync::atomic::AtomicU64::compare_exchange`] with a relaxed failure.
    fn swap_if(&self, current: u64, new: u64, order: Ordering) -> bool;
    /// As [`core::sync::atomic::AtomicU64::fetch_and`].
    fn and(&self, mask: u64, order: Ordering);
}

impl Word for core::sync::atomic::AtomicU64 {
    /// A relaxed load and, where asked for, a fence: no less than an acquire load, and allowed on pages that are
    /// mapped read-only.
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

/// The words of all slots.
pub trait Slots {
    /// What a slot's word is.
    type Word: Word;

    /// How many there are, at most [`SLOTS_MAX`].
    fn count(&self) -> u32;

    /// The word of slot `slot`, which is below [`Slots::count`].
    fn word(&self, slot: u32) -> &Self::Word;
}

/// Every ordering and every check of the protocol, each by name, so that the model can weaken one at a time and
/// show that it is needed. [`Sound`] is what runs.
pub trait Rules {
    /// Of the claiming compare-and-swap. Acquire: reads of the slot by its last reader come before our writes.
    /// Release: who sees the slot claimed sees in `latest` that there is a newer unit.
    const CLAIM: Ordering = AcqRel;
    /// Of the publishing store: our writes come before it.
    const PUBLISH: Ordering = Release;
    /// Of looking at a word to lease it: our reads come after the camera's writes, and of a slot that is claimed
    /// the unit is not the newest any more. The compare-and-swap that follows finds the same sequence, so it
    /// needs no ordering of its own.
    const LEASE: Ordering = Acquire;
    /// Of giving the lease back: our reads come before it.
    const RELEASE: Ordering = Release;
    /// Of storing `latest`: who sees it finds the unit in its slot, or a newer one.
    const LATEST_STORE: Ordering = Release;
    /// Of loading `latest`, for the same.
    const LATEST_LOAD: Ordering = Acquire;
    /// A slot with a lease is not claimed.
    const SPARES_LEASED: bool = true;
    /// The slot in `latest` is not claimed: the newest unit can always be leased.
    const SPARES_LATEST: bool = true;
    /// A slot that is being filled is not leased.
    const REFUSES_WRITING: bool = true;
    /// A slot that holds another unit is not leased.
    const REFUSES_OTHERS: bool = true;
}

/// The protocol as it is.
#[derive(Copy, Clone, Debug)]
pub struct Sound;

impl Rules for Sound {}

/// The sequence in a slot's word; 0 is an empty slot.
#[must_use]
pub const fn sequence_of(word: u64) -> u64 {
    word >> SEQUENCE_SHIFT
}

/// Whether a slot holds a whole unit.
#[must_use]
pub const fn is_readable(word: u64) -> bool {
    word & WRITING == 0 && sequence_of(word) != 0
}

/// The readers that hold the slot, one bit each.
#[must_use]
pub const fn readers_of(word: u64) -> u64 {
    word & READERS
}

/// The sequence after this one, past the wrap at 40 bits.
#[must_use]
pub const fn after(sequence: u64) -> u64 {
    if sequence >= SEQUENCE_MAX { 1 } else { sequence + 1 }
}

/// The newest unit: its sequence, 0 before the first, and the slot that holds it.
#[must_use]
pub fn latest<R: Rules>(word: &impl Word) -> (u64, u32) {
    let latest = word.load(R::LATEST_LOAD);
    #[expect(clippy::cast_possible_truncation, reason = "the low 8 bits")]
    let slot = (latest as u32) & (SLOTS_MAX - 1);
    (latest >> LATEST_SHIFT, slot)
}

/// Finds a slot for unit `sequence` and marks it as being filled: of those that nobody leases the one with the
/// oldest unit, but never `latest`, the slot of the newest. `None`: every slot is leased; the unit is to be
/// dropped. For the one writer only; never waits.
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

/// Shows the claimed slot to the readers.
pub fn publish<R: Rules>(slots: &impl Slots, slot: u32, sequence: u64, latest: &impl Word) {
    slots.word(slot).store(sequence << SEQUENCE_SHIFT, R::PUBLISH);
    latest.store(sequence << LATEST_SHIFT | u64::from(slot), R::LATEST_STORE);
}

/// Gives a claimed slot back empty.
pub fn abandon(word: &impl Word) {
    word.store(0, Release);
}

/// What trying to lease a slot gave.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// The slot is ours until [`release`].
    Held,
    /// It does not hold that unit (any more).
    Gone,
    /// Others changed the word all the time; try again later.
    Busy,
}

/// Leases a slot for `reader`, who holds no lease on it, if it holds unit `sequence`.
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

/// Gives a lease back.
pub fn release<R: Rules>(word: &impl Word, reader: u32) {
    word.and(!bit(reader), R::RELEASE);
}

/// Gives back every lease of a reader that is gone. The caller holds that reader's identity meanwhile: else its
/// number might be taken by another reader, whose leases these would be.
pub fn reap(slots: &impl Slots, reader: u32) {
    for slot in 0..slots.count() {
        let word = slots.word(slot);
        if word.load(Relaxed) & bit(reader) != 0 {
            word.and(!bit(reader), Release);
        }
    }
}

/// The readers in the way of the camera, one bit each: those that lease a slot whose unit is older than any a
/// ring without leases would still hold, when `sequence` is about to be claimed.
pub fn overdue(slots: &impl Slots, sequence: u64) -> u64 {
    let oldest = sequence.saturating_sub(u64::from(slots.count()));
    let words = (0..slots.count()).map(|slot| slots.word(slot).load(Relaxed));
    words.filter(|&word| sequence_of(word) <= oldest).fold(0, |readers, word| readers | readers_of(word))
}

/// A word a dead writer left as being filled is made empty; leases stay. For the one writer only.
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
        /// Two words that must agree wherever they are read under a lease.
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
    fn units_go_round_the_slots_and_the_newest_is_known() {
        let ring = Ring::new(4);
        for sequence in 1..=20 {
            assert_eq!(ring.write(sequence), Some(((sequence - 1) % 4) as u32));
            assert_eq!(latest::<Sound>(&ring.latest).0, sequence);
        }
    }

    #[test]
    fn a_leased_slot_is_left_out_and_the_oldest_other_one_taken() {
        let ring = Ring::new(4);
        (1..=4).for_each(|sequence| assert!(ring.write(sequence).is_some()));
        assert_eq!(lease::<Sound>(&ring.words[0], 1, 7), Lease::Held);
        assert_eq!(ring.write(5), Some(1));
        assert_eq!(ring.write(6), Some(2));
        assert_eq!(overdue(&ring, 7), 1 << 7);
        release::<Sound>(&ring.words[0], 7);
        assert_eq!(overdue(&ring, 7), 0);
        assert_eq!(ring.write(7), Some(0), "the oldest again");
    }

    #[test]
    fn with_every_other_slot_leased_the_unit_is_dropped_and_the_newest_stays() {
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
    fn a_slot_that_is_being_filled_or_holds_another_unit_is_not_leased() {
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
        assert_eq!(readers_of(ring.word(0).load(Relaxed)), 1, "a sweep leaves leases alone");
    }

    #[test]
    fn sequences_wrap_past_the_empty_one() {
        assert_eq!(after(0), 1);
        assert_eq!(after(SEQUENCE_MAX), 1);
        assert_eq!(sequence_of(SEQUENCE_MAX << SEQUENCE_SHIFT | WRITING | READERS), SEQUENCE_MAX);
    }

    #[test]
    fn what_is_read_under_a_lease_is_of_one_piece() {
        let (ring, done) = (Ring::new(4), AtomicBool::new(false));
        // Few under an interpreter, many on a machine.
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
