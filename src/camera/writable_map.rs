//! UNSAFE: a camera's segment mapped for writing. This module does not know what the bytes mean.
#![expect(
    unsafe_code,
    reason = "atomics and copies in memory that other processes map; no safe API has them"
)]

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fd::OwnedFd;

/// A segment mapped read-write. Other processes map it too.
pub(super) struct WritableMap {
    map: MmapRaw,
}

impl WritableMap {
    /// Maps the first `bytes` bytes of `file`, which must be open for reading and writing.
    pub(super) fn new(file: &OwnedFd, bytes: usize) -> io::Result<WritableMap> {
        MmapOptions::new().len(bytes).map_raw(file).map(|map| WritableMap { map })
    }

    /// The address of `offset`, for the C library's semaphore functions.
    pub(super) fn pointer(&self, offset: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset)
    }

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

    /// Copies `bytes` to `offset`. Panics if they do not fit.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len()),
            "slots lie in the mapping"
        );
        let target = self.map.as_mut_ptr().wrapping_add(offset);
        // SAFETY: `target` and the bytes behind it lie in the writable mapping as asserted; `bytes` is ordinary
        // memory of this process, which holds no reference into the mapping, so they do not overlap. Readers in
        // other mappings may see the bytes change; their protocol detects that.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
