//! `perf link`: a user-space link between a server and a real browser. It measures what a viewer sees on links that are
//! slow, lossy or changing.
//!
//! ```text
//!  camera-sim ──► slot ring ──► server ──► TUN ──► relay (link model) ──► TUN ──► Chromium ──► page.js
//!                    │          (namespace)             │ log of packets        (namespace)     │ pictures shown
//!                    └── log of units ──────────────────┴──────────► outcome ◄──────────────────┘
//! ```

mod beside;
mod browser;
mod camera;
mod case;
mod chart;
mod command;
mod model;
mod network;
mod outcome;
mod packet;
mod record;
mod relay;
mod run;
mod server;
mod stream;
mod table;
mod uplink;

pub(crate) use command::run;
