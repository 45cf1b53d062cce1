//! Options of the stream: its name, its title, and the STUN and TURN servers of its viewers.

use std::fmt;

/// Default value of --name.
pub const STREAM_NAME: &str = "camera";

/// Default value of --title.
pub(super) const TITLE: &str = "Camera";

/// First parts of paths that a stream cannot have, because other things of the server have them.
const RESERVED: [&str; 6] = ["api", "health", "ready", "metrics", "debug", "whep"];

const NAME_BYTES_MAX: usize = 32; // local bound: it is part of URLs
const TITLE_CHARS_MAX: usize = 64; // local bound: it is shown in one line
const URL_BYTES_MAX: usize = 512; // local bound: it is sent in a header

/// Parses the name of a stream.
pub(super) fn name(text: &str) -> Result<String, String> {
    let is_character = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_character);
    if is_name && !RESERVED.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, such as front-door, and none of {}",
        RESERVED.join(", ")
    ))
}

/// Parses the title of a stream.
pub(super) fn title(text: &str) -> Result<String, String> {
    let text = text.trim();
    if (1..=TITLE_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("a text of 1 to {TITLE_CHARS_MAX} characters"))
    }
}

/// A STUN or TURN server.
#[derive(Clone, PartialEq, Eq)]
pub struct IceServer {
    /// URL without the credentials (RFC 7064, RFC 7065).
    pub url: String,
    /// User name and password of a TURN server. `None` for a STUN server.
    pub credentials: Option<(String, String)>,
}

impl fmt::Display for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The credentials are a secret, so they are not shown.
        f.write_str(&self.url)
    }
}

impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses `stun:HOST[:PORT]`, or `turn:USER:PASSWORD@HOST[:PORT][?transport=udp|tcp]`, or either with `stuns` or
/// `turns`. User and password may be percent-encoded.
pub(super) fn ice_server(text: &str) -> Result<IceServer, String> {
    parse_ice_server(text).ok_or_else(|| {
        "stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT][?transport=udp], such as stun:stun.example.org:3478. \
         Write a colon in the user name as %3A"
            .to_owned()
    })
}

fn parse_ice_server(text: &str) -> Option<IceServer> {
    let (scheme, rest) = text.split_once(':').filter(|_| text.len() <= URL_BYTES_MAX)?;
    let is_turn = match scheme {
        "stun" | "stuns" => false,
        "turn" | "turns" => true,
        _ => return None,
    };
    let (credentials, address) = match rest.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, rest),
    };
    let (host, query) = address.split_once('?').map_or((address, None), |(host, query)| (host, Some(query)));
    let is_query = query.is_none_or(|query| is_turn && matches!(query, "transport=udp" | "transport=tcp"));
    if !is_query || !is_host(host) || credentials.is_some() != is_turn {
        return None;
    }
    let credentials = match credentials {
        Some(pair) => {
            let (user, password) = pair.split_once(':')?;
            Some((decode(user)?, decode(password)?))
        }
        None => None,
    };
    Some(IceServer { url: format!("{scheme}:{address}"), credentials })
}

/// Returns true for a host name or an address, with a port or without one.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_name = !host.is_empty() && host.bytes().all(is_character);
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = inside.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
    (is_name || is_address) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// Decodes percent-encoding. Returns `None` for an empty text, and for characters that a header cannot carry.
fn decode(text: &str) -> Option<String> {
    let mut decoded = String::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok().filter(|digits| !digits.starts_with('+'))?;
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => byte,
        };
        let is_printable = byte.is_ascii_graphic() || byte == b' ';
        decoded.push(is_printable.then_some(char::from(byte))?);
    }
    (!decoded.is_empty()).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_hide_a_path_of_the_server_are_refused() {
        for good in ["camera", "front-door", "2", "a23456789-123456789-123456789-12"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        let long = "a".repeat(33);
        for bad in ["", "Camera", "a b", "viewer.js", "a/b", "küche", long.as_str()].iter().chain(&RESERVED)
        {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_title_is_one_line() {
        assert_eq!(title(" Küche: Herd ").as_deref(), Ok("Küche: Herd"));
        for bad in ["", "  ", "a\nb", &"ä".repeat(65)] {
            assert!(title(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_are_split_into_url_and_credentials() {
        let server = |url: &str, credentials: Option<(&str, &str)>| {
            let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
            Some(IceServer { url: url.to_owned(), credentials })
        };
        for (text, expected) in [
            ("stun:stun.example.org", server("stun:stun.example.org", None)),
            ("stuns:[2001:db8::1]:5349", server("stuns:[2001:db8::1]:5349", None)),
            ("turn:me:a/b+c=@192.0.2.1:3478", server("turn:192.0.2.1:3478", Some(("me", "a/b+c=")))),
            (
                "turns:1%3Ame:p:%40%22@t.example?transport=tcp",
                server("turns:t.example?transport=tcp", Some(("1:me", "p:@\""))),
            ),
        ] {
            assert_eq!(parse_ice_server(text), expected, "{text}");
        }
        for bad in [
            "stun.example.org",
            "stun:",
            "stun://stun.example.org",
            "http:x",
            "turn:turn.example.org",
            "turn:me@turn.example.org",
            "turn::p@h",
            "turn:u:@h",
            "turn:u:%0d@h",
            "turn:u:%+1@h",
            "turn:u:ä@h",
            "stun:u:p@h",
            "stun:h?transport=udp",
            "turn:u:p@h?transport=sctp",
            "stun:h:0",
            "stun:h:port",
            "stun:[::1",
            "stun:h>;x",
        ] {
            assert_eq!(parse_ice_server(bad), None, "{bad}");
        }
        let turn = ice_server("turn:me:secret-password@turn.example").unwrap();
        assert!(!format!("{turn} {turn:?}").contains("secret"));
        let typo = ["--ice-server", "turn:me:secret-password@turn.example?transport=sctp"].map(Into::into);
        let error = crate::config::Config::from_args(typo, |_| None, |_| Ok(String::new())).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
