//! `streaming-server doctor` checks if this machine has everything that the server needs. `streaming-server
//! healthcheck` asks a running server for its health. Both change nothing, except that doctor writes and removes a
//! probe file in the record directory.

mod detections;
mod publish;
mod security;

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::app::addresses::{host_candidates, interface_addresses, most_useful, too_many};
use crate::app::server::sockets::without_tcp;
use crate::base::limits::{self, CANDIDATES_MAX};
use crate::base::{clock, foreign_file};
use crate::camera::{Access, Mapping};
use crate::config::Config;
use crate::h264::{AssembledUnit, Assembler, BFrameDetector, SlotFault, SlotFaultDetector};
use crate::uring::{self, Features, UdpDriver, UdpDriverConfig};

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No action is needed.
    Ok,
    /// The server runs, but slower or with fewer features.
    Warn,
    /// The server cannot run.
    Fail,
}

/// One line of the report that `doctor` prints.
#[derive(Clone, Debug)]
pub struct Check {
    /// Name of what was checked, such as `ring` or `udp`.
    pub what: &'static str,
    /// Result of the check.
    pub verdict: Verdict,
    /// What the check found. For `Warn` and `Fail`, the text usually also says what to do.
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

/// Result of a check, and the text for [`Check::finding`].
type Finding = (Verdict, String);

fn check(what: &'static str, (verdict, finding): Finding) -> Check {
    Check { what, verdict, finding }
}

/// Checks everything that a server with this configuration needs. While a server is running, the checks of its ports
/// fail.
#[must_use]
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![check("ring", ring(config))];
    if let Some(name) = config.detections.as_deref().filter(|_| !config.demo) {
        checks.push(check("detections", detections::segment(name)));
    }
    checks.extend(sending());
    checks.push(tcp("http", config.http));
    checks.extend(config.http_plain.map(|address| tcp("http-plain", address)));
    checks.extend(config.tls.as_ref().map(|tls| check("tls", security::certificate(config, tls))));
    checks.push(check("token", security::token(config)));
    checks.push(port("udp", config.udp, UdpSocket::bind(config.udp).map(drop)));
    checks.extend(config.ice_tcp.then(|| check("ice-tcp", ice_tcp(config))));
    checks.push(check("addresses", addresses(config)));
    checks.extend(config.control.map(|address| tcp("control", address)));
    checks.extend(config.whip.as_ref().map(|whip| check("whip", publish::endpoint(whip))));
    if !config.no_recorder {
        checks.push(check("recordings", recordings(&config.record_path)));
    }
    checks
}

fn ring(config: &Config) -> Finding {
    if config.demo {
        return (Verdict::Ok, "--demo creates its own ring".to_owned());
    }
    let name = config.shm.as_str();
    let mapping = match Mapping::open(name, Access::Inspect) {
        Ok(mapping) => mapping,
        Err(error) => {
            let advice =
                "the server waits for the camera. Is the camera running? Is --shm the name of its ring?";
            return (Verdict::Warn, format!("{name}: {error}: {advice}"));
        }
    };
    let layout = mapping.layout();
    let newest = mapping.write_index().wrapping_sub(1);
    let slot = mapping.metadata(newest);
    if let Err(error) = slot.validate() {
        let finding = format!("{name}: layout {layout}, but its newest slot is not usable yet: {error}");
        return (Verdict::Warn, finding);
    }
    let age = |now_s: i64| slot.timestamp_s.abs_diff(now_s);
    let (clock, age_s) = match (age(clock::unix_s()), age(clock::monotonic_ns() / 1_000_000_000)) {
        (real, monotonic) if real <= monotonic => ("CLOCK_REALTIME", real),
        (_, monotonic) => ("CLOCK_MONOTONIC", monotonic),
    };
    let found = format!("{name}: layout {layout}, {}x{}, timestamps of {clock}", slot.width, slot.height);
    let mut warnings = String::new();
    if age_s > stale_s(&mapping, newest) {
        let age = format!(", the newest {age_s} s from now: the camera stopped or its clock is wrong");
        warnings.push_str(&age);
    }
    let (has_b_frames, slot_fault) = habits(&mapping);
    if let Some(fault) = slot_fault {
        warnings.push_str(", but ");
        warnings.push_str(fault.text());
    }
    if has_b_frames {
        warnings.push_str(
            ", with B-frames: turn B-frames off, because browsers over WebRTC do not reorder pictures",
        );
    }
    let verdict = if warnings.is_empty() { Verdict::Ok } else { Verdict::Warn };
    (verdict, found + &warnings)
}

