//! Starts the servers under test, waits until a server is ready, and lets viewers join it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Fallible;
use crate::floor::Hello;
use crate::http;
use crate::process::Process;
use crate::record::Setting;
use crate::srtp::Profile;
use crate::viewer::{Offering, Viewer};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two attempts to reach a server that is starting.
const READY_INTERVAL: Duration = Duration::from_micros(500);

/// A server under test.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// streaming-server with this many workers.
    Ours { workers: u32 },
    /// Another build of streaming-server with one worker.
    Before,
    /// The bare sender with a cipher, or without encryption if `None`.
    Floor(Option<Profile>),
    /// A program of `perf/peers/` in one variant.
    Peer { program: &'static str, variant: &'static str },
}

/// Paths for offers and for the health check of a server.
struct Paths {
    offer: &'static str,
    health: &'static str,
}

const USUAL: Paths = Paths { offer: "/api/webrtc/offer", health: "/health" };
const GO2RTC: Paths = Paths { offer: "/api/webrtc?src=camera", health: "/api" };

const ALL: &[(&str, Kind)] = &[
    ("ours", Kind::Ours { workers: 1 }),
    ("ours-2", Kind::Ours { workers: 2 }),
    ("before", Kind::Before),
    ("floor-gcm", Kind::Floor(Some(Profile::Aes256Gcm))),
    ("floor-cm", Kind::Floor(Some(Profile::Aes128Cm))),
    ("floor-send", Kind::Floor(None)),
    ("pion", Kind::Peer { program: "pion", variant: "faithful" }),
    ("pion-best", Kind::Peer { program: "pion", variant: "best" }),
    ("pion-best-1", Kind::Peer { program: "pion", variant: "best-1" }),
    ("aiortc", Kind::Peer { program: "aiortc", variant: "passthrough" }),
    ("go2rtc", Kind::Peer { program: "go2rtc", variant: "pipe" }),
];

impl Kind {
    fn paths(self) -> &'static Paths {
        match self {
            Kind::Peer { program: "go2rtc", .. } => &GO2RTC,
            _ => &USUAL,
        }
    }

    pub(crate) fn parse(name: &str) -> Fallible<Kind> {
        let names = || ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        found.ok_or_else(|| format!("unknown server {name:?}; known: {}", names()).into())
    }
}

/// Locations of the programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The directory of `streaming-server` and `camera-sim`.
    pub(crate) ours: PathBuf,
    /// The program of the server `before`.
    pub(crate) before: Option<PathBuf>,
    /// The directory into which `perf/peers/*/setup` installs.
    pub(crate) peers: PathBuf,
    /// True if server and camera run with real-time priority.
    pub(crate) shielded: bool,
}

/// A running server.
pub(crate) struct Subject {
    kind: Kind,
    pub(crate) process: Process,
    address: SocketAddr,
    next_ssrc: u32,
    /// Time from exec to the first answer on the health path, in ms.
    pub(crate) start_ms: f64,
}

impl Subject {
    /// Starts the server on the ring `shm` and waits until it answers.
    pub(crate) fn start(
        kind: Kind,
        programs: &Programs,
        shm: &str,
        viewers: usize,
        recordings: &Path,
    ) -> Fallible<Subject> {
        let mut command = match kind {
            Kind::Ours { workers } => {
                ours(&programs.ours.join("streaming-server"), workers, viewers, recordings)
            }
            Kind::Before => {
                let program = programs.before.as_ref().ok_or("the server `before` needs --before PROGRAM")?;
                ours(program, 1, viewers, recordings)
            }
            Kind::Floor(_) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("floor");
                command
            }
            Kind::Peer { program, variant } => {
                let path = programs.peers.join(program).join("serve");
                if !path.exists() {
                    return Err(format!(
                        "{} is missing: run perf/peers/{program}/setup first",
                        path.display()
                    )
                    .into());
                }
                let mut command = Command::new(path);
                command.args(["--variant", variant, "--http", "127.0.0.1:0"]);
                command.arg("--record-path").arg(recordings);
                command
            }
        };
        let mut process = Process::spawn("the server", command.arg("--shm").arg(shm), programs.shielded)?;
        let line = process.wait_for("listening: ", TIMEOUT)?;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http="));
        let address: SocketAddr = address.ok_or("no http= in the server's line")?.parse()?;
        let deadline = Instant::now() + TIMEOUT;
        while !matches!(kind, Kind::Floor(_)) && !answers(address, kind.paths().health) {
            process.check()?;
            if Instant::now() > deadline {
                return Err(format!("no answer on {}:\n{}", kind.paths().health, process.tail()).into());
            }
            std::thread::sleep(READY_INTERVAL);
        }
        let start_ms = process.started.elapsed().as_secs_f64() * 1e3;
        Ok(Subject { kind, process, address, next_ssrc: 0x5045_0000, start_ms })
    }

    /// Lets a viewer join the server, and returns it before its media has arrived.
    pub(crate) fn join(&mut self, setting: &Setting, checks_all: bool) -> Fallible<Viewer> {
        let Setting { gro, feedback, .. } = *setting;
        if let Kind::Floor(profile) = self.kind {
            self.next_ssrc += 1;
            return Viewer::bare(self.address, &Hello { profile, ssrc: self.next_ssrc }, gro, checks_all);
        }
        let offering = Offering::new(gro, checks_all, feedback)?;
        let offered_at_ns = crate::clock::monotonic_ns();
        let answer = self.post(self.kind.paths().offer, &json!({"type": "offer", "sdp": offering.sdp}))?;
        let sdp = answer["sdp"].as_str().ok_or("no sdp in the answer")?;
        offering.accept(sdp, offered_at_ns)
    }

    /// Returns the address of the control endpoint, which has metrics and profiles. Only streaming-server has such an
    /// endpoint.
    pub(crate) fn control(&mut self) -> Fallible<SocketAddr> {
        let line = self.process.wait_for("control: http://", TIMEOUT)?;
        Ok(line.split('/').next().unwrap_or_default().parse()?)
    }

    /// Returns true if this is streaming-server.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Ours { .. } | Kind::Before)
    }

    /// Posts JSON and returns the JSON of the response.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Fallible<Value> {
        let (status, text) = http::request(self.address, "POST", path, &body.to_string())?;
        if status != 200 {
            return Err(format!("{path}: {status} {text}").into());
        }
        Ok(serde_json::from_str(&text)?)
    }
}

fn ours(program: &Path, workers: u32, viewers: usize, recordings: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
        command.env_remove(name);
    }
    command.args(["--control", "127.0.0.1:0", "--http", "127.0.0.1:0", "--udp", "127.0.0.1:0"]);
    // The limit is at least the default of 32, so that the server uses as much memory as with default options.
    command.args(["--max-viewers", &viewers.max(32).to_string(), "--workers", &workers.to_string()]);
    command.arg("--record-path").arg(recordings);
    command
}

fn answers(address: SocketAddr, path: &str) -> bool {
    matches!(http::request(address, "GET", path, ""), Ok((200, _)))
}
