//! Parses the credentials of a request: the headers `Authorization` and `Cookie`, and the text of the login cookie.
//! Does not check if the credentials are right.

use std::borrow::Cow;

use crate::base::limits;

/// Returns the token of `Authorization: Bearer TOKEN` (RFC 6750 section 2.1), or the password of `Authorization: Basic`
/// (RFC 7617), in which some players send the token. The user name is ignored. Returns `None` for any other value. The
/// word before the space is case-insensitive.
#[must_use]
pub(super) fn token(authorization: &str) -> Option<Cow<'_, str>> {
    let (scheme, value) = authorization.trim().split_once(' ')?;
    let value = value.trim_start();
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        Cow::Borrowed(value)
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(decode_base64(value)?).ok()?;
        Cow::Owned(pair.split_once(':')?.1.to_owned())
    } else {
        return None;
    };
    (!token.is_empty()).then_some(token)
}

/// Decodes base64 (RFC 4648 section 4), with or without the padding at its end.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    // A last group of one digit would have less than a byte.
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len());
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for place in 0..4 {
            let value = group.get(place).map_or(Some(0), |digit| base64_digit(*digit))?;
            bits = bits << 6 | value;
        }
        let [_, decoded @ ..] = bits.to_be_bytes();
        bytes.extend(decoded.iter().take(group.len() - 1));
    }
    Some(bytes)
}

fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

/// Returns the name and the value of each cookie that has one of `names`, in the order of the header. Returns at most
/// `limits::COOKIES_TRIED_MAX` cookies.
pub(super) fn cookies<'a, const NAMES: usize>(
    header: &'a str,
    names: [&'a str; NAMES],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
    let ours = pairs.filter(move |(name, _)| names.contains(name));
    ours.map(|(name, value)| (name, value.trim_matches('"'))).take(limits::COOKIES_TRIED_MAX)
}

/// The fields of a login cookie, `EXPIRES.ID.SEAL` in lower-case hexadecimal. The seal may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Login {
    /// Expiry in seconds since 1970.
    pub(super) expires_s: u64,
    /// Random bytes, different for each login.
    pub(super) id: [u8; ID_BYTES],
    /// HMAC-SHA-256 of the other fields.
    pub(super) seal: [u8; SEAL_BYTES],
}

pub(super) const ID_BYTES: usize = 16;
pub(super) const SEAL_BYTES: usize = 32;

impl Login {
    /// Returns the bytes that the seal covers.
    pub(super) fn sealed_bytes(&self) -> Vec<u8> {
        [self.expires_s.to_be_bytes().as_slice(), &self.id].concat()
    }

    /// Parses the text of a login cookie. Returns `None` for any text that [`Login::to_text`] would not write.
    pub(super) fn parse(text: &str) -> Option<Login> {
        let mut parts = text.splitn(3, '.');
        let expires_s = u64::from_str_radix(parts.next()?, 16).ok()?;
        let login = Login { expires_s, id: decode(parts.next()?)?, seal: decode(parts.next()?)? };
        (login.to_text() == text).then_some(login)
    }

    pub(super) fn to_text(self) -> String {
        format!("{:016x}.{}.{}", self.expires_s, encode(self.id), encode(self.seal))
    }
}

fn encode<const BYTES: usize>(bytes: [u8; BYTES]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).concat()
}

