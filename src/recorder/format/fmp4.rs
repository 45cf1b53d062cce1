//! PURE: the hybrid MP4 file. It consists of fragments while it is being recorded, and is a plain MP4 when finished.
//!
//! ```text
//! while recording   ftyp 32 | free 16 | moov (mvex) | moof 100, mdat 8 + unit | moof 104, mdat 8 + unit | ...
//! finished          ftyp 32 | mdat 16  ................ all of it ............................ | moov (index)
//! ```
//!
//! The numbers are sizes in bytes. Each access unit is one fragment, so a truncated file plays up to its last whole
//! unit. In a stream with B-frames, a moof has 4 bytes more if its unit is shown at another time than it is decoded.
//!
//! Finishing a file first appends an index of all units. Then it overwrites the 16 bytes of `free` with the header of
//! one large `mdat` box that contains all fragments. These 16 bytes lie inside one disk sector, so after a crash the
//! file has one of the two forms, never a mixture.
//!
//! Each IDR keeps its parameter sets in the stream, although the `avcC` box contains them too. They cost 40 bytes a
//! second, every player skips them, and the stream can be cut at any IDR.
//!
//! ISO/IEC 14496-12 (2015) defines the boxes: section 8.8 those of fragments, sections 8.6 and 8.7 those of the index.

use bytes::{BufMut, Bytes, BytesMut};

use super::boxes::{u32_at, u64_at};
use super::moov;
use super::track::{FRAGMENT_HEADER_BYTES, FRAGMENT_HEADER_BYTES_MAX, Fragment, Track, UnitKind};

/// Offset of the 16 bytes that show the form of a file: a `free` box if unfinished, the header of `mdat` if finished.
pub const MDAT_HEADER_OFFSET: u64 = 32;

/// Size in bytes of the `mdat` header, and of the `free` box that it replaces.
pub const MDAT_HEADER_BYTES: usize = 16;

/// First 48 bytes of an unfinished file. Finishing the file overwrites the last 16 of them.
pub const START_UNFINISHED: [u8; 48] = *b"\0\0\0\x20ftypisom\0\0\x02\0isomiso6avc1mp41\0\0\0\x10freess-live1";

/// Flags of a trun box: it has a data offset, and the duration, size and flags of its only sample.
const TRUN: u32 = 0x701;
/// The flags [`TRUN`], with version 1 and the flag of a composition time offset. In version 1 this offset is signed.
const TRUN_WITH_COMPOSITION: u32 = 0x0100_0000 | TRUN | 0x800;

