//! Makes one run: starts a camera, a server and viewers, measures for some seconds, and returns the record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::Fallible;
use crate::clock::monotonic_ns;
use crate::http;
use crate::load::Load;
use crate::process::{Memory, Process, Usage, Used, machine_ticks};
use crate::received::Sample;
use crate::record::{Cpu, Quantiles, Record, Setting, Units};
use crate::subject::{Kind, Programs, Subject};
use crate::viewer::Viewer;

/// A unit is late if its latency exceeds the camera's interval.
const LATE_NS: i64 = 33_333_333;
/// Units published within this time before the end are not counted, because they may still be in transit.
const TAIL_NS: i64 = 200_000_000;
/// Maximum number of viewers that connect at the same time.
const CONNECTING_MAX: usize = 8;
/// Warm-up time from the last viewer's first picture to the measurement.
const SETTLE: Duration = Duration::from_millis(1_500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(40);

/// Parameters that all runs of one call of `perf run` share.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) programs: Programs,
    pub(crate) seconds: u64,
    pub(crate) layout: String,
    pub(crate) size: String,
    /// Number of viewers that check every byte; the others check only headers and stamps.
    pub(crate) check: usize,
    /// Directory for recordings.
    pub(crate) scratch: PathBuf,
    /// Directory for metrics and a CPU profile of our server; `None` if neither is taken.
    pub(crate) inspect: Option<PathBuf>,
}

/// A simulated camera on its own ring.
struct Camera {
    process: Process,
    shm: String,
}

impl Camera {
    fn start(plan: &Plan, kbps: u32) -> Fallible<Camera> {
        let shm = format!("/perf-{}-{}", std::process::id(), monotonic_ns());
        let mut command = Command::new(plan.programs.ours.join("camera-sim"));
        command.args(["--shm", &shm, "--layout", &plan.layout, "--pattern", &plan.size, "--gop", "30"]);
        command.args(["--fps", "30", "--bitrate-kbps", &kbps.to_string()]);
        let process = Process::spawn("camera-sim", &mut command, plan.programs.shielded)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut camera = Camera { process, shm };
        while !Path::new(&camera.segment()).exists() {
            camera.process.check()?;
            if Instant::now() > deadline {
                return Err("camera-sim did not create its ring".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300)); // the ring fills with some units
        Ok(camera)
    }

    fn segment(&self) -> String {
        format!("/dev/shm{}", self.shm)
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.segment());
    }
}

/// Values of all counters at one point in time.
struct Moment {
    at_ns: i64,
    server: Usage,
    load: Usage,
    camera: Usage,
    machine: (u64, u64, u64),
}

impl Moment {
    fn now(subject: &Subject, load: &Load, camera: &Camera) -> Moment {
        let thread = u32::try_from(load.progress.thread.load(Ordering::Relaxed)).unwrap_or(0);
        Moment {
            server: Usage::of_process(subject.process.id()),
            load: Usage::of_thread(std::process::id(), thread),
            camera: Usage::of_process(camera.process.id()),
            machine: machine_ticks(),
            at_ns: monotonic_ns(),
        }
    }
}

/// Makes one run with `setting` and returns its record.
pub(crate) fn run(plan: &Plan, setting: &Setting) -> Fallible<Record> {
    let kind = Kind::parse(&setting.server)?;
    let mut camera = Camera::start(plan, setting.kbps)?;
    let mut subject = Subject::start(kind, &plan.programs, &camera.shm, setting.viewers, &plan.scratch)?;
    let load = Load::start(setting.gro)?;
    connect_viewers(plan, setting, &mut subject, &load)?;
    if setting.record {
        let name = format!("perf-{}.h264", monotonic_ns());
        subject.post("/api/recording/start", &json!({ "filename": name }))?;
    }
    load.measure(!plan.programs.shielded);
    std::thread::sleep(SETTLE);
    let inspection = inspect(plan, setting, &mut subject)?;
    let begin = Moment::now(&subject, &load, &camera);
    watch(plan, setting, &mut subject, &load)?;
    let end = Moment::now(&subject, &load, &camera);
    let memory = Memory::of(subject.process.id());
    if let Some(inspection) = inspection {
        inspection.join().map_err(|_| "the inspecting thread panicked")?;
    }
    let recorded_units = if setting.record {
        subject.post("/api/recording/stop", &json!({}))?["frame_count"].as_u64()
    } else {
        None
    };
    std::thread::sleep(Duration::from_millis(100));
    let viewers = load.finish()?;
    subject.process.check()?;
    camera.process.check()?;
    let start_ms = subject.start_ms;
    drop(subject);
    let context =
        Context { setting, begin, end, memory, start_ms, recorded_units, shielded: plan.programs.shielded };
    Ok(context.record(&viewers))
}

