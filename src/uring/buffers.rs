//! UNSAFE. Owns the memory that the kernel holds while an operation runs: message headers, addresses, control messages,
//! datagrams, the receive buffers and their ring. Only `ring.rs` makes io_uring system calls.
//!
//! Why this is sound:
//! 1. Everything that the kernel gets a pointer to is behind a raw pointer, so moving its owner does not move the
//!    memory. It is either a separate allocation ([`Slot`], and the bytes that a send's slot owns) or a mapping
//!    ([`BufferRing`]).
//! 2. The memory has two states. While it is *ours*, this process may create references to it. It is *held* from the
//!    moment when `ring.rs` takes the pointer for a submission until `ring.rs` returns the operation's last completion.
//!    While memory is held, this process creates no reference to it, writes nothing and frees nothing. Only a [`Cqe`]
//!    with the slot's own token that is the last of its operation ends the held state. Only `ring.rs` creates a
//!    [`Cqe`].
//! 3. Dropping an owner frees memory that is ours and leaks memory that is held. So no order of drops and no panic can
//!    free memory in use, even if the kernel does not answer. The worst case is a leak, which is logged.

#![expect(unsafe_code, reason = "memory shared with the kernel has no owner the borrow checker knows")]

use std::collections::VecDeque;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use memmap2::{MmapMut, MmapRaw};

use super::message::{
    ADDRESS_BYTES, CONTROL_BYTES, Family, ReceiveFault, ReceivedParts, decode_address, decode_local,
    encode_address, encode_control,
};
use super::operation::{Batch, Token};
use super::ring::Cqe;
use crate::base::limits::{
    GSO_BYTES_MAX, RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS, RECEIVE_OPERATIONS, SEND_BUFFERS_KEPT, SENDS_MAX,
};

/// One allocation that the kernel can hold for one operation.
pub(super) struct Slot<T> {
    memory: NonNull<T>,
    token: Token,
    is_held: bool,
}

impl<T> Slot<T> {
    /// Allocates a slot for the operation `token`. Its state is *ours*.
    pub(super) fn new(memory: T, token: Token) -> Slot<T> {
        Slot { memory: NonNull::from(Box::leak(Box::new(memory))), token, is_held: false }
    }

    /// Returns true while the kernel holds the memory.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    pub(super) fn get(&self) -> Option<&T> {
        if self.is_held {
            return None;
        }
        // SAFETY: `memory` comes from Box::leak, so it is aligned, initialized and alive until this slot is dropped.
        // It is not held, so the kernel does not write it. The borrow of self prevents `get_mut` and `hold` as long
        // as the reference lives.
        Some(unsafe { self.memory.as_ref() })
    }

    pub(super) fn get_mut(&mut self) -> Option<&mut T> {
        if self.is_held {
            return None;
        }
        // SAFETY: as in `get`, the memory is valid and not held. The exclusive borrow makes this the only reference.
        Some(unsafe { self.memory.as_mut() })
    }

    /// Marks the memory as held and returns its address and token for a submission. The address is valid until
    /// [`Slot::release`].
    ///
    /// # Panics
    /// If the kernel already holds the memory. The completion of one operation would otherwise release the memory of
    /// the other.
    pub(super) fn hold(&mut self) -> (*mut T, Token) {
        assert!(!self.is_held, "one operation per slot");
        self.is_held = true;
        (self.memory.as_ptr(), self.token)
    }

    /// Takes the memory back from the kernel. `cqe` must be the last completion of the slot's operation.
    ///
    /// # Panics
    /// If `cqe` belongs to another operation or is not the last one. The kernel could then still write the memory.
    pub(super) fn release(&mut self, cqe: &Cqe) {
        assert!(cqe.token() == self.token && cqe.is_last(), "only its own last completion ends an operation");
        self.is_held = false;
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        if self.is_held {
            return; // the memory is leaked, because the kernel may still use it
        }
        // SAFETY: `memory` comes from Box::leak of a Box<T> and is turned back into a box only here, once. It is not
        // held, and no reference outlives the borrow of self.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

/// Memory of one send. `header` is the first field, so a pointer to the memory is also a pointer to the header.
#[repr(C)]
struct SendMemory {
    header: libc::msghdr,
    control: Aligned<CONTROL_BYTES>,
    address: Aligned<ADDRESS_BYTES>,
    iovec: libc::iovec,
    /// The batch's datagrams, one after another. This separate allocation is initialized and at least as long as the
    /// batch.
    bytes: Vec<u8>,
}

/// Bytes with the alignment that the kernel structures in them need.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

/// Returns a message header without address, data and control messages.
fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is a C structure of pointers and integers. All-zero bytes are a valid value for each of them.
    unsafe { std::mem::zeroed() }
}

