//! Streams of real encoders, played through the real server to a viewer, an MP4 and a byte stream. The result is compared
//! picture by picture with ffmpeg's decode of the source. `tests/streams/make` makes the streams.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

mod rig;
use rig::{Source, access_units, assert_arrives, kind, play, stream, unit_line};

/// Plays a stream of the corpus, one access unit per slot.
fn plays_unchanged(name: &str, layout: &str) {
    assert_arrives(&format!("stream {}", stream(name).display()), name, layout);
}

#[test]
fn b_frames_are_shown_in_order() {
    plays_unchanged("b-frames", "lease");
}

#[test]
fn b_frames_that_are_references_are_shown_in_order() {
    plays_unchanged("b-pyramid", "v3");
}

#[test]
fn b_frames_without_vui_are_shown_in_order() {
    plays_unchanged("b-frames-no-vui", "lease");
}

#[test]
fn open_gop() {
    plays_unchanged("open-gop", "lease");
}

#[test]
fn intra_refresh() {
    plays_unchanged("intra-refresh", "lease");
}

#[test]
fn gop_longer_than_the_ring() {
    plays_unchanged("long-gop", "v1");
}

#[test]
fn every_picture_is_an_idr() {
    plays_unchanged("all-idr", "v2");
}

#[test]
fn ends_of_sequence_and_of_stream() {
    plays_unchanged("end-of-sequence", "lease");
}

#[test]
fn filler_of_a_constant_bit_rate() {
    plays_unchanged("cbr-filler", "lease");
}

#[test]
fn zero_words_at_the_end_of_slices() {
    plays_unchanged("cabac-zero-words", "lease");
}

#[test]
fn zero_bytes_between_nal_units() {
    plays_unchanged("trailing-zeros", "v0");
}

#[test]
fn start_codes_of_three_bytes() {
    plays_unchanged("short-start-codes", "lease");
}

#[test]
fn access_unit_delimiters() {
    plays_unchanged("delimiters", "v3");
}

#[test]
fn slices_without_delimiters() {
    plays_unchanged("no-delimiters", "lease");
}

#[test]
fn seventy_five_slices_per_picture() {
    plays_unchanged("many-slices", "lease");
}

#[test]
fn prefix_nal_units() {
    plays_unchanged("prefix-units", "lease");
}

#[test]
fn parameter_sets_once() {
    plays_unchanged("sets-once", "v1");
}

#[test]
fn other_ids_of_parameter_sets() {
    plays_unchanged("other-ids", "lease");
}

#[test]
fn ids_of_parameter_sets_change() {
    plays_unchanged("ids-change", "lease");
}

#[test]
fn no_vui() {
    plays_unchanged("no-vui", "lease");
}

#[test]
fn full_vui() {
    plays_unchanged("vui", "lease");
}

#[test]
fn scaling_lists() {
    plays_unchanged("scaling-lists", "lease");
}

#[test]
fn resolution_changes_in_the_middle() {
    plays_unchanged("resolution-change", "v3");
}

#[test]
fn cropped_picture() {
    plays_unchanged("cropped", "lease");
}

#[test]
fn interlaced_frames() {
    plays_unchanged("interlaced", "lease");
}

#[test]
fn fields_in_slots_of_their_own() {
    plays_unchanged("field-pairs", "lease");
}

#[test]
fn two_fields_in_one_slot() {
    let source = Source::new(&stream("field-pairs"));
    let fields = access_units(&source.bytes);
    let frames: Vec<Vec<&[u8]>> = fields.chunks(2).map(|pair| pair.concat()).collect();
    let script: Vec<String> = frames.iter().map(|frame| unit_line(frame)).collect();
    let played = play(&script.join("\n"), "lease", frames.len());
    played.assert_nothing_lost();
    played.assert_units_are(&frames);
    played.assert_byte_stream_is(&source);
    played.assert_mp4_is(&source);
}

#[test]
fn baseline_profile() {
    plays_unchanged("baseline", "v2");
}

#[test]
fn gray_picture() {
    plays_unchanged("gray", "lease");
}

/// NAL units that are no picture and no parameter set: SEI (x264's kind and an unknown one), an access unit delimiter,
/// filler data, ends of a sequence, and kinds that H.264 reserves or leaves unspecified.
const NOT_PICTURES: [&str; 8] = [
    "00000001 0605100102030405060708090a0b0c0d0e0f1080",
    "00000001 06c8020a0b80",
    "00000001 09f0",
    "00000001 0cffffff80",
    "00000001 0a",
    "00000001 17aabb",
    "00000001 1eaabb",
    "00000001 09f0 00000001 0605010180 00000001 0cff80",
];

#[test]
fn units_without_a_picture_are_no_loss() {
    let path = stream("no-delimiters").display().to_string();
    let mut script = String::new();
    for (index, payload) in NOT_PICTURES.iter().enumerate() {
        let (from, to) = (index * 6, index * 6 + 6);
        script += &format!("stream {path} units={from}..{to}\nunit hex:{}\n", payload.replace(' ', ""));
    }
    script += &format!("stream {path} units=48..50");
    assert_arrives(&script, "no-delimiters", "lease");
}

