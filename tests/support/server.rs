//! The real `streaming-server` process on ports of the kernel's choice.

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

/// The server's command line, ports still open.
pub fn command(shm: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(super::program("streaming-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
        command.env_remove(name);
    }
    command.args(["--shm", shm]).args(arguments);
    command
}

/// As [`command`], on loopback and on ports of the kernel's choice.
pub fn loopback(shm: &str, arguments: &[&str]) -> Command {
    let mut command = command(shm, &["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "off"]);
    command.args(arguments);
    command
}

/// The same program under `strace`, which makes system calls late or fail as `inject` says (strace(1)). The process
/// started is the server itself: the tracer is beside it and goes with it.
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

    /// Starts a command, such as one with more in its environment or under strace.
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

    /// The entries of /api/viewers, whether the answer is a list or an object with one.
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

    /// Waits until access units flow.
    pub fn wait_ready(&self) {
        super::wait_until("200 on /ready", || self.get("/ready").status == 200);
    }

    /// SIGTERM; the exit code, `None` after a signal.
    pub fn terminate(&mut self) -> Option<i32> {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(Duration::from_secs(30)).code()
    }

    /// Asserts that it still runs and answers.
    pub fn assert_healthy(&mut self) {
        assert!(self.process.exited().is_none(), "the server ended:\n{}", self.process.log());
        assert_eq!(self.get("/health").status, 200);
    }
}
