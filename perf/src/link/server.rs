//! Starts the server under test in its network namespace.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::network::SERVER;
use crate::Fallible;
use crate::http;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(40);
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// streaming-server with default options.
    Ours,
    /// streaming-server that publishes over the link to mediamtx, which the browser watches.
    OursWhip,
    /// `perf/peers/pion` in the variant `best`.
    PionBest,
    /// `perf/peers/go2rtc`.
    Go2rtc,
    /// `perf/peers/mediamtx`.
    Mediamtx,
}

const KINDS: &[(&str, Kind)] = &[
    ("ours", Kind::Ours),
    ("ours-whip", Kind::OursWhip),
    ("pion-best", Kind::PionBest),
    ("go2rtc", Kind::Go2rtc),
    ("mediamtx", Kind::Mediamtx),
];

impl Kind {
    pub(crate) fn parse(name: &str) -> Fallible<Kind> {
        let names = || KINDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        found.ok_or_else(|| format!("unknown server {name:?}; known: {}", names()).into())
    }

    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Returns the path for offers.
    pub(crate) fn offer_path(self) -> &'static str {
        match self {
            Kind::Ours | Kind::PionBest => "/api/webrtc/offer",
            Kind::Go2rtc => "/api/webrtc?src=camera",
            Kind::Mediamtx | Kind::OursWhip => "/camera/whep",
        }
    }

    /// Returns true if an offer is plain SDP (WHEP) instead of JSON.
    pub(crate) fn is_whep(self) -> bool {
        matches!(self, Kind::Mediamtx | Kind::OursWhip)
    }

    /// Returns the path of a small document of the server that the browser watches.
    pub(crate) fn health_path(self) -> &'static str {
        match self {
            Kind::Ours | Kind::PionBest => "/health",
            Kind::Go2rtc => "/api",
            Kind::Mediamtx | Kind::OursWhip => "/camera/reader.js",
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) server: PathBuf,
    /// Further options of streaming-server.
    pub(crate) server_arguments: Vec<String>,
    /// Directory into which perf/peers/*/setup install.
    pub(crate) peers: PathBuf,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a server in the network namespace of the calling thread, and waits until it answers. `whip` is the URL to
    /// which [`Kind::OursWhip`] publishes.
    pub(crate) fn start(
        kind: Kind,
        programs: &Programs,
        shm: &str,
        scratch: &Path,
        whip: Option<&str>,
        shielded: bool,
    ) -> Fallible<Server> {
        let http = format!("{SERVER}:0");
        let mut command = match kind {
            Kind::Ours | Kind::OursWhip => {
                let mut command = Command::new(&programs.server);
                for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
                    command.env_remove(name);
                }
                command.args(["--control", "127.0.0.1:0", "--udp", "0.0.0.0:0", "--http", &http]);
                command.args(&programs.server_arguments);
                if let Some(url) = whip {
                    command.args(["--whip", url]);
                }
                command
            }
            Kind::PionBest | Kind::Go2rtc | Kind::Mediamtx => {
                let (program, variant) = match kind {
                    Kind::PionBest => ("pion", "best"),
                    _ => (kind.name(), "pipe"),
                };
                let path = programs.peers.join(program).join("serve");
                if !path.exists() {
                    let path = path.display();
                    return Err(format!("{path} is missing: run perf/peers/{program}/setup first").into());
                }
                let mut command = Command::new(path);
                command.args(["--variant", variant, "--http", &http]).env("PERF", std::env::current_exe()?);
                command
            }
        };
        command.args(["--shm", shm]).arg("--record-path").arg(scratch);
        let mut process = Process::spawn("the server", &mut command, shielded)?;
        let line = process.wait_for("listening: ", PATIENCE)?;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http="));
        let address: SocketAddr = address.ok_or("no http= in the server's line")?.parse()?;
        let health = if kind == Kind::OursWhip { Kind::Ours } else { kind }.health_path();
        let deadline = Instant::now() + PATIENCE;
        while !matches!(http::request(address, "GET", health, ""), Ok((200, _))) {
            process.check()?;
            if Instant::now() > deadline {
                return Err(format!("no answer on {health}:\n{}", process.tail()).into());
            }
            std::thread::sleep(READY_INTERVAL);
        }
        Ok(Server { kind, process, address })
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns what the server reports about its viewers. The calling thread must be in the server's namespace, so that
    /// the request does not use the link. Returns null for foreign servers.
    pub(crate) fn viewers(&self) -> Value {
        if !matches!(self.kind, Kind::Ours | Kind::OursWhip) {
            return Value::Null;
        }
        match http::request(self.address, "GET", "/api/viewers", "") {
            Ok((200, text)) => serde_json::from_str(&text).unwrap_or_default(),
            _ => Value::Null,
        }
    }
}
