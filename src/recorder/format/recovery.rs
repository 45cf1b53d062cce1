//! PURE: reads what a crash left of an MP4 recording. Writes nothing; bytes come through [`ReadAt`].

use std::io;

use crate::recorder::format::fmp4::{
    FRAGMENT_HEADER_BYTES, Form, Fragment, Index, SWITCH_BYTES, SWITCH_OFFSET, Track, form, head,
};
use crate::recorder::format::moov::parse_track;

/// Bytes at offsets: a file, or a slice in tests.
pub trait ReadAt {
    /// Fills `out` from `offset` on; `false` if the end comes first.
    fn fill_at(&self, out: &mut [u8], offset: u64) -> io::Result<bool>;
    /// Bytes in all.
    fn total_bytes(&self) -> io::Result<u64>;
}

impl ReadAt for [u8] {
    fn fill_at(&self, out: &mut [u8], offset: u64) -> io::Result<bool> {
        let inside = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..out.len()));
        if let Some(inside) = inside {
            out.copy_from_slice(inside);
        }
        Ok(inside.is_some())
    }

    fn total_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for std::fs::File {
    fn fill_at(&self, out: &mut [u8], offset: u64) -> io::Result<bool> {
        match std::os::unix::fs::FileExt::read_exact_at(self, out, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn total_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// What is whole in an unfinished recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// What the file says of its track.
    pub track: Track,
    /// The units that are whole.
    pub index: Index,
    /// Where the first fragment starts.
    pub fragments_offset: u64,
    /// Where the last whole fragment ends: all behind it is to be cut off.
    pub end: u64,
}

/// A `moov` without samples is some 700 bytes and the parameter sets.
const HEAD_BYTES_MAX: u64 = 1 << 20;

/// Reads an unfinished recording up to its last whole fragment. `None` if it isn't one of ours, is
/// finished, or was cut before its first fragment.
pub fn survey<F: ReadAt + ?Sized>(file: &F) -> io::Result<Option<Survey>> {
    let Some((track, fragments_offset)) = read_head(file)? else { return Ok(None) };
    let mut survey = Survey { track, index: Index::default(), fragments_offset, end: fragments_offset };
    let mut header = [0; FRAGMENT_HEADER_BYTES];
    while file.fill_at(&mut header, survey.end)? {
        let Some(fragment) = Fragment::parse(&header) else { break };
        let unit_offset = survey.end + FRAGMENT_HEADER_BYTES as u64;
        let in_order = if survey.index.is_empty() {
            fragment.time_90k == 0
        } else {
            fragment.time_90k > survey.index.last_time_90k()
        };
        let numbered =
            usize::try_from(fragment.sequence).is_ok_and(|number| number == survey.index.len() + 1);
        if !in_order || !numbered || !unit_is_whole(file, unit_offset, fragment.unit_bytes)? {
            break;
        }
        survey.index.push(&fragment);
        survey.end = unit_offset + u64::from(fragment.unit_bytes);
    }
    Ok((!survey.index.is_empty()).then_some(survey))
}

fn read_head<F: ReadAt + ?Sized>(file: &F) -> io::Result<Option<(Track, u64)>> {
    let moov_offset = SWITCH_OFFSET + SWITCH_BYTES as u64;
    let mut start = [0; 56];
    if !file.fill_at(&mut start, 0)? || form(&start) != Form::Unfinished {
        return Ok(None);
    }
    let moov_bytes = crate::recorder::format::fmp4::u32_at(&start, 48).map_or(0, u64::from);
    if !(8..HEAD_BYTES_MAX).contains(&moov_bytes) {
        return Ok(None);
    }
    let mut moov = vec![0; usize::try_from(moov_bytes).unwrap_or(0)];
    if !file.fill_at(&mut moov, moov_offset)? {
        return Ok(None);
    }
    let Some(track) = parse_track(&moov) else { return Ok(None) };
    // Only what we wrote ourselves is taken for ours.
    let same = head(&track).get(SWITCH_BYTES + 32..) == Some(moov.as_slice());
    Ok(same.then_some((track, moov_offset + moov_bytes)))
}

/// Whether the unit is all there: its length prefixes must lead exactly to its end. After a power
/// loss a file may hold zeros where data never reached the disk; a length of 0 ends the unit.
fn unit_is_whole<F: ReadAt + ?Sized>(file: &F, offset: u64, bytes: u32) -> io::Result<bool> {
    let end = offset + u64::from(bytes);
    if end > file.total_bytes()? {
        return Ok(false);
    }
    let mut at = offset;
    let mut prefix = [0; 4];
    while at < end {
        if end - at < 5 || !file.fill_at(&mut prefix, at)? {
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
