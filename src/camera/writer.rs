//! UNSAFE: the producing side of a slot ring, as the camera daemon writes it; for the simulator and for tests.
//! Never part of the server's live path: may not be used by a consumer, may not decide what is written.
//!
//! ```text
//!  v0, v1, v2   index = n + 1 ─► metadata, data ─► sem_post (v1, v2)
//!  v3, v3-6     metadata, data ─► release fence ─► index = n + 1 ─► sem_post
//!  lease        claim a slot ─► metadata, data ─► publish ─► latest ─► futex      (lease_writer.rs)
//! ```
//!
//! The daemon copies whole slots of 3.1 MB in the index-first layouts. What matters to a reader is the order, so
//! only metadata and `data_bytes` bytes are copied here; the window in which a slot is half written is smaller
//! than the daemon's and [`RingWriter::publish_torn`] widens it at will.
#![expect(
    unsafe_code,
    reason = "stores and a semaphore in memory that other processes map; no safe API has them"
)]

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{Mode, fstat, ftruncate};
use rustix::io::Errno;
use rustix::shm;

use super::layout::{Layout, LayoutError, SlotMetadata};
use super::lease_header::{FLAG_IDR, HeaderError};
use super::lease_writer::LeaseWriter;
use super::mapping::read_geometry;
use crate::base::limits::SLOT_DATA_BYTES_MAX;

/// A camera's hold on its ring. Dropping it leaves the segment where it is; see [`RingWriter::unlink`].
pub struct RingWriter {
    ring: Ring,
    layout: Layout,
    name: String,
    /// `st_dev` and `st_ino`: which segment this is, whatever the name means by now.
    identity: (u64, u64),
}

enum Ring {
    Legacy(Pages),
    Lease(LeaseWriter),
}

