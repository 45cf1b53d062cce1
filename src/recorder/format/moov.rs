//! PURE: writes and reads the `moov` box of a recording, for the unfinished and the finished form of the file.
//! No MP4 library is used, because the boxes are few. The tests read the written files with an independent library.

use super::boxes::{boxed, full_box, table, u32_at, u32s, u64_at};
use super::track::{Index, TIMESCALE, Track};

/// Seconds from 1904, the epoch of MP4 times, to 1970.
const EPOCH_1904_S: u64 = 2_082_844_800;

/// UUID of the `uuid` box that contains the [`Notes`].
const NOTES_UUID: [u8; 16] = *b"ss-recording-1.0";

const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

/// Facts about a finished recording for which MP4 has no field.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// True if the file was repaired after a crash.
    pub recovered: bool,
    /// Access units that the camera published but the recording lacks, because the disk was slow, the camera overwrote
    /// a slot, or the data was not valid.
    pub dropped_units: u64,
}

/// The fields of a `moov` box that the list of recordings needs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Capture time of the first unit, in seconds since 1970.
    pub started_at_s: u64,
    /// Duration in 1/90000 s. Zero in an unfinished file.
    pub duration_90k: u64,
    /// Notes of a finished recording. `None` in an unfinished file.
    pub notes: Option<Notes>,
}

/// Number of bytes at the start of a `moov` box that [`summary`] reads.
pub const SUMMARY_BYTES: usize = 8 + 120 + 40;

/// Offset of the `avc1` box in the `moov` box of an unfinished file.
const AVC1_OFFSET: usize = 418;

/// Appends the `moov` box of an unfinished file. It lists no samples, and contains an `mvex` box, which announces the
/// fragments that follow.
pub(super) fn write_fragmented(track: &Track, out: &mut Vec<u8>) {
    boxed(out, b"moov", |out| {
        mvhd(track, 0, out);
        trak(track, &Index::default(), 0, out);
        boxed(out, b"mvex", |out| full_box(out, b"trex", 0, |out| u32s(out, &[1, 1, 0, 0, 0])));
    });
}

/// Returns the `moov` box of a finished file. `fragments_offset` is the file offset of the first fragment.
#[must_use]
pub fn finished(track: &Track, index: &Index, fragments_offset: u64, notes: Notes) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024 + 20 * index.len());
    boxed(&mut out, b"moov", |out| {
        mvhd(track, index.duration_90k(), out);
        boxed(out, b"uuid", |out| {
            out.extend_from_slice(&NOTES_UUID);
            u32s(out, &[u32::from(notes.recovered)]);
            out.extend_from_slice(&notes.dropped_units.to_be_bytes());
        });
        trak(track, index, fragments_offset, out);
    });
    out
}

/// Parses the start of a `moov` box. Returns `None` if `bytes` do not begin with a `moov` box of this recorder.
///
/// The caller should pass [`SUMMARY_BYTES`] bytes. With fewer, the notes may be missing.
#[must_use]
pub fn summary(bytes: &[u8]) -> Option<Summary> {
    if bytes.get(4..8)? != b"moov" || bytes.get(12..16)? != b"mvhd" || bytes.get(16)? != &1 {
        return None;
    }
    let notes = (bytes.get(132..136) == Some(b"uuid") && bytes.get(136..152) == Some(&NOTES_UUID))
        .then(|| Some(Notes { recovered: u32_at(bytes, 152)? != 0, dropped_units: u64_at(bytes, 156)? }))
        .flatten();
    let started_at_s = u64_at(bytes, 20)?.saturating_sub(EPOCH_1904_S);
    Some(Summary { started_at_s, duration_90k: u64_at(bytes, 40)?, notes })
}

/// Parses the track from a `moov` box that `write_fragmented` wrote. In such a box, `avc1` always has the same offset.
#[must_use]
pub fn parse_track(moov: &[u8]) -> Option<Track> {
    let started_at_s = summary(moov)?.started_at_s;
    let avc1 = moov.get(AVC1_OFFSET..)?;
    let avcc_bytes = usize::try_from(u32_at(avc1, 86)?).ok()?;
    let configuration = avc1.get(94..avcc_bytes.checked_add(86)?)?.to_vec();
    let width = u16::from_be_bytes(*avc1.get(32..)?.first_chunk()?);
    let height = u16::from_be_bytes(*avc1.get(34..)?.first_chunk()?);
    Some(Track { width, height, configuration, started_at_s })
}

