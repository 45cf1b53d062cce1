//! Reads access units from a file with an H.264 byte stream. The file is split into units once and then played in a
//! loop. The simulator changes only the stamps: it removes the old ones and inserts a new one before the first slice.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::bits::START_CODE_LONG;
use super::unit::Unit;
use crate::base::foreign_file;
use crate::base::limits::SLOT_DATA_BYTES_MAX;
use crate::h264::nal::kind;
use crate::h264::{Assembler, Stamp};

/// Maximum size of a file in bytes, because the file is held in memory. This is a local bound.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 30;

/// Reasons why a file cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Opening or reading failed.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error that the kernel returned.
        source: io::Error,
    },
    /// The file is larger than `FILE_BYTES_MAX`.
    #[error(
        "{0} is larger than {FILE_BYTES_MAX} bytes: cut it to a shorter part, the simulator plays it in a loop"
    )]
    TooLarge(PathBuf),
    /// The file has no IDR with parameter sets.
    #[error(
        "{0} has no IDR picture with parameter sets. It must be H.264 in byte-stream format (Annex B); convert with \
         ffmpeg -i x.mp4 -c copy -bsf:v h264_mp4toannexb x.h264"
    )]
    NoStart(PathBuf),
    /// One access unit of the file does not fit into a slot.
    #[error("access unit {index} of {path} has {bytes} bytes; a slot holds {SLOT_DATA_BYTES_MAX}")]
    UnitTooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Index of the unit, from 0.
        index: usize,
        /// Size of the unit in bytes, including the stamp.
        bytes: usize,
    },
}

/// One access unit of the file.
struct FileUnit {
    /// Range of indices into `FileSource::nals`.
    nals: Range<usize>,
    is_idr: bool,
    /// Size of the unit in bytes, including the stamp.
    bytes: usize,
    width: u32,
    height: u32,
}

/// The access units of a file, starting with its first IDR.
pub(super) struct FileSource {
    bytes: Vec<u8>,
    nals: Vec<Range<usize>>,
    units: Vec<FileUnit>,
    next: usize,
}

