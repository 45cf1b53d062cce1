//! The main loop of the simulated camera. It waits for the time of the next unit on an absolute clock, makes the unit,
//! injects the configured faults, and publishes the unit. It does not parse a command line or handle signals.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec};

use super::config::{RestartOnto, SimulatorConfig, TimestampClock};
use super::detector::{Detector, DetectorConfig, Seen};
use super::file::{FileError, FileSource};
use super::malformed;
use super::test_card::{TestCard, TestCardConfig, TestCardError};
use super::unit::Unit;
use crate::base::clock;
use crate::base::limits::SLOT_DATA_BYTES_MAX;
use crate::camera::{FORMAT_H264, Layout, RingWriter, SlotMetadata, WriterError};

pub(super) const NS_PER_S: i64 = 1_000_000_000;
/// Interval at which the stop flag is read while waiting, in ns.
const NAP_NS: i64 = 100_000_000;
/// Maximum delay that the schedule catches up. After a longer delay (debugger, SIGSTOP), the schedule is shifted by the
/// delay instead. This is a local bound.
const LATE_NS_MAX: i64 = NS_PER_S;

/// Counters of a run.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct SimulatorReport {
    /// Units made, including dropped ones. The number equals the next unit number.
    pub units: u64,
    /// Units published, including malformed ones.
    pub published: u64,
    /// Bytes of published units.
    pub bytes: u64,
    /// Pictures skipped because of the fault `drop_every`.
    pub dropped: u64,
    /// Malformed units.
    pub malformed: u64,
    /// Units that could not be published because all slots were leased or the unit was too large (only with the lease
    /// ring).
    pub refused: u64,
    /// IDRs encoded because a reader requested one (only with the lease ring).
    pub idr_requests: u64,
    /// Units written in two halves.
    pub torn: u64,
    /// Restarts of the camera.
    pub restarts: u64,
    /// Maximum delay of a unit behind its schedule in ns; 0 if the run has no rate.
    pub late_ns_max: i64,
    /// Duration of the run in ns, counted from the first unit.
    pub lasted_ns: i64,
}

