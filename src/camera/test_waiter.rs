//! A camera waiter for tests of other modules. It polls only when the test calls it, with any time that the test gives.

use super::segment_follower::SegmentFollower;
use super::source::{Camera, MonotonicNs};

/// Follows a camera like [`super::waiter::run`], without a thread.
pub(crate) struct TestWaiter(SegmentFollower);

impl TestWaiter {
    pub(crate) fn new(camera: &Camera) -> TestWaiter {
        TestWaiter(SegmentFollower::new(camera.clone()))
    }

    /// Polls the ring once.
    pub(crate) fn poll(&mut self, now_ns: MonotonicNs) {
        self.0.poll(now_ns, None);
    }
}
