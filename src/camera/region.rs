//! UNSAFE: mapped ranges of a camera's segment. The signal handler in `faults.rs` keeps them readable.
//!
//! Why borrowing is sound enough: another process may write the mapped bytes while a `&[u8]` over them exists. Rust
//! does not define what happens then. The ring's protocol limits the damage:
//! - The camera writes a slot again only after it has written all other slots.
//! - Consumers only scan and copy the bytes, with bounds checks, so no value of a byte can do harm.
//! - `UnitView::is_intact` tells consumers to discard what they read too late.
//! - Everything that decisions depend on (index, metadata) is read with atomics and copied first.
//! - On a lease ring, a leased slot is not written at all.
#![expect(unsafe_code, reason = "lends foreign memory")]

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fd::OwnedFd;

use super::faults::{self, Guard};
use super::segment::MappingError;
use super::shared_map::SharedMap;

/// One mapped range and its entry in the table of the fault handler.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) map: SharedMap,
    guard: &'static Guard,
}

impl Region {
    /// Maps `range` of the segment in `file`, read-write if `is_writable`. `name`, the segment's name, is used for
    /// errors.
    pub(super) fn new(
        name: &str,
        file: &OwnedFd,
        range: Range<usize>,
        is_writable: bool,
    ) -> Result<Region, MappingError> {
        faults::install();
        let map = SharedMap::new(file, range, is_writable)
            .map_err(|error| MappingError::Map { name: name.to_owned(), error })?;
        let protection = if is_writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let guard = Guard::claim(&map, protection).ok_or_else(|| MappingError::Full(name.to_owned()))?;
        Ok(Region { map, guard })
    }

    /// Lends the whole range as `Bytes`. Slices and clones of the result keep the range mapped and allocate nothing.
    pub(super) fn bytes(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(RegionOwner(Arc::clone(self)))
    }

    /// Returns true if the segment shrank. Reads may then return zeros from this process's own pages.
    pub(super) fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// Marks the range as lost.
    pub(super) fn set_lost(&self) {
        self.guard.set_lost();
    }
}

/// Owner of `Bytes` that borrow from a region. The region stays mapped as long as this owner lives.
struct RegionOwner(Arc<Region>);

impl AsRef<[u8]> for RegionOwner {
    fn as_ref(&self) -> &[u8] {
        let map = &self.0.map.raw;
        // SAFETY: the range is mapped readable as long as `self` lives. `map.len()` was within the segment's size when
        // the range was mapped, and the fault handler answers later faults with zero pages. Another process may write
        // these bytes; the head of this file explains why that is acceptable.
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.guard.release(); // the guard must be free before `map`, which is dropped next, unmaps the range
    }
}
