//! The fixed-size table that signal handlers write to. It holds distinct stacks with a count each. Writing takes no
//! lock and does not allocate. The stacks must not be read before all writers are done.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::base::limits::{PROFILE_FRAMES_MAX, PROFILE_STACKS_MAX};

/// Maximum number of entries that are probed for one stack, a local bound.
const PROBES_MAX: usize = 16;

/// The kind of signal that counts as a sample. Other signals are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// Signals of CPU timers.
    Timer,
    /// Signals that this process sent to request a stack.
    Request,
}

/// One distinct stack of one thread. A thread claims the entry by a compare-exchange of `key` from 0. The same thread
/// then fills the other fields and sets `is_complete`.
#[derive(Default)]
struct Entry {
    key: AtomicU64,
    count: AtomicU64,
    thread: AtomicI32,
    first_frame: AtomicU32,
    frame_count: AtomicU32,
    is_complete: AtomicBool,
}

/// A table of stacks and their counts. The top of this file says how it is used.
pub(super) struct Table {
    /// Address range of our own code, which the stack walk needs.
    pub(super) text: Range<usize>,
    pub(super) trigger: Trigger,
    entries: Box<[Entry]>,
    frames: Box<[AtomicUsize]>,
    frames_used: AtomicUsize,
    recorded: AtomicU64,
    lost: AtomicU64,
}

/// One recorded stack.
pub(super) struct Seen {
    pub(super) thread: i32,
    pub(super) count: u64,
    pub(super) frames: Vec<usize>,
}

impl Table {
    pub(super) fn new(trigger: Trigger, text: Range<usize>) -> Self {
        Table {
            text,
            trigger,
            entries: (0..PROFILE_STACKS_MAX).map(|_| Entry::default()).collect(),
            frames: (0..PROFILE_FRAMES_MAX).map(|_| AtomicUsize::new(0)).collect(),
            frames_used: AtomicUsize::new(0),
            recorded: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Adds `count` samples of a stack. This function is async-signal-safe.
    pub(super) fn record(&self, thread: i32, count: u64, frames: &[usize]) {
        self.recorded.fetch_add(count, Ordering::Relaxed);
        let key = key_of(thread, frames);
        let start = usize::try_from(key & 0xffff_ffff).unwrap_or(0);
        for step in 0..PROBES_MAX {
            let Some(entry) = self.entries.get((start + step) & (PROFILE_STACKS_MAX - 1)) else { break };
            match entry.key.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return self.fill(entry, thread, count, frames),
                Err(other) if other == key => {
                    entry.count.fetch_add(count, Ordering::Relaxed);
                    return;
                }
                Err(_) => {}
            }
        }
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Fills a claimed entry. If there is no room for the frames, the entry stays incomplete, and `lost` counts its
    /// samples.
    fn fill(&self, entry: &Entry, thread: i32, count: u64, frames: &[usize]) {
        entry.count.fetch_add(count, Ordering::Relaxed);
        let first = self.frames_used.fetch_add(frames.len(), Ordering::Relaxed);
        let Some(room) = self.frames.get(first..first.saturating_add(frames.len())) else { return };
        for (word, frame) in room.iter().zip(frames) {
            word.store(*frame, Ordering::Relaxed);
        }
        entry.thread.store(thread, Ordering::Relaxed);
        entry.first_frame.store(u32::try_from(first).unwrap_or(0), Ordering::Relaxed);
        entry.frame_count.store(u32::try_from(frames.len()).unwrap_or(0), Ordering::Relaxed);
        entry.is_complete.store(true, Ordering::Release);
    }

    /// Returns all complete stacks, in the order of the table.
    pub(super) fn stacks(&self) -> impl Iterator<Item = Seen> {
        self.entries.iter().filter(|entry| entry.is_complete.load(Ordering::Acquire)).map(|entry| {
            let first = entry.first_frame.load(Ordering::Relaxed) as usize;
            let count = entry.frame_count.load(Ordering::Relaxed) as usize;
            let words = self.frames.get(first..first + count).unwrap_or_default();
            Seen {
                thread: entry.thread.load(Ordering::Relaxed),
                count: entry.count.load(Ordering::Relaxed),
                frames: words.iter().map(|word| word.load(Ordering::Relaxed)).collect(),
            }
        })
    }

    /// Returns the number of samples so far, including lost ones.
    pub(super) fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Relaxed)
    }

    /// Returns the number of samples that did not fit into the table.
    pub(super) fn lost(&self) -> u64 {
        let incomplete = |entry: &&Entry| {
            entry.key.load(Ordering::Relaxed) != 0 && !entry.is_complete.load(Ordering::Acquire)
        };
        let without_frames: u64 =
            self.entries.iter().filter(incomplete).map(|entry| entry.count.load(Ordering::Relaxed)).sum();
        self.lost.load(Ordering::Relaxed) + without_frames
    }
}

/// Returns a 64-bit hash of the thread id and the stack. The hash is never 0. Among 4096 stacks, two have the same hash
/// in about one of 10^12 profiles.
fn key_of(thread: i32, frames: &[usize]) -> u64 {
    let mut key = mix(u64::from(thread.cast_unsigned()) + 1);
    for frame in frames {
        key = mix(key ^ *frame as u64);
    }
    key.max(1)
}

/// Returns a hash of `value`, computed by the finaliser of MurmurHash3. Each bit of `value` changes about half of the
/// bits of the result.
pub(super) fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn totals(table: &Table) -> BTreeMap<(i32, Vec<usize>), u64> {
        let mut all = BTreeMap::new();
        table.stacks().for_each(|seen| *all.entry((seen.thread, seen.frames)).or_insert(0) += seen.count);
        all
    }

    #[test]
    fn concurrent_records_add_up() {
        let table = Table::new(Trigger::Timer, 0..0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..2_000_usize {
                        table.record(thread % 2, 1, &[round % 50, 7, round % 3]);
                    }
                });
            }
        });
        let all = totals(&table);
        assert_eq!(all.values().sum::<u64>(), 8_000);
        assert_eq!((all.len(), table.lost(), table.recorded()), (300, 0, 8_000));
    }

    #[test]
    fn samples_that_do_not_fit_are_counted() {
        let table = Table::new(Trigger::Timer, 0..0);
        let samples = 3 * PROFILE_STACKS_MAX;
        for round in 0..samples {
            table.record(1, 1, &[round; 40]);
        }
        let kept: u64 = totals(&table).values().sum();
        assert!(kept > 1_000, "{kept}");
        assert_eq!(kept + table.lost(), samples as u64);
    }
}