/// Returns the header of a receive, which tells the kernel how many bytes address and control messages may have.
pub(super) fn receive_header() -> libc::msghdr {
    let mut header = empty_header();
    header.msg_namelen = u32::try_from(ADDRESS_BYTES).unwrap_or_default();
    header.msg_controllen = CONTROL_BYTES;
    header
}

impl SendMemory {
    fn new() -> SendMemory {
        SendMemory {
            header: empty_header(),
            control: Aligned([0; CONTROL_BYTES]),
            address: Aligned([0; ADDRESS_BYTES]),
            iovec: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            bytes: Vec::new(),
        }
    }

    /// Returns the room for a datagram of `bytes` bytes at offset `at`. The first call allocates the bytes of a whole
    /// batch, but only written pages take memory. A datagram larger than a batch enlarges the allocation.
    fn room(&mut self, at: usize, bytes: usize) -> Option<&mut [u8]> {
        let end = at.checked_add(bytes)?;
        if self.bytes.is_empty() {
            self.bytes = vec![0; GSO_BYTES_MAX.max(end)];
        } else if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(at..end)
    }

    /// Fills in the header for `batch`. Returns false if the socket cannot reach the remote address, or if `batch` is
    /// longer than `self.bytes`.
    fn seal(&mut self, batch: &Batch, family: Family) -> bool {
        let Some((address, address_bytes)) = encode_address(batch.route.remote, family) else {
            return false;
        };
        let Some(bytes) = self.bytes.get_mut(..batch.bytes) else { return false };
        self.iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        self.address.0 = address;
        let segment = batch.gso_segment();
        let route = &batch.route;
        let control_bytes = encode_control(&mut self.control.0, family, segment, route.local, route.remote);
        self.header.msg_name = self.address.0.as_mut_ptr().cast();
        self.header.msg_namelen = address_bytes;
        self.header.msg_iov = &raw mut self.iovec;
        self.header.msg_iovlen = 1;
        self.header.msg_control =
            if control_bytes == 0 { ptr::null_mut() } else { self.control.0.as_mut_ptr().cast() };
        self.header.msg_controllen = control_bytes;
        true
    }
}

/// The send operations. They are allocated when first needed, up to a limit, and reused. The operation freed last is
/// used first, because its bytes are still in the CPU's cache. Rarely needed operations then stay without bytes.
pub(super) struct SendSlab {
    slots: Vec<(Slot<SendMemory>, Option<Batch>)>,
    /// Indices of free operations. They are taken from the back. Operations without bytes are at the front.
    free: VecDeque<u32>,
    slots_max: u32,
    /// Address family of the socket.
    pub(super) family: Family,
}

impl SendSlab {
    /// Creates a slab that allows `sends_max` operations, limited to 1 to [`SENDS_MAX`], on a socket of `family`.
    pub(super) fn new(sends_max: usize, family: Family) -> SendSlab {
        let slots_max = sends_max.clamp(1, SENDS_MAX);
        SendSlab {
            slots: Vec::with_capacity(slots_max),
            free: VecDeque::with_capacity(slots_max),
            slots_max: u32::try_from(slots_max).unwrap_or(u32::MAX),
            family,
        }
    }

    /// Returns the index of a free operation, or `None` if all are in use.
    pub(super) fn acquire(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop_back() {
            return Some(index);
        }
        let index = u32::try_from(self.slots.len()).ok().filter(|index| *index < self.slots_max)?;
        self.slots.push((Slot::new(SendMemory::new(), Token::Send(index)), None));
        Some(index)
    }

    /// Returns the room for a datagram of `bytes` bytes at offset `at` in operation `index`. The room contains old
    /// data. Returns `None` if the kernel holds the operation.
    pub(super) fn room(&mut self, index: u32, at: usize, bytes: usize) -> Option<&mut [u8]> {
        let room = self.slot(index).and_then(|(slot, _)| slot.get_mut()?.room(at, bytes));
        debug_assert!(room.is_some(), "the open batch is ours");
        room
    }

