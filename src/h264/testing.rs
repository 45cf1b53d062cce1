//! Builds test data bit by bit: parameter sets, slices and access units.

use proptest::prelude::*;

/// Collects the bits of an RBSP and makes a NAL unit of them.
#[derive(Default)]
pub(crate) struct BitWriter {
    bits: Vec<bool>,
}

impl BitWriter {
    pub(crate) fn bits(mut self, value: u32, count: u32) -> Self {
        self.bits.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
        self
    }

    pub(crate) fn ue(self, value: u32) -> Self {
        let code = u64::from(value) + 1;
        let length = code.ilog2();
        let writer = self.bits(0, length).bits(1, 1);
        writer.bits(u32::try_from(code & ((1 << length) - 1)).unwrap(), length)
    }

    pub(crate) fn se(self, value: i32) -> Self {
        self.ue(if value > 0 { value.unsigned_abs() * 2 - 1 } else { value.unsigned_abs() * 2 })
    }

    /// Appends the bits of `other`.
    pub(crate) fn then(mut self, other: &BitWriter) -> Self {
        self.bits.extend(&other.bits);
        self
    }

    /// Returns the NAL unit with this header byte. Adds the stop bit, the padding and emulation prevention bytes.
    pub(crate) fn nal(mut self, header: u8) -> Vec<u8> {
        self.bits.push(true);
        let mut nal = vec![header];
        let mut zeros = 0;
        for byte in self.bits.chunks(8) {
            let value =
                byte.iter().enumerate().fold(0_u8, |value, (at, bit)| value | u8::from(*bit) << (7 - at));
            if zeros >= 2 && value <= 3 {
                nal.push(3);
                zeros = 0;
            }
            zeros = if value == 0 { zeros + 1 } else { 0 };
            nal.push(value);
        }
        nal
    }
}

/// Returns an SPS of the Baseline profile. `width` and `height` are in macroblocks.
pub(crate) fn sps(id: u32, level_idc: u32, width: u32, height: u32) -> Vec<u8> {
    let writer = BitWriter::default().bits(66, 8).bits(0xC0, 8).bits(level_idc, 8).ue(id);
    let writer = writer.ue(0).ue(2).ue(1).bits(0, 1);
    writer.ue(width - 1).ue(height - 1).bits(0b1_1_0_0, 4).nal(0x67)
}

/// Returns a PPS. Different values of `content` make different PPS with the same id.
pub(crate) fn pps(id: u32, sps_id: u32, content: u32) -> Vec<u8> {
    BitWriter::default().ue(id).ue(sps_id).bits(0, 2).ue(0).ue(content).nal(0x68)
}

/// Returns a slice of at least `bytes` bytes that contains no start code.
pub(crate) fn slice(header: u8, pps_id: u32, bytes: usize) -> Vec<u8> {
    let mut writer = BitWriter::default().ue(0).ue(7).ue(pps_id);
    for index in 0..bytes.saturating_sub(2) {
        writer = writer.bits(u32::try_from(index * 7 % 255).unwrap() + 1, 8);
    }
    writer.nal(header)
}

pub(crate) fn idr(pps_id: u32) -> Vec<u8> {
    slice(0x65, pps_id, 40)
}

pub(crate) fn non_idr(pps_id: u32) -> Vec<u8> {
    slice(0x41, pps_id, 30)
}

pub(crate) const AUD: &[u8] = &[0x09, 0xF0];
pub(crate) const SEI: &[u8] = &[0x06, 0x05, 0x01, 0xAA, 0x80];

/// Returns a unit of a stream with B-frames. `place` is the number of pictures that are shown before this one since the
/// IDR. A picture with `place` 0 is an IDR with its parameter sets. `tail` is appended to the slice.
pub(crate) fn b_frame_unit(place: u32, is_b: bool, tail: &[u8]) -> Vec<u8> {
    let start = |slice_type: u32| BitWriter::default().ue(0).ue(slice_type).ue(0).bits(0, 4);
    let order = |writer: BitWriter| writer.bits(2 * place, 16).bits(0xFF, 8);
    let with_tail = |nal: Vec<u8>| [&nal, tail].concat();
    if place > 0 {
        let (header, slice_type) = if is_b { (0x01, 6) } else { (0x41, 5) };
        return annex_b(&[with_tail(order(start(slice_type)).nal(header))]);
    }
    let sps = BitWriter::default().bits(77, 8).bits(0, 8).bits(31, 8).ue(0).ue(0).ue(0).ue(12).ue(4);
    let sps = sps.bits(0, 1).ue(79).ue(44).bits(0b1_1_0_0, 4).nal(0x67);
    annex_b(&[sps, pps(0, 0, 0), with_tail(order(start(7).ue(0)).nal(0x65))])
}

/// Returns an SEI NAL unit with a recovery point whose `recovery_frame_cnt` is `count`.
pub(crate) fn recovery_point_sei(count: u32) -> Vec<u8> {
    let bits = 2 * (count + 1).ilog2() + 1 + 4; // the count, then exact_match_flag, broken_link_flag and two more bits
    let bytes = bits.div_ceil(8);
    let writer = BitWriter::default().bits(6, 8).bits(bytes, 8).ue(count).bits(0b1000, 4);
    writer.bits(0, bytes * 8 - bits).nal(0x06)
}

/// Returns the NAL units as a byte stream with alternating three- and four-byte start codes.
pub(crate) fn annex_b<T: AsRef<[u8]>>(nals: &[T]) -> Vec<u8> {
    let mut unit = Vec::new();
    for (index, nal) in nals.iter().enumerate() {
        unit.extend_from_slice(if index % 2 == 0 { &[0, 0, 0, 1] } else { &[0, 0, 1] });
        unit.extend_from_slice(nal.as_ref());
    }
    unit
}

/// Generates random bytes with many start codes, NAL headers and emulation prevention bytes.
pub(crate) fn hostile_bytes(length_max: usize) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(vec![0, 0, 1]),
        2 => Just(vec![0, 0, 0, 1]),
        2 => prop::sample::select(vec![0x67, 0x68, 0x65, 0x41, 0x09, 0x06, 0x01, 0x42, 0x78, 0x7C]).prop_map(|b| vec![b]),
        2 => Just(vec![0, 0, 3]),
        1 => prop::collection::vec(Just(0), 1..5),
        3 => prop::collection::vec(any::<u8>(), 1..20),
        1 => Just(sps(0, 31, 80, 45)),
        1 => Just(pps(0, 0, 0)),
        1 => (0..3_u32).prop_map(idr),
        1 => (0..3_u32).prop_map(non_idr),
    ];
    prop::collection::vec(piece, 0..length_max / 4).prop_map(|pieces| pieces.concat())
}
