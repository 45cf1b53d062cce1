//! Tests that our own parser and an independent parser read the written files back unchanged.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::io::Cursor;

use bytes::Bytes;
use proptest::prelude::*;
use shiguredo_mp4::boxes::SampleEntry;
use shiguredo_mp4::demux::{DemuxError, Fmp4FileDemuxer, Input, Mp4FileDemuxer, RequiredInput, Sample};

use super::fmp4::{self, Form};
use super::moov::{self, Notes};
use super::recovery::{WholeFragments, whole_fragments};
use super::{
    FRAGMENT_HEADER_BYTES, FRAGMENT_HEADER_BYTES_MAX, Fragment, Index, TIMESCALE, Track, UnitKind,
    index_bytes_max,
};

#[derive(Clone, Debug)]
struct Unit {
    nal_units: Vec<Vec<u8>>,
    since_90k: u32,
    composition_90k: i32,
    kind: UnitKind,
}

fn unit() -> impl Strategy<Value = Unit> {
    let nal = prop::collection::vec(any::<u8>(), 1..50);
    let kind = prop_oneof![Just(UnitKind::Idr), Just(UnitKind::Reference), Just(UnitKind::Disposable)];
    let composition = prop_oneof![3 => Just(0), 1 => -1_000_000..1_000_000];
    (prop::collection::vec(nal, 1..5), 1u32..1_000_000, composition, kind).prop_map(
        |(nal_units, since_90k, composition_90k, kind)| Unit { nal_units, since_90k, composition_90k, kind },
    )
}

fn track() -> impl Strategy<Value = Track> {
    (1u16..8_000, 1u16..8_000, 0u64..1 << 33, prop::collection::vec(any::<u8>(), 1..40)).prop_map(
        |(width, height, started_at_s, pps)| Track {
            width,
            height,
            started_at_s,
            configuration: configuration(&pps),
        },
    )
}

/// Returns a decoder configuration record of the Baseline profile, with a fixed SPS and the given PPS.
fn configuration(pps: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 66, 0xc0, 30, 0xff, 0xe1, 0, 4, 0x67, 66, 0xc0, 30, 1, 0];
    out.push(u8::try_from(pps.len()).unwrap());
    out.extend_from_slice(pps);
    out
}

/// Returns an unfinished file with these units, its index, and the end offset of each fragment.
fn unfinished(track: &Track, units: &[Unit]) -> (Vec<u8>, Index, Vec<usize>) {
    let mut file = fmp4::file_header(track);
    let (mut index, mut ends, mut time_90k) = (Index::default(), Vec::new(), 0);
    for (number, unit) in units.iter().enumerate() {
        time_90k += if number == 0 { 0 } else { u64::from(unit.since_90k) };
        let fragment = Fragment {
            sequence: u32::try_from(number).unwrap() + 1,
            time_90k,
            composition_90k: unit.composition_90k,
            duration_90k: 3_000,
            unit_bytes: unit.nal_units.iter().map(|nal| nal.len() as u32 + 4).sum(),
            kind: unit.kind,
        };
        let nal_units: Vec<Bytes> = unit.nal_units.iter().cloned().map(Bytes::from).collect();
        let mut parts = Vec::new();
        fmp4::gather(&fragment, &nal_units, &mut parts);
        let before = file.len();
        parts.iter().for_each(|part| file.extend_from_slice(part));
        assert_eq!(file.len() - before, fragment.header_bytes() + fragment.unit_bytes as usize);
        index.push(&fragment);
        ends.push(file.len());
    }
    (file, index, ends)
}

fn header(fragment: &Fragment) -> Vec<u8> {
    let mut header = Vec::new();
    fragment.write_header(&mut header);
    header
}

fn finish(mut file: Vec<u8>, track: &Track, index: &Index, notes: Notes) -> Vec<u8> {
    let end = file.len() as u64;
    let tail = moov::finished(track, index, fmp4::file_header(track).len() as u64, notes);
    assert!(tail.len() as u64 <= index_bytes_max(index.len()), "{} for {}", tail.len(), index.len());
    file.extend_from_slice(&tail);
    file[32..48].copy_from_slice(&fmp4::mdat_header(end));
    file
}

/// One access unit, as a parser reads it from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    time_90k: u64,
    composition_90k: i32,
    duration_90k: u32,
    idr: bool,
    bytes: Vec<u8>,
}

