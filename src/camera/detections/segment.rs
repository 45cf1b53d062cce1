//! PURE: the layout of the detector's segment, and its parser. The bytes come from another program and may be anything.
//!
//! ```text
//!    0 frame_number u64    8 timestamp f64 (s)    16 count i32
//!   20 entries, 10 x 52:   0 label char[32]   32 confidence f32   36 x i32   40 y i32   44 width i32   48 height i32
//!  540 version u32, raised after the rest was written       544 sem_t (32 bytes), not used
//! ```
//!
//! All numbers are little-endian.

use super::{DetectedBox, Detections, RawBox, Rejection};
use crate::base::limits::{DETECTED_BOXES_MAX, LABEL_BYTES_MAX, REFERENCE_PICTURE};

/// Bytes of the whole segment.
pub const SEGMENT_BYTES: usize = 576;

/// Offsets of the fields of the segment.
pub mod field {
    /// `u64`: the camera's number of the picture.
    pub const FRAME: usize = 0;
    /// `f64`: the camera's stamp of the picture in seconds.
    pub const STAMP: usize = 8;
    /// `i32`: number of entries.
    pub const COUNT: usize = 16;
    /// The first entry.
    pub const ENTRIES: usize = 20;
    /// `u32`: raised with every result.
    pub const VERSION: usize = 540;
}

/// Offsets of the fields of one entry.
pub mod entry {
    /// `char[32]`: text that a NUL ends.
    pub const LABEL: usize = 0;
    /// `f32`: from 0 to 1.
    pub const CONFIDENCE: usize = 32;
    /// Four `i32`: x, y, width and height.
    pub const BOX: usize = 36;
    /// Bytes of one entry.
    pub const BYTES: usize = 52;
}

const _: () = assert!(field::ENTRIES + DETECTED_BOXES_MAX * entry::BYTES == field::VERSION);
const _: () = assert!(entry::CONFIDENCE == LABEL_BYTES_MAX + 1 && field::VERSION + 4 + 32 == SEGMENT_BYTES);

/// Largest number of seconds that is taken for a time: the year 2255.
const SECONDS_MAX: f64 = 9e9; // local bound: in nanoseconds it fits into an i64

/// Parses a copy of the segment. Calls `on_skipped` for each entry that is wrong; the other entries are returned.
///
/// # Errors
/// A [`Rejection`] if the whole result is wrong.
pub fn parse(
    copy: &[u8; SEGMENT_BYTES],
    on_skipped: &mut dyn FnMut(Rejection),
) -> Result<Detections, Rejection> {
    let count = i32::from_le_bytes(array(copy, field::COUNT));
    let count = usize::try_from(count).ok().filter(|count| *count <= DETECTED_BOXES_MAX);
    let count = count.ok_or(Rejection::Count)?;
    let captured_at_ns = stamp_ns(f64::from_le_bytes(array(copy, field::STAMP)))?;
    let entries = copy.get(field::ENTRIES..field::VERSION).unwrap_or_default();
    let mut boxes = Vec::with_capacity(count);
    for entry in entries.chunks_exact(entry::BYTES).take(count) {
        match parse_entry(entry) {
            Ok(found) => boxes.push(found),
            Err(reason) => on_skipped(reason),
        }
    }
    let frame = Some(u64::from_le_bytes(array(copy, field::FRAME)));
    Ok(Detections { frame, captured_at_ns, boxes, ..Detections::default() })
}

/// Returns the version of a copy of the segment.
#[must_use]
pub fn version(copy: &[u8; SEGMENT_BYTES]) -> u32 {
    u32::from_le_bytes(array(copy, field::VERSION))
}

/// Converts a stamp in seconds to nanoseconds. Returns `None` for 0, which stands for an unknown time.
///
/// # Errors
/// [`Rejection::Stamp`] if the number is negative, infinite, too large or no number.
pub fn stamp_ns(seconds: f64) -> Result<Option<i64>, Rejection> {
    if !(0.0..SECONDS_MAX).contains(&seconds) {
        return Err(Rejection::Stamp);
    }
    // The fraction is exact, so only the stamp's own precision counts, which is 0.3 us today.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked above")]
    let ns = seconds.trunc() as i64 * 1_000_000_000 + (seconds.fract() * 1e9).round() as i64;
    Ok((ns > 0).then_some(ns))
}

fn parse_entry(bytes: &[u8]) -> Result<DetectedBox, Rejection> {
    let text = bytes.get(entry::LABEL..entry::CONFIDENCE).unwrap_or_default();
    let end = text.iter().position(|byte| *byte == 0).ok_or(Rejection::Label)?;
    let label = std::str::from_utf8(text.get(..end).unwrap_or_default()).map_err(|_| Rejection::Label)?;
    let confidence = f32::from_le_bytes(array(bytes, entry::CONFIDENCE));
    let side = |index: usize| i64::from(i32::from_le_bytes(array(bytes, entry::BOX + 4 * index)));
    let raw = RawBox { x: side(0), y: side(1), width: side(2), height: side(3) };
    DetectedBox::new(label, confidence, raw, REFERENCE_PICTURE)
}

/// Returns `N` bytes from `at`. Every caller passes an offset within the bytes; otherwise the bytes are 0.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests;