fn mvhd(track: &Track, duration_90k: u64, out: &mut Vec<u8>) {
    full_box(out, b"mvhd", 0x0100_0000, |out| {
        times(track, out);
        u32s(out, &[TIMESCALE]);
        out.extend_from_slice(&duration_90k.to_be_bytes());
        u32s(out, &[0x1_0000, 0x0100_0000, 0, 0]);
        u32s(out, &MATRIX);
        u32s(out, &[0; 6]);
        u32s(out, &[2]); // next_track_ID
    });
}

/// Appends the creation time and the modification time, which are both the capture time of the first unit.
fn times(track: &Track, out: &mut Vec<u8>) {
    let time = track.started_at_s.saturating_add(EPOCH_1904_S).to_be_bytes();
    out.extend_from_slice(&time);
    out.extend_from_slice(&time);
}

fn trak(track: &Track, index: &Index, fragments_offset: u64, out: &mut Vec<u8>) {
    let duration_90k = index.duration_90k();
    boxed(out, b"trak", |out| {
        full_box(out, b"tkhd", 0x0100_0003, |out| {
            times(track, out);
            u32s(out, &[1, 0]);
            out.extend_from_slice(&duration_90k.to_be_bytes());
            u32s(out, &[0; 4]);
            u32s(out, &MATRIX);
            u32s(out, &[u32::from(track.width) << 16, u32::from(track.height) << 16]);
        });
        boxed(out, b"mdia", |out| {
            full_box(out, b"mdhd", 0x0100_0000, |out| {
                times(track, out);
                u32s(out, &[TIMESCALE]);
                out.extend_from_slice(&duration_90k.to_be_bytes());
                u32s(out, &[0x55c4_0000]); // language code "und" (undetermined)
            });
            full_box(out, b"hdlr", 0, |out| {
                out.extend_from_slice(b"\0\0\0\0vide\0\0\0\0\0\0\0\0\0\0\0\0video\0");
            });
            boxed(out, b"minf", |out| {
                full_box(out, b"vmhd", 1, |out| u32s(out, &[0, 0]));
                boxed(out, b"dinf", |out| {
                    full_box(out, b"dref", 0, |out| {
                        u32s(out, &[1]);
                        full_box(out, b"url ", 1, |_| {});
                    });
                });
                boxed(out, b"stbl", |out| {
                    sample_description(track, out);
                    sample_tables(index, fragments_offset, out);
                });
            });
        });
    });
}

fn sample_description(track: &Track, out: &mut Vec<u8>) {
    full_box(out, b"stsd", 0, |out| {
        u32s(out, &[1]);
        boxed(out, b"avc1", |out| {
            out.extend_from_slice(b"\0\0\0\0\0\0\0\x01"); // 6 reserved bytes, then data reference 1
            u32s(out, &[0; 4]);
            out.extend_from_slice(&track.width.to_be_bytes());
            out.extend_from_slice(&track.height.to_be_bytes());
            u32s(out, &[0x48_0000, 0x48_0000, 0]); // 72 dpi in both directions
            out.extend_from_slice(&[0, 1]); // one picture (frame_count) per sample
            out.extend_from_slice(&[0; 32]); // compressor name
            out.extend_from_slice(&[0, 0x18, 0xff, 0xff]); // 24 bits, no colour table
            boxed(out, b"avcC", |out| out.extend_from_slice(&track.configuration));
        });
    });
}

