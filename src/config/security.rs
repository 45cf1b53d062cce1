//! Who may ask the server, and over what: the token, TLS, and the names it answers to. Values and the rules
//! between them; reads no file by itself, except the token's through the reader it is given.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::options::Given;
use crate::base::limits;

/// The shared secret. Never printed, and compared in constant time only.
#[derive(Clone)]
pub struct Token {
    text: String,
}

impl Token {
    /// Its bytes, to derive keys from. Compare with [`Token::is`] instead.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Whether `text` is the token. Takes a time that depends on the length of `text` only.
    #[must_use]
    pub fn is(&self, text: &[u8]) -> bool {
        use aws_lc_rs::constant_time::verify_slices_are_equal;
        use aws_lc_rs::digest::{SHA256, digest};
        // Equal lengths, so that not even the token's length shows.
        let (mine, theirs) = (digest(&SHA256, self.text.as_bytes()), digest(&SHA256, text));
        verify_slices_are_equal(mine.as_ref(), theirs.as_ref()).is_ok()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        self.is(other.expose())
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Printable ASCII without spaces fits an `Authorization` header, a cookie and a shell.
fn token(text: &str) -> Result<Token, String> {
    let is_good = (limits::TOKEN_BYTES_MIN..=limits::TOKEN_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good {
        return Ok(Token { text: text.to_owned() });
    }
    let fault = match text.len() {
        length if length < limits::TOKEN_BYTES_MIN => format!("it has {length} characters"),
        length if length > limits::TOKEN_BYTES_MAX => format!("it has {length} bytes"),
        _ => "it has spaces or characters beyond ASCII".to_owned(),
    };
    Err(format!(
        "{} to {} letters, digits and signs without spaces, such as `openssl rand -hex 16` prints; {fault}",
        limits::TOKEN_BYTES_MIN,
        limits::TOKEN_BYTES_MAX
    ))
}

/// The token of --token, or of the first line of --token-file.
pub(super) fn find_token(
    given: &BTreeMap<&'static str, Given>,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<Option<Token>, ConfigError> {
    let (given, text) = match (given.get("token"), given.get("token-file")) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(exclusive("token", "token-file")),
        (Some(given), None) => (given, given.values.last().cloned().unwrap_or_default()),
        (None, Some(given)) => {
            let path = PathBuf::from(given.values.last().map(String::as_str).unwrap_or_default());
            let text = read_file(&path).map_err(|source| ConfigError::FileUnreadable {
                origin: given.origin.clone(),
                path,
                source,
            })?;
            (given, text.lines().next().unwrap_or_default().trim().to_owned())
        }
    };
    let secret = |expected| ConfigError::BadSecret { origin: given.origin.clone(), expected };
    token(&text).map(Some).map_err(secret)
}

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// PEM files of the owner's.
    Files {
        /// The certificate, then those it hangs on.
        cert: PathBuf,
        /// Its private key, without a passphrase.
        key: PathBuf,
    },
    /// One of our own making, kept in this directory.
    SelfSigned {
        /// Made when it does not exist.
        directory: PathBuf,
    },
}

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tls::Files { cert, key } => write!(f, "{} with {}", cert.display(), key.display()),
            Tls::SelfSigned { directory } => write!(f, "self-signed, kept in {}", directory.display()),
        }
    }
}

/// --tls-cert with --tls-key, or --tls-self-signed with --state-path, or neither.
pub(super) fn tls(
    given: &BTreeMap<&'static str, Given>,
    is_self_signed: bool,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Tls>, ConfigError> {
    let path = |name: &str| given.get(name).and_then(|given| given.values.last()).map(PathBuf::from);
    match (path("tls-cert"), path("tls-key"), is_self_signed) {
        (None, None, false) => Ok(None),
        (Some(cert), Some(key), false) => Ok(Some(Tls::Files { cert, key })),
        (None, None, true) => match path("state-path").or_else(|| usual_state_path(env)) {
            Some(directory) => Ok(Some(Tls::SelfSigned { directory })),
            None => Err(ConfigError::Together(
                "--tls-self-signed keeps its certificate in a directory: say which with --state-path".into(),
            )),
        },
        (_, _, true) => Err(exclusive("tls-self-signed", "tls-cert and --tls-key")),
        (Some(_), None, false) => Err(ConfigError::Together("--tls-cert needs --tls-key".into())),
        (None, Some(_), false) => Err(ConfigError::Together("--tls-key needs --tls-cert".into())),
    }
}

/// systemd's StateDirectory=, else where the XDG rules put the state of programs.
fn usual_state_path(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let directory = |name: &str| {
        let value = env(name).filter(|value| !value.is_empty())?;
        // systemd separates several by colons.
        let first = value.to_str().and_then(|text| text.split(':').next()).map(PathBuf::from);
        Some(first.unwrap_or_else(|| PathBuf::from(&value)))
    };
    let ours = |path: PathBuf| path.join("streaming-server");
    directory("STATE_DIRECTORY")
        .or_else(|| directory("XDG_STATE_HOME").map(ours))
        .or_else(|| directory("HOME").map(|home| ours(home.join(".local/state"))))
}

fn exclusive(one: &str, other: &str) -> ConfigError {
    ConfigError::Together(format!("--{one} and --{other} exclude each other: give one of them"))
}

/// A name the server may be asked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowHost(String);

impl AllowHost {
    /// In lower case; `*` stands for any name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AllowHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn allow_host(text: &str) -> Result<AllowHost, String> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let is_name = !lower.is_empty()
        && lower.len() <= limits::HOST_BYTES_MAX
        && lower.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name || lower == "*" {
        Ok(AllowHost(lower))
    } else {
        Err("a host name without scheme and port, such as camera.example.org, or * for any".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    #[test]
    fn a_token_is_long_enough_and_fits_a_header() {
        assert!(token(GOOD).is_ok());
        assert!(token(&"x".repeat(limits::TOKEN_BYTES_MAX)).is_ok());
        let long = "x".repeat(limits::TOKEN_BYTES_MAX + 1);
        for bad in ["", "short", "0123456789abcde", "0123456789abcde f", "0123456789abcdeé", &long] {
            assert!(token(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_itself_only_and_never_shown() {
        let good = token(GOOD).unwrap();
        assert!(good.is(GOOD.as_bytes()));
        for other in ["", "0", "0123456789abcdeF", "0123456789abcdef0", "0123456789abcde"] {
            assert!(!good.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{good:?}").contains(GOOD));
    }

    #[test]
    fn names_are_names() {
        assert_eq!(allow_host("Cam.Example.").map(|host| host.to_string()), Ok("cam.example".into()));
        assert!(allow_host("*").is_ok());
        for bad in ["", "http://cam", "cam:8080", "cam/x", "a b", "*.example", "é"] {
            assert!(allow_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_state_directory_is_systemds_or_the_users() {
        let find = |pairs: &'static [(&str, &str)]| {
            usual_state_path(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into()))
        };
        assert_eq!(find(&[("STATE_DIRECTORY", "/a:/b"), ("HOME", "/h")]), Some("/a".into()));
        assert_eq!(find(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")]), Some("/x/streaming-server".into()));
        assert_eq!(find(&[("HOME", "/h")]), Some("/h/.local/state/streaming-server".into()));
        assert_eq!(find(&[("HOME", "")]), None);
    }
}
