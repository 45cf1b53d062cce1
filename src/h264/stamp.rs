//! The stamp of the camera simulator. It is an SEI NAL unit in each access unit, with the unit's number, publication
//! time and checksum. Tests and load viewers read the stamp to detect lost, reordered and torn units and to measure
//! latency.
//!
//! ```text
//!  byte 0       06                  nal_unit_type 6 (SEI), nal_ref_idc 0
//!       1       05                  payload type 5: user_data_unregistered (H.264 D.1.7)
//!       2       29                  payload size 41
//!       3..19   STAMP_UUID
//!      19..29   unit number         u64 as 10 groups of 7 bits, top bit of each byte set
//!      29..39   published, ns       i64 likewise (CLOCK_MONOTONIC)
//!      39..44   CRC-32 of slices    u32 as 5 groups
//!      44       80                  rbsp_trailing_bits
//! ```
//!
//! No byte is below 4, so a stamp never needs emulation prevention bytes, and all stamps have the same length. Fields
//! can therefore be overwritten in place.

use bytes::BufMut as _;

/// UUID that marks a `user_data_unregistered` SEI message as a stamp. Like all bytes of a stamp, none is below 4.
pub const STAMP_UUID: [u8; 16] = *b"camera-sim stamp";

const HEADER: [u8; 3] = [0x06, 0x05, 41];
const NUMBER_AT: usize = HEADER.len() + STAMP_UUID.len();
const WIDE: usize = 10;
const PUBLISHED_AT: usize = NUMBER_AT + WIDE;
const CRC_AT: usize = PUBLISHED_AT + WIDE;
const NARROW: usize = 5;
const TRAILING_BITS: u8 = 0x80;

/// Fields of a stamp.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the access unit in one simulator run, from 0. The count continues when the simulated camera
    /// restarts or the video file begins again.
    pub unit_number: u64,
    /// Time just before the unit was published, in nanoseconds of CLOCK_MONOTONIC.
    pub published_monotonic_ns: i64,
    /// Checksum of the unit, computed by [`crc32_of_slices`].
    pub slices_crc32: u32,
}

impl Stamp {
    /// Size in bytes of every stamp: a NAL unit without its start code.
    pub const NAL_BYTES: usize = CRC_AT + NARROW + 1;

    /// Returns the stamp as a NAL unit, without a start code.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::NAL_BYTES] {
        let mut nal = [TRAILING_BITS; Self::NAL_BYTES];
        let mut rest: &mut [u8] = &mut nal;
        rest.put_slice(&HEADER);
        rest.put_slice(&STAMP_UUID);
        rest.put_slice(&groups::<WIDE>(self.unit_number));
        rest.put_slice(&groups::<WIDE>(self.published_monotonic_ns.cast_unsigned()));
        rest.put_slice(&groups::<NARROW>(u64::from(self.slices_crc32)));
        nal
    }

    /// Appends the stamp as a NAL unit, without a start code.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encode());
    }

    /// Returns the first stamp among the NAL units of an access unit. The bytes are untrusted, so a NAL unit counts as
    /// a stamp only if it matches the layout exactly.
    pub fn find<'a>(unit_nals: impl Iterator<Item = &'a [u8]>) -> Option<Stamp> {
        unit_nals.into_iter().find_map(Stamp::parse)
    }

    /// Parses one NAL unit as a stamp. Returns `None` if it is not a stamp.
    #[must_use]
    pub fn parse(nal: &[u8]) -> Option<Stamp> {
        let nal: &[u8; Self::NAL_BYTES] = nal.try_into().ok()?;
        let rest = nal.strip_prefix(&HEADER)?.strip_prefix(&STAMP_UUID)?;
        let (number, rest) = rest.split_first_chunk::<WIDE>()?;
        let (published, rest) = rest.split_first_chunk::<WIDE>()?;
        let (crc, rest) = rest.split_first_chunk::<NARROW>()?;
        if rest != [TRAILING_BITS] {
            return None;
        }
        Some(Stamp {
            unit_number: value(number)?,
            published_monotonic_ns: value(published)?.cast_signed(),
            slices_crc32: u32::try_from(value(crc)?).ok()?,
        })
    }
}

/// Encodes `value` in bytes of seven bits each, the most significant first. The top bit of each byte is set.
fn groups<const COUNT: usize>(value: u64) -> [u8; COUNT] {
    let mut out = [0; COUNT];
    for (place, byte) in out.iter_mut().rev().enumerate() {
        *byte = 0x80 | (value >> (7 * place) & 0x7F) as u8;
    }
    out
}

