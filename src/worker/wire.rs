//! What a turn needs of the driver: so that the same turn runs on io_uring, and on a simulated network in tests.
//! May not add anything to the driver.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::session::{DatagramSink, Destination};
use crate::uring::{Completion, FutexWord, Received, UdpCounters, UdpDriver, UdpDriverError};
use crate::worker::timing::Sends;

/// The driver as a worker sees it; each method is that of [`UdpDriver`].
pub(super) trait Driver {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), UdpDriverError>;
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
    fn counters(&self) -> &UdpCounters;
    fn in_flight(&self, viewer: u32) -> u32;
    fn watch(&mut self, word: Option<(&FutexWord, u32)>);
}

/// One viewer's datagrams on their way to the driver.
pub(super) struct ViewerSink<'a, W> {
    pub(super) driver: &'a mut W,
    pub(super) viewer: u32,
    pub(super) sends: &'a mut Sends,
}

impl<W: Driver> DatagramSink for ViewerSink<'_, W> {
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        self.sends.hand();
        self.driver.send_with(self.viewer, to.local, to.remote, bytes, write);
    }
}

impl Driver for UdpDriver {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), UdpDriverError> {
        UdpDriver::submit_and_wait(self, timeout)
    }

    fn next_completion(&mut self) -> Option<Completion> {
        UdpDriver::next_completion(self)
    }

    fn datagram(&self, received: &Received) -> &[u8] {
        UdpDriver::datagram(self, received)
    }

    fn recycle(&mut self, received: Received) {
        UdpDriver::recycle(self, received);
    }

    fn send_with(
        &mut self,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        UdpDriver::send_with(self, viewer, local, remote, bytes, write);
    }

    fn flush(&mut self) {
        UdpDriver::flush(self);
    }

    fn counters(&self) -> &UdpCounters {
        UdpDriver::counters(self)
    }

    fn in_flight(&self, viewer: u32) -> u32 {
        UdpDriver::in_flight(self, viewer)
    }

    fn watch(&mut self, word: Option<(&FutexWord, u32)>) {
        UdpDriver::watch(self, word);
    }
}
