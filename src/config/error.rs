//! Errors in a configuration. Each names the source of the value and what the option accepts.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// A command line flag.
    Flag(&'static str),
    /// An environment variable, by its whole name.
    Environment(String),
    /// A key of the file.
    File(PathBuf, &'static str),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Flag(name) => write!(f, "--{name}"),
            ValueOrigin::Environment(name) => write!(f, "{name} (environment)"),
            ValueOrigin::File(path, key) => write!(f, "{key} ({})", path.display()),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that the option does not accept.
    #[error("{origin}: \"{value}\" is not valid: expected {expected}")]
    BadValue {
        /// The source of the value.
        origin: ValueOrigin,
        /// The value as given.
        value: String,
        /// What the option accepts.
        expected: String,
    },
    /// A bad secret. The message does not repeat it.
    #[error("{origin}: not valid: expected {expected}")]
    BadSecret {
        /// The source of the value.
        origin: ValueOrigin,
        /// What the option accepts, and what is wrong.
        expected: String,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Together(String),
    /// A flag that does not exist.
    #[error("unknown option {flag}{}; see --help", did_you_mean("--", *suggestion))]
    UnknownFlag {
        /// The flag as given.
        flag: String,
        /// The most similar option, if one is similar.
        suggestion: Option<&'static str>,
    },
    /// A key of the file that does not exist.
    #[error("{}: unknown key \"{key}\"{}", path.display(), did_you_mean("", *suggestion))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key as written in the file.
        key: String,
        /// The most similar option, if one is similar.
        suggestion: Option<&'static str>,
    },
    /// An argument that is not an option.
    #[error("unexpected argument \"{0}\"; options start with --, see --help")]
    UnexpectedArgument(String),
    /// A flag without its value, or a switch with a value.
    #[error("{0}; see --help")]
    CommandLine(#[from] lexopt::Error),
    /// The file of --config or --token-file cannot be read.
    #[error("{origin}: cannot read {}: {source}", path.display())]
    FileUnreadable {
        /// The source of the file's name.
        origin: ValueOrigin,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file of --config is not TOML.
    #[error("{}: not valid TOML: {reason}", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// The parser's message, with the line.
        reason: String,
    },
}

fn did_you_mean(prefix: &str, suggestion: Option<&'static str>) -> String {
    suggestion.map(|name| format!(" (did you mean {prefix}{name}?)")).unwrap_or_default()
}
