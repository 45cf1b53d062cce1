//! Tests of the recording state machine on a fake disk. The simulated day of `worker` uses the same harness.

pub(crate) mod harness;
mod recording;
