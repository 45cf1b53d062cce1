//! perf: starts a camera, a server under test and N load viewers, measures, and writes down what it saw.
//! `perf/run` builds and starts it; `perf/README.md` says what each figure means.

#![allow(clippy::disallowed_methods, reason = "it measures: reading clocks is what it is for")]

mod books;
mod clock;
mod dtls;
mod feed;
mod floor;
mod http;
mod load;
mod measure;
mod options;
mod plot;
mod process;
mod record;
mod report;
mod socket;
mod srtp;
mod subject;
mod viewer;

use std::process::ExitCode;

/// What went wrong is only ever printed.
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
