//! EDGE: UDP through io_uring. One [`UdpDriver`] per worker. May not know what the bytes mean, who a viewer is, or
//! what time it is.
//!
//! ```text
//!   send_with, send_with .. ─► batches of equal size ─► one sendmsg each (UDP_SEGMENT) ─┐
//!   eventfds, receives re-armed ───────────────────────────────────────────────────┼─► one io_uring_enter
//!   next_completion ◄── datagrams, eventfds, sends that ended ◄── all completions ◄─┘
//! ```
//!
//! A turn is: [`UdpDriver::submit_and_wait`], then [`UdpDriver::next_completion`] until it is empty, then
//! [`UdpDriver::send_with`] for what that asks for, viewer by viewer with [`UdpDriver::flush`] between.
//!
//! What the kernel holds is never freed before the kernel says it is done: see `buffers.rs` for the rule and
//! `udp_driver.rs` for the end. Unsafe code lives in `ring.rs` and `buffers.rs` only.

mod buffers;
mod error;
mod futex_wait;
mod message;
mod operation;
mod ring;
mod udp;
mod udp_driver;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

pub use error::UdpDriverError;
pub use udp::{SocketError, open_socket};
pub use udp_driver::UdpDriver;

/// What an [`UdpDriver`] works on.
pub struct UdpDriverConfig {
    /// A bound UDP socket, from [`open_socket`]; drivers may share it. `O_NONBLOCK` is cleared on it.
    pub socket: Arc<OwnedFd>,
    /// Whether this driver receives (of those that share a socket, one should).
    pub receives: bool,
    /// Eventfds to watch, at most [`limits::EVENTFDS_MAX`](crate::base::limits::EVENTFDS_MAX). Only this driver reads
    /// them; `O_NONBLOCK` is cleared on them.
    pub eventfds: Vec<Arc<OwnedFd>>,
    /// Send operations with the kernel at a time, 1 to [`limits::SENDS_MAX`](crate::base::limits::SENDS_MAX).
    pub sends_max: usize,
}

/// A word of shared memory that another process changes and wakes (futex(2)); whoever holds it keeps it mapped.
pub type FutexWord = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

/// What the kernel offers and the driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `IORING_SETUP_SINGLE_ISSUER` (Linux 6.0).
    pub single_issuer: bool,
    /// `IORING_SETUP_DEFER_TASKRUN` (Linux 6.1).
    pub defer_taskrun: bool,
    /// `IORING_SETUP_COOP_TASKRUN` (Linux 5.19).
    pub coop_taskrun: bool,
    /// `IORING_SETUP_SUBMIT_ALL` (Linux 5.18).
    pub submit_all: bool,
    /// Multishot recvmsg over a buffer ring (Linux 6.0).
    pub multishot_receive: bool,
    /// Batches become one send with `UDP_SEGMENT` (Linux 4.18); off, every datagram is a send of its own.
    pub gso: bool,
    /// Waiting for a futex, `IORING_OP_FUTEX_WAIT` (Linux 6.7).
    pub futex: bool,
}

impl Features {
    /// All of them.
    pub const ALL: Features = Features {
        single_issuer: true,
        defer_taskrun: true,
        coop_taskrun: true,
        submit_all: true,
        multishot_receive: true,
        gso: true,
        futex: true,
    };

    /// Each by the name people know, in the order of [`Features::bits`].
    #[must_use]
    pub fn list(&self) -> [(&'static str, bool); 7] {
        [
            ("SINGLE_ISSUER", self.single_issuer),
            ("DEFER_TASKRUN", self.defer_taskrun),
            ("COOP_TASKRUN", self.coop_taskrun),
            ("SUBMIT_ALL", self.submit_all),
            ("multishot receive", self.multishot_receive),
            ("GSO", self.gso),
            ("futex wait", self.futex),
        ]
    }

    /// As a number, one bit per feature.
    #[must_use]
    pub fn bits(&self) -> u64 {
        self.list().iter().rev().fold(0, |bits, (_, is_there)| bits << 1 | u64::from(*is_there))
    }

    /// From [`Features::bits`]; further bits mean nothing.
    #[must_use]
    pub fn from_bits(bits: u64) -> Features {
        let has = |at: u32| bits >> at & 1 == 1;
        Features {
            single_issuer: has(0),
            defer_taskrun: has(1),
            coop_taskrun: has(2),
            submit_all: has(3),
            multishot_receive: has(4),
            gso: has(5),
            futex: has(6),
        }
    }

    /// The names of those that are missing, for people; empty where none is.
    #[must_use]
    pub fn missing(&self) -> String {
        let missing: Vec<&str> =
            self.list().into_iter().filter(|(_, is_there)| !is_there).map(|(name, _)| name).collect();
        missing.join(", ")
    }

    /// Gives up the youngest set-up flag; false where none is left.
    fn leave_one_out(&mut self) -> bool {
        let flags = [
            &mut self.defer_taskrun, // needs single_issuer, so it goes first
            &mut self.single_issuer,
            &mut self.coop_taskrun,
            &mut self.submit_all,
        ];
        flags.into_iter().find(|flag| **flag).map(|flag| *flag = false).is_some()
    }
}

/// What a worker does with its driver. [`UdpDriver`] implements it on io_uring, the simulated day on a simulated
/// network.
pub trait Driver {
    /// Submits everything queued and collects all completions. Waits up to `timeout` for the first one, unless some are
    /// still to be taken with [`Driver::next_completion`]. One `io_uring_enter`.
    ///
    /// # Errors
    /// [`UdpDriverError::Enter`] when the ring is unusable. A timeout or a signal is no error.
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), UdpDriverError>;

