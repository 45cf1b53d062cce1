//! A camera for tests of the camera module only. It writes a real segment with `pwrite`, step by step in the daemon's
//! order.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::OwnedFd;
use rustix::shm;
use zerocopy::IntoBytes as _;

use super::cursor::{Cursor, Next, UnitView};
use super::layout::{FORMAT_H264, Layout, SlotMetadata, WRITE_INDEX_OFFSET};
use super::source::{Camera, Wake};

/// Returns the unit in `next`. Panics if `next` is anything else.
pub(super) fn unit(next: Next) -> UnitView {
    match next {
        Next::Unit(unit) => unit,
        other => panic!("no unit: {other:?}"),
    }
}

/// Returns the metadata of a 720p picture whose access unit is `data`.
pub(super) fn metadata(frame_number: u64, data: &[u8]) -> SlotMetadata {
    SlotMetadata {
        frame_number,
        width: 1280,
        height: 720,
        format: FORMAT_H264,
        data_bytes: data.len() as u64,
        ..SlotMetadata::default()
    }
}

/// Returns a polling camera on the segment called `name`, and a cursor on that camera.
pub(super) fn attach(name: &str) -> (Camera, Cursor) {
    let camera = Camera::new(name, Wake::Poll);
    let cursor = camera.cursor();
    (camera, cursor)
}

static SEGMENTS: AtomicU32 = AtomicU32::new(0);

/// A segment that a test writes as a camera. Dropping this value unlinks the segment.
pub(super) struct TestRing {
    name: String,
    layout: Layout,
    file: OwnedFd,
    /// The write index, which is the number of units begun.
    pub(super) index: u32,
    /// Frame number of the next unit.
    pub(super) frame_number: u64,
}

impl TestRing {
    pub(super) fn new(layout: Layout) -> TestRing {
        let number = SEGMENTS.fetch_add(1, Ordering::Relaxed);
        TestRing::named(&format!("/ss-test-{}-camera-{number}", std::process::id()), layout)
    }

    /// Creates a segment called `name`. Unlinks any older segment of that name first.
    pub(super) fn named(name: &str, layout: Layout) -> TestRing {
        let _ = shm::unlink(name);
        let flags = shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR;
        let file = shm::open(name, flags, shm::Mode::RUSR | shm::Mode::WUSR).unwrap();
        rustix::fs::ftruncate(&file, layout.segment_bytes() as u64).unwrap();
        TestRing { name: name.to_owned(), layout, file, index: 0, frame_number: 0 }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn resize(&self, bytes: u64) {
        rustix::fs::ftruncate(&self.file, bytes).unwrap();
    }

    pub(super) fn unlink(&self) {
        let _ = shm::unlink(&self.name);
    }

    /// Returns the metadata of the next unit if that unit is `data`.
    pub(super) fn metadata(&self, data: &[u8]) -> SlotMetadata {
        metadata(self.frame_number, data)
    }

    pub(super) fn write_data(&self, unit: u32, at: usize, data: &[u8]) {
        self.write(self.layout.slot_offset(unit) + self.layout.data_offset() + at, data);
    }

    pub(super) fn write_metadata(&self, unit: u32, metadata: &SlotMetadata) {
        self.write(self.layout.slot_offset(unit), metadata.as_bytes());
    }

    pub(super) fn set_index(&mut self, index: u32) {
        self.index = index;
        self.write(WRITE_INDEX_OFFSET, &index.to_ne_bytes());
    }

    /// Publishes one unit. Index and slot are written in the daemon's order.
    pub(super) fn publish(&mut self, data: &[u8]) {
        let metadata = self.metadata(data);
        self.publish_as(&metadata, data);
    }

    pub(super) fn publish_as(&mut self, metadata: &SlotMetadata, data: &[u8]) {
        let unit = self.index;
        if self.layout.publishes_index_first() {
            self.set_index(unit.wrapping_add(1));
        }
        self.write_metadata(unit, metadata);
        self.write_data(unit, 0, data);
        self.frame_number += 1;
        if !self.layout.publishes_index_first() {
            self.set_index(unit.wrapping_add(1));
        }
    }

    /// Begins a unit in the index-first order: raises the index, but writes nothing into the slot. Returns the unit's
    /// number.
    pub(super) fn begin(&mut self) -> u32 {
        let unit = self.index;
        self.set_index(unit.wrapping_add(1));
        unit
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let written = rustix::io::pwrite(&self.file, bytes, offset as u64).unwrap();
        assert_eq!(written, bytes.len());
    }
}

impl Drop for TestRing {
    fn drop(&mut self) {
        self.unlink();
    }
}
