//! UNSAFE. Sets up the io_uring, submits and cancels operations, and takes completions. It also sets the one socket
//! option that has no safe wrapper. `buffers.rs` owns the submitted memory.

#![expect(unsafe_code, reason = "a submission queue entry carries pointers only the caller can vouch for")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};

use super::buffers::{BufferRing, ReceiveSlab, SendSlab, Slot};
use super::message::Family;
use super::operation::{Batch, Token};
use super::{Features, UdpCounters, UdpDriverError};
use crate::base::limits::RECEIVE_BUFFERS;

/// Number of the buffer group of the only buffer ring of a driver.
const BUFFER_GROUP: u16 = 0;

/// `FUTEX2_SIZE_U32` of linux/futex.h. The flag `FUTEX2_PRIVATE` is not set, because another process wakes the waiter.
const FUTEX2_SIZE_U32: u32 = 2;

/// One completion. Only [`Ring::pop`] creates this type, and it cannot be copied. So each value proves that the kernel
/// has sent that completion.
#[derive(Debug)]
pub(super) struct Cqe {
    token: Token,
    result: i32,
    flags: u32,
}

impl Cqe {
    /// Returns the token of the operation that this completion belongs to.
    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// Returns the result of the operation. A negative result is an error number.
    pub(super) fn result(&self) -> i32 {
        self.result
    }

    /// Returns true if this is the operation's last completion. The kernel then no longer uses the operation's memory.
    pub(super) fn is_last(&self) -> bool {
        !cqueue::more(self.flags)
    }

    /// Returns the index of the provided buffer, or `None` if the operation used none.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// Returns the descriptor of an accepted connection, or the error number of the accept.
    pub(super) fn into_descriptor(self) -> Result<OwnedFd, i32> {
        if self.result < 0 || self.token != Token::Accept {
            return Err(self.result.saturating_neg());
        }
        // SAFETY: the kernel has opened this descriptor for this completion. A completion cannot be copied and is
        // consumed here, so nothing else owns the descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(self.result) })
    }
}

/// An io_uring for one UDP socket.
pub(super) struct Ring {
    ring: IoUring,
    socket: Arc<OwnedFd>,
    /// Counts of the driver that owns this ring.
    pub(super) counters: UdpCounters,
}

