//! The options of publishing: the WHIP endpoint, its token and its trusted certificates.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::given::{Given, GivenByName};
use super::security::{self, Token};
use crate::base::limits;

/// Where and how to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whip {
    /// The WHIP endpoint.
    pub url: WhipUrl,
    /// The token of the `Authorization` header. `None` if the server requires none.
    pub token: Option<Token>,
    /// PEM file with the only certificates to trust. `None` if the certificates of the machine are trusted.
    pub ca: Option<PathBuf>,
}

/// Where messages about events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// URL that gets a POST for each message.
    pub url: WhipUrl,
    /// Key of the signature. `None` if messages are not signed.
    pub secret: Option<Token>,
}

/// Returns what --webhook and --webhook-secret-file give. Returns `None` without --webhook.
pub(super) fn find_webhook(
    given: &GivenByName,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<Option<Webhook>, ConfigError> {
    let Some(url) = given.get("webhook") else {
        return match given.contains_key("webhook-secret-file") {
            true => Err(ConfigError::Together("--webhook-secret-file needs --webhook".to_owned())),
            false => Ok(None),
        };
    };
    Ok(Some(Webhook {
        url: parse_url(url)?,
        secret: read_secret(given.get("webhook-secret-file"), read_file)?,
    }))
}

/// Returns what --whip, --whip-token-file and --whip-ca give. Returns `None` without --whip.
pub(super) fn find_whip(
    given: &GivenByName,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<Option<Whip>, ConfigError> {
    let Some(url) = given.get("whip") else {
        let orphan = ["whip-token-file", "whip-ca"].into_iter().find(|name| given.contains_key(name));
        return match orphan {
            Some(name) => Err(ConfigError::Together(format!("--{name} needs --whip"))),
            None => Ok(None),
        };
    };
    let url = parse_url(url)?;
    let token = read_secret(given.get("whip-token-file"), read_file)?;
    let ca = given.get("whip-ca").map(|given| PathBuf::from(given.text()));
    Ok(Some(Whip { url, token, ca }))
}

fn parse_url(given: &Given) -> Result<WhipUrl, ConfigError> {
    let origin = given.origin.clone();
    WhipUrl::parse(given.text()).map_err(|error| match error {
        // The message does not repeat the value, because it contains a password.
        UrlError::Password => ConfigError::BadSecret { origin, expected: error.to_string() },
        UrlError::Malformed => {
            ConfigError::BadValue { origin, value: given.text().to_owned(), expected: error.to_string() }
        }
    })
}

/// Reads the first line of the file that the option names.
fn read_secret(
    given: Option<&Given>,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<Option<Token>, ConfigError> {
    let Some(given) = given else { return Ok(None) };
    let text = given.read(read_file)?;
    let secret = security::whip_token(text.lines().next().unwrap_or_default().trim());
    secret.map(Some).map_err(|expected| ConfigError::BadSecret { origin: given.origin.clone(), expected })
}

/// Returns the value that the option `name` of messages has, as text.
pub(super) fn shown_webhook(webhook: Option<&Webhook>, name: &str) -> String {
    match (name, webhook) {
        ("webhook", Some(webhook)) => webhook.url.to_string(),
        // The secret is not shown.
        (_, Some(Webhook { secret: Some(_), .. })) => "given, not shown".to_owned(),
        _ => String::new(),
    }
}

/// Returns the value that the option `name` has, as text. The text is empty if the option has no value.
pub(super) fn shown(whip: Option<&Whip>, name: &str) -> String {
    match (name, whip) {
        ("whip", Some(whip)) => whip.url.to_string(),
        // The token is a secret, so it is not shown.
        ("whip-token-file", Some(Whip { token: Some(_), .. })) => "given, not shown".to_owned(),
        ("whip-ca", Some(Whip { ca: Some(ca), .. })) => ca.display().to_string(),
        _ => String::new(),
    }
}

/// A URL with the scheme `http` or `https`, without user, password and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhipUrl {
    /// True for `https`.
    pub is_tls: bool,
    /// Host name or IP address. An IPv6 address has no brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub target: String,
}

/// Why a text is not a URL that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is not a URL with `http` or `https`.
    #[error("a URL such as https://media.example/camera/whip")]
    Malformed,
    /// It contains a password, which `ps` would show.
    #[error("a URL without user and password: give a token with --whip-token-file")]
    Password,
}

impl WhipUrl {
    /// Parses an absolute URL. A fragment is ignored.
    ///
    /// # Errors
    /// Returns a [`UrlError`] if the text is not a usable URL.
    pub fn parse(text: &str) -> Result<WhipUrl, UrlError> {
        let is_readable =
            text.len() <= limits::WHIP_URL_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
        let (scheme, rest) = text.split_once("://").filter(|_| is_readable).ok_or(UrlError::Malformed)?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError::Malformed),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(end).ok_or(UrlError::Malformed)?;
        if authority.contains('@') {
            return Err(UrlError::Password);
        }
        let (host, port) = split_authority(authority, is_tls).ok_or(UrlError::Malformed)?;
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(WhipUrl { is_tls, host, port, target })
    }

    /// Resolves a reference of a `Location` header, absolute or relative, against this URL (RFC 3986 section 5.2).
    ///
    /// # Errors
    /// Returns a [`UrlError`] if the result is not a usable URL.
    pub fn join(&self, reference: &str) -> Result<WhipUrl, UrlError> {
        let reference = reference.split('#').next().unwrap_or_default();
        let is_absolute = reference.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
        if is_absolute {
            return WhipUrl::parse(reference);
        }
        let scheme = if self.is_tls { "https" } else { "http" };
        if reference.starts_with("//") {
            return WhipUrl::parse(&format!("{scheme}:{reference}"));
        }
        let (path, query) = split_query(&self.target);
        let target = match reference {
            "" => self.target.clone(),
            _ if reference.starts_with('/') => reference.to_owned(),
            _ if reference.starts_with('?') => format!("{path}{reference}"),
            _ => format!("{}/{reference}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
        };
        let (path, query) = if reference.is_empty() { (path, query) } else { split_query(&target) };
        WhipUrl::parse(&format!("{scheme}://{}{}{query}", self.authority(), without_dots(path)))
    }

    /// Returns host and port as in the header `Host`. The usual port of the scheme is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == usual_port(self.is_tls) { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for WhipUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

fn usual_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

/// Returns host and port of `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`.
fn split_authority(authority: &str, is_tls: bool) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']')?;
            ip.parse::<std::net::Ipv6Addr>().ok()?;
            (ip, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host) {
        return None;
    }
    let port = match port {
        None | Some("") => usual_port(is_tls),
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
    };
    Some((host.to_ascii_lowercase(), port))
}

