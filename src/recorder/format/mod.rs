//! PURE: the file formats of recordings: MP4 boxes and fragments, Annex B, presentation times, recovery after a crash.

pub mod annexb;
mod boxes;
pub mod fmp4;
pub mod moov;
pub mod recovery;
#[cfg(test)]
mod tests;
pub(super) mod timeline;
mod track;

pub use track::{FRAGMENT_HEADER_BYTES, Fragment, Index, TIMESCALE, Track, UnitKind, index_bytes_max};
