//! Writes NAL units bit by bit and inserts the emulation prevention bytes. The meaning of the bits is up to the caller.

/// Writes one NAL unit of a byte stream (H.264 Annex B) to the end of a buffer.
pub(super) struct NalWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Bits that are not written yet, right-aligned. Between calls, there are fewer than eight of them.
    pending: u64,
    pending_bits: u32,
    /// Number of zero bytes at the end of what has been written of this NAL unit.
    zeros: u32,
}

/// The 3-byte start code. It must not be used before parameter sets or before the first NAL unit of an access unit.
pub(super) const START_CODE_SHORT: &[u8] = &[0, 0, 1];
/// The 4-byte start code. It is allowed before every NAL unit.
pub(super) const START_CODE_LONG: &[u8] = &[0, 0, 0, 1];

impl<'a> NalWriter<'a> {
    /// Appends the start code and the NAL unit header, which consists of `ref_idc` (`nal_ref_idc`) and `kind`
    /// (`nal_unit_type`).
    pub(super) fn begin(out: &'a mut Vec<u8>, start_code: &[u8], ref_idc: u8, kind: u8) -> NalWriter<'a> {
        out.extend_from_slice(start_code);
        out.push(ref_idc << 5 | kind);
        NalWriter { out, pending: 0, pending_bits: 0, zeros: 0 }
    }

    /// Appends the `count` low bits of `value`, as u(n) in H.264. `count` is at most 32.
    pub(super) fn bits(&mut self, count: u32, value: u32) {
        debug_assert!(count <= 32 && u64::from(value) >> count == 0, "{value} in {count} bits");
        self.pending = self.pending << count | u64::from(value);
        self.pending_bits += count;
        while self.pending_bits >= 8 {
            self.pending_bits -= 8;
            let [byte, ..] = (self.pending >> self.pending_bits).to_le_bytes();
            self.byte(byte);
        }
        self.pending &= (1 << self.pending_bits) - 1;
    }

    /// Appends one bit, as u(1) in H.264.
    pub(super) fn flag(&mut self, value: bool) {
        self.bits(1, value.into());
    }

    /// Appends `value` as an unsigned Exp-Golomb code, ue(v) in H.264 9.1.
    pub(super) fn ue(&mut self, value: u32) {
        debug_assert!(value < u32::MAX, "ue(v) ends at 2^32 - 2");
        let code = value + 1;
        let length = code.ilog2();
        self.bits(length, 0);
        self.bits(length + 1, code);
    }

    /// Appends zero bits up to the next byte boundary, as `pcm_alignment_zero_bit` in H.264.
    pub(super) fn align(&mut self) {
        if self.pending_bits > 0 {
            self.bits(8 - self.pending_bits, 0);
        }
    }

    /// Appends whole bytes. Each must be at least 4, so that none needs emulation prevention.
    pub(super) fn plain_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(self.pending_bits == 0, "must be called on a byte boundary");
        debug_assert!(bytes.iter().all(|byte| *byte > 3), "a byte that may need emulation prevention");
        self.out.extend_from_slice(bytes);
        if !bytes.is_empty() {
            self.zeros = 0;
        }
    }

    /// Ends the NAL unit with `rbsp_trailing_bits`: a one bit and zero bits up to the next byte boundary.
    pub(super) fn finish(mut self) {
        self.flag(true);
        self.align();
    }

    /// Appends one byte. Inserts the byte 03 after two zero bytes where necessary, so that 00 00 00 to 00 00 03 never
    /// appear in a NAL unit (H.264 7.4.1).
    fn byte(&mut self, byte: u8) {
        if self.zeros == 2 && byte <= 3 {
            self.out.push(3);
            self.zeros = 0;
        }
        self.out.push(byte);
        self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nal(write: impl FnOnce(&mut NalWriter<'_>)) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = NalWriter::begin(&mut out, START_CODE_SHORT, 3, 7);
        write(&mut writer);
        writer.finish();
        assert_eq!(&out[..4], &[0, 0, 1, 0x67]);
        out.split_off(4)
    }

    /// Returns the bits of `nal` without its emulation prevention bytes.
    fn payload_bits(nal: &[u8]) -> Vec<bool> {
        let (mut bytes, mut zeros) = (Vec::new(), 0);
        for byte in nal {
            if zeros == 2 && *byte == 3 {
                zeros = 0;
                continue;
            }
            zeros = if *byte == 0 { zeros + 1 } else { 0 };
            bytes.push(*byte);
        }
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    }

    #[test]
    fn exp_golomb_codes_are_those_of_table_9_2() {
        for (value, code) in [(0, "1"), (1, "010"), (2, "011"), (3, "00100"), (7, "0001000"), (8, "0001001")]
        {
            let written = nal(|writer| writer.ue(value));
            let bits: String =
                payload_bits(&written).iter().map(|bit| if *bit { '1' } else { '0' }).collect();
            assert!(bits.starts_with(&format!("{code}1")), "{value}: {bits}");
        }
    }

    #[test]
    fn zeros_that_would_look_like_a_start_code_are_broken_up() {
        assert_eq!(nal(|writer| writer.bits(32, 1)), [0, 0, 3, 0, 1, 0x80]);
        assert_eq!(nal(|writer| writer.bits(32, 0)), [0, 0, 3, 0, 0, 0x80]);
        assert_eq!(nal(|writer| writer.bits(24, 3)), [0, 0, 3, 3, 0x80]);
        assert_eq!(nal(|writer| writer.bits(24, 4)), [0, 0, 4, 0x80]);
    }

    #[test]
    fn plain_bytes_follow_an_alignment() {
        let written = nal(|writer| {
            writer.ue(25);
            writer.align();
            writer.plain_bytes(&[16, 235]);
        });
        assert_eq!(written, [0b0000_1101, 0, 16, 235, 0x80]);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_bits_survive_and_no_start_code_appears(
            fields in prop::collection::vec((1..=32_u32, prop_oneof![Just(0_u32), 0..4_u32, any::<u32>()]), 0..60),
        ) {
            let mut expected = Vec::new();
            let written = nal(|writer| {
                for (count, value) in &fields {
                    let value = value & u32::MAX >> (32 - count);
                    writer.bits(*count, value);
                    expected.extend((0..*count).rev().map(|bit| value >> bit & 1 == 1));
                }
            });
            for window in written.windows(3) {
                prop_assert!(!(window[0] == 0 && window[1] == 0 && window[2] < 3), "{written:?}");
            }
            prop_assert_ne!(written.last(), Some(&0));
            let bits = payload_bits(&written);
            prop_assert_eq!(&bits[..expected.len()], &expected[..]);
        }
    }
}