/// Reasons why a simulated camera cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorError {
    /// The ring cannot be created or attached.
    #[error(transparent)]
    Ring(#[from] WriterError),
    /// The test card cannot be made with this configuration.
    #[error(transparent)]
    TestCard(#[from] TestCardError),
    /// The file cannot be played.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another camera is writing to this ring.
    #[error("another camera is writing {name}: stop it, choose another --shm name, or use --take-over")]
    RingInUse {
        /// The ring's name.
        name: String,
    },
    /// The segment of the detector cannot be made.
    #[error("detections {name}: {source}: choose another name, or remove what has it")]
    Detections {
        /// Name of the segment.
        name: String,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// A value of the configuration is out of range.
    #[error("{what} must be {range}")]
    Config {
        /// The name of the value.
        what: &'static str,
        /// The allowed range.
        range: &'static str,
    },
}

/// Runs a simulated camera until `stop` is set or all units are published. The function returns within about 100 ms
/// after `stop` is set.
///
/// # Errors
/// Returns [`SimulatorError`] if the camera cannot start, or later if a restart or a change of the resolution fails.
pub fn run(config: &SimulatorConfig, stop: &AtomicBool) -> Result<SimulatorReport, SimulatorError> {
    check(config)?;
    let mut simulator = Simulator::new(config, stop)?;
    let started_ns = clock::monotonic_ns();
    simulator.due_ns = started_ns;
    let mut outcome = Ok(());
    while outcome.is_ok() && !simulator.is_done() {
        outcome = simulator.turn();
    }
    if config.unlink_at_exit {
        simulator.ring.unlink();
        simulator.detector.iter().for_each(Detector::unlink);
    }
    simulator.report.lasted_ns = clock::monotonic_ns() - started_ns;
    outcome.map(|()| simulator.report)
}

fn check(config: &SimulatorConfig) -> Result<(), SimulatorError> {
    let faults = &config.faults;
    let periods = [
        ("the interval of restarts", faults.restart.map(|restart| restart.every)),
        ("the interval of torn units", faults.tear.map(|tear| tear.every)),
        ("the interval of malformed units", faults.malformed_every),
        ("the interval of resolution changes", faults.change_resolution.map(|change| change.every)),
        ("the interval of bursts", faults.burst.map(|burst| burst.every)),
        ("the interval of dropped units", faults.drop_every),
    ];
    if let Some((what, _)) = periods.into_iter().find(|(_, every)| *every == Some(0)) {
        return Err(SimulatorError::Config { what, range: "at least 1 unit" });
    }
    if config.fps.is_some_and(|fps| !(fps > 0.0 && fps <= 10_000.0)) {
        return Err(SimulatorError::Config { what: "the rate", range: "above 0, at most 10000 units/s" });
    }
    let can_obey = matches!(config.layout, Layout::Lease(_)) && config.card.bitrate_kbps.is_some();
    if config.obeys_bitrate && !can_obey {
        let range = "together with --layout lease and --bitrate-kbps";
        return Err(SimulatorError::Config { what: "--obey-bitrate", range });
    }
    let needs_card = faults.change_resolution.is_some() || config.card.bitrate_kbps.is_some();
    if needs_card && config.file.is_some() {
        let what = "the source for --bitrate-kbps and --change-resolution";
        return Err(SimulatorError::Config { what, range: "the test card, not a file" });
    }
    if config.detector.is_some() && config.file.is_some() {
        let what = "the source for --detections";
        return Err(SimulatorError::Config { what, range: "the test card, not a file" });
    }
    Ok(())
}

/// The opened source of the access units.
enum Units {
    Card(Box<TestCard>),
    File(FileSource),
}

struct Simulator<'a> {
    config: &'a SimulatorConfig,
    stop: &'a AtomicBool,
    ring: RingWriter,
    units: Units,
    unit: Unit,
    detector: Option<Detector>,
    /// Number of pictures since the camera was last started or restarted.
    frame_number: u64,
    /// Time at which the next unit is captured, CLOCK_MONOTONIC.
    due_ns: i64,
    interval_ns: Option<i64>,
    other_resolution: bool,
    report: SimulatorReport,
}

impl<'a> Simulator<'a> {
    fn new(config: &'a SimulatorConfig, stop: &'a AtomicBool) -> Result<Simulator<'a>, SimulatorError> {
        let TestCardConfig { width, height, .. } = config.card;
        let units = match &config.file {
            None => Units::Card(card(config, width, height)?),
            Some(path) => Units::File(FileSource::open(path)?),
        };
        refuse_used_ring(config)?;
        Ok(Simulator {
            config,
            stop,
            ring: obedient(config, create_ring(config)?),
            units,
            unit: Unit::default(),
            detector: config.detector.as_ref().map(open_detector).transpose()?,
            frame_number: 0,
            due_ns: 0,
            interval_ns: config.fps.map(interval_ns),
            other_resolution: false,
            report: SimulatorReport::default(),
        })
    }

    fn is_done(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.config.units.is_some_and(|units| self.report.units >= units)
    }

    /// Injects the faults that come before the next unit, waits for the time of this unit, and makes and publishes the
    /// unit.
    fn turn(&mut self) -> Result<(), SimulatorError> {
        let number = self.report.units;
        self.stall(number);
        self.restart(number)?;
        self.change_resolution(number)?;
        let captured_ns = self.wait(number);
        if self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.report.units += 1;
        if is_nth(number, self.config.faults.drop_every) {
            self.report.dropped += 1;
            if let Units::File(file) = &mut self.units {
                file.read(number, &mut self.unit);
            }
        } else {
            self.make_and_publish(number, captured_ns);
        }
        self.frame_number += 1;
        Ok(())
    }

    fn make_and_publish(&mut self, number: u64, captured_ns: i64) {
        let now = clock::monotonic_ns();
        let captured_realtime_ns = clock::realtime_ns() - (now - captured_ns);
        // The request is discarded if a file is played, because a file cannot provide an extra IDR.
        if self.ring.take_idr_request()
            && let Units::Card(card) = &mut self.units
        {
            card.begin_with_idr();
            self.report.idr_requests += 1;
        }
        if self.config.obeys_bitrate
            && let Units::Card(card) = &mut self.units
        {
            card.limit_bitrate(self.ring.bitrate_request(now));
        }
        match &mut self.units {
            Units::Card(card) => {
                let realtime_ms = u64::try_from(captured_realtime_ns / 1_000_000).unwrap_or_default();
                card.encode(number, realtime_ms, &mut self.unit);
            }
            Units::File(file) => file.read(number, &mut self.unit),
        }
        let timestamp_ns = match self.config.clock {
            TimestampClock::Realtime => captured_realtime_ns,
            TimestampClock::Monotonic => captured_ns,
        };
        let mut metadata = SlotMetadata {
            frame_number: self.frame_number,
            timestamp_s: timestamp_ns.div_euclid(NS_PER_S),
            timestamp_ns: timestamp_ns.rem_euclid(NS_PER_S),
            camera_id: 0,
            width: i32::try_from(self.unit.width).unwrap_or(i32::MAX),
            height: i32::try_from(self.unit.height).unwrap_or(i32::MAX),
            format: FORMAT_H264,
            data_bytes: self.unit.bytes.len() as u64,
        };
        self.unit.set_published(clock::monotonic_ns());
        if is_nth(number, self.config.faults.malformed_every) {
            malformed::corrupt(self.report.malformed, &mut metadata, &mut self.unit.bytes);
            self.report.malformed += 1;
        }
        if self.publish(number, &metadata)
            && let Some(detector) = &mut self.detector
        {
            let (stamp_ns, size) = (timestamp_ns, (self.unit.width, self.unit.height));
            let (unit_number, frame_number) = (number, self.frame_number);
            detector.on_picture(Seen { unit_number, frame_number, stamp_ns, captured_ns, size });
        }
    }

    /// Returns false if the unit was not published.
    fn publish(&mut self, number: u64, metadata: &SlotMetadata) -> bool {
        let is_published = match self.config.faults.tear {
            Some(tear) if is_nth(number, Some(tear.every)) => {
                self.report.torn += 1;
                self.ring.publish_torn(metadata, &self.unit.bytes, || std::thread::sleep(tear.pause))
            }
            _ if self.unit.is_idr => self.ring.publish_idr(metadata, &self.unit.bytes),
            _ => self.ring.publish(metadata, &self.unit.bytes),
        };
        if !is_published {
            self.report.refused += 1;
            if let Units::Card(card) = &mut self.units {
                card.begin_with_idr(); // the next P unit would refer to the unit that was not published
            }
            return false;
        }
        self.report.published += 1;
        self.report.bytes += self.unit.bytes.len().min(SLOT_DATA_BYTES_MAX) as u64;
        true
    }

    /// Waits until the unit must be published, which a burst may delay. Returns the capture time of the unit, which a
    /// burst does not change.
    fn wait(&mut self, number: u64) -> i64 {
        let Some(interval_ns) = self.interval_ns else {
            let now_ns = clock::monotonic_ns();
            self.detector.iter_mut().for_each(|detector| detector.write_due(now_ns));
            return now_ns;
        };
        let captured_ns = self.due_ns;
        let held_ns = self.config.faults.burst.map_or(0, |burst| {
            let place = number % burst.every;
            let units_to_wait = burst.units.saturating_sub(place + 1);
            i64::try_from(units_to_wait).unwrap_or_default().saturating_mul(interval_ns)
        });
        let publish_ns = captured_ns.saturating_add(held_ns);
        self.detect_until(publish_ns);
        sleep_until(publish_ns, self.stop);
        let late_ns = clock::monotonic_ns() - publish_ns;
        if late_ns > LATE_NS_MAX {
            self.due_ns += late_ns;
        }
        self.report.late_ns_max = self.report.late_ns_max.max(late_ns);
        self.due_ns += interval_ns;
        captured_ns
    }

    /// Writes the results of the detector that are due before `deadline_ns`, each at its time.
    fn detect_until(&mut self, deadline_ns: i64) {
        let Some(detector) = &mut self.detector else { return };
        while let Some(due_ns) = detector.next_due_ns().filter(|due_ns| *due_ns < deadline_ns) {
            sleep_until(due_ns, self.stop);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            detector.write_due(due_ns);
        }
    }

    /// Sleeps for `lasting`. The schedule continues from the end of the pause, without catching up.
    fn pause(&mut self, lasting: Duration) {
        let lasting_ns = i64::try_from(lasting.as_nanos()).unwrap_or(i64::MAX);
        let back_ns = clock::monotonic_ns().saturating_add(lasting_ns);
        sleep_until(back_ns, self.stop);
        self.due_ns = self.due_ns.max(clock::monotonic_ns());
    }

    fn stall(&mut self, number: u64) {
        if let Some(stall) = self.config.faults.stall
            && stall.after == number
        {
            self.pause(stall.lasting.unwrap_or(Duration::MAX));
        }
    }

    fn restart(&mut self, number: u64) -> Result<(), SimulatorError> {
        let Some(restart) = self.config.faults.restart else { return Ok(()) };
        if number == 0 || !number.is_multiple_of(restart.every) {
            return Ok(());
        }
        // The camera stops like a killed process: readers of a lease ring see that it has no writer.
        self.ring.abandon();
        self.pause(restart.pause);
        let onto = match (restart.onto, self.report.restarts % 3) {
            (RestartOnto::Alternate, 0) => RestartOnto::Same,
            (RestartOnto::Alternate, 1) => RestartOnto::New,
            (RestartOnto::Alternate, _) => RestartOnto::Rewind,
            (onto, _) => onto,
        };
        let ring = match onto {
            RestartOnto::New => create_ring(self.config)?,
            _ => RingWriter::attach(&self.config.name)?,
        };
        self.ring = obedient(self.config, ring);
        if onto == RestartOnto::Rewind {
            self.ring.set_write_index(0);
        }
        match &mut self.units {
            Units::Card(card) => card.restart(),
            Units::File(file) => file.restart(),
        }
        self.frame_number = 0;
        self.report.restarts += 1;
        Ok(())
    }

    fn change_resolution(&mut self, number: u64) -> Result<(), SimulatorError> {
        let Some(change) = self.config.faults.change_resolution else { return Ok(()) };
        if number == 0 || !number.is_multiple_of(change.every) {
            return Ok(());
        }
        self.other_resolution = !self.other_resolution;
        let TestCardConfig { width, height, .. } = self.config.card;
        let (width, height) =
            if self.other_resolution { (change.width, change.height) } else { (width, height) };
        self.units = Units::Card(card(self.config, width, height)?);
        Ok(())
    }
}

