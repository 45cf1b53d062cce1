//! Writes log lines to stderr. If stderr is the journal, each line starts with journald's priority prefix.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Writes log records to stderr. Each record is written with one call, so that lines of different threads do not mix.
struct Stderr {
    journald: bool,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The library may_minihttp logs an error for every closed connection, so its records are dropped.
        if metadata.target().starts_with("may_minihttp") {
            return false;
        }
        // Records of other libraries are logged only if they are warnings or errors.
        metadata.target().starts_with("streaming_server") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if is_noise(record.target(), &text) {
            return;
        }
        let line = if self.journald {
            format!("<{}>{text}\n", syslog_priority(record.level()))
        } else {
            format!("{:<5} {text}\n", record.level())
        };
        // A failed write is ignored: if stderr is closed, there is no other place to report the failure.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Returns true for the error that the library `may` logs when the CPU profiler's signal interrupts its wait. The error
/// is harmless, because `may` repeats the wait.
fn is_noise(target: &str, text: &str) -> bool {
    target.starts_with("may::") && (text.contains("Interrupted") || text.contains("EINTR"))
}

/// Returns the priority number of sd-daemon(3) for a log level.
fn syslog_priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Starts logging at `level`. Further calls have no effect.
pub fn start(level: LevelFilter) {
    let journald = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    if log::set_boxed_logger(Box::new(Stderr { journald })).is_ok() {
        log::set_max_level(level);
    }
}

/// Returns true if this process's stderr is the journal. `stream` is the value of `JOURNAL_STREAM`: the "device:inode"
/// of the journal (systemd.exec(5)). The variable alone proves nothing, because a process with redirected output
/// inherits it too.
fn is_stderr(stream: &str) -> bool {
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn interrupted_waits_of_may_are_not_logged_but_other_errors_are() {
        let interrupted = std::io::Error::from_raw_os_error(4);
        let denied = std::io::Error::from_raw_os_error(13);
        assert!(is_noise("may::io::event_loop", &format!("select error = {interrupted:?}")));
        assert!(!is_noise("may::io::event_loop", &format!("select error = {denied:?}")));
        assert!(!is_noise("streaming_server::recorder", &format!("{interrupted:?}")));
    }

    #[test]
    fn redirected_stderr_is_not_the_journal() {
        let file = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_stderr(&format!("{}:{}", file.st_dev, file.st_ino)));
        for other in ["", "9:9999999", "nonsense"] {
            assert!(!is_stderr(other), "{other}");
        }
    }
}
