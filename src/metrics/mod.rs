//! Counters and their text. May not influence what it counts, lock on a hot path or allocate while counting.

pub mod counters;
pub mod drops;
pub mod exposition;
pub mod process;
pub mod stages;
pub mod trace;

pub use counters::{LoginCounters, ViewerFigures, WorkerCounters};
pub use exposition::Exposition;
