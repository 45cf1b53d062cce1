//! streaming-server: sends a camera's H.264 from a shared-memory ring to browsers, and records it to disk.
//!
//! ```text
//!  camera daemon ─► slot ring in /dev/shm
//!                     │  mmap, read in place
//!      camera wait ───┤  worker 0 or a thread waits for the camera and wakes every consumer
//!                     ├─► worker 0..N   cursor ─► h264 ─► session ─► uring ─► UDP
//!                     ├─► recorder      cursor ─► h264 ─► files
//!                     └─► live          cursor ─► h264 ─► fragments ─► HTTP
//!
//!  control: HTTP ─► app ─► bounded commands ─► worker, recorder ─► reply
//! ```
//!
//! All modules use [`base`]. [`camera`] is the source of the access units, [`h264`] is pure, and [`recorder`], [`live`]
//! and [`session`] are the sinks. [`uring`] wraps io_uring for UDP, and [`worker`] is the loop that runs cursor,
//! sessions and io_uring. [`http`] defines what a client can request, and [`app`] implements it. `ARCHITECTURE.md` and
//! `tests/tidy` list which module may use which.

pub mod base;

pub mod camera;
pub mod h264;

pub mod live;
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
