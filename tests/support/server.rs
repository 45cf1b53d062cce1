//! The real `streaming-server` process on ports that the kernel chooses.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::http::{self, Response};
use super::metrics::Metrics;
use super::process::Process;
use super::{PATIENCE, wait_within};

/// A running server. Killed on drop.
pub struct Server {
    pub process: Process,
    pub http: SocketAddr,
    pub udp: SocketAddr,
}

/// The server's command line, without addresses.
pub fn command(shm: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(super::program("streaming-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
        command.env_remove(name);
    }
    command.args(["--shm", shm]).args(arguments);
    command
}

/// As [`command`], on loopback and on ports that the kernel chooses.
pub fn loopback(shm: &str, arguments: &[&str]) -> Command {
    let mut command = command(shm, &["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "off"]);
    command.args(arguments);
    command
}

/// The same command under `strace`, which delays or fails system calls as `inject` says (strace(1)). The process that is
/// started is the server; the tracer is another process and ends with it.
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
    /// Starts on loopback and waits for the line `listening: http=... udp=...`.
    pub fn start(shm: &str, arguments: &[&str]) -> Self {
        Self::spawn(&mut loopback(shm, arguments))
    }

    /// Starts a prepared command, such as one under strace.
    pub fn spawn(command: &mut Command) -> Self {
        let mut process = Process::spawn("streaming-server", command);
        let line = wait_within(PATIENCE, "the line `listening: http=... udp=...`", || {
            if let Some(status) = process.exited() {
                panic!("the server ended at once, {status}:\n{}", process.log());
            }
            process.after("listening: ")
        });
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

    /// The entries of /api/viewers, either as a list or in the field `viewers`.
    pub fn viewers(&self) -> Vec<serde_json::Value> {
        let value = self.get("/api/viewers").json();
        let list = if value.is_array() { value } else { value["viewers"].clone() };
        list.as_array().cloned().unwrap_or_else(|| panic!("no list of viewers in {list}"))
    }

    /// Waits until exactly `count` viewers are listed.
    pub fn wait_viewers(&self, patience: Duration, count: usize) {
        wait_within(patience, &format!("{count} viewers in /api/viewers"), || {
            (self.viewers().len() == count).then_some(())
        });
    }

    /// Waits until /ready returns 200.
    pub fn wait_ready(&self) {
        super::wait_until("200 on /ready", || self.get("/ready").status == 200);
    }

    /// Sends SIGTERM and returns the exit code; `None` after a signal.
    pub fn terminate(&mut self) -> Option<i32> {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(Duration::from_secs(30)).code()
    }

    /// Asserts that the server runs and answers on /health.
    pub fn assert_healthy(&mut self) {
        assert!(self.process.exited().is_none(), "the server ended:\n{}", self.process.log());
        assert_eq!(self.get("/health").status, 200);
    }
}