/// Appends the tables stts (durations), ctts (presentation less decoding time, if they differ), stss (IDRs), sgpd and
/// sbgp (recovery points, if there are any), stsc (chunks), stsz (sizes) and stco (offsets).
///
/// Each unit is a chunk of its own, because fragment headers lie between the units. If the index is empty, stss is
/// omitted: an empty stss would state that no unit of the file is an IDR, although the fragments contain IDRs.
fn sample_tables(index: &Index, fragments_offset: u64, out: &mut Vec<u8>) {
    let mut runs: Vec<[u32; 2]> = Vec::with_capacity(index.len());
    for duration in index.durations_90k() {
        match runs.last_mut() {
            Some([run, same]) if *same == duration => *run += 1,
            _ => runs.push([1, duration]),
        }
    }
    table(out, b"stts", &runs);
    composition_times(index, out);
    if !index.is_empty() {
        let idrs: Vec<[u32; 1]> =
            (1..).zip(index.units()).filter(|(_, unit)| unit.is_idr).map(|(number, _)| [number]).collect();
        table(out, b"stss", &idrs);
        random_access_groups(index, out);
    }
    let one_unit_per_chunk: &[[u32; 3]] = if index.is_empty() { &[] } else { &[[1, 1, 1]] };
    table(out, b"stsc", one_unit_per_chunk);
    full_box(out, b"stsz", 0, |out| {
        u32s(out, &[0, u32::try_from(index.len()).unwrap_or(u32::MAX)]);
        index.units().for_each(|unit| u32s(out, &[unit.bytes]));
    });
    let mut next = fragments_offset;
    let offsets = index.units().map(|unit| {
        let offset = next + unit.header_bytes as u64;
        next = offset + u64::from(unit.bytes);
        Some([u32::try_from(offset).ok()?])
    });
    // Every offset fits in 32 bits, because a file has at most RECORDING_BYTES_MAX bytes, which is less than 4 GiB.
    let offsets: Option<Vec<[u32; 1]>> = offsets.collect();
    table(out, b"stco", &offsets.unwrap_or_default());
}

/// Appends the table ctts. Version 1 has signed offsets: a B-frame is decoded later than the picture that is shown
/// after it.
fn composition_times(index: &Index, out: &mut Vec<u8>) {
    if index.compositions_90k().all(|composition| composition == 0) {
        return;
    }
    let mut runs: Vec<[u32; 2]> = Vec::with_capacity(index.len());
    for composition in index.compositions_90k().map(i32::cast_unsigned) {
        match runs.last_mut() {
            Some([run, same]) if *same == composition => *run += 1,
            _ => runs.push([1, composition]),
        }
    }
    full_box(out, b"ctts", 0x0100_0000, |out| {
        u32s(out, &[u32::try_from(runs.len()).unwrap_or(u32::MAX)]);
        u32s(out, runs.as_flattened());
    });
}

/// Appends the sample groups of the units with which decoding can start although they are not IDRs, which therefore
/// stss must not list: `rap ` if the pictures are correct at once (ISO/IEC 14496-12, 10.4), and `roll` if they are
/// correct after some pictures (10.1).
fn random_access_groups(index: &Index, out: &mut Vec<u8>) {
    let points = index.recovery_points();
    let at_once: Vec<(u32, u16)> = points.iter().copied().filter(|(_, frames)| *frames == 0).collect();
    let gradual: Vec<(u32, u16)> = points.iter().copied().filter(|(_, frames)| *frames > 0).collect();
    sample_group(index.len(), *b"rap ", &at_once, 1, out);
    sample_group(index.len(), *b"roll", &gradual, 2, out);
}

/// Appends the boxes sgpd and sbgp of one kind of sample group. `members` are the numbers of the units, from 1, each with
/// the value that describes it, which has `value_bytes` bytes.
fn sample_group(units: usize, kind: [u8; 4], members: &[(u32, u16)], value_bytes: u32, out: &mut Vec<u8>) {
    if members.is_empty() {
        return;
    }
    let mut values: Vec<u16> = members.iter().map(|(_, value)| *value).collect();
    values.sort_unstable();
    values.dedup();
    full_box(out, b"sgpd", 0x0100_0000, |out| {
        out.extend_from_slice(&kind);
        u32s(out, &[value_bytes, u32::try_from(values.len()).unwrap_or(u32::MAX)]);
        for value in &values {
            let bytes = (*value).min(i16::MAX.unsigned_abs()).to_be_bytes();
            out.extend_from_slice(if value_bytes == 1 { &bytes[1..] } else { &bytes });
        }
    });
    let mut rows: Vec<[u32; 2]> = Vec::with_capacity(2 * members.len() + 1);
    let mut next = 1;
    for (number, value) in members {
        let description = values.partition_point(|other| other < value) + 1;
        if *number > next {
            rows.push([number - next, 0]);
        }
        rows.push([1, u32::try_from(description).unwrap_or(0)]);
        next = number + 1;
    }
    let rest = u32::try_from(units).unwrap_or(u32::MAX).saturating_add(1).saturating_sub(next);
    if rest > 0 {
        rows.push([rest, 0]);
    }
    full_box(out, b"sbgp", 0, |out| {
        out.extend_from_slice(&kind);
        u32s(out, &[u32::try_from(rows.len()).unwrap_or(u32::MAX)]);
        u32s(out, rows.as_flattened());
    });
}
