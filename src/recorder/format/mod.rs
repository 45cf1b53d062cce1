//! PURE: the file formats of recordings. Writes MP4 boxes, fragments and Annex-B streams, computes presentation times,
//! and finds the whole units of a file after a crash.

pub mod annexb;
mod boxes;
pub mod fmp4;
pub mod moov;
pub mod recovery;
mod shared_list;
#[cfg(test)]
mod tests;
pub(super) mod timeline;
mod track;

pub use track::{
    FRAGMENT_HEADER_BYTES, FRAGMENT_HEADER_BYTES_MAX, Fragment, Index, TIMESCALE, Track, UnitKind,
    index_bytes_max,
};
