//! SINK: writes the camera's access units to files. The recorder has its own thread and its own cursor in the ring, so
//! a slow disk never delays the viewers: the camera then laps only the recorder's cursor.
//!
//! ```text
//!  handle (any thread) ── commands ──► engine (thread) ◄── wake-up, cursor ── camera
//!                                        │        ▲
//!                          units, ticks  ▼        │ completions
//!                  recording ► recorded_file ─► disk ── io_uring ──► files
//!                    (pure)   (pure: format)
//!  handle ── list, open, delete, repair, retention ──► library (files that are not being written)
//! ```

mod active_recording;
mod capture_clock;
pub mod counters;
pub(crate) mod detection_log;
mod disk;
pub mod endless;
mod engine;
mod file_threads;
mod finished_view;
pub mod format;
mod handle;
pub mod library;
mod log_file;
pub mod names;
pub(crate) mod operation;
mod pending_unit;
mod pieces;
mod pre_roll;
mod recorded_file;
pub(crate) mod recording;
mod results_feed;
pub mod retention;
mod sidecar;
#[cfg(test)]
pub(crate) mod tests;
mod types;

pub use handle::{RecorderHandle, START_THREADS, SpawnError, spawn};
pub use types::*;
