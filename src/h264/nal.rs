//! Finds the byte ranges of the NAL units in an Annex-B access unit. Their content is not parsed.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use smallvec::SmallVec;

use crate::base::limits;

/// The `nal_unit_type` values (H.264 table 7-1) that this crate distinguishes.
pub mod kind {
    /// Coded slice of a non-IDR picture.
    pub const SLICE: u8 = 1;
    /// Coded slice data partition A, which contains the slice header.
    pub const PARTITION_A: u8 = 2;
    /// Coded slice of an IDR picture.
    pub const IDR_SLICE: u8 = 5;
    /// Supplemental enhancement information.
    pub const SEI: u8 = 6;
    /// Sequence parameter set.
    pub const SPS: u8 = 7;
    /// Picture parameter set.
    pub const PPS: u8 = 8;
    /// Access unit delimiter.
    pub const AUD: u8 = 9;
    /// Filler data, with which an encoder keeps its bit rate constant.
    pub const FILLER: u8 = 12;
    /// Sequence parameter set extension.
    pub const SPS_EXTENSION: u8 = 13;
    /// Prefix NAL unit. It belongs to the slice that follows it.
    pub const PREFIX: u8 = 14;
    /// Subset sequence parameter set.
    pub const SUBSET_SPS: u8 = 15;
}

/// Finds the start code `00 00 01`. No NAL unit of a conforming stream contains these bytes (H.264 annex B).
static START_CODE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(&[0, 0, 1]));
const START_CODE_BYTES: usize = 3;

/// Byte range of one NAL unit in its access unit. The start code and zero bytes at the end are not part of the range.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NalUnit {
    /// Offset of the NAL header byte.
    pub start: u32,
    /// Offset after the last byte. Always greater than `start`.
    pub end: u32,
    /// `nal_unit_type`, 0 to 31.
    pub kind: u8,
}

