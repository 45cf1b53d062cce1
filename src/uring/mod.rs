//! EDGE: sends and receives UDP through io_uring, with one [`UdpDriver`] per worker, and the same datagrams as frames on
//! TCP connections. This module does not interpret payloads and reads no clock.
//!
//! ```text
//!   send_with, send_with .. ─► batches of equal size ─► one sendmsg each (UDP_SEGMENT) ─┐
//!   eventfd reads, receives, futex wait queued again ───────────────────────────────────┼─► one io_uring_enter
//!   next_completion ◄── datagrams, eventfds, futex, completed sends ◄── all completions ◄─┘
//! ```
//!
//! In each turn, a worker calls [`Driver::submit_and_wait`], then [`Driver::next_completion`] until it returns `None`.
//! Then the worker calls [`Driver::send_with`] for one viewer after the other, and [`Driver::flush`] after each viewer.
//!
//! Memory that the kernel holds for an operation is not freed before the last completion of that operation.
//! `buffers.rs` states the rule, and `udp_driver.rs` follows it when a driver is dropped. Only `ring.rs` and
//! `buffers.rs` contain unsafe code.

mod buffers;
mod error;
pub mod framing;
mod futex_wait;
mod message;
mod operation;
mod ring;
mod tcp;
mod udp;
mod udp_driver;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

pub use error::UdpDriverError;
pub use tcp::{Connections, Frame, TcpHandover};
pub use udp::{SocketError, open_listener, open_socket};
pub use udp_driver::UdpDriver;

/// Descriptors and limits of a [`UdpDriver`].
pub struct UdpDriverConfig {
    /// A bound UDP socket from [`open_socket`]. Several drivers may share the socket. The driver clears `O_NONBLOCK` on
    /// it.
    pub socket: Arc<OwnedFd>,
    /// True if this driver receives datagrams. If several drivers share a socket, only one of them should receive.
    pub receives: bool,
    /// Eventfds to read, at most [`limits::EVENTFDS_MAX`](crate::base::limits::EVENTFDS_MAX). No other code may read
    /// these eventfds. The driver clears `O_NONBLOCK` on them.
    pub eventfds: Vec<Arc<OwnedFd>>,
    /// Maximum number of send operations that the kernel holds at the same time, 1 to
    /// [`limits::SENDS_MAX`](crate::base::limits::SENDS_MAX).
    pub sends_max: usize,
}

/// A futex word in shared memory (futex(2)). Another process changes the word and wakes its waiters. The `Arc` keeps
/// the memory mapped.
pub type FutexWord = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

bitflags::bitflags! {
    /// Kernel features that a driver uses if they are available. A driver removes the features that its kernel lacks.
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
        /// Multishot recvmsg with a buffer ring (Linux 6.0).
        const MULTISHOT_RECEIVE = 1 << 4;
        /// One send with `UDP_SEGMENT` for a whole batch (Linux 4.18). Without this feature, every datagram needs its
        /// own send.
        const GSO = 1 << 5;
        /// Waiting for a futex, `IORING_OP_FUTEX_WAIT` (Linux 6.7).
        const FUTEX = 1 << 6;
    }
}

impl Features {
    /// Returns the name of each feature, in the order of the bits, and true if the feature is in this set.
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

    /// Returns the names of the features that are not in this set, separated by commas.
    #[must_use]
    pub fn missing(self) -> String {
        let missing: Vec<&str> =
            self.list().filter(|(_, is_there)| !is_there).map(|(name, _)| name).collect();
        missing.join(", ")
    }

    /// Removes the set-up flag that the newest Linux version introduced. Returns false if no set-up flag is left.
    fn drop_newest_flag(&mut self) -> bool {
        let newest_first = [
            Features::DEFER_TASKRUN, // this flag needs SINGLE_ISSUER, so it is removed first
            Features::SINGLE_ISSUER,
            Features::COOP_TASKRUN,
            Features::SUBMIT_ALL,
        ];
        let newest = newest_first.into_iter().find(|flag| self.contains(*flag));
        self.remove(newest.unwrap_or(Features::empty()));
        newest.is_some()
    }
}

