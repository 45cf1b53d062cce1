//! UNSAFE: the writing side of a slot ring, for the simulator and for tests. It writes in the same order as the camera
//! daemon. It is not part of the server's live path, and no consumer may use it.
//!
//! ```text
//!  v0, v1, v2   index = n + 1 ─► metadata, data ─► sem_post (v1, v2)
//!  v3, v3-6     metadata, data ─► release fence ─► index = n + 1 ─► sem_post
//!  lease        claim a slot ─► metadata, data ─► publish ─► latest ─► futex      (lease_writer.rs)
//! ```
//!
//! In the index-first layouts, the daemon copies whole slots of 3.1 MB. A reader depends only on the order, so this
//! writer copies just the metadata and the unit. A slot is therefore half-written for a shorter time than with the
//! daemon. [`RingWriter::publish_torn`] makes that time longer.
#![expect(unsafe_code, reason = "a semaphore in memory that other processes map; no safe API has it")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{fstat, ftruncate};
use rustix::io::Errno;
use rustix::shm;
use zerocopy::IntoBytes as _;

use super::layout::{Layout, LayoutError, SlotMetadata, WRITE_INDEX_OFFSET};
use super::lease_header::{FLAG_IDR, seconds};
use super::lease_writer::LeaseWriter;
use super::segment::{SegmentIdentity, detect_layout};
use super::shared_map::SharedMap;
use crate::base::foreign_file;
use crate::base::limits::SLOT_DATA_BYTES_MAX;

/// The writer of a ring. Dropping the writer leaves the segment in place. [`RingWriter::unlink`] removes the segment.
pub struct RingWriter {
    map: Arc<SharedMap>,
    /// Writer of the lease protocol. `None` on the legacy layouts.
    lease: Option<LeaseWriter>,
    layout: Layout,
    name: String,
    /// `st_dev` and `st_ino` of the segment, because its name may later refer to another segment.
    identity: (u64, u64),
}

impl RingWriter {
    /// Creates a segment called `name` with index 0 and, if the layout has one, a process-shared semaphore of value 0.
    /// An old segment of that name is unlinked first; processes that have mapped the old segment keep it.
    ///
    /// # Errors
    /// [`WriterError`] if the segment cannot be created. In that case no segment is left behind.
    pub fn create(name: &str, layout: Layout, frame_interval_ms: u32) -> Result<RingWriter, WriterError> {
        check_name(name)?;
        match shm::unlink(name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(WriterError::Segment { name: name.to_owned(), source: errno.into() }),
        }
        let fresh = RingWriter::open(name, Some((layout, frame_interval_ms)));
        if fresh.is_err() {
            // An error of the clean-up is ignored, because the first error already names the cause.
            let _ = shm::unlink(name);
        }
        fresh
    }

    /// Maps the existing segment called `name` and continues at its index, like a restarted daemon. Index, semaphore
    /// and complete units stay as they are. On a lease ring, this begins the next epoch.
    ///
    /// # Errors
    /// [`WriterError`] if the segment cannot be mapped for writing, if it has no known layout, or if the lease ring has
    /// a living writer.
    pub fn attach(name: &str) -> Result<RingWriter, WriterError> {
        check_name(name)?;
        RingWriter::open(name, None)
    }

    /// Opens and maps the segment. If `create` is given (layout and frame interval in milliseconds), creates the
    /// segment first.
    fn open(name: &str, create: Option<(Layout, u32)>) -> Result<RingWriter, WriterError> {
        let segment = |source: io::Error| WriterError::Segment { name: name.to_owned(), source };
        let file = match create {
            // The camera daemon uses the same mode: all users may read and post, unless the umask forbids it.
            Some(_) => foreign_file::create_shared_memory(name, 0o666),
            None => foreign_file::open_shared_memory(name, true).map(|(file, _)| file),
        };
        let file = file.map_err(segment)?;
        if let Some((layout, _)) = create {
            ftruncate(&file, layout.segment_bytes() as u64).map_err(|errno| segment(errno.into()))?;
        }
        let status = fstat(&file).map_err(|errno| segment(errno.into()))?;
        let segment_bytes = status.st_size.cast_unsigned();
        let layout = match create {
            Some((layout, _)) => Ok(layout),
            None => detect_layout(&file, segment_bytes),
        };
        let layout = layout.map_err(|source| WriterError::Layout { name: name.to_owned(), source })?;
        let map = SharedMap::new(&file, 0..layout.segment_bytes(), true)
            .map_err(|source| WriterError::Map { name: name.to_owned(), source })?;
        let map = Arc::new(map);
        let interval_ms = create.map(|(_, interval_ms)| interval_ms);
        let mut lease = None;
        if let Layout::Lease(geometry) = layout {
            lease = LeaseWriter::new(Arc::clone(&map), file, geometry, interval_ms);
            if lease.is_none() {
                return Err(WriterError::InUse(name.to_owned()));
            }
        } else if let (Some(interval_ms), Some(offsets)) = (interval_ms, layout.control_offsets()) {
            let (interval_offset, semaphore_offset) = offsets;
            map.word(interval_offset).store(interval_ms, Ordering::Relaxed);
            // SAFETY: the pointer is to 32 aligned bytes in the mapping, before the first slot (const asserts in
            // layout.rs). The segment was created just now with O_EXCL, so no other process uses it yet.
            let result = unsafe { libc::sem_init(map.pointer(semaphore_offset), 1, 0) };
            if result != 0 {
                return Err(WriterError::Semaphore(io::Error::last_os_error()));
            }
        }
        let identity = (status.st_dev, status.st_ino);
        Ok(RingWriter { map, lease, layout, name: name.to_owned(), identity })
    }