/// Starts a thread that takes a CPU profile of our server during the measurement, and its metrics at the end. Returns
/// `None` if `plan` does not ask for them or the server is a peer. Sampling costs CPU time, so published runs must not
/// use this.
fn inspect(plan: &Plan, setting: &Setting, subject: &mut Subject) -> Fallible<Option<JoinHandle<()>>> {
    let Some(directory) = plan.inspect.clone().filter(|_| subject.is_ours()) else { return Ok(None) };
    std::fs::create_dir_all(&directory)?;
    let address = subject.control()?;
    let name = format!("{}-{}-{}", setting.server, setting.viewers, setting.kbps);
    let profile = format!("/debug/pprof/profile?seconds={}", plan.seconds);
    let body = move || {
        for (path, ending) in [(profile.as_str(), "pb.gz"), ("/metrics", "metrics")] {
            let file = directory.join(format!("{name}.{ending}"));
            let answer = http::request_bytes(address, "GET", path, "");
            let written = answer.map(|(_, bytes)| std::fs::write(&file, bytes));
            if !matches!(written, Ok(Ok(()))) {
                eprintln!("perf: cannot write {}", file.display());
            }
        }
    };
    Ok(Some(std::thread::spawn(body)))
}

/// Connects all viewers, a few at a time.
fn connect_viewers(plan: &Plan, setting: &Setting, subject: &mut Subject, load: &Load) -> Fallible<()> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let playing = || load.progress.playing.load(Ordering::Relaxed);
    let connected = || load.progress.connected.load(Ordering::Relaxed);
    for index in 0..setting.viewers {
        while index >= connected() + CONNECTING_MAX {
            wait_a_moment(deadline, subject, playing(), setting.viewers)?;
        }
        load.add(subject.join(setting, index < plan.check)?);
    }
    while playing() < setting.viewers {
        wait_a_moment(deadline, subject, playing(), setting.viewers)?;
    }
    Ok(())
}

fn wait_a_moment(deadline: Instant, subject: &mut Subject, playing: usize, wanted: usize) -> Fallible<()> {
    subject.process.check()?;
    if Instant::now() > deadline {
        let tail = subject.process.tail();
        return Err(format!("only {playing} of {wanted} viewers got a picture:\n{tail}").into());
    }
    std::thread::sleep(Duration::from_millis(2));
    Ok(())
}

/// Waits until the measured time has passed, and prints progress.
fn watch(plan: &Plan, setting: &Setting, subject: &mut Subject, load: &Load) -> Fallible<()> {
    let begin = Instant::now();
    let mut before = load.progress.units.load(Ordering::Relaxed);
    for second in 1..=plan.seconds {
        std::thread::sleep((begin + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        let units = load.progress.units.load(Ordering::Relaxed);
        eprint!(
            "\r{:>10} {:>4} viewers {:>5} kbit/s{}: {second:>3}/{} s, {} units/s ",
            setting.server,
            setting.viewers,
            setting.kbps,
            if setting.record { ", recording" } else { "" },
            plan.seconds,
            units - before
        );
        before = units;
        subject.process.check()?;
    }
    eprintln!();
    Ok(())
}

/// Everything from which a record is made, except the statistics of the viewers.
struct Context<'a> {
    setting: &'a Setting,
    begin: Moment,
    end: Moment,
    memory: Memory,
    start_ms: f64,
    recorded_units: Option<u64>,
    shielded: bool,
}

impl Context<'_> {
    fn record(&self, viewers: &[Viewer]) -> Record {
        let window = self.begin.at_ns..self.end.at_ns - TAIL_NS;
        let samples: Vec<Vec<Sample>> = viewers.iter().map(|viewer| in_window(viewer, &window)).collect();
        let all = || samples.iter().flatten();
        let latency = |wanted: &dyn Fn(&Sample) -> bool| {
            Quantiles::of(all().filter(|sample| wanted(sample)).map(|sample| sample.latency_ns).collect())
        };
        let since_offer = |at: &dyn Fn(&Viewer) -> Option<i64>| {
            let times = viewers.iter().filter_map(|viewer| Some(at(viewer)? - viewer.offered_at_ns));
            milliseconds(Quantiles::of(times.collect()))
        };
        let seconds = (self.end.at_ns - self.begin.at_ns) as f64 / 1e9;
        let (all_ticks, idle, stolen) = difference(self.begin.machine, self.end.machine);
        let per_second = |used: Used| used.run_ns as f64 / 1e6 / seconds;
        let cpu = cpu(self.end.server.since(&self.begin.server), seconds);
        let load_ms = per_second(self.end.load.since(&self.begin.load));
        let camera_ms = per_second(self.end.camera.since(&self.begin.camera));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let idle = idle / all_ticks.max(1.0);
        let profile = viewers.first().and_then(|viewer| viewer.profile);
        Record {
            setting: self.setting.clone(),
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            commit: commit(),
            machine: machine(),
            seconds,
            srtp: profile.unwrap_or("-").to_owned(),
            units: count(viewers, &samples),
            latency: latency(&|_| true),
            latency_idr: latency(&|sample| sample.is_idr),
            latency_other: latency(&|sample| !sample.is_idr),
            latency_last_viewer: Quantiles::of(last_viewers(&samples)),
            cpu,
            memory: self.memory,
            start_ms: self.start_ms,
            first_datagram_ms: since_offer(&|viewer| viewer.received.first_at_ns),
            first_idr_ms: since_offer(&|viewer| viewer.received.first_idr_at_ns),
            load_ms,
            camera_ms,
            idle,
            foreign: 1.0 - idle - (cpu.total_ms + load_ms + camera_ms) / 1e3 / cores,
            stolen: stolen / all_ticks.max(1.0),
            shielded: self.shielded,
            recorded_units: self.recorded_units,
        }
    }
}