impl Ring {
    /// Sets up a ring with `features`. If the kernel refuses the set-up, removes one feature after the other until the
    /// set-up succeeds.
    pub(super) fn new(
        socket: Arc<OwnedFd>,
        features: &mut Features,
        (submissions, completions): (u32, u32),
    ) -> Result<Ring, UdpDriverError> {
        loop {
            match build(*features, submissions, completions) {
                Ok(ring) if !ring.params().is_feature_ext_arg() => {
                    return Err(UdpDriverError::TooOld("waiting with a timeout (Linux 5.11)"));
                }
                Ok(ring) if !ring.params().is_feature_nodrop() => {
                    return Err(UdpDriverError::TooOld("a completion queue that keeps all (Linux 5.5)"));
                }
                Ok(ring) => {
                    if !probe(&ring)?.is_supported(opcode::FutexWait::CODE) {
                        features.remove(Features::FUTEX);
                    }
                    return Ok(Ring { ring, socket, counters: UdpCounters::default() });
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && features.drop_newest_flag() => {}
                Err(error) => return Err(UdpDriverError::of_setup(error)),
            }
        }
    }

    /// Registers the buffers of a multishot receive (Linux 5.19).
    pub(super) fn register_buffers(&mut self, buffers: &BufferRing) -> io::Result<()> {
        let address = buffers.address().map_or(0, |address| address.expose_provenance());
        let address = u64::try_from(address).map_err(io::Error::other)?;
        // SAFETY: the address is that of a page-aligned mapping with RECEIVE_BUFFERS entries. The kernel pins the
        // pages, so they stay valid for the kernel after a later unmapping. The kernel writes through the entries only
        // for an armed receive, and BufferRing leaks its mappings while the receive is armed.
        unsafe {
            self.ring.submitter().register_buf_ring_with_flags(address, RECEIVE_BUFFERS, BUFFER_GROUP, 0)
        }
    }

    /// Removes the registration of the buffers.
    pub(super) fn unregister_buffers(&mut self) -> io::Result<()> {
        self.ring.submitter().unregister_buf_ring(BUFFER_GROUP)
    }

    /// Queues the send of operation `index` with the datagrams of `batch`. Returns false if the queue stays full or the
    /// socket cannot reach the remote address. The kernel then does not hold the operation.
    pub(super) fn push_send(&mut self, sends: &mut SendSlab, index: u32, batch: &Batch) -> bool {
        if !self.make_room() {
            return false;
        }
        let Some((header, token)) = sends.hold(index, batch) else { return false };
        let entry = opcode::SendMsg::new(Fd(self.socket.as_raw_fd()), header).build();
        // SAFETY: the header and all that it points to are in a slot that is held since `sends.hold`. A held slot is
        // neither written nor freed until the last completion of `token`.
        unsafe { self.push(entry, token) };
        true
    }

    /// Queues the read of an eventfd. Does nothing if the queue stays full.
    pub(super) fn push_eventfd(&mut self, eventfd: &OwnedFd, memory: &mut Slot<u64>) {
        if !self.make_room() {
            return;
        }
        let (buffer, token) = memory.hold();
        let entry = opcode::Read::new(Fd(eventfd.as_raw_fd()), buffer.cast(), 8).build();
        // SAFETY: the eight bytes are in a slot that is held since `memory.hold`, as in `push_send`.
        unsafe { self.push(entry, token) };
    }

    /// Queues the accept of one TCP connection. Returns false if the queue stays full.
    pub(super) fn push_accept(&mut self, listener: &OwnedFd) -> bool {
        if !self.make_room() {
            return false;
        }
        let nowhere = (std::ptr::null_mut(), std::ptr::null_mut());
        let entry =
            opcode::Accept::new(Fd(listener.as_raw_fd()), nowhere.0, nowhere.1).flags(libc::SOCK_CLOEXEC);
        // SAFETY: the kernel does not write the address of the other side, because both pointers are null.
        unsafe { self.push(entry.build(), Token::Accept) };
        true
    }

    /// Queues a receive of a TCP connection into `memory` from the offset `from` on. Does nothing if there is no room
    /// or the queue stays full.
    pub(super) fn push_tcp_receive(&mut self, connection: &OwnedFd, memory: &mut Slot<Vec<u8>>, from: usize) {
        if let Some((bytes, length, token)) = self.hold_tail(memory, from) {
            let entry = opcode::Recv::new(Fd(connection.as_raw_fd()), bytes, length).build();
            // SAFETY: the bytes are those of a vector in a slot that is held since `hold_tail`, as in `push_send`. The
            // connection stays open as long as the slot is held.
            unsafe { self.push(entry, token) };
        }
    }

    /// Queues a send of the bytes in `memory` from the offset `from` on. Does nothing if there are none or the queue
    /// stays full.
    pub(super) fn push_tcp_send(&mut self, connection: &OwnedFd, memory: &mut Slot<Vec<u8>>, from: usize) {
        if let Some((bytes, length, token)) = self.hold_tail(memory, from) {
            let entry = opcode::Send::new(Fd(connection.as_raw_fd()), bytes.cast_const(), length);
            // SAFETY: as in `push_tcp_receive`.
            unsafe { self.push(entry.flags(libc::MSG_NOSIGNAL).build(), token) };
        }
    }

    /// Marks `memory` as held. Returns the address and the number of its bytes from the offset `from` on, with its
    /// token. Returns `None` if there are no such bytes, if the memory is held already, or if the queue stays full.
    fn hold_tail(&mut self, memory: &mut Slot<Vec<u8>>, from: usize) -> Option<(*mut u8, u32, Token)> {
        let tail = memory.get_mut()?.get_mut(from..).filter(|tail| !tail.is_empty())?;
        let (bytes, length) = (tail.as_mut_ptr(), u32::try_from(tail.len()).ok()?);
        if !self.make_room() {
            return None;
        }
        let (_, token) = memory.hold();
        Some((bytes, length, token))
    }

    /// Queues a wait that ends when `word` differs from `expected`. Returns false if the queue stays full.
    pub(super) fn push_futex_wait(&mut self, word: &AtomicU32, expected: u32) -> bool {
        if !self.make_room() {
            return false;
        }
        let any_waker = u64::from(u32::MAX);
        let entry = opcode::FutexWait::new(word.as_ptr(), u64::from(expected), any_waker, FUTEX2_SIZE_U32);
        // SAFETY: the kernel only reads the word, once, when it takes the entry. An unmapped address would only cause
        // EFAULT.
        unsafe { self.push(entry.build(), Token::Futex) };
        true
    }

    /// Queues the cancellation of the futex wait. The completion of the futex wait follows later. Returns false if the
    /// queue stays full.
    pub(super) fn push_futex_cancel(&mut self) -> bool {
        if !self.make_room() {
            return false;
        }
        let entry = opcode::AsyncCancel::new(Token::Futex.pack()).build();
        // SAFETY: the entry of a cancellation points to no memory.
        unsafe { self.push(entry, Token::Cancel) };
        true
    }

    /// Queues the multishot receive. Does nothing if the queue stays full.
    pub(super) fn push_receive(&mut self, buffers: &mut BufferRing) {
        if !self.make_room() {
            return;
        }
        let Some((header, token)) = buffers.hold() else { return };
        let entry = opcode::RecvMsgMulti::new(Fd(self.socket.as_raw_fd()), header, BUFFER_GROUP).build();
        // SAFETY: the header is in the mapping of `buffers` and was written only once, when the mapping was created.
        // The receive is armed since `buffers.hold`, so the mapping is leaked rather than unmapped until the last
        // completion. The kernel writes only buffers that are offered, and the caller does not have those.
        unsafe { self.push(entry, token) };
    }

    /// Queues a one-shot receive for each empty buffer. Stops when the queue stays full.
    pub(super) fn push_receives(&mut self, slab: &mut ReceiveSlab) {
        while self.make_room() {
            let Some((header, token)) = slab.hold() else { return };
            let entry = opcode::RecvMsg::new(Fd(self.socket.as_raw_fd()), header).build();
            // SAFETY: the header and all that it points to are in a slot that is held since `slab.hold`, as in
            // `push_send`.
            unsafe { self.push(entry, token) };
        }
    }

    /// Submits the queued entries if the submission queue is full. Returns true if the queue then has room.
    fn make_room(&mut self) -> bool {
        if !self.ring.submission().is_full() {
            return true;
        }
        let entered = self.enter(Duration::ZERO);
        entered.is_ok() && !self.ring.submission().is_full()
    }

    /// Queues an entry with `token`. The queue must have room.
    ///
    /// # Safety
    /// Everything that `entry` points to must stay valid and untouched until the last completion of `token`.
    unsafe fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.pack());
        // SAFETY: the caller guarantees exactly what `push` of the submission queue requires.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "the queue has room");
    }

    /// Makes one `io_uring_enter` call: submits everything queued and waits up to `wait` for one completion. If `wait`
    /// is zero, it does not wait. A wait that ends without a completion is no error.
    pub(super) fn enter(&mut self, wait: Duration) -> Result<(), UdpDriverError> {
        let queued = self.ring.submission().len();
        let result = if wait.is_zero() {
            let queued = u32::try_from(queued).unwrap_or(u32::MAX);
            let submitter = self.ring.submitter();
            // SAFETY: the call has no argument structure, the queue has `queued` entries, and the call waits for no
            // completion. GETEVENTS makes the kernel run deferred work and flush overflowed completions.
            unsafe { submitter.enter::<libc::sigset_t>(queued, 0, EnterFlags::GETEVENTS.bits(), None) }
        } else {
            let timespec = Timespec::from(wait);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
        };
        let left = self.ring.submission().len();
        self.counters.enters += 1;
        self.counters.sqes += u64::try_from(queued.saturating_sub(left)).unwrap_or_default();
        let Err(source) = result else { return Ok(()) };
        match source.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(UdpDriverError::of_enter(source)),
        }
    }

    /// Returns the next completion. Completions with an unknown token are skipped.
    pub(super) fn pop(&mut self) -> Option<Cqe> {
        loop {
            let entry = self.ring.completion().next()?;
            if let Some(token) = Token::unpack(entry.user_data()) {
                return Some(Cqe { token, result: entry.result(), flags: entry.flags() });
            }
            debug_assert!(false, "a completion with an unknown token: {entry:?}");
        }
    }

    /// Returns true if completions wait in the kernel because the completion queue was full. The next [`Ring::enter`]
    /// moves them to the queue.
    pub(super) fn is_overflown(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }

    /// Requests the cancellation of all operations. Their completions follow later. An operation may still not end, for
    /// example if the kernel does not support the cancellation.
    pub(super) fn cancel_all(&mut self) {
        let patience = Timespec::from(Duration::from_millis(100));
        let cancelled = self.ring.submitter().register_sync_cancel(Some(patience), CancelBuilder::any());
        let is_unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        if cancelled.as_ref().is_err_and(is_unknown) && self.make_room() {
            let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            // SAFETY: the entry of a cancellation points to no memory.
            unsafe { self.push(entry, Token::Cancel) };
        }
    }
}

