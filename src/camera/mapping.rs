//! The camera's segment mapped into this process: slots lent as `Bytes`, control words as atomics.
//! This module must not wait or decide which slot to read. It writes nothing; the waiter writes the semaphore.
//! `region.rs` holds the mapped ranges and explains why borrowing from them is sound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustix::shm;

use super::layout::{Layout, SlotMetadata};
use super::lease_header::Geometry;
use super::lease_ring::LeaseRing;
use super::region::Region;
use super::segment::{MappingError, SegmentIdentity, identify, open_segment};
use crate::base::limits::SLOT_DATA_BYTES_MAX;

/// What a mapping may do.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes nothing. On a lease ring only the control blocks can be read, no unit.
    Inspect,
    /// Writes nothing but leases on a lease ring.
    ReadOnly,
    /// Also maps the page with the semaphore read-write, on layouts that have one.
    Semaphore,
}

/// A camera's segment, mapped. It stays valid when the name is unlinked; it is lost when the segment shrinks.
#[derive(Debug)]
pub struct Mapping {
    layout: Layout,
    inode: (u64, u64),
    file: Arc<OwnedFd>,
    /// The whole segment, read-only; on a lease ring only the slots.
    region: Arc<Region>,
    /// The same range as `Bytes`. A slot is a slice of it, so lending one allocates nothing.
    segment: Bytes,
    /// The page with the semaphore, read-write.
    control: Option<Region>,
    /// Header and control blocks of a lease ring.
    leases: Option<Arc<LeaseRing>>,
}

impl Mapping {
    /// Maps the segment called `name`. Pages become resident when they are read.
    ///
    /// # Errors
    /// [`MappingError`]. It refuses a size of no known layout, and a lease ring with an invalid header, without
    /// a living writer, or without write permission (leases are written).
    pub fn open(name: &str, access: Access) -> Result<Arc<Mapping>, MappingError> {
        let flags = match access {
            Access::Inspect | Access::ReadOnly => shm::OFlags::RDONLY,
            Access::Semaphore => shm::OFlags::RDWR,
        };
        let mut file = open_segment(name, flags)?;
        let (mut identity, mut layout) = identify(name, &file)?;
        if matches!(layout, Layout::Lease(_)) && access == Access::ReadOnly {
            file = open_segment(name, shm::OFlags::RDWR)?;
            (identity, layout) = identify(name, &file)?;
        }
        match layout {
            Layout::Lease(geometry) => Mapping::open_leases(name, file, identity, geometry, access),
            layout => Mapping::open_legacy(name, file, identity, layout, access),
        }
    }

    fn open_leases(
        name: &str,
        file: OwnedFd,
        identity: SegmentIdentity,
        geometry: Geometry,
        access: Access,
    ) -> Result<Arc<Mapping>, MappingError> {
        let file = Arc::new(file);
        let protection = match access {
            Access::Inspect => libc::PROT_READ,
            Access::ReadOnly | Access::Semaphore => libc::PROT_READ | libc::PROT_WRITE,
        };
        let control = Region::new(name, &file, 0..geometry.data_offset(), protection)?;
        let slots = geometry.data_offset()..geometry.segment_bytes();
        let region = Arc::new(Region::new(name, &file, slots, libc::PROT_READ)?);
        let segment = region.bytes();
        let mut leases = LeaseRing::new(Arc::clone(&file), control, segment.clone(), geometry);
        if access != Access::Inspect {
            leases.register_reader(name)?;
        }
        Ok(Arc::new(Mapping {
            layout: Layout::Lease(geometry),
            inode: identity.inode,
            file,
            region,
            segment,
            control: None,
            leases: Some(Arc::new(leases)),
        }))
    }

    fn open_legacy(
        name: &str,
        file: OwnedFd,
        identity: SegmentIdentity,
        layout: Layout,
        access: Access,
    ) -> Result<Arc<Mapping>, MappingError> {
        let region = Region::new(name, &file, 0..layout.segment_bytes(), libc::PROT_READ)?;
        let control = match (access, layout.semaphore_offset()) {
            (Access::Semaphore, Some(_)) => {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                Some(Region::new(name, &file, 0..layout.first_slot_offset(), protection)?)
            }
            _ => None,
        };
        let region = Arc::new(region);
        let segment = region.bytes();
        let (inode, file) = (identity.inode, Arc::new(file));
        Ok(Arc::new(Mapping { layout, inode, file, region, segment, control, leases: None }))
    }

    /// The reading side of a lease ring; `None` on the legacy layouts.
    #[must_use]
    pub(super) fn leases(&self) -> Option<&Arc<LeaseRing>> {
        self.leases.as_ref()
    }

    /// The layout that was detected when the segment was mapped.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// `st_dev` and `st_ino` of the segment.
    #[must_use]
    pub(super) fn identity(&self) -> (u64, u64) {
        self.inode
    }

    /// Returns how many units the camera has published, wrapping; on index-first layouts, has begun.
    /// Acquire: what the camera wrote before it raised the index is visible after this call.
    #[must_use]
    pub fn write_index(&self) -> u32 {
        if let Some(leases) = &self.leases {
            return leases.write_index();
        }
        let index = self.region.word(self.layout.write_index_offset()).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        index
    }