/// Decodes what [`groups`] encoded. Returns `None` if the top bit of a byte is not set or the value needs more than 64
/// bits.
fn value(groups: &[u8]) -> Option<u64> {
    let mut value: u64 = 0;
    for byte in groups {
        if byte & 0x80 == 0 || value >> 57 != 0 {
            return None;
        }
        value = value << 7 | u64::from(byte & 0x7F);
    }
    Some(value)
}

/// Returns the CRC-32 (IEEE 802.3, as in zlib) of all coded slices (`nal_unit_type` 1 to 5), in order. The NAL headers
/// are included. Start codes and all other NAL units are not.
pub fn crc32_of_slices<'a>(nals: impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    let is_slice = |nal: &&[u8]| nal.first().is_some_and(|header| (1..=5).contains(&(header & 0x1F)));
    nals.filter(is_slice).for_each(|slice| sum.update(slice));
    sum.finalize()
}

const _: () = {
    assert!(Stamp::NAL_BYTES == 45);
    assert!(HEADER[2] as usize == STAMP_UUID.len() + WIDE + WIDE + NARROW, "the SEI payload size");
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nal(stamp: &Stamp) -> Vec<u8> {
        let mut out = Vec::new();
        stamp.write(&mut out);
        out
    }

    #[test]
    fn checksum_is_crc32_over_slices_only() {
        let nals: [&[u8]; 4] = [b"\x06 an SEI", b"123456789", b"\x67 an SPS", b""];
        // "123456789" is no slice, because '1' is 0x31, which means nal_unit_type 17. So the known check value of
        // CRC-32 is compared with crc32fast itself.
        assert_eq!(crc32_of_slices(nals.into_iter()), 0);
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
        let whole = crc32_of_slices([b"\x65abc".as_slice(), b"\x41def"].into_iter());
        assert_eq!(whole, crc32fast::hash(b"\x65abc\x41def"));
    }

    #[test]
    fn first_stamp_of_a_unit_is_found() {
        let stamp = Stamp { unit_number: 7, published_monotonic_ns: -1, slices_crc32: 9 };
        let encoded = nal(&stamp);
        let nals: [&[u8]; 4] = [b"\x09\xF0", b"\x06\x05\x01\x80", &encoded, b"\x65slice"];
        assert_eq!(Stamp::find(nals.into_iter()), Some(stamp));
        assert_eq!(Stamp::find([b"\x65slice".as_slice()].into_iter()), None);
    }

    #[test]
    fn field_with_too_many_bits_is_not_a_stamp() {
        let mut encoded = nal(&Stamp { unit_number: u64::MAX, ..Stamp::default() });
        assert!(Stamp::parse(&encoded).is_some());
        encoded[NUMBER_AT] = 0x82;
        assert_eq!(Stamp::parse(&encoded), None);
        let mut encoded = nal(&Stamp { slices_crc32: u32::MAX, ..Stamp::default() });
        encoded[CRC_AT] = 0x90;
        assert_eq!(Stamp::parse(&encoded), None);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn stamps_round_trip_and_never_need_emulation_prevention(
            unit_number: u64, published_monotonic_ns: i64, slices_crc32: u32,
        ) {
            let stamp = Stamp { unit_number, published_monotonic_ns, slices_crc32 };
            let encoded = nal(&stamp);
            prop_assert_eq!(encoded.len(), Stamp::NAL_BYTES);
            prop_assert!(encoded.iter().all(|byte| *byte > 3));
            prop_assert_eq!(Stamp::parse(&encoded), Some(stamp));
        }

        #[test]
        fn bytes_are_a_stamp_only_if_they_encode_back(
            at in 0..Stamp::NAL_BYTES, byte: u8, cut in 0..=Stamp::NAL_BYTES, unit_number: u64,
        ) {
            let mut encoded = nal(&Stamp { unit_number, ..Stamp::default() });
            encoded[at] = byte;
            if let Some(stamp) = Stamp::parse(&encoded) {
                prop_assert_eq!(nal(&stamp), encoded.clone());
            }
            prop_assert!(cut == Stamp::NAL_BYTES || Stamp::parse(&encoded[..cut]).is_none());
        }

        #[test]
        fn checksum_equals_a_bitwise_reference(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let slice = [&[0x65], bytes.as_slice()].concat();
            let mut naive = !0_u32;
            for byte in &slice {
                naive ^= u32::from(*byte);
                for _ in 0..8 {
                    naive = if naive & 1 == 1 { naive >> 1 ^ 0xEDB8_8320 } else { naive >> 1 };
                }
            }
            prop_assert_eq!(crc32_of_slices(std::iter::once(slice.as_slice())), !naive);
        }
    }
}
