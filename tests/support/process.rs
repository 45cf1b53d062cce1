//! A child process whose output is kept, and which is killed when its test ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running child process. It is killed and reaped on drop.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        Self::spawn_with_stderr(name, command, Stdio::piped())
    }

    /// Starts the command with this stderr. The lines of stderr are kept only if it is `Stdio::piped()`.
    pub fn spawn_with_stderr(name: &str, command: &mut Command, stderr: Stdio) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        // Otherwise the command would keep this process's copy of a pipe open.
        command.stderr(Stdio::null());
        let lines = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().unwrap(), Arc::clone(&lines));
        if let Some(stderr) = child.stderr.take() {
            collect(stderr, Arc::clone(&lines));
        }
        Self { name: name.to_owned(), child, lines }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the lines of stdout and stderr so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Returns the text after `marker` in the first line that contains `marker`, or `None` if no line does.
    pub fn after(&self, marker: &str) -> Option<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().find_map(|line| line.split_once(marker).map(|(_, rest)| rest.trim().to_owned()))
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the exit and returns the status. Panics with the log after `patience`.
    pub fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.exited() {
                thread::sleep(Duration::from_millis(50)); // time for the threads that collect the last lines
                return status;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{} still runs after {patience:?}:\n{}", self.name, self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("---- last lines of {} ----", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn collect(from: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut lines = lines.lock().unwrap();
            if lines.len() < 100_000 {
                lines.push(line);
            }
        }
    });
}
