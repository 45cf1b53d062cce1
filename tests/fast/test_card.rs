//! Tests of the test card: ffmpeg decodes it, and each picture must be complete and show its number.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test")]

use std::io::Write;
use std::process::{Command, Stdio};

use streaming_server::h264::{self, Stamp, crc32_of_slices};
use streaming_server::simulator::{NumberBlocks, ParameterSetPolicy, TestCard, TestCardConfig, Unit};

fn config(width: u32, height: u32) -> TestCardConfig {
    TestCardConfig { width, height, ..TestCardConfig::default() }
}

/// Returns the byte stream of `count` units, with numbers from `first` on.
fn stream(config: TestCardConfig, first: u64, count: u64) -> Vec<u8> {
    let mut card = TestCard::new(config).unwrap();
    let (mut unit, mut bytes) = (Unit::default(), Vec::new());
    for number in first..first + count {
        card.encode(number, number * 33, &mut unit);
        bytes.extend_from_slice(unit.bytes());
    }
    bytes
}

/// Decodes with ffmpeg and returns the luma of all pictures in order. The test fails if ffmpeg prints a warning.
fn decode(stream: Vec<u8>) -> Vec<u8> {
    let mut ffmpeg = Command::new("ffmpeg")
        .args(["-v", "warning", "-err_detect", "explode", "-probesize", "64M", "-f", "h264", "-i", "-"])
        .args([
            "-vf",
            "extractplanes=y",
            "-fps_mode",
            "passthrough",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "gray",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ffmpeg is installed");
    let mut input = ffmpeg.stdin.take().unwrap();
    let feed = std::thread::spawn(move || input.write_all(&stream));
    let output = ffmpeg.wait_with_output().unwrap();
    feed.join().unwrap().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "ffmpeg: {complaints}");
    output.stdout
}

/// Asserts that each unit decodes to a picture that shows the number of the unit.
fn assert_numbers(config: TestCardConfig, first: u64, count: u64) {
    let luma = decode(stream(config, first, count));
    let (width, height) = (config.width as usize, config.height as usize);
    assert_eq!(luma.len(), width * height * count as usize, "{config:?}");
    let blocks = NumberBlocks::of(config.width, config.height).unwrap();
    for (picture, number) in luma.chunks_exact(width * height).zip(first..) {
        let read = blocks.read(|x, y| picture[y as usize * width + x as usize]);
        assert_eq!(read, Some(number as u32), "{config:?}");
    }
}

#[test]
fn pictures_of_every_size_show_their_number() {
    for (width, height) in [(288, 128), (320, 240), (640, 480), (854, 480), (1280, 720), (1920, 1080)] {
        assert_numbers(config(width, height), 0, 40);
    }
}

#[test]
fn pictures_show_their_number_at_any_bit_rate_and_slice_count() {
    for (bitrate_kbps, slices) in [(300, 1), (600, 2), (8_000, 1), (8_000, 4), (60_000, 1000)] {
        let config = TestCardConfig { bitrate_kbps: Some(bitrate_kbps), slices, ..config(1280, 720) };
        assert_numbers(config, 1000, 65);
    }
}

#[test]
fn padding_and_slices_do_not_change_the_picture() {
    let plain = decode(stream(config(1280, 720), 0, 35));
    let padded = TestCardConfig { bitrate_kbps: Some(8_000), slices: 5, ..config(1280, 720) };
    assert!(decode(stream(padded, 0, 35)) == plain);
}

#[test]
fn long_and_short_gops_and_rare_parameter_sets_decode() {
    let rare = ParameterSetPolicy::First;
    assert_numbers(TestCardConfig { gop: 1, parameter_sets: rare, ..config(320, 240) }, 7, 20);
    assert_numbers(
        TestCardConfig { gop: 600, delimiters: false, ..config(320, 240) },
        u64::from(u32::MAX),
        700,
    );
    assert_numbers(TestCardConfig { gop: 10, parameter_sets: rare, fps: 29.97, ..config(320, 240) }, 0, 50);
}

#[test]
fn the_bit_rate_is_met_and_idr_units_have_four_times_the_size() {
    for kbps in [4_000, 8_000, 20_000] {
        let mut card =
            TestCard::new(TestCardConfig { bitrate_kbps: Some(kbps), ..config(1280, 720) }).unwrap();
        let (mut unit, mut idr_bytes, mut other_bytes) = (Unit::default(), 0, 0);
        for number in 0..300 {
            card.encode(number, number * 33, &mut unit);
            *if unit.is_idr() { &mut idr_bytes } else { &mut other_bytes } += unit.bytes().len();
        }
        let measured = (idr_bytes + other_bytes) as f64 * 8.0 / 10.0 / 1000.0;
        assert!((measured / f64::from(kbps) - 1.0).abs() < 0.01, "{measured} for {kbps}");
        let ratio = (idr_bytes as f64 / 10.0) / (other_bytes as f64 / 290.0);
        assert!((3.5..4.5).contains(&ratio), "{ratio} at {kbps}");
    }
}

#[test]
fn each_unit_has_its_stamp_before_the_slices_that_it_checksums() {
    let config = TestCardConfig { slices: 3, bitrate_kbps: Some(2_000), ..config(640, 480) };
    let mut card = TestCard::new(config).unwrap();
    let (mut unit, mut nals) = (Unit::default(), smallvec::SmallVec::new());
    for number in 0..40 {
        card.encode(number, 0, &mut unit);
        h264::scan(unit.bytes(), &mut nals).unwrap();
        let all = || nals.iter().map(|nal| nal.slice(unit.bytes()));
        let stamp = Stamp::find(all()).unwrap();
        assert_eq!((stamp.unit_number, stamp.slices_crc32), (number, crc32_of_slices(all())));
        let kinds: Vec<u8> = nals.iter().map(|nal| nal.kind).collect();
        let expected: &[u8] = if number % 30 == 0 { &[9, 7, 8, 6, 5, 5, 5] } else { &[9, 6, 1, 1, 1] };
        assert_eq!(kinds, expected);
    }
}

#[test]
fn invalid_configurations_are_refused_with_a_reason() {
    for (width, height) in [(0, 0), (1281, 720), (16, 16), (8192, 720)] {
        let refused = TestCard::new(config(width, height)).err().unwrap();
        assert!(refused.to_string().contains("288x128"), "{refused}");
    }
    assert!(TestCard::new(TestCardConfig { gop: 0, ..config(640, 480) }).is_err());
    assert!(TestCard::new(TestCardConfig { fps: f64::NAN, ..config(640, 480) }).is_err());
}
