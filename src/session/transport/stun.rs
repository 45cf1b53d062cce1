//! STUN: reads the ufrag that tells which session a datagram belongs to, and computes the HMAC that authenticates the
//! datagram. Reads untrusted bytes without copying them.

use aws_lc_rs::hmac;

/// Header length and magic cookie (RFC 8489 section 5).
const HEADER_BYTES: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const ATTRIBUTE_USERNAME: u16 = 0x0006;

/// Returns the local ufrag (before the colon) in the USERNAME of a STUN binding request. Returns `None` for any other
/// datagram. Does not authenticate the message.
///
/// ```text
///  0      2        4              8                 20
///  ├ type ┼ length ┼ magic cookie ┼ transaction id ─┼ attributes: type(2) length(2) value, padded to 4
/// ```
pub fn stun_ufrag(bytes: &[u8]) -> Option<&str> {
    let (header, mut attributes) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = usize::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?));
    if header.get(..2)? != BINDING_REQUEST
        || header.get(4..8)? != MAGIC_COOKIE
        || length != attributes.len()
        || length % 4 != 0
    {
        return None;
    }
    while let Some((head, rest)) = attributes.split_first_chunk::<4>() {
        let [k0, k1, l0, l1] = *head;
        let value_bytes = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..value_bytes)?;
        if u16::from_be_bytes([k0, k1]) == ATTRIBUTE_USERNAME {
            let (ufrag, _) = std::str::from_utf8(value).ok()?.split_once(':')?;
            return (!ufrag.is_empty()).then_some(ufrag);
        }
        attributes = rest.get(value_bytes.next_multiple_of(4)..)?;
    }
    None
}

/// Returns the HMAC-SHA1 of the concatenated `parts` (RFC 8489 section 14.5).
pub(super) fn hmac_sha1(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 20] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut tag = [0; 20];
    tag.copy_from_slice(context.sign().as_ref());
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend(kind.to_be_bytes());
            body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = BINDING_REQUEST.to_vec();
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(MAGIC_COOKIE);
        bytes.extend([7; 12]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn ufrag_is_found_after_other_attributes() {
        let bytes = message(&[(0x0024, &[0, 0, 0, 1]), (0x8022, b"odd"), (0x0006, b"12+abc:peer")]);
        assert_eq!(stun_ufrag(&bytes), Some("12+abc"));
    }

    #[test]
    fn only_a_complete_binding_request_with_a_username_has_a_ufrag() {
        let good = message(&[(0x0006, b"a:b")]);
        for index in [0, 1, 2, 3, 4, 7] {
            let mut bad = good.clone();
            bad[index] ^= 0x40;
            assert_eq!(stun_ufrag(&bad), None, "byte {index}");
        }
        assert_eq!(stun_ufrag(&message(&[(0x0006, b"no colon")])), None);
        assert_eq!(stun_ufrag(&message(&[(0x0006, b":b")])), None);
        assert_eq!(stun_ufrag(&message(&[(0x0006, &[0xff, b':', b'x'])])), None);
        assert_eq!(stun_ufrag(&message(&[])), None);
        for end in 0..good.len() {
            assert_eq!(stun_ufrag(&good[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn attribute_longer_than_the_message_is_refused() {
        let mut bytes = message(&[(0x0024, &[0, 0, 0, 1]), (0x0006, b"a:b")]);
        bytes[23] = 200;
        assert_eq!(stun_ufrag(&bytes), None);
    }

    /// The expected values are from RFC 2202 section 3, test cases 1 and 6. Case 6 has a key longer than a block.
    #[test]
    fn hmac_sha1_matches_rfc_2202() {
        let tag = |key: &[u8], parts: &[&[u8]]| {
            hmac_sha1(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key), parts)
        };
        assert_eq!(hex(&tag(&[0x0b; 20], &[b"Hi ", b"There"])), "b617318655057264e28bc0b6fb378c8ef146be00");
        let message: &[u8] = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(hex(&tag(&[0xaa; 80], &[message])), "aa4ae5e15272d00e95705637ce8a3b55ed402112");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = stun_ufrag(&bytes);
        }

        #[test]
        fn ufrag_of_any_attributes_lies_inside_the_message(
            body in proptest::collection::vec(any::<u8>(), 0..50).prop_map(|mut b| { b.resize(b.len() / 4 * 4, 0); b }),
        ) {
            let mut bytes = message(&[]);
            bytes[3] = u8::try_from(body.len()).unwrap();
            bytes.extend(&body);
            if let Some(ufrag) = stun_ufrag(&bytes) {
                prop_assert!(!ufrag.contains(':'));
                prop_assert!(body.windows(ufrag.len()).any(|w| w == ufrag.as_bytes()));
            }
        }

        #[test]
        fn written_username_is_read_back(ufrag in "[A-Za-z0-9+/]{1,32}", remote in "[A-Za-z0-9+/]{1,32}", before in 0..5_usize) {
            let username = format!("{ufrag}:{remote}");
            let bytes = message(&[(0x0025, &b"xxxxx"[..before]), (0x0006, username.as_bytes())]);
            prop_assert_eq!(stun_ufrag(&bytes), Some(ufrag.as_str()));
        }
    }
}
