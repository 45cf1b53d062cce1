//! STUN: reads the ufrag that tells which session a datagram belongs to, computes the HMAC that authenticates the
//! datagram, and writes messages. Reads untrusted bytes without copying them.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::hmac;

/// Header length and magic cookie (RFC 8489 section 5).
const HEADER_BYTES: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Types of binding messages (RFC 8489 section 5).
pub(super) const REQUEST: [u8; 2] = [0x00, 0x01];
pub(super) const SUCCESS: [u8; 2] = [0x01, 0x01];
pub(super) const FAILURE: [u8; 2] = [0x01, 0x11];

/// Types of attributes (RFC 8489 section 18.3, RFC 8445 section 16.1).
pub(super) const USERNAME: u16 = 0x0006;
pub(super) const ERROR_CODE: u16 = 0x0009;
pub(super) const PRIORITY: u16 = 0x0024;
pub(super) const USE_CANDIDATE: u16 = 0x0025;
pub(super) const ICE_CONTROLLED: u16 = 0x8029;
pub(super) const ICE_CONTROLLING: u16 = 0x802A;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// Value of ERROR-CODE 487, which says that both sides claim the same role (RFC 8445 section 7.3.1.1).
pub(super) const ROLE_CONFLICT: [u8; 4] = [0, 0, 4, 87];

/// Priority of a peer-reflexive candidate with the highest local preference (RFC 8445 section 5.1.2).
pub(super) const PEER_REFLEXIVE_PRIORITY: [u8; 4] = [110, 255, 255, 255];

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
    if header.get(..2)? != REQUEST
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
        if u16::from_be_bytes([k0, k1]) == USERNAME {
            let (ufrag, _) = std::str::from_utf8(value).ok()?.split_once(':')?;
            return (!ufrag.is_empty()).then_some(ufrag);
        }
        attributes = rest.get(value_bytes.next_multiple_of(4)..)?;
    }
    None
}

/// Returns true for the header of a success response. The caller has to authenticate it.
pub(super) fn is_success_response(bytes: &[u8]) -> bool {
    bytes.starts_with(&SUCCESS) && bytes.get(4..8) == Some(&MAGIC_COOKIE)
}

/// Returns the transaction id of a message.
pub(super) fn transaction_id(bytes: &[u8]) -> Option<[u8; 12]> {
    bytes.get(8..)?.first_chunk().copied()
}

/// Returns a transaction id that cannot be guessed, or `None` if there are no random numbers.
pub(super) fn random_id() -> Option<[u8; 12]> {
    let mut id = [0; 12];
    aws_lc_rs::rand::fill(&mut id).ok().map(|()| id)
}

/// A message that is being written.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(kind: [u8; 2], id: [u8; 12]) -> Message {
        let mut bytes = Vec::with_capacity(128); // local bound: our requests have about 100 bytes
        for part in [&kind[..], &[0, 0], &MAGIC_COOKIE, &id] {
            bytes.extend_from_slice(part);
        }
        Message(bytes)
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        self.0.extend_from_slice(&kind.to_be_bytes());
        self.0.extend_from_slice(&u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends XOR-MAPPED-ADDRESS (RFC 8489 section 14.2).
    pub(super) fn mapped_address(self, address: SocketAddr) -> Message {
        // The magic cookie and the transaction id, which follow the type and the length, hide the address.
        let key: Vec<u8> = self.0.get(4..HEADER_BYTES).unwrap_or_default().to_vec();
        let (family, ip) = match address.ip().to_canonical() {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (2, ip.octets().to_vec()),
        };
        let mut value = vec![0, family];
        let port = address.port().to_be_bytes();
        value.extend(port.iter().zip(&key).map(|(byte, key)| byte ^ key));
        value.extend(ip.iter().zip(&key).map(|(byte, key)| byte ^ key));
        self.attribute(XOR_MAPPED_ADDRESS, &value)
    }

    /// Appends MESSAGE-INTEGRITY and FINGERPRINT, and returns the bytes.
    pub(super) fn sign(mut self, key: &hmac::Key) -> Vec<u8> {
        self.set_length(24);
        let tag = hmac_sha1(key, &[&self.0]);
        self = self.attribute(MESSAGE_INTEGRITY, &tag);
        self.set_length(8);
        let fingerprint = crc32fast::hash(&self.0) ^ FINGERPRINT_XOR;
        self.attribute(FINGERPRINT, &fingerprint.to_be_bytes()).0
    }

    /// Sets the length in the header to that of all attributes, including the next one of `next_bytes`.
    fn set_length(&mut self, next_bytes: usize) {
        let length = u16::try_from(self.0.len() - HEADER_BYTES + next_bytes).unwrap_or_default();
        if let Some(field) = self.0.get_mut(2..4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }
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
        let mut bytes = REQUEST.to_vec();
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

    /// str0m has its own parser.
    #[test]
    fn written_messages_are_read_by_str0m() {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"password");
        for address in ["192.0.2.1:32853", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"] {
            let address: SocketAddr = address.parse().unwrap();
            let bytes = Message::new(SUCCESS, [7; 12]).mapped_address(address).sign(&key);
            let message = str0m::ice::StunMessage::parse(&bytes).unwrap();
            assert!(message.is_successful_binding_response() && is_success_response(&bytes));
            assert_eq!(message.mapped_address(), Some(address));
            assert_eq!(transaction_id(&bytes), Some([7; 12]));
            assert!(message.verify(&[], |_, parts| hmac_sha1(&key, parts)));
        }
        let bytes = Message::new(REQUEST, [7; 12])
            .attribute(USERNAME, b"abc:defgh")
            .attribute(PRIORITY, &PEER_REFLEXIVE_PRIORITY)
            .attribute(USE_CANDIDATE, &[])
            .sign(&key);
        let message = str0m::ice::StunMessage::parse(&bytes).unwrap();
        assert_eq!(message.split_username(), Some(("abc", "defgh")));
        assert!(message.use_candidate() && message.verify(&[], |_, parts| hmac_sha1(&key, parts)));
        assert_eq!(stun_ufrag(&bytes), Some("abc"));
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