impl RingWriter {
    /// Makes a fresh segment under `name` (an old one of that name is unlinked first; whoever has it mapped
    /// keeps it) with index 0 and a process-shared semaphore of value 0.
    ///
    /// # Errors
    /// [`WriterError`]; nothing is left behind.
    pub fn create(name: &str, layout: Layout, frame_interval_ms: u32) -> Result<RingWriter, WriterError> {
        check_name(name)?;
        match shm::unlink(name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(WriterError::Segment { name: name.to_owned(), source: errno.into() }),
        }
        let fresh = RingWriter::open(name, Some((layout, frame_interval_ms)));
        if fresh.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = shm::unlink(name);
        }
        fresh
    }

    /// Maps the segment that exists under `name` and goes on at its index, as the daemon does when it is
    /// restarted: index, semaphore and slots stay as they are. On a lease ring it is the next epoch.
    ///
    /// # Errors
    /// [`WriterError`], also if the size is that of no known layout, or if the writer of a lease ring lives.
    pub fn attach(name: &str) -> Result<RingWriter, WriterError> {
        check_name(name)?;
        RingWriter::open(name, None)
    }

    /// Opens and maps; makes the segment first where a layout is given.
    fn open(name: &str, create: Option<(Layout, u32)>) -> Result<RingWriter, WriterError> {
        let segment = |errno: Errno| WriterError::Segment { name: name.to_owned(), source: errno.into() };
        let mut flags = shm::OFlags::RDWR;
        if create.is_some() {
            flags |= shm::OFlags::CREATE | shm::OFlags::EXCL;
        }
        // As the daemon: anyone may read and post; the umask narrows it.
        let file = shm::open(name, flags, Mode::from_raw_mode(0o666)).map_err(segment)?;
        if let Some((layout, _)) = create {
            ftruncate(&file, layout.segment_bytes() as u64).map_err(segment)?;
        }
        let status = fstat(&file).map_err(segment)?;
        let segment_bytes = status.st_size.cast_unsigned();
        let layout = match create {
            Some((layout, _)) => Ok(layout),
            None => match read_geometry(&file, segment_bytes) {
                Ok(geometry) => Ok(Layout::Lease(geometry)),
                Err(HeaderError::Magic) => Layout::detect(segment_bytes),
                Err(error) => Err(LayoutError::Lease(error)),
            },
        };
        let layout = layout.map_err(|source| WriterError::Layout { name: name.to_owned(), source })?;
        let map = MmapOptions::new()
            .len(layout.segment_bytes())
            .map_raw(&file)
            .map_err(|source| WriterError::Map { name: name.to_owned(), source })?;
        let pages = Pages { map };
        let interval_ms = create.map(|(_, interval_ms)| interval_ms);
        let ring = match layout {
            Layout::Lease(geometry) => Ring::Lease(
                LeaseWriter::new(pages, file, geometry, interval_ms)
                    .ok_or_else(|| WriterError::InUse { name: name.to_owned() })?,
            ),
            _ => Ring::Legacy(pages),
        };
        let identity = (status.st_dev, status.st_ino);
        let writer = RingWriter { ring, layout, name: name.to_owned(), identity };
        if let Some(interval_ms) = interval_ms {
            writer.initialise(interval_ms)?;
        }
        Ok(writer)
    }

    fn initialise(&self, frame_interval_ms: u32) -> Result<(), WriterError> {
        let Ring::Legacy(pages) = &self.ring else { return Ok(()) };
        if let Some(offset) = self.layout.frame_interval_offset() {
            pages.word(offset).store(frame_interval_ms, Ordering::Relaxed);
        }
        if let Some(semaphore) = self.semaphore(pages) {
            // SAFETY: `semaphore` lies in the mapping, 8-aligned, with the 32 bytes of a sem_t before the first
            // slot (const asserts in layout.rs); the segment is ours since O_EXCL, so nobody uses it yet.
            let result = unsafe { libc::sem_init(semaphore, 1, 0) };
            if result != 0 {
                return Err(WriterError::Semaphore { source: io::Error::last_os_error() });
            }
        }
        Ok(())
    }

    /// Publishes one access unit in the order of the layout. `metadata` is written as it is, truthful or not;
    /// of `data` at most [`SLOT_DATA_BYTES_MAX`] bytes are. `false`: a lease ring had no slot free (or none
    /// large enough) and the unit is dropped, as readers see by its missing number.
    pub fn publish(&mut self, metadata: &SlotMetadata, data: &[u8]) -> bool {
        self.publish_in_parts(metadata, 0, data, &[], || {})
    }

    /// As [`RingWriter::publish`], for an IDR: a lease ring tells it.
    pub fn publish_idr(&mut self, metadata: &SlotMetadata, data: &[u8]) -> bool {
        self.publish_in_parts(metadata, FLAG_IDR, data, &[], || {})
    }

    /// As [`RingWriter::publish`], with `between` run when half of the bytes are written: readers of a legacy
    /// ring may meanwhile see the first half of this unit and the second of the one that was in the slot before.
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
        let pages = match &mut self.ring {
            Ring::Lease(lease) => return lease.publish(metadata, flags, [first, second], between),
            Ring::Legacy(pages) => pages,
        };
        let index = pages.word(self.layout.write_index_offset());
        let unit = index.load(Ordering::Relaxed);
        let next = unit.wrapping_add(1);
        if self.layout.publishes_index_first() {
            index.store(next, Ordering::Release);
            // Whoever sees a byte of this unit (and fences) sees the index that announces it.
            fence(Ordering::Release);
        }
        let slot = self.layout.slot_offset(unit);
        let data_at = slot + self.layout.data_offset();
        pages.copy_in(slot, &metadata.encode());
        let first = first.get(..first.len().min(SLOT_DATA_BYTES_MAX)).unwrap_or_default();
        pages.copy_in(data_at, first);
        between();
        let room = SLOT_DATA_BYTES_MAX - first.len();
        pages.copy_in(data_at + first.len(), second.get(..second.len().min(room)).unwrap_or_default());
        if !self.layout.publishes_index_first() {
            fence(Ordering::Release);
            index.store(next, Ordering::Release);
        }
        self.post();
        true
    }

    /// Units begun or published so far, wrapping.
    #[must_use]
    pub fn write_index(&self) -> u32 {
        match &self.ring {
            Ring::Legacy(pages) => pages.word(self.layout.write_index_offset()).load(Ordering::Acquire),
            Ring::Lease(lease) => lease.write_index(),
        }
    }

    /// Sets the index, as a daemon that clears its segment at start would (and for tests near the wrap). A lease
    /// ring has none.
    pub fn set_write_index(&mut self, index: u32) {
        if let Ring::Legacy(pages) = &self.ring {
            pages.word(self.layout.write_index_offset()).store(index, Ordering::Release);
        }
    }

    /// Whether a reader of a lease ring has asked for an IDR since the last call.
    pub fn take_idr_request(&mut self) -> bool {
        match &self.ring {
            Ring::Legacy(_) => false,
            Ring::Lease(lease) => lease.take_idr_request(),
        }
    }

    /// Units that found no slot in a lease ring, over all its writers.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        match &self.ring {
            Ring::Legacy(_) => 0,
            Ring::Lease(lease) => lease.dropped(),
        }
    }

    /// Gives up being the writer of a lease ring without saying so, as a daemon that is killed does; what is
    /// published from then on is dropped.
    pub fn abandon(&mut self) {
        if let Ring::Lease(lease) = &mut self.ring {
            lease.abandon();
        }
    }

    /// The layout this ring is written in.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// `st_dev` and `st_ino` of the segment.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Removes the name, if it still means this segment; consumers keep what they have mapped.
    pub fn unlink(&self) {
        let current = shm::open(&self.name, shm::OFlags::RDONLY, Mode::empty()).and_then(fstat);
        if current.is_ok_and(|status| (status.st_dev, status.st_ino) == self.identity) {
            // Someone else may have removed it in between; then there is nothing left to do.
            let _ = shm::unlink(&self.name);
        }
    }

    /// Tells one waiting reader that a unit is whole (v0 has no semaphore).
    fn post(&self) {
        let Ring::Legacy(pages) = &self.ring else { return };
        if let Some(semaphore) = self.semaphore(pages) {
            // SAFETY: `semaphore` is the initialised sem_t of this mapping (or of whoever made the segment);
            // sem_post may be called from any thread and process. At SEM_VALUE_MAX it fails without effect.
            let _ = unsafe { libc::sem_post(semaphore) };
        }
    }

    fn semaphore(&self, pages: &Pages) -> Option<*mut libc::sem_t> {
        self.layout.semaphore_offset().map(|offset| pages.map.as_mut_ptr().wrapping_add(offset).cast())
    }
}