    /// Marks operation `index` as held, with the datagrams of `batch`, and returns its header and token for a
    /// submission. Returns `None` if the socket cannot reach the remote address or the kernel already holds the
    /// operation.
    pub(super) fn hold(&mut self, index: u32, batch: &Batch) -> Option<(*const libc::msghdr, Token)> {
        let family = self.family;
        let (slot, batch_of_slot) = self.slot(index)?;
        if !slot.get_mut()?.seal(batch, family) {
            return None;
        }
        *batch_of_slot = Some(*batch);
        let (memory, token) = slot.hold();
        Some((memory.cast_const().cast(), token)) // also points to `header`, the first field of a repr(C) structure
    }

    /// Takes operation `index` back at its completion `cqe`. Returns the batch of that operation.
    pub(super) fn complete(&mut self, index: u32, cqe: &Cqe) -> Option<Batch> {
        let (slot, batch) = self.slot(index)?;
        slot.release(cqe);
        batch.take()
    }

    /// Returns the datagrams of `batch`, oldest first, which are in operation `index`. Returns none if the kernel holds
    /// the operation.
    pub(super) fn datagrams(&mut self, index: u32, batch: &Batch) -> impl Iterator<Item = &[u8]> {
        let bytes = self.slot(index).and_then(|(slot, _)| slot.get()?.bytes.get(..batch.bytes));
        bytes.unwrap_or_default().chunks(batch.segment_bytes.max(1))
    }

    /// Makes operation `index` free, unless the kernel holds it. At most [`SEND_BUFFERS_KEPT`] free operations keep
    /// their bytes, so that a congestion does not take memory permanently.
    pub(super) fn free(&mut self, index: u32) {
        let is_enough = self.free.len() >= SEND_BUFFERS_KEPT;
        let Some(memory) = self.slot(index).and_then(|(slot, _)| slot.get_mut()) else { return };
        if is_enough || memory.bytes.len() > GSO_BYTES_MAX {
            memory.bytes = Vec::new();
        }
        if is_enough { self.free.push_front(index) } else { self.free.push_back(index) }
    }

    /// Returns true if the kernel holds no send operation.
    pub(super) fn is_idle(&self) -> bool {
        self.slots.iter().all(|(slot, _)| !slot.is_held())
    }

    fn slot(&mut self, index: u32) -> Option<&mut (Slot<SendMemory>, Option<Batch>)> {
        self.slots.get_mut(usize::try_from(index).ok()?)
    }
}

/// Memory of a one-shot receive. As in [`SendMemory`], `header` is the first field.
#[repr(C)]
struct ReceiveMemory {
    header: libc::msghdr,
    iovec: libc::iovec,
    control: Aligned<CONTROL_BYTES>,
    address: Aligned<ADDRESS_BYTES>,
    datagram: [u8; RECEIVE_BUFFER_BYTES],
}

impl ReceiveMemory {
    fn new() -> ReceiveMemory {
        ReceiveMemory {
            header: empty_header(),
            iovec: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            control: Aligned([0; CONTROL_BYTES]),
            address: Aligned([0; ADDRESS_BYTES]),
            datagram: [0; RECEIVE_BUFFER_BYTES],
        }
    }

    fn seal(&mut self) {
        self.iovec =
            libc::iovec { iov_base: self.datagram.as_mut_ptr().cast(), iov_len: RECEIVE_BUFFER_BYTES };
        self.header = receive_header();
        self.header.msg_name = self.address.0.as_mut_ptr().cast();
        self.header.msg_iov = &raw mut self.iovec;
        self.header.msg_iovlen = 1;
        self.header.msg_control = self.control.0.as_mut_ptr().cast();
    }

    /// Returns the addresses and the position of the received datagram. Lengths from the kernel are limited to the
    /// sizes of the buffers here.
    fn parts(&self, received_bytes: usize) -> Result<ReceivedParts, ReceiveFault> {
        if self.header.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(ReceiveFault::Truncated);
        }
        let address_bytes = usize::try_from(self.header.msg_namelen).unwrap_or(usize::MAX);
        let address = self.address.0.get(..address_bytes.min(ADDRESS_BYTES));
        let control = self.control.0.get(..self.header.msg_controllen.min(CONTROL_BYTES));
        let remote = address.and_then(decode_address).ok_or(ReceiveFault::Malformed)?;
        let local = control.and_then(decode_local);
        Ok(ReceivedParts { remote, local, start: 0, length: received_bytes.min(RECEIVE_BUFFER_BYTES) })
    }
}

