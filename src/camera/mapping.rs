//! Maps the camera's segment into this process. Slots are lent as `Bytes`, and control words are given out as atomics.
//! This module must not wait or decide which slot to read. It writes nothing itself; the waiter writes the semaphore.
//! `region.rs` holds the mapped ranges and explains why borrowing from them is sound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustix::fs::fstat;

use super::layout::{Layout, SlotMetadata, WRITE_INDEX_OFFSET};
use super::lease_ring::LeaseRing;
use super::region::Region;
use super::segment::{MappingError, detect_layout, open_segment};
use crate::base::limits::SLOT_DATA_BYTES_MAX;

/// What a mapping may read and write.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The mapping writes nothing. On a lease ring, only the header and the control blocks can be read, but no unit.
    Inspect,
    /// Units can be read. The mapping writes nothing, except the leases on a lease ring.
    ReadOnly,
    /// Units can be read. On layouts with a semaphore, the page with the semaphore is also mapped read-write.
    Semaphore,
}

/// A mapped segment of a camera. The mapping stays valid when the name is unlinked. It is lost when the segment
/// shrinks.
#[derive(Debug)]
pub struct Mapping {
    layout: Layout,
    inode: (u64, u64),
    file: Arc<OwnedFd>,
    /// The whole segment, mapped read-only. On a lease ring, only the slots.
    region: Arc<Region>,
    /// The range of `region` as `Bytes`. A lent slot is a slice of these `Bytes`, so lending allocates nothing.
    segment: Bytes,
    /// The page with the semaphore, mapped read-write. `None` if this mapping may not use the semaphore.
    control: Option<Region>,
    /// Header and control blocks of a lease ring. `None` on the legacy layouts.
    leases: Option<Arc<LeaseRing>>,
}

impl Mapping {
    /// Maps the segment called `name`. Its pages become resident when they are read.
    ///
    /// # Errors
    /// [`MappingError`] if the segment cannot be mapped or has no known layout. A lease ring is also refused if its
    /// header is invalid. To read units from a lease ring, it must have a living writer and permit writing, because
    /// leases are written.
    pub fn open(name: &str, access: Access) -> Result<Arc<Mapping>, MappingError> {
        let open = |is_writable| {
            let (file, identity) = open_segment(name, is_writable)?;
            let layout = detect_layout(&file, identity.bytes)
                .map_err(|error| MappingError::Layout { name: name.to_owned(), error })?;
            Ok((Arc::new(file), identity.inode, layout))
        };
        let is_semaphore = access == Access::Semaphore;
        let (mut file, mut inode, mut layout) = open(is_semaphore)?;
        if matches!(layout, Layout::Lease(_)) && access == Access::ReadOnly {
            (file, inode, layout) = open(true)?;
        }
        let control_bytes = layout.first_slot_offset();
        let slots_at = if matches!(layout, Layout::Lease(_)) { control_bytes } else { 0 };
        let region = Arc::new(Region::new(name, &file, slots_at..layout.segment_bytes(), false)?);
        let segment = region.bytes();
        let (mut control, mut leases) = (None, None);
        if let Layout::Lease(geometry) = layout {
            let is_reader = access != Access::Inspect;
            let words = Region::new(name, &file, 0..control_bytes, is_reader)?;
            let mut ring = LeaseRing::new(Arc::clone(&file), words, segment.clone(), geometry);
            if is_reader {
                ring.register_reader(name)?;
            }
            leases = Some(Arc::new(ring));
        } else if is_semaphore && layout.control_offsets().is_some() {
            control = Some(Region::new(name, &file, 0..control_bytes, true)?);
        }
        Ok(Arc::new(Mapping { layout, inode, file, region, segment, control, leases }))
    }

    /// Returns the reading side of a lease ring, or `None` on the legacy layouts.
    #[must_use]
    pub(super) fn leases(&self) -> Option<&Arc<LeaseRing>> {
        self.leases.as_ref()
    }

    /// Returns the layout that was detected when the segment was mapped.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns `st_dev` and `st_ino` of the segment.
    #[must_use]
    pub(super) fn identity(&self) -> (u64, u64) {
        self.inode
    }

