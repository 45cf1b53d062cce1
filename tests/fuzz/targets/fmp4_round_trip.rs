//! Writes an MP4 file with units and times from the fuzzer. Its contents must be read back
//! unchanged, both before and after it is finished with an index.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use streaming_server::recorder::format::fmp4::{self, Form};
use streaming_server::recorder::format::moov::{self, Notes};
use streaming_server::recorder::format::recovery::whole_fragments;
use streaming_server::recorder::format::{Fragment, Index, Track, UnitKind, index_bytes_max};

fuzz_target!(|input: (u16, u16, u32, Vec<u8>, Vec<(u32, u8, Vec<Vec<u8>>)>)| {
    let (width, height, started_at_s, configuration, units) = input;
    let track = Track { width, height, configuration, started_at_s: u64::from(started_at_s) };
    let mut file = fmp4::file_header(&track);
    let fragments_offset = file.len() as u64;
    let (mut index, mut time_90k) = (Index::default(), 0);
    for (since_90k, kind, nal_units) in units {
        let nal_units: Vec<bytes::Bytes> =
            nal_units.into_iter().filter(|nal| !nal.is_empty()).map(bytes::Bytes::from).collect();
        if nal_units.is_empty() {
            continue;
        }
        time_90k += if index.is_empty() { 0 } else { u64::from(since_90k.max(1)) };
        let fragment = Fragment {
            sequence: index.len() as u32 + 1,
            time_90k,
            composition_90k: if kind > 200 { i32::from(kind) * 1_000 } else { 0 },
            duration_90k: since_90k,
            unit_bytes: nal_units.iter().map(|nal| nal.len() as u32 + 4).sum(),
            kind: [UnitKind::Idr, UnitKind::Reference, UnitKind::Disposable][usize::from(kind % 3)],
        };
        let mut parts = Vec::new();
        fmp4::gather(&fragment, &nal_units, &mut parts);
        assert_eq!(parts.concat().len(), fragment.header_bytes() + fragment.unit_bytes as usize);
        file.extend(parts.concat());
        index.push(&fragment);
    }
    let end = file.len() as u64;
    let found = whole_fragments(Cursor::new(&file)).unwrap();
    assert_eq!(found.is_some(), !index.is_empty());
    let Some(found) = found else { return };
    assert_eq!(
        (&found.track, &found.index, found.fragments_offset, found.end),
        (&track, &index, fragments_offset, end)
    );
    let notes = Notes { recovered: width % 2 == 0, dropped_units: u64::from(height) };
    let tail = moov::finished(&track, &index, fragments_offset, notes);
    let room = index_bytes_max(index.len()) + track.configuration.len() as u64;
    assert!(tail.len() as u64 <= room);
    file.extend(&tail);
    file[32..48].copy_from_slice(&fmp4::mdat_header(end));
    assert_eq!(fmp4::form(&file), Form::Finished { index_offset: end });
    let summary = moov::summary(&tail).unwrap();
    assert_eq!((summary.notes, summary.duration_90k), (Some(notes), index.duration_90k()));
});
