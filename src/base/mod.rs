//! BASE: clocks, counters, limits, logging and the opening of files, which every module may use. This module uses no other module.

pub mod clock;
pub mod counters;
pub mod foreign_file;
pub mod histogram;
pub mod limits;
pub mod log_limit;
pub mod logging;
pub mod token_bucket;
