//! The options about security: token, TLS and host names. Parses their values and checks which options may be combined.
//! The only file that is read is the token file, through a function that the caller passes.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::given::GivenByName;
use super::values;
use crate::base::limits;

/// The shared secret. It is never printed. A comparison takes the same time whether it succeeds or not.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Returns the bytes of the token, from which keys are derived. To compare tokens, use [`Token::is`] instead.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns true if `text` is the token. The comparison takes a time that depends only on the length of `text`, so
    /// the time reveals nothing about the token.
    #[must_use]
    pub fn is(&self, text: &[u8]) -> bool {
        use aws_lc_rs::constant_time::verify_slices_are_equal;
        use aws_lc_rs::digest::{SHA256, digest};
        // Digests are compared because they always have equal lengths. So the time does not reveal the token's length.
        let (mine, theirs) = (digest(&SHA256, self.0.as_bytes()), digest(&SHA256, text));
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

/// Parses a token. Only printable ASCII without spaces is accepted, because it can be used unchanged in an
/// `Authorization` header, in a cookie and in a shell.
fn token(text: &str) -> Result<Token, String> {
    let fault = match text.len() {
        length if length < limits::TOKEN_BYTES_MIN => format!("it has {length} characters"),
        length if length > limits::TOKEN_BYTES_MAX => format!("it has {length} bytes"),
        _ if text.bytes().all(|byte| byte.is_ascii_graphic()) => return Ok(Token(text.to_owned())),
        _ => "it has spaces or characters beyond ASCII".to_owned(),
    };
    Err(format!(
        "{} to {} letters, digits and signs without spaces, such as the output of `openssl rand -hex 16`; {fault}",
        limits::TOKEN_BYTES_MIN,
        limits::TOKEN_BYTES_MAX
    ))
}

/// Parses the token for a WHIP server. It becomes a header value, so only printable ASCII without spaces is accepted.
pub(super) fn whip_token(text: &str) -> Result<Token, String> {
    let is_good = (1..=limits::WHIP_TOKEN_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good {
        return Ok(Token(text.to_owned()));
    }
    Err(format!(
        "1 to {} letters, digits and signs without spaces in the first line",
        limits::WHIP_TOKEN_BYTES_MAX
    ))
}

/// Returns the token that --token gives, or the first line of the file that --token-file names. Returns `None` if
/// neither is given.
pub(super) fn find_token(
    given: &GivenByName,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<Option<Token>, ConfigError> {
    let (given, text) = match (given.get("token"), given.get("token-file")) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(exclusive("token", "token-file")),
        (Some(given), None) => (given, given.text().to_owned()),
        (None, Some(given)) => {
            let text = given.read(read_file)?;
            (given, text.lines().next().unwrap_or_default().trim().to_owned())
        }
    };
    let secret = |expected| ConfigError::BadSecret { origin: given.origin.clone(), expected };
    token(&text).map(Some).map_err(secret)
}

/// The source of the TLS certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The operator provides the certificate as PEM files.
    Files {
        /// File with the certificate, followed by the certificates of its issuers.
        cert: PathBuf,
        /// File with the private key of the certificate, without a passphrase.
        key: PathBuf,
    },
    /// The server generates a self-signed certificate.
    SelfSigned {
        /// Directory in which the certificate is stored. The server creates it if it does not exist.
        directory: PathBuf,
    },
}

/// Returns the value that the option `name` has in `tls`, as text. The text is empty if the option has no value.
pub(super) fn shown(tls: Option<&Tls>, name: &str) -> String {
    let path = match (name, tls) {
        ("tls-cert", Some(Tls::Files { cert, .. })) => cert,
        ("tls-key", Some(Tls::Files { key, .. })) => key,
        ("state-path", Some(Tls::SelfSigned { directory })) => directory,
        ("tls-self-signed", Some(Tls::SelfSigned { .. })) => return "true".to_owned(),
        _ => return String::new(),
    };
    path.display().to_string()
}

/// Returns the certificate source that --tls-cert and --tls-key give, or --tls-self-signed and --state-path. Returns
/// `None` if none of them asks for TLS.
pub(super) fn tls(
    given: &GivenByName,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Tls>, ConfigError> {
    let is_self_signed = match given.get("tls-self-signed") {
        Some(given) => given.parse(values::switch)?,
        None => false,
    };
    let path = |name: &str| given.get(name).map(|given| PathBuf::from(given.text()));
    match (path("tls-cert"), path("tls-key"), is_self_signed) {
        (None, None, false) => Ok(None),
        (Some(cert), Some(key), false) => Ok(Some(Tls::Files { cert, key })),
        (None, None, true) => match path("state-path").or_else(|| usual_state_path(env)) {
            Some(directory) => Ok(Some(Tls::SelfSigned { directory })),
            None => Err(ConfigError::Together(
                "--tls-self-signed stores its certificate in a directory: give one with --state-path".into(),
            )),
        },
        (_, _, true) => Err(exclusive("tls-self-signed", "tls-cert and --tls-key")),
        (Some(_), None, false) => Err(ConfigError::Together("--tls-cert needs --tls-key".into())),
        (None, Some(_), false) => Err(ConfigError::Together("--tls-key needs --tls-cert".into())),
    }
}

/// Returns the default for --state-path: the directory that systemd created for `StateDirectory=`. Without systemd, it
/// is the state directory of the XDG specification.
fn usual_state_path(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let directory = |name: &str| {
        let value = env(name).filter(|value| !value.is_empty())?;
        // systemd lists several directories with colons between them. The first one is used.
        let first = value.to_str().and_then(|text| text.split(':').next()).map(PathBuf::from);
        Some(first.unwrap_or_else(|| PathBuf::from(&value)))
    };
    let ours = |path: PathBuf| path.join("streaming-server");
    directory("STATE_DIRECTORY")
        .or_else(|| directory("XDG_STATE_HOME").map(ours))
        .or_else(|| directory("HOME").map(|home| ours(home.join(".local/state"))))
}

fn exclusive(one: &str, other: &str) -> ConfigError {
    ConfigError::Together(format!("--{one} and --{other} exclude each other: give only one"))
}

/// Parses a host name and returns it in lower case. Also accepts `*.NAME`, which stands for every name below `NAME`, and
/// `*`, which stands for any name.
pub(super) fn allow_host(text: &str) -> Result<String, String> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let name = lower.strip_prefix("*.").unwrap_or(&lower);
    let is_name = !name.is_empty()
        && !name.starts_with('.')
        && lower.len() <= limits::HOST_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name || lower == "*" {
        Ok(lower)
    } else {
        Err("a host name without scheme and port, such as camera.example.org, *.example.org for all names \
             below it, or * for any"
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    #[test]
    fn tokens_must_be_long_enough_and_fit_a_header() {
        assert!(token(GOOD).is_ok());
        assert!(token(&"x".repeat(limits::TOKEN_BYTES_MAX)).is_ok());
        let long = "x".repeat(limits::TOKEN_BYTES_MAX + 1);
        for bad in ["", "short", "0123456789abcde", "0123456789abcde f", "0123456789abcdeé", &long] {
            assert!(token(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn token_equals_only_itself_and_debug_hides_it() {
        let good = token(GOOD).unwrap();
        assert!(good.is(GOOD.as_bytes()));
        for other in ["", "0", "0123456789abcdeF", "0123456789abcdef0", "0123456789abcde"] {
            assert!(!good.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{good:?}").contains(GOOD));
    }

    #[test]
    fn host_names_are_checked_and_lowered() {
        assert_eq!(allow_host("Cam.Example."), Ok("cam.example".into()));
        assert!(allow_host("*").is_ok());
        assert_eq!(allow_host("*.Ts.net"), Ok("*.ts.net".into()));
        for bad in ["", "http://cam", "cam:8080", "cam/x", "a b", "*..net", "a.*.net", "*net", "é"] {
            assert!(allow_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn state_directory_comes_from_systemd_or_xdg() {
        let find = |pairs: &'static [(&str, &str)]| {
            usual_state_path(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into()))
        };
        assert_eq!(find(&[("STATE_DIRECTORY", "/a:/b"), ("HOME", "/h")]), Some("/a".into()));
        assert_eq!(find(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")]), Some("/x/streaming-server".into()));
        assert_eq!(find(&[("HOME", "/h")]), Some("/h/.local/state/streaming-server".into()));
        assert_eq!(find(&[("HOME", "")]), None);
    }
}
