//! The table of options. Each row has the name of an option, its help text, and the functions that set and show its
//! value.

use super::Config;
use super::error::ConfigError;
use super::given::{Given, Parse};
use super::recording;
use super::security;
use super::stream;
use super::subnet;
use super::values;
use super::whip;

type SetField = fn(&mut Config, &Given) -> Result<(), ConfigError>;
type ShowField = fn(&Config) -> String;

/// One option, which is a row of the table [`OPTIONS`].
pub(super) struct OptionSpec {
    pub(super) name: &'static str,
    /// Placeholder for the value in the help text. Empty for a switch, which needs no value.
    pub(super) value: &'static str,
    pub(super) is_repeatable: bool,
    /// Heading in the help text. The options of a section must be consecutive rows of the table.
    pub(super) section: &'static str,
    /// Explanation in the help text, without line breaks.
    pub(super) help: &'static str,
    /// Parses the given texts and stores the value in the option's field of [`Config`].
    pub(super) set: SetField,
    /// Returns the value of that field as text. The text is empty if the option has no value.
    pub(super) show: ShowField,
}

/// Returns a row for an option that has one value. The row sets and shows nothing until `OptionSpec::set` and
/// `OptionSpec::show` add these functions. A row without a `set` function is evaluated elsewhere, mostly in `security`.
const fn one(section: &'static str, name: &'static str, value: &'static str) -> OptionSpec {
    let (set, show): (SetField, ShowField) = (|_, _| Ok(()), |_| String::new());
    OptionSpec { name, value, is_repeatable: false, section, help: "", set, show }
}

/// Returns a row as [`one`] does, but for an option that may be given several times.
const fn list(section: &'static str, name: &'static str, value: &'static str) -> OptionSpec {
    OptionSpec { is_repeatable: true, ..one(section, name, value) }
}

impl OptionSpec {
    const fn help(self, help: &'static str) -> OptionSpec {
        OptionSpec { help, ..self }
    }

    const fn set(self, set: SetField) -> OptionSpec {
        OptionSpec { set, ..self }
    }

    const fn show(self, show: ShowField) -> OptionSpec {
        OptionSpec { show, ..self }
    }
}

