//! The configuration of a simulated camera. `run` checks it. Only the program `camera-sim` parses it from text.

use std::path::PathBuf;
use std::time::Duration;

use super::detector::DetectorConfig;
use super::test_card::TestCardConfig;
use crate::camera::Layout;

/// Configuration of one run of the simulator.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatorConfig {
    /// Name of the ring in shared memory.
    pub name: String,
    /// Layout of the ring.
    pub layout: Layout,
    /// An H.264 file in byte-stream format that is played in a loop. `None` encodes the test card instead.
    pub file: Option<PathBuf>,
    /// The test card.
    pub card: TestCardConfig,
    /// Units per second. `None` publishes as fast as possible, with units as large as at the rate of the test card.
    pub fps: Option<f64>,
    /// Clock of the timestamps in the slot metadata.
    pub clock: TimestampClock,
    /// Number of units after which the run ends. Dropped and malformed units count too.
    pub units: Option<u64>,
    /// True if the shared-memory segment is removed at the end of the run.
    pub unlink_at_exit: bool,
    /// True if the simulator publishes even if another camera seems to write to the ring.
    pub take_over: bool,
    /// True if the test card follows the bit rate requests of a lease ring's readers.
    pub obeys_bitrate: bool,
    /// A detector that finds the square of the test card. `None` if there is none.
    pub detector: Option<DetectorConfig>,
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
            obeys_bitrate: false,
            detector: None,
            faults: Faults::default(),
        }
    }
}

/// Clock of the timestamps in the slot metadata.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TimestampClock {
    /// CLOCK_REALTIME, which the camera daemon uses.
    Realtime,
    /// CLOCK_MONOTONIC, which the header file of the daemon documents.
    Monotonic,
}

/// Faults to inject. Each has its own period. A field `every` is the period in units and is at least 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Stops publishing once, for some time or for ever.
    pub stall: Option<Stall>,
    /// Stops and restarts repeatedly, like a daemon that crashed.
    pub restart: Option<Restart>,
    /// Writes some units in two halves with a pause between them.
    pub tear: Option<Tear>,
    /// Period in units at which a malformed unit is published in place of the valid one.
    pub malformed_every: Option<u64>,
    /// Switches the test card between two picture sizes.
    pub change_resolution: Option<ResolutionChange>,
    /// Holds several units back and publishes them together.
    pub burst: Option<Burst>,
    /// Period in units at which a picture is skipped before it is encoded. The stream has no unit with the number of
    /// this picture, but stays decodable. If a file is played, the encoded unit is skipped.
    pub drop_every: Option<u64>,
}

/// A pause of the camera after a number of units.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Number of units before the pause.
    pub after: u64,
    /// Duration of the pause. `None` means until the end of the run.
    pub lasting: Option<Duration>,
}

/// Periodic restarts of the camera.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Number of units from one restart to the next.
    pub every: u64,
    /// Time from the stop to the restart.
    pub pause: Duration,
    /// The shared-memory segment that the restarted camera writes to.
    pub onto: RestartOnto,
}

/// The shared-memory segment that a restarted camera writes to. Frame numbers restart at 0, and the stream restarts
/// with an IDR. The unit numbers in the stamp and in the picture continue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RestartOnto {
    /// The same segment with its index and semaphore unchanged. The camera daemon does this.
    Same,
    /// The same segment with the index reset to 0.
    Rewind,
    /// A new segment under the same name.
    New,
    /// `Same`, `New` and `Rewind` in turn.
    Alternate,
}

/// Torn units, which are written in two halves with a pause between them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Tear {
    /// Period in units.
    pub every: u64,
    /// Pause between the two halves.
    pub pause: Duration,
}

/// A periodic change of the picture size.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ResolutionChange {
    /// Number of units from one change to the next.
    pub every: u64,
    /// Width of the second picture size in pixels.
    pub width: u32,
    /// Height of the second picture size in pixels.
    pub height: u32,
}

/// Units that are published together.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Number of units from one burst to the next.
    pub every: u64,
    /// Number of units in a burst.
    pub units: u64,
}
