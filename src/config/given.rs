//! The texts that were given for an option. They are parsed into values, or into errors that name the source of the
//! text.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ValueOrigin};

/// The texts that one source gives for one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) values: Vec<String>,
    pub(super) origin: ValueOrigin,
}

/// A function that parses one value. Its error is the text that follows "expected" in the error message.
pub(super) type Parse<T> = fn(&str) -> Result<T, String>;

impl Given {
    /// Returns the last text. If an option is given several times, its last value counts.
    pub(super) fn text(&self) -> &str {
        self.values.last().map_or("", String::as_str)
    }

    /// Parses the last text.
    pub(super) fn parse<T>(&self, parse: Parse<T>) -> Result<T, ConfigError> {
        self.parse_text(parse, self.text())
    }

    /// Parses every text.
    pub(super) fn parse_all<T>(&self, parse: Parse<T>) -> Result<Vec<T>, ConfigError> {
        self.values.iter().map(|text| self.parse_text(parse, text)).collect()
    }

    fn parse_text<T>(&self, parse: Parse<T>, text: &str) -> Result<T, ConfigError> {
        parse(text).map_err(|expected| ConfigError::BadValue {
            origin: self.origin.clone(),
            value: text.to_owned(),
            expected,
        })
    }

    /// Returns the content of the file whose path is the last text.
    pub(super) fn read(
        &self,
        read_file: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<String, ConfigError> {
        let path = PathBuf::from(self.text());
        let origin = self.origin.clone();
        read_file(&path).map_err(|source| ConfigError::FileUnreadable { origin, path, source })
    }
}

/// The given texts of all options, by the name of the option.
pub(super) type GivenByName = BTreeMap<&'static str, Given>;
