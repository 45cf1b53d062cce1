//! PURE: writes and repairs `.h264` files, which have the byte stream format of Rec. ITU-T H.264, Annex B.

use bytes::Bytes;
use memchr::memmem;

/// Bytes before each NAL unit. They are as many as those of a length in an MP4.
pub const START_CODE: &[u8] = &[0, 0, 0, 1];

/// Appends the parts of a gathered write that writes one access unit. The NAL units are not copied.
pub fn gather(nal_units: &[Bytes], parts: &mut Vec<Bytes>) {
    for nal in nal_units {
        parts.push(Bytes::from_static(START_CODE));
        parts.push(nal.clone());
    }
}

/// Returns the offset of the start code of the last access unit. Returns `None` unless another unit precedes it.
///
/// After a crash, everything before that offset is whole. The last unit may be truncated, and a byte stream does not
/// show whether it is.
#[must_use]
pub fn last_unit_start(stream: &[u8]) -> Option<usize> {
    let mut last = None;
    let mut units = 0;
    // True if a slice was found since the last unit began. A new unit begins at the first NAL unit after a slice that
    // has one of the kinds in `begins` (Rec. ITU-T H.264, 7.4.1.2.3).
    let mut slice_seen = true;
    for code in memmem::find_iter(stream, &[0, 0, 1]) {
        let Some(nal) = stream.get(code + 3..) else { break };
        let Some(kind) = nal.first().map(|header| header & 0x1f) else { break };
        // The slice is the first of its picture if first_mb_in_slice is 0. This ue(v) field writes 0 as a single 1 bit.
        let first_slice = nal.get(1).is_some_and(|byte| byte & 0x80 != 0);
        let is_slice = matches!(kind, 1..=5);
        let begins = match kind {
            6..=9 | 14..=18 => slice_seen,
            1 | 5 => slice_seen && first_slice,
            _ => false,
        };
        if begins {
            let zero_before = code.checked_sub(1).and_then(|at| stream.get(at)) == Some(&0);
            last = Some(if zero_before { code - 1 } else { code });
            units += 1;
            slice_seen = false;
        }
        slice_seen |= is_slice;
    }
    last.filter(|_| units >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(units: &[&[&[u8]]]) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut starts) = (Vec::new(), Vec::new());
        for unit in units {
            starts.push(out.len());
            let nal_units: Vec<Bytes> = unit.iter().map(|nal| Bytes::copy_from_slice(nal)).collect();
            let mut parts = Vec::new();
            gather(&nal_units, &mut parts);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        }
        (out, starts)
    }

    const AUD: &[u8] = &[9, 0xf0];
    const SPS: &[u8] = &[0x67, 66, 0, 30];
    const PPS: &[u8] = &[0x68, 0xce];
    const IDR: &[u8] = &[0x65, 0x88, 1, 2, 3];
    const SLICE: &[u8] = &[0x41, 0x9a, 1, 2, 3];
    const SECOND_SLICE: &[u8] = &[0x41, 0x1a, 1, 2, 3];

    #[test]
    fn last_unit_is_found_for_every_kind_of_first_nal_unit() {
        let cases: [&[&[&[u8]]]; 4] = [
            &[&[AUD, SPS, PPS, IDR], &[AUD, SLICE], &[AUD, SLICE]],
            &[&[SPS, PPS, IDR], &[SLICE, SECOND_SLICE], &[SLICE, SECOND_SLICE]],
            &[&[SPS, PPS, IDR], &[SLICE], &[SPS, PPS, IDR, SECOND_SLICE]],
            &[&[SPS, PPS, IDR], &[SLICE]],
        ];
        for units in cases {
            let (bytes, starts) = stream(units);
            assert_eq!(last_unit_start(&bytes), starts.last().copied());
        }
    }

    #[test]
    fn single_unit_is_never_cut() {
        let (bytes, _) = stream(&[&[AUD, SPS, PPS, IDR]]);
        assert_eq!(last_unit_start(&bytes), None);
        assert_eq!(last_unit_start(&[]), None);
        assert_eq!(last_unit_start(&[0, 0, 1]), None);
    }

    #[test]
    fn truncated_stream_is_cut_at_a_unit_start() {
        let (bytes, starts) = stream(&[&[SPS, PPS, IDR], &[SLICE, SECOND_SLICE], &[SLICE], &[SLICE]]);
        for cut in 0..=bytes.len() {
            if let Some(end) = last_unit_start(&bytes[..cut]) {
                assert!(starts.contains(&end), "cut at {cut} gives {end}");
            }
        }
    }
}