/// Splits a target into its path and its query, which begins with `?` unless it is empty.
fn split_query(target: &str) -> (&str, &str) {
    target.split_at_checked(target.find('?').unwrap_or(target.len())).unwrap_or((target, ""))
}

/// Removes the segments `.` and `..` (RFC 3986 section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if is_last {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> WhipUrl {
        WhipUrl::parse(text).unwrap()
    }

    #[test]
    fn urls_are_split_and_written_again() {
        for (text, host, port, target, written) in [
            ("https://media.example/a/whip", "media.example", 443, "/a/whip", "https://media.example/a/whip"),
            (
                "HTTP://Media.example:8889?x=1#y",
                "media.example",
                8889,
                "/?x=1",
                "http://media.example:8889/?x=1",
            ),
            ("http://[::1]:80/whip", "::1", 80, "/whip", "http://[::1]/whip"),
            ("http://[2001:db8::7]", "2001:db8::7", 80, "/", "http://[2001:db8::7]/"),
        ] {
            let url = url(text);
            assert_eq!((url.host.as_str(), url.port, url.target.as_str()), (host, port, target), "{text}");
            assert_eq!(url.to_string(), written);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "media.example",
            "rtsp://media.example/",
            "https://",
            "https:///whip",
            "https://a b/",
            "http://a:0/",
            "http://a:99999/",
            "http://[::1/",
            "http://[x]/",
            "http://a/\u{e9}",
            "http://a/\r\nX: y",
            "http://a:b:1/",
        ] {
            assert_eq!(WhipUrl::parse(text), Err(UrlError::Malformed), "{text}");
        }
        assert_eq!(WhipUrl::parse("https://user:secret@a/whip"), Err(UrlError::Password));
        assert!(WhipUrl::parse(&format!("http://a/{}", "x".repeat(limits::WHIP_URL_BYTES_MAX))).is_err());
    }

    /// The references are those of RFC 3986 section 5.4, as far as they apply to HTTP.
    #[test]
    fn references_are_resolved_as_in_the_rfc() {
        let base = url("http://a/b/c/d;p?q");
        for (reference, expected) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g;x", "http://a/b/c/g;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            ("..g", "http://a/b/c/..g"),
            ("./g/.", "http://a/b/c/g/"),
            ("g/./h", "http://a/b/c/g/h"),
            ("g/../h", "http://a/b/c/h"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("https://other:8443/s/1", "https://other:8443/s/1"),
        ] {
            assert_eq!(base.join(reference).unwrap().to_string(), expected, "{reference}");
        }
        assert!(base.join("javascript:alert(1)").is_err() && base.join("http://x@y/").is_err());
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_reference_gives_a_url_that_is_parsed_back(reference in "\\PC{0,40}", target in "[a-z/.?]{0,20}") {
            let base = url(&format!("https://media.example/{target}"));
            if let Ok(joined) = base.join(&reference) {
                prop_assert_eq!(WhipUrl::parse(&joined.to_string()), Ok(joined.clone()));
                prop_assert!(joined.target.starts_with('/') && joined.target.bytes().all(|b| b.is_ascii_graphic()));
            }
        }
    }
}
