//! streaming-server: a camera's H.264 from a shared-memory ring to browsers and to disk.
//!
//! ```text
//!  camera daemon ─► slot ring in /dev/shm
//!                     │  mmap, borrowed in place
//!         doorbell ───┤  a worker or a thread of its own waits for the camera, rings every consumer
//!                     ├─► worker 0..N   cursor ─► h264 ─► session ─► uring ─► UDP
//!                     └─► recorder      cursor ─► h264 ─► files
//!
//!  control: HTTP :8080 ─► bounded commands ─► worker, recorder ─► reply
//! ```
//!
//! Modules in the order of the data: [`camera`] (source), [`h264`] (pure), [`recorder`] and [`session`]
//! (sinks, sans-I/O), [`uring`] (edge), [`worker`] (one pinned thread that runs them all). Beside them
//! [`control`], [`metrics`], [`config`], [`limits`] and the [`simulator`] (a camera without a camera).
//! Nothing here depends on a module further down the list; `tests/tidy` holds the table.

pub mod base;

pub mod camera;
pub mod h264;

pub mod recorder;
pub mod session;

pub mod uring;

pub mod worker;

pub mod http;

pub mod app;

pub mod config;
pub mod metrics;
pub mod profiling;
pub mod simulator;
