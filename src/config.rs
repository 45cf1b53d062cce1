//! The configuration. Command line, environment and file are parsed once, at the start, into typed values.
//!
//! Every option is one row of `options::OPTIONS`, and most options are one field of [`Config`]. An option has the value
//! of the flag `--name`. Without that flag it has the value of the environment variable `STREAMING_NAME`, else that of
//! the key `name` in the file, else its default.
//!
//! This module itself reads neither the environment nor a file: the caller passes functions that do.

mod error;
mod given;
mod help;
mod options;
mod recording;
mod security;
mod sources;
mod stream;
mod subnet;
mod values;
mod whip;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::base::limits;
pub use crate::camera::Wake;
pub use crate::recorder::names::Format;
pub use crate::session::SrtpChoice;
pub use error::{ConfigError, ValueOrigin};
pub use security::{Tls, Token};
pub use stream::{IceServer, STREAM_NAME};
pub use subnet::Subnet;
pub use values::{Advertise, Workers, host_of};
pub use whip::{UrlError, Whip, WhipUrl};

use options::OPTIONS;
use sources::Flags;

/// The settings of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shared-memory name of the camera's ring.
    pub shm: String,
    /// Shared-memory name of the detector's results. `None` if none are read.
    pub detections: Option<String>,
    /// Name of the stream in URLs: 1 to 32 small letters, digits and hyphens.
    pub name: String,
    /// Name of the stream that people see.
    pub title: String,
    /// Address of the HTTP endpoint.
    pub http: SocketAddr,
    /// Loopback address of the control endpoint. `None` if there is no control endpoint.
    pub control: Option<SocketAddr>,
    /// Address of the UDP port that all viewers use.
    pub udp: SocketAddr,
    /// Further addresses at which viewers can reach the server, such as the public address of a router.
    pub advertise: Vec<Advertise>,
    /// STUN and TURN servers that the server names to WHEP players.
    pub ice_servers: Vec<IceServer>,
    /// True if viewers may connect over TCP, on the port of `udp` (ICE-TCP).
    pub ice_tcp: bool,
    /// Maximum number of viewers at the same time, from 1 to `limits::VIEWERS_MAX`.
    pub max_viewers: usize,
    /// Number of worker threads.
    pub workers: Workers,
    /// How the server waits for the camera's next access unit.
    pub wake: Wake,
    /// Lowest bit rate in kbit/s that is requested from the camera. `None` if no bit rate is requested.
    pub min_kbps: Option<u32>,
    /// True if the thread that waits for the camera gets real-time priority.
    pub realtime: bool,
    /// The token that the page and the API require. `None` if they require none.
    pub token: Option<Token>,
    /// The certificate for the address `http`. `None` if that address is served without TLS.
    pub tls: Option<Tls>,
    /// Further address of the HTTP endpoint that is served without TLS. Allowed only if `tls` is set.
    pub http_plain: Option<SocketAddr>,
    /// Further host names, in lower case, that the `Host` header of a request may have. `*` accepts any name.
    pub allow_host: Vec<String>,
    /// Other web origins whose pages may use the API. Each is `scheme://host[:port]` in lower case.
    pub allow_origin: Vec<String>,
    /// Addresses of reverse proxies. The limits per address do not apply to them.
    pub trusted_proxy: Vec<Subnet>,
    /// The most detailed log level that is written.
    pub log_level: log::LevelFilter,
    /// The preferred SRTP cipher.
    pub srtp: SrtpChoice,
    /// Where to publish the stream. `None` if it is not published.
    pub whip: Option<Whip>,
    /// Directory of the recordings.
    pub record_path: PathBuf,
    /// True if the server runs without a recorder and refuses recording requests.
    pub no_recorder: bool,
    /// Format of recordings whose name has no extension.
    pub record_format: Format,
    /// Total size of all recordings in bytes, above which the oldest are deleted. `None` for no limit.
    pub retain_bytes: Option<u64>,
    /// Number of days after which a recording is deleted. `None` for no limit.
    pub retain_days: Option<u32>,
    /// Bytes that must stay free on the file system of the recordings. If fewer are free, the oldest recordings are
    /// deleted.
    pub min_free_bytes: Option<u64>,
    /// True if the server runs a simulated camera on its own ring.
    pub demo: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            shm: values::SHM.to_owned(),
            detections: Some(values::DETECTIONS.to_owned()),
            name: STREAM_NAME.to_owned(),
            title: stream::TITLE.to_owned(),
            http: SocketAddr::from(([0, 0, 0, 0], 8080)),
            control: Some(SocketAddr::from(([127, 0, 0, 1], 6060))),
            udp: SocketAddr::from(([0, 0, 0, 0], 8189)),
            advertise: Vec::new(),
            ice_servers: Vec::new(),
            ice_tcp: true,
            max_viewers: limits::VIEWERS_DEFAULT,
            workers: Workers::Auto,
            wake: Wake::Auto,
            min_kbps: None,
            realtime: false,
            token: None,
            tls: None,
            http_plain: None,
            allow_host: Vec::new(),
            allow_origin: Vec::new(),
            trusted_proxy: Vec::new(),
            log_level: log::LevelFilter::Info,
            srtp: SrtpChoice::Auto,
            whip: None,
            record_path: PathBuf::from("./recordings"),
            no_recorder: false,
            record_format: Format::Mp4,
            retain_bytes: None,
            retain_days: None,
            min_free_bytes: None,
            demo: false,
        }
    }
}