/// The operations of a worker's driver. [`UdpDriver`] implements them with io_uring. The test of a simulated day
/// implements them with a simulated network.
pub trait Driver {
    /// Submits everything queued and collects all completions, normally with one `io_uring_enter`. Waits up to
    /// `timeout` for the first completion. Does not wait if [`Driver::next_completion`] still has completions from
    /// earlier.
    ///
    /// # Errors
    /// [`UdpDriverError`] if the ring is unusable. A timeout or a signal is no error.
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), UdpDriverError>;

    /// Returns the next completion, in the kernel's order, or `None` if there is none left.
    fn next_completion(&mut self) -> Option<Completion>;

    /// Returns the payload of a received datagram. Returns an empty slice if another driver received the datagram.
    fn datagram(&self, received: &Received) -> &[u8];

    /// Gives back the buffer of a received datagram, so that it can receive another one. Does nothing if another driver
    /// received the datagram.
    fn recycle(&mut self, received: Received);

    /// Queues a datagram of `bytes` bytes to `remote`. `write` receives the datagram's place in the send buffer and
    /// must write all its bytes. The datagram joins the open batch if viewer, route and size fit. It is sent with the
    /// next [`Driver::submit_and_wait`] or earlier.
    ///
    /// `local` is the source address. The kernel chooses a source address if `local` is `None` or of another family
    /// than `remote`. If no send operation is free, even after completed operations were reaped, the datagram is
    /// counted as dropped and `write` is not called.
    fn send_with(
        &mut self,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        self.send_over(None, viewer, local, remote, bytes, write);
    }

    /// Queues a datagram as [`Driver::send_with`] does, or as a frame on the TCP connection with this id. A frame for a
    /// connection that is closed or full is counted as dropped, and `write` is not called.
    fn send_over(
        &mut self,
        connection: Option<NonZeroU32>,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    );

    /// Returns the TCP connections, or `None` if the driver has no TCP.
    fn connections(&mut self) -> Option<&mut Connections>;

    /// Closes the open batch, so that the next datagram starts another batch. Call this after each viewer.
    fn flush(&mut self);

    /// Returns the counts since the driver was created.
    fn counters(&self) -> &UdpCounters;

    /// Returns the number of `viewer`'s datagrams whose sends the kernel has not completed. Bytes that wait for a TCP
    /// connection count as full datagrams.
    fn in_flight(&self, viewer: u32) -> u32;

    /// Sets a futex word to wait for. From the next [`Driver::submit_and_wait`] on, the kernel waits until the word
    /// differs from the given value. The wait ends with one [`Completion::Futex`]; to wait again, call this again.
    ///
    /// `None` or another word cancels the current wait. Another value for the same word does not. Without
    /// [`Features::FUTEX`], this does nothing.
    fn set_futex_wait(&mut self, word: Option<(&FutexWord, u32)>);
}

/// A received datagram in a buffer of the driver. Read the datagram with [`Driver::datagram`], then give the buffer
/// back with [`Driver::recycle`]. Otherwise the buffer is lost for receiving.
#[derive(Debug)]
#[must_use = "a buffer not recycled is lost to receiving"]
pub struct Received {
    /// Address of the sender. An IPv4 address is never IPv4-mapped, even on a dual-stack socket.
    pub remote: SocketAddr,
    /// Local address to which the datagram was sent.
    pub local: Option<IpAddr>,
    driver: u32,
    buffer: u16,
    start: usize,
    length: usize,
}

#[cfg(test)]
impl Received {
    /// Returns a received datagram of a simulated network.
    pub(crate) fn simulated(remote: SocketAddr, local: IpAddr) -> Received {
        Received { remote, local: Some(local), driver: 0, buffer: 0, start: 0, length: 0 }
    }
}

/// One completed operation.
#[derive(Debug)]
pub enum Completion {
    /// A datagram arrived.
    Datagram(Received),
    /// Bytes arrived on a TCP connection. [`Connections::next_frame`] returns the frames.
    Frames(NonZeroU32),
    /// A TCP connection of a viewer is closed.
    Disconnected {
        /// Id of the connection.
        connection: NonZeroU32,
        /// Number of the viewer.
        viewer: u32,
    },
    /// The eventfd with this index was written, and the driver has read it.
    Eventfd(usize),
    /// The word of [`Driver::set_futex_wait`] changed, or the kernel refused to wait for it. The error is a positive
    /// error number (errno(3)).
    Futex(Result<(), i32>),
    /// A send completed.
    Sent {
        /// Number of the viewer.
        viewer: u32,
        /// Number of datagrams sent. Always 0 over TCP, where the kernel reports bytes only.
        datagrams: u32,
        /// Number of bytes sent, or a positive error number (errno(3)).
        result: Result<u32, i32>,
    },
}

/// Counts of a driver since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Number of `io_uring_enter` calls.
    pub enters: u64,
    /// Number of operations submitted.
    pub sqes: u64,
    /// Number of completions received.
    pub completions: u64,
    /// Number of times that completions waited in the kernel, because the completion queue was full.
    pub cq_overflows: u64,
    /// Number of send operations queued, for batches and for single datagrams.
    pub sends: u64,
    /// Number of GSO sends of several datagrams. `sends` includes them.
    pub gso_batches: u64,
    /// Number of datagrams sent.
    pub datagrams_sent: u64,
    /// Number of payload bytes sent, without headers.
    pub bytes_sent: u64,
    /// Number of datagrams dropped because a queue was full (`ENOBUFS`, `EAGAIN`) or no send operation was free.
    pub datagrams_dropped: u64,
    /// Number of datagrams whose send failed for a reason other than a full queue.
    pub send_errors: u64,
    /// Number of batches whose GSO send was refused. Their datagrams were sent one by one.
    pub gso_fallbacks: u64,
    /// Number of datagrams received.
    pub received: u64,
    /// Number of received datagrams dropped because they were larger than a buffer.
    pub recv_truncated: u64,
    /// Number of times that receiving paused because all buffers were in use. Meanwhile the socket keeps the datagrams.
    pub recv_no_buffers: u64,
    /// Number of receives that failed for any other reason.
    pub recv_errors: u64,
    /// Counts of the TCP connections.
    pub tcp: TcpCounters,
}

/// Counts of the TCP connections of a driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Number of connections now.
    pub open: u64,
    /// Number of connections accepted.
    pub accepted: u64,
    /// Number of connections closed because they belonged to no session, in time, or because there were too many.
    pub refused: u64,
    /// Number of frames received.
    pub frames_received: u64,
    /// Number of frames queued for sending.
    pub frames_sent: u64,
    /// Number of frames not queued, because the connection was closed or full.
    pub frames_dropped: u64,
    /// Number of bytes sent, with the lengths of the frames.
    pub bytes_sent: u64,
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