impl NalUnit {
    /// Returns the bytes of this NAL unit. `unit` must be the access unit that was scanned. If it is too short, the
    /// result is empty.
    #[must_use]
    pub fn slice(self, unit: &[u8]) -> &[u8] {
        unit.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Why bytes are not a valid Annex-B access unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The bytes contain no start code `00 00 01`.
    #[error("no start code")]
    NoStartCode,
    /// A byte before the first start code is not zero.
    #[error("bytes before the first start code")]
    LeadingBytes,
    /// A NAL unit has `forbidden_zero_bit` set. It was damaged in transmission, or is not H.264.
    #[error("forbidden_zero_bit is set")]
    ForbiddenBit,
    /// The access unit has more NAL units than [`limits::NAL_UNITS_MAX`].
    #[error("more than {} NAL units", limits::NAL_UNITS_MAX)]
    TooManyNalUnits,
    /// The access unit is too long for 32-bit offsets. Holds its length in bytes.
    #[error("an access unit of {0} bytes is too long")]
    TooLong(usize),
}

/// Finds all NAL units of an access unit in byte-stream format (H.264 annex B). Clears `out`, then writes the NAL units
/// to it in order. Accepts start codes of three and four bytes, and zero bytes before and after them. Skips empty NAL
/// units.
///
/// # Errors
/// A [`ScanError`] if the bytes are not a valid access unit. The content of `out` is then unspecified.
pub fn scan(bytes: &[u8], out: &mut SmallVec<[NalUnit; 16]>) -> Result<(), ScanError> {
    out.clear();
    if u32::try_from(bytes.len()).is_err() {
        return Err(ScanError::TooLong(bytes.len()));
    }
    let mut start_codes = START_CODE.find_iter(bytes);
    let first = start_codes.next().ok_or(ScanError::NoStartCode)?;
    if bytes.iter().take(first).any(|byte| *byte != 0) {
        return Err(ScanError::LeadingBytes);
    }
    let mut start = first + START_CODE_BYTES;
    loop {
        let next = start_codes.next();
        if let Some(nal) = nal_between(bytes, start, next.unwrap_or(bytes.len()))? {
            if out.len() == limits::NAL_UNITS_MAX {
                return Err(ScanError::TooManyNalUnits);
            }
            out.push(nal);
        }
        match next {
            Some(code) => start = code + START_CODE_BYTES,
            None => return Ok(()),
        }
    }
}

/// Returns the start of the access unit, up to and including the header of its first slice. This part contains all
/// parameter sets (H.264 7.4.1.2.3) and shows the type of the picture. Returns the whole unit if it has no slice.
pub fn up_to_first_slice(bytes: &[u8]) -> &[u8] {
    let kind_at = |code: usize| bytes.get(code + START_CODE_BYTES).map(|header| header & 0x1F);
    let is_slice =
        |code: &usize| kind_at(*code).is_some_and(|kind| (kind::SLICE..=kind::IDR_SLICE).contains(&kind));
    let first = START_CODE.find_iter(bytes).find(is_slice);
    let end = first.map_or(bytes.len(), |code| code + START_CODE_BYTES + limits::SLICE_HEAD_BYTES);
    bytes.get(..end).unwrap_or(bytes)
}

/// Returns the NAL unit in `bytes[start..limit]`, or `None` if all these bytes are zero. Zero bytes at the end are not
/// part of the NAL unit: they are `trailing_zero_8bits` or belong to a four-byte start code (H.264 7.4.1).
/// `cabac_zero_word`s at the end of a slice are left out too: decoders ignore them, and encoders use them as filler.
#[expect(clippy::cast_possible_truncation, reason = "scan has checked that every offset fits 32 bits")]
fn nal_between(bytes: &[u8], start: usize, limit: usize) -> Result<Option<NalUnit>, ScanError> {
    let body = bytes.get(start..limit).unwrap_or_default();
    let Some(last) = body.iter().rposition(|byte| *byte != 0) else { return Ok(None) };
    let header = body.first().copied().unwrap_or_default();
    if header & 0x80 != 0 {
        return Err(ScanError::ForbiddenBit);
    }
    let mut end = last + 1;
    if body.get(..end).is_some_and(|nal| nal.ends_with(&ESCAPED_ZERO_WORD)) {
        end = without_zero_words(body, end);
    }
    Ok(Some(NalUnit { start: start as u32, end: (start + end) as u32, kind: header & 0x1F }))
}

/// The end of a NAL unit whose RBSP ends with a zero byte. Only `cabac_zero_word`s can be there, because the last bit of
/// all other RBSP data is 1 (H.264 7.4.1).
const ESCAPED_ZERO_WORD: [u8; 3] = [0, 0, 3];

/// Returns the end of the NAL unit `body[..end]` without its `cabac_zero_word`s.
#[cold]
fn without_zero_words(body: &[u8], mut end: usize) -> usize {
    while let Some(rest) = body.get(..end).and_then(|nal| nal.strip_suffix(&ESCAPED_ZERO_WORD)) {
        match rest.iter().rposition(|byte| *byte != 0) {
            Some(last) => end = last + 1,
            None => break, // the header byte is zero, so this is not a slice
        }
    }
    end
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "offsets of short test inputs")]

    use super::super::testing::{annex_b, hostile_bytes};
    use super::*;
    use proptest::prelude::*;

    /// Does the same as `scan`, in the simplest way: it looks at one byte at a time.
    fn scan_naively(bytes: &[u8]) -> Result<Vec<NalUnit>, ScanError> {
        let is_code = |at: usize| bytes[at..].starts_with(&[0, 0, 1]);
        let codes: Vec<usize> = (0..bytes.len()).filter(|at| is_code(*at)).collect();
        let first = *codes.first().ok_or(ScanError::NoStartCode)?;
        if bytes[..first].iter().any(|byte| *byte != 0) {
            return Err(ScanError::LeadingBytes);
        }
        let mut nals = Vec::new();
        for (index, code) in codes.iter().enumerate() {
            let start = code + 3;
            let mut end = codes.get(index + 1).copied().unwrap_or(bytes.len());
            while end > start && bytes[end - 1] == 0 {
                end -= 1;
            }
            if end == start {
                continue;
            }
            let has_content = |end: usize| bytes[start..end].iter().any(|byte| *byte != 0);
            while end - start >= 3 && bytes[end - 3..end] == [0, 0, 3] && has_content(end - 3) {
                end -= 3;
                while bytes[end - 1] == 0 {
                    end -= 1;
                }
            }
            if bytes[start] > 0x7F {
                return Err(ScanError::ForbiddenBit);
            }
            if nals.len() == limits::NAL_UNITS_MAX {
                return Err(ScanError::TooManyNalUnits);
            }
            nals.push(NalUnit { start: start as u32, end: end as u32, kind: bytes[start] % 32 });
        }
        Ok(nals)
    }

    #[test]
    fn up_to_first_slice_cuts_after_the_slice_header() {
        let mut unit = vec![0, 0, 0, 1, 0x67, 1, 2, 3, 0, 0, 1, 0x68, 4];
        assert_eq!(up_to_first_slice(&unit), unit, "no slice");
        unit.extend([0, 0, 1, 0x65]);
        let head = unit.len() + limits::SLICE_HEAD_BYTES - 1;
        assert_eq!(up_to_first_slice(&unit), unit, "a slice shorter than its head");
        unit.extend([0x55; 300]);
        assert_eq!(up_to_first_slice(&unit), &unit[..head]);
        let mut cut = unit.clone();
        cut.extend([0, 0, 1, 0x67, 9]);
        assert_eq!(kinds(up_to_first_slice(&cut)), [7, 8, 5]);
    }

    fn scanned(bytes: &[u8]) -> Result<Vec<NalUnit>, ScanError> {
        let mut out = SmallVec::new();
        scan(bytes, &mut out)?;
        Ok(out.to_vec())
    }

    fn kinds(bytes: &[u8]) -> Vec<u8> {
        scanned(bytes).unwrap().iter().map(|nal| nal.kind).collect()
    }

    #[test]
    fn three_and_four_byte_start_codes_are_found() {
        let unit = [0, 0, 0, 1, 0x67, 1, 2, 0, 0, 1, 0x68, 3, 0, 0, 0, 1, 0x65, 4];
        let nals = scanned(&unit).unwrap();
        let bytes: Vec<&[u8]> = nals.iter().map(|nal| nal.slice(&unit)).collect();
        assert_eq!(bytes, [&[0x67, 1, 2][..], &[0x68, 3], &[0x65, 4]]);
        assert_eq!(kinds(&unit), [7, 8, 5]);
    }

    #[test]
    fn zero_bytes_around_nal_units_are_skipped() {
        let unit = [0, 0, 0, 0, 0, 1, 0x67, 9, 0, 0, 0, 0, 0, 1, 0x65, 4, 0, 0, 0];
        let nals = scanned(&unit).unwrap();
        assert_eq!(nals[0], NalUnit { start: 6, end: 8, kind: 7 });
        assert_eq!(nals[1], NalUnit { start: 14, end: 16, kind: 5 });
    }

    #[test]
    fn zero_bytes_and_emulation_prevention_inside_a_nal_unit_are_kept() {
        let unit = annex_b(&[&[0x65, 0, 0, 3, 1, 0, 0, 2, 0, 5]]);
        assert_eq!(scanned(&unit).unwrap()[0].slice(&unit), &[0x65, 0, 0, 3, 1, 0, 0, 2, 0, 5]);
    }

    #[test]
    fn cabac_zero_words_are_left_out() {
        for words in [&[0, 0, 3][..], &[0, 0, 3, 0, 0, 3], &[0, 0, 0, 3, 0, 0, 3, 0, 0]] {
            let slice = [&[0x41, 9, 0x80], words].concat();
            assert_eq!(scanned(&annex_b(&[&slice])).unwrap()[0].end, 7, "{words:?}");
        }
        let slice = [0x41, 9, 0, 0, 3, 3];
        assert_eq!(scanned(&annex_b(&[&slice])).unwrap()[0].end, 10, "an escaped 3 is data");
        assert_eq!(kinds(&[0, 0, 1, 0, 0, 3]), [0]);
    }

    #[test]
    fn empty_nal_units_are_skipped() {
        assert_eq!(kinds(&[0, 0, 1, 0, 0, 1, 0x65, 1, 0, 0, 1, 0, 0, 1]), [5]);
        assert_eq!(scanned(&[0, 0, 1]), Ok(vec![]));
    }

    #[test]
    fn invalid_byte_streams_are_rejected() {
        assert_eq!(scanned(&[]), Err(ScanError::NoStartCode));
        assert_eq!(scanned(&[0; 1000]), Err(ScanError::NoStartCode));
        assert_eq!(scanned(&[0, 0, 0, 9, 0x65, 1, 2]), Err(ScanError::NoStartCode));
        assert_eq!(scanned(&[7, 0, 0, 1, 0x65]), Err(ScanError::LeadingBytes));
        assert_eq!(scanned(&[0, 0, 1, 0xE5, 1]), Err(ScanError::ForbiddenBit));
    }

    #[test]
    fn number_of_nal_units_is_bounded() {
        let nals = vec![[0x01, 0x80]; limits::NAL_UNITS_MAX];
        assert_eq!(scanned(&annex_b(&nals)).unwrap().len(), limits::NAL_UNITS_MAX);
        let nals = vec![[0x01, 0x80]; limits::NAL_UNITS_MAX + 1];
        assert_eq!(scanned(&annex_b(&nals)), Err(ScanError::TooManyNalUnits));
    }

    #[test]
    fn unit_as_large_as_a_slot_is_scanned() {
        let mut unit = annex_b(&[vec![0x67, 1], vec![0x65; limits::SLOT_DATA_BYTES_MAX - 9]]);
        assert_eq!(kinds(&unit), [7, 5]);
        let end = unit.len();
        unit[end - 5..].copy_from_slice(&[0, 0, 1, 0x0C, 0xFF]);
        assert_eq!(kinds(&unit), [7, 5, 12]);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn scan_equals_the_naive_reference(bytes in hostile_bytes(400)) {
            prop_assert_eq!(scanned(&bytes), scan_naively(&bytes));
        }

        #[test]
        fn scan_equals_the_naive_reference_on_few_byte_values(bytes in prop::collection::vec(0..4_u8, 0..200)) {
            prop_assert_eq!(scanned(&bytes), scan_naively(&bytes));
        }
    }
}
