//! The text of --help and --version, made from the table of options. Prints nothing itself.

use std::fmt::Write;

use super::options::{OPTIONS, OptionSpec, Section};

pub(super) fn version() -> String {
    format!("streaming-server {}\n", env!("CARGO_PKG_VERSION"))
}

pub(super) fn help() -> String {
    let mut text = version();
    text.push_str(INTRODUCTION);
    for (section, title) in SECTIONS {
        let _ = writeln!(text, "\n{title}:");
        for spec in OPTIONS.iter().filter(|spec| spec.section == section) {
            describe(&mut text, spec);
        }
    }
    text.push_str(CLOSING);
    text
}

const SECTIONS: [(Section, &str); 6] = [
    (Section::Camera, "Camera"),
    (Section::Network, "Network"),
    (Section::Security, "Security"),
    (Section::Viewers, "Viewers"),
    (Section::Recording, "Recording"),
    (Section::Program, "Program"),
];

const INTRODUCTION: &str = "\
A camera's H.264 from its shared-memory ring to browsers, within milliseconds.

Usage: streaming-server [OPTIONS]

  streaming-server --demo      try it without a camera: open http://localhost:8080
  streaming-server             the camera's ring at its usual name
  streaming-server doctor      checks ring, io_uring, ports and disk, with advice (takes OPTIONS)
  streaming-server healthcheck asks the server on --http; exit code 0 when it is well
";

/// Column the explanations start in.
const COLUMN: usize = 27;

fn describe(text: &mut String, spec: &OptionSpec) {
    let flag = format!("  --{} {}", spec.name, spec.value);
    let mut lines = spec.help.iter();
    let _ = writeln!(text, "{:COLUMN$}{}", flag, lines.next().unwrap_or(&""));
    for line in lines {
        let _ = writeln!(text, "{:COLUMN$}{line}", "");
    }
    let note = match (spec.default, spec.is_repeatable) {
        ("", true) => "may be given several times".to_owned(),
        ("", false) => return,
        (default, _) => format!("default {default}"),
    };
    let _ = writeln!(text, "{:COLUMN$}[{note}]", "");
}

const CLOSING: &str = "
  -h, --help               This text.
  -V, --version            The version.

Every option is also a variable of the environment (--max-viewers: STREAMING_MAX_VIEWERS; lists
with commas; switches true or false) and a key of the --config file (max-viewers = 16; lists in
brackets). Flags win over the environment, the environment over the file.

Examples:
  streaming-server --http :8081 --wake poll          beside another server on the same ring
  streaming-server --advertise 203.0.113.7           behind a router that forwards UDP 8189
  STREAMING_SHM=/front_door streaming-server         another camera
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option_and_stays_within_a_terminal() {
        let help = help();
        for spec in OPTIONS {
            assert!(help.contains(&format!("--{}", spec.name)), "{}", spec.name);
        }
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }
}