    /// Publishes one access unit. Index and slot are written in the order of the layout. `metadata` is written without
    /// a check. On a legacy ring, at most [`SLOT_DATA_BYTES_MAX`] bytes of `data` are written.
    ///
    /// Returns false if a lease ring has no free slot or if the unit is larger than a slot. The unit is then dropped,
    /// and readers see that its number is missing.
    pub fn publish(&mut self, metadata: &SlotMetadata, data: &[u8]) -> bool {
        self.publish_in_parts(metadata, 0, data, &[], || {})
    }

    /// Publishes an IDR like [`RingWriter::publish`]. On a lease ring, the slot's flags also mark the unit as an IDR.
    pub fn publish_idr(&mut self, metadata: &SlotMetadata, data: &[u8]) -> bool {
        self.publish_in_parts(metadata, FLAG_IDR, data, &[], || {})
    }

    /// Publishes a unit like [`RingWriter::publish`], but runs `between` when half of the bytes are written. During
    /// that call, a slot of a legacy ring has the first half of this unit and the second half of its previous content.
    pub fn publish_torn(&mut self, metadata: &SlotMetadata, data: &[u8], between: impl FnOnce()) -> bool {
        let (first, second) = data.split_at(data.len() / 2);
        self.publish_in_parts(metadata, 0, first, second, between)
    }

    fn publish_in_parts(
        &mut self,
        metadata: &SlotMetadata,
        flags: u32,
        first: &[u8],
        second: &[u8],
        between: impl FnOnce(),
    ) -> bool {
        if let Some(lease) = &mut self.lease {
            return lease.publish(metadata, flags, [first, second], between);
        }
        let index = self.map.word(WRITE_INDEX_OFFSET);
        let unit = index.load(Ordering::Relaxed);
        let next = unit.wrapping_add(1);
        if self.layout.publishes_index_first() {
            index.store(next, Ordering::Release);
            // This fence pairs with the reader's acquire fence: a reader that has seen a byte of this unit also sees
            // the raised index.
            fence(Ordering::Release);
        }
        let slot = self.layout.slot_offset(unit);
        let data_at = slot + self.layout.data_offset();
        self.map.copy_in(slot, metadata.as_bytes());
        let first = first.get(..first.len().min(SLOT_DATA_BYTES_MAX)).unwrap_or_default();
        self.map.copy_in(data_at, first);
        between();
        let room = SLOT_DATA_BYTES_MAX - first.len();
        self.map.copy_in(data_at + first.len(), second.get(..second.len().min(room)).unwrap_or_default());
        if !self.layout.publishes_index_first() {
            fence(Ordering::Release);
            index.store(next, Ordering::Release);
        }
        if let Some((_, offset)) = self.layout.control_offsets() {
            let semaphore = self.map.pointer(offset);
            // SAFETY: `semaphore` is a sem_t that this writer or the creator of the segment has initialised. sem_post
            // may be called from any thread and process. At SEM_VALUE_MAX it fails without effect.
            let _ = unsafe { libc::sem_post(semaphore) };
        }
        true
    }

    /// Returns the number of units begun or published so far, with wrap-around.
    #[must_use]
    pub fn write_index(&self) -> u32 {
        match &self.lease {
            Some(lease) => lease.write_index(),
            None => self.map.word(WRITE_INDEX_OFFSET).load(Ordering::Acquire),
        }
    }

    /// Sets the index of a legacy ring. Tests use this to imitate a daemon that clears its segment at start. Does
    /// nothing on a lease ring.
    pub fn set_write_index(&mut self, index: u32) {
        if self.lease.is_none() {
            self.map.word(WRITE_INDEX_OFFSET).store(index, Ordering::Release);
        }
    }

