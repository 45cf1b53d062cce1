//! The simulated camera as a reader sees it: every layout, every injected fault, and the program `camera-sim`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use streaming_server::base::limits::COMMIT_UNSEEN_NS;
use streaming_server::camera::{Camera, Layout, Next, RingWriter, Wake, waiter};
use streaming_server::h264::{self, Stamp, crc32_of_slices};
use streaming_server::simulator::{
    self, Burst, Faults, ResolutionChange, Restart, RestartOnto, SimulatorConfig, SimulatorError,
    SimulatorReport, Stall, Tear, TestCardConfig, TimestampClock,
};

fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("/ss-test-sim-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Units per second. At this rate a ring of 30 slots holds half a second, so a busy machine may delay the reader that
/// long.
const FPS: f64 = 60.0;
/// Nanoseconds between two units, rounded down to whole milliseconds.
const INTERVAL_NS: i64 = 16_000_000;

fn config(layout: Layout, units: u64) -> SimulatorConfig {
    SimulatorConfig {
        name: unique_name(),
        layout,
        card: TestCardConfig { width: 640, height: 480, ..TestCardConfig::default() },
        fps: Some(FPS),
        units: Some(units),
        ..SimulatorConfig::default()
    }
}

fn misbehaving(layout: Layout, units: u64, faults: Faults) -> SimulatorConfig {
    SimulatorConfig { faults, ..config(layout, units) }
}

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// What one reader received and what its cursor reported, over the whole run.
#[derive(Debug, Default)]
struct Seen {
    /// Stamps of the intact units, in the order of their arrival.
    stamps: Vec<Stamp>,
    sizes: Vec<(u32, u32)>,
    frame_numbers: Vec<u64>,
    captured_ages_ns: Vec<i64>,
    /// Units that the cursor reported as intact although their bytes do not match their stamp.
    wrong: u64,
    missed: u64,
    rejected: u64,
    torn: u64,
    restarted: u64,
    /// Longest time for which the reader holds a unit before it reads the bytes. The times rise from 0 to this value in
    /// eight steps and start again.
    dawdles: Duration,
    looks: u32,
}

impl Seen {
    fn numbers(&self) -> Vec<u64> {
        self.stamps.iter().map(|stamp| stamp.unit_number).collect()
    }

    fn count(&mut self, next: &Next) {
        match next {
            Next::Unit(unit) => {
                self.looks += 1;
                std::thread::sleep(self.dawdles * (self.looks % 8) / 7);
                let bytes = unit.bytes.to_vec();
                if !unit.is_intact() {
                    self.torn += 1;
                    return;
                }
                let mut nals = smallvec::SmallVec::new();
                let scanned = h264::scan(&bytes, &mut nals);
                let all = || nals.iter().map(|nal| nal.slice(&bytes));
                match Stamp::find(all()) {
                    Some(stamp) if scanned.is_ok() && stamp.slices_crc32 == crc32_of_slices(all()) => {
                        self.stamps.push(stamp);
                        self.sizes.push((unit.width, unit.height));
                        self.frame_numbers.push(unit.frame_number);
                        self.captured_ages_ns.push(stamp.published_monotonic_ns - unit.captured_monotonic_ns);
                    }
                    _ => self.wrong += 1,
                }
            }
            Next::Lapped { missed_units } => self.missed += u64::from(*missed_units),
            Next::Rejected(_) => self.rejected += 1,
            Next::Restarted => self.restarted += 1,
            Next::Empty | Next::Away => {}
        }
    }
}

/// A thread that reads every unit of a ring, and a thread that waits for the camera. [`Reader::finish`] ends both.
struct Reader {
    done: Arc<AtomicBool>,
    seen: JoinHandle<Seen>,
    bell: JoinHandle<()>,
}

impl Reader {
    fn start(name: &str, dawdles: Duration) -> Reader {
        let camera = Camera::new(name, Wake::Auto);
        let done = Arc::new(AtomicBool::new(false));
        let mut cursor = camera.cursor();
        let bell = {
            let (camera, done) = (camera, Arc::clone(&done));
            std::thread::spawn(move || waiter::run(camera, done, false))
        };
        let stop = Arc::clone(&done);
        let follow = move || {
            let mut seen = Seen { dawdles, ..Seen::default() };
            loop {
                let is_last = stop.load(Ordering::Relaxed);
                match cursor.next(now_ns()) {
                    Next::Empty | Next::Away if is_last => return seen,
                    Next::Empty | Next::Away => std::thread::sleep(Duration::from_micros(500)),
                    next => seen.count(&next),
                }
            }
        };
        Reader { done, seen: std::thread::spawn(follow), bell }
    }

    fn finish(self) -> Seen {
        self.done.store(true, Ordering::Relaxed);
        self.bell.join().unwrap();
        self.seen.join().unwrap()
    }
}

/// Runs the camera to its end, with a reader that starts before the first unit and reads each unit at once.
fn watch(config: SimulatorConfig) -> (SimulatorReport, Seen) {
    watch_dawdling(config, Duration::ZERO)
}

/// Does the same as [`watch`] with a reader that holds units for up to `dawdles` before it reads them.
fn watch_dawdling(config: SimulatorConfig, dawdles: Duration) -> (SimulatorReport, Seen) {
    let reader = Reader::start(&config.name, dawdles);
    let never = AtomicBool::new(false);
    let keeping = SimulatorConfig { unlink_at_exit: false, ..config };
    let report = simulator::run(&keeping, &never).unwrap();
    // Wait until the reader has received the last unit. The reader polls at least every 300 ms. On an index-first ring
    // no next unit proves that the last unit is complete, so the reader accepts it only after `COMMIT_UNSEEN_NS`.
    let rest = Duration::from_nanos(COMMIT_UNSEEN_NS.unsigned_abs());
    std::thread::sleep(Duration::from_millis(300) + rest);
    let seen = reader.finish();
    RingWriter::attach(&keeping.name).unwrap().unlink();
    (report, seen)
}

fn is_increasing(numbers: &[u64]) -> bool {
    numbers.is_sorted_by(|a, b| a < b)
}

#[test]
fn every_layout_delivers_every_unit_once_and_whole() {
    for layout in Layout::LEGACY.into_iter().chain([Layout::LEASE]) {
        let (report, seen) = watch(config(layout, 100));
        let numbers = seen.numbers();
        assert_eq!((report.units, report.published), (100, 100));
        assert_eq!(seen.wrong, 0, "{layout}: {seen:?}");
        assert!(is_increasing(&numbers), "{layout}: {numbers:?}");
        let told = seen.missed + seen.torn;
        let first = *numbers.first().unwrap();
        assert!(numbers.len() as u64 + told >= 100 - first, "{layout}: {told} reported, {numbers:?}");
    }
}

#[test]
fn no_torn_unit_passes_as_intact_at_any_speed() {
    for layout in [Layout::V1, Layout::V2, Layout::V3, Layout::V3Ring6] {
        let tear = Tear { every: 3, pause: Duration::from_micros(300) };
        let torn = misbehaving(layout, 3000, Faults { tear: Some(tear), ..Default::default() });
        // The reader holds units for up to about two laps of the ring, so the camera overwrites many of them during the
        // read.
        let lap = Duration::from_micros(150) * layout.slot_count();
        let (report, seen) = watch_dawdling(SimulatorConfig { fps: None, ..torn }, 2 * lap);
        assert_eq!(report.torn, 1000, "{layout}");
        assert_eq!(seen.wrong, 0, "{layout}: {} right, {} torn", seen.stamps.len(), seen.torn);
        assert!(seen.torn > 0 && !seen.stamps.is_empty(), "{layout}: both torn and intact units must occur");
        assert!(is_increasing(&seen.numbers()), "{layout}");
    }
}

#[test]
fn malformed_units_are_published_and_never_pass_as_intact() {
    let lying = misbehaving(Layout::V3, 110, Faults { malformed_every: Some(5), ..Default::default() });
    let (report, seen) = watch(lying);
    assert_eq!(report.malformed, 22);
    let lied: Vec<u64> = (0..110).filter(|number| (number + 1) % 5 == 0).collect();
    // The 22 malformed units have eleven kinds of corruption, two units of each. Two kinds change only metadata, so up
    // to four of the units may still pass as intact.
    let told = seen.numbers().iter().filter(|number| lied.contains(number)).count();
    assert!(told <= 4, "{told}: {seen:?}");
    assert!(seen.rejected > 0 && seen.wrong <= 4, "garbage passes the ring and fails its checksum: {seen:?}");
}

#[test]
fn unit_numbers_continue_over_restarts_onto_any_segment() {
    for (onto, layout) in
        [(RestartOnto::Same, Layout::V1), (RestartOnto::Rewind, Layout::V3), (RestartOnto::New, Layout::V3)]
    {
        let restart = Restart { every: 60, pause: Duration::from_millis(1500), onto };
        let wrong = Faults { restart: Some(restart), ..Default::default() };
        let (report, seen) = watch(misbehaving(layout, 120, wrong));
        assert_eq!((report.restarts, report.published), (1, 120), "{onto:?}");
        let numbers = seen.numbers();
        assert!(is_increasing(&numbers) && seen.wrong == 0, "{onto:?}: {seen:?}");
        assert!(numbers.iter().any(|number| *number < 60) && numbers.contains(&119), "{onto:?}: {numbers:?}");
        assert_eq!(seen.frame_numbers.last(), Some(&59), "a restarted camera counts from 0");
    }
}

#[test]
fn the_picture_size_changes_and_changes_back() {
    let change = ResolutionChange { every: 20, width: 320, height: 240 };
    let wrong = Faults { change_resolution: Some(change), ..Default::default() };
    let (_, seen) = watch(misbehaving(Layout::V3, 60, wrong));
    for (number, size) in seen.numbers().into_iter().zip(&seen.sizes) {
        let expected = if number / 20 % 2 == 0 { (640, 480) } else { (320, 240) };
        assert_eq!(*size, expected, "unit {number}");
    }
}

#[test]
fn dropped_pictures_leave_gaps_in_their_numbers() {
    let (report, seen) =
        watch(misbehaving(Layout::V1, 100, Faults { drop_every: Some(10), ..Default::default() }));
    assert_eq!((report.units, report.published, report.dropped), (100, 90, 10));
    assert!(seen.numbers().iter().all(|number| number % 10 != 9));
    assert_eq!(seen.numbers(), seen.frame_numbers);
}

#[test]
fn a_burst_arrives_at_once_with_its_true_capture_times() {
    let burst = Burst { every: 20, units: 8 };
    let bursting = misbehaving(Layout::V3, 60, Faults { burst: Some(burst), ..Default::default() });
    for clock in [TimestampClock::Realtime, TimestampClock::Monotonic] {
        let (_, seen) = watch(SimulatorConfig { name: unique_name(), clock, ..bursting.clone() });
        for (number, age_ns) in seen.numbers().into_iter().zip(&seen.captured_ages_ns) {
            let held_ns = 7_u64.saturating_sub(number % 20) as i64 * INTERVAL_NS;
            assert!(*age_ns >= held_ns - 1_000_000, "unit {number} is {age_ns} ns old with {clock:?}");
        }
    }
}

#[test]
fn a_stalled_camera_publishes_nothing_and_still_stops() {
    let stop = Arc::new(AtomicBool::new(false));
    let stall = Stall { after: 10, lasting: None };
    let stalling = misbehaving(Layout::V1, 1000, Faults { stall: Some(stall), ..Default::default() });
    let name = stalling.name.clone();
    let run = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || simulator::run(&stalling, &stop).unwrap())
    };
    let ring = loop {
        match RingWriter::attach(&name) {
            Ok(ring) if ring.write_index() == 10 => break ring,
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ring.write_index(), 10);
    stop.store(true, Ordering::Relaxed);
    assert_eq!(run.join().unwrap().published, 10);
    assert!(RingWriter::attach(&name).is_err(), "the camera must unlink its ring at the end");
}