/// A segment mapped for writing.
pub(super) struct Pages {
    map: MmapRaw,
}

impl Pages {
    /// The shared `u32` at `offset`.
    pub(super) fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + size_of::<AtomicU32>() <= self.map.len(), "control words lie in the mapping");
        let word = self.map.as_mut_ptr().wrapping_add(offset).cast::<u32>();
        assert!(word.is_aligned(), "control words are 4-aligned in a page-aligned mapping");
        // SAFETY: in bounds and aligned as asserted; the mapping lives as long as `self`, which bounds the
        // reference; this process touches the word through atomics only.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// The shared `u64` at `offset`.
    pub(super) fn long_word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset + size_of::<AtomicU64>() <= self.map.len(), "control words lie in the mapping");
        let word = self.map.as_mut_ptr().wrapping_add(offset).cast::<u64>();
        assert!(word.is_aligned(), "control words are 8-aligned in a page-aligned mapping");
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Copies `bytes` to `offset`, where they have to fit.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len()),
            "slots lie in the mapping"
        );
        let target = self.map.as_mut_ptr().wrapping_add(offset);
        // SAFETY: `target` and the bytes behind it lie in the writable mapping as asserted; `bytes` is ordinary
        // memory of this process, which holds no reference into the mapping, so they do not overlap. Readers in
        // other mappings may see the bytes change: that is the protocol they check for.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

/// A POSIX shared-memory name: a slash, then at most 254 bytes without one.
fn check_name(name: &str) -> Result<(), WriterError> {
    match name.strip_prefix('/') {
        Some(rest) if !rest.is_empty() && rest.len() < 255 && !rest.contains(['/', '\0']) => Ok(()),
        _ => Err(WriterError::Name { name: name.to_owned() }),
    }
}