#[test]
fn parameter_sets_in_units_of_their_own() {
    let source = std::fs::read(stream("baseline")).unwrap();
    let mut lines = Vec::new();
    for unit in access_units(&source) {
        let (sets, rest): (Vec<&[u8]>, Vec<&[u8]>) =
            unit.into_iter().partition(|nal| matches!(kind(nal), 7 | 8));
        lines.extend(sets.iter().map(|set| unit_line(&[set])));
        lines.push(unit_line(&rest));
    }
    assert_arrives(&lines.join("\n"), "baseline", "v3");
}

#[test]
fn slots_that_lie_about_size_and_camera_are_played() {
    let path = stream("baseline").display().to_string();
    let script = format!(
        "stream {path} units=0..25 width=1 height=8192 frame=7\nstream {path} units=25..50 camera=-1"
    );
    assert_arrives(&script, "baseline", "v1");
}

/// Returns the place of each unit of a stream in the order of presentation. B-frames must not be references.
fn places_of_presentation(source: &[u8]) -> Vec<i64> {
    let units = access_units(source);
    let is_reference =
        |unit: &Vec<&[u8]>| unit.iter().any(|nal| matches!(kind(nal), 1 | 5) && nal[0] & 0x60 != 0);
    let mut places = vec![0; units.len()];
    let (mut next, mut held) = (0, None);
    for (index, unit) in units.iter().enumerate() {
        // A reference is shown after the B-frames that follow it, so the next reference releases it.
        let shown = if is_reference(unit) { held.replace(index) } else { Some(index) };
        if let Some(shown) = shown {
            places[shown] = next;
            next += 1;
        }
    }
    places[held.unwrap()] = next;
    places
}

#[test]
fn stamps_in_the_order_of_presentation() {
    let path = stream("b-frames");
    let places = places_of_presentation(&std::fs::read(&path).unwrap());
    let line = |(index, place): (i64, &i64)| {
        // The encoder holds a picture back until the B-frames before it are coded, here for three intervals.
        let stamp_ms = 40 * (place - index) - 120;
        format!("stream {} units={index}..{} gap=40ms stamp={stamp_ms}ms\n", path.display(), index + 1)
    };
    let script: String = (0..).zip(&places).map(line).collect();
    assert_arrives(&script, "b-frames", "lease").assert_rtp_time_follows_the_units(40_000_000);
}

#[test]
fn stamps_that_go_back() {
    let path = stream("baseline").display().to_string();
    let late = |from: usize| format!("stream {path} units={from}..{} stamp=-50ms\n", from + 1);
    let script: String = (0..10)
        .map(|tenth| 5 * tenth)
        .map(|from| format!("stream {path} units={from}..{}\n{}", from + 4, late(from + 4)))
        .collect();
    assert_arrives(&script, "baseline", "v3").assert_rtp_time_follows_the_units(33_000_000);
}

#[test]
fn camera_clock_that_is_set_while_it_runs() {
    let path = stream("baseline").display().to_string();
    let part = |from: usize| format!("stream {path} units={from}..{}", from + 10);
    // Stamps of the future, stamps that cannot be used at all, stamps of the past, then the right ones again.
    let script = [
        &part(0),
        "clock 3s",
        &part(10),
        "clock -1000003s",
        &part(20),
        "clock 999996s",
        &part(30),
        "clock 4s",
        &part(40),
    ]
    .join("\n");
    assert_arrives(&script, "baseline", "lease").assert_rtp_time_follows_the_units(33_000_000);
}

#[test]
fn stream_without_idr_starts_at_a_recovery_point() {
    let path = stream("intra-refresh");
    let source = std::fs::read(&path).unwrap();
    let units = access_units(&source);
    let has_recovery_point = |unit: &Vec<&[u8]>| unit.iter().any(|nal| nal.starts_with(&[0x06, 0x06]));
    let start = units.iter().position(has_recovery_point).unwrap();
    let script = format!("stream {} units={}..{}", path.display(), start / 2, units.len());
    let played = play(&script, "lease", units.len() - start);
    played.assert_nothing_lost();
    played.assert_units_are(&units[start..]);
}

#[test]
fn recovery_point_in_a_unit_of_its_own_is_a_place_to_start() {
    let source = std::fs::read(stream("intra-refresh")).unwrap();
    let units = access_units(&source);
    let has_recovery_point = |unit: &Vec<&[u8]>| unit.iter().any(|nal| nal.starts_with(&[0x06, 0x06]));
    let start = units.iter().position(has_recovery_point).unwrap();
    let (mut lines, mut pictures) = (Vec::new(), Vec::new());
    for unit in &units[start / 2..] {
        let (notes, picture): (Vec<&[u8]>, Vec<&[u8]>) = unit.iter().partition(|nal| kind(nal) == 6);
        lines.extend(notes.iter().map(|note| unit_line(&[note])));
        lines.push(unit_line(&picture));
        pictures.push(picture);
    }
    let expected = &pictures[start - start / 2..];
    let played = play(&lines.join("\n"), "lease", expected.len());
    played.assert_nothing_lost();
    played.assert_units_are(expected);
}
