//! RTP payloads in buffers that viewers share and that are used again once nobody holds them any more. Knows nothing of
//! what a payload says.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::limits;

/// Consecutive RTP payloads of one access unit, one behind the other in one buffer: what all viewers of a worker share,
/// and what they hold to send it again. One handle for several packets, so that holding costs little.
#[derive(Debug, Default)]
pub struct Payloads {
    bytes: Vec<u8>,
    /// Where each ends; fewer than 2^16 bytes in all.
    ends: Vec<u16>,
}

impl Payloads {
    /// Room for payloads of so many bytes together.
    fn with_room(bytes: usize) -> Payloads {
        Payloads {
            bytes: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(limits::PAYLOADS_OF_BUFFER_MAX),
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The payload at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = usize::from(*self.ends.get(index)?);
        self.bytes.get(self.start(index)..end)
    }

    /// All, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + DoubleEndedIterator {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    fn start(&self, index: usize) -> usize {
        let before = index.checked_sub(1).and_then(|before| self.ends.get(before));
        before.map_or(0, |end| usize::from(*end))
    }

    /// Whether one more of `bytes` bytes fits without allocating.
    fn has_room(&self, bytes: usize) -> bool {
        self.ends.len() < self.ends.capacity() && self.bytes.len() + bytes <= self.bytes.capacity()
    }

    /// One more, which `write` writes behind the last.
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

/// For whoever makes payloads without a packetiser.
///
/// # Panics
/// Where they have 64 KiB or more together.
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

/// Buffers for payloads, all of one size.
///
/// The pool keeps a handle to what it hands out and gets the buffer back when that handle is the only one
/// left. Viewers let go roughly in the order of sending, so the search starts at the oldest.
pub(super) struct Pool {
    buffer_bytes: usize,
    free: Vec<Arc<Payloads>>,
    handed_out: VecDeque<Arc<Payloads>>,
    /// The buffer that takes the next payload; handed out when it is closed.
    open: Option<Arc<Payloads>>,
    /// Buffers known at most: the rest is the allocator's when it is let go.
    buffers_max: usize,
    pub(super) allocations: u64,
}

impl Pool {
    /// Of buffers for `buffer_bytes`, all together about `bytes_max`.
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

    /// Takes back buffers that nobody else holds, oldest first. Held ones are passed over, at most
    /// [`limits::PAYLOAD_POOL_CHECKS_MAX`] of them; if nothing else was found they go to the back of the queue,
    /// so that one viewer's hoard does not hide what lies behind it.
    pub(super) fn collect(&mut self) {
        let mut passed = 0;
        let mut found = false;
        while passed < limits::PAYLOAD_POOL_CHECKS_MAX
            && let Some(buffer) = self.handed_out.get_mut(passed)
        {
            if Arc::strong_count(buffer) == 1 && Arc::get_mut(buffer).is_some() {
                // Puts the passed front one in its place: the order stays nearly that of handing out.
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

    /// Has `write` write a payload of `bytes` bytes, at most a buffer's, behind the one before it. A buffer that is full is
    /// put into `out`.
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

    /// Puts the open buffer, if there is one, into `out`.
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
            // Room to keep the buffer in either place: nothing else here grows.
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
    fn payloads_lie_side_by_side_until_a_buffer_is_full() {
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
    fn the_pool_is_bounded_however_much_is_held() {
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
        assert_eq!(pool.allocations, 5_000, "then each is one of those that are known");
    }
}
