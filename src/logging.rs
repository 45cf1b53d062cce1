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
        let line = if self.journald {
            format!("<{}>{}\n", syslog_priority(record.level()), record.args())
        } else {
            format!("{:<5} {}\n", record.level(), record.args())
        };
        // Nobody is left to be told that stderr is gone.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
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
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    if log::set_boxed_logger(Box::new(Stderr { journald })).is_ok() {
        log::set_max_level(level);
    }
}