/// The receive side of a driver.
pub(super) enum Receiver {
    /// The driver does not receive.
    None,
    /// The driver uses one multishot receive with a buffer ring (Linux 6.0).
    Multishot(BufferRing),
    /// The driver uses several one-shot receives, each with one buffer.
    OneShot(ReceiveSlab),
}

impl Receiver {
    /// Takes the buffer of a completion. Returns the buffer's index, with the addresses and position of its datagram or
    /// a fault. Returns `None` if the completion has no buffer.
    pub(super) fn take(&mut self, cqe: &Cqe) -> Option<(u16, Result<ReceivedParts, ReceiveFault>)> {
        match self {
            Receiver::None => None,
            Receiver::Multishot(ring) => ring.take(cqe),
            Receiver::OneShot(slab) => slab.take(cqe),
        }
    }

    /// Returns `length` bytes from `start` on of a buffer that the caller has taken. Returns an empty slice if the
    /// caller does not have this buffer.
    pub(super) fn bytes(&self, buffer: u16, start: usize, length: usize) -> &[u8] {
        let bytes = match self {
            Receiver::None => None,
            Receiver::Multishot(ring) => ring.bytes(buffer),
            Receiver::OneShot(slab) => slab.bytes(buffer),
        };
        bytes.and_then(|bytes| bytes.get(start..start + length)).unwrap_or_default()
    }

    /// Gives back a buffer that the caller has taken, so that it can receive another datagram.
    pub(super) fn recycle(&mut self, buffer: u16) {
        match self {
            Receiver::None => {}
            Receiver::Multishot(ring) => ring.recycle(buffer),
            Receiver::OneShot(slab) => slab.recycle(buffer),
        }
    }

    /// Returns true if the kernel holds no receive operation.
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Receiver::None => true,
            Receiver::Multishot(ring) => !ring.is_armed,
            Receiver::OneShot(slab) => slab.slots.iter().all(|(slot, _)| !slot.is_held()),
        }
    }
}

/// The buffers of one-shot receives.
pub(super) struct ReceiveSlab {
    slots: Vec<(Slot<ReceiveMemory>, BufferUse)>,
}

/// Current user of a receive buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BufferUse {
    /// The buffer is free, or the kernel holds it and may fill it.
    Empty,
    /// The caller reads the buffer.
    Caller,
}

impl ReceiveSlab {
    /// Allocates [`RECEIVE_OPERATIONS`] buffers.
    pub(super) fn new() -> ReceiveSlab {
        let slot = |index| (Slot::new(ReceiveMemory::new(), Token::ReceiveOne(index)), BufferUse::Empty);
        ReceiveSlab { slots: (0..RECEIVE_OPERATIONS).map(slot).collect() }
    }

    /// Marks one empty buffer as held and returns its header and token for a submission. Returns `None` if all buffers
    /// are in use.
    pub(super) fn hold(&mut self) -> Option<(*mut libc::msghdr, Token)> {
        let is_empty = |(slot, usage): &&mut (Slot<ReceiveMemory>, BufferUse)| {
            *usage == BufferUse::Empty && !slot.is_held()
        };
        let (slot, _) = self.slots.iter_mut().find(is_empty)?;
        slot.get_mut()?.seal();
        let (memory, token) = slot.hold();
        Some((memory.cast(), token)) // also points to `header`, the first field of a repr(C) structure
    }

    fn take(&mut self, cqe: &Cqe) -> Option<(u16, Result<ReceivedParts, ReceiveFault>)> {
        let Token::ReceiveOne(buffer) = cqe.token() else { return None };
        let (slot, usage) = self.slots.get_mut(usize::from(buffer))?;
        slot.release(cqe);
        let received_bytes = usize::try_from(cqe.result()).ok()?;
        *usage = BufferUse::Caller;
        Some((buffer, slot.get()?.parts(received_bytes)))
    }

    fn bytes(&self, buffer: u16) -> Option<&[u8]> {
        let (slot, usage) = self.slots.get(usize::from(buffer))?;
        let memory = slot.get().filter(|_| *usage == BufferUse::Caller)?;
        Some(&memory.datagram)
    }

    fn recycle(&mut self, buffer: u16) {
        if let Some((_, usage)) = self.slots.get_mut(usize::from(buffer)) {
            *usage = BufferUse::Empty;
        }
    }
}