/// All options, in the order of the help text.
pub(super) static OPTIONS: &[OptionSpec] = &[
    one("Camera", "shm", "NAME")
        .help(
            "Name of the camera's shared-memory ring. It need not exist yet: the server waits for it, \
             also after the camera restarts.",
        )
        .set(|config, given| set(&mut config.shm, given, values::shm))
        .show(|config| config.shm.to_string()),
    one("Camera", "detections", "NAME|off")
        .help(
            "Name of the shared memory into which an object detector writes what it sees, or off. With \
             another --shm, none is read unless this option names one.",
        )
        .set(|config, given| set(&mut config.detections, given, values::detections))
        .show(|config| config.detections.clone().unwrap_or_else(|| "off".to_owned())),
    one("Camera", "name", "NAME")
        .help("Name of the stream in URLs: players watch http://HOST:8080/NAME/whep.")
        .set(|config, given| set(&mut config.name, given, stream::name))
        .show(|config| config.name.to_string()),
    one("Camera", "title", "TEXT")
        .help("Name of the stream that people see, as the title of the page.")
        .set(|config, given| set(&mut config.title, given, stream::title))
        .show(|config| config.title.to_string()),
    one("Camera", "wake", "HOW")
        .help(
            "How to wait for the camera: auto, semaphore or poll. Use poll if another server reads \
             the same ring: poll never touches the ring's semaphore and maps the ring read-only.",
        )
        .set(|config, given| set(&mut config.wake, given, values::wake))
        .show(|config| config.wake.to_string()),
    one("Camera", "realtime", "")
        .help(
            "Real-time priority for the thread that waits for the camera. Needs CAP_SYS_NICE. \
             Steadier latency on a busy machine.",
        )
        .set(|config, given| set(&mut config.realtime, given, values::switch))
        .show(|config| config.realtime.to_string()),
    one("Camera", "min-kbps", "N")
        .help(
            "Ask the camera for a lower bit rate, at least N kbit/s, while the links of more than a \
             quarter of the viewers carry less than the stream and nothing is recorded. Needs a lease ring \
             whose camera obeys.",
        )
        .set(|config, given| set_some(&mut config.min_kbps, given, values::min_kbps))
        .show(|config| values::maybe(config.min_kbps)),
    one("Camera", "demo", "")
        .help("Run a simulated camera on its own ring. --shm is ignored.")
        .set(|config, given| set(&mut config.demo, given, values::switch))
        .show(|config| config.demo.to_string()),
    one("Network", "http", "ADDRESS")
        .help("Address of the page and the API: IP:PORT, :PORT or PORT.")
        .set(|config, given| set(&mut config.http, given, values::address))
        .show(|config| config.http.to_string()),
    one("Network", "control", "ADDRESS")
        .help(
            "Address for metrics, recording control and profiles, reachable from this machine only: a \
             loopback address, or off.",
        )
        .set(|config, given| set(&mut config.control, given, values::control))
        .show(|config| config.control.map_or_else(|| "off".to_owned(), |address| address.to_string())),
    one("Network", "udp", "ADDRESS")
        .help("UDP address for all video. One port serves all viewers.")
        .set(|config, given| set(&mut config.udp, given, values::address))
        .show(|config| config.udp.to_string()),
    one("Network", "ice-tcp", "on|off")
        .help(
            "Also accept video connections over TCP, on the port of --udp, for networks that block \
             UDP. --http must use another port.",
        )
        .set(|config, given| set(&mut config.ice_tcp, given, values::on_or_off))
        .show(|config| values::shown_switch(config.ice_tcp).to_owned()),
    list("Network", "advertise", "IP[:PORT]")
        .help(
            "Another address at which viewers reach this server, such as the public address of a \
             router.",
        )
        .set(|config, given| set_list(&mut config.advertise, given, values::advertise))
        .show(|config| values::list(&config.advertise)),
    list("Network", "ice-server", "URL")
        .help(
            "STUN or TURN server for players that watch with WHEP: stun:HOST[:PORT] or \
             turn:USER:PASSWORD@HOST[:PORT][?transport=udp]. `ps` shows the command line to all \
             users. Write a comma in a value as %2C.",
        )
        .set(|config, given| {
            // The message does not repeat the value, because it contains a password.
            set_list(&mut config.ice_servers, given, stream::ice_server).map_err(ConfigError::without_value)
        })
        .show(|config| values::list(&config.ice_servers)),
    one("Security", "token", "TOKEN")
        .help(
            "Password for page and API: 16 to 256 characters. `ps` shows the command line to all \
             users: prefer --token-file or STREAMING_TOKEN.",
        )
        // The token is a secret, so it is not shown.
        .show(|config| if config.token.is_some() { "given, not shown".to_owned() } else { String::new() }),
    one("Security", "token-file", "FILE").help("File whose first line is the token."),
    one("Security", "tls-cert", "FILE")
        .help(
            "Serve --http over TLS with this certificate chain (PEM). SIGHUP reloads certificate and \
             key.",
        )
        .show(|config| security::shown(config.tls.as_ref(), "tls-cert")),
    one("Security", "tls-key", "FILE")
        .help("Private key of --tls-cert (PEM, no passphrase).")
        .show(|config| security::shown(config.tls.as_ref(), "tls-key")),
    one("Security", "tls-self-signed", "")
        .help(
            "Serve --http over TLS with a generated certificate for this machine's names and \
             addresses. It is stored in --state-path.",
        )
        .show(|config| security::shown(config.tls.as_ref(), "tls-self-signed")),
    one("Security", "state-path", "DIRECTORY")
        .help(
            "Directory for the server's own files. Default: $STATE_DIRECTORY, or \
             ~/.local/state/streaming-server.",
        )
        .show(|config| security::shown(config.tls.as_ref(), "state-path")),
    one("Security", "http-plain", "ADDRESS")
        .help(
            "With TLS: also serve page and API without TLS at this address, such as 127.0.0.1:8081 \
             for scripts.",
        )
        .set(|config, given| set_some(&mut config.http_plain, given, values::address))
        .show(|config| values::maybe(config.http_plain)),
    list("Security", "allow-host", "NAME")
        .help(
            "Another host name to accept in requests, such as that of a proxy. *.example.org accepts \
             every name below example.org, * any name. Always accepted: this machine's addresses, its \
             host name, and names without a dot.",
        )
        .set(|config, given| set_list(&mut config.allow_host, given, security::allow_host))
        .show(|config| values::list(&config.allow_host)),
    list("Security", "allow-origin", "ORIGIN")
        .help(
            "A web origin (https://home.example) whose pages may use the API. Pages of other origins \
             are refused.",
        )
        .set(|config, given| set_list(&mut config.allow_origin, given, values::origin))
        .show(|config| values::list(&config.allow_origin)),
    list("Security", "trusted-proxy", "IP[/BITS]")
        .help(
            "Address of a reverse proxy on another machine. The limits per address do not apply to \
             it, because all its users share it.",
        )
        .set(|config, given| set_list(&mut config.trusted_proxy, given, subnet::subnet))
        .show(|config| values::list(&config.trusted_proxy)),
    one("Viewers", "max-viewers", "N")
        .help("Viewers at the same time. Further ones get an error and may retry.")
        .set(|config, given| set(&mut config.max_viewers, given, values::max_viewers))
        .show(|config| config.max_viewers.to_string()),
    one("Viewers", "workers", "N")
        .help("Threads that send video. auto: one if --max-viewers is below 64, else one per core.")
        .set(|config, given| set(&mut config.workers, given, values::workers))
        .show(|config| config.workers.to_string()),
    one("Viewers", "srtp", "CIPHER")
        .help(
            "Preferred cipher: gcm, cm, or auto. auto measures both at start and takes the faster \
             one.",
        )
        .set(|config, given| set(&mut config.srtp, given, values::srtp))
        .show(|config| config.srtp.to_string()),
    one("Publishing", "whip", "URL")
        .help(
            "Publish the video to this WHIP endpoint, such as https://media.example/camera/whip. It \
             does not count as a viewer.",
        )
        .show(|config| whip::shown(config.whip.as_ref(), "whip")),
    one("Publishing", "whip-token-file", "FILE")
        .help("File whose first line is the token for --whip (Bearer).")
        .show(|config| whip::shown(config.whip.as_ref(), "whip-token-file")),
    one("Publishing", "whip-ca", "FILE")
        .help("For --whip trust the certificates of this PEM file instead of those of the machine.")
        .show(|config| whip::shown(config.whip.as_ref(), "whip-ca")),
    one("Recording", "record-path", "DIRECTORY")
        .help("Directory for recordings. The first recording creates it.")
        .set(|config, given| set(&mut config.record_path, given, recording::directory))
        .show(|config| config.record_path.display().to_string()),
    one("Recording", "no-recorder", "")
        .help("Do not record: another program does.")
        .set(|config, given| set(&mut config.no_recorder, given, values::switch))
        .show(|config| config.no_recorder.to_string()),
    one("Recording", "record-format", "FORMAT")
        .help("mp4 or h264, for recordings whose name has no extension.")
        .set(|config, given| set(&mut config.record_format, given, recording::format))
        .show(|config| config.record_format.to_string()),
    one("Recording", "retain-bytes", "BYTES")
        .help(
            "Total size of all recordings, such as 20G. Above it the oldest finished ones are \
             deleted.",
        )
        .set(|config, given| set_some(&mut config.retain_bytes, given, recording::bytes))
        .show(|config| values::maybe(config.retain_bytes)),
    one("Recording", "retain-days", "DAYS")
        .help("Days after which a recording is deleted.")
        .set(|config, given| set_some(&mut config.retain_days, given, recording::days))
        .show(|config| values::maybe(config.retain_days)),
    one("Recording", "min-free-bytes", "BYTES")
        .help("Free space to keep on the file system. Below it the oldest recordings are deleted.")
        .set(|config, given| set_some(&mut config.min_free_bytes, given, recording::bytes))
        .show(|config| values::maybe(config.min_free_bytes)),
    one("Program", "log-level", "LEVEL")
        .help("off, error, warn or info. debug and trace exist in debug builds.")
        .set(|config, given| set(&mut config.log_level, given, values::log_level))
        .show(|config| config.log_level.to_string().to_ascii_lowercase()),
    one("Program", "config", "FILE").help("Read options from this TOML file."),
];

/// Parses the last given text and stores the value in `field`.
fn set<T>(field: &mut T, given: &Given, parse: Parse<T>) -> Result<(), ConfigError> {
    *field = given.parse(parse)?;
    Ok(())
}

/// Does the same as [`set`], for an option that has no value by default.
fn set_some<T>(field: &mut Option<T>, given: &Given, parse: Parse<T>) -> Result<(), ConfigError> {
    *field = Some(given.parse(parse)?);
    Ok(())
}

/// Parses all given texts and stores the values in `field`.
fn set_list<T>(field: &mut Vec<T>, given: &Given, parse: Parse<T>) -> Result<(), ConfigError> {
    *field = given.parse_all(parse)?;
    Ok(())
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
