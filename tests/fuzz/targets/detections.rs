//! Takes any bytes as the detector's segment. Every box that is accepted lies in the picture, and its result can be
//! written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming_server::base::limits::{DETECTED_BOXES_MAX, LABEL_BYTES_MAX};
use streaming_server::camera::detections::{SEGMENT_BYTES, parse};
use streaming_server::simulator::encode_detections;

fuzz_target!(|data: &[u8]| {
    let mut segment = [0; SEGMENT_BYTES];
    for (target, byte) in segment.iter_mut().zip(data) {
        *target = *byte;
    }
    let mut skipped = 0;
    let Ok(mut found) = parse(&segment, &mut |_| skipped += 1) else { return };
    assert!(found.boxes.len() + skipped <= DETECTED_BOXES_MAX);
    for detected in &found.boxes {
        assert!((1..=LABEL_BYTES_MAX).contains(&detected.label.len()));
        assert!((0.0..=1.0).contains(&detected.confidence));
        assert!(detected.width > 0 && detected.x + detected.width <= found.width);
        assert!(detected.height > 0 && detected.y + detected.height <= found.height);
    }
    // The stamp is an f64, so only whole seconds survive exactly.
    found.captured_at_ns =
        found.captured_at_ns.map(|ns| (ns / 1_000_000_000 * 1_000_000_000).max(1_000_000_000));
    let mut written = [0; SEGMENT_BYTES];
    encode_detections(&found, &mut written);
    assert_eq!(parse(&written, &mut |reason| panic!("{reason}")), Ok(found));
});
