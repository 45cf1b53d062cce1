//! The one step between a session and the UDP driver.

use crate::session::{DatagramSink, Destination};
use crate::uring::Driver;
use crate::worker::timing::SendTiming;

/// Hands one viewer's datagrams to the driver and counts them for timing.
pub(super) struct ViewerSink<'a, D> {
    pub(super) driver: &'a mut D,
    pub(super) viewer: u32,
    pub(super) sends: &'a mut SendTiming,
}

impl<D: Driver> DatagramSink for ViewerSink<'_, D> {
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        self.sends.count_datagram();
        self.driver.send_with(self.viewer, to.local, to.remote, bytes, write);
    }
}
