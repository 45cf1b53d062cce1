//! Counters and latencies with their text formats, and the types of the API that describe viewers and recordings. Code
//! that counts must not take a lock or allocate.

pub mod counters;
pub mod drops;
pub mod exposition;
pub mod process;
pub mod rtp_times;
pub mod stages;
pub mod status;
pub mod trace;

pub use counters::{LoginCounters, WorkerCounters};
pub use exposition::Exposition;
