//! What a simulated camera is asked to do. Checked where it is used; parsed from text only by `camera-sim`.

use std::path::PathBuf;
use std::time::Duration;

use super::test_card::ParameterSetPolicy;
use crate::camera::Layout;

/// One run of the simulator.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatorConfig {
    /// Shared-memory name of the ring.
    pub name: String,
    /// Its layout.
    pub layout: Layout,
    /// Where units come from.
    pub source: Source,
    /// Units per second; `None` publishes as fast as it can (unit sizes are then those of 30 units/s).
    pub fps: Option<f64>,
    /// Wanted bit rate of the test card; `None` is what the picture needs.
    pub bitrate_kbps: Option<u32>,
    /// An IDR of the test card every so many units.
    pub gop: u32,
    /// Slices of each picture of the test card.
    pub slices: u32,
    /// Which IDR units of the test card carry parameter sets.
    pub parameter_sets: ParameterSetPolicy,
    /// Units of the test card start with an access unit delimiter.
    pub delimiters: bool,
    /// The clock of the metadata's timestamp.
    pub clock: TimestampClock,
    /// End after so many units, dropped ones and lies counted.
    pub units: Option<u64>,
    /// Remove the segment at the end.
    pub unlink_at_exit: bool,
    /// Publish even though the ring exists and another camera seems to write it.
    pub take_over: bool,
    /// What goes wrong.
    pub misbehaviour: Misbehaviour,
}

impl Default for SimulatorConfig {
    fn default() -> SimulatorConfig {
        SimulatorConfig {
            name: "/pet_camera_stream".to_owned(),
            layout: Layout::V1,
            source: Source::Pattern { width: 1280, height: 720 },
            fps: Some(30.0),
            bitrate_kbps: None,
            gop: 30,
            slices: 1,
            parameter_sets: ParameterSetPolicy::Every,
            delimiters: true,
            clock: TimestampClock::Realtime,
            units: None,
            unlink_at_exit: true,
            take_over: false,
            misbehaviour: Misbehaviour::default(),
        }
    }
}

/// Where access units come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The test card of this size in pixels.
    Pattern {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// An H.264 file in byte-stream format, played round and round.
    File(PathBuf),
}

/// The clock of the metadata's timestamp.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TimestampClock {
    /// CLOCK_REALTIME, as the real daemon.
    Realtime,
    /// CLOCK_MONOTONIC, as the daemon's header says.
    Monotonic,
}

/// What goes wrong, each at its own pace. `every` counts units and is at least 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misbehaviour {
    /// Fall silent once.
    pub stall: Option<Stall>,
    /// Stop and come back, as a daemon that crashed and was started again.
    pub restart: Option<Restart>,
    /// Write units in two halves.
    pub tear: Option<Tear>,
    /// Publish a unit whose metadata or bytes lie (in place of the true one), every so many units.
    pub lie_every: Option<u64>,
    /// Change the test card's size and back.
    pub change_resolution: Option<ResolutionChange>,
    /// Hold units back and publish them at once.
    pub burst: Option<Burst>,
    /// Leave out every n-th picture before it is coded: its number is missing, the stream stays whole (a
    /// file's unit is left out as it is).
    pub drop_every: Option<u64>,
}

/// Silence after a number of units.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Units before it.
    pub after: u64,
    /// How long; `None` is to the end.
    pub lasting: Option<Duration>,
}

/// Restarts of the camera.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Units between restarts.
    pub every: u64,
    /// How long the camera is away.
    pub pause: Duration,
    /// What it comes back to.
    pub onto: RestartOnto,
}

/// What a restarted camera writes to. Frame numbers start at 0 again, the stream with an IDR; unit numbers of
/// stamp and picture continue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RestartOnto {
    /// The same segment, index and semaphore as they are (what the daemon does).
    Same,
    /// The same segment, index back at 0.
    Rewind,
    /// A new segment under the same name.
    New,
    /// `Same`, `New`, `Rewind` in turn.
    Alternate,
}

/// Units written in two halves.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Tear {
    /// Every n-th unit.
    pub every: u64,
    /// Time between the halves.
    pub pause: Duration,
}

/// Another picture size.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ResolutionChange {
    /// Units between changes.
    pub every: u64,
    /// The other width.
    pub width: u32,
    /// The other height.
    pub height: u32,
}

/// Units that come at once.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Units from one burst to the next.
    pub every: u64,
    /// Units of a burst.
    pub units: u64,
}
