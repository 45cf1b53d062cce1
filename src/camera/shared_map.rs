//! UNSAFE: a range of a camera's segment, mapped together with other processes. This module does not know what the
//! bytes mean. It does not survive a segment that shrinks; `region.rs` does.
#![expect(
    unsafe_code,
    reason = "atomics and copies in memory that other processes map; no safe API has them"
)]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fd::OwnedFd;

/// A mapped range of a segment. Other processes map it too.
#[derive(Debug)]
pub(super) struct SharedMap {
    pub(super) raw: MmapRaw,
}

impl SharedMap {
    /// Maps `range` of `file`, which must be open for writing too if `is_writable`.
    pub(super) fn new(file: &OwnedFd, range: Range<usize>, is_writable: bool) -> io::Result<SharedMap> {
        let mut options = MmapOptions::new();
        options.offset(range.start as u64).len(range.len());
        let raw = if is_writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
        Ok(SharedMap { raw: raw? })
    }

    /// The address of `offset`. Panics unless the whole of an aligned `T` is in the range.
    pub(super) fn pointer<T>(&self, offset: usize) -> *mut T {
        let is_inside = offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.raw.len();
        assert!(is_inside, "control words lie in the mapping, aligned");
        self.raw.as_mut_ptr().wrapping_add(offset).cast()
    }

    /// The shared `u32` at `offset`. A read-only range allows loads only.
    pub(super) fn word(&self, offset: usize) -> &AtomicU32 {
        let pointer = self.pointer(offset);
        // SAFETY: inside the mapping and aligned as asserted (a mapping starts at a page); the reference lives no
        // longer than `self`, and this process touches the word through atomics only. Read-only pages allow relaxed
        // loads of native size, and nothing else is done to them (`Mapping` only loads from its region;
        // `Access::Inspect` leases nothing).
        unsafe { AtomicU32::from_ptr(pointer) }
    }

    /// The shared `u64` at `offset`, with the same rule.
    pub(super) fn long_word(&self, offset: usize) -> &AtomicU64 {
        let pointer = self.pointer(offset);
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    /// Copies `bytes` to `offset`. Panics if they do not fit. The range must be writable.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.raw.len()),
            "slots lie in the mapping"
        );
        let target = self.raw.as_mut_ptr().wrapping_add(offset);
        // SAFETY: `target` and the bytes behind it lie in the writable mapping as asserted; `bytes` is ordinary
        // memory of this process, which holds no reference into the mapping, so they do not overlap. Readers in
        // other mappings may see the bytes change; their protocol detects that.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
