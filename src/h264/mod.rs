//! PURE: NAL units, parameter sets, access units and RTP payloads of H.264. No I/O, no clock. Media bytes are copied
//! only by the packetiser.
//!
//! ```text
//!  slot bytes ─► nal (ranges) ─► access_unit (+ missing parameter sets) ─┬─► packetize ─► payloads (RTP)
//!                                       │ stores                         └─► avcc, recorder
//!                                  parameter_sets
//! ```
//!
//! The bytes may lie in shared memory that another process writes (see `camera::mapping`). So this code never relies on
//! reading a byte twice with the same result, and checks every bound. If the slot turns out to be overwritten, the
//! caller discards the result and calls [`Assembler::forget_last_unit`].

mod access_unit;
mod assembled;
pub mod avcc;
mod bits;
pub mod nal;
mod packetize;
mod parameter_sets;
mod payloads;
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
pub use stamp::{STAMP_UUID, Stamp, crc32_of_slices};