    /// Returns true if a reader of a lease ring has requested an IDR since the last call.
    pub fn take_idr_request(&mut self) -> bool {
        self.lease.as_ref().is_some_and(LeaseWriter::take_idr_request)
    }

    /// Sets or clears the flag of a lease ring by which a camera says that it obeys bit rate requests.
    pub fn set_obeys_bitrate(&mut self, obeys: bool) {
        if let Some(lease) = &mut self.lease {
            lease.set_obeys_bitrate(obeys);
        }
    }

    /// Returns the bit rate in kbit/s that a reader of a lease ring requests, or `None` without a valid request. `now_ns`
    /// is the time of CLOCK_MONOTONIC. The value is untrusted: any reader can write it.
    #[must_use]
    pub fn bitrate_request(&self, now_ns: i64) -> Option<u32> {
        self.lease.as_ref()?.bitrate_request(seconds(now_ns))
    }

    /// Returns the number of units that all writers of a lease ring together have dropped. Returns 0 on a legacy ring.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lease.as_ref().map_or(0, LeaseWriter::dropped)
    }

    /// Releases the writer lock of a lease ring without closing the ring, as if the daemon had been killed. Units
    /// published after this call are dropped.
    pub fn abandon(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.abandon();
        }
    }

    /// Returns the layout of the ring.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns `st_dev` and `st_ino` of the segment.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Removes the name of the segment, if it still refers to this segment. Consumers keep their mappings.
    pub fn unlink(&self) {
        if SegmentIdentity::of_name(&self.name).is_ok_and(|current| current.inode == self.identity) {
            // The result is ignored: if another process has removed the name meanwhile, nothing is left to do.
            let _ = shm::unlink(&self.name);
        }
    }
}

/// Returns an error unless `name` is a POSIX shared-memory name: a slash, then 1 to 254 bytes without a slash.
fn check_name(name: &str) -> Result<(), WriterError> {
    match name.strip_prefix('/') {
        Some(rest) if !rest.is_empty() && rest.len() < 255 && !rest.contains(['/', '\0']) => Ok(()),
        _ => Err(WriterError::Name(name.to_owned())),
    }
}