fn difference(begin: (u64, u64, u64), end: (u64, u64, u64)) -> (f64, f64, f64) {
    let minus = |now: u64, then: u64| now.saturating_sub(then) as f64;
    (minus(end.0, begin.0), minus(end.1, begin.1), minus(end.2, begin.2))
}

fn milliseconds(us: Quantiles) -> Quantiles {
    let ms = |us: f64| us / 1e3;
    Quantiles { p50: ms(us.p50), p90: ms(us.p90), p99: ms(us.p99), p99_9: ms(us.p99_9), max: ms(us.max) }
}

fn cpu(used: Used, seconds: f64) -> Cpu {
    let ms = |ns: u64| ns as f64 / 1e6 / seconds;
    Cpu {
        total_ms: ms(used.run_ns),
        user_ms: ms(used.user_ns),
        system_ms: ms(used.system_ns),
        voluntary_switches: used.voluntary_switches as f64 / seconds,
        involuntary_switches: used.involuntary_switches as f64 / seconds,
    }
}

pub(crate) fn in_window(viewer: &Viewer, window: &std::ops::Range<i64>) -> Vec<Sample> {
    viewer.received.samples.iter().filter(|sample| window.contains(&sample.published_ns)).copied().collect()
}

/// Counts the units of all viewers. Every viewer should have received all unit numbers from the lowest to the highest
/// that any viewer received.
pub(crate) fn count(viewers: &[Viewer], samples: &[Vec<Sample>]) -> Units {
    let numbers = || samples.iter().flatten().map(|sample| sample.number);
    let published = match (numbers().min(), numbers().max()) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    let mut units = Units {
        expected: published * samples.len() as u64,
        lost_by_harness: viewers.iter().map(|viewer| u64::from(viewer.lost_by_harness)).sum(),
        viewers_that_check: viewers.iter().filter(|viewer| viewer.received.checks_all).count() as u64,
        ..Units::default()
    };
    for samples in samples {
        let mut seen: Vec<u64> = samples.iter().map(|sample| sample.number).collect();
        seen.sort_unstable();
        seen.dedup();
        units.received += samples.len() as u64;
        units.duplicated += (samples.len() - seen.len()) as u64;
        units.missing += published.saturating_sub(seen.len() as u64);
        units.torn += samples.iter().filter(|sample| sample.is_torn).count() as u64;
        units.late += samples.iter().filter(|sample| sample.latency_ns > LATE_NS).count() as u64;
    }
    units
}

/// Returns, for each unit, the highest latency that any viewer had.
fn last_viewers(samples: &[Vec<Sample>]) -> Vec<i64> {
    let mut last: BTreeMap<u64, i64> = BTreeMap::new();
    for sample in samples.iter().flatten() {
        let latency = last.entry(sample.number).or_default();
        *latency = sample.latency_ns.max(*latency);
    }
    last.into_values().collect()
}

/// Returns the commit of the sources, with `-dirty` if files were changed, or an empty string without git. Changes in
/// `perf/results` are ignored.
fn commit() -> String {
    let git = |words: &[&str]| Command::new("git").args(words).output();
    let hash = git(&["rev-parse", "--short", "HEAD"]).map(|output| output.stdout).unwrap_or_default();
    let hash = String::from_utf8_lossy(&hash).trim().to_owned();
    let changes = git(&["status", "--porcelain", "--", ".", ":(exclude)perf/results"]);
    let is_clean = changes.is_ok_and(|output| output.status.success() && output.stdout.is_empty());
    if is_clean || hash.is_empty() { hash } else { format!("{hash}-dirty") }
}

/// Returns the processor, the number of cores and the kernel version as text.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}
