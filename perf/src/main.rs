//! The program `perf`: starts a camera, a server under test and N load viewers, measures, and writes records.
//! `perf/run` builds and starts it. `perf/README.md` explains each figure.

#![allow(clippy::disallowed_methods, reason = "a measuring tool reads clocks")]

mod clock;
mod dtls;
mod feed;
mod feedback;
mod floor;
mod http;
mod link;
mod load;
mod measure;
mod options;
mod plot;
mod process;
mod received;
mod record;
mod report;
mod socket;
mod srtp;
mod subject;
mod viewer;

use std::process::ExitCode;

/// Result of a function whose errors are only printed.
pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match options::dispatch(lexopt::Parser::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::FAILURE
        }
    }
}