/// Reason why a ring cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The name is not a valid name of shared memory.
    #[error(
        "{0:?} is not a shared-memory name: use a slash and a name without a slash, like /pet_camera_stream"
    )]
    Name(String),
    /// The segment cannot be created, opened or resized.
    #[error("shared memory {name} cannot be created or opened for writing: {source}")]
    Segment {
        /// The segment's name.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The existing segment is not a camera ring.
    #[error("shared memory {name}: {source}")]
    Layout {
        /// The segment's name.
        name: String,
        /// Reason why no layout matches.
        source: LayoutError,
    },
    /// The lease ring has a living writer.
    #[error("the lease ring {0} is written by another camera")]
    InUse(String),
    /// The kernel refused the mapping.
    #[error("shared memory {name} cannot be mapped: {source}")]
    Map {
        /// The segment's name.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The semaphore could not be initialised.
    #[error("cannot initialise the ring's semaphore: {0}")]
    Semaphore(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::layout::FORMAT_H264;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicU64;

    /// A ring that the test reads as another process would: through the file, not through the writer's mapping.
    struct Segment {
        writer: RingWriter,
        file: File,
        layout: Layout,
    }

    impl Segment {
        fn new(layout: Layout) -> Segment {
            let writer = RingWriter::create(&unique_name(), layout, 33).unwrap();
            let file = File::open(format!("/dev/shm{}", writer.name)).unwrap();
            Segment { writer, file, layout }
        }

        fn bytes<const COUNT: usize>(file: &File, offset: usize) -> [u8; COUNT] {
            let mut bytes = [0; COUNT];
            file.read_exact_at(&mut bytes, offset as u64).unwrap();
            bytes
        }

        fn index(file: &File) -> u32 {
            u32::from_ne_bytes(Segment::bytes(file, 0))
        }

        /// Returns the semaphore's count, or `None` for a layout without a semaphore. On 64-bit machines, glibc keeps
        /// the count in the first four bytes of a sem_t.
        fn post_count(file: &File, layout: Layout) -> Option<u32> {
            layout.control_offsets().map(|(_, offset)| u32::from_ne_bytes(Segment::bytes(file, offset)))
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            self.writer.unlink();
        }
    }

    fn unique_name() -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        format!("/ss-test-writer-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn metadata(frame_number: u64, data_bytes: u64) -> SlotMetadata {
        SlotMetadata {
            frame_number,
            width: 1280,
            height: 720,
            format: FORMAT_H264,
            data_bytes,
            ..Default::default()
        }
    }

    #[test]
    fn new_ring_has_the_layouts_size_and_interval_and_an_empty_semaphore() {
        for layout in Layout::LEGACY {
            let segment = Segment::new(layout);
            let bytes = segment.file.metadata().unwrap().len();
            assert_eq!(Layout::detect(bytes), Ok(layout));
            assert_eq!(Segment::index(&segment.file), 0);
            assert!(Segment::post_count(&segment.file, layout).is_none_or(|value| value == 0));
            if let Some((offset, _)) = layout.control_offsets() {
                assert_eq!(u32::from_ne_bytes(Segment::bytes(&segment.file, offset)), 33, "{layout}");
            }
        }
    }

    #[test]
    fn each_layout_raises_its_index_like_the_daemon_and_posts_last() {
        for layout in Layout::LEGACY {
            let mut segment = Segment::new(layout);
            let file = segment.file.try_clone().unwrap();
            let unit = metadata(0, 8);
            segment.writer.publish_torn(&unit, b"abcdefgh", || {
                let announced = u32::from(layout.publishes_index_first());
                assert_eq!(Segment::index(&file), announced, "{layout}");
                assert_eq!(Segment::bytes::<48>(&file, layout.slot_offset(0)), unit.as_bytes(), "{layout}");
                let data = layout.slot_offset(0) + layout.data_offset();
                assert_eq!(&Segment::bytes::<8>(&file, data), b"abcd\0\0\0\0", "{layout}");
                assert!(Segment::post_count(&file, layout).is_none_or(|value| value == 0), "{layout}");
            });
            assert_eq!(Segment::index(&file), 1);
            let data = layout.slot_offset(0) + layout.data_offset();
            assert_eq!(&Segment::bytes::<8>(&file, data), b"abcdefgh", "{layout}");
            assert!(Segment::post_count(&file, layout).is_none_or(|value| value == 1), "{layout}");
        }
    }

    #[test]
    fn units_reuse_slots_and_the_index_wraps() {
        for layout in [Layout::V1, Layout::V3Ring6] {
            let mut segment = Segment::new(layout);
            for number in 0..layout.slot_count() + 2 {
                segment.writer.publish(&metadata(number.into(), 4), &number.to_ne_bytes());
            }
            let data = layout.slot_offset(1) + layout.data_offset();
            let newest = layout.slot_count() + 1;
            assert_eq!(u32::from_ne_bytes(Segment::bytes(&segment.file, data)), newest);
            segment.writer.set_write_index(u32::MAX);
            segment.writer.publish(&metadata(0, 1), b"x");
            assert_eq!(Segment::index(&segment.file), 0);
        }
    }

    #[test]
    fn false_size_is_written_but_not_used() {
        let mut segment = Segment::new(Layout::V3Ring6);
        segment.writer.publish(&metadata(0, 0), b"next slot");
        let too_much = vec![7; SLOT_DATA_BYTES_MAX + 100];
        segment.writer.set_write_index(5);
        segment.writer.publish(&metadata(1, u64::MAX), &too_much);
        segment.writer.set_write_index(5);
        segment.writer.publish_torn(&metadata(1, u64::MAX), &too_much, || {});
        let size_at = segment.layout.slot_offset(5) + 40;
        assert_eq!(u64::from_ne_bytes(Segment::bytes(&segment.file, size_at)), u64::MAX);
        assert_eq!(segment.file.metadata().unwrap().len(), segment.layout.segment_bytes() as u64);
    }

    #[test]
    fn restarted_camera_continues_in_its_segment_or_creates_a_new_one() {
        let mut segment = Segment::new(Layout::V1);
        segment.writer.publish(&metadata(0, 1), b"a");
        let mut again = RingWriter::attach(&segment.writer.name).unwrap();
        assert_eq!((again.layout(), again.identity()), (Layout::V1, segment.writer.identity()));
        again.publish(&metadata(0, 1), b"b");
        assert_eq!(segment.writer.write_index(), 2);

        let fresh = RingWriter::create(&segment.writer.name, Layout::V3, 33).unwrap();
        assert_ne!(fresh.identity(), segment.writer.identity());
        segment.writer.unlink();
        assert!(RingWriter::attach(&fresh.name).is_ok(), "the old writer must not unlink the new ring");
        fresh.unlink();
        let gone = RingWriter::attach(&fresh.name);
        assert!(matches!(gone, Err(WriterError::Segment { .. })));
    }

    #[test]
    fn invalid_shared_memory_names_are_refused() {
        for name in ["", "/", "camera", "/a/b", "/../etc/passwd", "/a\0b"] {
            let refused = RingWriter::create(name, Layout::V1, 33);
            assert!(matches!(refused, Err(WriterError::Name { .. })), "{name:?}");
        }
    }
}
