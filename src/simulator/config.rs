//! Configuration of a simulated camera. `run` checks it; only `camera-sim` parses it from text.

use std::path::PathBuf;
use std::time::Duration;

use super::test_card::TestCardConfig;
use crate::camera::Layout;

/// Configuration of one run of the simulator.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatorConfig {
    /// Shared-memory name of the ring.
    pub name: String,
    /// Layout of the ring.
    pub layout: Layout,
    /// An H.264 file in byte-stream format, played in a loop; `None` codes the test card.
    pub file: Option<PathBuf>,
    /// The test card.
    pub card: TestCardConfig,
    /// Units per second; `None` publishes as fast as possible, with the unit sizes of the test card's own rate.
    pub fps: Option<f64>,
    /// Clock of the timestamps in the slot metadata.
    pub clock: TimestampClock,
    /// Ends the run after this many units; dropped and malformed units count too.
    pub units: Option<u64>,
    /// Removes the segment at the end of the run.
    pub unlink_at_exit: bool,
    /// Publishes even if another camera seems to write the ring.
    pub take_over: bool,
    /// Faults to inject.
    pub faults: Faults,
}

impl Default for SimulatorConfig {
    fn default() -> SimulatorConfig {
        SimulatorConfig {
            name: "/pet_camera_stream".to_owned(),
            layout: Layout::V1,
            file: None,
            card: TestCardConfig::default(),
            fps: Some(30.0),
            clock: TimestampClock::Realtime,
            units: None,
            unlink_at_exit: true,
            take_over: false,
            faults: Faults::default(),
        }
    }
}

/// Clock of the timestamps in the slot metadata.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TimestampClock {
    /// CLOCK_REALTIME, as the camera daemon uses it.
    Realtime,
    /// CLOCK_MONOTONIC, as the daemon's header documents it.
    Monotonic,
}

/// Faults to inject, each with its own period. `every` counts units and is at least 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Stops publishing once.
    pub stall: Option<Stall>,
    /// Stops and restarts, like a daemon that crashed.
    pub restart: Option<Restart>,
    /// Writes units in two halves.
    pub tear: Option<Tear>,
    /// Publishes a malformed unit in place of the valid one, once per this many units.
    pub malformed_every: Option<u64>,
    /// Switches the test card between two picture sizes.
    pub change_resolution: Option<ResolutionChange>,
    /// Holds units back and publishes them together.
    pub burst: Option<Burst>,
    /// Skips every n-th picture before it is coded. Its unit number is missing, but the stream stays decodable.
    /// From a file, the coded unit is skipped.
    pub drop_every: Option<u64>,
}

/// A pause after a number of units.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Units before the pause.
    pub after: u64,
    /// Duration; `None` lasts until the end of the run.
    pub lasting: Option<Duration>,
}

/// Periodic restarts of the camera.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Units between restarts.
    pub every: u64,
    /// Time from stop to restart.
    pub pause: Duration,
    /// The segment that the restarted camera writes to.
    pub onto: RestartOnto,
}

/// The segment that a restarted camera writes to. Frame numbers restart at 0 and the stream restarts with an IDR.
/// The unit numbers of stamp and picture continue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RestartOnto {
    /// The same segment with its index and semaphore unchanged, as the daemon does it.
    Same,
    /// The same segment with the index reset to 0.
    Rewind,
    /// A new segment under the same name.
    New,
    /// `Same`, `New`, `Rewind` in turn.
    Alternate,
}

/// Torn units: written in two halves with a pause between them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Tear {
    /// Period in units.
    pub every: u64,
    /// Time between the halves.
    pub pause: Duration,
}

/// A periodic change of the picture size.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ResolutionChange {
    /// Units between changes.
    pub every: u64,
    /// The second width in pixels.
    pub width: u32,
    /// The second height in pixels.
    pub height: u32,
}

/// Units that are published together.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Units from one burst to the next.
    pub every: u64,
    /// Units per burst.
    pub units: u64,
}
