//! APP: implements what the HTTP endpoints request, and starts and stops the threads. It contains the backend behind
//! the routes, recordings, the metrics page, doctor and the messages to systemd. It may use every other module; no
//! other module uses it.

pub mod addresses;
pub mod backend;
pub mod bitrate;
pub mod detections;
pub mod doctor;
mod live;
mod login_watch;
mod metrics_text;
mod publish;
mod recordings;
pub mod server;
pub mod service;
mod sessions;
mod threads_permitted;
mod viewer_places;