#[test]
fn a_file_is_played_in_a_loop_with_increasing_unit_numbers() {
    let config_of_file =
        TestCardConfig { width: 320, height: 240, gop: 10, slices: 2, ..TestCardConfig::default() };
    let mut card = simulator::TestCard::new(config_of_file).unwrap();
    let (mut unit, mut stream) = (simulator::Unit::default(), Vec::new());
    for number in 0..20 {
        card.encode(number, 0, &mut unit);
        stream.extend_from_slice(unit.bytes());
    }
    let path = std::env::temp_dir().join(format!("ss-test-{}.h264", std::process::id()));
    std::fs::write(&path, stream).unwrap();
    let (report, seen) = watch(SimulatorConfig { file: Some(path.clone()), ..config(Layout::V3, 70) });
    std::fs::remove_file(path).unwrap();
    assert_eq!((report.published, seen.wrong), (70, 0), "{seen:?}");
    assert!(is_increasing(&seen.numbers()) && seen.numbers().contains(&69), "{seen:?}");
    assert!(seen.sizes.iter().all(|size| *size == (320, 240)));
}

#[test]
fn invalid_options_are_refused_before_a_ring_is_created() {
    let wrong = [
        Faults { malformed_every: Some(0), ..Default::default() },
        Faults { drop_every: Some(0), ..Default::default() },
        Faults { burst: Some(Burst { every: 0, units: 1 }), ..Default::default() },
    ];
    for faults in wrong {
        let config = misbehaving(Layout::V1, 1, faults);
        let refused = simulator::run(&config, &AtomicBool::new(false));
        assert!(matches!(refused, Err(SimulatorError::Config { .. })), "{refused:?}");
        assert!(RingWriter::attach(&config.name).is_err());
    }
}

