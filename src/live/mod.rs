//! SINK: HTTP live. Sends the camera's access units to viewers over HTTP, as an MP4 or a byte stream without an end. It
//! is for players, and for browsers in networks that pass neither UDP nor other ports.
//!
//! ```text
//!  cursor ─► recorder::endless ─► backlog ─► LiveViewer, one per connection
//!            copy and mux once     current GOP, shared bytes, one position per viewer
//! ```
//!
//! One task reads the ring for all viewers, and only while there are viewers. A viewer takes units when its connection
//! has room for them. A viewer that reads too slowly skips to a newer IDR, and never delays the task or other viewers.

mod backlog;
mod reader;
mod source;

pub use backlog::{Format, ViewerOrigin, ViewerState};
pub use source::{Live, LiveCounters, LiveViewer};
