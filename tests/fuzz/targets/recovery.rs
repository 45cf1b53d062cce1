//! Any bytes as a file that a crash left: the repair's parsers neither panic nor run away, and what
//! they take for whole is taken for whole again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming_server::recorder::format::fmp4::{self, START_UNFINISHED, Track};
use streaming_server::recorder::format::recovery::survey;
use streaming_server::recorder::format::{annexb, moov};

fn check(file: &[u8]) {
    if let Some(found) = survey(file).unwrap() {
        let end = found.end as usize;
        assert!(end <= file.len() && !found.index.is_empty());
        assert_eq!(survey(&file[..end]).unwrap(), Some(found));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&[&START_UNFINISHED, bytes].concat());
    let track = Track { width: 640, height: 360, configuration: vec![1, 66, 0, 30, 255], started_at_s: 1 };
    check(&[&fmp4::head(&track), bytes].concat());
    let _ = (fmp4::form(bytes), moov::summary(bytes), moov::parse_track(bytes));
    if let Some(end) = annexb::last_unit_start(bytes) {
        assert!(end < bytes.len());
        // One unit less each time, and never the last one.
        assert!(annexb::last_unit_start(&bytes[..end]).is_none_or(|earlier| earlier < end));
    }
});
