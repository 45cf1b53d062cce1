//! Log lines to stderr, with journald's priority prefix if stderr is the journal.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The sink. It writes each record with one call, so that lines of different threads do not mix.
struct Stderr {
    journald: bool,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // This library logs an error for every closed connection.
        if metadata.target().starts_with("may_minihttp") {
            return false;
        }
        // Of libraries only warnings and errors are logged.
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
        // If stderr is closed, there is no other place to report it.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Returns true for the error that `may` logs when the CPU profiler's signal interrupts its wait. It retries.
fn is_noise(target: &str, text: &str) -> bool {
    target.starts_with("may::") && (text.contains("Interrupted") || text.contains("EINTR"))
}

/// Priorities of sd-daemon(3).
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

/// Returns true if `stream`, the "device:inode" of the journal (systemd.exec(5)), is this process's stderr. A process
/// whose output is redirected inherits the variable too.
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
