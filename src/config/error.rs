//! What can be wrong with a configuration, said so that it can be mended. Parses nothing.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// A command line flag.
    Flag(&'static str),
    /// A variable of the environment, by its whole name.
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
    /// A value that its option does not take.
    #[error("{origin}: \"{value}\" is not valid: expected {expected}")]
    BadValue {
        /// Where it was given.
        origin: ValueOrigin,
        /// What was given.
        value: String,
        /// What would have been right.
        expected: String,
    },
    /// A secret that its option does not take; the value is not repeated.
    #[error("{origin}: not valid: expected {expected}")]
    BadSecret {
        /// Where it was given.
        origin: ValueOrigin,
        /// What would have been right, and what is wrong.
        expected: String,
    },
    /// Options that do not fit each other.
    #[error("{0}")]
    Together(String),
    /// A flag that does not exist.
    #[error("unknown option {flag}{}; see --help", did_you_mean("--", *suggestion))]
    UnknownFlag {
        /// As given.
        flag: String,
        /// The closest option that exists, if one is close.
        suggestion: Option<&'static str>,
    },
    /// A key of the file that does not exist.
    #[error("{}: unknown key \"{key}\"{}", path.display(), did_you_mean("", *suggestion))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// As given.
        key: String,
        /// The closest option that exists, if one is close.
        suggestion: Option<&'static str>,
    },
    /// Something on the command line that is no option.
    #[error("unexpected argument \"{0}\"; options start with --, see --help")]
    UnexpectedArgument(String),
    /// A flag without its value, or with one it does not take.
    #[error("{0}; see --help")]
    CommandLine(String),
    /// The file of --config or --token-file cannot be read.
    #[error("{origin}: cannot read {}: {source}", path.display())]
    FileUnreadable {
        /// Where its name was given.
        origin: ValueOrigin,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of --config is not TOML.
    #[error("{}: not valid TOML: {reason}", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        reason: String,
    },
}

fn did_you_mean(prefix: &str, suggestion: Option<&'static str>) -> String {
    suggestion.map(|name| format!(" (did you mean {prefix}{name}?)")).unwrap_or_default()
}