#[test]
fn a_script_injects_no_faults_of_the_test_card() {
    let path = std::env::temp_dir().join(format!("ss-test-{}.script", std::process::id()));
    std::fs::write(&path, "unit hex:0000000109f0").unwrap();
    let script = simulator::LoadedScript::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let faulty = misbehaving(Layout::V1, 1, Faults { drop_every: Some(2), ..Default::default() });
    let faulty = SimulatorConfig { card: TestCardConfig::default(), ..faulty };
    let refused = simulator::play_script(&faulty, &script, &AtomicBool::new(false));
    assert!(matches!(refused, Err(SimulatorError::Config { .. })), "{refused:?}");
    let allowed = SimulatorConfig { faults: Faults::default(), ..faulty };
    assert_eq!(simulator::play_script(&allowed, &script, &AtomicBool::new(false)).unwrap().published, 1);
}

// ---- the program -----------------------------------------------------------------------------------

fn camera_sim(arguments: &[&str]) -> Command {
    let mut command = Command::new(support::program("camera-sim"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A camera-sim process that is killed on drop, so that it does not outlive a failed test.
struct Running(Option<Child>);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
    }

    fn finish(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
        }
    }
}

/// Starts camera-sim and returns it when it has published its first units.
fn running(name: &str, arguments: &[&str]) -> Running {
    let child = camera_sim(&[&["--shm", name, "--pattern", "320x240"], arguments].concat()).spawn().unwrap();
    let running = Running(Some(child));
    while !RingWriter::attach(name).is_ok_and(|ring| ring.write_index() > 2) {
        std::thread::sleep(Duration::from_millis(5));
    }
    running
}

