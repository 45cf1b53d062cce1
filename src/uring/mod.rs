//! EDGE: UDP through io_uring, one [`UdpDriver`] per worker. This module does not interpret payloads and reads no clock.
//!
//! ```text
//!   send_with, send_with .. ─► batches of equal size ─► one sendmsg each (UDP_SEGMENT) ─┐
//!   eventfd reads, receives, futex wait queued again ───────────────────────────────────┼─► one io_uring_enter
//!   next_completion ◄── datagrams, eventfds, futex, completed sends ◄── all completions ◄─┘
//! ```
//!
//! A turn is: [`Driver::submit_and_wait`], then [`Driver::next_completion`] until it returns `None`, then
//! [`Driver::send_with`] viewer by viewer, with [`Driver::flush`] after each.
//!
//! Memory that the kernel holds is not freed before its last completion: see `buffers.rs` for the rule and
//! `udp_driver.rs` for the drop. Unsafe code is in `ring.rs` and `buffers.rs` only.

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

/// Descriptors and limits of a [`UdpDriver`].
pub struct UdpDriverConfig {
    /// A bound UDP socket from [`open_socket`]. Drivers may share it. `O_NONBLOCK` is cleared on it.
    pub socket: Arc<OwnedFd>,
    /// True if this driver receives. Of the drivers that share a socket, one should.
    pub receives: bool,
    /// Eventfds to read, at most [`limits::EVENTFDS_MAX`](crate::base::limits::EVENTFDS_MAX). Only this driver reads
    /// them. `O_NONBLOCK` is cleared on them.
    pub eventfds: Vec<Arc<OwnedFd>>,
    /// Send operations that the kernel may hold at once, 1 to [`limits::SENDS_MAX`](crate::base::limits::SENDS_MAX).
    pub sends_max: usize,
}

/// A word of shared memory that another process changes and wakes (futex(2)). The `Arc` keeps it mapped.
pub type FutexWord = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

bitflags::bitflags! {
    /// Kernel features that the driver uses if they are available. A driver removes those that its kernel lacks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `IORING_SETUP_SINGLE_ISSUER` (Linux 6.0).
        const SINGLE_ISSUER = 1;
        /// `IORING_SETUP_DEFER_TASKRUN` (Linux 6.1).
        const DEFER_TASKRUN = 1 << 1;
        /// `IORING_SETUP_COOP_TASKRUN` (Linux 5.19).
        const COOP_TASKRUN = 1 << 2;
        /// `IORING_SETUP_SUBMIT_ALL` (Linux 5.18).
        const SUBMIT_ALL = 1 << 3;
        /// Multishot recvmsg over a buffer ring (Linux 6.0).
        const MULTISHOT_RECEIVE = 1 << 4;
        /// A batch is one send with `UDP_SEGMENT` (Linux 4.18). Without it every datagram is a send of its own.
        const GSO = 1 << 5;
        /// Waiting for a futex, `IORING_OP_FUTEX_WAIT` (Linux 6.7).
        const FUTEX = 1 << 6;
    }
}

impl Features {
    /// Returns each feature's name and true if it is in the set, in the order of the bits.
    pub fn list(self) -> impl Iterator<Item = (&'static str, bool)> {
        let names = [
            "SINGLE_ISSUER",
            "DEFER_TASKRUN",
            "COOP_TASKRUN",
            "SUBMIT_ALL",
            "multishot receive",
            "GSO",
            "futex wait",
        ];
        names.into_iter().zip(Features::all()).map(move |(name, feature)| (name, self.contains(feature)))
    }

    /// Returns the names of the missing features, separated by commas.
    #[must_use]
    pub fn missing(self) -> String {
        let missing: Vec<&str> =
            self.list().filter(|(_, is_there)| !is_there).map(|(name, _)| name).collect();
        missing.join(", ")
    }