/// Decodes `BYTES` bytes from hexadecimal digits. Ignores any text after them. Missing digits become zero bytes.
fn decode<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bearer_returns_the_token_only() {
        assert_eq!(token("Bearer abc"), Some("abc".into()));
        assert_eq!(token("bearer   abc "), Some("abc".into()));
        for none in ["", "Bearer", "Bearer ", "Basic abc", "Bearerabc", "Token abc", " "] {
            assert_eq!(token(none), None, "{none:?}");
        }
        assert_eq!(
            token("Bearer a b"),
            Some("a b".into()),
            "a token with a space is compared as sent, and is wrong"
        );
    }

    /// The first values are from RFC 7617 section 2 and RFC 4648 section 10.
    #[test]
    fn basic_returns_the_password_only() {
        assert_eq!(token("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), Some("open sesame".into()));
        assert_eq!(token("basic QWxhZGRpbjpvcGVuIHNlc2FtZQ"), Some("open sesame".into()));
        assert_eq!(
            token("Basic OmE6Yg=="),
            Some("a:b".into()),
            "the token may have colons, the user may be empty"
        );
        for none in
            ["Basic Zm9vYmFy", "Basic Zm9v!mFy", "Basic QQQQQ", "Basic dXNlcjo=", "Basic /////w==", "Basic"]
        {
            assert_eq!(token(none), None, "{none}");
        }
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(decode_base64(text).unwrap(), bytes.as_bytes());
        }
    }

    /// Encodes bit by bit.
    fn encode_base64(bytes: &[u8]) -> String {
        let bits: Vec<u8> =
            bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
        let digit = |group: &[u8]| {
            let value =
                (0..6).fold(0, |value, place| value << 1 | usize::from(*group.get(place).unwrap_or(&0)));
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[value] as char
        };
        bits.chunks(6).map(digit).collect()
    }

    #[test]
    fn cookies_are_found_among_others() {
        let find =
            |header| cookies(header, ["ours", "__Host-ours"]).map(|(_, value)| value).collect::<Vec<_>>();
        assert_eq!(find("a=1; ours=x; b=2; __Host-ours=\"y\"; ours2=z; theirs=ours=q"), ["x", "y"]);
        assert_eq!(find("ours=1;ours=2;ours=3;ours=4;ours=5;ours=6").len(), limits::COOKIES_TRIED_MAX);
        assert_eq!(find("ours; =; ;;OURS=1; ours ="), [""; 0]);
    }

    #[test]
    fn only_text_that_to_text_writes_is_parsed() {
        let login = Login { expires_s: 1_800_000_000, id: [0xA5; 16], seal: [0x5A; 32] };
        let text = login.to_text();
        assert_eq!(Login::parse(&text), Some(login));
        for bad in
            [text.to_uppercase(), format!("{text}."), format!(" {text}"), text.replace('.', ""), "..".into()]
        {
            assert_eq!(Login::parse(&bad), None, "{bad}");
        }
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn logins_round_trip(expires_s in any::<u64>(), id in any::<[u8; 16]>(), seal in any::<[u8; 32]>()) {
            let login = Login { expires_s, id, seal };
            prop_assert_eq!(Login::parse(&login.to_text()), Some(login));
        }

        #[test]
        fn any_text_is_parsed_without_a_panic_and_no_two_texts_are_one_login(
            text in "[0-9a-fA-F.]{0,120}|\\PC{0,60}|([0-9a-f]{16}\\.[0-9a-f]{32}\\.[0-9a-f]{64})",
        ) {
            if let Some(login) = Login::parse(&text) {
                prop_assert_eq!(login.to_text(), text.clone());
            }
            let _ = token(&text);
            let header = format!("{text}; ours={text};{text}");
            let found: Vec<_> = cookies(&header, ["ours", "other"]).collect();
            prop_assert!(found.len() <= limits::COOKIES_TRIED_MAX);
            prop_assert!(found.iter().all(|(name, value)| *name == "ours" && !value.contains(';')));
        }

        #[test]
        fn base64_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..40), padding in "={0,2}") {
            prop_assert_eq!(decode_base64(&(encode_base64(&bytes) + &padding)), Some(bytes));
        }

        #[test]
        fn a_basic_token_is_what_follows_the_first_colon(user in "[^:]{0,10}", password in ".{1,20}") {
            let header = format!("Basic {}", encode_base64(format!("{user}:{password}").as_bytes()));
            prop_assert_eq!(token(&header), Some(password.into()));
        }

        #[test]
        fn a_bearer_token_is_part_of_its_header(header in "([Bb][Ee][Aa][Rr][Ee][Rr])? {0,3}\\PC{0,40}") {
            if let Some(token) = token(&header) {
                prop_assert!(header.contains(&*token) && !token.is_empty());
            }
        }
    }
}
