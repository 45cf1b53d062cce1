//! Stores RTP payloads in reference-counted buffers that all viewers share. A buffer is reused when no viewer holds it
//! any more. This module does not interpret the payloads.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::limits;

/// Consecutive RTP payloads of one access unit, packed into one buffer.
///
/// All viewers of a worker share the buffer, and their retransmission caches hold it. Several payloads have one common
/// reference count, so caching a payload is cheap.
#[derive(Debug, Default)]
pub struct Payloads {
    bytes: Vec<u8>,
    /// End offset of each payload in `bytes`. 16 bits suffice, because a buffer is shorter than 2^16 bytes.
    ends: Vec<u16>,
}

impl Payloads {
    /// Allocates a buffer for payloads that have `bytes` bytes in total.
    fn with_room(bytes: usize) -> Payloads {
        Payloads {
            bytes: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(limits::PAYLOADS_OF_BUFFER_MAX),
        }
    }

    /// Returns the number of payloads.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns true if there are no payloads.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the total size of all payloads in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the payload with this index, or `None` if there are fewer payloads.
    #[inline] // it is called once per packet, and the release build inlines little by itself
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = usize::from(*self.ends.get(index)?);
        self.bytes.get(self.start(index)..end)
    }

    /// Iterates over all payloads in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + DoubleEndedIterator {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    fn start(&self, index: usize) -> usize {
        let before = index.checked_sub(1).and_then(|before| self.ends.get(before));
        before.map_or(0, |end| usize::from(*end))
    }

    /// Returns true if a payload of `bytes` bytes fits without an allocation.
    fn has_room(&self, bytes: usize) -> bool {
        self.ends.len() < self.ends.capacity() && self.bytes.len() + bytes <= self.bytes.capacity()
    }

    /// Appends one payload. The closure `write` appends the bytes of the payload.
    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        let end = u16::try_from(self.bytes.len());
        debug_assert!(end.is_ok(), "a buffer is smaller than 64 KiB");
        self.ends.push(end.unwrap_or(u16::MAX));
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Builds payloads without a packetiser, for tests and benchmarks.
///
/// # Panics
/// Panics if the payloads have 64 KiB or more in total.
impl<P: AsRef<[u8]>> FromIterator<P> for Payloads {
    fn from_iter<I: IntoIterator<Item = P>>(payloads: I) -> Payloads {
        let mut all = Payloads::default();
        for payload in payloads {
            all.push(|bytes| bytes.extend_from_slice(payload.as_ref()));
            assert!(all.bytes.len() <= usize::from(u16::MAX), "a buffer is smaller than 64 KiB");
        }
        all
    }
}

/// A pool of payload buffers that all have the same size.
///
/// The pool keeps a reference to each buffer that it has handed out. When all viewers have dropped their references,
/// the pool's reference is the only one left and the buffer can be reused. Viewers drop buffers roughly in the order in
/// which they were sent, so the search for free buffers starts at the oldest.
pub(super) struct Pool {
    buffer_bytes: usize,
    free: Vec<Arc<Payloads>>,
    handed_out: VecDeque<Arc<Payloads>>,
    /// The buffer to which the next payload is appended. It moves to `handed_out` when it is closed.
    open: Option<Arc<Payloads>>,
    /// Maximum number of handed-out buffers that the pool tracks. Further buffers are freed when viewers drop them.
    buffers_max: usize,
    pub(super) allocations: u64,
}

impl Pool {
    /// Creates a pool. Each buffer holds payloads of up to `buffer_bytes` bytes, and all tracked buffers together take
    /// about `bytes_max` bytes at most.
    pub(super) fn new(buffer_bytes: usize, bytes_max: usize) -> Pool {
        let buffers_max = bytes_max / (buffer_bytes + limits::PAYLOAD_BUFFER_OVERHEAD_BYTES);
        Pool {
            buffer_bytes,
            free: Vec::new(),
            handed_out: VecDeque::new(),
            open: None,
            buffers_max,
            allocations: 0,
        }
    }

