//! The configuration: command line, environment and file, parsed once into typed values.
//!
//! Every option is one row of `options::OPTIONS` and one field of [`Config`]. Its value comes from the flag `--name`,
//! else from `STREAMING_NAME` in the environment, else from the key `name` of the file, else from the default. The
//! caller passes all sources in: this module reads no environment and no file.

mod error;
mod given;
mod help;
mod options;
mod recording;
mod security;
mod sources;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use crate::camera::Wake;
pub use crate::recorder::names::Format;
pub use crate::session::SrtpChoice;
pub use error::{ConfigError, ValueOrigin};
pub use security::{Tls, Token};
pub use values::{Advertise, Workers, host_of};

use options::OPTIONS;
use sources::Flags;

/// The settings of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shared-memory name of the camera's ring.
    pub shm: String,
    /// Address of the HTTP endpoint.
    pub http: SocketAddr,
    /// Loopback address of the control endpoint. `None`: there is no control endpoint.
    pub control: Option<SocketAddr>,
    /// Address of the one UDP port.
    pub udp: SocketAddr,
    /// Further addresses at which viewers reach the server.
    pub advertise: Vec<Advertise>,
    /// Viewers at the same time, 1 to `limits::VIEWERS_MAX`.
    pub max_viewers: usize,
    /// Number of worker threads.
    pub workers: Workers,
    /// How to wait for the camera.
    pub wake: Wake,
    /// Real-time priority for the thread that waits for the camera.
    pub realtime: bool,
    /// The token that page and API require.
    pub token: Option<Token>,
    /// The certificate for `http`. `None`: `http` is served without TLS.
    pub tls: Option<Tls>,
    /// A further address, served without TLS. Only with `tls`.
    pub http_plain: Option<SocketAddr>,
    /// Further host names to accept in requests, in lower case. `*` accepts any name.
    pub allow_host: Vec<String>,
    /// Other origins (`scheme://host[:port]`, in lower case) whose pages may use the API.
    pub allow_origin: Vec<String>,
    /// The most detailed level that is logged.
    pub log_level: log::LevelFilter,
    /// The preferred SRTP cipher.
    pub srtp: SrtpChoice,
    /// Directory of the recordings.
    pub record_path: PathBuf,
    /// No recorder thread and no recording routes.
    pub no_recorder: bool,
    /// Format of recordings whose name has no extension.
    pub record_format: Format,
    /// Total bytes of all recordings.
    pub retain_bytes: Option<u64>,
    /// Days after which a recording is deleted.
    pub retain_days: Option<u32>,
    /// Bytes to keep free on the file system of the recordings.
    pub min_free_bytes: Option<u64>,
    /// Run a simulated camera on its own ring.
    pub demo: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            shm: values::SHM.to_owned(),
            http: SocketAddr::from(([0, 0, 0, 0], 8080)),
            control: Some(SocketAddr::from(([127, 0, 0, 1], 6060))),
            udp: SocketAddr::from(([0, 0, 0, 0], 8189)),
            advertise: Vec::new(),
            max_viewers: 32,
            workers: Workers::Auto,
            wake: Wake::Auto,
            realtime: false,
            token: None,
            tls: None,
            http_plain: None,
            allow_host: Vec::new(),
            allow_origin: Vec::new(),
            log_level: log::LevelFilter::Info,
            srtp: SrtpChoice::Auto,
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
    /// Run the server.
    Run(Box<Config>),
    /// Print this text (--help, --version) and exit with code 0.
    Print(String),
}

impl Config {
    /// Reads the three sources. Flags override the environment, the environment overrides the file.
    ///
    /// `args` are the arguments without the program's name. `env` returns a variable of the environment.
    /// `read_file` reads the files of `--config` and `--token-file`.
    ///
    /// # Errors
    /// The first bad value, with its source and what the option accepts.
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
        config.token = security::find_token(&given, &read_file)?;
        config.tls = security::tls(&given, &env)?;
        if config.http_plain.is_some() && config.tls.is_none() {
            let message = "--http-plain needs TLS: without TLS --http is already plain";
            return Err(ConfigError::Together(message.into()));
        }
        Ok(Parsed::Run(Box::new(config)))
    }
}

/// One line per option that differs from its default.
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
