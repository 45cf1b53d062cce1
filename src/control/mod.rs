//! HTTP: what a browser or a script may ask, and the answers.
//!
//! [`routes`] decides without I/O: a request in, a response or a call to the [`Backend`] out. [`public`]
//! is the adapter a browser and the network reach (hyper), [`local`] the one for this machine only
//! (may_minihttp), with profiles and traces ([`debug`]). Nothing here knows workers, sessions or the
//! camera: the rest of the program is only seen through [`Backend`].

mod assets;
mod backend;
pub mod debug;
mod download;
mod events;
pub mod local;
mod local_guard;
mod origin;
pub mod public;
pub mod ranges;
mod response;
pub mod routes;

pub use backend::{ApiError, Backend, BoxFuture, RecordingCommand, RecordingFile, Summary};
pub use debug::{Diagnostics, Inspection};
pub use public::{HttpConfig, HttpTimeouts, serve, serve_with};
