//! Streams of real encoders, played through the real server to a viewer, an MP4 and a byte stream. The result is compared
//! picture by picture with ffmpeg's decode of the source. `tests/streams/make` makes the streams.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

mod rig;
use rig::{Source, access_units, assert_arrives, play, stream, unit_line};

/// Plays a stream of the corpus, one access unit per slot.
fn plays_unchanged(name: &str, layout: &str) {
    assert_arrives(&format!("stream {}", stream(name).display()), name, layout);
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

#[test]
fn slots_that_lie_about_size_and_camera_are_played() {
    let path = stream("baseline").display().to_string();
    let script = format!(
        "stream {path} units=0..25 width=1 height=8192 frame=7\nstream {path} units=25..50 camera=-1"
    );
    assert_arrives(&script, "baseline", "v1");
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
    // Stamps of the future, stamps that cannot be used at all, then stamps that go back twice.
    let script = [
        &part(0),
        "clock 3s",
        &part(10),
        "clock -1000003s",
        &part(20),
        "clock 999996s",
        &part(30),
        "clock -4s",
        &part(40),
    ]
    .join("\n");
    assert_arrives(&script, "baseline", "lease").assert_rtp_time_follows_the_units(33_000_000);
}
