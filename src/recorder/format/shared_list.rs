//! PURE: an append-only list. One owner appends to it, while others read its prefix on other threads, without locks.

use std::sync::{Arc, OnceLock};

use crate::base::limits::{RECORDING_UNITS_MAX, SHARED_LIST_CHUNK};

type Chunk<T> = Box<[OnceLock<T>]>;

/// A list of at most [`RECORDING_UNITS_MAX`] entries. A clone has the entries that the list had when it was cloned. It
/// shares their memory.
#[derive(Clone, Debug)]
pub(super) struct SharedList<T> {
    chunks: Arc<[OnceLock<Chunk<T>>]>,
    len: usize,
}

impl<T> Default for SharedList<T> {
    fn default() -> Self {
        let chunks = (0..RECORDING_UNITS_MAX / SHARED_LIST_CHUNK).map(|_| OnceLock::new());
        SharedList { chunks: chunks.collect(), len: 0 }
    }
}

impl<T: Copy> SharedList<T> {
    /// Appends an entry. Does nothing if the list is full.
    pub(super) fn push(&mut self, entry: T) {
        let Some(chunk) = self.chunks.get(self.len / SHARED_LIST_CHUNK) else { return };
        let chunk = chunk.get_or_init(|| (0..SHARED_LIST_CHUNK).map(|_| OnceLock::new()).collect());
        let is_ours = chunk.get(self.len % SHARED_LIST_CHUNK).is_some_and(|place| place.set(entry).is_ok());
        if is_ours {
            self.len += 1;
        } else {
            // Another clone has already appended here, so this list needs its own memory.
            let mut own = SharedList::default();
            self.iter().chain([entry]).for_each(|entry| own.push(entry));
            *self = own;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        self.chunks.get(index / SHARED_LIST_CHUNK)?.get()?.get(index % SHARED_LIST_CHUNK)?.get().copied()
    }

    #[cfg(test)]
    fn last(&self) -> Option<T> {
        self.get(self.len.checked_sub(1)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> {
        let entries = self.chunks.iter().map_while(OnceLock::get).flat_map(|chunk| chunk.iter());
        entries.take(self.len).map_while(|entry| entry.get().copied())
    }

    /// Returns a list with the first `len` entries, or with all if there are fewer.
    pub(super) fn first(&self, len: usize) -> SharedList<T> {
        SharedList { chunks: Arc::clone(&self.chunks), len: self.len.min(len) }
    }
}

impl<T: Copy + PartialEq> PartialEq for SharedList<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<T: Copy + Eq> Eq for SharedList<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_its_prefix_while_the_list_grows() {
        let mut list = SharedList::default();
        (0..5_000).for_each(|number: u32| list.push(number));
        let early = list.clone();
        (5_000..20_000).for_each(|number| list.push(number));
        assert!(list.iter().eq(0..20_000) && early.iter().eq(0..5_000));
        assert_eq!((list.last(), early.last(), early.get(5_000)), (Some(19_999), Some(4_999), None));
        assert!(list.first(7).iter().eq(0..7) && list.first(99_999) == list);
        let mut other = early.clone();
        other.push(7);
        assert_eq!((other.len(), other.last(), list.get(5_000)), (5_001, Some(7), Some(5_000)));
        assert!(early != list && early == list.first(5_000));
    }

    #[test]
    fn a_full_list_takes_no_more() {
        let mut list = SharedList::default();
        (0..RECORDING_UNITS_MAX + 5).for_each(|_| list.push(1_u8));
        assert_eq!(list.len(), RECORDING_UNITS_MAX);
    }
}
