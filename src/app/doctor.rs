//! `streaming-server doctor` and `streaming-server healthcheck`: looks at what the server would stand on, or asks
//! a running one how it is. Changes nothing but a file it writes into the record directory and removes again.

mod security;

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock;
use crate::camera::{Access, Mapping};
use crate::config::Config;
use crate::uring::{self, Features, UdpDriver, UdpDriverConfig};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// The server runs, with less than it could have.
    Warn,
    /// The server does not run like this.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found and, unless all is well, what to do.
    pub finding: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        write!(f, "{verdict:4}  {:10}  {}", self.what, self.finding)
    }
}

fn check(what: &'static str, verdict: Verdict, finding: impl Into<String>) -> Check {
    Check { what, verdict, finding: finding.into() }
}

/// Looks at everything a server with this configuration needs. A running one holds its ports: they fail then.
#[must_use]
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![ring(config)];
    checks.extend(sending());
    checks.push(tcp("http", "--http", config.http));
    checks.extend(config.http_plain.map(|address| tcp("http-plain", "--http-plain", address)));
    checks.extend(config.tls.as_ref().map(|tls| security::certificate(config, tls)));
    checks.push(security::token(config));
    checks.push(udp(config.udp));
    checks.extend(config.control.map(|address| tcp("control", "--control", address)));
    if !config.no_recorder {
        checks.push(recordings(&config.record_path));
    }
    checks
}

fn ring(config: &Config) -> Check {
    if config.demo {
        return check("ring", Verdict::Ok, "--demo brings its own");
    }
    let name = config.shm.as_str();
    let mapping = match Mapping::open(name, Access::Inspect) {
        Ok(mapping) => mapping,
        Err(error) => {
            let advice = "the server waits for the camera; is it running, is --shm its name?";
            return check("ring", Verdict::Warn, format!("{name}: {error}: {advice}"));
        }
    };
    let layout = mapping.layout();
    let newest = mapping.write_index().wrapping_sub(1);
    let slot = mapping.metadata(newest);
    if let Err(error) = slot.validate() {
        let finding = format!("{name}: layout {layout}, its newest slot is not usable yet: {error}");
        return check("ring", Verdict::Warn, finding);
    }
    let stamp_s = slot.timestamp_s;
    let age = |now_s: i64| stamp_s.abs_diff(now_s);
    let (clock, age_s) = match (age(clock::unix_s()), age(clock::monotonic_ns() / 1_000_000_000)) {
        (real, monotonic) if real <= monotonic => ("CLOCK_REALTIME", real),
        (_, monotonic) => ("CLOCK_MONOTONIC", monotonic),
    };
    let found = format!("{name}: layout {layout}, {}x{}, stamps of {clock}", slot.width, slot.height);
    if age_s > STALE_S {
        let advice = "the camera has stopped or its clock is wrong";
        return check(
            "ring",
            Verdict::Warn,
            format!("{found}, the newest {age_s} s away from now: {advice}"),
        );
    }
    check("ring", Verdict::Ok, found)
}

/// A camera that writes is never this far behind.
const STALE_S: u64 = 5;

fn sending() -> Vec<Check> {
    let socket = match uring::open_socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) {
        Ok((socket, _)) => Arc::new(socket),
        Err(error) => return vec![check("udp socket", Verdict::Fail, error.to_string())],
    };
    let config = UdpDriverConfig { socket, receives: true, eventfds: Vec::new(), sends_max: 64 };
    let features = match UdpDriver::new(config) {
        Ok(edge) => edge.features(),
        Err(error) => return vec![check("io_uring", Verdict::Fail, error.to_string())],
    };
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let missing = Features { gso: true, futex: true, ..features }.missing();
    let ring = if missing.is_empty() && features.futex {
        check("io_uring", Verdict::Ok, format!("Linux {release} has all that is used of it"))
    } else if missing.is_empty() {
        let finding =
            format!("Linux {release}; from 6.7 on the camera wakes a worker without a thread between");
        check("io_uring", Verdict::Ok, finding)
    } else {
        let finding = format!("Linux {release}, without {missing}: works, Linux 6.1 or newer is faster");
        check("io_uring", Verdict::Warn, finding)
    };
    let gso = if features.gso {
        check("gso", Verdict::Ok, "runs of datagrams go out as one")
    } else {
        check("gso", Verdict::Warn, "every datagram is sent by itself; Linux 4.18 or newer has UDP_SEGMENT")
    };
    vec![ring, gso]
}

fn tcp(what: &'static str, option: &str, address: SocketAddr) -> Check {
    port(what, option, address, TcpListener::bind(address).map(drop))
}

fn udp(address: SocketAddr) -> Check {
    port("udp", "--udp", address, UdpSocket::bind(address).map(drop))
}

fn port(what: &'static str, option: &str, address: SocketAddr, bound: std::io::Result<()>) -> Check {
    match bound {
        Ok(()) => check(what, Verdict::Ok, format!("{address} is free")),
        Err(error) => {
            let advice = "is a server running? choose another with";
            check(what, Verdict::Fail, format!("{address}: {error}: {advice} {option}"))
        }
    }
}

fn recordings(directory: &Path) -> Check {
    let shown = directory.display();
    // It is made when the first recording starts: what is above it has to allow that.
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let probe = existing.join(format!(".streaming-server-doctor-{}", std::process::id()));
    let written = std::fs::write(&probe, b"x");
    // Absent when it could not be written.
    let _ = std::fs::remove_file(&probe);
    if let Err(error) = written {
        let advice = "choose another with --record-path, or give this user the right to write";
        return check("recordings", Verdict::Fail, format!("{shown}: {error}: {advice}"));
    }
    match rustix::fs::statvfs(existing) {
        Ok(system) => {
            let free = system.f_bavail.saturating_mul(system.f_frsize);
            let verdict = if free < FREE_BYTES_LOW { Verdict::Warn } else { Verdict::Ok };
            let advice =
                if verdict == Verdict::Warn { "; little: see --retain-bytes, --min-free-bytes" } else { "" };
            check("recordings", verdict, format!("{shown} is writable, {free} bytes free{advice}"))
        }
        Err(error) => check("recordings", Verdict::Warn, format!("{shown}: free bytes unknown: {error}")),
    }
}

/// Minutes of a recording.
const FREE_BYTES_LOW: u64 = 1 << 30;

/// Asks the server on this machine whether it is well; the error is why not.
///
/// # Errors
/// In words: nobody answers, or not 200.
pub fn healthcheck(config: &Config) -> Result<(), String> {
    let ip = match config.http.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let address = SocketAddr::new(ip, config.http.port());
    let status = ask(address, config.tls.is_some()).map_err(|error| format!("http {address}: {error}"))?;
    if status.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(format!("http {address}: {status}")) }
}

/// The status line of GET /health, which asks for no token.
fn ask(address: SocketAddr, is_tls: bool) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    if is_tls { ask_over(security::over_tls(stream)?, address) } else { ask_over(stream, address) }
}

fn ask_over(mut stream: impl Read + Write, address: SocketAddr) -> std::io::Result<String> {
    write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.take(4_096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
