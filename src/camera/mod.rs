//! SOURCE: access units borrowed from the camera's slot ring. May not know who consumes them.
//!
//! ```text
//!  segment ─► mapping ─► cursor ─► UnitView       one cursor per consumer, any number
//!     │          ▲
//!     │       source      which segment, which run, status, counters, bells
//!     │          ▲
//!     └───────► doorbell ─► watch ─► settle       one thread: waits, follows the index, re-attaches, rings
//! ```

pub mod cursor;
pub mod doorbell;
pub mod layout;
pub mod mapping;
mod settle;
pub mod source;
mod watch;
pub mod writer;

#[cfg(test)]
pub(crate) mod test_doorbell;
#[cfg(test)]
mod test_ring;

pub use cursor::{Cursor, MonotonicNs, Next, Rejection, UnitView};
pub use layout::{FORMAT_H264, Layout, LayoutError, MetadataError, SlotMetadata};
pub use source::{Bell, Camera, CameraCounters, CameraStatus, Wake};
pub use writer::{RingWriter, WriterError};
