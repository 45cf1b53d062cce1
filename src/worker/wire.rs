//! What a turn needs of the edge: so that the same turn runs on io_uring, and on a simulated network in tests.
//! May not add anything to the edge.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::session::{DatagramSink, Destination};
use crate::uring::{Completion, Edge, EdgeCounters, EdgeError, Received, Word};
use crate::worker::timing::Sends;

/// The edge as a worker sees it; each method is that of [`Edge`].
pub(super) trait Wire {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), EdgeError>;
    fn next_completion(&mut self) -> Option<Completion>;
    fn datagram(&self, received: &Received) -> &[u8];
    fn recycle(&mut self, received: Received);
    fn send_with(
        &mut self,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    );
    fn flush(&mut self);
    fn counters(&self) -> &EdgeCounters;
    fn in_flight(&self, viewer: u32) -> u32;
    fn watch(&mut self, word: Option<(&Word, u32)>);
}

/// One viewer's datagrams on their way to the edge.
pub(super) struct Lane<'a, W> {
    pub(super) edge: &'a mut W,
    pub(super) viewer: u32,
    pub(super) sends: &'a mut Sends,
}

impl<W: Wire> DatagramSink for Lane<'_, W> {
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        self.sends.hand();
        self.edge.send_with(self.viewer, to.local, to.remote, bytes, write);
    }
}

impl Wire for Edge {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), EdgeError> {
        Edge::submit_and_wait(self, timeout)
    }

    fn next_completion(&mut self) -> Option<Completion> {
        Edge::next_completion(self)
    }

    fn datagram(&self, received: &Received) -> &[u8] {
        Edge::datagram(self, received)
    }

    fn recycle(&mut self, received: Received) {
        Edge::recycle(self, received);
    }

    fn send_with(
        &mut self,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        Edge::send_with(self, viewer, local, remote, bytes, write);
    }

    fn flush(&mut self) {
        Edge::flush(self);
    }

    fn counters(&self) -> &EdgeCounters {
        Edge::counters(self)
    }

    fn in_flight(&self, viewer: u32) -> u32 {
        Edge::in_flight(self, viewer)
    }

    fn watch(&mut self, word: Option<(&Word, u32)>) {
        Edge::watch(self, word);
    }
}