    /// Moves buffers that no viewer holds any more to the free list. The search starts at the oldest buffer.
    ///
    /// The search ends after [`limits::PAYLOAD_POOL_CHECKS_MAX`] buffers that are still held. If it has found no free
    /// buffer, the held ones move to the back of the queue. The next search then starts at the buffers behind them.
    pub(super) fn collect(&mut self) {
        let mut passed = 0;
        let mut found = false;
        while passed < limits::PAYLOAD_POOL_CHECKS_MAX
            && let Some(buffer) = self.handed_out.get_mut(passed)
        {
            if Arc::strong_count(buffer) == 1 && Arc::get_mut(buffer).is_some() {
                // The front buffer takes the place of the removed one. The queue stays nearly sorted by age, because
                // the front buffer is also old.
                self.free.extend(self.handed_out.swap_remove_front(passed));
                found = true;
            } else {
                passed += 1;
            }
        }
        if !found && passed < self.handed_out.len() {
            self.handed_out.rotate_left(passed);
        }
    }

    /// Appends a payload of `bytes` bytes, which the closure `write` writes. The payload must fit in one buffer. If it
    /// does not fit in the open buffer, that buffer is closed and pushed to `out`, and a new one is opened.
    pub(super) fn write(
        &mut self,
        bytes: usize,
        out: &mut Vec<Arc<Payloads>>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.open.as_ref().is_some_and(|buffer| !buffer.has_room(bytes)) {
            self.close(out);
        }
        let mut buffer = self.open.take().unwrap_or_else(|| self.take());
        let unique = Arc::get_mut(&mut buffer);
        assert!(unique.is_some(), "an open buffer has one handle");
        if let Some(payloads) = unique {
            payloads.push(write);
        }
        self.open = Some(buffer);
    }

    /// Closes the open buffer, if there is one, and pushes it to `out`.
    pub(super) fn close(&mut self, out: &mut Vec<Arc<Payloads>>) {
        if let Some(buffer) = self.open.take() {
            if self.handed_out.len() >= self.buffers_max {
                self.handed_out.pop_front();
            }
            self.handed_out.push_back(Arc::clone(&buffer));
            out.push(buffer);
        }
    }

    fn take(&mut self) -> Arc<Payloads> {
        let Some(mut buffer) = self.free.pop() else {
            self.allocations += 1;
            // Both lists get a place for the new buffer now, so that no other method of the pool needs to allocate.
            self.handed_out.reserve(1);
            self.free.reserve(self.handed_out.len() + 1);
            return Arc::new(Payloads::with_room(self.buffer_bytes));
        };
        if let Some(payloads) = Arc::get_mut(&mut buffer) {
            payloads.clear();
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn write(pool: &mut Pool, sizes: &[usize]) -> Vec<Arc<Payloads>> {
        let mut out = Vec::new();
        for size in sizes {
            let byte = u8::try_from(*size % 251).unwrap();
            pool.write(*size, &mut out, |bytes| bytes.resize(bytes.len() + size, byte));
        }
        pool.close(&mut out);
        out
    }

    #[test]
    fn payloads_share_a_buffer_until_it_is_full() {
        let mut pool = Pool::new(100, 10_000);
        let groups = write(&mut pool, &[40, 60, 1, 99, 100, 30, 80]);
        let lengths: Vec<Vec<usize>> =
            groups.iter().map(|group| group.iter().map(<[u8]>::len).collect()).collect();
        assert_eq!(lengths, [vec![40, 60], vec![1, 99], vec![100], vec![30], vec![80]]);
        assert!(groups[1].get(1).unwrap().iter().all(|byte| *byte == 99));
        assert_eq!((groups[1].bytes(), groups[1].get(2)), (100, None));
        let tiny = write(&mut pool, &[1; limits::PAYLOADS_OF_BUFFER_MAX + 1]);
        assert_eq!(
            tiny.iter().map(|group| group.len()).collect::<Vec<_>>(),
            [limits::PAYLOADS_OF_BUFFER_MAX, 1]
        );
    }

    #[test]
    fn pool_size_is_bounded_when_viewers_hold_many_buffers() {
        let mut pool = Pool::new(1_000, 100_000);
        let mut held = Vec::new();
        for index in 0..5_000 {
            held.extend(write(&mut pool, &[1 + index * 7 % 999]));
            assert!(pool.handed_out.len() <= pool.buffers_max);
        }
        held.clear();
        for index in 0..5_000 {
            pool.collect();
            write(&mut pool, &[1 + index * 13 % 999]);
            assert!(pool.free.len() + pool.handed_out.len() <= pool.buffers_max + 1);
        }
        assert_eq!(pool.allocations, 5_000, "the second half reuses pooled buffers");
    }
}
