//! Builds the text of --help from the table of options, and the text of --version.

use std::fmt::Write;

use super::Config;
use super::options::{OPTIONS, OptionSpec};

pub(super) fn version() -> String {
    format!("streaming-server {}\n", env!("CARGO_PKG_VERSION"))
}

pub(super) fn help() -> String {
    let mut text = version();
    text.push_str(INTRODUCTION);
    let mut section = "";
    for spec in OPTIONS {
        if spec.section != section {
            section = spec.section;
            let _ = writeln!(text, "\n{section}:");
        }
        describe(&mut text, spec);
    }
    text.push_str(CLOSING);
    text
}

const INTRODUCTION: &str = "\
Sends a camera's H.264 video from a shared-memory ring to browsers within milliseconds.

Usage: streaming-server [OPTIONS]

  streaming-server --demo      try it without a camera: open http://localhost:8080
  streaming-server             read the camera's ring at its default name
  streaming-server doctor      check ring, io_uring, ports and disk, with advice (takes OPTIONS)
  streaming-server healthcheck ask the running server on --http; exit code 0 if it is healthy
";

/// Column at which the explanations of the options begin.
const COLUMN: usize = 27; // local bound: layout of the help
/// Number of columns into which the help text is wrapped.
const WIDTH: usize = 95; // local bound: layout of the help

fn describe(text: &mut String, spec: &OptionSpec) {
    let flag = format!("  --{} {}", spec.name, spec.value);
    let mut lead = flag.as_str();
    let mut line = String::new();
    for word in spec.help.split(' ') {
        if COLUMN + line.len() + word.len() >= WIDTH {
            let _ = writeln!(text, "{:COLUMN$}{line}", std::mem::take(&mut lead));
            line.clear();
        }
        line += if line.is_empty() { "" } else { " " };
        line += word;
    }
    let _ = writeln!(text, "{lead:COLUMN$}{line}");
    let default = (spec.show)(&Config::default());
    let note = match default.as_str() {
        "" if spec.is_repeatable => "may be given several times".to_owned(),
        "" => return,
        _ if spec.value.is_empty() => return,
        default => format!("default {default}"),
    };
    let _ = writeln!(text, "{:COLUMN$}[{note}]", "");
}

const CLOSING: &str = "
  -h, --help               Print this text.
  -V, --version            Print the version.

Every option is also an environment variable (--max-viewers: STREAMING_MAX_VIEWERS; commas
separate the values of a list; switches are true or false) and a key of the --config file
(max-viewers = 16; lists in brackets). Flags override the environment, the environment
overrides the file.

Examples:
  streaming-server --http :8081 --wake poll          next to another server on the same ring
  streaming-server --advertise 203.0.113.7           behind a router that forwards UDP and TCP 8189
  STREAMING_SHM=/front_door streaming-server         another camera
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option_and_fits_a_terminal() {
        let help = help();
        for spec in OPTIONS {
            assert!(help.contains(&format!("--{}", spec.name)), "{}", spec.name);
        }
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }
}