/// Returns true if pictures in the ring are shown in another order than they were sent, and what else than one picture
/// the slots hold.
fn habits(mapping: &Mapping) -> (bool, Option<SlotFault>) {
    let (mut assembler, mut detector) = (Assembler::default(), BFrameDetector::default());
    let (mut slots, mut has_b_frames, mut slot_fault) = (SlotFaultDetector::default(), false, None);
    let newest = mapping.write_index();
    // The camera may overwrite the oldest slots meanwhile, so they are left out.
    for back in (1..mapping.layout().slot_count().saturating_sub(1)).rev() {
        let bytes = mapping.copy_unit(newest.wrapping_sub(back));
        // Without parameter sets in the ring, the order of the pictures is unknown.
        let is_unknown = |unit: &AssembledUnit<'_>| unit.parameter_sets().stream_info().is_none();
        if let Ok(unit) = assembler.assemble(&bytes) {
            has_b_frames |= detector.find(&unit) || (unit.has_b_slice() && is_unknown(&unit));
            slot_fault = slot_fault.or(slots.find(&unit, || true));
        }
    }
    (has_b_frames, slot_fault)
}

/// Returns the age of the newest slot, in seconds, above which `doctor` reports that the camera stopped: three intervals
/// between the newest two units, and at least [`STALE_S_MIN`].
fn stale_s(mapping: &Mapping, newest: u32) -> u64 {
    let captured_s = |unit: u32| mapping.metadata(unit).timestamp_s;
    let interval_s = captured_s(newest).abs_diff(captured_s(newest.wrapping_sub(1)));
    let is_plausible =
        interval_s.saturating_mul(1_000_000_000) <= limits::UNIT_INTERVAL_NS_MAX.unsigned_abs();
    let intervals = limits::UNIT_INTERVALS_STALLED.unsigned_abs();
    if is_plausible { (intervals * interval_s).max(STALE_S_MIN) } else { STALE_S_MIN }
}

const STALE_S_MIN: u64 = 5; // local bound: only this check uses it

fn sending() -> Vec<Check> {
    let socket = match uring::open_socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) {
        Ok((socket, _)) => Arc::new(socket),
        Err(error) => return vec![check("udp socket", (Verdict::Fail, error.to_string()))],
    };
    let config = UdpDriverConfig { socket, receives: true, eventfds: Vec::new(), sends_max: 64 };
    let features = match UdpDriver::new(config) {
        Ok(edge) => edge.features(),
        Err(error) => return vec![check("io_uring", (Verdict::Fail, error.to_string()))],
    };
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let missing = (features | Features::GSO | Features::FUTEX).missing();
    let (verdict, finding) = match (missing.is_empty(), features.contains(Features::FUTEX)) {
        (true, true) => (Verdict::Ok, "has every feature that the server uses".to_owned()),
        (true, false) => {
            (Verdict::Ok, "works; from Linux 6.7 on the camera wakes a worker directly".to_owned())
        }
        _ => (Verdict::Warn, format!("lacks {missing}: it works, Linux 6.1 or newer is faster")),
    };
    let ring = check("io_uring", (verdict, format!("Linux {release} {finding}")));
    let (verdict, finding) = if features.contains(Features::GSO) {
        (Verdict::Ok, "batches of datagrams are sent with one call (UDP_SEGMENT)")
    } else {
        (Verdict::Warn, "datagrams are sent one by one; Linux 4.18 or newer has UDP_SEGMENT")
    };
    vec![ring, check("gso", (verdict, finding.to_owned()))]
}

