//! Tests of the recording state machine with a fake disk, and of the library with real files. The simulated day in
//! `worker` uses the same harness.

mod endless;
pub(crate) mod harness;
mod library;
mod recording;
mod streams;
