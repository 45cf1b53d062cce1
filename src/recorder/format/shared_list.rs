//! PURE: an append-only list. One owner appends to it, while others read its prefix on other threads, without locks.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::base::limits::{RECORDING_UNITS_MAX, SHARED_LIST_CHUNK};

/// One entry of the list.
pub(super) type Row = [u32; 3];

type Chunk = Arc<[[AtomicU32; 3]]>;

/// A list of at most [`RECORDING_UNITS_MAX`] rows. A clone has the rows that the list had when it was cloned. It shares
/// their memory.
///
/// The numbers are atomic so that other threads may read the memory to which one thread appends. They need no ordering:
/// a clone reads only rows that were appended before it was made, and what hands it to another thread orders both.
#[derive(Debug)]
pub(super) struct SharedList {
    memory: Arc<Memory>,
    len: usize,
    /// Only this list may fill the rows from `len` to here. They are in `last_chunk`.
    claimed_until: usize,
    last_chunk: Chunk,
}

#[derive(Debug)]
struct Memory {
    chunks: Box<[OnceLock<Chunk>]>,
    /// Number of rows that the clones together have filled or claimed. Only a clone that has as many rows may claim
    /// more.
    claimed: AtomicUsize,
}

impl Default for SharedList {
    fn default() -> Self {
        let chunks = (0..RECORDING_UNITS_MAX / SHARED_LIST_CHUNK).map(|_| OnceLock::new()).collect();
        SharedList::of(Arc::new(Memory { chunks, claimed: AtomicUsize::new(0) }), 0)
    }
}

impl Clone for SharedList {
    fn clone(&self) -> Self {
        self.first(self.len)
    }
}

impl SharedList {
    fn of(memory: Arc<Memory>, len: usize) -> SharedList {
        SharedList { memory, len, claimed_until: len, last_chunk: Arc::default() }
    }

    /// Appends a row. Does nothing if the list is full.
    pub(super) fn push(&mut self, row: Row) {
        if self.len == self.claimed_until && !self.claim() {
            return;
        }
        if let Some([first, second, third]) = self.last_chunk.get(self.len % SHARED_LIST_CHUNK) {
            let [one, two, three] = row;
            first.store(one, Relaxed);
            second.store(two, Relaxed);
            third.store(three, Relaxed);
        }
        self.len += 1;
    }

    /// Claims the rest of a chunk for this list. If another clone has claimed it already, the rows are copied to memory
    /// of its own first. Returns false if the list is full.
    #[cold]
    fn claim(&mut self) -> bool {
        let Some(chunk) = self.memory.chunks.get(self.len / SHARED_LIST_CHUNK) else { return false };
        let end = (self.len / SHARED_LIST_CHUNK + 1) * SHARED_LIST_CHUNK;
        if self.memory.claimed.compare_exchange(self.len, end, Relaxed, Relaxed).is_ok() {
            self.last_chunk = Arc::clone(chunk.get_or_init(new_chunk));
            self.claimed_until = end;
            return true;
        }
        let mut own = SharedList::default();
        self.iter().for_each(|row| own.push(row));
        *self = own;
        self.len < self.claimed_until || self.claim()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> Option<Row> {
        if index >= self.len {
            return None;
        }
        self.memory.chunks.get(index / SHARED_LIST_CHUNK)?.get()?.get(index % SHARED_LIST_CHUNK).map(read)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Row> {
        let rows = self.memory.chunks.iter().map_while(OnceLock::get).flat_map(|chunk| chunk.iter());
        rows.take(self.len).map(read)
    }

    /// Returns a list with the first `len` rows, or with all if there are fewer.
    pub(super) fn first(&self, len: usize) -> SharedList {
        SharedList::of(Arc::clone(&self.memory), self.len.min(len))
    }
}

fn read(place: &[AtomicU32; 3]) -> Row {
    place.each_ref().map(|number| number.load(Relaxed))
}

#[cold]
fn new_chunk() -> Chunk {
    (0..SHARED_LIST_CHUNK).map(|_| Default::default()).collect()
}

impl PartialEq for SharedList {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for SharedList {}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u32) -> Row {
        [number, number + 1, !number]
    }

    #[test]
    fn a_clone_keeps_its_prefix_while_the_list_grows() {
        let rows = |numbers: std::ops::Range<u32>| numbers.map(row);
        let mut list = SharedList::default();
        rows(0..5_000).for_each(|row| list.push(row));
        let early = list.clone();
        rows(5_000..20_000).for_each(|row| list.push(row));
        assert!(list.iter().eq(rows(0..20_000)) && early.iter().eq(rows(0..5_000)));
        assert_eq!((list.get(19_999), early.get(4_999)), (Some(row(19_999)), Some(row(4_999))));
        assert_eq!((list.get(20_000), early.get(5_000)), (None, None));
        assert!(list.first(7).iter().eq(rows(0..7)) && list.first(99_999) == list);
        let mut other = early.clone();
        other.push(row(7));
        assert_eq!((other.len(), other.get(5_000), list.get(5_000)), (5_001, Some(row(7)), Some(row(5_000))));
        assert!(early != list && early == list.first(5_000));
    }

    #[test]
    fn a_list_is_read_on_another_thread_while_it_grows() {
        let (mut list, (clones, received)) = (SharedList::default(), std::sync::mpsc::channel());
        let reader = std::thread::spawn(move || {
            received
                .into_iter()
                .map(|list: SharedList| assert!(list.iter().eq((0..).take(list.len()).map(row))))
                .count()
        });
        for number in 0..20_000 {
            list.push(row(number));
            if number % 500 == 0 {
                clones.send(list.clone()).unwrap();
            }
        }
        drop(clones);
        assert_eq!(reader.join().unwrap(), 40);
    }

    #[test]
    fn a_full_list_takes_no_more() {
        let mut list = SharedList::default();
        (0..RECORDING_UNITS_MAX + 5).for_each(|_| list.push([1, 2, 3]));
        assert_eq!(list.len(), RECORDING_UNITS_MAX);
    }
}
