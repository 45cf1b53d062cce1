//! A camera without a camera: test card, pace, misbehaviour. Never part of the live path.
//!
//! ```text
//!  test_card (picture ─► macroblocks ─► NAL units) ─┐
//!                                                   ├─► unit (stamp) ─► run (pace, misbehaviour) ─► RingWriter
//!  file (byte stream ─► access units) ──────────────┘
//! ```

mod bits;
pub mod config;
pub mod file;
mod font;
mod lies;
pub mod picture;
pub mod run;
pub mod test_card;
pub mod unit;

pub use config::{
    Burst, Misbehaviour, ResolutionChange, Restart, RestartOnto, SimulatorConfig, Source, Stall, Tear,
    TimestampClock,
};
pub use file::FileError;
pub use picture::NumberBlocks;
pub use run::{SimulatorError, SimulatorReport, run};
pub use test_card::{ParameterSetPolicy, TestCard, TestCardConfig, TestCardError};
pub use unit::Unit;
