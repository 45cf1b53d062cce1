//! UNSAFE: the camera's segment mapped into this process; slots lent out as `Bytes`, control words as
//! atomics. May not wait, decide which slot to read, or write anything but the semaphore's page.
//!
//! Why borrowing is sound enough: another process may write the mapped bytes while a `&[u8]` over them
//! exists, which Rust gives no meaning to. The protocol bounds it: a slot is written again only a whole
//! ring later, consumers only scan and copy the bytes with bounds checks (no value of a byte can make
//! them do more), and `UnitView::is_intact` discards what was read too late. Everything that is *decided*
//! on (index, metadata) is read by atomics and copied out first.
//!
//! Never SIGBUS: a segment that shrinks under its mapping faults when touched, even inside `sem_wait`.
//! A signal handler lays zero pages over a mapping that faults and marks it lost; faults elsewhere go to
//! whoever handled them before.
//!
//! A lease ring (`lease_ring.rs`) needs none of that bearing with: who leases a slot knows that it is not
//! written. Here lie only its pages.
#![expect(unsafe_code, reason = "maps foreign memory, reads it by atomics, and catches its faults")]

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::shm;

use super::layout::{Layout, LayoutError, SlotMetadata};
use super::lease_header::{Geometry, HEADER_COPY_BYTES, HeaderError};
use super::lease_ring::LeaseRing;
use crate::base::limits::{MAPPED_RANGES_MAX, SLOT_DATA_BYTES_MAX};

/// What a mapping may do.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is ever written; of a lease ring no unit can be read, only what the control blocks say.
    Inspect,
    /// Nothing is written but leases, on a lease ring.
    ReadOnly,
    /// The page with the semaphore is mapped read-write too, where the layout has one.
    Semaphore,
}

/// Why a segment is not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// No segment has this name: the camera is not running.
    #[error("there is no shared memory {name}")]
    Missing {
        /// Name of the segment.
        name: String,
    },
    /// The segment cannot be opened.
    #[error("cannot open shared memory {name}: {errno}")]
    Open {
        /// Name of the segment.
        name: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// The segment's size is that of no layout.
    #[error("shared memory {name}: {error}")]
    Layout {
        /// Name of the segment.
        name: String,
        /// The size found and those known.
        error: LayoutError,
    },
    /// The kernel refuses the mapping.
    #[error("cannot map shared memory {name}: {error}")]
    Map {
        /// Name of the segment.
        name: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// A lease ring that nobody writes.
    #[error("the lease ring {name} has no camera: its writer has ended")]
    NoWriter {
        /// Name of the segment.
        name: String,
    },
    /// A lease ring that has no number left for another reader.
    #[error("the lease ring {name} has all its readers")]
    ReadersMax {
        /// Name of the segment.
        name: String,
    },
    /// Too many old mappings are still borrowed from.
    #[error("cannot map shared memory {name}: {MAPPED_RANGES_MAX} ranges are mapped already")]
    Full {
        /// Name of the segment.
        name: String,
    },
}

impl MappingError {
    /// Whether reading and writing was refused where reading alone may be allowed.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, MappingError::Open { errno: Errno::ACCESS | Errno::PERM | Errno::ROFS, .. })
    }
}

/// Which segment lies behind a name: device, inode and size.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SegmentIdentity {
    /// `st_dev` and `st_ino`.
    pub inode: (u64, u64),
    /// Bytes of the segment.
    pub bytes: u64,
}

impl SegmentIdentity {
    /// Asks the kernel about the segment called `name` without mapping it.
    ///
    /// # Errors
    /// [`MappingError::Missing`] or [`MappingError::Open`].
    pub fn of_name(name: &str) -> Result<SegmentIdentity, MappingError> {
        let file = open_segment(name, shm::OFlags::RDONLY)?;
        SegmentIdentity::of_file(&file).map_err(|errno| MappingError::Open { name: name.to_owned(), errno })
    }

    fn of_file(file: &OwnedFd) -> Result<SegmentIdentity, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(SegmentIdentity { inode: (stat.st_dev, stat.st_ino), bytes })
    }
}

