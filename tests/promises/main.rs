//! The promises: real servers, cameras and viewers as processes of their own. Run one at a time, a small machine has two
//! cores: `cargo test --test promises -- --test-threads=1`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

mod c_camera;
mod camera_sim;
mod hostile;
mod instruments;
mod join;
mod kernel_edge;
mod lease_live;
mod lease_stress;
mod leave;
mod live;
mod local;
mod loss;
mod prometheus;
mod record_live;
mod recording;
mod restart;
mod security;
mod service;
mod shutdown;
mod stages;
mod torn;
