//! PURE: finds the whole fragments of an MP4 recording that a crash left unfinished. It only reads the file.

use std::io::{self, Read, Seek, SeekFrom};

use super::boxes::u32_at;
use super::fmp4::{Form, MDAT_HEADER_BYTES, MDAT_HEADER_OFFSET, file_header, form};
use super::moov::parse_track;
use super::track::{FRAGMENT_HEADER_BYTES, FRAGMENT_HEADER_BYTES_MAX, Fragment, Index, Track};
use crate::base::limits::{NAL_UNITS_MAX, RECORDING_UNITS_MAX};

/// Fills `out` with the bytes of the file from `offset`. Returns false if the file ends before `out` is full.
pub fn fill_at(mut file: impl Read + Seek, out: &mut [u8], offset: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(out) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The whole fragments of an unfinished recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeFragments {
    /// Properties of the track, read from the file header.
    pub track: Track,
    /// Index of the whole units.
    pub index: Index,
    /// File offset of the first fragment.
    pub fragments_offset: u64,
    /// File offset of the end of the last whole fragment. A repair truncates the file at this offset.
    pub end: u64,
}

/// Upper bound for the bytes of a `moov` box without samples. It really has some 700 bytes plus the parameter sets.
const HEAD_BYTES_MAX: u64 = 1 << 20; // local bound

/// Reads an unfinished recording up to its last whole fragment. Returns `None` if another program wrote the file, if
/// the file is finished, or if it contains no whole fragment.
pub fn whole_fragments(mut file: impl Read + Seek) -> io::Result<Option<WholeFragments>> {
    let Some((track, fragments_offset)) = read_file_header(&mut file)? else { return Ok(None) };
    let mut whole =
        WholeFragments { track, index: Index::default(), fragments_offset, end: fragments_offset };
    while let Some(fragment) = read_fragment(&mut file, whole.end)? {
        let unit_offset = whole.end + fragment.header_bytes() as u64;
        let in_order = if whole.index.is_empty() {
            fragment.time_90k == 0
        } else {
            fragment.time_90k > whole.index.last_time_90k()
        };
        let numbered = usize::try_from(fragment.sequence).is_ok_and(|number| number == whole.index.len() + 1);
        let fits = whole.index.len() < RECORDING_UNITS_MAX;
        if !in_order || !numbered || !fits || !unit_is_whole(&mut file, unit_offset, fragment.unit_bytes)? {
            break;
        }
        whole.index.push(&fragment);
        whole.end = unit_offset + u64::from(fragment.unit_bytes);
    }
    Ok((!whole.index.is_empty()).then_some(whole))
}

/// Reads the fragment header at `offset`. Returns `None` if there is none of this recorder.
fn read_fragment(file: &mut (impl Read + Seek), offset: u64) -> io::Result<Option<Fragment>> {
    let mut header = [0; FRAGMENT_HEADER_BYTES_MAX];
    for bytes in [FRAGMENT_HEADER_BYTES, FRAGMENT_HEADER_BYTES_MAX] {
        let Some(part) = header.get_mut(..bytes) else { break };
        if !fill_at(&mut *file, part, offset)? {
            break;
        }
        if let Some(fragment) = Fragment::parse(part) {
            return Ok(Some(fragment));
        }
    }
    Ok(None)
}

fn read_file_header(file: &mut (impl Read + Seek)) -> io::Result<Option<(Track, u64)>> {
    let moov_offset = MDAT_HEADER_OFFSET + MDAT_HEADER_BYTES as u64;
    let mut start = [0; 56];
    if !fill_at(&mut *file, &mut start, 0)? || form(&start) != Form::Unfinished {
        return Ok(None);
    }
    let moov_bytes = u32_at(&start, 48).map_or(0, u64::from);
    if !(8..HEAD_BYTES_MAX).contains(&moov_bytes) {
        return Ok(None);
    }
    let mut moov = vec![0; usize::try_from(moov_bytes).unwrap_or(0)];
    if !fill_at(&mut *file, &mut moov, moov_offset)? {
        return Ok(None);
    }
    let Some(track) = parse_track(&moov) else { return Ok(None) };
    // The file counts as written by this recorder only if the recorder would write exactly the same header.
    let same = file_header(&track).get(MDAT_HEADER_BYTES + 32..) == Some(moov.as_slice());
    Ok(same.then_some((track, moov_offset + moov_bytes)))
}

/// Returns true if the unit is whole: following the NAL unit lengths from one to the next must lead exactly to the end
/// of the unit. After a power loss a file may contain zeros where data never reached the disk. So a length of 0 means
/// that the unit is not whole. A unit with more NAL units than the recorder writes is not whole either.
fn unit_is_whole(file: &mut (impl Read + Seek), offset: u64, bytes: u32) -> io::Result<bool> {
    let end = offset + u64::from(bytes);
    if end > file.seek(SeekFrom::End(0))? {
        return Ok(false);
    }
    let mut at = offset;
    let mut prefix = [0; 4];
    let mut nal_units = 0;
    while at < end {
        nal_units += 1;
        if nal_units > NAL_UNITS_MAX || end - at < 5 || !fill_at(&mut *file, &mut prefix, at)? {
            return Ok(false);
        }
        let nal_bytes = u32::from_be_bytes(prefix);
        if nal_bytes == 0 {
            return Ok(false);
        }
        at += 4 + u64::from(nal_bytes);
    }
    Ok(at == end && bytes > 0)
}