/// A camera's segment, mapped. Stays valid when the name is unlinked; lost when the segment shrinks.
#[derive(Debug)]
pub struct Mapping {
    layout: Layout,
    inode: (u64, u64),
    file: Arc<OwnedFd>,
    /// The whole segment, read-only (of a lease ring: its slots).
    region: Arc<Region>,
    /// The same as `Bytes`: slots are slices of it, so lending one allocates nothing.
    segment: Bytes,
    /// The page with the semaphore, read-write.
    control: Option<Region>,
    /// Header and control blocks of a lease ring.
    leases: Option<Arc<LeaseRing>>,
}

impl Mapping {
    /// Maps the segment called `name`, lazily: pages become resident when they are read.
    ///
    /// # Errors
    /// [`MappingError`]; a size of no known layout is refused, and so is a lease ring whose header lies, that
    /// nobody writes, or that may not be written (leases are).
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
        let segment = Bytes::from_owner(Lent(Arc::clone(&region)));
        let leases = LeaseRing::new(name, Arc::clone(&file), control, segment.clone(), geometry, access)?;
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
        let segment = Bytes::from_owner(Lent(Arc::clone(&region)));
        let (inode, file) = (identity.inode, Arc::new(file));
        Ok(Arc::new(Mapping { layout, inode, file, region, segment, control, leases: None }))
    }

    /// Header and control blocks of a lease ring; `None` on the legacy layouts.
    #[must_use]
    pub(super) fn leases(&self) -> Option<&Arc<LeaseRing>> {
        self.leases.as_ref()
    }

    /// The layout, found out from the size.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// `st_dev` and `st_ino` of the segment.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.inode
    }

    /// How many units the camera has published (or begun, on index-first layouts), wrapping. Acquire:
    /// what the camera wrote before raising the index is seen after this.
    #[must_use]
    pub fn write_index(&self) -> u32 {
        if let Some(leases) = &self.leases {
            return leases.write_index();
        }
        let index = self.word(self.layout.write_index_offset()).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        index
    }

    /// The camera's `frame_interval_ms`, where the layout has it. Foreign: any value may come.
    #[must_use]
    pub fn frame_interval_ms(&self) -> Option<u32> {
        let offset = self.layout.frame_interval_offset()?;
        Some(self.word(offset).load(Ordering::Relaxed))
    }

    /// Copies out what the slot of unit `slot` (which wraps at a legacy ring's size) says about it. Zeros where
    /// a lease ring has no such unit any more.
    #[must_use]
    pub fn metadata(&self, slot: u32) -> SlotMetadata {
        if let Some(leases) = &self.leases {
            return leases.metadata_of(slot);
        }
        let mut bytes = [0; SlotMetadata::BYTES];
        let offset = self.layout.slot_offset(slot);
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.long_word(offset + i * 8).load(Ordering::Relaxed).to_ne_bytes());
        }
        SlotMetadata::parse(&bytes)
    }

    /// Lends the first `bytes` bytes of the data in slot `slot` of a legacy ring (which wraps at its size), at
    /// most a slot's worth. Allocates nothing; keeps the segment mapped.
    #[must_use]
    pub fn slot_bytes(self: &Arc<Self>, slot: u32, bytes: usize) -> Bytes {
        let start = self.layout.slot_offset(slot) + self.layout.data_offset();
        self.segment.slice(start..start + bytes.min(SLOT_DATA_BYTES_MAX))
    }

    /// The camera's semaphore, when mapped with [`Access::Semaphore`] and the layout has one. Valid as
    /// long as this mapping lives.
    #[must_use]
    pub fn semaphore(&self) -> Option<NonNull<libc::sem_t>> {
        let control = self.control.as_ref()?;
        let offset = self.layout.semaphore_offset()?;
        NonNull::new(control.map.as_mut_ptr().wrapping_add(offset).cast())
    }

    /// The count in that semaphore, and its first eight bytes.
    pub(super) fn semaphore_words(&self) -> Option<(&AtomicU32, &AtomicU64)> {
        let (control, offset) = self.control.as_ref().zip(self.layout.semaphore_offset())?;
        Some((control.word(offset), control.long_word(offset)))
    }

    /// Whether the segment shrank under the mapping: what is read now may be zeros of our own.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.region.is_lost()
            || self.control.as_ref().is_some_and(Region::is_lost)
            || self.leases.as_ref().is_some_and(|leases| leases.is_lost())
    }

    /// How the camera wakes whoever waits for it, for people.
    pub(super) fn wakes(&self) -> &'static str {
        match (&self.leases, &self.control) {
            (Some(_), _) => "by futex",
            (None, Some(_)) => "by semaphore",
            (None, None) => "by polling",
        }
    }

    /// Asks the kernel whether the segment still has its size; if not, the mapping is lost.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let whole = SegmentIdentity::of_file(&self.file)
            .is_ok_and(|identity| identity.bytes == self.layout.segment_bytes() as u64);
        if !whole && let Some(guard) = GUARDS.get(self.region.guard) {
            guard.lost.store(true, Ordering::SeqCst);
        }
        !self.is_lost()
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        self.region.word(offset)
    }

    fn long_word(&self, offset: usize) -> &AtomicU64 {
        self.region.long_word(offset)
    }
}

