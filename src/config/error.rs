//! Errors in a configuration. The error of a bad value names the source of the value and states what the option
//! accepts.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The source of an option's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// A command line flag. Holds the name of the option.
    Flag(&'static str),
    /// An environment variable. Holds the whole name of the variable.
    Environment(String),
    /// A key of the configuration file. Holds the path of the file and the name of the option.
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

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An option does not accept its value.
    #[error("{origin}: \"{value}\" is not valid: expected {expected}")]
    BadValue {
        /// Where the value was given.
        origin: ValueOrigin,
        /// The value, as it was given.
        value: String,
        /// What the option accepts.
        expected: String,
    },
    /// A token is not valid. The message does not contain the token, because it is a secret.
    #[error("{origin}: not valid: expected {expected}")]
    BadSecret {
        /// Where the value was given.
        origin: ValueOrigin,
        /// What the option accepts, and what is wrong with the value.
        expected: String,
    },
    /// Options contradict each other, or an option needs another one that is missing. Holds the whole message.
    #[error("{0}")]
    Together(String),
    /// A flag is unknown.
    #[error("unknown option {flag}{}; see --help", did_you_mean("--", *suggestion))]
    UnknownFlag {
        /// The flag, as it was given.
        flag: String,
        /// The option with the most similar name. `None` if no name is similar.
        suggestion: Option<&'static str>,
    },
    /// An environment variable is unknown, but its name resembles that of an option.
    #[error("unknown environment variable {name} (did you mean {suggestion}?)")]
    UnknownVariable {
        /// Name of the variable.
        name: String,
        /// Name of the variable of the most similar option.
        suggestion: String,
    },
    /// A key of the configuration file is unknown.
    #[error("{}: unknown key \"{key}\"{}", path.display(), did_you_mean("", *suggestion))]
    UnknownKey {
        /// Path of the file.
        path: PathBuf,
        /// The key, as it is written in the file.
        key: String,
        /// The option with the most similar name. `None` if no name is similar.
        suggestion: Option<&'static str>,
    },
    /// An argument is not an option. Holds the argument.
    #[error("unexpected argument \"{0}\"; options start with --, see --help")]
    UnexpectedArgument(String),
    /// The command line cannot be parsed, for example because a flag has no value.
    #[error("{0}; see --help")]
    CommandLine(#[from] lexopt::Error),
    /// The file that --config or --token-file names cannot be read.
    #[error("{origin}: cannot read {}: {source}", path.display())]
    FileUnreadable {
        /// The source of the file name.
        origin: ValueOrigin,
        /// Path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file that --config names is not valid TOML.
    #[error("{}: not valid TOML: {reason}", path.display())]
    FileSyntax {
        /// Path of the file.
        path: PathBuf,
        /// The parser's message, which includes the line number.
        reason: String,
    },
}

impl ConfigError {
    /// Replaces [`ConfigError::BadValue`] by [`ConfigError::BadSecret`], which does not repeat the value.
    pub(super) fn without_value(self) -> ConfigError {
        match self {
            ConfigError::BadValue { origin, expected, .. } => ConfigError::BadSecret { origin, expected },
            other => other,
        }
    }
}

fn did_you_mean(prefix: &str, suggestion: Option<&'static str>) -> String {
    suggestion.map(|name| format!(" (did you mean {prefix}{name}?)")).unwrap_or_default()
}
