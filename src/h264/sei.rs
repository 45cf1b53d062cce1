//! Finds recovery points: SEI messages that mark a picture from which a decoder can start without an IDR (H.264 D.1.8).
//! Encoders with intra refresh or open GOPs send them in place of IDRs.

use super::bits::{BitReader, SyntaxError};
use super::nal::kind;

/// `payloadType` of filler (H.264 D.1.1).
const FILLER: u32 = 3;
/// `payloadType` of a recovery point.
const RECOVERY_POINT: u32 = 6;
/// The byte `rbsp_trailing_bits` after the last message.
const TRAILING_BITS: u8 = 0x80;
/// Maximum of `recovery_frame_cnt`: `MaxFrameNum - 1` with the largest `MaxFrameNum` (H.264 D.2.8, 7.4.2.1.1).
const RECOVERY_FRAMES_MAX: u32 = u16::MAX as u32; // local bound: set by the standard

/// Returns `recovery_frame_cnt` of the first recovery point among these NAL units: the number of pictures after which
/// the output of a decoder that starts here is correct. It is 0 if already the first picture is correct. Returns `None`
/// if there is no recovery point. NAL units that are not SEI are skipped, so all NAL units of a unit may be passed.
pub fn recovery_point<'a>(nals: impl IntoIterator<Item = &'a [u8]>) -> Option<u16> {
    nals.into_iter().find_map(|nal| match nal.split_first() {
        Some((header, messages)) if header & 0x1F == kind::SEI => find_in_messages(messages).ok(),
        _ => None,
    })
}

/// Returns true if an SEI NAL unit has only filler messages.
pub(super) fn is_filler(nal: &[u8]) -> bool {
    let mut bits = BitReader::new(nal.get(1..).unwrap_or_default());
    let mut message = || -> Result<Option<u32>, SyntaxError> {
        let payload_type = read_number(&mut bits)?;
        if payload_type == u32::from(TRAILING_BITS) && bits.is_at_end() {
            return Ok(None);
        }
        let payload_bytes = read_number(&mut bits)?;
        bits.skip_bytes(usize::try_from(payload_bytes).unwrap_or(usize::MAX))?;
        Ok(Some(payload_type))
    };
    nal.get(1).is_some_and(|first| u32::from(*first) == FILLER)
        && std::iter::repeat_with(&mut message).find(|found| *found != Ok(Some(FILLER))) == Some(Ok(None))
}

/// Walks through the messages of an SEI NAL unit (H.264 7.3.2.3). Returns an error at their end.
fn find_in_messages(messages: &[u8]) -> Result<u16, SyntaxError> {
    let mut bits = BitReader::new(messages);
    loop {
        let payload_type = read_number(&mut bits)?;
        let payload_bytes = read_number(&mut bits)?;
        if payload_type == RECOVERY_POINT {
            let count = bits.unsigned("recovery_frame_cnt", RECOVERY_FRAMES_MAX)?;
            return u16::try_from(count).map_err(|_| SyntaxError::OutOfRange("recovery_frame_cnt"));
        }
        bits.skip_bytes(usize::try_from(payload_bytes).unwrap_or(usize::MAX))?;
    }
}

