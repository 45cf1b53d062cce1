//! Streams of real encoders, played through the real server to a viewer, an MP4 and a byte stream. The result is compared
//! picture by picture with ffmpeg's decode of the source. `tests/streams/make` makes the streams.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

mod rig;
use rig::{assert_arrives, stream};

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
