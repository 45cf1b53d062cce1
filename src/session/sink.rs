//! Where a session's datagrams go. The session says how long the next one is and writes it where it leaves from:
//! what is encrypted is not copied again. No I/O here; the worker's edge is one sink, a test's list another.

use std::net::{IpAddr, SocketAddr};

/// From where to where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address to send from; `None` leaves it to the routing table.
    pub local: Option<IpAddr>,
    /// Where to.
    pub remote: SocketAddr,
}

/// Takes the datagrams of one session, in order.
pub trait DatagramSink {
    /// Takes a datagram of `bytes` bytes, all of which `write` writes. Without room for it the datagram is lost as
    /// on any other part of its way: `write` is not called, and the sink counts it.
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8]));
}
