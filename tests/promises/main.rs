//! The promise tests: they start real servers and cameras as processes and connect simulated viewers to them. A small
//! machine has only two cores, so run the tests one at a time: `cargo test --test promises -- --test-threads=1`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

mod c_camera;
mod camera_sim;
mod detections;
mod documents;
mod downloads;
mod hostile;
mod http_live;
mod ice_tcp;
mod instruments;
mod join;
mod kernel_edge;
mod lease_live;
mod lease_stress;
mod leave;
mod live;
mod local;
mod loss;
mod machine;
mod prometheus;
mod publish;
mod record_live;
mod recording;
mod restart;
mod security;
mod service;
mod shipped;
mod shutdown;
mod stages;
mod start;
mod streams;
mod system_calls;
mod torn;
mod whep;
