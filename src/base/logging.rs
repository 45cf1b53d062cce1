//! Log lines to stderr, in journald's prefix form when journald listens. May not allocate a file or a thread.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The sink; one line per record, written at once so that lines of threads never mix.
struct Stderr {
    journald: bool,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // To this one every caller that hangs up is an error.
        if metadata.target().starts_with("may_minihttp") {
            return false;
        }
        // Libraries speak only when something is wrong.
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
        // Nobody is left to be told that stderr is gone.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// `may` calls it an error when the CPU profiler's signal interrupts its wait; it just waits again.
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

/// Starts logging at `level`. A second call changes nothing.
pub fn start(level: LevelFilter) {
    let journald = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    if log::set_boxed_logger(Box::new(Stderr { journald })).is_ok() {
        log::set_max_level(level);
    }
}

/// Whether `stream`, "device:inode" of what journald reads (systemd.exec(5)), is this process's stderr: the variable is
/// inherited also by those whose output was led elsewhere.
fn is_stderr(stream: &str) -> bool {
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_interrupted_wait_of_may_is_noise_and_other_errors_are_not() {
        let interrupted = std::io::Error::from_raw_os_error(4);
        let denied = std::io::Error::from_raw_os_error(13);
        assert!(is_noise("may::io::event_loop", &format!("select error = {interrupted:?}")));
        assert!(!is_noise("may::io::event_loop", &format!("select error = {denied:?}")));
        assert!(!is_noise("streaming_server::recorder", &format!("{interrupted:?}")));
    }

    #[test]
    fn a_stream_that_is_led_elsewhere_is_not_the_journal() {
        let file = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_stderr(&format!("{}:{}", file.st_dev, file.st_ino)));
        for other in ["", "9:9999999", "nonsense"] {
            assert!(!is_stderr(other), "{other}");
        }
    }
}
