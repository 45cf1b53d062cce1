//! A log reader that stops reading, such as a stuck log driver.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::process::Process;
use super::server::Server;

/// The reading end of a server's stderr. It reads only on request.
pub struct StuckLog {
    reader: BufReader<PipeReader>,
    writer: PipeWriter,
    /// The lines that were read.
    pub lines: Vec<String>,
}

impl StuckLog {
    /// Starts a server whose stderr is read up to the line `listening: ...` and then no more.
    pub fn spawn(command: &mut Command) -> (Server, StuckLog) {
        let (reader, writer) = io::pipe().unwrap();
        let stderr = Stdio::from(OwnedFd::from(writer.try_clone().unwrap()));
        let process = Process::spawn_with_stderr("streaming-server", command, stderr);
        let mut log = StuckLog { reader: BufReader::new(reader), writer, lines: Vec::new() };
        let line = log.read_to("listening: ");
        (Server::listening(process, &line), log)
    }

    /// Reads up to the next line that contains `marker`, and returns that line.
    pub fn read_to(&mut self, marker: &str) -> String {
        let mut line = String::new();
        while !line.contains(marker) {
            line.clear();
            let bytes = self.reader.read_line(&mut line).unwrap();
            assert!(bytes > 0, "the log ended without `{marker}`");
            self.lines.push(line.clone());
        }
        line
    }

    /// Fills the pipe, so that a write to it blocks until the pipe is read.
    pub fn fill(&mut self) {
        let flags = fcntl_getfl(&self.writer).unwrap();
        fcntl_setfl(&self.writer, flags | OFlags::NONBLOCK).unwrap();
        let mut bytes: &[u8] = &[b'\n'; 4096];
        while !bytes.is_empty() {
            // At the end the pipe has room for less than a page. Then single bytes fill it.
            while self.writer.write(bytes).is_ok() {}
            bytes = if bytes.len() > 1 { &bytes[..1] } else { &[] };
        }
        fcntl_setfl(&self.writer, flags).unwrap();
    }
}
