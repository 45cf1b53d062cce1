//! UNSAFE. The memory that the kernel holds while an operation runs: message headers, addresses, control messages,
//! datagrams, the receive buffers and their ring. System calls are made in `ring.rs` only.
//!
//! Soundness:
//! 1. Everything that the kernel gets a pointer to is in its own allocation ([`Slot`], and the bytes that a send's slot
//!    owns) or mapping ([`BufferRing`]) behind a raw pointer. Moving the owner does not move it.
//! 2. The memory has two states. *Ours*: references to it may be made. *Held*: from the moment `ring.rs` takes the
//!    pointer for a submission until it returns the operation's last completion; no reference is made, nothing is
//!    written, nothing is freed. Only a [`Cqe`] with the slot's own token that is the last of its operation ends the
//!    held state, and only `ring.rs` makes a [`Cqe`].
//! 3. Dropping an owner frees memory that is ours and leaks memory that is held. So no order of drops, no panic and no
//!    kernel that does not answer can free memory in use. The worst case is a leak, which is logged.

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

/// One allocation that one operation can hand to the kernel.
pub(super) struct Slot<T> {
    memory: NonNull<T>,
    token: Token,
    is_held: bool,
}

impl<T> Slot<T> {
    /// Makes a slot for the operation `token`. Its state is *ours*.
    pub(super) fn new(memory: T, token: Token) -> Slot<T> {
        Slot { memory: NonNull::from(Box::leak(Box::new(memory))), token, is_held: false }
    }

    /// Returns true while the kernel holds the memory.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    fn get(&self) -> Option<&T> {
        if self.is_held {
            return None;
        }
        // SAFETY: `memory` comes from Box::leak, so it is aligned, initialized and alive until our drop.
        // It is not held, so the kernel does not write it; the borrow of self keeps `get_mut` and `hold`
        // away for as long as the reference lives.
        Some(unsafe { self.memory.as_ref() })
    }

    fn get_mut(&mut self) -> Option<&mut T> {
        if self.is_held {
            return None;
        }
        // SAFETY: as in `get`; the exclusive borrow of self makes this the only reference.
        Some(unsafe { self.memory.as_mut() })
    }

    /// Hands the memory to the kernel. The pointer is valid until [`Slot::release`].
    ///
    /// # Panics
    /// If the kernel already holds it: the completion of one operation would end the hold of the other.
    pub(super) fn hold(&mut self) -> (*mut T, Token) {
        assert!(!self.is_held, "one operation per slot");
        self.is_held = true;
        (self.memory.as_ptr(), self.token)
    }

    /// Takes the memory back. `cqe` is the last completion of its operation.
    ///
    /// # Panics
    /// If `cqe` belongs to another operation or is not the last: the kernel could still write the memory.
    pub(super) fn release(&mut self, cqe: &Cqe) {
        assert!(cqe.token() == self.token && cqe.is_last(), "only its own last completion ends an operation");
        self.is_held = false;
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        if self.is_held {
            return; // leaked: the kernel may still use it
        }
        // SAFETY: `memory` comes from Box::leak of a Box<T> and is given back once, here. It is not held, and
        // no reference outlives the borrow of self.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

/// Memory of one send. `header` comes first: a pointer to the memory is a pointer to the header.
#[repr(C)]
struct SendMemory {
    header: libc::msghdr,
    control: Aligned<CONTROL_BYTES>,
    address: Aligned<ADDRESS_BYTES>,
    iovec: libc::iovec,
    /// The batch's datagrams, one after another. Its own allocation, initialized, at least as long as the batch.
    bytes: Vec<u8>,
}

/// Bytes aligned for the kernel structures in them.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

/// Returns a message header without address, data and control messages.
fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is a C structure of pointers and integers; all zero bytes are a valid value of each.
    unsafe { std::mem::zeroed() }
}

/// Returns the header of a receive, with the room for address and control messages.
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

    /// Returns the bytes of a datagram at `at`. The first call allocates a whole batch, of which only written pages take
    /// memory. A datagram larger than a batch grows the allocation.
    fn room(&mut self, at: usize, bytes: usize) -> Option<&mut [u8]> {
        let end = at.checked_add(bytes)?;
        if self.bytes.is_empty() {
            self.bytes = vec![0; GSO_BYTES_MAX.max(end)];
        } else if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(at..end)
    }

    /// Fills in the header for `batch`. Returns false if the socket cannot reach the remote, or `batch` is longer than the
    /// bytes here.
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