/// The buffers of a multishot receive and the ring that offers them to the kernel
/// (io_uring_register_buf_ring(3), Linux 5.19).
///
/// ```text
///  entries  | addr u64 | len u32 | buffer u16 | tail u16 (of entry 0 only) |  x RECEIVE_BUFFERS
///           | msghdr of the receive                                        |  after the entries
///  data     | RECEIVE_BUFFER_BYTES |  x RECEIVE_BUFFERS
/// ```
/// The kernel holds a buffer from `offer` until a completion names the buffer. After that, the caller has the buffer
/// until `recycle`.
pub(super) struct BufferRing {
    entries: Option<MmapRaw>,
    data: Option<MmapRaw>,
    uses: Vec<BufferUse>,
    lent_count: u16,
    tail: u16,
    is_armed: bool,
}

/// Bytes of an entry, which is a `struct io_uring_buf`.
const ENTRY_BYTES: usize = 16;

/// Offset of the tail in `struct io_uring_buf_ring`. The tail is in the reserved field of the first entry.
const TAIL_AT: usize = 14;

/// Offset of the receive's message header in the mapping of the entries.
const HEADER_AT: usize = RECEIVE_BUFFERS as usize * ENTRY_BYTES;

impl BufferRing {
    /// Maps the ring and the buffers, and offers all buffers to the kernel. Pages become resident when first written.
    pub(super) fn new() -> io::Result<BufferRing> {
        let entries = MmapRaw::from(MmapMut::map_anon(HEADER_AT + size_of::<libc::msghdr>())?);
        let data = MmapMut::map_anon(usize::from(RECEIVE_BUFFERS) * RECEIVE_BUFFER_BYTES)?;
        let header_at = entries.as_mut_ptr().wrapping_add(HEADER_AT).cast::<libc::msghdr>();
        // SAFETY: the mapping is writable, ends with room for a msghdr at HEADER_AT, and is aligned to a page.
        // HEADER_AT is a multiple of 16, so the pointer is aligned. No other reference to the mapping exists yet.
        unsafe { header_at.write(receive_header()) };
        let mut ring = BufferRing {
            entries: Some(entries),
            data: Some(MmapRaw::from(data)),
            uses: vec![BufferUse::Empty; usize::from(RECEIVE_BUFFERS)],
            lent_count: 0,
            tail: 0,
            is_armed: false,
        };
        (0..RECEIVE_BUFFERS).for_each(|buffer| ring.offer(buffer));
        Ok(ring)
    }

    /// Returns the address of the entries, for registration with the kernel. The mapping lives at least as long as
    /// `self`.
    pub(super) fn address(&self) -> Option<*const u8> {
        self.entries.as_ref().map(MmapRaw::as_ptr)
    }

    /// Returns true while the kernel holds the multishot receive.
    pub(super) fn is_armed(&self) -> bool {
        self.is_armed
    }

    /// Returns true if at least one buffer is offered to the kernel.
    pub(super) fn has_buffers(&self) -> bool {
        self.lent_count < RECEIVE_BUFFERS
    }

    /// Marks the multishot receive as armed and returns its header and token for a submission. From now on the kernel
    /// may write all offered buffers.
    ///
    /// # Panics
    /// If the receive is already armed.
    pub(super) fn hold(&mut self) -> Option<(*const libc::msghdr, Token)> {
        assert!(!self.is_armed, "one multishot receive per ring");
        let entries = self.entries.as_ref()?;
        self.is_armed = true;
        Some((entries.as_ptr().wrapping_add(HEADER_AT).cast(), Token::Receive))
    }

    fn take(&mut self, cqe: &Cqe) -> Option<(u16, Result<ReceivedParts, ReceiveFault>)> {
        if cqe.token() != Token::Receive {
            return None;
        }
        if cqe.is_last() {
            self.is_armed = false;
        }
        let buffer = cqe.buffer()?;
        let usage = self.uses.get_mut(usize::from(buffer))?;
        debug_assert!(*usage == BufferUse::Empty, "the kernel names a buffer once per offer");
        *usage = BufferUse::Caller;
        self.lent_count += 1;
        let written = usize::try_from(cqe.result()).unwrap_or(0).min(RECEIVE_BUFFER_BYTES);
        let parts = match self.bytes(buffer).and_then(|bytes| bytes.get(..written)) {
            Some(bytes) => super::message::parse_multishot(bytes, &receive_header()),
            None => Err(ReceiveFault::Malformed),
        };
        Some((buffer, parts))
    }

