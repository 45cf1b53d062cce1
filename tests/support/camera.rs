//! Runs the real `camera-sim` process, which writes a slot ring as the camera daemon does.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::process::Process;

/// A running `camera-sim` with its own ring. On drop the process is killed and its shared-memory segment is removed.
pub struct CameraSim {
    shm: String,
    process: Process,
}

/// Returns arguments for 1280x720 at 30 units/s and 8 Mbit/s with an IDR every 30 units, on a ring of `layout`.
pub fn steady(layout: &str) -> Vec<String> {
    words(&format!("--layout {layout} --pattern 1280x720 --fps 30 --bitrate-kbps 8000 --gop 30"))
}

/// Splits a command line at its spaces.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl CameraSim {
    pub fn start(shm: &str, arguments: &[String]) -> Self {
        Self { shm: shm.to_owned(), process: spawn(shm, arguments) }
    }

    /// Kills the camera with SIGKILL and starts another one with the same shared-memory name.
    pub fn restart(&mut self, arguments: &[String]) {
        self.kill();
        self.process = spawn(&self.shm, arguments);
    }

    /// Kills the camera with SIGKILL, which looks like a crash. The segment stays.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM to the camera and waits until it has exited.
    pub fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(Duration::from_secs(20));
    }

    pub fn remove_segment(&self) {
        let _ = std::fs::remove_file(segment_path(&self.shm));
    }

    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Drop for CameraSim {
    fn drop(&mut self) {
        self.kill();
        self.remove_segment();
        // Tests give the detector of a camera this name.
        let _ = std::fs::remove_file(segment_path(&format!("{}-detections", self.shm)));
    }
}

/// Returns the path of the file behind a shared-memory name.
pub fn segment_path(shm: &str) -> String {
    format!("/dev/shm{shm}")
}

fn spawn(shm: &str, arguments: &[String]) -> Process {
    let mut command = Command::new(super::program("camera-sim"));
    Process::spawn("camera-sim", command.arg("--shm").arg(shm).args(arguments))
}
