//! PURE: what an access unit is made of. No I/O, no clock, no copies but the packetising one.
//!
//! ```text
//!  slot bytes ─► nal (ranges) ─► access_unit (+ missing parameter sets) ─┬─► packetize ─► payloads (RTP)
//!                                       │ keeps                          └─► avcc, recorder
//!                                  parameter_sets
//! ```
//!
//! The bytes may lie in memory that another process writes (see `camera::mapping`): nothing here relies on
//! reading the same byte twice with the same result, everything is bounds-checked, and whoever called throws
//! the result away when the slot turns out to have been overwritten ([`Assembler::forget_last_unit`]).

pub mod access_unit;
mod assembled;
pub mod avcc;
mod bits;
pub mod depacketize;
pub mod nal;
pub mod packetize;
pub mod parameter_sets;
mod payloads;
pub mod stamp;
#[cfg(test)]
pub(crate) mod testing;

pub use access_unit::{Assembler, UnitError};
pub use assembled::{AssembledUnit, Nal};
pub use bits::SyntaxError;
pub use depacketize::{Depacketizer, DepacketizerCounters};
pub use nal::{NalUnit, ScanError, scan, up_to_first_slice};
pub use packetize::Packetizer;
pub use parameter_sets::{
    ParameterSetError, ParameterSets, PictureParameterSet, SequenceParameterSet, StreamInfo,
};
pub use payloads::Payloads;
pub use stamp::{STAMP_UUID, Stamp, crc32_of_slices};
