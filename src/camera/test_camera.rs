//! A camera for tests of other modules. It writes a real ring, of any layout, in the thread of the test.

use std::sync::atomic::{AtomicU32, Ordering};

use super::layout::{FORMAT_H264, Layout, SlotMetadata};
use super::source::{Camera, Wake};
use super::writer::RingWriter;

static RINGS: AtomicU32 = AtomicU32::new(0);

/// A camera of 640 x 352 pixels. Dropping this value unlinks the ring.
pub(crate) struct TestCamera {
    name: String,
    writer: RingWriter,
    /// Number of units published.
    pub(crate) written: u32,
}

impl TestCamera {
    pub(crate) fn new(layout: Layout) -> TestCamera {
        let number = RINGS.fetch_add(1, Ordering::Relaxed);
        let name = format!("/ss-test-{}-writer-{number}", std::process::id());
        TestCamera { writer: RingWriter::create(&name, layout, 33).unwrap(), name, written: 0 }
    }

    /// Publishes an access unit in Annex B format. Its capture time is 0.
    pub(crate) fn publish(&mut self, unit: &[u8]) {
        self.publish_stamped(unit, 0);
    }

    /// Publishes an access unit in Annex B format that was captured at `captured_ns`.
    pub(crate) fn publish_stamped(&mut self, unit: &[u8], captured_ns: i64) {
        let metadata = SlotMetadata {
            timestamp_s: captured_ns / 1_000_000_000,
            timestamp_ns: captured_ns % 1_000_000_000,
            frame_number: u64::from(self.written),
            width: 640,
            height: 352,
            format: FORMAT_H264,
            data_bytes: unit.len() as u64,
            ..SlotMetadata::default()
        };
        self.writer.publish(&metadata, unit);
        self.written += 1;
    }

    /// Returns a polling camera on this ring.
    pub(crate) fn attach(&self) -> Camera {
        Camera::new(&self.name, Wake::Poll)
    }
}

impl Drop for TestCamera {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}
