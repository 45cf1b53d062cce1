//! BASE: clocks, counters, limits, logging, the opening of files and the counters of a TCP connection, which every
//! module may use. This module uses no other module.

pub mod clock;
pub mod counters;
pub mod foreign_file;
pub mod histogram;
pub mod limits;
pub mod log_limit;
pub mod logging;
pub mod tcp_info;
pub mod token_bucket;
