//! Takes any bytes as a file that a crash left behind. The parsers of the repair must not panic or loop forever. If
//! they accept a part of the file as complete, they must accept this part again on its own.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use streaming_server::recorder::format::fmp4::{self, START_UNFINISHED};
use streaming_server::recorder::format::recovery::whole_fragments;
use streaming_server::recorder::format::{Track, annexb, moov};

fn check(file: &[u8]) {
    if let Some(found) = whole_fragments(Cursor::new(file)).unwrap() {
        let end = found.end as usize;
        assert!(end <= file.len() && !found.index.is_empty());
        assert_eq!(whole_fragments(Cursor::new(&file[..end])).unwrap(), Some(found));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&[&START_UNFINISHED, bytes].concat());
    let track = Track { width: 640, height: 360, configuration: vec![1, 66, 0, 30, 255], started_at_s: 1 };
    check(&[&fmp4::file_header(&track), bytes].concat());
    let _ = (fmp4::form(bytes), moov::summary(bytes), moov::parse_track(bytes));
    if let Some(end) = annexb::last_unit_start(bytes) {
        assert!(end < bytes.len());
        // A cut at `end` removes the last unit. A second cut must remove another unit, unless only one unit is left.
        assert!(annexb::last_unit_start(&bytes[..end]).is_none_or(|earlier| earlier < end));
    }
});