    /// Copies the metadata from the slot of `unit`, which wraps at a legacy ring's size. Returns zeros if a lease
    /// ring does not hold that unit.
    #[must_use]
    pub fn metadata(&self, unit: u32) -> SlotMetadata {
        if let Some(leases) = &self.leases {
            return leases.metadata_of(unit);
        }
        let mut bytes = [0; SlotMetadata::BYTES];
        let offset = self.layout.slot_offset(unit);
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            let value = self.region.long_word(offset + i * 8).load(Ordering::Relaxed);
            word.copy_from_slice(&value.to_ne_bytes());
        }
        SlotMetadata::parse(&bytes)
    }

    /// Lends the first `bytes` bytes, at most a slot's worth, from the slot of `unit` on a legacy ring. The unit's
    /// number wraps at the ring's size. Allocates nothing; keeps the segment mapped.
    #[must_use]
    pub(super) fn slot_bytes(&self, unit: u32, bytes: usize) -> Bytes {
        let start = self.layout.slot_offset(unit) + self.layout.data_offset();
        self.segment.slice(start..start + bytes.min(SLOT_DATA_BYTES_MAX))
    }

    /// The camera's semaphore, if it is mapped read-write: its count, and its first eight bytes.
    pub(super) fn semaphore_words(&self) -> Option<(&AtomicU32, &AtomicU64)> {
        let (control, offset) = self.control.as_ref().zip(self.layout.semaphore_offset())?;
        Some((control.word(offset), control.long_word(offset)))
    }

    /// The camera's semaphore as the C library sees it. It is valid as long as this mapping lives.
    #[cfg(test)]
    pub(super) fn semaphore(&self) -> Option<*mut libc::sem_t> {
        let (control, offset) = self.control.as_ref().zip(self.layout.semaphore_offset())?;
        Some(control.pointer(offset).cast())
    }

    /// Returns true if the segment shrank under the mapping: reads may return zeros of our own.
    #[must_use]
    pub(super) fn is_lost(&self) -> bool {
        self.region.is_lost()
            || self.control.as_ref().is_some_and(Region::is_lost)
            || self.leases.as_ref().is_some_and(|leases| leases.is_lost())
    }

    /// How the camera's wake-ups arrive, for the log.
    pub(super) fn wake_method(&self) -> &'static str {
        match (&self.leases, &self.control) {
            (Some(_), _) => "by futex",
            (None, Some(_)) => "by semaphore",
            (None, None) => "by polling",
        }
    }

    /// Asks the kernel if the segment still has its size. Marks the mapping as lost and returns false if not.
    #[must_use]
    pub(super) fn check_size(&self) -> bool {
        let has_its_size = SegmentIdentity::of_file(&self.file)
            .is_ok_and(|identity| identity.bytes == self.layout.segment_bytes() as u64);
        if !has_its_size {
            self.region.set_lost();
        }
        !self.is_lost()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::MAPPED_RANGES_MAX;
    use crate::camera::test_ring::TestRing;

    #[test]
    fn unknown_size_is_refused_and_known_sizes_are_listed() {
        let ring = TestRing::new(Layout::V3Ring6);
        for bytes in [0, 4096, Layout::V3Ring6.segment_bytes() as u64 - 1, 1 << 30] {
            ring.resize(bytes);
            let message = Mapping::open(ring.name(), Access::ReadOnly).unwrap_err().to_string();
            assert!(message.contains(&format!("of {bytes} bytes")), "{message}");
            assert!(message.contains("v3-6 18662976"), "{message}");
        }
    }

    #[test]
    fn missing_segment_has_its_own_error() {
        let error = Mapping::open("/ss-test-never-there", Access::ReadOnly).unwrap_err();
        assert!(matches!(error, MappingError::Missing { .. }), "{error}");
    }

    #[test]
    fn lent_slot_outlives_mapping_and_name() {
        let mut ring = TestRing::new(Layout::V2);
        ring.publish(b"first unit");
        let mapping = Mapping::open(ring.name(), Access::ReadOnly).unwrap();
        assert_eq!(mapping.write_index(), 1);
        assert_eq!(mapping.metadata(0).data_bytes, 10);
        assert!(mapping.semaphore_words().is_none(), "a read-only mapping exposes no semaphore");
        let borrowed = mapping.slot_bytes(0, 10);
        drop(mapping);
        drop(ring);
        assert_eq!(borrowed, b"first unit"[..]);
    }

    #[test]
    fn shrunken_segment_reads_as_zeros_and_is_lost() {
        for layout in [Layout::V1, Layout::V3Ring6] {
            let mut ring = TestRing::new(layout);
            ring.publish(b"gone soon");
            let mapping = Mapping::open(ring.name(), Access::Semaphore).unwrap();
            let borrowed = mapping.slot_bytes(0, 9);
            assert_eq!(borrowed, b"gone soon"[..]);
            assert!(mapping.check_size());
            ring.resize(0);
            assert_eq!(borrowed, [0; 9][..], "no SIGBUS");
            assert!(mapping.is_lost());
            assert_eq!(mapping.write_index(), 0);
            let (_, semaphore) = mapping.semaphore_words().unwrap();
            assert_eq!(semaphore.fetch_add(1, Ordering::SeqCst), 0, "still writable");
            assert!(!mapping.check_size());
        }
    }

    #[test]
    fn size_check_finds_a_shrunken_segment_before_it_is_touched() {
        let ring = TestRing::new(Layout::V3Ring6);
        let mapping = Mapping::open(ring.name(), Access::ReadOnly).unwrap();
        ring.resize(4096);
        assert!(!mapping.is_lost());
        assert!(!mapping.check_size());
        assert!(mapping.is_lost());
    }

    #[test]
    fn repeated_mapping_exhausts_no_table() {
        let ring = TestRing::new(Layout::V3Ring6);
        for _ in 0..2 * MAPPED_RANGES_MAX {
            drop(Mapping::open(ring.name(), Access::Semaphore).unwrap());
        }
    }
}
