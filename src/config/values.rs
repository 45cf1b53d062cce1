//! Types of option values, and their parsers. The error of a parser is the text that follows "expected" in the message.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;

use crate::base::limits;
use crate::camera::Wake;
use crate::session::SrtpChoice;

/// Default value of --shm.
pub(super) const SHM: &str = "/pet_camera_stream";

/// Default value of --detections, which belongs to the default ring.
pub(super) const DETECTIONS: &str = "/pet_camera_detections";

/// Parses the name of the detector's segment. Returns `Ok(None)` for `off`.
pub(super) fn detections(text: &str) -> Result<Option<String>, String> {
    if text == "off" {
        Ok(None)
    } else {
        shm(text).map(Some).map_err(|expected| format!("off, or {expected}"))
    }
}

/// Maximum length in bytes of a shared-memory name with its slash. It is NAME_MAX of tmpfs.
const SHM_NAME_BYTES_MAX: usize = 255; // local bound: set by the kernel

/// Parses the name of a POSIX shared-memory segment. It has the portable form of shm_open(3), `/name`.
pub(super) fn shm(text: &str) -> Result<String, String> {
    let is_good = text
        .strip_prefix('/')
        .is_some_and(|name| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']))
        && text.len() <= SHM_NAME_BYTES_MAX;
    if is_good {
        Ok(text.into())
    } else {
        Err(format!(
            "a shared-memory name: one leading slash, no other slash, {SHM_NAME_BYTES_MAX} bytes at most, such as {SHM}"
        ))
    }
}

/// Parses `IP:PORT`. `:PORT` and `PORT` mean this port on all IPv4 addresses.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    address_or_port(text, Ipv4Addr::UNSPECIFIED)
        .ok_or_else(|| "IP:PORT, :PORT or PORT, such as 0.0.0.0:8080 or [::]:8080".into())
}

/// Parses a loopback address with a port. Returns `Ok(None)` for `off`.
pub(super) fn control(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    // A port without an address means the loopback address here, not all addresses.
    match address_or_port(text, Ipv4Addr::LOCALHOST) {
        Some(address) if address.ip().is_loopback() => Ok(Some(address)),
        _ => Err("a loopback address, such as 127.0.0.1:6060 or [::1]:6060, or off: \
                  the control endpoint is for this machine only"
            .into()),
    }
}

/// Parses `IP:PORT` or `localhost:PORT`. For `:PORT` and `PORT`, uses the address `ip`.
fn address_or_port(text: &str, ip: Ipv4Addr) -> Option<SocketAddr> {
    let (ip, port) = match text.strip_prefix("localhost:") {
        Some(port) => (Ipv4Addr::LOCALHOST, port),
        None => (ip, text.strip_prefix(':').unwrap_or(text)),
    };
    text.parse().ok().or_else(|| Some(SocketAddr::from((ip, port.parse().ok()?))))
}

/// An address at which viewers can reach this server although no network interface of this machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The IP address.
    pub ip: IpAddr,
    /// The port. `None` if it is the same as the UDP port of the server.
    pub port: Option<u16>,
}

impl Advertise {
    /// Returns the address with its port. If no port was given, uses `udp_port`.
    #[must_use]
    pub fn with_port(self, udp_port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(udp_port))
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

pub(super) fn advertise(text: &str) -> Result<Advertise, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let parsed = match (bare.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(ip), _) => Some(Advertise { ip, port: None }),
        (_, Ok(address)) => Some(Advertise { ip: address.ip(), port: Some(address.port()) }),
        _ => None,
    };
    match parsed {
        Some(it) if !it.ip.is_unspecified() && !it.ip.is_multicast() && it.port != Some(0) => Ok(it),
        _ => {
            Err("an address that viewers can reach: IP or IP:PORT, such as 203.0.113.7 or [2001:db8::7]:8189"
                .into())
        }
    }
}

pub(super) fn max_viewers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=limits::VIEWERS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {}", limits::VIEWERS_MAX)),
    }
}

pub(super) fn min_kbps(text: &str) -> Result<u32, String> {
    let (least, most) = (limits::MIN_KBPS.start(), limits::MIN_KBPS.end());
    let kbps = text.parse().ok().filter(|kbps| limits::MIN_KBPS.contains(kbps));
    kbps.ok_or_else(|| format!("a number from {least} to {most}, in kbit/s"))
}

/// Number of worker threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One worker if `--max-viewers` is below 64, else one worker per core.
    Auto,
    /// A fixed number of workers.
    Count(NonZeroUsize),
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workers::Auto => f.write_str("auto"),
            Workers::Count(count) => count.fmt(f),
        }
    }
}

pub(super) fn workers(text: &str) -> Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    match text.parse::<NonZeroUsize>() {
        Ok(count) if count.get() <= limits::WORKERS_MAX => Ok(Workers::Count(count)),
        _ => Err(format!("\"auto\" or a number from 1 to {}", limits::WORKERS_MAX)),
    }
}

/// Returns that one of `choices` whose text form is `text`. If there is none, the error is `expected`.
pub(super) fn choice<T: Copy + ToString>(text: &str, choices: &[T], expected: &str) -> Result<T, String> {
    choices.iter().copied().find(|choice| choice.to_string() == text).ok_or_else(|| expected.to_owned())
}

pub(super) fn wake(text: &str) -> Result<Wake, String> {
    choice(text, &[Wake::Auto, Wake::Semaphore, Wake::Poll], "auto, semaphore or poll")
}

pub(super) fn srtp(text: &str) -> Result<SrtpChoice, String> {
    choice(text, &[SrtpChoice::Auto, SrtpChoice::Gcm, SrtpChoice::Cm], "auto, gcm or cm")
}

/// Returns the host of a web origin, without the scheme and the port.
#[must_use]
pub fn host_of(origin: &str) -> &str {
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    authority.split(':').next().unwrap_or_default()
}

/// Parses a web origin, `scheme://host[:port]` (RFC 6454). Returns it in lower case, as browsers send it.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let authority = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"));
    let is_good = authority.is_some_and(|authority| {
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        !authority.is_empty() && authority.chars().all(is_host)
    });
    if is_good {
        Ok(lower)
    } else {
        Err("an origin as browsers send it: http(s)://HOST[:PORT] without a path, such as https://home.example".into())
    }
}

pub(super) fn log_level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "off, error, warn, info, debug or trace".to_owned())
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// The same as [`switch`] for an option that is on by default.
pub(super) fn on_or_off(text: &str) -> Result<bool, String> {
    switch(text).map_err(|_| "on or off".to_owned())
}

pub(super) fn shown_switch(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// Returns the values as text, separated by commas.
pub(super) fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns the value as text. The text is empty if there is no value.
pub(super) fn maybe(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