    /// Removes the set-up flag of the newest Linux version. Returns false if none is left.
    fn drop_newest_flag(&mut self) -> bool {
        let newest_first = [
            Features::DEFER_TASKRUN, // needs SINGLE_ISSUER, so it goes first
            Features::SINGLE_ISSUER,
            Features::COOP_TASKRUN,
            Features::SUBMIT_ALL,
        ];
        let newest = newest_first.into_iter().find(|flag| self.contains(*flag));
        self.remove(newest.unwrap_or(Features::empty()));
        newest.is_some()
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
    /// word does not. Without [`Features::FUTEX`] it does nothing.
    fn set_futex_wait(&mut self, word: Option<(&FutexWord, u32)>);
}

/// A received datagram in a buffer of the driver. Read it with [`Driver::datagram`] and give the buffer back with
/// [`Driver::recycle`]; otherwise the buffer is lost.
#[derive(Debug)]
#[must_use = "a buffer not recycled is lost to receiving"]
pub struct Received {
    /// Sender's address; not IPv4-mapped, also on a dual-stack socket.
    pub remote: SocketAddr,
    /// Our address that it was sent to.
    pub local: Option<IpAddr>,
    driver: u32,
    buffer: u16,
    start: usize,
    length: usize,
}

#[cfg(test)]
impl Received {
    /// A datagram of a simulated network.
    pub(crate) fn simulated(remote: SocketAddr, local: IpAddr) -> Received {
        Received { remote, local: Some(local), driver: 0, buffer: 0, start: 0, length: 0 }
    }
}

/// One completed operation.
#[derive(Debug)]
pub enum Completion {
    /// A datagram arrived.
    Datagram(Received),
    /// The eventfd with this index was written, and has been read.
    Eventfd(usize),
    /// The word of [`Driver::set_futex_wait`] changed. An error is the kernel's refusal to wait (positive, errno(3)).
    Futex(Result<(), i32>),
    /// A send completed.
    Sent {
        /// Number of the viewer.
        viewer: u32,
        /// Datagrams of the send.
        datagrams: u32,
        /// Bytes sent, or the error number (positive, errno(3)).
        result: Result<u32, i32>,
    },
}

/// Counts of a driver since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Operations submitted.
    pub sqes: u64,
    /// Completions received.
    pub completions: u64,
    /// Times that completions waited in the kernel for room in the queue.
    pub cq_overflows: u64,
    /// Send operations queued, of batches and single datagrams.
    pub sends: u64,
    /// Of these, GSO sends of several datagrams.
    pub gso_batches: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Payload bytes sent, without headers.
    pub bytes_sent: u64,
    /// Datagrams dropped because a queue was full (`ENOBUFS`, `EAGAIN`) or no operation was free.
    pub datagrams_dropped: u64,
    /// Datagrams that failed for another reason.
    pub send_errors: u64,
    /// Batches that a route refused and whose datagrams were sent one by one.
    pub gso_fallbacks: u64,
    /// Datagrams received.
    pub received: u64,
    /// Datagrams dropped because they were larger than a buffer.
    pub recv_truncated: u64,
    /// Times that receiving paused because all buffers were in use. The socket's buffer holds the datagrams meanwhile.
    pub recv_no_buffers: u64,
    /// Receives that failed for another reason.
    pub recv_errors: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_are_named() {
        assert_eq!((Features::all().bits(), Features::all().list().count()), (127, 7));
        assert_eq!(Features::all().missing(), "");
        let old = Features::all() - Features::DEFER_TASKRUN - Features::MULTISHOT_RECEIVE;
        assert_eq!(old.missing(), "DEFER_TASKRUN, multishot receive");
        assert_eq!(Features::from_bits_truncate(u64::MAX), Features::all());
    }

    #[test]
    fn set_up_flags_are_dropped_newest_first() {
        let mut features = Features::all();
        assert!(features.drop_newest_flag());
        assert_eq!(features, Features::all() - Features::DEFER_TASKRUN, "DEFER_TASKRUN needs SINGLE_ISSUER");
        assert!(features.drop_newest_flag() && features.drop_newest_flag() && features.drop_newest_flag());
        assert!(!features.drop_newest_flag());
        assert!(features.contains(Features::GSO | Features::MULTISHOT_RECEIVE), "no set-up flags");
    }
}
