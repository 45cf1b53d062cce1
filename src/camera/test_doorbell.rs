//! The doorbell for tests of other rooms: looks when it is told to, on whatever clock they run. May not be used
//! outside tests.

use super::cursor::MonotonicNs;
use super::source::Camera;
use super::watch::Watch;

/// Follows a camera as [`super::doorbell::run`] does, without a thread.
pub(crate) struct TestDoorbell(Watch);

impl TestDoorbell {
    pub(crate) fn new(camera: &Camera) -> TestDoorbell {
        TestDoorbell(Watch::new(camera.clone()))
    }

    /// One look at the ring.
    pub(crate) fn look(&mut self, now_ns: MonotonicNs) {
        self.0.look(now_ns, None);
    }
}
