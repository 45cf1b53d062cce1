//! PURE: the file formats of a recording: MP4 boxes and fragments, Annex B, the time axis, what a crash leaves behind.

pub mod annexb;
pub mod fmp4;
pub mod moov;
pub mod recovery;
#[cfg(test)]
mod tests;
pub(super) mod timeline;