impl FileSource {
    pub(super) fn open(path: &Path) -> Result<FileSource, FileError> {
        let failed = |source| FileError::Read { path: path.to_owned(), source };
        let read = foreign_file::open_configured(path)
            .and_then(|file| foreign_file::read_bounded(file, FILE_BYTES_MAX));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(FileError::TooLarge(path.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        };
        let source = FileSource::of(bytes);
        if source.units.is_empty() {
            return Err(FileError::NoStart(path.to_owned()));
        }
        match (0..).zip(&source.units).find(|(_, unit)| unit.bytes > SLOT_DATA_BYTES_MAX) {
            Some((index, unit)) => {
                Err(FileError::UnitTooLarge { path: path.to_owned(), index, bytes: unit.bytes })
            }
            None => Ok(source),
        }
    }

    fn of(bytes: Vec<u8>) -> FileSource {
        let nals = nal_units(&bytes);
        let mut source = FileSource { bytes, nals, units: Vec::new(), next: 0 };
        let mut assembler = Assembler::default();
        let mut unit = Unit::default();
        for nals in access_units(&source.bytes, &source.nals) {
            unit.begin(false, 0, 0);
            source.copy(&nals, &mut unit);
            let is_idr = assembler.assemble(unit.bytes()).is_ok_and(|assembled| assembled.is_idr());
            let Some(info) = assembler.parameter_sets().stream_info() else { continue };
            if is_idr || !source.units.is_empty() {
                let (bytes, width, height) = (unit.bytes.len(), info.width, info.height);
                source.units.push(FileUnit { nals, is_idr, bytes, width, height });
            }
        }
        source
    }

    /// Restarts from the beginning of the file.
    pub(super) fn restart(&mut self) {
        self.next = 0;
    }

    /// Returns the size of the first picture in pixels.
    #[cfg(test)]
    fn size(&self) -> (u32, u32) {
        self.units.first().map_or((0, 0), |unit| (unit.width, unit.height))
    }

    /// Copies the next unit of the file and writes a stamp with `unit_number` into it. Starts again at the end of the
    /// file.
    pub(super) fn read(&mut self, unit_number: u64, unit: &mut Unit) {
        let Some(file_unit) = self.units.get(self.next) else { return };
        self.next = (self.next + 1) % self.units.len();
        unit.begin(file_unit.is_idr, file_unit.width, file_unit.height);
        self.copy(&file_unit.nals, unit);
        unit.seal(unit_number);
    }

    /// Appends the NAL units `nals` to `unit`, and an empty stamp before the first slice.
    fn copy(&self, nals: &Range<usize>, unit: &mut Unit) {
        let mut stamped = false;
        for nal in self.nals.get(nals.clone()).unwrap_or_default() {
            let bytes = self.bytes.get(nal.clone()).unwrap_or_default();
            let is_slice = is_slice(bytes);
            if is_slice && !stamped {
                unit.place_stamp();
                stamped = true;
            }
            unit.bytes.extend_from_slice(START_CODE_LONG);
            let start = unit.bytes.len();
            unit.bytes.extend_from_slice(bytes);
            if is_slice {
                unit.slices.push(start..unit.bytes.len());
            }
        }
    }
}

fn kind_of(nal: &[u8]) -> u8 {
    nal.first().map_or(0, |header| header & 0x1F)
}

fn is_slice(nal: &[u8]) -> bool {
    (kind::SLICE..=kind::IDR_SLICE).contains(&kind_of(nal))
}

/// Returns true if a unit in byte-stream format has a slice of an IDR.
pub(super) fn is_idr(unit: &[u8]) -> bool {
    all_nal_units(unit)
        .into_iter()
        .any(|nal| unit.get(nal).is_some_and(|nal| kind_of(nal) == kind::IDR_SLICE))
}

/// Splits a byte stream into its access units without changing a byte. Each range begins with the zero byte and the
/// start code of its first NAL unit. Trailing zero bytes belong to the NAL unit before them (H.264 B.1), and NAL units
/// after the last picture to the last access unit. A stream without a picture has no access unit.
pub(super) fn raw_access_units(bytes: &[u8]) -> Vec<Range<usize>> {
    let nals = all_nal_units(bytes);
    let code_of = |nal: &Range<usize>| {
        let code = nal.start.saturating_sub(3);
        let has_zero_byte = code.checked_sub(1).and_then(|at| bytes.get(at)) == Some(&0);
        code - usize::from(has_zero_byte)
    };
    let starts: Vec<usize> =
        access_units(bytes, &nals).into_iter().filter_map(|unit| nals.get(unit.start).map(code_of)).collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// Returns the ranges of the NAL units of a byte stream, without trailing zeros. Empty NAL units and stamps are left
/// out.
fn nal_units(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut nals = all_nal_units(bytes);
    nals.retain(|nal| bytes.get(nal.clone()).is_some_and(|nal| Stamp::parse(nal).is_none()));
    nals
}

/// Returns the same ranges, with those of the stamps.
fn all_nal_units(bytes: &[u8]) -> Vec<Range<usize>> {
    let starts: Vec<usize> = memchr::memmem::find_iter(bytes, &[0, 0, 1]).map(|at| at + 3).collect();
    let ends = starts.iter().skip(1).map(|start| start - 3).chain([bytes.len()]);
    let trim = |(start, end): (usize, usize)| {
        let body = bytes.get(start..end)?;
        let last = body.iter().rposition(|byte| *byte != 0)?;
        Some(start..start + last + 1)
    };
    starts.iter().copied().zip(ends).filter_map(trim).collect()
}

/// Groups NAL units into access units (H.264 7.4.1.2.3). The stream must not use arbitrary slice order. A picture
/// begins with the slice whose `first_mb_in_slice` is 0. Its access unit begins at the first SEI, parameter set,
/// delimiter or similar NAL unit after the previous picture, or else at that slice.
fn access_units(bytes: &[u8], nals: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut units = Vec::new();
    let (mut start, mut has_picture) = (0, false);
    for (index, range) in nals.iter().enumerate() {
        let nal = bytes.get(range.clone()).unwrap_or_default();
        let begins = match kind_of(nal) {
            kind::SLICE | kind::PARTITION_A | kind::IDR_SLICE => begins_picture(nal),
            kind::PREFIX => {
                let next = nals.get(index + 1).and_then(|next| bytes.get(next.clone()));
                next.is_some_and(|next| is_slice(next) && begins_picture(next))
            }
            kind::SEI | kind::SPS | kind::PPS | kind::AUD | kind::SUBSET_SPS | 16..=18 => true,
            _ => false,
        };
        if begins && has_picture {
            units.push(start..index);
            (start, has_picture) = (index, false);
        }
        has_picture |= is_slice(nal);
    }
    if has_picture {
        units.push(start..nals.len());
    }
    units
}

/// Returns true if the slice is the first of its picture. `first_mb_in_slice`, the first ue(v) of the slice header, is
/// then 0, whose code is a single one bit.
fn begins_picture(slice: &[u8]) -> bool {
    slice.get(1).is_some_and(|byte| byte & 0x80 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::{ParameterSetPolicy, TestCard, TestCardConfig};

    fn card(slices: u32, delimiters: bool) -> TestCard {
        let parameter_sets = ParameterSetPolicy::Every;
        let (width, height, fps, gop) = (320, 240, 30.0, 10);
        let bitrate_kbps = None;
        TestCard::new(TestCardConfig {
            width,
            height,
            fps,
            bitrate_kbps,
            gop,
            slices,
            parameter_sets,
            delimiters,
            square: false,
        })
        .unwrap()
    }

    /// Returns the bytes of all slices of a unit. The file source must not change them.
    fn slices(unit: &Unit) -> Vec<u8> {
        let nals = nal_units(unit.bytes());
        nals.iter()
            .map(|nal| &unit.bytes()[nal.clone()])
            .filter(|nal| is_slice(nal))
            .flatten()
            .copied()
            .collect()
    }

    #[test]
    fn a_recorded_stream_is_split_into_its_original_units() {
        for (slices_count, delimiters) in [(1, true), (1, false), (4, true), (4, false)] {
            let mut card = card(slices_count, delimiters);
            let (mut unit, mut stream, mut expected) = (Unit::default(), vec![0; 3], Vec::new());
            for number in 0..25 {
                card.encode(number, 0, &mut unit);
                stream.extend_from_slice(unit.bytes());
                stream.push(0); // trailing_zero_8bits
                expected.push((slices(&unit), unit.is_idr()));
            }
            let mut source = FileSource::of(stream);
            assert_eq!((source.units.len(), source.size()), (25, (320, 240)));
            for (index, number) in (100..160_u64).enumerate() {
                source.read(number, &mut unit);
                let (expected, is_idr) = &expected[index % 25];
                assert!(slices(&unit) == *expected && unit.is_idr() == *is_idr, "unit {number}");
                let stamps = memchr::memmem::find_iter(unit.bytes(), &crate::h264::STAMP_UUID).count();
                assert_eq!(stamps, 1, "only the new stamp remains");
                let stamp_at = unit.bytes().windows(16).position(|bytes| bytes == crate::h264::STAMP_UUID);
                let nal = &unit.bytes()[stamp_at.unwrap() - 3..][..Stamp::NAL_BYTES];
                assert_eq!(Stamp::parse(nal).map(|stamp| stamp.unit_number), Some(number));
            }
        }
    }

    #[test]
    fn a_file_starts_at_its_first_idr() {
        let mut card = card(1, true);
        let (mut unit, mut stream) = (Unit::default(), Vec::new());
        for number in 0..15 {
            card.encode(number, 0, &mut unit);
            if number >= 5 {
                stream.extend_from_slice(unit.bytes());
            }
        }
        let source = FileSource::of(stream);
        assert_eq!(source.units.len(), 5);
        assert!(source.units[0].is_idr);
    }

    #[test]
    fn files_that_are_not_h264_are_rejected() {
        for bytes in [vec![], vec![0; 1000], b"ftypisom".to_vec(), vec![0, 0, 1, 0x65, 0x88, 0x80]] {
            assert!(FileSource::of(bytes).units.is_empty());
        }
        let missing = FileSource::open(Path::new("/nonexistent.h264")).err().unwrap();
        assert!(missing.to_string().contains("/nonexistent.h264"), "{missing}");
    }
}
