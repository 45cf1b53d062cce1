//! BASE: what every module may use and what uses no other module: bounds, clocks, the log sink.

pub mod clock;
pub mod limits;
pub mod log_limit;
pub mod logging;
