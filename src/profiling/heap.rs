//! The heap profile. Records the stacks of sampled allocations, and which of these allocations are still alive. The
//! tables have a fixed size. One lock guards them. It is taken about once per 512 kB of allocation, and at most once
//! per free of an address that the filter reports as sampled. The allocator calls this module, so only the encoding may
//! allocate.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use heapless::index_map::FnvIndexMap;

use super::pprof::{self, Description, Sample};
use super::stack;
use super::table::mix;
use crate::base::limits::{
    HEAP_FILTER_BYTES, HEAP_LIVE_MAX, HEAP_SAMPLING_BYTES, HEAP_STACK_FRAMES_MAX, HEAP_STACKS_MAX,
};

/// The kind of heap profile. Both kinds contain all sample types; they differ only in the type that pprof shows first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heap {
    /// Memory that is still allocated (`heap`).
    InUse,
    /// All memory allocated since the start (`allocs`).
    Allocs,
}

/// Regular expression of the functions that lie between the allocating code and the sampling code in a stack. pprof
/// hides these functions. None of them calls back into the allocating code.
const ALLOCATION_FRAMES: &str = "<?streaming_server::profiling::.*|.*__(rust|rdl|rg)_(alloc|realloc|alloc_zeroed)\
    |<?alloc::(alloc|raw_vec)::.*";

static HEAP: Mutex<Tables> = Mutex::new(Tables::EMPTY);
/// Number of samples lost because the tables were full.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Number of live sampled addresses per hash value of the address. An entry that has reached 255 stays at 255, because
/// its true count is no longer known.
static FILTER: [AtomicU8; HEAP_FILTER_BYTES] = [const { AtomicU8::new(0) }; HEAP_FILTER_BYTES];

thread_local! {
    // Without a destructor, these variables can be used until the thread ends, and the first use registers nothing that
    // could allocate.
    static BYTES_LEFT: Cell<i64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// Counts the bytes of an allocation. Returns true if the allocation must be sampled. This is the whole cost of an
/// allocation that is not sampled.
#[inline]
pub(super) fn is_due(bytes: usize) -> bool {
    BYTES_LEFT.with(|left| {
        let after = left.get().wrapping_sub(bytes.cast_signed() as i64);
        left.set(after);
        after < 0
    })
}

/// Returns true if `address` may have been sampled, and false for nearly every address that was not. This is the whole
/// cost of freeing an address that was not sampled.
#[inline]
pub(super) fn may_be_sampled(address: usize) -> bool {
    filter(address).is_some_and(|count| count.load(Ordering::Relaxed) != 0)
}

#[inline]
fn filter(address: usize) -> Option<&'static AtomicU8> {
    const SHIFT: u32 = u64::BITS - HEAP_FILTER_BYTES.trailing_zeros();
    let place = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> SHIFT;
    FILTER.get(usize::try_from(place).unwrap_or(0))
}

