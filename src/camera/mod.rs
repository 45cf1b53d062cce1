//! SOURCE: access units borrowed from the camera's slot ring. May not know who consumes them.
//!
//! ```text
//!  segment ─► mapping ─► cursor ─► UnitView       one cursor per consumer, any number
//!     │          ▲
//!     │       source      which segment, which run, status, counters, bells
//!     │          ▲
//!     └───────► doorbell ─► watch ─► settle       one thread: waits, follows the index, re-attaches, rings
//! ```
//!
//! On a lease ring `mapping` is a [`lease`] of each slot that is read: nothing is torn and nothing copied.

pub mod cursor;
pub mod doorbell;
pub mod layout;
pub mod lease;
pub mod lease_header;
mod lease_ring;
mod lease_writer;
mod locks;
pub mod mapping;
mod settle;
pub mod source;
mod watch;
pub mod writer;

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod test_ring;

pub use cursor::{Cursor, MonotonicNs, Next, Rejection, UnitView};
pub use layout::{FORMAT_H264, Layout, LayoutError, MetadataError, SlotMetadata};
pub use lease_header::Geometry;
pub use source::{Bell, Camera, CameraCounters, CameraStatus, Wake};
pub use writer::{RingWriter, WriterError};