/// Why there is no ring to write.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// Not a name of shared memory.
    #[error(
        "{name:?} is no shared-memory name: it has to be a slash and a name without one, like /pet_camera_stream"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Making, opening or sizing failed.
    #[error("shared memory {name} cannot be made or opened for writing: {source}")]
    Segment {
        /// The segment's name.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The segment that exists is no camera ring.
    #[error("shared memory {name}: {source}")]
    Layout {
        /// The segment's name.
        name: String,
        /// Its size and the known ones.
        source: LayoutError,
    },
    /// The lease ring has a living writer.
    #[error("the lease ring {name} is being written by another camera")]
    InUse {
        /// The segment's name.
        name: String,
    },
    /// Mapping failed.
    #[error("shared memory {name} cannot be mapped: {source}")]
    Map {
        /// The segment's name.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The semaphore could not be initialised.
    #[error("sem_init: {source}")]
    Semaphore {
        /// The C library's reason.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::layout::FORMAT_H264;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// The ring as a reader in another process sees it: through the file, not through the writer's mapping.
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

        /// glibc keeps the value in the low 32 bits of a sem_t's first word on 64-bit machines.
        fn posted(file: &File, layout: Layout) -> Option<u32> {
            layout.semaphore_offset().map(|offset| u32::from_ne_bytes(Segment::bytes(file, offset)))
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
    fn a_fresh_ring_has_its_layouts_size_interval_and_an_empty_semaphore() {
        for layout in Layout::LEGACY {
            let segment = Segment::new(layout);
            let bytes = segment.file.metadata().unwrap().len();
            assert_eq!(Layout::detect(bytes), Ok(layout));
            assert_eq!(Segment::index(&segment.file), 0);
            assert!(Segment::posted(&segment.file, layout).is_none_or(|value| value == 0));
            if let Some(offset) = layout.frame_interval_offset() {
                assert_eq!(u32::from_ne_bytes(Segment::bytes(&segment.file, offset)), 33, "{layout}");
            }
        }
    }

    #[test]
    fn each_layout_raises_its_index_where_the_daemon_does_and_posts_last() {
        for layout in Layout::LEGACY {
            let mut segment = Segment::new(layout);
            let file = segment.file.try_clone().unwrap();
            let unit = metadata(0, 8);
            segment.writer.publish_torn(&unit, b"abcdefgh", || {
                let announced = u32::from(layout.publishes_index_first());
                assert_eq!(Segment::index(&file), announced, "{layout}");
                assert_eq!(Segment::bytes(&file, layout.slot_offset(0)), unit.encode(), "{layout}");
                let data = layout.slot_offset(0) + layout.data_offset();
                assert_eq!(&Segment::bytes::<8>(&file, data), b"abcd\0\0\0\0", "{layout}");
                assert!(Segment::posted(&file, layout).is_none_or(|value| value == 0), "{layout}");
            });
            assert_eq!(Segment::index(&file), 1);
            let data = layout.slot_offset(0) + layout.data_offset();
            assert_eq!(&Segment::bytes::<8>(&file, data), b"abcdefgh", "{layout}");
            assert!(Segment::posted(&file, layout).is_none_or(|value| value == 1), "{layout}");
        }
    }

    #[test]
    fn units_go_around_the_ring_and_the_index_wraps() {
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
    fn a_lie_about_the_size_is_told_but_never_acted_on() {
        let mut segment = Segment::new(Layout::V3Ring6);
        segment.writer.publish(&metadata(0, 0), b"next slot");
        let too_much = vec![7; SLOT_DATA_BYTES_MAX + 100];
        segment.writer.set_write_index(5);
        segment.writer.publish(&metadata(1, u64::MAX), &too_much);
        segment.writer.set_write_index(5);
        segment.writer.publish_torn(&metadata(1, u64::MAX), &too_much, || {});
        let told = SlotMetadata::parse(&Segment::bytes(&segment.file, segment.layout.slot_offset(5)));
        assert_eq!(told.data_bytes, u64::MAX);
        assert_eq!(segment.file.metadata().unwrap().len(), segment.layout.segment_bytes() as u64);
    }

    #[test]
    fn a_restarted_camera_goes_on_in_the_same_segment_or_in_a_new_one() {
        let mut segment = Segment::new(Layout::V1);
        segment.writer.publish(&metadata(0, 1), b"a");
        let mut again = RingWriter::attach(&segment.writer.name).unwrap();
        assert_eq!((again.layout(), again.identity()), (Layout::V1, segment.writer.identity()));
        again.publish(&metadata(0, 1), b"b");
        assert_eq!(segment.writer.write_index(), 2);

        let fresh = RingWriter::create(&segment.writer.name, Layout::V3, 33).unwrap();
        assert_ne!(fresh.identity(), segment.writer.identity());
        segment.writer.unlink();
        assert!(RingWriter::attach(&fresh.name).is_ok(), "the old writer must not remove the new ring");
        fresh.unlink();
        let gone = RingWriter::attach(&fresh.name);
        assert!(matches!(gone, Err(WriterError::Segment { .. })));
    }

    #[test]
    fn names_that_are_no_shared_memory_are_refused() {
        for name in ["", "/", "camera", "/a/b", "/../etc/passwd", "/a\0b"] {
            let refused = RingWriter::create(name, Layout::V1, 33);
            assert!(matches!(refused, Err(WriterError::Name { .. })), "{name:?}");
        }
    }
}