    fn bytes(&self, buffer: u16) -> Option<&[u8]> {
        self.uses.get(usize::from(buffer)).filter(|usage| **usage == BufferUse::Caller)?;
        let start = usize::from(buffer) * RECEIVE_BUFFER_BYTES;
        let data = self.data.as_ref()?.as_ptr().wrapping_add(start);
        // SAFETY: `uses` has RECEIVE_BUFFERS entries, so `buffer` is below that number and the range is in the mapping.
        // The mapping is initialized (zero pages) and lives as long as self. The caller has the buffer: the kernel
        // has named it in a completion and does not write it again before the next `offer` (a provided buffer is used
        // once). `offer` needs `&mut self`, so the buffer is not written while the reference lives.
        Some(unsafe { std::slice::from_raw_parts(data, RECEIVE_BUFFER_BYTES) })
    }

    fn recycle(&mut self, buffer: u16) {
        let Some(usage) = self.uses.get_mut(usize::from(buffer)) else { return };
        if *usage == BufferUse::Caller {
            *usage = BufferUse::Empty;
            self.lent_count -= 1;
            self.offer(buffer);
        }
    }

    /// Offers `buffer` to the kernel: writes an entry at the tail, then advances the tail.
    fn offer(&mut self, buffer: u16) {
        let (Some(entries), Some(data)) = (&self.entries, &self.data) else { return };
        let address =
            data.as_ptr().wrapping_add(usize::from(buffer) * RECEIVE_BUFFER_BYTES).expose_provenance();
        let mut entry = [0u8; TAIL_AT];
        let (address_field, rest) = entry.split_at_mut(8);
        let (length_field, buffer_field) = rest.split_at_mut(4);
        address_field.copy_from_slice(&u64::try_from(address).unwrap_or_default().to_ne_bytes());
        length_field.copy_from_slice(&u32::try_from(RECEIVE_BUFFER_BYTES).unwrap_or_default().to_ne_bytes());
        buffer_field.copy_from_slice(&buffer.to_ne_bytes());
        let index = usize::from(self.tail & (RECEIVE_BUFFERS - 1));
        let entry_at = entries.as_mut_ptr().wrapping_add(index * ENTRY_BYTES).cast::<[u8; TAIL_AT]>();
        // SAFETY: index < RECEIVE_BUFFERS, so the entry is in the mapping. A byte array needs no alignment, and its 14
        // bytes do not reach the tail. The kernel reads only entries between its head and the tail. A buffer is
        // offered only while it is not yet offered, so at most RECEIVE_BUFFERS are offered at a time. So the kernel
        // has already consumed the old entry at this index.
        unsafe { entry_at.write(entry) };
        self.tail = self.tail.wrapping_add(1);
        let tail_at = entries.as_mut_ptr().wrapping_add(TAIL_AT).cast::<u16>();
        // SAFETY: TAIL_AT is even and the mapping is page-aligned, so the pointer is aligned. It is in the mapping,
        // which outlives the reference. All accesses to the tail, by this process and by the kernel, are atomic.
        let tail = unsafe { AtomicU16::from_ptr(tail_at) };
        tail.store(self.tail, Ordering::Release); // the kernel sees the new entry before the tail that includes it
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if self.is_armed {
            // The kernel may still write to the mappings, so both are leaked.
            std::mem::forget((self.entries.take(), self.data.take()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_congestion_few_operations_keep_their_bytes_and_are_used_first() {
        let mut slab = SendSlab::new(100, Family::V4);
        let taken: Vec<u32> = (0..100).map_while(|_| slab.acquire()).collect();
        assert_eq!((taken.len(), slab.acquire()), (100, None));
        for index in &taken {
            slab.room(*index, 0, 1_200).unwrap().fill(1);
        }
        taken.iter().for_each(|index| slab.free(*index));
        let has_bytes =
            |slab: &mut SendSlab, index| slab.slot(index).unwrap().0.get().unwrap().bytes.len() > 1;
        let order: Vec<u32> = (0..100).map_while(|_| slab.acquire()).collect();
        let kept: Vec<bool> = order.into_iter().map(|index| has_bytes(&mut slab, index)).collect();
        assert_eq!(kept.len(), 100);
        assert!(kept[..SEND_BUFFERS_KEPT].iter().all(|has| *has), "the one freed last is used first");
        assert!(kept[SEND_BUFFERS_KEPT..].iter().all(|has| !has));
    }
}