    /// Returns the next completion, in the kernel's order.
    fn next_completion(&mut self) -> Option<Completion>;

    /// Returns the payload of a datagram; empty if another driver received it.
    fn datagram(&self, received: &Received) -> &[u8];

    /// Gives a datagram's buffer back for the next datagram. Ignored if another driver received it.
    fn recycle(&mut self, received: Received);

    /// Queues a datagram of `bytes` bytes, all of which `write` writes in place. It joins the open batch if viewer, route
    /// and size fit, and leaves with the next [`Driver::submit_and_wait`] or earlier.
    ///
    /// `local` is the source address; the kernel chooses one when it is `None` or of another family than `remote`. If no
    /// operation is free, even after asking the kernel, `write` is not called and the datagram is counted as dropped.
    fn send_with(
        &mut self,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    );

    /// Closes the open batch: the next datagram starts another. Call it after each viewer.
    fn flush(&mut self);

    /// Returns the counts since the driver was made.
    fn counters(&self) -> &UdpCounters;

    /// Returns the number of `viewer`'s datagrams whose sends the kernel has not completed.
    fn in_flight(&self, viewer: u32) -> u32;

    /// Waits for `word` to differ from the given value, from the next [`Driver::submit_and_wait`] on. The wait ends with
    /// one [`Completion::Futex`]; then set it again. `None`, or another word, cancels it; another value for the same
    /// word does not. Without [`Features::futex`] it does nothing.
    fn set_futex_wait(&mut self, word: Option<(&FutexWord, u32)>);
}

/// A datagram that arrived, in a buffer of the driver: read it with [`UdpDriver::datagram`], give it back with
/// [`UdpDriver::recycle`]. One that is not given back is a buffer less.
#[derive(Debug)]
#[must_use = "a buffer not recycled is lost to receiving"]
pub struct Received {
    /// Who sent it; IPv4 as IPv4 also on a dual-stack socket.
    pub remote: SocketAddr,
    /// Which of our addresses it was sent to.
    pub local: Option<IpAddr>,
    driver: u32,
    buffer: u16,
    start: usize,
    length: usize,
}

#[cfg(test)]
impl Received {
    /// One that no driver received: for a simulated network.
    pub(crate) fn simulated(remote: SocketAddr, local: IpAddr) -> Received {
        Received { remote, local: Some(local), driver: 0, buffer: 0, start: 0, length: 0 }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Completion {
    /// A datagram arrived.
    Datagram(Received),
    /// The bell of this index rang; its eventfd is drained.
    Eventfd(usize),
    /// The word given to [`UdpDriver::watch`] changed, or was not as expected; or the kernel refuses to wait for it, with the
    /// error number (positive, errno(3)).
    Futex(Result<(), i32>),
    /// A send ended.
    Sent {
        /// Whose datagrams.
        viewer: u32,
        /// How many the send held.
        datagrams: u32,
        /// Bytes sent, or the error number (positive, errno(3)).
        result: Result<u32, i32>,
    },
}

/// What a driver has done, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Operations submitted.
    pub sqes: u64,
    /// Completions received.
    pub completions: u64,
    /// Times completions had to wait in the kernel for room.
    pub cq_overflows: u64,
    /// Send operations queued, batches and single datagrams.
    pub sends: u64,
    /// Of these, batches of several datagrams in one GSO send.
    pub gso_batches: u64,
    /// Datagrams the kernel took.
    pub datagrams_sent: u64,
    /// Their bytes, headers excluded.
    pub bytes_sent: u64,
    /// Datagrams dropped because a queue was full (`ENOBUFS`, `EAGAIN`) or no operation was free.
    pub datagrams_dropped: u64,
    /// Datagrams that could not be sent for another reason.
    pub send_errors: u64,
    /// Batches a route refused and that went out one by one instead.
    pub gso_fallbacks: u64,
    /// Datagrams received.
    pub received: u64,
    /// Datagrams too large for a buffer, dropped.
    pub recv_truncated: u64,
    /// Times receiving paused because all buffers were in use; the socket's own buffer holds meanwhile.
    pub recv_no_buffers: u64,
    /// Receives that failed otherwise.
    pub recv_errors: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_survive_as_bits() {
        for bits in 0..128 {
            assert_eq!(Features::from_bits(bits).bits(), bits);
        }
        assert_eq!(Features::ALL.bits(), 127);
        assert_eq!(Features::ALL.missing(), "");
        let old = Features { defer_taskrun: false, multishot_receive: false, ..Features::ALL };
        assert_eq!(old.missing(), "DEFER_TASKRUN, multishot receive");
    }

    #[test]
    fn features_are_given_up_youngest_first_and_end() {
        let mut features = Features::ALL;
        assert!(features.leave_one_out());
        assert!(!features.defer_taskrun && features.single_issuer, "deferring needs a single issuer");
        assert!(features.leave_one_out() && features.leave_one_out() && features.leave_one_out());
        assert!(!features.leave_one_out());
        assert!(features.gso && features.multishot_receive, "not of the set-up");
    }
}
