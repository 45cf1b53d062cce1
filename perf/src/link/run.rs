//! Makes one run: camera, server, link and browser; waits for the first picture, starts the schedule of the link, and
//! collects what the browser shows.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::beside::{Beside, Crowd};
use super::browser::Browser;
use super::camera::Camera;
use super::case::{Case, START_SECONDS};
use super::network::{Namespace, SERVER, VIEWER, VIEWER_MOVED, remove_stale};
use super::outcome::Shown;
use super::record::{Observed, Record, Snapshot};
use super::relay::Relay;
use super::server::{Kind, Programs, Server};
use super::uplink::FarEnd;
use crate::Fallible;
use crate::clock::monotonic_ns;
use crate::process::machine_ticks;

const PAGE: &str = include_str!("page.js");
/// Longest time without a first picture, after which a run ends and shows no picture.
const FIRST_PICTURE: Duration = Duration::from_secs(20);
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL: Duration = Duration::from_millis(250);
/// Time after the measurement in which pictures of late units may still be shown.
const TAIL_NS: i64 = 1_000_000_000;
/// Interval between two questions to the server about its viewers.
const ASK_INTERVAL_NS: i64 = 900_000_000;
/// Readings of the page's clock. Only the one with the shortest round trip is used.
const CLOCK_READINGS: usize = 30;

/// What all runs of one call share.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) programs: Programs,
    pub(crate) camera: PathBuf,
    pub(crate) layout: String,
    pub(crate) chromium: PathBuf,
    /// Directory of the encoded streams.
    pub(crate) streams: PathBuf,
    pub(crate) scratch: PathBuf,
    /// True if camera, server and browser run with a higher priority than other processes.
    pub(crate) shielded: bool,
    /// File for one line per packet.
    pub(crate) trace: Option<PathBuf>,
}

/// The parts of a run. They are dropped in this order: the browser first, the namespaces last.
struct Stage {
    browser: Browser,
    relay: Relay,
    crowd: Option<Crowd>,
    server: Server,
    far_end: Option<FarEnd>,
    camera: Camera,
    viewer_space: Namespace,
    server_space: Namespace,
    /// CLOCK_MONOTONIC minus the clock of the page, in ns.
    page_clock_ns: i64,
}

/// Makes one run and returns its record.
pub(crate) fn run(plan: &Plan, case: &Case) -> Fallible<Record> {
    remove_stale();
    let stream = case.stream.prepare(&plan.streams)?;
    std::fs::create_dir_all(&plan.scratch)?;
    let (server_space, server_device) = Namespace::new("server", SERVER)?;
    let (viewer_space, viewer_device) = Namespace::new("viewer", VIEWER)?;
    let (mut layout, mut programs) = (plan.layout.as_str(), plan.programs.clone());
    if case.stream.obeys {
        layout = "lease";
        programs.server_arguments.extend(["--min-kbps", "500"].map(str::to_owned));
    }
    let camera = Camera::start(&plan.camera, layout, &stream, plan.shielded)?;
    let far_end = match case.server {
        Kind::OursWhip => Some(viewer_space.within(|| FarEnd::start(&plan.programs.peers, plan.shielded))??),
        _ => None,
    };
    let whip = far_end.as_ref().map(FarEnd::whip_url);
    let (shm, scratch) = (&camera.shm, &plan.scratch);
    let start = || Server::start(case.server, &programs, shm, scratch, whip.as_deref(), plan.shielded);
    let server = server_space.within(start)??;
    let blocks = case.link.blocks(server.address.port());
    let relay = Relay::start(&server_device, &viewer_device, &case.link.shape(), &blocks, case.seed)?;
    let browser = viewer_space.within(|| Browser::start(&plan.chromium, PAGE, plan.shielded))??;
    let crowd = match case.beside {
        0 => None,
        viewers => Some(server_space.within(|| Crowd::join(&server, viewers))??),
    };
    let mut stage = Stage {
        browser,
        relay,
        crowd,
        server,
        far_end,
        camera,
        viewer_space,
        server_space,
        page_clock_ns: 0,
    };

    let machine = machine_ticks();
    let mut observed = stage.watch(case)?;
    observed.machine_idle = idle_since(machine);
    observed.started_ns = stage.relay.started_ns();
    observed.published = stage.camera.log();
    observed.entries = stage.relay.log();
    if let Some(path) = &plan.trace {
        observed.write_trace(path)?;
    }
    Ok(Record::of(case, &stream, &observed))
}