/// Which segment it is and what its layout: by the magic of the lease ring first, then by its size.
fn identify(name: &str, file: &OwnedFd) -> Result<(SegmentIdentity, Layout), MappingError> {
    let open = |errno| MappingError::Open { name: name.to_owned(), errno };
    let identity = SegmentIdentity::of_file(file).map_err(open)?;
    let layout = match read_geometry(file, identity.bytes) {
        Ok(geometry) => Ok(Layout::Lease(geometry)),
        Err(HeaderError::Magic) => Layout::detect(identity.bytes),
        Err(error) => Err(LayoutError::Lease(error)),
    };
    let layout = layout.map_err(|error| MappingError::Layout { name: name.to_owned(), error })?;
    Ok((identity, layout))
}

/// Reads the header of a lease ring without mapping it.
pub(super) fn read_geometry(file: &OwnedFd, segment_bytes: u64) -> Result<Geometry, HeaderError> {
    let mut header = [0; HEADER_COPY_BYTES];
    match rustix::io::pread(file, &mut header, 0) {
        Ok(HEADER_COPY_BYTES) => Geometry::read(&header, segment_bytes),
        // Too short for a header, or unreadable: its size tells.
        _ => Err(HeaderError::Magic),
    }
}

fn open_segment(name: &str, flags: shm::OFlags) -> Result<OwnedFd, MappingError> {
    shm::open(name, flags, shm::Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => MappingError::Missing { name: name.to_owned() },
        errno => MappingError::Open { name: name.to_owned(), errno },
    })
}

/// One mapped range and its entry in [`GUARDS`].
#[derive(Debug)]
pub(super) struct Region {
    map: MmapRaw,
    guard: usize,
}

impl Region {
    fn new(name: &str, file: &OwnedFd, range: Range<usize>, protection: i32) -> Result<Region, MappingError> {
        watch_faults();
        let bytes = range.len();
        let mut options = MmapOptions::new();
        options.offset(range.start as u64).len(bytes);
        let map = if protection & libc::PROT_WRITE == 0 {
            options.map_raw_read_only(file)
        } else {
            options.map_raw(file)
        };
        let map = map.map_err(|error| MappingError::Map { name: name.to_owned(), error })?;
        let guard = Guard::claim(map.as_mut_ptr().expose_provenance(), bytes, protection)
            .ok_or_else(|| MappingError::Full { name: name.to_owned() })?;
        Ok(Region { map, guard })
    }

