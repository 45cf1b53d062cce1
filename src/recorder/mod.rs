//! SINK: decides what is written to files; disk.rs does it. Never blocks or slows the live path: it has
//! its own thread and its own cursor, and a slow disk laps only this room.
//!
//! ```text
//!  handle (any thread) ── commands ──► engine (thread) ◄── bell, cursor ── camera
//!                                        │        ▲
//!                          units, ticks  ▼        │ completions
//!                        recording ► segment ─► disk ── io_uring ──► files
//!                          (pure)    (pure: fmp4, moov, annexb, timeline)
//!  handle ── list, open, delete, repair, retention ──► library (files that are not being written)
//! ```

pub mod counters;
mod disk;
mod engine;
pub mod format;
mod handle;
pub mod library;
pub mod names;
pub(crate) mod operation;
pub(crate) mod recording;
pub mod retention;
mod segment;
mod sidecar;
#[cfg(test)]
pub(crate) mod tests;
mod types;

pub use handle::{RecorderConfig, RecorderHandle, SpawnError, spawn};
pub use types::*;