    /// Returns how many units the camera has published, with wrap-around. On index-first layouts, returns how many
    /// units it has begun. The load is an acquire: what the camera wrote before it raised the index is visible after
    /// this call.
    #[must_use]
    pub fn write_index(&self) -> u32 {
        if let Some(leases) = &self.leases {
            return leases.write_index();
        }
        let index = self.region.map.word(WRITE_INDEX_OFFSET).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        index
    }

    /// Returns a copy of the metadata in the slot of `unit`. On a legacy ring, this is slot `unit` modulo the number of
    /// slots, whichever unit it holds. On a lease ring, returns zeros if no slot holds the unit.
    #[must_use]
    pub fn metadata(&self, unit: u32) -> SlotMetadata {
        if let Some(leases) = &self.leases {
            return leases.metadata_of(unit);
        }
        let offset = self.layout.slot_offset(unit);
        let load = |i| self.region.map.long_word(offset + i * 8).load(Ordering::Relaxed);
        let words: [u64; size_of::<SlotMetadata>() / 8] = std::array::from_fn(load);
        zerocopy::transmute!(words)
    }

    /// Lends the first `bytes` data bytes from the slot of `unit` on a legacy ring, at most the whole data area. The
    /// slot is `unit` modulo the number of slots. The call allocates nothing. The result keeps the segment mapped.
    #[must_use]
    pub(super) fn slot_bytes(&self, unit: u32, bytes: usize) -> Bytes {
        let start = self.layout.slot_offset(unit) + self.layout.data_offset();
        self.segment.slice(start..start + bytes.min(SLOT_DATA_BYTES_MAX))
    }

    /// Returns a copy of the bytes of a unit, or nothing if the slot is not valid. The camera may overwrite the slot
    /// meanwhile, so the bytes may be of two units. Returns nothing on a lease ring, whose slots may be read only with a
    /// lease.
    #[must_use]
    pub fn copy_unit(&self, unit: u32) -> Vec<u8> {
        let metadata = self.metadata(unit);
        let is_readable = self.leases.is_none() && metadata.validate().is_ok();
        let bytes = usize::try_from(metadata.data_bytes).ok().filter(|_| is_readable);
        self.slot_bytes(unit, bytes.unwrap_or(0)).to_vec()
    }

    /// Returns two views of the camera's semaphore: its count, and its first eight bytes. Returns `None` if this
    /// mapping has no semaphore mapped read-write.
    pub(super) fn semaphore_words(&self) -> Option<(&AtomicU32, &AtomicU64)> {
        let (control, (_, offset)) = self.control.as_ref().zip(self.layout.control_offsets())?;
        Some((control.map.word(offset), control.map.long_word(offset)))
    }

    /// Returns the camera's semaphore as a pointer for the C library. The pointer is valid as long as this mapping
    /// lives.
    #[cfg(test)]
    pub(super) fn semaphore(&self) -> Option<*mut libc::sem_t> {
        let (control, (_, offset)) = self.control.as_ref().zip(self.layout.control_offsets())?;
        Some(control.map.pointer(offset))
    }

    /// Returns true if the segment shrank under the mapping. Reads may then return zeros from this process's own pages.
    #[must_use]
    pub(super) fn is_lost(&self) -> bool {
        self.region.is_lost()
            || self.control.as_ref().is_some_and(Region::is_lost)
            || self.leases.as_ref().is_some_and(|leases| leases.is_lost())
    }

    /// Returns how the camera's wake-ups arrive, as text for the log. Returns `None` if there are no wake-ups.
    pub(super) fn wake_method(&self) -> Option<&'static str> {
        let by_semaphore = self.control.as_ref().map(|_| "by semaphore");
        self.leases.as_ref().map(|_| "by futex").or(by_semaphore)
    }

    /// Reads the segment's size from the kernel. If the size has changed, marks the mapping as lost. Returns true if
    /// the mapping is not lost.
    #[must_use]
    pub(super) fn check_size(&self) -> bool {
        let bytes = self.layout.segment_bytes() as u64;
        let has_its_size = fstat(&self.file).is_ok_and(|stat| stat.st_size.cast_unsigned() == bytes);
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
