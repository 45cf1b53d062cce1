//! The one configuration: flags, environment and file, parsed once into types that cannot be wrong.
//!
//! Every option is one line in `options::OPTIONS`; its value comes from the flag `--name`, else from
//! `STREAMING_NAME` in the environment, else from the key `name` of the file, else from the default. All
//! sources are passed in: this module reads no environment and no file by itself, and knows no other room.

mod error;
mod help;
mod options;
mod recording;
mod security;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, ValueOrigin};
pub use recording::RecordFormat;
pub use security::{AllowHost, Tls, Token};
pub use values::{Advertise, Origin, ShmName, SrtpChoice, WakeChoice, Workers};

use options::Given;

/// How the server is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shared-memory name of the camera's ring.
    pub shm: ShmName,
    /// Address of the HTTP endpoint.
    pub http: SocketAddr,
    /// Loopback address of the local control endpoint; `None`: there is none.
    pub control: Option<SocketAddr>,
    /// Address of the one UDP port.
    pub udp: SocketAddr,
    /// Further addresses viewers may reach us at.
    pub advertise: Vec<Advertise>,
    /// Viewers at once, 1 to `limits::VIEWERS_MAX`.
    pub max_viewers: usize,
    /// Worker threads.
    pub workers: Workers,
    /// How to wait for the camera.
    pub wake: WakeChoice,
    /// Real-time priority for the doorbell thread.
    pub realtime: bool,
    /// The secret that page and API ask for.
    pub token: Option<Token>,
    /// How `http` is served over TLS; `None`: it is not.
    pub tls: Option<Tls>,
    /// A further address, served without TLS though `http` has it.
    pub http_plain: Option<SocketAddr>,
    /// Names the server may be asked by, beside its own.
    pub allow_host: Vec<AllowHost>,
    /// Origins beside our own whose pages may use the API.
    pub allow_origin: Vec<Origin>,
    /// Most talkative level that is logged.
    pub log_level: log::LevelFilter,
    /// Which SRTP cipher comes first.
    pub srtp: SrtpChoice,
    /// Directory of the recordings.
    pub record_path: PathBuf,
    /// Leave recording to others: no recorder thread, no recording routes.
    pub no_recorder: bool,
    /// What a recording without an extension in its name becomes.
    pub record_format: RecordFormat,
    /// Bytes all recordings together may take.
    pub retain_bytes: Option<u64>,
    /// Days a recording is kept.
    pub retain_days: Option<u32>,
    /// Bytes the recordings leave free on their file system.
    pub min_free_bytes: Option<u64>,
    /// Run a simulated camera on a ring of its own.
    pub demo: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            shm: ShmName::default(),
            http: SocketAddr::from(([0, 0, 0, 0], 8080)),
            control: Some(SocketAddr::from(([127, 0, 0, 1], 6060))),
            udp: SocketAddr::from(([0, 0, 0, 0], 8189)),
            advertise: Vec::new(),
            max_viewers: 32,
            workers: Workers::Auto,
            wake: WakeChoice::Auto,
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
            record_format: RecordFormat::Mp4,
            retain_bytes: None,
            retain_days: None,
            min_free_bytes: None,
            demo: false,
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Run the server.
    Run(Box<Config>),
    /// Print this text (--help, --version) and exit 0.
    Print(String),
}

