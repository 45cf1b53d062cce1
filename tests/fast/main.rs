//! The fast tier: all tests that start no server process and no camera process. Together they take seconds.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod config;
mod depacketize;
mod http;
mod ice_restart;
mod native_offers;
mod session;
mod session_end;
mod session_hostile;
mod session_links;
mod session_paths;
mod session_publish;
mod session_replay;
mod session_tcp;
mod signaling;
mod tcp_driver;
mod test_card;
mod udp_driver;
