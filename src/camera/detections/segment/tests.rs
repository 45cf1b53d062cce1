//! Tests of the parser: each field, hostile values, and comparison with a naive parser.

use proptest::prelude::*;

use super::*;

/// Returns a segment with one entry: a cat at 10, 20 with 30x40 pixels.
fn good() -> [u8; SEGMENT_BYTES] {
    let mut segment = [0; SEGMENT_BYTES];
    put(&mut segment, field::FRAME, &1_234_u64.to_le_bytes());
    put(&mut segment, field::STAMP, &1_767_000_000.123_456_f64.to_le_bytes());
    put(&mut segment, field::COUNT, &1_i32.to_le_bytes());
    put(&mut segment, field::ENTRIES, b"cat");
    put(&mut segment, field::ENTRIES + entry::CONFIDENCE, &0.91_f32.to_le_bytes());
    for (index, side) in [10_i32, 20, 30, 40].into_iter().enumerate() {
        put(&mut segment, field::ENTRIES + entry::BOX + 4 * index, &side.to_le_bytes());
    }
    put(&mut segment, field::VERSION, &7_u32.to_le_bytes());
    segment
}

fn put(segment: &mut [u8], at: usize, bytes: &[u8]) {
    segment[at..at + bytes.len()].copy_from_slice(bytes);
}

fn parsed(segment: &[u8; SEGMENT_BYTES]) -> (Result<Detections, Rejection>, Vec<Rejection>) {
    let mut skipped = Vec::new();
    let result = parse(segment, &mut |reason| skipped.push(reason));
    (result, skipped)
}

#[test]
fn every_field_is_read_from_its_place() {
    let (result, skipped) = parsed(&good());
    let found = result.unwrap();
    assert_eq!((version(&good()), skipped), (7, Vec::new()));
    assert_eq!((found.frame, found.width, found.height), (Some(1_234), 1_280, 720));
    let error_ns = found.captured_at_ns.unwrap() - 1_767_000_000_123_456_000;
    assert!(error_ns.abs() < 300, "{error_ns}");
    let cat = DetectedBox { label: "cat".into(), confidence: 0.91, x: 10, y: 20, width: 30, height: 40 };
    assert_eq!(found.boxes, [cat]);
}

#[test]
fn wrong_count_or_stamp_rejects_the_result() {
    for count in [-1, 11, i32::MIN, i32::MAX] {
        let mut segment = good();
        put(&mut segment, field::COUNT, &count.to_le_bytes());
        assert_eq!(parsed(&segment).0, Err(Rejection::Count), "{count}");
    }
    for stamp in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e10, f64::MAX] {
        let mut segment = good();
        put(&mut segment, field::STAMP, &stamp.to_le_bytes());
        assert_eq!(parsed(&segment).0, Err(Rejection::Stamp), "{stamp}");
    }
    let mut segment = good();
    put(&mut segment, field::STAMP, &0_f64.to_le_bytes());
    assert_eq!(parsed(&segment).0.unwrap().captured_at_ns, None);
}

#[test]
fn wrong_entry_is_skipped_and_the_others_are_used() {
    let mut segment = good();
    put(&mut segment, field::COUNT, &3_i32.to_le_bytes());
    let first = segment[field::ENTRIES..][..entry::BYTES].to_vec();
    put(&mut segment, field::ENTRIES + 2 * entry::BYTES, &first);
    assert_eq!(parsed(&segment).1, [Rejection::Label], "the second entry has no label");
    assert_eq!(parsed(&segment).0.unwrap().boxes.len(), 2);
    let second = field::ENTRIES + entry::BYTES;
    put(&mut segment, second, &[b'x'; 32]);
    assert_eq!(parsed(&segment).1, [Rejection::Label], "no NUL ends the label");
    put(&mut segment, second, &[0xff, 0xfe, 0]);
    assert_eq!(parsed(&segment).1, [Rejection::Label], "not UTF-8");
    put(&mut segment, second, b"dog\0\x01\x02");
    assert_eq!(parsed(&segment).1, [Rejection::Box], "what follows the NUL is ignored, and the box is empty");
}

