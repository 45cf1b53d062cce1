//! A simulated camera with a test card, pacing and fault injection. It is never part of the live path.
//!
//! ```text
//!  test_card (picture ─► macroblocks ─► NAL units) ─┐
//!                                                   ├─► unit (stamp) ─► run (pacing, faults) ─► RingWriter
//!  file (byte stream ─► access units) ──────────────┘                                              ▲
//!  script (text ─► entries) ─► script_player (files, pacing, slot metadata) ───────────────────────┘
//! ```

mod bits;
mod config;
mod file;
mod font;
mod malformed;
mod picture;
mod run;
mod script;
mod script_player;
mod test_card;
mod unit;

pub use config::{
    Burst, Faults, ResolutionChange, Restart, RestartOnto, SimulatorConfig, Stall, Tear, TimestampClock,
};
pub use file::FileError;
pub use picture::NumberBlocks;
pub use run::{SimulatorError, SimulatorReport, run};
pub use script::{Problem, Script, SyntaxError};
pub use script_player::{ContentProblem, LoadedScript, ScriptError, play_script};
pub use test_card::{ParameterSetPolicy, TestCard, TestCardConfig, TestCardError};
pub use unit::Unit;
