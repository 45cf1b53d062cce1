//! BASE: clocks, counters, limits and logging, which every module may use. This module uses no other module.

pub mod clock;
pub mod counters;
pub mod histogram;
pub mod limits;
pub mod log_limit;
pub mod logging;
pub mod token_bucket;