/// Records a sampled allocation and draws the random distance to the thread's next sample.
#[cold]
#[inline(never)]
pub(super) fn sample(address: usize, bytes: usize) {
    let is_first = RANDOM.get() == 0;
    let mut distance = random_distance();
    if is_first {
        // This is the first allocation of the thread, so the countdown starts here. The allocation is sampled only if
        // the first random distance ends within the allocation.
        let left = distance - bytes.cast_signed() as i64;
        if left >= 0 {
            BYTES_LEFT.set(left);
            return;
        }
        distance = random_distance();
    }
    BYTES_LEFT.set(distance);
    let mut frames = heapless::Vec::<usize, HEAP_STACK_FRAMES_MAX>::new();
    stack::keeping_errno(|| stack::walk_from_here(&mut frames));
    if !tables().add(address, bytes, &frames) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Removes an address from the profile if it was sampled. Callers must call this before they free the memory.
#[cold]
#[inline(never)]
pub(super) fn forget(address: usize) {
    tables().remove(address);
}

fn tables() -> MutexGuard<'static, Tables> {
    HEAP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns an exponentially distributed distance in bytes whose mean is the sampling distance. Every allocated byte
/// then has the same probability of being sampled.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a random number below 2^25"
)]
fn random_distance() -> i64 {
    static SEED: AtomicU64 = AtomicU64::new(1);
    let mut state = RANDOM.get();
    if state == 0 {
        state = mix(SEED.fetch_add(1, Ordering::Relaxed)); // unrelated to the states of other threads
    }
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15).max(1);
    RANDOM.set(state);
    let uniform = ((mix(state) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    (-uniform.ln() * HEAP_SAMPLING_BYTES as f64) as i64 + 1
}

/// An allocation site: a stack and its sampled allocations.
#[derive(Clone, Default)]
struct Site {
    frames: heapless::Vec<usize, HEAP_STACK_FRAMES_MAX>,
    allocated_count: u64,
    allocated_bytes: u64,
    freed_count: u64,
    freed_bytes: u64,
}

/// A live sampled allocation.
struct Living {
    bytes: usize,
    /// Index of the allocation site in the table `sites`.
    site: usize,
}

struct Tables {
    /// Allocation sites by a hash of the stack. Site 0 has the hash 0 and collects the samples of stacks that did not
    /// fit.
    sites: FnvIndexMap<u64, Site, HEAP_STACKS_MAX>,
    /// Live sampled allocations by address.
    living: FnvIndexMap<usize, Living, HEAP_LIVE_MAX>,
}

impl Tables {
    /// Empty tables. They consist of zeroes, so they take no space in the binary, and they take memory only as they
    /// fill.
    const EMPTY: Tables = Tables { sites: FnvIndexMap::new(), living: FnvIndexMap::new() };

    /// Adds a sampled allocation. Returns false if the table of live allocations is three quarters full.
    fn add(&mut self, address: usize, bytes: usize, frames: &[usize]) -> bool {
        if self.living.len() >= HEAP_LIVE_MAX / 4 * 3 {
            return false;
        }
        let index = self.site_of(frames);
        let Some((_, site)) = self.sites.get_index_mut(index) else { return false };
        site.allocated_count += 1;
        site.allocated_bytes += bytes as u64;
        let _ = self.living.insert(address, Living { bytes, site: index }); // cannot fail: a quarter of the table is free
        if let Some(count) = filter(address) {
            count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        }
        true
    }

    /// Returns the index of the site for a stack. Adds a new site if there is room. Otherwise returns 0, the common
    /// site of all stacks that did not fit.
    fn site_of(&mut self, frames: &[usize]) -> usize {
        if self.sites.is_empty() {
            let _ = self.sites.insert(0, Site::default());
        }
        let key = frames.iter().fold(1, |key, frame| mix(key ^ *frame as u64)).max(1);
        if let Some(index) = self.sites.get_index_of(&key) {
            return index;
        }
        let frames = heapless::Vec::from_slice(frames).unwrap_or_default();
        match self.sites.insert(key, Site { frames, ..Site::default() }) {
            Ok(_) => self.sites.len() - 1,
            Err(_) => 0,
        }
    }

    fn remove(&mut self, address: usize) {
        let Some(found) = self.living.swap_remove(&address) else {
            return; // the address was not sampled: the filter gave a false positive
        };
        if let Some((_, site)) = self.sites.get_index_mut(found.site) {
            site.freed_count += 1;
            site.freed_bytes += found.bytes as u64;
        }
        if let Some(count) = filter(address)
            && count.load(Ordering::Relaxed) != u8::MAX
        {
            count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
    }
}

/// Returns the heap profile as a gzip-compressed profile.proto with Go's sample types: `alloc_objects`, `alloc_space`,
/// `inuse_objects`, `inuse_space`. Values are scaled up from samples that are 512 kB apart on average. The profile is
/// empty unless [`Allocator`](super::Allocator) is the global allocator.
#[must_use]
pub fn heap_profile(kind: Heap) -> Vec<u8> {
    let lost = LOST.load(Ordering::Relaxed);
    let mut comments = vec![format!("sampled every {HEAP_SAMPLING_BYTES} bytes on average and scaled up")];
    if lost > 0 {
        comments.push(format!("{lost} samples did not fit into the table and are missing"));
    }
    let description = Description {
        sample_types: vec![
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ],
        default_type: if kind == Heap::InUse { "inuse_space" } else { "alloc_space" },
        period_type: ("space", "bytes"),
        period: i64::try_from(HEAP_SAMPLING_BYTES).unwrap_or(0),
        duration_ns: 0,
        drop_frames: ALLOCATION_FRAMES,
        comments,
    };
    let site_count = tables().sites.len();
    pprof::encode(&description, &|visit| {
        for index in 0..site_count {
            // The site is copied, because the visitor allocates, and the lock must not be held during an allocation.
            let Some(site) = tables().sites.get_index(index).map(|(_, site)| site.clone()) else { break };
            if site.allocated_count == 0 {
                continue;
            }
            let live_count = site.allocated_count - site.freed_count;
            let live_bytes = site.allocated_bytes - site.freed_bytes;
            let (alloc_objects, alloc_space) = scaled(site.allocated_count, site.allocated_bytes);
            let (inuse_objects, inuse_space) = scaled(live_count, live_bytes);
            let values = [alloc_objects, alloc_space, inuse_objects, inuse_space];
            visit(&Sample { frames: &site.frames, values: &values, labels: &[] });
        }
    })
}

/// Returns the estimated count and bytes of all allocations, given the count and bytes of the samples. An allocation of
/// `b` bytes is sampled with probability `1 - e^(-b / distance)`, where `distance` is `HEAP_SAMPLING_BYTES`.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate, saturating")]
fn scaled(count: u64, bytes: u64) -> (i64, i64) {
    if count == 0 || bytes == 0 {
        return (0, 0);
    }
    let average = bytes as f64 / count as f64;
    let factor = 1.0 / (1.0 - (-average / HEAP_SAMPLING_BYTES as f64).exp());
    ((count as f64 * factor).round() as i64, (bytes as f64 * factor).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn empty() -> Box<Tables> {
        Box::new(Tables::EMPTY)
    }

    proptest! {
        #![proptest_config(support::properties())]

        /// Compares the tables with a map of live allocations.
        #[test]
        fn tables_agree_with_a_map(steps in prop::collection::vec((any::<bool>(), 1..400_usize, 1..9_usize), 1..600)) {
            let (mut tables, mut map) = (empty(), HashMap::new());
            for (is_add, number, site) in steps {
                // The addresses have few distinct low bits, so that table entries collide.
                let address = number * 0x1_0000_0010;
                if is_add {
                    if let std::collections::hash_map::Entry::Vacant(place) = map.entry(address) {
                        prop_assert!(tables.add(address, number, &[site, 7]));
                        place.insert((number, site));
                    }
                } else {
                    tables.remove(address);
                    map.remove(&address);
                }
            }
            prop_assert_eq!(tables.living.len(), map.len());
            for site in tables.sites.values().filter(|site| site.allocated_count > 0) {
                let own = site.frames.first().copied().unwrap_or(0);
                let bytes: usize = map.values().filter(|(_, site)| *site == own).map(|(bytes, _)| bytes).sum();
                prop_assert_eq!(site.allocated_bytes - site.freed_bytes, bytes as u64);
            }
            for address in map.into_keys() {
                prop_assert!(may_be_sampled(address));
                tables.remove(address);
            }
            prop_assert_eq!(tables.living.len(), 0);
        }
    }

    #[test]
    fn full_tables_reject_samples_and_recover() {
        let mut tables = empty();
        let room = (1..=HEAP_LIVE_MAX).filter(|number| tables.add(number * 64, 1, &[*number])).count();
        assert_eq!(room, HEAP_LIVE_MAX / 4 * 3);
        assert_eq!(tables.sites.len(), HEAP_STACKS_MAX);
        let others = tables.sites.first().map(|(_, site)| site.allocated_count);
        assert_eq!(others, Some((room - HEAP_STACKS_MAX + 1) as u64));
        (1..=HEAP_LIVE_MAX).for_each(|number| tables.remove(number * 64));
        assert_eq!(tables.living.len(), 0);
    }

    #[test]
    fn distances_average_to_the_sampling_distance() {
        let sum: i64 = (0..100_000).map(|_| random_distance()).sum();
        let (mean, wanted) = (sum / 100_000, i64::try_from(HEAP_SAMPLING_BYTES).expect("small"));
        assert!((mean - wanted).abs() < wanted / 50, "{mean}");
    }

    #[test]
    fn scaling_compensates_for_sampling() {
        assert_eq!(scaled(0, 0), (0, 0));
        let (objects, bytes) = scaled(10, 10 * 1024);
        assert!(
            (5_115..=5_125).contains(&objects) && (5_230_000..5_255_000).contains(&bytes),
            "{objects} {bytes}"
        );
        let large = 64 * 1024 * 1024;
        assert_eq!(scaled(3, 3 * large), (3, i64::try_from(3 * large).expect("small")));
    }
}