/// Returns the set of operations that the kernel supports. Returns an error if the driver needs an operation that is
/// missing.
fn probe(ring: &IoUring) -> Result<Probe, UdpDriverError> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(UdpDriverError::of_setup)?;
    let needed = [
        (opcode::SendMsg::CODE, "IORING_OP_SENDMSG (Linux 5.3)"),
        (opcode::RecvMsg::CODE, "IORING_OP_RECVMSG (Linux 5.3)"),
        (opcode::Read::CODE, "IORING_OP_READ (Linux 5.6)"),
    ];
    match needed.into_iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, missing)) => Err(UdpDriverError::TooOld(missing)),
        None => Ok(probe),
    }
}

fn build(features: Features, submissions: u32, completions: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(completions).setup_clamp().dontfork();
    if features.contains(Features::SUBMIT_ALL) {
        builder.setup_submit_all();
    }
    if features.contains(Features::SINGLE_ISSUER) {
        builder.setup_single_issuer();
    }
    if features.contains(Features::COOP_TASKRUN) {
        builder.setup_coop_taskrun();
    }
    if features.contains(Features::DEFER_TASKRUN) {
        builder.setup_defer_taskrun();
    }
    builder.build(submissions)
}

/// Makes the socket report the local address of each datagram (`IP_PKTINFO`, `IPV6_RECVPKTINFO`).
pub(super) fn report_local_address(socket: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    let (level, name) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    let bytes = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, so it stays open during the call. `on` is an int that outlives the call, and
    // `bytes` is its size, as both options require.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), bytes) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
