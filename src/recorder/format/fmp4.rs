//! PURE: the hybrid MP4 file: fragments while recording, a plain MP4 when finished.
//!
//! ```text
//! while recording   ftyp 32 | free 16 | moov (mvex) | moof 100, mdat 8 + unit | moof 100, mdat 8 + unit | ...
//! finished          ftyp 32 | mdat 16  ................ all of it ............................ | moov (index)
//! ```
//!
//! Each access unit is one fragment, so a truncated file plays up to its last whole unit.
//! Finishing appends a plain index. Then it overwrites the 16 bytes of `free` with the header of one large `mdat` that
//! contains all fragments. That write lies inside one disk sector, so a crash leaves one of the two forms.
//! Each IDR keeps its parameter sets, although `avcC` has them too. They cost 40 bytes a second, every player skips
//! them, and the stream can be cut out at any IDR.
//! Boxes: ISO/IEC 14496-12 (2015), 8.8 for fragments, 8.6 and 8.7 for the index.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::boxes::{u32_at, u64_at};
use super::moov;
use super::track::{FRAGMENT_HEADER_BYTES, Fragment, Track, UnitKind};

/// Offset of the 16 bytes that mark the form of a file: a `free` box while recording, an `mdat` header when finished.
pub const MDAT_HEADER_OFFSET: u64 = 32;

/// Bytes of that box header.
pub const MDAT_HEADER_BYTES: usize = 16;

/// First bytes of an unfinished file. Finishing overwrites the last 16.
pub const START_UNFINISHED: [u8; 48] = *b"\0\0\0\x20ftypisom\0\0\x02\0isomiso6avc1mp41\0\0\0\x10freess-live1";

impl Fragment {
    /// Returns the bytes before the access unit.
    #[must_use]
    pub fn header(&self) -> [u8; FRAGMENT_HEADER_BYTES] {
        let mut out = [0; FRAGMENT_HEADER_BYTES];
        let mut rest: &mut [u8] = &mut out;
        rest.put_slice(b"\0\0\0\x64moof\0\0\0\x10mfhd\0\0\0\0");
        rest.put_u32(self.sequence);
        // traf; tfhd with default-base-is-moof, track 1; tfdt version 1
        rest.put_slice(b"\0\0\0\x4ctraf\0\0\0\x10tfhd\0\x02\0\0\0\0\0\x01\0\0\0\x14tfdt\x01\0\0\0");
        rest.put_u64(self.time_90k);
        // trun with data offset, and duration, size and flags of its one sample at moof + 108
        rest.put_slice(b"\0\0\0\x20trun\0\0\x07\x01\0\0\0\x01\0\0\0\x6c");
        rest.put_u32(self.duration_90k);
        rest.put_u32(self.unit_bytes);
        rest.put_u32(self.kind.sample_flags());
        rest.put_u32(self.unit_bytes.saturating_add(8));
        rest.put_slice(b"mdat");
        out
    }

    /// Parses a fragment header. Returns `None` if [`Fragment::header`] would not make exactly these bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; FRAGMENT_HEADER_BYTES]) -> Option<Fragment> {
        let fragment = Fragment {
            sequence: u32_at(bytes, 20)?,
            time_90k: u64_at(bytes, 60)?,
            duration_90k: u32_at(bytes, 88)?,
            unit_bytes: u32_at(bytes, 92)?,
            kind: UnitKind::from_sample_flags(u32_at(bytes, 96)?)?,
        };
        (fragment.unit_bytes <= u32::MAX - 8 && fragment.header() == *bytes).then_some(fragment)
    }
}

/// Appends one fragment as parts of a gathered write: `[header, length][NAL unit][length][NAL unit]...`.
///
/// Copies only headers and lengths. `fragment.unit_bytes` must count the NAL units with their lengths.
pub fn gather(fragment: &Fragment, nal_units: &[Bytes], parts: &mut Vec<Bytes>) {
    let mut small = BytesMut::with_capacity(FRAGMENT_HEADER_BYTES + 4 * nal_units.len());
    small.put_slice(&fragment.header());
    for nal in nal_units {
        small.put_u32(u32::try_from(nal.len()).unwrap_or(u32::MAX)); // a slot holds 3 MB
        parts.push(small.split().freeze());
        parts.push(nal.clone());
    }
}

/// Returns the bytes before the first fragment of an unfinished file.
#[must_use]
pub fn file_header(track: &Track) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&START_UNFINISHED);
    moov::write_fragmented(track, &mut out);
    out
}

/// Returns the 16 bytes that make a file a plain MP4 whose index starts at `index_offset`.
#[must_use]
pub fn mdat_header(index_offset: u64) -> [u8; MDAT_HEADER_BYTES] {
    let mut out = *b"\0\0\0\x01mdat\0\0\0\0\0\0\0\0";
    let (_, size) = out.split_at_mut(8);
    size.copy_from_slice(&index_offset.saturating_sub(MDAT_HEADER_OFFSET).to_be_bytes());
    out
}

/// Form of a file, read from its first 48 bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Written by this recorder and not finished: still being recorded, or left by a crash.
    Unfinished,
    /// Written by this recorder and finished.
    Finished {
        /// Offset of the index (`moov`).
        index_offset: u64,
    },
    /// Not written by this recorder. Never repaired or deleted by retention.
    Foreign,
}

/// Returns the form of a file with these first 48 bytes.
#[must_use]
pub fn form(start: &[u8]) -> Form {
    let (ftyp, free) = START_UNFINISHED.split_at(32);
    let Some(header) = start.strip_prefix(ftyp).and_then(|rest| rest.first_chunk::<MDAT_HEADER_BYTES>())
    else {
        return Form::Foreign;
    };
    if header == free {
        return Form::Unfinished;
    }
    let mdat_bytes = header.strip_prefix(b"\0\0\0\x01mdat").and_then(|bytes| u64_at(bytes, 0));
    match mdat_bytes.and_then(|bytes| bytes.checked_add(MDAT_HEADER_OFFSET)) {
        Some(index_offset) => Form::Finished { index_offset },
        None => Form::Foreign,
    }
}
