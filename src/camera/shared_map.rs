//! UNSAFE: maps a range of a camera's segment, which other processes map too. This module does not know what the bytes
//! mean. If the segment shrinks, an access here ends the process with SIGBUS; `faults.rs` prevents that.
#![expect(
    unsafe_code,
    reason = "atomics and copies in memory that other processes map; no safe API has them"
)]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fd::OwnedFd;

/// A mapped range of a segment, which other processes map too.
#[derive(Debug)]
pub(super) struct SharedMap {
    pub(super) raw: MmapRaw,
}

impl SharedMap {
    /// Maps `range` of `file`, read-write if `is_writable`. In that case the file must be open for reading and writing.
    pub(super) fn new(file: &OwnedFd, range: Range<usize>, is_writable: bool) -> io::Result<SharedMap> {
        let mut options = MmapOptions::new();
        options.offset(range.start as u64).len(range.len());
        let raw = if is_writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
        Ok(SharedMap { raw: raw? })
    }

    /// Returns the address of the `T` at `offset`.
    ///
    /// # Panics
    /// If `offset` is not aligned for `T`, or if the `T` is not completely inside the range.
    pub(super) fn pointer<T>(&self, offset: usize) -> *mut T {
        let is_inside = offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.raw.len();
        assert!(is_inside, "control words lie in the mapping, aligned");
        self.raw.as_mut_ptr().wrapping_add(offset).cast()
    }

    /// Returns the shared `u32` at `offset`. In a read-only range, only relaxed loads of the result are allowed.
    pub(super) fn word(&self, offset: usize) -> &AtomicU32 {
        let pointer = self.pointer(offset);
        // SAFETY: the word is inside the mapping and aligned, as `pointer` asserts (a mapping starts at a page). The
        // reference lives no longer than `self`, and this process touches the word through atomics only. Read-only
        // pages allow relaxed loads of native size, and nothing else is done to them (`Mapping` only loads from its
        // region; `Access::Inspect` leases nothing).
        unsafe { AtomicU32::from_ptr(pointer) }
    }

    /// Returns the shared `u64` at `offset`. In a read-only range, only relaxed loads of the result are allowed.
    pub(super) fn long_word(&self, offset: usize) -> &AtomicU64 {
        let pointer = self.pointer(offset);
        // SAFETY: as in `word`, the word is inside the mapping, aligned, and touched through atomics only.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    /// Copies `bytes` to `offset`. The range must be writable.
    ///
    /// # Panics
    /// If the bytes do not fit in the range.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.raw.len()),
            "slots lie in the mapping"
        );
        let target = self.raw.as_mut_ptr().wrapping_add(offset);
        // SAFETY: the `bytes.len()` bytes from `target` on are in the writable mapping, as asserted. `bytes` is
        // ordinary memory of this process, which holds no reference into the mapping, so the two do not overlap.
        // Readers in other mappings may see the bytes change; the ring's protocol detects that.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
