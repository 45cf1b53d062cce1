//! The table of options: one row for each, with its name, its help, and how its value is read and shown.

use super::Config;
use super::error::BadText;
use super::recording;
use super::security;
use super::values;

/// The section of the help that lists an option.
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
pub(super) struct OptionSpec {
    pub(super) name: &'static str,
    /// Placeholder of the value in the help. Empty for a switch.
    pub(super) value: &'static str,
    pub(super) is_repeatable: bool,
    pub(super) section: Section,
    /// Explanation in the help, one element per line.
    pub(super) help: &'static [&'static str],
    /// Parses the given texts into the field of the option.
    pub(super) set: fn(&mut Config, &[String]) -> Result<(), BadText>,
    /// Returns the value of the field as text. Empty if the option has no value.
    pub(super) show: fn(&Config) -> String,
}

/// A row without a field of its own: `security` reads it together with other options.
const fn option(
    section: Section,
    name: &'static str,
    value: &'static str,
    help: &'static [&'static str],
) -> OptionSpec {
    OptionSpec {
        name,
        value,
        is_repeatable: false,
        section,
        help,
        set: |_, _| Ok(()),
        show: |_| String::new(),
    }
}

/// Every option, in the order of the help.
pub(super) static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        set: |config, texts| set(&mut config.shm, values::shm, texts),
        show: |config| config.shm.to_string(),
        ..option(
            Section::Camera,
            "shm",
            "NAME",
            &[
                "Name of the camera's shared-memory ring. It need not exist yet:",
                "the server waits for it, also after the camera restarts.",
            ],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.wake, values::wake, texts),
        show: |config| config.wake.to_string(),
        ..option(
            Section::Camera,
            "wake",
            "HOW",
            &[
                "How to wait for the camera: auto, semaphore or poll. Use poll if",
                "another server reads the same ring: poll never touches the ring's",
                "semaphore and maps the ring read-only.",
            ],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.realtime, values::switch, texts),
        show: |config| config.realtime.to_string(),
        ..option(
            Section::Camera,
            "realtime",
            "",
            &[
                "Real-time priority for the thread that waits for the camera.",
                "Needs CAP_SYS_NICE. Steadier latency on a busy machine.",
            ],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.demo, values::switch, texts),
        show: |config| config.demo.to_string(),
        ..option(Section::Camera, "demo", "", &["Run a simulated camera on its own ring. --shm is ignored."])
    },
    OptionSpec {
        set: |config, texts| set(&mut config.http, values::address, texts),
        show: |config| config.http.to_string(),
        ..option(
            Section::Network,
            "http",
            "ADDRESS",
            &["Address of the page and the API: IP:PORT, :PORT or PORT."],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.control, values::control, texts),
        show: |config| values::or_off(config.control),
        ..option(
            Section::Network,
            "control",
            "ADDRESS",
            &[
                "Address for metrics, recording control and profiles, reachable",
                "from this machine only: a loopback address, or off.",
            ],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.udp, values::address, texts),
        show: |config| config.udp.to_string(),
        ..option(
            Section::Network,
            "udp",
            "ADDRESS",
            &["UDP address for all video. One port serves all viewers."],
        )
    },
    OptionSpec {
        is_repeatable: true,
        set: |config, texts| set_list(&mut config.advertise, values::advertise, texts),
        show: |config| values::list(&config.advertise),
        ..option(
            Section::Network,
            "advertise",
            "IP[:PORT]",
            &[
                "Another address at which viewers reach this server, such as the",
                "public address of a router.",
            ],
        )
    },
    OptionSpec {
        // The value stays secret.
        show: |config| if config.token.is_some() { "given, not shown".to_owned() } else { String::new() },
        ..option(
            Section::Security,
            "token",
            "TOKEN",
            &[
                "Password for page and API: 16 to 256 characters. `ps` shows the",
                "command line to all users: prefer --token-file or STREAMING_TOKEN.",
            ],
        )
    },
    option(Section::Security, "token-file", "FILE", &["File whose first line is the token."]),
    OptionSpec {
        show: |config| security::shown(config.tls.as_ref()).cert,
        ..option(
            Section::Security,
            "tls-cert",
            "FILE",
            &[
                "Serve --http over TLS with this certificate chain (PEM).",
                "SIGHUP reloads certificate and key.",
            ],
        )
    },
    OptionSpec {
        show: |config| security::shown(config.tls.as_ref()).key,
        ..option(Section::Security, "tls-key", "FILE", &["Private key of --tls-cert (PEM, no passphrase)."])
    },
    OptionSpec {
        show: |config| security::shown(config.tls.as_ref()).self_signed,
        ..option(
            Section::Security,
            "tls-self-signed",
            "",
            &[
                "Serve --http over TLS with a generated certificate for this",
                "machine's names and addresses. It is stored in --state-path.",
            ],
        )
    },
    OptionSpec {
        show: |config| security::shown(config.tls.as_ref()).state_path,
        ..option(
            Section::Security,
            "state-path",
            "DIRECTORY",
            &[
                "Directory for the server's own files. Default: $STATE_DIRECTORY, or",
                "~/.local/state/streaming-server.",
            ],
        )
    },
    OptionSpec {
        set: |config, texts| set_some(&mut config.http_plain, values::address, texts),
        show: |config| values::maybe(config.http_plain),
        ..option(
            Section::Security,
            "http-plain",
            "ADDRESS",
            &[
                "With TLS: also serve page and API without TLS at this address,",
                "such as 127.0.0.1:8081 for scripts.",
            ],
        )
    },
    OptionSpec {
        is_repeatable: true,
        set: |config, texts| set_list(&mut config.allow_host, security::allow_host, texts),
        show: |config| values::list(&config.allow_host),
        ..option(
            Section::Security,
            "allow-host",
            "NAME",
            &[
                "Another host name to accept in requests, such as that of a proxy.",
                "Always accepted: this machine's addresses, its host name, and",
                "names without a dot. * accepts any name.",
            ],
        )
    },
    OptionSpec {
        is_repeatable: true,
        set: |config, texts| set_list(&mut config.allow_origin, values::origin, texts),
        show: |config| values::list(&config.allow_origin),
        ..option(
            Section::Security,
            "allow-origin",
            "ORIGIN",
            &[
                "A web origin (https://home.example) whose pages may use the API.",
                "Pages of other origins are refused.",
            ],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.max_viewers, values::max_viewers, texts),
        show: |config| config.max_viewers.to_string(),
        ..option(
            Section::Viewers,
            "max-viewers",
            "N",
            &["Viewers at the same time. Further ones get an error and may retry."],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.workers, values::workers, texts),
        show: |config| config.workers.to_string(),
        ..option(
            Section::Viewers,
            "workers",
            "N",
            &["Threads that send video. auto: one if --max-viewers is below 64,", "else one per core."],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.srtp, values::srtp, texts),
        show: |config| config.srtp.to_string(),
        ..option(
            Section::Viewers,
            "srtp",
            "CIPHER",
            &["Preferred cipher: gcm, cm, or auto. auto measures both at start", "and takes the faster one."],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.record_path, recording::directory, texts),
        show: |config| config.record_path.display().to_string(),
        ..option(
            Section::Recording,
            "record-path",
            "DIRECTORY",
            &["Directory for recordings. The first recording creates it."],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.no_recorder, values::switch, texts),
        show: |config| config.no_recorder.to_string(),
        ..option(Section::Recording, "no-recorder", "", &["Do not record: another program does."])
    },
    OptionSpec {
        set: |config, texts| set(&mut config.record_format, recording::format, texts),
        show: |config| config.record_format.to_string(),
        ..option(
            Section::Recording,
            "record-format",
            "FORMAT",
            &["mp4 or h264, for recordings whose name has no extension."],
        )
    },
    OptionSpec {
        set: |config, texts| set_some(&mut config.retain_bytes, recording::bytes, texts),
        show: |config| values::maybe(config.retain_bytes),
        ..option(
            Section::Recording,
            "retain-bytes",
            "BYTES",
            &["Total size of all recordings, such as 20G. Above it the oldest", "finished ones are deleted."],
        )
    },
    OptionSpec {
        set: |config, texts| set_some(&mut config.retain_days, recording::days, texts),
        show: |config| values::maybe(config.retain_days),
        ..option(Section::Recording, "retain-days", "DAYS", &["Days after which a recording is deleted."])
    },
    OptionSpec {
        set: |config, texts| set_some(&mut config.min_free_bytes, recording::bytes, texts),
        show: |config| values::maybe(config.min_free_bytes),
        ..option(
            Section::Recording,
            "min-free-bytes",
            "BYTES",
            &["Free space to keep on the file system. Below it the oldest", "recordings are deleted."],
        )
    },
    OptionSpec {
        set: |config, texts| set(&mut config.log_level, values::log_level, texts),
        show: |config| config.log_level.to_string().to_ascii_lowercase(),
        ..option(
            Section::Program,
            "log-level",
            "LEVEL",
            &["off, error, warn or info. debug and trace exist in debug builds."],
        )
    },
    option(Section::Program, "config", "FILE", &["Read options from this TOML file."]),
];

