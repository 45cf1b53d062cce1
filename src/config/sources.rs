//! Reads the three sources of option values: command line, environment and file. This module only collects a text for
//! each option name. Other modules parse the texts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::{ConfigError, ValueOrigin};
use super::given::{Given, GivenByName};
use super::help;
use super::options::{OPTIONS, OptionSpec};

/// The result of reading a command line.
pub(super) enum Flags {
    Given(GivenByName),
    /// The text of --help or --version.
    Print(String),
}

/// Reads the command line. If it has --help or --version, the arguments after that are ignored.
pub(super) fn from_flags(args: impl IntoIterator<Item = OsString>) -> Result<Flags, ConfigError> {
    let mut given = GivenByName::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        let name = match arg {
            lexopt::Arg::Long("help") | lexopt::Arg::Short('h') => return Ok(Flags::Print(help::help())),
            lexopt::Arg::Long("version") | lexopt::Arg::Short('V') => {
                return Ok(Flags::Print(help::version()));
            }
            lexopt::Arg::Long(name) => name.to_owned(),
            lexopt::Arg::Short(letter) => {
                return Err(ConfigError::UnknownFlag { flag: format!("-{letter}"), suggestion: None });
            }
            lexopt::Arg::Value(value) => {
                return Err(ConfigError::UnexpectedArgument(value.to_string_lossy().into_owned()));
            }
        };
        let Some(spec) = find(&name) else {
            return Err(ConfigError::UnknownFlag { flag: format!("--{name}"), suggestion: closest(&name) });
        };
        let origin = ValueOrigin::Flag(spec.name);
        let value = if spec.value.is_empty() {
            parser.optional_value().unwrap_or_else(|| "true".into())
        } else {
            parser.value()?
        };
        let value = text(value, &origin)?;
        given.entry(spec.name).or_insert_with(|| Given { values: Vec::new(), origin }).values.push(value);
    }
    Ok(Flags::Given(given))
}

/// Reads the environment variables of all options, such as `STREAMING_MAX_VIEWERS` for `max-viewers`. Commas separate
/// the values of a repeatable option. An empty variable counts as not set.
pub(super) fn from_environment(env: impl Fn(&str) -> Option<OsString>) -> Result<GivenByName, ConfigError> {
    let mut given = GivenByName::new();
    for spec in OPTIONS {
        let variable = environment_name(spec.name);
        let Some(value) = env(&variable).filter(|value| !value.is_empty()) else { continue };
        let origin = ValueOrigin::Environment(variable);
        let value = text(value, &origin)?;
        let values = if spec.is_repeatable {
            value.split(',').map(|part| part.trim().to_owned()).collect()
        } else {
            vec![value]
        };
        given.insert(spec.name, Given { values, origin });
    }
    Ok(given)
}

fn environment_name(name: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", name.replace('-', "_").to_ascii_uppercase())
}

const ENVIRONMENT_PREFIX: &str = "STREAMING_";

/// Finds the variables that look like options of this program but are none. Returns the names that resemble no option:
/// another program may use them. `names` are the names of all variables that have a value.
///
/// # Errors
/// Returns an error for a name that resembles an option, because the value would be ignored silently.
pub(super) fn unknown_variables(names: impl Iterator<Item = String>) -> Result<Vec<String>, ConfigError> {
    let mut unknown = Vec::new();
    for name in names {
        let upper = name.to_ascii_uppercase().replace('-', "_");
        let Some(rest) = upper.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let option = rest.to_ascii_lowercase().replace('_', "-");
        if find(&option).is_some_and(|spec| environment_name(spec.name) == name) {
            continue;
        }
        match closest(&option) {
            Some(near) => {
                return Err(ConfigError::UnknownVariable { name, suggestion: environment_name(near) });
            }
            None => unknown.push(name),
        }
    }
    Ok(unknown)
}

/// A value in the TOML file.
#[derive(Deserialize)]
#[serde(untagged)]
enum FileValue {
    Switch(bool),
    Number(i64),
    Text(String),
    List(Vec<String>),
    Other(IgnoredAny),
}

