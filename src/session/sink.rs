//! Where a session's datagrams go. The session reserves the length and writes the encrypted bytes into the send buffer
//! itself, so nothing is copied afterwards. No I/O: the worker's sink is io_uring, the tests' sink is a list.

use std::net::{IpAddr, SocketAddr};

/// Source and target of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Local address to send from; `None` leaves the choice to the routing table.
    pub local: Option<IpAddr>,
    /// Address and port of the viewer.
    pub remote: SocketAddr,
}

/// Takes the datagrams of one session, in order.
pub trait DatagramSink {
    /// Reserves a datagram of `bytes` bytes; `write` fills all of them. Without room the datagram is lost, as on the
    /// network: `write` is not called, and the sink counts the loss.
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8]));
}