/// Returns the share of the machine's time that was idle since `before`.
fn idle_since(before: (u64, u64, u64)) -> f64 {
    let after = machine_ticks();
    (after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64
}

impl Stage {
    /// Plays the stream and returns what the browser showed until the end of the measurement.
    fn watch(&mut self, case: &Case) -> Fallible<Observed> {
        let page = if case.own_page { "/" } else { self.server.kind.health_path() };
        let address = self.far_end.as_ref().map_or(self.server.address, |far_end| far_end.address);
        if let Some(far_end) = &mut self.far_end {
            self.viewer_space.within(|| far_end.wait_for_stream())??;
        }
        let opened_ns = monotonic_ns();
        self.browser.open(&format!("http://{address}{page}"))?;
        self.page_clock_ns = self.read_page_clock()?;
        let joined_ns = if case.own_page { opened_ns } else { monotonic_ns() };
        let mut observed = Observed { joined_ns, ..Observed::default() };
        if !case.own_page {
            let path = json!(self.server.kind.offer_path());
            let whep = self.server.kind.is_whep();
            if let Err(error) = self.browser.evaluate(&format!("linkProbe.play({path}, {whep})")) {
                observed.errors.push(error.to_string());
            }
        }
        let deadline = Instant::now() + FIRST_PICTURE;
        while observed.shown.is_empty() && Instant::now() < deadline {
            std::thread::sleep(POLL_FIRST);
            self.collect(&mut observed)?;
        }
        let Some(first_ns) = observed.shown.first().map(|picture| picture.at_ns) else { return Ok(observed) };
        self.relay.start_schedule();
        let length_ns = i64::try_from(START_SECONDS + case.seconds)? * 1_000_000_000;
        let counted_ns = first_ns + i64::try_from(START_SECONDS)? * 1_000_000_000;
        let mut move_at_ns = case.link.move_ns.map(|ns| first_ns + ns.cast_signed());
        while monotonic_ns() < first_ns + length_ns + TAIL_NS {
            std::thread::sleep(POLL);
            self.collect(&mut observed)?;
            if monotonic_ns() >= counted_ns
                && let Some(crowd) = self.crowd.as_mut().filter(|crowd| !crowd.has_begun())
            {
                crowd.begin(monotonic_ns());
            }
            if move_at_ns.is_some_and(|at_ns| monotonic_ns() >= at_ns) {
                move_at_ns = None;
                observed.moved_ns = Some(monotonic_ns());
                self.viewer_space.change_address(VIEWER, VIEWER_MOVED)?;
            }
        }
        observed.beside = self.end_crowd()?;
        Ok(observed)
    }

    fn end_crowd(&mut self) -> Fallible<Option<Beside>> {
        self.crowd.take().map_or(Ok(None), |crowd| crowd.finish(monotonic_ns()))
    }

    /// Adds the newest results of the page.
    fn collect(&mut self, observed: &mut Observed) -> Fallible<()> {
        let taken = self.browser.evaluate("linkProbe.take()")?;
        for picture in taken["pictures"].as_array().into_iter().flatten() {
            let number = |index: usize| picture[index].as_u64().and_then(|value| u32::try_from(value).ok());
            let shown_ms = picture[0].as_f64().ok_or("a picture without a time")?;
            observed.shown.push(Shown {
                at_ns: self.to_monotonic_ns(shown_ms),
                presented: picture[1].as_u64().unwrap_or(0),
                is_read: number(4).is_some_and(|width| width > 0),
                index: number(2),
                hash: number(3),
            });
        }
        let errors = taken["errors"].as_array().into_iter().flatten();
        observed.errors.extend(errors.filter_map(Value::as_str).map(str::to_owned));
        if let Some(answer) = taken["answer"].as_str().filter(|answer| !answer.is_empty()) {
            observed.answer = answer.to_owned();
        }
        observed.connections = taken["connections"].as_u64().unwrap_or(0);
        let stalled_ms = taken["longest_tick_ms"].as_f64().unwrap_or(0.0);
        let is_playing = !observed.shown.is_empty();
        if is_playing {
            observed.page_stalled_ms = observed.page_stalled_ms.max(stalled_ms);
        }
        let at_ns = self.to_monotonic_ns(taken["now_ms"].as_f64().unwrap_or(0.0));
        let is_asked = observed.asked_ns.is_some_and(|asked_ns| at_ns < asked_ns + ASK_INTERVAL_NS);
        if !is_asked {
            observed.asked_ns = Some(at_ns);
            observed.viewers = self.server_space.within(|| self.server.viewers())?;
        }
        observed.snapshots.push(Snapshot {
            at_ns,
            stats: taken["stats"].clone(),
            viewers: observed.viewers.clone(),
            state: taken["state"].as_str().unwrap_or_default().to_owned(),
        });
        Ok(())
    }

    fn to_monotonic_ns(&self, page_ms: f64) -> i64 {
        self.page_clock_ns + (page_ms * 1e6) as i64
    }

    /// Compares the clock of the page with ours. The page's clock is CLOCK_MONOTONIC with another origin.
    fn read_page_clock(&mut self) -> Fallible<i64> {
        let mut readings = Vec::new();
        for _ in 0..CLOCK_READINGS {
            let before_ns = monotonic_ns();
            let page_ms =
                self.browser.evaluate("performance.now()")?.as_f64().ok_or("the page has no clock")?;
            let took_ns = monotonic_ns() - before_ns;
            readings.push((took_ns, before_ns + took_ns / 2 - (page_ms * 1e6) as i64));
        }
        Ok(readings.into_iter().min().map_or(0, |(_, offset_ns)| offset_ns))
    }
}
