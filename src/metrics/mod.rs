//! Counters, latencies and their text formats. Counting must not lock or allocate.

pub mod counters;
pub mod drops;
pub mod exposition;
pub mod process;
pub mod stages;
pub mod trace;

pub use counters::{LoginCounters, ViewerFigures, WorkerCounters};
pub use exposition::Exposition;
