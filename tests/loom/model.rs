//! The lease protocol under a model checker, which tries every interleaving of camera and readers, with every value
//! that the memory model allows. Further tests weaken one ordering or check each, and the model must then fail.
//! The module `lease` is the source file that the server itself is built from.
#![cfg(test)]

#[path = "../../src/camera/lease.rs"]
#[allow(dead_code, reason = "some items are used by the server only")]
mod lease;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lease::{Lease, Rules, Slots, Sound, Word};
use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicU64};
use loom::thread;

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
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

/// The data of a slot. The checker reports an access to `accesses` that is not ordered after the others. `value` shows
/// which unit the data belongs to.
struct Data {
    accesses: UnsafeCell<()>,
    value: AtomicU64,
}

struct Ring {
    words: Vec<AtomicU64>,
    latest: AtomicU64,
    data: Vec<Data>,
    /// The lock for reader number 0. In the real ring it is a lock of the kernel.
    reader_lock: AtomicBool,
}

impl Slots for Ring {
    type Word = AtomicU64;

    fn count(&self) -> u32 {
        self.words.len() as u32
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        &self.words[slot as usize]
    }
}

impl Ring {
    fn new(slots: usize) -> Arc<Ring> {
        let data = |_| Data { accesses: UnsafeCell::new(()), value: AtomicU64::new(0) };
        Arc::new(Ring {
            words: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            latest: AtomicU64::new(0),
            data: (0..slots).map(data).collect(),
            reader_lock: AtomicBool::new(false),
        })
    }

    /// Writes one unit as the camera does, or no unit if every slot is leased.
    fn write<R: Rules>(&self, sequence: u64) {
        let (newest, slot) = lease::latest::<R>(&self.latest);
        let newest = (newest != 0).then_some(slot);
        let Some(slot) = lease::claim::<R>(self, sequence, newest) else { return };
        self.fill(slot, sequence);
        lease::publish::<R>(self, slot, sequence, &self.latest);
    }

    fn fill(&self, slot: u32, sequence: u64) {
        let data = &self.data[slot as usize];
        data.accesses.with_mut(|_| ());
        data.value.store(sequence, Relaxed);
    }

    /// Reads a slot under a lease and asserts that every byte belongs to the unit.
    fn read(&self, slot: u32, sequence: u64) {
        let data = &self.data[slot as usize];
        data.accesses.with(|_| ());
        assert_eq!(data.value.load(Relaxed), sequence, "the slot holds a byte of another unit");
        data.accesses.with(|_| ());
    }

    fn read_leased<R: Rules>(&self, slot: u32, sequence: u64, reader: u32) -> bool {
        if lease::lease::<R>(self.word(slot), sequence, reader) != Lease::Held {
            return false;
        }
        self.read(slot, sequence);
        lease::release::<R>(self.word(slot), reader);
        true
    }

    /// Reads the newest unit, as a reader that follows `latest` does. If this unit cannot be leased, a newer one must
    /// exist.
    fn read_latest<R: Rules>(&self, reader: u32) {
        let (sequence, slot) = lease::latest::<R>(&self.latest);
        if sequence != 0 && !self.read_leased::<R>(slot, sequence, reader) {
            let (newer, _) = lease::latest::<R>(&self.latest);
            assert!(newer > sequence, "the newest unit can always be leased");
        }
    }

    fn try_lock_reader(&self) -> bool {
        self.reader_lock.compare_exchange(false, true, AcqRel, Relaxed).is_ok()
    }

    fn unlock_reader(&self) {
        self.reader_lock.store(false, Release);
    }
}

// ---- scenes that the model checker explores ------------------------------------------------------------

/// A reader follows `latest` while the camera writes to two slots in turn.
fn following<R: Rules + 'static>() {
    let ring = Ring::new(2);
    let reader = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || (0..2).for_each(|_| ring.read_latest::<R>(0)))
    };
    (1..=4).for_each(|sequence| ring.write::<R>(sequence));
    reader.join().unwrap();
    ring.read_latest::<R>(0);
}

/// A reader searches the slots for older units while the camera writes new ones.
fn searching<R: Rules + 'static>() {
    let ring = Ring::new(2);
    let reader = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || {
            ring.read_leased::<R>(0, 1, 0);
            ring.read_leased::<R>(0, 3, 0);
        })
    };
    (1..=3).for_each(|sequence| ring.write::<R>(sequence));
    reader.join().unwrap();
}

/// Two readers lease the same slots. When one of them releases its lease, the lease of the other must stay.
fn two_readers<R: Rules + 'static>() {
    let ring = Ring::new(2);
    ring.write::<R>(1);
    let readers = [0, 1].map(|reader| {
        let ring = Arc::clone(&ring);
        thread::spawn(move || {
            ring.read_leased::<R>(0, 1, reader);
        })
    });
    (2..=3).for_each(|sequence| ring.write::<R>(sequence));
    for reader in readers {
        reader.join().unwrap();
    }
}