impl Fragment {
    /// Returns the number of bytes of [`Fragment::write_header`].
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        if self.composition_90k == 0 { FRAGMENT_HEADER_BYTES } else { FRAGMENT_HEADER_BYTES_MAX }
    }

    /// Appends the bytes of the fragment before its access unit: the `moof` box and the header of the `mdat` box.
    pub fn write_header(&self, out: &mut impl BufMut) {
        match self.composition_90k {
            0 => out.put_slice(&self.boxes::<FRAGMENT_HEADER_BYTES>()),
            _ => out.put_slice(&self.boxes::<FRAGMENT_HEADER_BYTES_MAX>()),
        }
    }

    /// Returns the boxes with or without a composition time offset, as their number of bytes says. This number is a
    /// constant so that the compiler can fold all sizes.
    fn boxes<const BYTES: usize>(&self) -> [u8; BYTES] {
        let mut boxes = [0; BYTES];
        let mut out: &mut [u8] = &mut boxes;
        // The moof box contains a traf box, which contains a trun box. All three grow with the composition time offset.
        let (more, trun) =
            if BYTES == FRAGMENT_HEADER_BYTES { (0, TRUN) } else { (4, TRUN_WITH_COMPOSITION) };
        out.put_u32(100 + more);
        out.put_slice(b"moof\0\0\0\x10mfhd\0\0\0\0");
        out.put_u32(self.sequence);
        // A traf box begins here. Its tfhd box names track 1 and has the flag default-base-is-moof: offsets count from
        // the start of moof. Its tfdt box has version 1, so the time that follows has 64 bits.
        out.put_u32(76 + more);
        out.put_slice(b"traf\0\0\0\x10tfhd\0\x02\0\0\0\0\0\x01\0\0\0\x14tfdt\x01\0\0\0");
        out.put_u64(self.time_90k);
        out.put_u32(32 + more);
        out.put_slice(b"trun");
        out.put_u32(trun);
        out.put_u32(1); // number of samples
        out.put_u32(108 + more); // the sample data starts here, counted from the start of moof
        out.put_u32(self.duration_90k);
        out.put_u32(self.unit_bytes);
        out.put_u32(self.kind.sample_flags());
        if more > 0 {
            out.put_i32(self.composition_90k);
        }
        out.put_u32(self.unit_bytes.saturating_add(8));
        out.put_slice(b"mdat");
        boxes
    }

    /// Parses a fragment header at the start of `bytes`. Returns `None` if the bytes differ from those that
    /// [`Fragment::write_header`] writes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Fragment> {
        let fragment = Fragment {
            sequence: u32_at(bytes, 20)?,
            time_90k: u64_at(bytes, 60)?,
            duration_90k: u32_at(bytes, 88)?,
            unit_bytes: u32_at(bytes, 92)?,
            kind: UnitKind::from_sample_flags(u32_at(bytes, 96)?)?,
            composition_90k: match u32_at(bytes, 76)? {
                TRUN_WITH_COMPOSITION => u32_at(bytes, 100)?.cast_signed(),
                _ => 0,
            },
        };
        let is_same = match fragment.composition_90k {
            0 => bytes.starts_with(&fragment.boxes::<FRAGMENT_HEADER_BYTES>()),
            _ => bytes.starts_with(&fragment.boxes::<FRAGMENT_HEADER_BYTES_MAX>()),
        };
        (fragment.unit_bytes <= u32::MAX - 8 && is_same).then_some(fragment)
    }
}

/// Appends the parts of a gathered write that writes one fragment: `[header, length][NAL unit][length][NAL unit]...`.
///
/// The NAL units are not copied. `fragment.unit_bytes` must be the size of all NAL units, including their 4-byte
/// lengths.
pub fn gather(fragment: &Fragment, nal_units: &[Bytes], parts: &mut Vec<Bytes>) {
    let Some((last, before)) = nal_units.split_last() else { return };
    // The capacity is exact, so that the buffer of a single NAL unit needs no second allocation to count its users.
    let mut small = BytesMut::with_capacity(fragment.header_bytes() + 4 * nal_units.len());
    let length = |nal: &Bytes| u32::try_from(nal.len()).unwrap_or(u32::MAX); // 32 bits suffice: a slot holds 3 MB
    fragment.write_header(&mut small);
    for nal in before {
        small.put_u32(length(nal));
        parts.push(small.split().freeze());
        parts.push(nal.clone());
    }
    small.put_u32(length(last));
    parts.push(small.freeze());
    parts.push(last.clone());
}

/// Returns the header of an unfinished file: all bytes before its first fragment.
#[must_use]
pub fn file_header(track: &Track) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&START_UNFINISHED);
    moov::write_fragmented(track, &mut out);
    out
}

/// Returns the `mdat` header that finishes a file. `index_offset` is the file offset of the index.
#[must_use]
pub fn mdat_header(index_offset: u64) -> [u8; MDAT_HEADER_BYTES] {
    let mut out = *b"\0\0\0\x01mdat\0\0\0\0\0\0\0\0";
    let (_, size) = out.split_at_mut(8);
    size.copy_from_slice(&index_offset.saturating_sub(MDAT_HEADER_OFFSET).to_be_bytes());
    out
}

/// Form of a file, as its first 48 bytes show it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// This recorder wrote the file and has not finished it: it is still being recorded, or was left by a crash.
    Unfinished,
    /// This recorder wrote and finished the file.
    Finished {
        /// File offset of the index, the `moov` box.
        index_offset: u64,
    },
    /// Another program wrote the file. It is never repaired, and never deleted by the retention rules.
    Foreign,
}

/// Returns the form of a file. `start` must be the first 48 bytes of the file, or more.
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