/// Sets the flag of a camera that obeys bit rate requests, if the configuration says so.
fn obedient(config: &SimulatorConfig, mut ring: RingWriter) -> RingWriter {
    ring.set_obeys_bitrate(config.obeys_bitrate);
    ring
}

/// Sleeps until `deadline_ns` of CLOCK_MONOTONIC, or until about 100 ms after `stop` is set.
pub(super) fn sleep_until(deadline_ns: i64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let now = clock::monotonic_ns();
        if now >= deadline_ns {
            return;
        }
        let wake_ns = deadline_ns.min(now + NAP_NS);
        let wake = Timespec { tv_sec: wake_ns / NS_PER_S, tv_nsec: wake_ns % NS_PER_S };
        // The sleep may end early because of a signal. The loop then sleeps again.
        let _ = clock_nanosleep_absolute(ClockId::Monotonic, &wake);
    }
}

/// Returns true if unit `number` is the last of a group of `every` units. The first unit of a stream is therefore valid
/// unless `every` is 1.
fn is_nth(number: u64, every: Option<u64>) -> bool {
    every.is_some_and(|every| (number + 1).is_multiple_of(every))
}

fn card(config: &SimulatorConfig, width: u32, height: u32) -> Result<Box<TestCard>, TestCardError> {
    let fps = config.fps.unwrap_or(config.card.fps);
    let square = config.card.square || config.detector.is_some();
    TestCard::new(TestCardConfig { width, height, fps, square, ..config.card }).map(Box::new)
}

