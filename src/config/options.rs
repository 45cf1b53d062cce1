//! The table of options and the three sources of their values. Knows names and text only; what a value
//! means is in `values.rs`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::{ConfigError, ValueOrigin};

/// Part of the help an option stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Camera,
    Network,
    Security,
    Viewers,
    Recording,
    Program,
}

/// One option.
#[derive(Debug)]
pub(super) struct OptionSpec {
    pub(super) name: &'static str,
    /// What follows the flag; empty for a switch.
    pub(super) value: &'static str,
    /// Default in the help; empty where there is none to speak of.
    pub(super) default: &'static str,
    pub(super) is_repeatable: bool,
    pub(super) section: Section,
    /// Lines of the help.
    pub(super) help: &'static [&'static str],
}

const fn option(
    section: Section,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static [&'static str],
) -> OptionSpec {
    OptionSpec { name, value, default, is_repeatable: false, section, help }
}

const fn repeatable(mut spec: OptionSpec) -> OptionSpec {
    spec.is_repeatable = true;
    spec
}

/// Every option, in the order of the help.
pub(super) static OPTIONS: &[OptionSpec] = &[
    option(
        Section::Camera,
        "shm",
        "NAME",
        "/pet_camera_stream",
        &[
            "Shared-memory ring of the camera. It may come later, crash and",
            "come back: the server waits for it.",
        ],
    ),
    option(
        Section::Camera,
        "wake",
        "HOW",
        "auto",
        &[
            "How to wait for the camera: auto, semaphore or poll. Use poll",
            "when another server reads the same ring: it never touches the",
            "ring's semaphore and maps it read-only.",
        ],
    ),
    option(
        Section::Camera,
        "realtime",
        "",
        "",
        &[
            "Real-time priority for the thread that waits for the camera",
            "(needs CAP_SYS_NICE): steadier latency on a busy machine.",
        ],
    ),
    option(
        Section::Camera,
        "demo",
        "",
        "",
        &["Run a simulated camera on a ring of its own (--shm is not used)."],
    ),
    option(Section::Network, "http", "ADDRESS", "0.0.0.0:8080", &["Page and API. IP:PORT, :PORT or PORT."]),
    option(
        Section::Network,
        "control",
        "ADDRESS",
        "127.0.0.1:6060",
        &["Metrics, recording control and profiles for this machine only:", "a loopback address, or off."],
    ),
    option(Section::Network, "udp", "ADDRESS", "0.0.0.0:8189", &["The one UDP port all video goes through."]),
    repeatable(option(
        Section::Network,
        "advertise",
        "IP[:PORT]",
        "",
        &[
            "A further address viewers can reach this server at, such as the",
            "public one of a port forwarding.",
        ],
    )),
    option(
        Section::Security,
        "token",
        "TOKEN",
        "",
        &[
            "Secret that page and API ask for: 16 to 256 characters. A command",
            "line shows in `ps`: better --token-file or STREAMING_TOKEN.",
        ],
    ),
    option(Section::Security, "token-file", "FILE", "", &["File whose first line is the token."]),
    option(
        Section::Security,
        "tls-cert",
        "FILE",
        "",
        &["Serve --http over TLS with this certificate chain (PEM).", "SIGHUP reads it and the key again."],
    ),
    option(Section::Security, "tls-key", "FILE", "", &["Private key of --tls-cert (PEM, no passphrase)."]),
    option(
        Section::Security,
        "tls-self-signed",
        "",
        "",
        &[
            "Serve --http over TLS with a certificate made here for this",
            "machine's names and addresses, kept in --state-path.",
        ],
    ),
    option(
        Section::Security,
        "state-path",
        "DIRECTORY",
        "",
        &[
            "What the server keeps for itself; default $STATE_DIRECTORY, or",
            "~/.local/state/streaming-server.",
        ],
    ),
    option(
        Section::Security,
        "http-plain",
        "ADDRESS",
        "",
        &["With TLS: serve page and API without TLS here as well, such as", "127.0.0.1:8081 for scripts."],
    ),
    repeatable(option(
        Section::Security,
        "allow-host",
        "NAME",
        "",
        &[
            "A name this server may be asked by beside its addresses, its host",
            "name and names without a dot: that of a proxy. * for any.",
        ],
    )),
    repeatable(option(
        Section::Security,
        "allow-origin",
        "ORIGIN",
        "",
        &[
            "A web origin (https://home.example) whose pages may use the API;",
            "pages of other origins are refused.",
        ],
    )),
    option(
        Section::Viewers,
        "max-viewers",
        "N",
        "32",
        &["Viewers at once; the next one is told to come back later."],
    ),
    option(
        Section::Viewers,
        "workers",
        "N",
        "auto",
        &["Sending threads. auto: one below 64 viewers (--max-viewers),", "else one per core."],
    ),
    option(
        Section::Viewers,
        "srtp",
        "CIPHER",
        "auto",
        &["Preferred cipher: gcm, cm, or auto: the faster one on this", "machine, measured at start."],
    ),
    option(
        Section::Recording,
        "record-path",
        "DIRECTORY",
        "./recordings",
        &["Where recordings go; made when the first one starts."],
    ),
    option(
        Section::Recording,
        "no-recorder",
        "",
        "",
        &["Do not record: another program does, this one only shows."],
    ),
    option(
        Section::Recording,
        "record-format",
        "FORMAT",
        "mp4",
        &["mp4 or h264, for recordings whose name does not say."],
    ),
    option(
        Section::Recording,
        "retain-bytes",
        "BYTES",
        "",
        &[
            "Room all recordings together may take, such as 20G; beyond it the",
            "oldest finished ones are deleted.",
        ],
    ),
    option(Section::Recording, "retain-days", "DAYS", "", &["Days a recording is kept."]),
    option(
        Section::Recording,
        "min-free-bytes",
        "BYTES",
        "",
        &["Room to leave on the file system, at the cost of the", "oldest recordings."],
    ),
    option(
        Section::Program,
        "log-level",
        "LEVEL",
        "info",
        &["off, error, warn or info; debug and trace in debug builds only."],
    ),
    option(Section::Program, "config", "FILE", "", &["Read options from this TOML file."]),
];

/// Text given for one option, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) values: Vec<String>,
    pub(super) origin: ValueOrigin,
}

