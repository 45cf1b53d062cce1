//! Reads the first part of a growing MP4 as a finished file. Players start such a file at once and can seek in it. The
//! growing form has no index, so a player that can seek would read all of it before the first picture.
//!
//! ```text
//! growing file on disk   ftyp 32 | free 16 | moov | fragments ............ | later fragments ...
//! the view               ftyp 32 | mdat 16 ........................ until  | moov (index)
//! ```
//!
//! All units have the same offset in both, and also in the finished file. So the bytes that a player has read stay
//! right, whatever it reads later. The index is made when it is read: a file of one hour has 2 MB of it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use super::format::fmp4;
use super::format::moov::{self, Notes};
use super::types::UnitsSoFar;
use crate::base::limits;

/// A part of a growing file, up to the end of one of its units.
#[derive(Debug)]
pub(super) struct FinishedView {
    units: UnitsSoFar,
    key: Key,
    index_bytes: u64,
    cache: Arc<IndexCache>,
}

/// Identifies an index: the inode of the file, and the end of the last unit.
type Key = (u64, u64);

/// The index that was made last. A player reads one in several pieces. Only one is kept, so that the memory does not
/// depend on the number of readers.
#[derive(Debug, Default)]
pub(super) struct IndexCache {
    last: Mutex<Option<(Key, Vec<u8>)>>,
}

impl FinishedView {
    /// Returns true if a file with these units has a view. The index of a longer file would take too much memory.
    pub(super) fn exists(units: &UnitsSoFar) -> bool {
        (1..=limits::FINISHED_VIEW_UNITS_MAX).contains(&units.index.len())
    }

    /// Returns the view of the bytes before `until`. Returns `None` if no unit ends there, or if the file has too many
    /// units.
    pub(super) fn new(
        units: &UnitsSoFar,
        inode: u64,
        until: u64,
        cache: &Arc<IndexCache>,
    ) -> Option<FinishedView> {
        let index = units.index.up_to(until, units.fragments_offset)?;
        let units = Some(UnitsSoFar { index, ..units.clone() }).filter(FinishedView::exists)?;
        let mut view = FinishedView { units, key: (inode, until), index_bytes: 0, cache: Arc::clone(cache) };
        view.index_bytes = view.with_index(|index| index.len() as u64);
        Some(view)
    }

    /// Returns the bytes of the view.
    pub(super) fn bytes(&self) -> u64 {
        self.until() + self.index_bytes
    }

    /// Returns the first bytes of the view, which differ from those on disk.
    pub(super) fn first_bytes(until: u64) -> [u8; fmp4::START_UNFINISHED.len()] {
        let mut first = fmp4::START_UNFINISHED;
        let (_, header) = first.split_at_mut(32);
        header.copy_from_slice(&fmp4::mdat_header(until));
        first
    }

    /// Reads bytes from `offset`, which must lie behind the first bytes. Returns the number of bytes read.
    pub(super) fn read_at(&self, file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let on_disk =
            usize::try_from(self.until().saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        match out.get_mut(..on_disk) {
            Some(out) if on_disk > 0 => file.read_at(out, offset),
            _ => {
                let skipped = usize::try_from(offset - self.until()).unwrap_or(usize::MAX);
                self.with_index(|index| index.get(skipped..).unwrap_or_default().read(out))
            }
        }
    }

    fn until(&self) -> u64 {
        self.key.1
    }

    /// Calls `read` with the index. Only one index is in memory at a time, so another reader waits meanwhile.
    fn with_index<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        let mut last = self.cache.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(key, _)| *key != self.key) {
            // The old index is freed before the new one is made.
            *last = None;
            let UnitsSoFar { track, index, fragments_offset } = &self.units;
            *last = Some((self.key, moov::finished(track, index, *fragments_offset, Notes::default())));
        }
        read(last.as_ref().map_or(&[], |(_, index)| index))
    }
}