    /// The shared `u32` at `offset`. Where the range is mapped read-only it may only be loaded.
    pub(super) fn word(&self, offset: usize) -> &AtomicU32 {
        let is_inside = offset.is_multiple_of(4) && offset + 4 <= self.map.len();
        assert!(is_inside, "control words lie in the mapping, aligned");
        let pointer = self.map.as_mut_ptr().wrapping_add(offset).cast::<u32>();
        // SAFETY: inside the mapping and 4-aligned as asserted (a mapping starts at a page); the reference
        // lives no longer than `self`. Read-only pages allow relaxed loads of native size, and all that is
        // done to those is such loads (`Mapping::word`, and [`Access::Inspect`] leases nothing).
        unsafe { AtomicU32::from_ptr(pointer) }
    }

    /// The shared `u64` at `offset`, as [`Region::word`].
    pub(super) fn long_word(&self, offset: usize) -> &AtomicU64 {
        let is_inside = offset.is_multiple_of(8) && offset + 8 <= self.map.len();
        assert!(is_inside, "control words lie in the mapping, aligned");
        let pointer = self.map.as_mut_ptr().wrapping_add(offset).cast::<u64>();
        // SAFETY: as in `word`, with 8 bytes.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    pub(super) fn is_lost(&self) -> bool {
        is_lost(self.guard)
    }
}

/// A region as the owner of `Bytes`.
struct Lent(Arc<Region>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        let map = &self.0.map;
        // SAFETY: the range is mapped readable for as long as `self` lives, `map.len()` is within the
        // segment's size at mapping time, and later faults are answered with zero pages (`on_fault`).
        // Another process may write these bytes: the head of this file argues why that is bearable.
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        Guard::release(self.guard); // before the range is unmapped by `map`, which is dropped after this
    }
}

/// A mapped range the fault handler answers for. `start` 0 is free, 1 is being filled in.
struct Guard {
    start: AtomicUsize,
    bytes: AtomicUsize,
    protection: AtomicI32,
    lost: AtomicBool,
}

static GUARDS: [Guard; MAPPED_RANGES_MAX] = [const {
    Guard {
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        protection: AtomicI32::new(0),
        lost: AtomicBool::new(false),
    }
}; MAPPED_RANGES_MAX];