#[test]
fn camera_sim_removes_its_ring_on_sigint_and_sigterm_and_leaves_it_on_sigkill() {
    for (deadly, is_left) in [(Signal::INT, false), (Signal::TERM, false), (Signal::KILL, true)] {
        let name = unique_name();
        let child = running(&name, &[]);
        child.signal(deadly);
        let output = child.finish();
        assert_eq!(output.status.success(), !is_left);
        assert_eq!(Path::new("/dev/shm").join(&name[1..]).exists(), is_left, "{deadly:?}");
        if is_left {
            let again =
                camera_sim(&["--shm", &name, "--units", "3", "--pattern", "320x240"]).output().unwrap();
            assert!(
                again.status.success(),
                "a ring left by a killed camera must not stop the next one: {again:?}"
            );
        }
        assert!(RingWriter::attach(&name).is_err());
    }
}

#[test]
fn camera_sim_refuses_a_ring_that_another_camera_writes() {
    let name = unique_name();
    let first = running(&name, &[]);
    let second = camera_sim(&["--shm", &name, "--units", "3"]).output().unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.contains("writing") && message.contains(&name), "{message}");
    let forced = camera_sim(&["--shm", &name, "--units", "3", "--take-over"]).output().unwrap();
    assert!(forced.status.success());
    first.signal(Signal::TERM);
    assert!(first.finish().status.success());
}