fn open_detector(config: &DetectorConfig) -> Result<Detector, SimulatorError> {
    Detector::create(config)
        .map_err(|source| SimulatorError::Detections { name: config.name.clone(), source })
}

pub(super) fn create_ring(config: &SimulatorConfig) -> Result<RingWriter, WriterError> {
    let interval_ns = interval_ns(config.fps.unwrap_or(config.card.fps));
    let interval_ms = u32::try_from(interval_ns / 1_000_000).unwrap_or(u32::MAX);
    RingWriter::create(&config.name, config.layout, interval_ms)
}

#[expect(clippy::cast_possible_truncation, reason = "a rate above 0 units/s; float casts saturate")]
pub(super) fn interval_ns(fps: f64) -> i64 {
    (NS_PER_S as f64 / fps).round() as i64
}

/// Returns an error if another camera writes to the ring and the configuration does not allow that.
pub(super) fn refuse_used_ring(config: &SimulatorConfig) -> Result<(), SimulatorError> {
    if !config.take_over && is_being_written(&config.name) {
        return Err(SimulatorError::RingInUse { name: config.name.clone() });
    }
    Ok(())
}

/// Returns true if another camera writes to this ring. The write index must move within 0.3 s; it stands still if the
/// camera was killed. A lease ring that has a writer refuses to be attached.
fn is_being_written(name: &str) -> bool {
    let ring = match RingWriter::attach(name) {
        Ok(ring) => ring,
        Err(error) => return matches!(error, WriterError::InUse { .. }),
    };
    if matches!(ring.layout(), Layout::Lease(_)) {
        return false;
    }
    let before = ring.write_index();
    (0..6).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        ring.write_index() != before
    })
}

impl SimulatorConfig {
    /// Returns the layout, source and rate of the camera in one line, for a log.
    #[must_use]
    pub fn summary(&self) -> String {
        let TestCardConfig { width, height, bitrate_kbps, .. } = self.card;
        let source = match &self.file {
            None => format!("test card {width}x{height}"),
            Some(path) => path.display().to_string(),
        };
        let rate = self.fps.map_or_else(|| "flat out".to_owned(), |fps| format!("{fps} units/s"));
        let kbps = bitrate_kbps.map(|kbps| format!(", {kbps} kbit/s")).unwrap_or_default();
        let layout = self.layout;
        format!("{} ({layout}, {} bytes): {source}, {rate}{kbps}", self.name, layout.segment_bytes())
    }
}
