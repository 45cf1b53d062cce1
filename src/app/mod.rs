//! APP: what HTTP asks for and how the threads are wired: the backend behind the routes, recordings, the metrics page,
//! doctor, systemd. May use every other module; no other module uses this one.

pub mod addresses;
pub mod backend;
pub mod doctor;
mod login_watch;
mod metrics_text;
mod recordings;
pub mod server;
pub mod service;