/// Reads a number that is the sum of several bytes, of which all but the last are 255.
fn read_number(bits: &mut BitReader<'_>) -> Result<u32, SyntaxError> {
    let mut sum: u32 = 0;
    loop {
        let byte = bits.byte()?;
        sum = sum.checked_add(u32::from(byte)).ok_or(SyntaxError::OutOfRange("SEI size"))?;
        if byte != u8::MAX {
            return Ok(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{AUD, BitWriter, idr, non_idr, recovery_point_sei};
    use super::*;
    use proptest::prelude::*;

    /// Returns an SEI NAL unit with these messages, each a type and a payload.
    fn sei(messages: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let number = |mut writer: BitWriter, mut value: u32| {
            while value >= 255 {
                (writer, value) = (writer.bits(255, 8), value - 255);
            }
            writer.bits(value, 8)
        };
        let mut writer = BitWriter::default();
        for (payload_type, payload) in messages {
            writer = number(writer, *payload_type);
            writer = number(writer, u32::try_from(payload.len()).unwrap());
            writer = payload.iter().fold(writer, |writer, byte| writer.bits(u32::from(*byte), 8));
        }
        writer.nal(0x06)
    }

    #[test]
    fn recovery_point_of_an_encoder_is_found() {
        // payloadType 6, payloadSize 2, recovery_frame_cnt 24 as ue(v) (bits 0000_1100_1), then the flags.
        let nal = [0x06, 0x06, 0x02, 0x0C, 0xC0, 0x80];
        assert_eq!(recovery_point([AUD, &nal, &non_idr(0)]), Some(24));
        assert_eq!(recovery_point([AUD, &recovery_point_sei(0), &non_idr(0)]), Some(0));
        assert_eq!(recovery_point([AUD, &sei(&[(5, vec![1; 20])]), &idr(0)]), None);
        assert_eq!(recovery_point([&[0x41, 0x06, 0x01, 0xC4][..]]), None, "only SEI is searched");
        assert_eq!(recovery_point([]), None);
    }

    #[test]
    fn recovery_point_behind_other_messages_is_found() {
        for before in [vec![0; 7], vec![1, 0, 0], vec![0xFF; 700], vec![0, 0, 1, 0, 0, 0, 0, 3], vec![9, 0]] {
            for kind in [0, 1, 4, 5, 255, 700] {
                let nal = sei(&[(kind, before.clone()), (6, vec![0b0010_1100])]);
                assert_eq!(recovery_point([nal.as_slice()]), Some(4), "behind {kind} {before:?}");
            }
        }
    }

    #[test]
    fn filler_messages_are_recognized() {
        assert!(is_filler(&sei(&[(3, vec![0xFF; 900])])));
        assert!(is_filler(&sei(&[(3, vec![0xFF; 2]), (3, vec![])])));
        for other in
            [sei(&[(3, vec![0xFF; 2]), (5, vec![1; 16])]), sei(&[(5, vec![3; 16])]), sei(&[(128, vec![])])]
        {
            assert!(!is_filler(&other), "{other:?}");
        }
        for broken in [&[][..], &[0x06], &[0x06, 3], &[0x06, 3, 9, 1], &[0x06, 0x80], &[0x06, 3, 1, 0xFF]] {
            assert!(!is_filler(broken), "{broken:?}");
        }
    }

    #[test]
    fn broken_sei_is_no_recovery_point() {
        let too_many = BitWriter::default().bits(6, 8).bits(5, 8).ue(65_536).nal(0x06);
        for nal in
            [&[0x06][..], &[0x06, 6], &[0x06, 6, 1], &[0x06, 5, 200, 6, 1, 0x80], &[0x06, 0xFF], &too_many]
        {
            assert_eq!(recovery_point([nal]), None, "{nal:?}");
        }
        assert_eq!(recovery_point([[&[0x06][..], &[0xFF; 4_000]].concat().as_slice()]), None);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn recovery_points_are_found_behind_any_messages(
            messages in prop::collection::vec((0_u32..600, prop::collection::vec(0_u8..5, 0..600)), 0..6), count: u16,
        ) {
            let messages: Vec<_> = messages.into_iter().filter(|(kind, _)| *kind != RECOVERY_POINT).collect();
            prop_assert_eq!(recovery_point([sei(&messages).as_slice()]), None);
            let payload = recovery_point_sei(u32::from(count))[3..].to_vec();
            let with: Vec<_> = messages.into_iter().chain([(RECOVERY_POINT, payload.clone())]).collect();
            // The payload of the helper may itself contain emulation prevention bytes; then the size differs only.
            prop_assume!(!payload.windows(3).any(|bytes| bytes == [0, 0, 3]));
            prop_assert_eq!(recovery_point([sei(&with).as_slice()]), Some(count));
        }
    }
}