impl Given {
    pub(super) fn bad_value(&self, value: &str, expected: String) -> ConfigError {
        ConfigError::BadValue { origin: self.origin.clone(), value: value.to_owned(), expected }
    }
}

/// Values by option name.
pub(super) type GivenByName = BTreeMap<&'static str, Given>;

/// What a command line asks for.
pub(super) enum Flags {
    Given(GivenByName),
    Help,
    Version,
}

/// The command line. --help and --version win over everything after them.
pub(super) fn from_flags(args: impl IntoIterator<Item = OsString>) -> Result<Flags, ConfigError> {
    let mut given = GivenByName::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next().map_err(command_line)? {
        let name = match arg {
            lexopt::Arg::Long("help") | lexopt::Arg::Short('h') => return Ok(Flags::Help),
            lexopt::Arg::Long("version") | lexopt::Arg::Short('V') => return Ok(Flags::Version),
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
            parser.value().map_err(command_line)?
        };
        let value = text(value, &origin)?;
        given.entry(spec.name).or_insert_with(|| Given { values: Vec::new(), origin }).values.push(value);
    }
    Ok(Flags::Given(given))
}

fn command_line(error: lexopt::Error) -> ConfigError {
    ConfigError::CommandLine(error.to_string())
}

/// `STREAMING_MAX_VIEWERS` for `max-viewers`; repeatable options are separated by commas. An empty
/// variable counts as absent.
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

pub(super) fn environment_name(name: &str) -> String {
    format!("STREAMING_{}", name.replace('-', "_").to_ascii_uppercase())
}

/// A value as TOML has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum FileValue {
    Switch(bool),
    Number(i64),
    Text(String),
    List(Vec<String>),
    Other(IgnoredAny),
}

/// The file: keys are the flags' names (`max-viewers`, or `max_viewers`).
pub(super) fn from_file(
    given_path: &Given,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<GivenByName, ConfigError> {
    let path = PathBuf::from(given_path.values.last().map(String::as_str).unwrap_or_default());
    let text = read_file(&path).map_err(|source| ConfigError::FileUnreadable {
        origin: given_path.origin.clone(),
        path: path.clone(),
        source,
    })?;
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

/// The option that `name` was probably meant to be: a prefix, or two edits away at most.
fn closest(name: &str) -> Option<&'static str> {
    let name: String = name.chars().take(32).collect();
    let names = OPTIONS.iter().map(|spec| spec.name);
    let is_prefix = |option: &&str| name.len() >= 3 && option.starts_with(&name);
    if let Some(found) = names.clone().find(is_prefix) {
        return Some(found);
    }
    let best = names.map(|option| (edits(&name, option), option)).min()?;
    (best.0 <= 2).then_some(best.1)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(b.chars()) {
            let above = *cell;
            let replaced = diagonal + usize::from(ca != cb);
            left = replaced.min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_counts_replaced_inserted_and_removed_letters() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("udp", "udp"), 0);
        assert_eq!(edits("htp", "http"), 1);
    }

    #[test]
    fn names_in_the_table_are_unique_and_kebab_case() {
        for (index, spec) in OPTIONS.iter().enumerate() {
            assert!(spec.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", spec.name);
            assert!(OPTIONS.iter().skip(index + 1).all(|other| other.name != spec.name));
        }
    }
}
