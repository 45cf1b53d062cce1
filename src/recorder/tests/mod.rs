//! Tests of the recording state machine with a fake disk. The simulated day in `worker` uses the same harness.

pub(crate) mod harness;
mod recording;