fn expected(units: &[Unit], index: &Index) -> Vec<Read> {
    let mut time_90k = 0;
    units
        .iter()
        .zip(index.durations_90k())
        .enumerate()
        .map(|(number, (unit, duration_90k))| {
            time_90k += if number == 0 { 0 } else { u64::from(unit.since_90k) };
            let mut bytes = Vec::new();
            for nal in &unit.nal_units {
                bytes.extend_from_slice(&u32::try_from(nal.len()).unwrap().to_be_bytes());
                bytes.extend_from_slice(nal);
            }
            Read {
                time_90k,
                composition_90k: unit.composition_90k,
                duration_90k,
                idr: unit.kind == UnitKind::Idr,
                bytes,
            }
        })
        .collect()
}

fn read(file: &[u8], sample: &Sample<'_>) -> Read {
    let start = usize::try_from(sample.data_offset).unwrap();
    Read {
        time_90k: sample.timestamp,
        composition_90k: sample.composition_time_offset.map_or(0, |offset| offset as i32),
        duration_90k: sample.duration,
        idr: sample.keyframe,
        bytes: file[start..start + sample.data_size].to_vec(),
    }
}

fn check_entry(sample: &Sample<'_>, track: &Track) {
    if let Some(entry) = sample.sample_entry {
        let SampleEntry::Avc1(avc1) = entry else { panic!("{entry:?}") };
        assert_eq!((avc1.visual.width, avc1.visual.height), (track.width, track.height));
        let sets = [&avc1.avcc_box.sps_list, &avc1.avcc_box.pps_list].map(|sets| sets[0].clone());
        assert_eq!(sets[0], [0x67, 66, 0xc0, 30]);
        assert!(track.configuration.ends_with(&sets[1]));
    }
}

fn input(file: &[u8], required: RequiredInput) -> Input<'_> {
    let start = usize::try_from(required.position).unwrap().min(file.len());
    let end = required.size.map_or(file.len(), |size| (start + size).min(file.len()));
    required.to_input(&file[start..end])
}

