//! Parses the command line, runs the requested command and returns its exit code. All decisions belong to the modules.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use streaming_server::app::doctor::{self, Verdict};
use streaming_server::app::server;
use streaming_server::base::limits::CONFIG_FILE_BYTES_MAX;
use streaming_server::base::{foreign_file, logging};
use streaming_server::config::{self, Config, Parsed};
use streaming_server::profiling;

#[global_allocator]
static ALLOCATOR: profiling::Allocator = profiling::Allocator::new();

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let command: Option<fn(&Config) -> ExitCode> = match arguments.first().and_then(|word| word.to_str()) {
        Some("doctor") => Some(examine),
        Some("healthcheck") => Some(check_health),
        _ => None,
    };
    if command.is_some() {
        arguments.remove(0);
    }
    let parsed = Config::from_args(
        arguments,
        |name| std::env::var_os(name),
        |path| foreign_file::read_configured_text(path, CONFIG_FILE_BYTES_MAX),
    );
    let config = match parsed {
        Ok(Parsed::Run(config)) => config,
        Ok(Parsed::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("streaming-server: {error}\nTry `streaming-server --help`.");
            return ExitCode::from(2);
        }
    };
    let unknown = match config::check_environment(std::env::vars_os()) {
        Ok(unknown) => unknown,
        Err(error) => {
            eprintln!("streaming-server: {error}\nTry `streaming-server --help`.");
            return ExitCode::from(2);
        }
    };
    if let Some(command) = command {
        return command(&config);
    }
    if let Err(error) = logging::start(config.log_level, profiling::own_stack) {
        eprintln!("streaming-server: cannot start the thread that writes the log: {error}");
        return ExitCode::FAILURE;
    }
    for name in unknown {
        log::warn!("the environment variable {name:?} is no option of this server, so it is ignored");
    }
    let code = match server::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    };
    logging::flush();
    code
}

/// Prints one line per check. Returns the failure code if a check failed.
fn examine(config: &Config) -> ExitCode {
    let checks = doctor::examine(config);
    let mut stdout = std::io::stdout().lock();
    for check in &checks {
        let _ = writeln!(stdout, "{check}");
    }
    if checks.iter().any(|check| check.verdict == Verdict::Fail) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn check_health(config: &Config) -> ExitCode {
    match doctor::healthcheck(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("streaming-server: {reason}");
            ExitCode::FAILURE
        }
    }
}
