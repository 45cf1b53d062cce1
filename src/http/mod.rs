//! HTTP: the page, the API, the login and TLS.
//!
//! [`routes`] decides about each request without I/O. Two adapters move the bytes: [`public`] (hyper) for browsers and
//! the network, [`local`] (may_minihttp) for this machine, with profiles and traces ([`debug`]). This module sees the
//! rest of the program only as a [`Backend`]. It must not use workers, sessions, the recorder or the camera.

pub mod access;
mod activity;
mod adapter;
mod address;
mod assets;
mod backend;
pub mod certificate;
mod credentials;
pub mod debug;
mod detections;
mod download;
mod error_page;
mod events;
mod host;
mod listing;
mod live;
pub mod local;
mod local_guard;
mod login;
mod login_lifetime;
mod origin;
mod perform;
mod places;
pub mod public;
pub mod ranges;
mod refusals;
pub mod request;
mod response;
pub mod routes;
mod shares;
mod stream;
mod throttle;
mod timeouts;
pub mod tls;
mod types;
mod whep;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use access::{Access, CookieKind};
pub use address::Exempt;
pub use backend::{
    ApiError, Backend, BoxFuture, Inspection, LiveFormat, LiveOrigin, LiveStream, OfferOrigin, Offered,
    PlaceHolder, RecordingCommand, RecordingFile, SessionCommand, SessionReply, ViewerOffer,
};
pub use detections::bad_detections;
pub use host::Hosts;
pub use public::{HttpConfig, serve};
pub use routes::Policy;
pub use shares::HttpShares;
pub use timeouts::HttpTimeouts;
pub use tls::TlsKeys;
pub use types::*;
pub use whep::WhepPolicy;

/// Locks the mutex. Poisoning is ignored, because a panic cannot leave any state of this module inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
