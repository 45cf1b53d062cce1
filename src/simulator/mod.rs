//! A simulated camera with a test card, pacing and fault injection. It is never part of the live path.
//!
//! ```text
//!  test_card (picture ─► macroblocks ─► NAL units) ─┐
//!                                                   ├─► unit (stamp) ─► run (pacing, faults) ─► RingWriter
//!  file (byte stream ─► access units) ──────────────┘                                              ▲
//!                                                             └─► detector ─► segment of detections
//!  script (text ─► entries) ─► script_player (files, pacing, slot metadata) ───────────────────────┘
//! ```

mod bits;
mod config;
mod detector;
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
pub use detector::{DetectionFault, DetectorConfig, encode as encode_detections};
pub use file::FileError;
pub use picture::{NumberBlocks, Square};
pub use run::{SimulatorError, SimulatorReport, run};
pub use script::{Problem, Script, SyntaxError};
pub use script_player::{ContentProblem, LoadedScript, ScriptError, play_script};
pub use test_card::{ParameterSetPolicy, TestCard, TestCardConfig, TestCardError};
pub use unit::Unit;