/// The send operations, allocated when first needed, up to a limit, and reused. The one freed last is used first: its
/// bytes are still in the cache, and operations that are rarely needed take no memory.
pub(super) struct SendSlab {
    slots: Vec<(Slot<SendMemory>, Option<Batch>)>,
    /// Indices of free operations, used from the back. Those without bytes are in front.
    free: VecDeque<u32>,
    slots_max: u32,
    /// Family of the socket.
    pub(super) family: Family,
}

impl SendSlab {
    /// Allows `sends_max` operations, 1 to [`SENDS_MAX`], on a socket of `family`.
    pub(super) fn new(sends_max: usize, family: Family) -> SendSlab {
        let slots_max = sends_max.clamp(1, SENDS_MAX);
        SendSlab {
            slots: Vec::with_capacity(slots_max),
            free: VecDeque::with_capacity(slots_max),
            slots_max: u32::try_from(slots_max).unwrap_or(u32::MAX),
            family,
        }
    }

    /// Returns a free operation; `None` if the kernel holds all.
    pub(super) fn acquire(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop_back() {
            return Some(index);
        }
        let index = u32::try_from(self.slots.len()).ok().filter(|index| *index < self.slots_max)?;
        self.slots.push((Slot::new(SendMemory::new(), Token::Send(index)), None));
        Some(index)
    }

    /// Returns the bytes of a datagram at `at` in an operation that is ours. They contain old data.
    pub(super) fn room(&mut self, index: u32, at: usize, bytes: usize) -> Option<&mut [u8]> {
        let room = self.slot(index).and_then(|(slot, _)| slot.get_mut()?.room(at, bytes));
        debug_assert!(room.is_some(), "the open batch is ours");
        room
    }

    /// Hands operation `index` with the datagrams of `batch` to the kernel. `None` if the remote is unreachable or the
    /// operation is not ours.
    pub(super) fn hold(&mut self, index: u32, batch: &Batch) -> Option<(*const libc::msghdr, Token)> {
        let family = self.family;
        let (slot, batch_of_slot) = self.slot(index)?;
        if !slot.get_mut()?.seal(batch, family) {
            return None;
        }
        *batch_of_slot = Some(*batch);
        let (memory, token) = slot.hold();
        Some((memory.cast_const().cast(), token)) // `header` is the first field of a repr(C) structure
    }

    /// Takes an operation back at its completion. Returns the batch that it sent.
    pub(super) fn complete(&mut self, index: u32, cqe: &Cqe) -> Option<Batch> {
        let (slot, batch) = self.slot(index)?;
        slot.release(cqe);
        batch.take()
    }

    /// Returns the datagrams of `batch` in an operation that is ours, oldest first.
    pub(super) fn datagrams(&mut self, index: u32, batch: &Batch) -> impl Iterator<Item = &[u8]> {
        let bytes = self.slot(index).and_then(|(slot, _)| slot.get()?.bytes.get(..batch.bytes));
        bytes.unwrap_or_default().chunks(batch.segment_bytes.max(1))
    }

    /// Frees an operation that is ours. At most [`SEND_BUFFERS_KEPT`] free ones keep their bytes after a congestion.
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

/// Memory of a one-shot receive. `header` comes first, as in [`SendMemory`].
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

    /// Returns what the kernel received. Its lengths are limited to ours.
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
    /// Sends only.
    None,
    /// One multishot receive over a buffer ring (Linux 6.0).
    Multishot(BufferRing),
    /// Several one-shot receives with one buffer each.
    OneShot(ReceiveSlab),
}

impl Receiver {
    /// Takes the buffer of a completion and reads its header.
    pub(super) fn take(&mut self, cqe: &Cqe) -> Option<(u16, Result<ReceivedParts, ReceiveFault>)> {
        match self {
            Receiver::None => None,
            Receiver::Multishot(ring) => ring.take(cqe),
            Receiver::OneShot(slab) => slab.take(cqe),
        }
    }

    /// Returns the bytes of a buffer that the caller has.
    pub(super) fn bytes(&self, buffer: u16, start: usize, length: usize) -> &[u8] {
        let bytes = match self {
            Receiver::None => None,
            Receiver::Multishot(ring) => ring.bytes(buffer),
            Receiver::OneShot(slab) => slab.bytes(buffer),
        };
        bytes.and_then(|bytes| bytes.get(start..start + length)).unwrap_or_default()
    }

    /// Gives a buffer of the caller back for the next datagram.
    pub(super) fn recycle(&mut self, buffer: u16) {
        match self {
            Receiver::None => {}
            Receiver::Multishot(ring) => ring.recycle(buffer),
            Receiver::OneShot(slab) => slab.recycle(buffer),
        }
    }

    /// Returns true if the kernel holds no receive.
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
    /// Free, or held by the kernel to be filled.
    Empty,
    /// The caller reads it.
    Caller,
}

