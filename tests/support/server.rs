//! Runs the real `streaming-server` process on ports that the kernel chooses.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::http::{self, Response};
use super::metrics::Metrics;
use super::process::Process;
use super::{PATIENCE, wait_within};

/// A running server process. It is killed on drop.
pub struct Server {
    pub process: Process,
    pub http: SocketAddr,
    pub udp: SocketAddr,
}

/// Returns the command line of the server, without addresses. It inherits no `STREAMING_*` variable.
pub fn command(shm: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(super::program("streaming-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
        command.env_remove(name);
    }
    command.args(["--shm", shm]).args(arguments);
    command
}

/// Returns the same as [`command`], with loopback addresses and ports that the kernel chooses.
pub fn loopback(shm: &str, arguments: &[&str]) -> Command {
    let mut command = command(shm, &["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "off"]);
    command.args(arguments);
    command
}

/// Returns the same command under `strace`, which delays or fails system calls as `inject` says (strace(1)). The
/// started process is the server itself. The tracer is another process, which ends together with the server.
pub fn meddled(command: &Command, inject: &str) -> Command {
    let mut strace = Command::new("strace");
    let call = inject.split(':').next().unwrap_or_default();
    strace.args(["-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"]);
    strace.args(["-e", &format!("trace={call}"), "-e", &format!("inject={inject}"), "-e", "signal=none"]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace.arg(command.get_program()).args(command.get_args());
    strace
}

impl Server {
    /// Starts a server on loopback and waits for its line `listening: http=... udp=...`.
    pub fn start(shm: &str, arguments: &[&str]) -> Self {
        Self::spawn(&mut loopback(shm, arguments))
    }

    /// Starts a prepared command, such as one under strace, and waits for its line `listening: ...`.
    pub fn spawn(command: &mut Command) -> Self {
        let mut process = Process::spawn("streaming-server", command);
        let line = wait_within(PATIENCE, "the line `listening: http=... udp=...`", || {
            if let Some(status) = process.exited() {
                panic!("the server ended at once, {status}:\n{}", process.log());
            }
            process.after("listening: ")
        });
        Self::listening(process, &line)
    }

    /// Returns the server that has logged `line`, which contains `http=... udp=...`.
    pub fn listening(process: Process, line: &str) -> Self {
        let address = |key: &str| -> SocketAddr {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            value.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {key} in `{line}`"))
        };
        Self { http: address("http="), udp: address("udp="), process }
    }

    pub fn get(&self, path: &str) -> Response {
        http::get(self.http, path)
    }

    pub fn metrics(&self) -> Metrics {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(&response.text())
    }

    /// Returns the entries of /api/viewers whose sessions have not ended.
    pub fn viewers(&self) -> Vec<serde_json::Value> {
        self.sessions().into_iter().filter(|session| session["ended"].is_null()).collect()
    }

    /// Returns the entries of /api/viewers whose sessions have ended, the latest first.
    pub fn ended(&self) -> Vec<serde_json::Value> {
        self.sessions().into_iter().filter(|session| !session["ended"].is_null()).collect()
    }

    fn sessions(&self) -> Vec<serde_json::Value> {
        let list = self.get("/api/viewers").json();
        list.as_array().cloned().unwrap_or_else(|| panic!("no list of viewers in {list}"))
    }

    /// Waits until /api/viewers lists exactly `count` viewers.
    pub fn wait_viewers(&self, patience: Duration, count: usize) {
        wait_within(patience, &format!("{count} viewers in /api/viewers"), || {
            (self.viewers().len() == count).then_some(())
        });
    }

    /// Waits until /ready returns 200.
    pub fn wait_ready(&self) {
        super::wait_until("200 on /ready", || self.get("/ready").status == 200);
    }

    /// Sends SIGTERM and returns the exit code, or `None` if a signal ended the process.
    pub fn terminate(&mut self) -> Option<i32> {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(Duration::from_secs(30)).code()
    }

    /// Asserts that the server is still running and answers on /health.
    pub fn assert_healthy(&mut self) {
        assert!(self.process.exited().is_none(), "the server ended:\n{}", self.process.log());
        assert_eq!(self.get("/health").status, 200);
    }
}