impl Config {
    /// Reads the three sources; flags beat the environment, the environment beats the file.
    ///
    /// `args` are the arguments without the program's name. `env` looks one variable up. `read_file` is
    /// asked for `--config` and `--token-file`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its source, the value and what is expected.
    pub fn from_args(
        args: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<OsString>,
        read_file: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Parsed, ConfigError> {
        let flags = match options::from_flags(args)? {
            options::Flags::Given(flags) => flags,
            options::Flags::Help => return Ok(Parsed::Print(help::help())),
            options::Flags::Version => return Ok(Parsed::Print(help::version())),
        };
        let environment = options::from_environment(&env)?;
        let path = flags.get("config").or_else(|| environment.get("config"));
        let file = match path {
            Some(path) => options::from_file(path, &read_file)?,
            None => BTreeMap::new(),
        };
        let mut given = file;
        given.extend(environment);
        given.extend(flags);
        let mut config = Config::from_given(&given)?;
        config.token = security::find_token(&given, &read_file)?;
        let is_self_signed = one(&given, "tls-self-signed", values::switch, false)?;
        config.tls = security::tls(&given, is_self_signed, &env)?;
        if config.http_plain.is_some() && config.tls.is_none() {
            let message = "--http-plain is for servers with TLS: without it --http is plain already";
            return Err(ConfigError::Together(message.into()));
        }
        Ok(Parsed::Run(Box::new(config)))
    }

    fn from_given(given: &BTreeMap<&'static str, Given>) -> Result<Config, ConfigError> {
        let default = Config::default();
        Ok(Config {
            shm: one(given, "shm", values::shm, default.shm)?,
            http: one(given, "http", values::address, default.http)?,
            control: one(given, "control", values::control, default.control)?,
            udp: one(given, "udp", values::address, default.udp)?,
            advertise: many(given, "advertise", values::advertise)?,
            max_viewers: one(given, "max-viewers", values::max_viewers, default.max_viewers)?,
            workers: one(given, "workers", values::workers, default.workers)?,
            wake: one(given, "wake", values::wake, default.wake)?,
            realtime: one(given, "realtime", values::switch, default.realtime)?,
            token: None,
            tls: None,
            http_plain: one(given, "http-plain", |text| values::address(text).map(Some), None)?,
            allow_host: many(given, "allow-host", security::allow_host)?,
            allow_origin: many(given, "allow-origin", values::origin)?,
            log_level: one(given, "log-level", values::log_level, default.log_level)?,
            srtp: one(given, "srtp", values::srtp, default.srtp)?,
            record_path: one(given, "record-path", recording::directory, default.record_path)?,
            no_recorder: one(given, "no-recorder", values::switch, default.no_recorder)?,
            record_format: one(given, "record-format", recording::format, default.record_format)?,
            retain_bytes: one(given, "retain-bytes", recording::bytes, None)?,
            retain_days: one(given, "retain-days", recording::days, None)?,
            min_free_bytes: one(given, "min-free-bytes", recording::bytes, None)?,
            demo: one(given, "demo", values::switch, default.demo)?,
        })
    }
}

/// A parser of one value; the error is what is expected instead.
type Parse<T> = fn(&str) -> Result<T, String>;

fn one<T>(
    given: &BTreeMap<&'static str, Given>,
    name: &'static str,
    parse: Parse<T>,
    default: T,
) -> Result<T, ConfigError> {
    match given.get(name).and_then(|given| Some((given, given.values.last()?))) {
        Some((given, value)) => parse(value).map_err(|expected| given.bad_value(value, expected)),
        None => Ok(default),
    }
}

fn many<T>(
    given: &BTreeMap<&'static str, Given>,
    name: &'static str,
    parse: Parse<T>,
) -> Result<Vec<T>, ConfigError> {
    let Some(given) = given.get(name) else {
        return Ok(Vec::new());
    };
    let values = given.values.iter();
    values.map(|value| parse(value).map_err(|expected| given.bad_value(value, expected))).collect()
}

/// One line per option that is not at its default; nothing when all are.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Config::default();
        let mut changed = |name: &str, mine: String, theirs: String| -> fmt::Result {
            if mine == theirs { Ok(()) } else { writeln!(f, "{name} = {mine}") }
        };
        changed("shm", self.shm.to_string(), default.shm.to_string())?;
        changed("http", self.http.to_string(), default.http.to_string())?;
        changed("control", values::or_off(self.control), values::or_off(default.control))?;
        changed("udp", self.udp.to_string(), default.udp.to_string())?;
        changed("advertise", list(&self.advertise), String::new())?;
        changed("max-viewers", self.max_viewers.to_string(), default.max_viewers.to_string())?;
        changed("workers", self.workers.to_string(), default.workers.to_string())?;
        changed("wake", self.wake.to_string(), default.wake.to_string())?;
        changed("realtime", self.realtime.to_string(), default.realtime.to_string())?;
        changed("token", maybe(self.token.as_ref().map(|_| "given, not shown")), String::new())?;
        changed("tls", maybe(self.tls.as_ref()), String::new())?;
        changed("http-plain", maybe(self.http_plain), String::new())?;
        changed("allow-host", list(&self.allow_host), String::new())?;
        changed("allow-origin", list(&self.allow_origin), String::new())?;
        changed("log-level", lower(self.log_level), lower(default.log_level))?;
        changed("srtp", self.srtp.to_string(), default.srtp.to_string())?;
        changed("record-path", shown(&self.record_path), shown(&default.record_path))?;
        changed("no-recorder", self.no_recorder.to_string(), default.no_recorder.to_string())?;
        changed("record-format", self.record_format.to_string(), default.record_format.to_string())?;
        changed("retain-bytes", maybe(self.retain_bytes), String::new())?;
        changed("retain-days", maybe(self.retain_days), String::new())?;
        changed("min-free-bytes", maybe(self.min_free_bytes), String::new())?;
        changed("demo", self.demo.to_string(), default.demo.to_string())
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn maybe(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn lower(level: log::LevelFilter) -> String {
    level.to_string().to_ascii_lowercase()
}