fn read_fragmented(file: &[u8], track: &Track) -> Vec<Read> {
    let mut demuxer = Fmp4FileDemuxer::new();
    let mut out = Vec::new();
    loop {
        match demuxer.next_sample() {
            Ok(Some(sample)) => {
                check_entry(&sample, track);
                out.push(read(file, &sample));
            }
            Ok(None) => return out,
            Err(DemuxError::InputRequired(required)) => demuxer.handle_input(input(file, required)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn read_finished(file: &[u8], track: &Track) -> Vec<Read> {
    let mut demuxer = Mp4FileDemuxer::new();
    let mut out = Vec::new();
    while let Some(required) = demuxer.required_input() {
        demuxer.handle_input(input(file, required));
    }
    let info = demuxer.tracks().unwrap()[0].clone();
    assert_eq!(info.timescale.get(), TIMESCALE);
    while let Some(sample) = demuxer.next_sample().unwrap() {
        check_entry(&sample, track);
        out.push(read(file, &sample));
    }
    assert_eq!(info.duration, out.iter().map(|read| u64::from(read.duration_90k)).sum::<u64>());
    out
}

proptest! {
    #![proptest_config(support::properties())]

    #[test]
    fn both_forms_are_read_back_unchanged(track in track(), units in prop::collection::vec(unit(), 1..20)) {
        let (file, index, ends) = unfinished(&track, &units);
        let expected = expected(&units, &index);
        let whole = whole_fragments(Cursor::new(&file)).unwrap();
        let end = *ends.last().unwrap() as u64;
        let head = fmp4::file_header(&track).len() as u64;
        let expected_whole = WholeFragments { track: track.clone(), index: index.clone(), fragments_offset: head, end };
        prop_assert_eq!(whole, Some(expected_whole));
        let fragmented = read_fragmented(&file, &track);
        prop_assert_eq!(fragmented.len(), expected.len());
        for (read, expected) in fragmented.iter().zip(&expected) {
            // Durations are not compared: a fragment is written before the next unit is known, so it states an
            // estimate.
            prop_assert_eq!(Read { duration_90k: expected.duration_90k, ..read.clone() }, expected.clone());
        }
        prop_assert_eq!(fmp4::form(&file), Form::Unfinished);
        let notes = Notes { recovered: units.len() % 2 == 0, dropped_units: 7 };
        let finished = finish(file, &track, &index, notes);
        prop_assert_eq!(fmp4::form(&finished), Form::Finished { index_offset: end });
        prop_assert_eq!(read_finished(&finished, &track), expected);
        let summary = moov::summary(&finished[usize::try_from(end).unwrap()..]).unwrap();
        prop_assert_eq!(summary.notes, Some(notes));
        prop_assert_eq!(summary.started_at_s, track.started_at_s);
        prop_assert_eq!(summary.duration_90k, index.duration_90k());
        prop_assert_eq!(whole_fragments(Cursor::new(&finished)).unwrap(), None);
    }

    #[test]
    fn each_part_of_a_growing_file_reads_as_a_finished_file(
        track in track(),
        units in prop::collection::vec(unit(), 1..12),
    ) {
        let (file, index, ends) = unfinished(&track, &units);
        let expected = expected(&units, &index);
        let head = fmp4::file_header(&track).len() as u64;
        for (count, end) in (1..).zip(&ends) {
            let part = index.up_to(*end as u64, head).unwrap();
            let finished = finish(file[..*end].to_vec(), &track, &part, Notes::default());
            prop_assert_eq!(&read_finished(&finished, &track), &expected[..count]);
        }
        let last = *ends.last().unwrap() as u64;
        for end in [0, head, head + 1, last - 1, last + 1, u64::MAX] {
            prop_assert_eq!(index.up_to(end, head), None, "no unit ends at {}", end);
        }
    }

    #[test]
    fn truncated_file_keeps_exactly_the_whole_units(
        track in track(),
        units in prop::collection::vec(unit(), 1..8),
        cut in 0.0..=1.0f64,
        garbage in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let (file, _, ends) = unfinished(&track, &units);
        let cut = (cut * file.len() as f64).round() as usize;
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let mut broken = file[..cut].to_vec();
        let recovered = whole_fragments(Cursor::new(&broken)).unwrap();
        prop_assert_eq!(recovered.as_ref().map_or(0, |found| found.index.len()), whole);
        // A crash may leave zeros or a part of a fragment after the last whole unit. They must not change the result.
        if ends.contains(&cut) {
            for tail in [&garbage[..], &[0; 300]] {
                broken.truncate(cut);
                broken.extend_from_slice(tail);
                prop_assert_eq!(&whole_fragments(Cursor::new(&broken)).unwrap(), &recovered);
            }
        }
        if let Some(found) = recovered {
            broken.truncate(usize::try_from(found.end).unwrap());
            let repaired = finish(broken, &found.track, &found.index, Notes { recovered: true, dropped_units: 0 });
            prop_assert_eq!(read_finished(&repaired, &track).len(), whole);
        }
    }

    #[test]
    fn hostile_files_are_never_recovered(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..900, flip: u8) {
        prop_assert_eq!(whole_fragments(Cursor::new(&bytes)).unwrap(), None);
        let _any = moov::summary(&bytes);
        let _any = moov::parse_track(&bytes);
        let track = Track { width: 16, height: 16, configuration: configuration(&[1]), started_at_s: 0 };
        let units = vec![Unit { nal_units: vec![vec![0x65; 20]], since_90k: 1, composition_90k: 0, kind: UnitKind::Idr }; 2];
        let (mut file, _, _) = unfinished(&track, &units);
        let at = at % file.len();
        file[at] ^= flip;
        let _any = whole_fragments(Cursor::new(&file)).unwrap();
    }

    #[test]
    fn fragment_header_round_trips(
        sequence: u32, time_90k: u64, any_offset: i32, duration_90k: u32, unit_bytes in 0..u32::MAX - 8,
    ) {
        for kind in [UnitKind::Idr, UnitKind::Reference, UnitKind::Disposable] {
            for composition_90k in [0, any_offset] {
                let fragment = Fragment { sequence, time_90k, composition_90k, duration_90k, unit_bytes, kind };
                prop_assert_eq!(Fragment::parse(&header(&fragment)), Some(fragment));
                prop_assert_eq!(header(&fragment).len(), fragment.header_bytes());
            }
        }
    }

    #[test]
    fn changed_byte_of_a_fragment_header_is_detected(
        at in 0..FRAGMENT_HEADER_BYTES_MAX, flip in 1u8.., composition_90k in prop::sample::select(vec![0, -3_000]),
    ) {
        let (duration_90k, unit_bytes, kind) = (3_000, 77, UnitKind::Idr);
        let fragment = Fragment { sequence: 3, time_90k: 9_000, composition_90k, duration_90k, unit_bytes, kind };
        let mut header = header(&fragment);
        let at = at % header.len();
        header[at] ^= flip;
        prop_assert_ne!(Fragment::parse(&header), Some(fragment));
    }
}

#[test]
fn zeros_after_a_power_loss_end_the_recording() {
    let track = Track { width: 16, height: 16, configuration: configuration(&[1]), started_at_s: 0 };
    let units = vec![
        Unit {
            nal_units: vec![vec![0x65; 200]],
            since_90k: 3_000,
            composition_90k: 0,
            kind: UnitKind::Idr
        };
        3
    ];
    let (mut file, _, ends) = unfinished(&track, &units);
    file[ends[1] + FRAGMENT_HEADER_BYTES..].fill(0);
    assert_eq!(whole_fragments(Cursor::new(&file)).unwrap().unwrap().end, ends[1] as u64);
}