/// Reader 0 died while it held a lease. The camera reaps this lease while a new process becomes reader 0.
fn reaping<const HOLDS_LOCK: bool>() {
    let ring = Ring::new(2);
    ring.write::<Sound>(1);
    assert_eq!(lease::lease::<Sound>(ring.word(0), 1, 0), Lease::Held);
    ring.write::<Sound>(2);
    let reader = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || {
            if ring.try_lock_reader() {
                lease::reap(&*ring, 0);
                ring.read_leased::<Sound>(1, 2, 0);
                ring.unlock_reader();
            }
        })
    };
    assert!(lease::overdue(&*ring, 3) & !1 == 0);
    if HOLDS_LOCK {
        if ring.try_lock_reader() {
            lease::reap(&*ring, 0);
            ring.unlock_reader();
        }
    } else if !ring.reader_lock.load(Acquire) {
        lease::reap(&*ring, 0);
    }
    (3..=4).for_each(|sequence| ring.write::<Sound>(sequence));
    reader.join().unwrap();
}

/// A camera died while it filled slot 1. The next camera takes the ring over.
fn taking_over<const SWEEPS: bool>() {
    let ring = Ring::new(2);
    ring.write::<Sound>(1);
    assert_eq!(lease::claim::<Sound>(&*ring, 2, Some(0)), Some(1));
    if SWEEPS {
        lease::sweep(&*ring);
    }
    let reader = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || {
            ring.read_latest::<Sound>(0);
            ring.read_leased::<Sound>(1, 2, 0);
        })
    };
    assert!(!lease::is_readable(ring.word(1).load(Relaxed)));
    if !SWEEPS {
        // A wrong recovery by a restarted camera would leave this state: the half-written slot is marked as published.
        ring.word(1).store(2 << 24, Release);
    }
    (2..=3).for_each(|sequence| ring.write::<Sound>(sequence));
    reader.join().unwrap();
}

fn explore(scene: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    // The variable LOOM_MAX_PREEMPTIONS overrides this bound. Three preemptions are enough to find every weakness
    // below.
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(scene);
}

fn all_scenes<R: Rules + 'static>() {
    explore(following::<R>);
    explore(searching::<R>);
    explore(two_readers::<R>);
}

// ---- tests: the complete protocol has no error -------------------------------------------------------

#[test]
fn reader_that_follows_the_newest_unit_reads_only_complete_units() {
    explore(following::<Sound>);
}

#[test]
fn reader_that_searches_the_slots_reads_only_complete_units() {
    explore(searching::<Sound>);
}

#[test]
fn readers_of_one_slot_keep_each_others_leases() {
    explore(two_readers::<Sound>);
}

#[test]
fn only_a_dead_readers_leases_are_reaped() {
    explore(reaping::<true>);
}

#[test]
fn half_written_slot_of_a_dead_camera_is_never_read() {
    explore(taking_over::<true>);
}

// ---- tests: the model fails if one ordering or check is weakened -----------------------------------------

/// Returns true if the checker finds an error in the scene.
fn fails(scene: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(scene)).is_err()
}

/// Generates one test for each ordering and check. The test weakens only this ordering or check and expects an error.
macro_rules! mutations {
    ($($test:ident: $rule:ident: $kind:ty = $weak:expr;)*) => { $(
        #[test]
        fn $test() {
            struct Weak;
            impl Rules for Weak {
                const $rule: $kind = $weak;
            }
            assert!(fails(all_scenes::<Weak>), "weakening {} goes unnoticed", stringify!($rule));
        }
    )* };
}

mutations! {
    without_acquire_the_claim_is_caught: CLAIM: Ordering = Release;
    without_release_the_claim_is_caught: CLAIM: Ordering = Acquire;
    without_release_the_publish_is_caught: PUBLISH: Ordering = Relaxed;
    without_acquire_the_lease_is_caught: LEASE: Ordering = Relaxed;
    without_release_the_lease_release_is_caught: RELEASE: Ordering = Relaxed;
    without_release_storing_latest_is_caught: LATEST_STORE: Ordering = Relaxed;
    without_acquire_loading_latest_is_caught: LATEST_LOAD: Ordering = Relaxed;
    claiming_leased_slots_is_caught: SPARES_LEASED: bool = false;
    claiming_the_newest_slot_is_caught: SPARES_LATEST: bool = false;
    leasing_a_slot_that_is_written_is_caught: REFUSES_WRITING: bool = false;
    leasing_another_unit_is_caught: REFUSES_OTHERS: bool = false;
}

#[test]
fn reaping_without_the_readers_lock_is_caught() {
    assert!(fails(|| explore(reaping::<false>)));
}

#[test]
fn publishing_a_half_written_slot_is_caught() {
    assert!(fails(|| explore(taking_over::<false>)));
}
