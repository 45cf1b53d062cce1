//! Takes any bytes as an access unit. The scan must give the same result as a naive reference, and each NAL unit
//! that the assembler takes from the input must have the bytes of the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smallvec::SmallVec;
use streaming_server::base::limits;
use streaming_server::h264::{Assembler, avcc, scan};

/// Returns the start and end of all NAL units in a byte stream of H.264 annex B, or `None` if `scan` must fail. This is
/// the reference implementation.
fn scan_naively(bytes: &[u8]) -> Option<Vec<(usize, usize)>> {
    let codes: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&[0, 0, 1])).collect();
    if bytes[..*codes.first()?].iter().any(|byte| *byte != 0) {
        return None;
    }
    let ends = codes.iter().skip(1).copied().chain([bytes.len()]);
    let mut nals = Vec::new();
    for (start, mut end) in codes.iter().map(|code| code + 3).zip(ends) {
        while end > start && bytes[end - 1] == 0 {
            end -= 1;
        }
        // `cabac_zero_word`s are left out, but a NAL unit of only zero bytes before them stays.
        while end - start >= 3
            && bytes[end - 3..end] == [0, 0, 3]
            && bytes[start..end - 3].iter().any(|byte| *byte != 0)
        {
            end -= 3;
            while bytes[end - 1] == 0 {
                end -= 1;
            }
        }
        if end > start {
            nals.push((start, end));
        }
    }
    let good = nals.len() <= limits::NAL_UNITS_MAX && nals.iter().all(|(start, _)| bytes[*start] < 0x80);
    good.then_some(nals)
}

fuzz_target!(|bytes: &[u8]| {
    let mut nals = SmallVec::new();
    let scanned = scan(bytes, &mut nals).ok();
    let found =
        scanned.map(|()| nals.iter().map(|nal| (nal.start as usize, nal.end as usize)).collect::<Vec<_>>());
    assert_eq!(found, scan_naively(bytes));

    // The second pass starts with the parameter sets that the first pass has stored.
    let mut assembler = Assembler::default();
    for _ in 0..2 {
        if let Ok(unit) = assembler.assemble(bytes) {
            assert!(unit.nal_count() > 0);
            for nal in unit.nals() {
                assert!(!nal.bytes.is_empty());
                if let Some(offset) = nal.slot_offset {
                    assert_eq!(nal.bytes, &bytes[offset as usize..][..nal.bytes.len()]);
                }
            }
        }
        if let Some(info) = assembler.parameter_sets().stream_info() {
            assert!(info.width > 0 && info.height > 0);
        }
        let _ = avcc::configuration_record(assembler.parameter_sets());
    }
    assembler.forget_last_unit();
});
