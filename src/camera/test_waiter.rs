//! The doorbell for tests of other rooms: looks when it is told to, on whatever clock they run. May not be used
//! outside tests.

use super::cursor::MonotonicNs;
use super::segment_follower::SegmentFollower;
use super::source::Camera;

/// Follows a camera as [`super::waiter::run`] does, without a thread.
pub(crate) struct TestWaiter(SegmentFollower);

impl TestWaiter {
    pub(crate) fn new(camera: &Camera) -> TestWaiter {
        TestWaiter(SegmentFollower::new(camera.clone()))
    }

    /// One look at the ring.
    pub(crate) fn poll(&mut self, now_ns: MonotonicNs) {
        self.0.poll(now_ns, None);
    }
}
