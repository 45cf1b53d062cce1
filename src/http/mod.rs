//! HTTP: what a browser or a script may ask, and the answers.
//!
//! [`routes`] decides without I/O: a request in, a response or a call to the [`Backend`] out. [`public`]
//! is the adapter a browser and the network reach (hyper), [`local`] the one for this machine only
//! (may_minihttp), with profiles and traces ([`debug`]). Nothing here knows workers, sessions or the
//! camera: the rest of the program is only seen through [`Backend`].

pub mod access;
mod assets;
mod backend;
pub mod certificate;
mod credentials;
pub mod debug;
mod download;
mod events;
mod host;
pub mod local;
mod local_guard;
mod login;
mod login_lifetime;
mod origin;
pub mod public;
pub mod ranges;
mod response;
pub mod routes;
mod stream;
mod throttle;
pub mod tls;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use access::Access;
pub use backend::{ApiError, Backend, BoxFuture, RecordingCommand, RecordingFile, Summary};
pub use debug::{Diagnostics, Inspection};
pub use host::Hosts;
pub use public::{HttpConfig, HttpTimeouts, serve, serve_with};
pub use tls::TlsKeys;

/// Locks, also what a thread that panicked left behind: none of this room's states is invalid half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