/// The result of reading the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The server must run with this configuration.
    Run(Box<Config>),
    /// --help or --version was given: the program must print this text and exit with code 0.
    Print(String),
}

impl Config {
    /// Reads the options from the three sources. Flags override the environment, and the environment overrides the
    /// file.
    ///
    /// `args` are the arguments without the program's name. `env` returns the value of an environment variable.
    /// `read_file` reads the files that `--config`, `--token-file` and `--whip-token-file` name.
    ///
    /// # Errors
    /// Returns the first error. The error of a bad value names the source of the value and states what the option
    /// accepts.
    pub fn from_args(
        args: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<OsString>,
        read_file: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Parsed, ConfigError> {
        let flags = match sources::from_flags(args)? {
            Flags::Given(flags) => flags,
            Flags::Print(text) => return Ok(Parsed::Print(text)),
        };
        let environment = sources::from_environment(&env)?;
        let path = flags.get("config").or_else(|| environment.get("config"));
        let mut given = match path {
            Some(path) => sources::from_file(path, &read_file)?,
            None => BTreeMap::new(),
        };
        given.extend(environment);
        given.extend(flags);
        let mut config = Config::default();
        for spec in OPTIONS {
            if let Some(given) = given.get(spec.name) {
                (spec.set)(&mut config, given)?;
            }
        }
        if !config.demo && config.shm != values::SHM && !given.contains_key("detections") {
            // The default segment belongs to the camera of the default ring.
            config.detections = None;
        }
        config.token = security::find_token(&given, &read_file)?;
        config.tls = security::tls(&given, &env)?;
        config.whip = whip::find_whip(&given, &read_file)?;
        if config.http_plain.is_some() && config.tls.is_none() {
            let message = "--http-plain needs TLS: without TLS --http is already plain";
            return Err(ConfigError::Together(message.into()));
        }
        Ok(Parsed::Run(Box::new(config)))
    }
}

/// Checks that no environment variable is a misspelt option. `variables` are all variables of the process.
///
/// Returns the variables named `STREAMING_*` that are no options and resemble none.
///
/// # Errors
/// Returns an error for a variable whose name resembles that of an option.
pub fn check_environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<String>, ConfigError> {
    let given = variables.filter(|(_, value)| !value.is_empty());
    sources::unknown_variables(given.map(|(name, _)| name.to_string_lossy().into_owned()))
}

/// Writes one line for each option whose value differs from its default.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Config::default();
        for spec in OPTIONS {
            let value = (spec.show)(self);
            if value != (spec.show)(&default) {
                writeln!(f, "{} = {value}", spec.name)?;
            }
        }
        Ok(())
    }
}
