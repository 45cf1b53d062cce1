//! What a turn needs of the edge: so that the same turn runs on io_uring, and on a simulated network in tests.
//! May not add anything to the edge.

use std::time::Duration;

use crate::uring::{Completion, Edge, EdgeCounters, EdgeError, Outgoing, Received};

/// The edge as a worker sees it; each method is that of [`Edge`].
pub(super) trait Wire {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), EdgeError>;
    fn next_completion(&mut self) -> Option<Completion>;
    fn datagram(&self, received: &Received) -> &[u8];
    fn recycle(&mut self, received: Received);
    fn send(&mut self, datagram: Outgoing);
    fn flush(&mut self);
    fn counters(&self) -> &EdgeCounters;
    fn in_flight(&self, viewer: u32) -> u32;
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

    fn send(&mut self, datagram: Outgoing) {
        Edge::send(self, datagram);
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
}