impl Guard {
    fn claim(start: usize, bytes: usize, protection: i32) -> Option<usize> {
        let index = GUARDS.iter().position(|guard| {
            guard.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        let guard = GUARDS.get(index)?;
        guard.lost.store(false, Ordering::SeqCst);
        guard.protection.store(protection, Ordering::Relaxed);
        guard.bytes.store(bytes, Ordering::Relaxed);
        guard.start.store(start, Ordering::Release);
        Some(index)
    }

    fn release(index: usize) {
        if let Some(guard) = GUARDS.get(index) {
            guard.bytes.store(0, Ordering::SeqCst);
            guard.start.store(0, Ordering::Release);
        }
    }

    /// Lays zero pages over the whole range. Runs in a signal handler: atomics and one system call only.
    fn replace(&self, start: usize) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let protection = self.protection.load(Ordering::Relaxed);
        // Before the pages change: whoever reads a zero of ours also sees that the mapping is lost.
        self.lost.store(true, Ordering::SeqCst);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of ours that is still in place: a thread faulted in it just now,
        // and it is unmapped only after its guard is released and its last borrower gone. Replacing all
        // of it leaves every pointer into it valid with the same protection.
        let result = unsafe { libc::mmap(address, bytes, protection, flags, -1, 0) };
        result != libc::MAP_FAILED
    }
}

fn is_lost(guard: usize) -> bool {
    GUARDS.get(guard).is_some_and(|guard| guard.lost.load(Ordering::SeqCst))
}

/// Who handled SIGBUS before us.
static FAULTS_BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs [`on_fault`], once in the process.
fn watch_faults() {
    FAULTS_BEFORE.get_or_init(|| {
        // SAFETY: all-zero bytes are a valid `sigaction`: default handler, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let mut before = action;
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: both point to valid values, and the handler is async-signal-safe (see `on_fault`).
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
        debug_assert_eq!(result, 0, "SIGBUS may be handled");
        before
    });
}

/// SIGBUS: a page of a mapping is gone, or it is none of ours. Async-signal-safe: atomics, mmap, sigaction.
extern "C" fn on_fault(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer that lives as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS carries `si_addr`.
    let address = unsafe { info.si_addr() }.addr();
    for guard in &GUARDS {
        let start = guard.start.load(Ordering::Acquire);
        let inside = address.wrapping_sub(start) < guard.bytes.load(Ordering::Relaxed);
        if start > 1 && inside && guard.replace(start) {
            return;
        }
    }
    // Not ours: give the signal back; the access faults again and finds whoever had it before.
    // SAFETY: all-zero bytes are a valid `sigaction`: the default, which ends the process.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let before = FAULTS_BEFORE.get().unwrap_or(&default);
    // SAFETY: `before` is a valid action, either the default or what `sigaction` gave us.
    unsafe { libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::test_ring::TestRing;

    #[test]
    fn a_segment_of_another_size_is_refused_with_the_known_ones() {
        let ring = TestRing::new(Layout::V3Ring6);
        for bytes in [0, 4096, Layout::V3Ring6.segment_bytes() as u64 - 1, 1 << 30] {
            ring.resize(bytes);
            let message = Mapping::open(ring.name(), Access::ReadOnly).unwrap_err().to_string();
            assert!(message.contains(&format!("of {bytes} bytes")), "{message}");
            assert!(message.contains("v3-6 18662976"), "{message}");
        }
    }

    #[test]
    fn a_missing_segment_is_told_apart() {
        let error = Mapping::open("/ss-test-never-there", Access::ReadOnly).unwrap_err();
        assert!(matches!(error, MappingError::Missing { .. }), "{error}");
    }

    #[test]
    fn a_lent_slot_outlives_mapping_and_name() {
        let mut ring = TestRing::new(Layout::V2);
        ring.publish(b"first unit");
        let mapping = Mapping::open(ring.name(), Access::ReadOnly).unwrap();
        assert_eq!(mapping.write_index(), 1);
        assert_eq!(mapping.metadata(0).data_bytes, 10);
        assert!(mapping.semaphore().is_none(), "a read-only mapping never shows the semaphore");
        let lent = mapping.slot_bytes(0, 10);
        drop(mapping);
        drop(ring);
        assert_eq!(lent, b"first unit"[..]);
    }

    #[test]
    fn a_segment_that_shrinks_reads_as_zeros_and_is_lost() {
        for layout in [Layout::V1, Layout::V3Ring6] {
            let mut ring = TestRing::new(layout);
            ring.publish(b"gone soon");
            let mapping = Mapping::open(ring.name(), Access::Semaphore).unwrap();
            let lent = mapping.slot_bytes(0, 9);
            assert_eq!(lent, b"gone soon"[..]);
            assert!(mapping.is_whole());
            ring.resize(0);
            assert_eq!(lent, [0; 9][..], "no SIGBUS");
            assert!(mapping.is_lost());
            assert_eq!(mapping.write_index(), 0);
            let semaphore = mapping.semaphore().unwrap().cast::<AtomicU64>();
            // SAFETY: the semaphore's 32 bytes lie in the mapped control page and are 8-aligned.
            let semaphore = unsafe { semaphore.as_ref() };
            assert_eq!(semaphore.fetch_add(1, Ordering::SeqCst), 0, "still writable");
            assert!(!mapping.is_whole());
        }
    }

    #[test]
    fn a_shrunken_segment_is_noticed_before_it_is_touched() {
        let ring = TestRing::new(Layout::V3Ring6);
        let mapping = Mapping::open(ring.name(), Access::ReadOnly).unwrap();
        ring.resize(4096);
        assert!(!mapping.is_lost());
        assert!(!mapping.is_whole());
        assert!(mapping.is_lost());
    }

    #[test]
    fn mapping_again_and_again_runs_out_of_nothing() {
        let ring = TestRing::new(Layout::V3Ring6);
        for _ in 0..2 * MAPPED_RANGES_MAX {
            drop(Mapping::open(ring.name(), Access::Semaphore).unwrap());
        }
    }
}
