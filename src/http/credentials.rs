//! Parses the credentials of a request: the headers `Authorization` and `Cookie`, and the text of the login cookie.
//! Does not check if the credentials are right.

use crate::base::limits;

/// Returns the token of `Authorization: Bearer TOKEN` (RFC 6750 section 2.1), or `None` for any other value. The word
/// `Bearer` is case-insensitive.
#[must_use]
pub(super) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    let token = token.trim_start();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
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
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer   abc "), Some("abc"));
        for none in ["", "Bearer", "Bearer ", "Basic abc", "Bearerabc", "Token abc", " "] {
            assert_eq!(bearer(none), None, "{none:?}");
        }
        assert_eq!(
            bearer("Bearer a b"),
            Some("a b"),
            "a token with a space is compared as sent, and is wrong"
        );
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
            let _ = bearer(&text);
            let header = format!("{text}; ours={text};{text}");
            let found: Vec<_> = cookies(&header, ["ours", "other"]).collect();
            prop_assert!(found.len() <= limits::COOKIES_TRIED_MAX);
            prop_assert!(found.iter().all(|(name, value)| *name == "ours" && !value.contains(';')));
        }

        #[test]
        fn a_bearer_token_is_part_of_its_header(header in "([Bb][Ee][Aa][Rr][Ee][Rr])? {0,3}\\PC{0,40}") {
            if let Some(token) = bearer(&header) {
                prop_assert!(header.contains(token) && !token.is_empty());
            }
        }
    }
}