#[test]
fn camera_sim_prints_help_and_clear_errors() {
    let help = camera_sim(&["--help"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for flag in [
        "--shm",
        "--layout",
        "--file",
        "--script",
        "--pattern",
        "--fps",
        "--tear",
        "--lie",
        "--restart-every",
    ] {
        assert!(help.status.success() && text.contains(flag), "{flag}");
    }
    let mistakes: [(&[&str], &str); 10] = [
        (&["--layout", "v9"], "v3-6"),
        (&["--pattern", "1280"], "WIDTHxHEIGHT"),
        (&["--pattern", "640x480", "--file", "x"], "one source"),
        (&["--script", "x", "--file", "x"], "one source"),
        (&["--frobnicate"], "--frobnicate"),
        (&["stray"], "stray"),
        (&["--tear", "3:soon"], "whole number"),
        (&["--restart", "new"], "--restart-every"),
        (&["--stall-after", "3:-1"], "seconds"),
        (&["--fps"], "--fps"),
    ];
    for (arguments, expected) in mistakes {
        let output = camera_sim(arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    let name = unique_name();
    for arguments in [
        ["--file", "/nonexistent.h264"],
        ["--script", "/nonexistent.txt"],
        ["--pattern", "17x17"],
        ["--shm", "no-slash"],
    ] {
        let output = camera_sim(&[&["--shm", &name], &arguments[..]].concat()).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(message.contains(arguments[1]), "{arguments:?}: {message}");
    }
}

#[test]
fn camera_that_obeys_uses_the_requested_rate_and_then_its_own_again() {
    let mut config = config(Layout::LEASE, u64::MAX);
    config.card.bitrate_kbps = Some(8_000);
    config.obeys_bitrate = true;
    let stop = Arc::new(AtomicBool::new(false));
    let simulator = {
        let (config, stop) = (config.clone(), Arc::clone(&stop));
        std::thread::spawn(move || simulator::run(&config, &stop))
    };
    let ring = support::wait_for("the ring", || {
        let ring = Camera::new(&config.name, Wake::Auto);
        ring.request_bitrate(0, now_ns()).then_some(ring)
    });
    // Returns when 30 units in a row have a mean size in this range. 8 Mbit/s are 16,667 bytes a unit at this rate.
    let reach = |request: u32, mean: std::ops::Range<usize>| {
        let mut cursor = ring.cursor();
        let mut sizes: Vec<usize> = Vec::new();
        support::wait_until(&format!("units of {mean:?} bytes"), || {
            assert!(ring.request_bitrate(request, now_ns()));
            while let Next::Unit(view) = cursor.next(now_ns()) {
                sizes.push(view.bytes.len());
            }
            let newest = &sizes[sizes.len().saturating_sub(30)..];
            newest.len() == 30 && mean.contains(&(newest.iter().sum::<usize>() / 30))
        });
    };
    reach(0, 14_000..19_000);
    reach(1_600, 2_800..4_000);
    reach(0, 14_000..19_000);
    reach(u32::MAX, 14_000..19_000);
    stop.store(true, Ordering::Relaxed);
    simulator.join().unwrap().unwrap();
}

#[test]
fn camera_can_obey_only_with_a_lease_ring_and_a_rate() {
    let stop = AtomicBool::new(false);
    for (layout, bitrate_kbps) in [(Layout::V3, Some(800)), (Layout::LEASE, None)] {
        let mut config = config(layout, 1);
        (config.card.bitrate_kbps, config.obeys_bitrate) = (bitrate_kbps, true);
        let error = simulator::run(&config, &stop).unwrap_err();
        assert!(matches!(error, SimulatorError::Config { what: "--obey-bitrate", .. }), "{error}");
    }
}
