//! Counters, latencies and their text formats, and the state of viewers and recordings. Counting must not lock or allocate.

pub mod counters;
pub mod drops;
pub mod exposition;
pub mod process;
pub mod stages;
pub mod status;
pub mod trace;

pub use counters::{LoginCounters, WorkerCounters};
pub use exposition::Exposition;