/// A naive parser of the boxes, which copies the rules of the format literally.
fn naive(segment: &[u8; SEGMENT_BYTES]) -> Option<Vec<DetectedBox>> {
    let word = |at: usize| i32::from_le_bytes(segment[at..at + 4].try_into().unwrap());
    let count = word(16);
    let stamp = f64::from_le_bytes(segment[8..16].try_into().unwrap());
    if !(0..=10).contains(&count) || !(0.0..9e9).contains(&stamp) {
        return None;
    }
    let mut boxes = Vec::new();
    for index in 0..count {
        let at = 20 + 52 * usize::try_from(index).unwrap();
        let text: Vec<u8> = segment[at..at + 32].iter().copied().take_while(|byte| *byte != 0).collect();
        let confidence = f32::from_bits(word(at + 32).cast_unsigned());
        let sides = [36, 40, 44, 48].map(|offset| i128::from(word(at + offset)));
        let [left, right] = [sides[0], sides[0] + sides[2]].map(|x| x.clamp(0, 1280));
        let [top, bottom] = [sides[1], sides[1] + sides[3]].map(|y| y.clamp(0, 720));
        let Ok(label) = String::from_utf8(text) else { continue };
        let is_label = !label.is_empty() && label.len() < 32 && !label.chars().any(char::is_control);
        if is_label && (0.0..=1.0).contains(&confidence) && left < right && top < bottom {
            let [x, y, width, height] =
                [left, top, right - left, bottom - top].map(|side| u32::try_from(side).unwrap());
            boxes.push(DetectedBox { label, confidence, x, y, width, height });
        }
    }
    Some(boxes)
}

fn hostile() -> impl Strategy<Value = [u8; SEGMENT_BYTES]> {
    let side = || prop_oneof![any::<i32>(), -50..1_400_i32];
    let label =
        prop_oneof!["[a-z_]{0,33}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..32)];
    let confidence = prop_oneof![any::<f32>(), 0.0..1.0_f32];
    let entries = prop::collection::vec((label, confidence, [side(), side(), side(), side()]), 0..10);
    let stamp = prop_oneof![any::<f64>(), 1.7e9..1.8e9_f64];
    (entries, prop_oneof![any::<i32>(), 0..=10_i32], stamp, any::<u32>()).prop_map(
        |(entries, count, stamp, version)| {
            let mut segment = [0; SEGMENT_BYTES];
            put(&mut segment, field::STAMP, &stamp.to_le_bytes());
            put(&mut segment, field::COUNT, &count.to_le_bytes());
            for (index, (label, confidence, sides)) in entries.into_iter().enumerate() {
                let at = field::ENTRIES + index * entry::BYTES;
                put(&mut segment, at, &label[..label.len().min(32)]);
                put(&mut segment, at + entry::CONFIDENCE, &confidence.to_le_bytes());
                for (place, side) in sides.into_iter().enumerate() {
                    put(&mut segment, at + entry::BOX + 4 * place, &side.to_le_bytes());
                }
            }
            put(&mut segment, field::VERSION, &version.to_le_bytes());
            segment
        },
    )
}

proptest! {
    #![proptest_config(support::properties())]

    #[test]
    fn parser_agrees_with_a_naive_one(segment in hostile()) {
        prop_assert_eq!(parsed(&segment).0.ok().map(|found| found.boxes), naive(&segment));
    }

    #[test]
    fn any_bytes_give_valid_boxes_or_a_reason(bytes in prop::collection::vec(any::<u8>(), SEGMENT_BYTES)) {
        let (result, skipped) = parsed(bytes.as_slice().try_into().unwrap());
        let found = result.map(|result| result.boxes).unwrap_or_default();
        prop_assert!(found.len() + skipped.len() <= DETECTED_BOXES_MAX);
        for found in found {
            prop_assert!(found.width > 0 && found.x + found.width <= 1_280);
            prop_assert!(found.height > 0 && found.y + found.height <= 720);
        }
    }
}