/// Reads the TOML file. Its keys are the names of the options, written with `-` or `_`.
pub(super) fn from_file(
    given_path: &Given,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<GivenByName, ConfigError> {
    let path = PathBuf::from(given_path.text());
    let text = given_path.read(read_file)?;
    let values: BTreeMap<String, FileValue> = basic_toml::from_str(&text)
        .map_err(|error| ConfigError::FileSyntax { path: path.clone(), reason: error.to_string() })?;
    let mut given = GivenByName::new();
    for (key, value) in values {
        let name = key.replace('_', "-");
        let Some(spec) = find(&name).filter(|spec| spec.name != "config") else {
            return Err(ConfigError::UnknownKey { path, key, suggestion: closest(&name) });
        };
        let origin = ValueOrigin::File(path.clone(), spec.name);
        let values = file_values(spec, value).map_err(|expected| ConfigError::BadValue {
            origin: origin.clone(),
            value: key,
            expected: expected.to_owned(),
        })?;
        given.insert(spec.name, Given { values, origin });
    }
    Ok(given)
}

fn file_values(spec: &OptionSpec, value: FileValue) -> Result<Vec<String>, &'static str> {
    match value {
        FileValue::Switch(value) if spec.value.is_empty() => Ok(vec![value.to_string()]),
        FileValue::Number(value) if !spec.value.is_empty() => Ok(vec![value.to_string()]),
        FileValue::Text(value) => Ok(vec![value]),
        FileValue::List(values) if spec.is_repeatable => Ok(values),
        _ if spec.value.is_empty() => Err("true or false"),
        _ if spec.is_repeatable => Err("a list of strings"),
        _ => Err("a string or a number"),
    }
}

fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

fn text(value: OsString, origin: &ValueOrigin) -> Result<String, ConfigError> {
    value.into_string().map_err(|value| ConfigError::BadValue {
        origin: origin.clone(),
        value: value.to_string_lossy().into_owned(),
        expected: "UTF-8 text".into(),
    })
}

/// Returns the option that the unknown `name` probably means. That is an option which begins with `name`, or whose name
/// differs by at most two edits. Returns `None` if no option is that similar.
fn closest(name: &str) -> Option<&'static str> {
    let name: String = name.chars().take(32).collect();
    let names = OPTIONS.iter().map(|spec| spec.name);
    let is_prefix = |option: &&str| name.len() >= 3 && option.starts_with(&name);
    if let Some(found) = names.clone().find(is_prefix) {
        return Some(found);
    }
    let best = names.map(|option| (strsim::levenshtein(&name, option), option)).min()?;
    (best.0 <= 2).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_resembles_an_option_is_an_error_and_any_other_is_returned() {
        let find = |names: &[&str]| unknown_variables(names.iter().map(|name| (*name).to_owned()));
        for (bad, near) in [
            ("STREAMING_TOKN", "STREAMING_TOKEN"),
            ("STREAMING_MAX_VIEWER", "STREAMING_MAX_VIEWERS"),
            ("STREAMING_TOKENFILE", "STREAMING_TOKEN_FILE"),
            ("STREAMING_TLS_SELFSIGNED", "STREAMING_TLS_SELF_SIGNED"),
            ("streaming_token", "STREAMING_TOKEN"),
            ("STREAMING_TOKEN-FILE", "STREAMING_TOKEN_FILE"),
        ] {
            let message = find(&["PATH", bad]).unwrap_err().to_string();
            assert!(message.contains(bad) && message.contains(&format!("did you mean {near}?")), "{message}");
        }
        let names = ["STREAMING_TOKEN", "STREAMING_SERVER_SERVICE_HOST", "HOME", "STREAMING_ALLOW_HOST"];
        assert_eq!(find(&names).unwrap(), ["STREAMING_SERVER_SERVICE_HOST"]);
    }

    #[test]
    fn closest_option_begins_with_the_name_or_is_two_letters_away() {
        for near in ["max", "max-viewer", "maxviewers", "max-vievvers", "xmax-viewerss"] {
            assert_eq!(closest(near), Some("max-viewers"), "{near}");
        }
        assert_eq!(closest("htp"), Some("http"));
        for far in ["", "password", "maxvievvers"] {
            assert_eq!(closest(far), None, "{far}");
        }
    }
}