/// A parser of one value. The error is the text after "expected".
type Parse<T> = fn(&str) -> Result<T, String>;

/// Sets `field` to the last of `texts`.
fn set<T>(field: &mut T, parse: Parse<T>, texts: &[String]) -> Result<(), BadText> {
    if let Some(text) = texts.last() {
        *field = parsed(parse, text)?;
    }
    Ok(())
}

/// As [`set`], for an option that is absent by default.
fn set_some<T>(field: &mut Option<T>, parse: Parse<T>, texts: &[String]) -> Result<(), BadText> {
    if let Some(text) = texts.last() {
        *field = Some(parsed(parse, text)?);
    }
    Ok(())
}

/// As [`set`], for an option that may be given several times.
fn set_list<T>(field: &mut Vec<T>, parse: Parse<T>, texts: &[String]) -> Result<(), BadText> {
    *field = texts.iter().map(|text| parsed(parse, text)).collect::<Result<_, _>>()?;
    Ok(())
}

fn parsed<T>(parse: Parse<T>, text: &str) -> Result<T, BadText> {
    parse(text).map_err(|expected| BadText { text: text.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_kebab_case() {
        for (index, spec) in OPTIONS.iter().enumerate() {
            assert!(spec.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", spec.name);
            assert!(OPTIONS.iter().skip(index + 1).all(|other| other.name != spec.name));
        }
    }
}
