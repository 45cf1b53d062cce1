//! PURE: finds the NAL units of H.264 access units, caches parameter sets, and builds RTP payloads. This module does no
//! I/O and reads no clock. Only the packetiser copies the coded video.
//!
//! ```text
//!  slot bytes ─► nal (ranges) ─► access_unit (+ missing parameter sets) ─┬─► packetize ─► payloads (RTP)
//!                                       │ stores                         └─► avcc, recorder
//!                                  parameter_sets
//! ```
//!
//! The bytes may be in shared memory that another process writes at the same time (see `camera::mapping`). So this code
//! never assumes that reading a byte twice gives the same value, and it checks every bound. If the camera has
//! overwritten the slot meanwhile, the caller discards the result and calls [`Assembler::forget_last_unit`].

mod access_unit;
mod assembled;
pub mod avcc;
mod bits;
pub mod nal;
mod packetize;
mod parameter_sets;
mod payloads;
mod picture_order;
mod sei;
mod slot_fault;
mod stamp;
#[cfg(test)]
pub(crate) mod testing;

pub use access_unit::{Assembler, UnitError};
pub use assembled::{AssembledUnit, Nal};
pub use bits::SyntaxError;
pub use nal::{NalUnit, ScanError, scan, up_to_first_slice};
pub use packetize::Packetizer;
pub use parameter_sets::{ParameterSetError, ParameterSets, StreamInfo};
pub use payloads::Payloads;
pub use picture_order::{BFrameDetector, PictureOrder, PicturePlace};
pub use sei::recovery_point;
pub use slot_fault::{SlotFault, SlotFaultDetector};
pub use stamp::{STAMP_UUID, Stamp, crc32_of_slices};