impl ReceiveSlab {
    /// Makes [`RECEIVE_OPERATIONS`] buffers.
    pub(super) fn new() -> ReceiveSlab {
        let slot = |index| (Slot::new(ReceiveMemory::new(), Token::ReceiveOne(index)), BufferUse::Empty);
        ReceiveSlab { slots: (0..RECEIVE_OPERATIONS).map(slot).collect() }
    }

    /// Hands one empty buffer to the kernel; `None` if all are in use.
    pub(super) fn hold(&mut self) -> Option<(*mut libc::msghdr, Token)> {
        let is_empty = |(slot, usage): &&mut (Slot<ReceiveMemory>, BufferUse)| {
            *usage == BufferUse::Empty && !slot.is_held()
        };
        let (slot, _) = self.slots.iter_mut().find(is_empty)?;
        slot.get_mut()?.seal();
        let (memory, token) = slot.hold();
        Some((memory.cast(), token)) // `header` is the first field of a repr(C) structure
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
///           | msghdr of the receive                                        |  behind them
///  data     | RECEIVE_BUFFER_BYTES |  x RECEIVE_BUFFERS
/// ```
/// The kernel holds a buffer from `offer` until a completion names it; then the caller has it until `recycle`.
pub(super) struct BufferRing {
    entries: Option<MmapRaw>,
    data: Option<MmapRaw>,
    uses: Vec<BufferUse>,
    lent_count: u16,
    tail: u16,
    is_armed: bool,
}

/// `struct io_uring_buf`.
const ENTRY_BYTES: usize = 16;

/// Offset of the tail in `struct io_uring_buf_ring`: the reserved field of the first entry.
const TAIL_AT: usize = 14;

/// Offset of the receive's message header in the mapping of the entries.
const HEADER_AT: usize = RECEIVE_BUFFERS as usize * ENTRY_BYTES;

impl BufferRing {
    /// Maps the ring and the buffers and offers all buffers. Pages become resident when first written.
    pub(super) fn new() -> io::Result<BufferRing> {
        let entries = MmapRaw::from(MmapMut::map_anon(HEADER_AT + size_of::<libc::msghdr>())?);
        let data = MmapMut::map_anon(usize::from(RECEIVE_BUFFERS) * RECEIVE_BUFFER_BYTES)?;
        let header_at = entries.as_mut_ptr().wrapping_add(HEADER_AT).cast::<libc::msghdr>();
        // SAFETY: the mapping is writable, ends with room for a msghdr at HEADER_AT, and is aligned to a page;
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

    /// Returns the address of the entries, for registration. The mapping lives as long as `self`, or is leaked.
    pub(super) fn address(&self) -> Option<*const u8> {
        self.entries.as_ref().map(MmapRaw::as_ptr)
    }

    /// Returns true while the kernel holds the receive.
    pub(super) fn is_armed(&self) -> bool {
        self.is_armed
    }

    /// Returns true if the kernel has at least one buffer.
    pub(super) fn has_buffers(&self) -> bool {
        self.lent_count < RECEIVE_BUFFERS
    }

    /// Hands the receive's header, and so all offered buffers, to the kernel.
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
        // SAFETY: `uses` has RECEIVE_BUFFERS entries, so `buffer` is below it and the range lies in the
        // mapping, which is initialized (zero pages) and lives as long as self. The buffer is lent to us: the
        // kernel named it in a completion and forgot it (provided buffers are used once) until `offer`,
        // which needs `&mut self`, so it is not written while the reference lives.
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

    /// Hands `buffer` to the kernel: writes the entry at the tail, then the tail.
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
        // SAFETY: index < RECEIVE_BUFFERS, so the entry lies in the mapping; a byte array needs no alignment
        // and its 14 bytes spare the tail. The kernel reads entries between its head and the tail only: at
        // most RECEIVE_BUFFERS are offered at a time (each is offered when it is not), so this one is behind
        // its head.
        unsafe { entry_at.write(entry) };
        self.tail = self.tail.wrapping_add(1);
        let tail_at = entries.as_mut_ptr().wrapping_add(TAIL_AT).cast::<u16>();
        // SAFETY: TAIL_AT is even and the mapping page-aligned, so the pointer is; it lies in the mapping,
        // which outlives the reference; all accesses to the tail, ours and the kernel's, are atomic.
        let tail = unsafe { AtomicU16::from_ptr(tail_at) };
        tail.store(self.tail, Ordering::Release); // the entry becomes visible before the tail that counts it
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if self.is_armed {
            // The kernel may still write: leak both mappings.
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