fn tcp(what: &'static str, address: SocketAddr) -> Check {
    port(what, address, TcpListener::bind(address).map(drop))
}

/// Returns the check of a port. `bound` is the result of binding its address. The option that sets the address has the
/// name of the check, `what`.
fn port(what: &'static str, address: SocketAddr, bound: std::io::Result<()>) -> Check {
    let finding = match bound {
        Ok(()) => (Verdict::Ok, format!("{address} is free")),
        Err(error) => {
            let advice = "is a server running? Choose another address with";
            (Verdict::Fail, format!("{address}: {error}: {advice} --{what}"))
        }
    };
    check(what, finding)
}

/// Checks the TCP port of ICE-TCP. Without it, viewers whose network blocks UDP use HTTP.
fn ice_tcp(config: &Config) -> Finding {
    let (address, http) = (config.udp, config.http);
    let bound = match address.port() {
        0 => Ok(()),
        port if port == http.port() => Err(std::io::ErrorKind::AddrInUse.into()),
        _ => TcpListener::bind(address).map(drop),
    };
    match bound {
        Ok(()) => (Verdict::Ok, format!("tcp {address} is free")),
        Err(error) => (Verdict::Warn, without_tcp(address, http, &error)),
    }
}

/// Lists the addresses that viewers get.
fn addresses(config: &Config) -> Finding {
    let found = host_candidates(config.udp, &interface_addresses(), None);
    let used = most_useful(&found, CANDIDATES_MAX.saturating_sub(config.advertise.len()).max(1));
    let advertised = config.advertise.iter().map(|address| address.ip.to_string());
    let listed: Vec<String> = advertised.chain(used.iter().map(|used| used.ip().to_string())).collect();
    let listed = listed.join(", ");
    if found.len() > used.len() {
        return (Verdict::Warn, format!("{}: {listed}", too_many(found.len(), used.len())));
    }
    (Verdict::Ok, format!("viewers get {listed}"))
}

fn recordings(directory: &Path) -> Finding {
    let shown = directory.display();
    // The directory may not exist yet, because the first recording creates it. So we test if the nearest existing
    // directory above it is writable.
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let probe = existing.join(format!(".streaming-server-doctor-{}", std::process::id()));
    let written = foreign_file::create_new(&probe, 0o600).and_then(|mut file| {
        let written = file.write_all(b"x");
        // The error of the removal is ignored: the next doctor with this process id reports the file that is left.
        let _ = std::fs::remove_file(&probe);
        written
    });
    if let Err(error) = written {
        let advice = "choose another directory with --record-path, or make it writable for this user";
        return (Verdict::Fail, format!("{shown}: {error}: {advice}"));
    }
    match rustix::fs::statvfs(existing) {
        Ok(system) => {
            let free = system.f_bavail.saturating_mul(system.f_frsize);
            let (verdict, advice) = if free < FREE_BYTES_LOW {
                (Verdict::Warn, "; this is little: see --retain-bytes and --min-free-bytes")
            } else {
                (Verdict::Ok, "")
            };
            (verdict, format!("{shown} is writable, {free} bytes free{advice}"))
        }
        Err(error) => (Verdict::Warn, format!("{shown}: free bytes unknown: {error}")),
    }
}

/// Free bytes below which `doctor` warns. This is enough for some minutes of recording.
const FREE_BYTES_LOW: u64 = 1 << 30; // local bound: only this check uses it

/// Requests GET /health from the server on this machine. Returns `Ok` if the status is 200.
///
/// # Errors
/// Returns the reason as text if there is no answer or if its status is not 200.
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

/// Sends GET /health, which requires no token, and returns the status line of the response.
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

const HEALTH_TIMEOUT: Duration = Duration::from_secs(3); // local bound: only the healthcheck uses it
