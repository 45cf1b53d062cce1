//! The schedule of a simulated day and its invariants.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::browser::{Browser, Manners, server_address};
use super::camera::SimulatedCamera;
use super::growth::check_growth;
use super::heap::{as_server, server_bytes};
use super::network::{Calendar, Event, Link, Weather};
use super::recorder::SimulatedRecorder;
use super::server::Server;
use super::summary::Summary;
use super::{MS, SECOND};
use crate::base::clock::{self, Now};
use crate::base::limits;
use crate::camera::test_waiter::TestWaiter;
use crate::camera::{Camera, Wake};
use crate::session::{SessionConfig, SessionContext, SrtpChoice, Viewer};
use support::random::Random;

/// Length of a quiet time in seconds. It is longer than a session can outlive its browser.
pub(super) const QUIET_S: u64 = 40;

/// Most steps within one millisecond. After more, the day fails, because the server does not come to rest.
const STEPS_MAX: u32 = 1_000;

/// Parameters of a day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) rounds: u32,
    pub(super) busy_s: u64,
    /// Number of browsers at a time that join and leave.
    pub(super) guests: u32,
    /// Number of browsers that stay the whole day.
    pub(super) residents: u32,
    pub(super) units_per_s: u32,
    pub(super) gop: u32,
    /// Number of workers. The first one receives for all.
    pub(super) workers: usize,
    /// Prints a line after every round.
    pub(super) tells: bool,
}

/// A session whose browser is gone.
#[derive(Clone, Copy, Debug)]
struct Ghost {
    id: u32,
    manners: Manners,
    weather: Weather,
    left_ns: i64,
    patience_ns: i64,
    /// Time by which the session must have ended.
    until_ns: i64,
}

pub(super) struct Day {
    plan: Plan,
    random: Random,
    origin: Instant,
    start_ns: i64,
    now_ns: i64,
    camera: SimulatedCamera,
    camera_waiter: TestWaiter,
    server: Server,
    context: Arc<SessionContext>,
    server_wakes_ns: i64,
    /// Time until which the server is stalled.
    stalled_until_ns: i64,
    stalls: u32,
    recorder: SimulatedRecorder,
    calendar: Calendar,
    browsers: HashMap<u32, Browser>,
    order: Vec<u32>,
    /// Sessions whose browser is gone.
    ghosts: Vec<Ghost>,
    joined: u32,
    next_second_ns: i64,
    is_busy: bool,
    shown: u64,
    hidden: u64,
    held_bytes: Vec<i64>,
    /// Value of `SERVER_BYTES` in `heap.rs` before the day.
    held_before: i64,
    digest: u64,
}

impl Day {
    pub(super) fn new(plan: Plan) -> Day {
        static DAYS: AtomicU32 = AtomicU32::new(0);
        let name = format!("/ss-test-day-{}-{}", std::process::id(), DAYS.fetch_add(1, Ordering::Relaxed));
        fastrand::seed(plan.seed); // str0m gets its random numbers from `fastrand`
        let now = clock::now();
        let start_ns = now.monotonic_ns / MS * MS;
        let sim_camera =
            SimulatedCamera::new(&name, plan.seed ^ 0xCA3E, plan.units_per_s, plan.gop, start_ns);
        let camera = Camera::new(&name, Wake::Poll);
        let config =
            SessionConfig { candidates: vec![server_address()], advertise: vec![], srtp: SrtpChoice::Gcm };
        Day {
            plan,
            random: Random::new(plan.seed),
            origin: now.instant,
            start_ns,
            now_ns: start_ns,
            camera_waiter: TestWaiter::new(&camera),
            server: Server::new(&camera, plan.workers),
            context: SessionContext::new(config).unwrap(),
            server_wakes_ns: start_ns,
            stalled_until_ns: 0,
            stalls: 0,
            recorder: SimulatedRecorder::new(&camera),
            camera: sim_camera,
            calendar: Calendar::default(),
            browsers: HashMap::new(),
            order: Vec::new(),
            ghosts: Vec::new(),
            joined: 0,
            next_second_ns: start_ns,
            is_busy: false,
            shown: 0,
            hidden: 0,
            held_bytes: Vec::new(),
            held_before: server_bytes(),
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Runs the whole day. Returns an error that says what was wrong and when.
    pub(super) fn run(mut self) -> Result<Summary, String> {
        let result = self.live();
        let at_ms = (self.now_ns - self.start_ns) / MS;
        match result {
            Ok(()) => Ok(self.summary()),
            Err(wrong) => Err(format!("seed {}, {at_ms} ms: {wrong}", self.plan.seed)),
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..self.plan.residents {
            self.join(Manners::Polite, Weather::Clean, i64::MAX);
        }
        for _ in 0..self.plan.rounds {
            self.set_busy(true);
            self.pass(self.plan.busy_s)?;
            self.set_busy(false);
            self.pass(QUIET_S)?;
            self.check_equal_state()?;
        }
        self.leave_all();
        self.pass(5)?;
        match self.server.sessions() {
            0 => check_growth(&self.held_bytes),
            count => Err(format!("{count} sessions left at the end of the day")),
        }
    }

    fn set_busy(&mut self, is_busy: bool) {
        self.is_busy = is_busy;
        self.camera.is_calm = !is_busy;
        if !is_busy {
            let residents = self.plan.residents;
            let guests: Vec<u32> = self.order.iter().copied().filter(|id| *id > residents).collect();
            guests.into_iter().for_each(|id| self.leave(id));
            self.recorder.slowness_ns = 0;
            as_server(|| self.recorder.stop(self.now_ns));
        }
    }

    fn now(&self) -> Now {
        let since_start = Duration::from_nanos((self.now_ns - self.start_ns).cast_unsigned());
        Now { instant: self.origin + since_start, monotonic_ns: self.now_ns }
    }

    fn note(&mut self, what: u64) {
        for value in [(self.now_ns - self.start_ns).cast_unsigned(), what] {
            self.digest = (self.digest ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
    }

    /// Runs the day until the clock has advanced by `seconds`.
    fn pass(&mut self, seconds: u64) -> Result<(), String> {
        let end_ns = self.now_ns + seconds as i64 * SECOND;
        let mut steps = 0;
        loop {
            // Everything that happens within a millisecond is handled by one turn.
            let next_ns = (self.next_ns() + MS - 1) / MS * MS;
            steps = if next_ns > self.now_ns { 0 } else { steps + 1 };
            if steps > STEPS_MAX {
                return Err("the server does not come to rest".to_owned());
            }
            self.now_ns = next_ns.max(self.now_ns).min(end_ns);
            if self.now_ns >= end_ns {
                return Ok(());
            }
            self.step()?;
        }
    }

    fn next_ns(&self) -> i64 {
        let browsers = self.order.iter().filter_map(|id| self.browsers.get(id));
        let deadline = browsers.map(|browser| browser.deadline).min();
        let deadline_ns = deadline.map(|deadline| self.to_ns(deadline));
        let worker_ns = self.server_wakes_ns.max(self.stalled_until_ns);
        [deadline_ns, self.calendar.next_ns(), self.recorder.next_ns()]
            .into_iter()
            .flatten()
            .fold(self.camera.next_ns.min(self.next_second_ns).min(worker_ns), i64::min)
    }

    fn to_ns(&self, instant: Instant) -> i64 {
        self.start_ns + instant.saturating_duration_since(self.origin).as_nanos() as i64
    }

    fn step(&mut self) -> Result<(), String> {
        let mut is_woken = false;
        while self.camera.next_ns <= self.now_ns {
            let restarts = self.camera.restarts;
            self.camera.work(self.now_ns);
            if self.camera.restarts > restarts {
                self.recorder.note_restart(self.camera.ledger.next());
            }
            is_woken = true;
        }
        as_server(|| self.camera_waiter.poll(self.now_ns));
        is_woken |= self.deliver()?;
        self.wake_browsers();
        if (is_woken || self.server_wakes_ns <= self.now_ns) && self.stalled_until_ns <= self.now_ns {
            self.turn();
        }
        if self.next_second_ns <= self.now_ns {
            self.next_second_ns += SECOND;
            self.run_second()?;
        }
        self.camera.is_unwatched = self.now_ns < self.stalled_until_ns;
        let (now_ns, ledger) = (self.now_ns, &self.camera.ledger);
        as_server(|| self.recorder.work(now_ns, ledger))
    }

    // ---- the server ------------------------------------------------------------------------------------

    fn turn(&mut self) {
        let wait = self.server.turn(self.now());
        self.server_wakes_ns = self.now_ns + wait.as_nanos() as i64;
        for (viewer, remote, bytes) in self.server.take_outbox() {
            self.note(u64::from(viewer));
            let Some(browser) = self.browsers.get_mut(&viewer).filter(|browser| browser.address == remote)
            else {
                self.server.left(viewer);
                continue;
            };
            let (leaves_ns, arrives_ns) = browser.link.downwards(self.now_ns);
            if leaves_ns > self.now_ns {
                self.calendar.add(leaves_ns, Event::LeftKernel { viewer });
            } else {
                self.server.left(viewer);
            }
            if let Some(arrives_ns) = arrives_ns {
                self.calendar.add(arrives_ns, Event::ToBrowser { viewer, bytes });
            }
        }
    }

    // ---- the network -----------------------------------------------------------------------------------

    /// Delivers the datagrams that are due. Returns true if a worker has work.
    fn deliver(&mut self) -> Result<bool, String> {
        let mut is_woken = false;
        let now = self.now();
        while let Some(event) = self.calendar.take(self.now_ns) {
            match event {
                Event::LeftKernel { viewer } => {
                    self.server.left(viewer);
                    is_woken = true;
                }
                Event::ToServer { from, bytes } => {
                    self.note(1 << 40);
                    self.server.receive(from, bytes);
                    is_woken = true;
                }
                Event::ToBrowser { viewer, bytes } => {
                    self.note(1 << 41 | u64::from(viewer));
                    let Some(browser) = self.browsers.get_mut(&viewer) else { continue };
                    browser.handle_datagram(now.instant, now.monotonic_ns, &bytes);
                    let verdict = browser.check_arrived(now.monotonic_ns, &self.camera.ledger);
                    let weather = browser.link.weather;
                    verdict.map_err(|wrong| {
                        let status = self.status(viewer);
                        format!("viewer {viewer} on a {weather:?} link: {wrong}\n{status}")
                    })?;
                    self.post(viewer);
                }
            }
        }
        Ok(is_woken)
    }

    /// Puts a browser's datagrams on the network.
    fn post(&mut self, viewer: u32) {
        let Some(browser) = self.browsers.get_mut(&viewer) else { return };
        for bytes in std::mem::take(&mut browser.outbox) {
            if let Some(arrives_ns) = browser.link.upwards(self.now_ns) {
                self.calendar.add(arrives_ns, Event::ToServer { from: browser.address, bytes });
            }
        }
    }

    fn wake_browsers(&mut self) {
        let now = self.now();
        for index in 0..self.order.len() {
            let id = self.order[index];
            if let Some(browser) = self.browsers.get_mut(&id)
                && browser.deadline <= now.instant
            {
                browser.handle_timeout(now.instant, now.monotonic_ns);
                // Without this, a browser whose deadline does not advance would stop the simulated clock.
                browser.deadline = browser.deadline.max(now.instant + Duration::from_millis(1));
                self.post(id);
            }
        }
    }

    // ---- once a second ---------------------------------------------------------------------------------

    fn run_second(&mut self) -> Result<(), String> {
        let leaving: Vec<u32> =
            self.order.iter().copied().filter(|id| self.browsers[id].leaves_ns <= self.now_ns).collect();
        leaving.into_iter().for_each(|id| self.leave(id));
        if self.is_busy {
            self.invite();
            self.trouble();
        }
        self.check_ghosts()?;
        self.server.check_in_flight()?;
        self.check_present()
    }

    fn invite(&mut self) {
        let wanted = self.plan.guests + self.plan.residents;
        let missing = wanted.saturating_sub(self.browsers.len() as u32);
        for _ in 0..missing.min(1 + wanted / 10) {
            let manners = match self.random.below(10) {
                0 => Manners::Silent,
                1 => Manners::Stuck,
                2..=4 => Manners::Vanishing,
                _ => Manners::Polite,
            };
            let weather = match self.random.below(10) {
                0..=3 => Weather::Clean,
                4 | 5 => Weather::Narrow,
                6 => Weather::Slow,
                7 | 8 => Weather::Lossy,
                _ => Weather::Awful,
            };
            let stay_ns = (1 + self.random.below(self.plan.busy_s) as i64) * SECOND;
            self.join(manners, weather, self.now_ns + stay_ns);
        }
    }

    /// Causes trouble at random: the worker stalls, the disk is slow, a recording starts or stops, or a browser
    /// requests an IDR.
    fn trouble(&mut self) {
        if self.random.below(60) == 0 && self.stalled_until_ns <= self.now_ns {
            self.stalled_until_ns = self.now_ns + (50 + self.random.below(7_000) as i64) * MS;
            self.stalls += 1;
            // Datagrams of browsers that left within the last second may still be in flight. The stalled server reads
            // them late and so renews the consent late. Those sessions may therefore end later.
            for ghost in self.ghosts.iter_mut().filter(|ghost| self.now_ns - ghost.left_ns < SECOND) {
                ghost.until_ns = self.stalled_until_ns + ghost.patience_ns;
            }
        }
        match self.random.below(30) {
            0 => self.recorder.slowness_ns = self.random.below(10_000) as i64 * MS,
            1..=3 => self.recorder.slowness_ns = 0,
            4..=6 if self.recorder.is_idle() => {
                let random = &mut self.random;
                as_server(|| self.recorder.start(self.now_ns, random));
            }
            7 => as_server(|| self.recorder.stop(self.now_ns)),
            8 => {
                let id = self.order[self.random.below(self.order.len() as u64) as usize];
                if let Some(browser) = self.browsers.get_mut(&id) {
                    browser.request_idr(self.now_ns);
                }
            }
            _ => {}
        }
    }

    fn join(&mut self, manners: Manners, weather: Weather, leaves_ns: i64) {
        self.joined += 1;
        let (id, now) = (self.joined, self.now());
        let moment = (now.instant, now.monotonic_ns);
        let (mut browser, offer) =
            Browser::new(id, manners, Link::new(weather, (self.plan.seed, self.start_ns), id), moment);
        browser.leaves_ns = leaves_ns;
        let (context, server) = (&self.context, &self.server);
        let answer = as_server(|| {
            let (viewer, answer) = Viewer::accept(context, id, &offer, now.instant).unwrap();
            drop(server.adopt(viewer));
            super::heap::as_world(|| answer.clone())
        });
        browser.take_answer(&answer);
        browser.handle_timeout(now.instant, now.monotonic_ns);
        self.browsers.insert(id, browser);
        self.order.push(id);
        self.post(id);
        self.server_wakes_ns = self.now_ns;
    }

    fn leave(&mut self, id: u32) {
        let Some(browser) = self.browsers.get_mut(&id) else { return };
        let is_sure = browser.connected_ns.is_some()
            && matches!(browser.link.weather, Weather::Clean | Weather::Narrow);
        let mut patience = limits::CONSENT_TIMEOUT.max(limits::HANDSHAKE_TIMEOUT);
        if browser.manners == Manners::Polite {
            browser.close(self.now_ns);
            if is_sure {
                patience = Duration::from_secs(1);
            }
            self.post(id);
        }
        let Some(browser) = self.browsers.remove(&id) else { return };
        self.order.retain(|other| *other != id);
        self.shown += browser.decoder.shown;
        self.hidden += browser.decoder.hidden;
        // A stalled server notices only after the stall that the browser has left, so the session may end later.
        let (left_ns, patience_ns) = (self.now_ns, patience.as_nanos() as i64);
        let until_ns = left_ns.max(self.stalled_until_ns) + patience_ns;
        let (manners, weather) = (browser.manners, browser.link.weather);
        self.ghosts.push(Ghost { id, manners, weather, left_ns, patience_ns, until_ns });
    }

    fn leave_all(&mut self) {
        for id in self.order.clone() {
            self.leave(id);
        }
    }

    // ---- invariants ------------------------------------------------------------------------------------

    fn status(&mut self, id: u32) -> String {
        let now = self.now().instant;
        let viewer = self.server.viewer(id);
        viewer.map_or("no session".to_owned(), |viewer| format!("{:?}", viewer.status(now)))
    }

    fn has_session(&mut self, id: u32) -> bool {
        self.server.viewer(id).is_some()
    }

    /// Checks that every session ends in time after its browser is gone.
    fn check_ghosts(&mut self) -> Result<(), String> {
        for ghost in std::mem::take(&mut self.ghosts) {
            if !self.has_session(ghost.id) {
                continue;
            }
            if self.now_ns > ghost.until_ns.max(self.stalled_until_ns) + 2 * SECOND {
                let Ghost { id, manners, weather, .. } = ghost;
                let status = self.status(id);
                return Err(format!(
                    "session {id} outlives its browser ({manners:?}, {weather:?})\n{status}"
                ));
            }
            self.ghosts.push(ghost);
        }
        Ok(())
    }

    /// Checks that every browser on a good link is connected and gets every unit.
    fn check_present(&mut self) -> Result<(), String> {
        for id in self.order.clone() {
            let browser = &self.browsers[&id];
            let is_good = browser.link.weather == Weather::Clean
                && matches!(browser.manners, Manners::Polite | Manners::Vanishing);
            // A join takes longer if the server stalls meanwhile, so new browsers are not checked yet.
            let is_settled = self.now_ns - browser.joined_ns > 10 * SECOND;
            if !is_good || !is_settled || self.now_ns < self.stalled_until_ns + SECOND {
                continue;
            }
            let (newest, owed_since_ns) = (browser.decoder.newest, browser.owed_since_ns());
            let is_connected = browser.connected_ns.is_some();
            if !is_connected || !self.has_session(id) {
                return Err(format!("viewer {id} has a good link and no session: {}", self.status(id)));
            }
            // Units of the last second may still be in flight, so they are not checked.
            let due = self.camera.ledger.next().saturating_sub(self.plan.units_per_s);
            let from = newest.map_or(due, |newest| newest + 1);
            if let Some(missed) = self.camera.ledger.first_owed(from..due, owed_since_ns) {
                return Err(format!(
                    "viewer {id} got {newest:?} as the newest unit and misses {missed}\n{}",
                    self.status(id)
                ));
            }
        }
        Ok(())
    }

    /// Checks that after a quiet time only the residents are left. Records the bytes that the server holds.
    fn check_equal_state(&mut self) -> Result<(), String> {
        let sessions = self.server.sessions();
        if sessions != self.plan.residents as usize {
            return Err(format!("{sessions} sessions of {} residents", self.plan.residents));
        }
        self.server.check_tables()?;
        if !self.recorder.is_idle() {
            return Err("the recording does not stop".to_owned());
        }
        let on_their_way = self.calendar.len();
        if on_their_way > 20 * sessions {
            return Err(format!("{on_their_way} datagrams in flight in a quiet time"));
        }
        let held = server_bytes() - self.held_before;
        self.held_bytes.push(held);
        if self.plan.tells {
            let (round, hours) = (self.held_bytes.len(), (self.now_ns - self.start_ns) as f64 / 3.6e12);
            println!("seed {}, round {round}, {hours:.2} h: {held} bytes held", self.plan.seed);
        }
        Ok(())
    }

    fn summary(&mut self) -> Summary {
        Summary {
            seed: self.plan.seed,
            simulated_s: (self.now_ns - self.start_ns) / SECOND,
            joined: self.joined,
            units: self.camera.ledger.next(),
            whims: self.camera.whims,
            stalls: self.stalls,
            shown: self.shown,
            hidden: self.hidden,
            datagrams: self.server.count(|counters| &counters.datagrams_sent),
            turns: self.server.count(|counters| &counters.turns),
            nacks: self.server.count(|counters| &counters.nacks),
            idr_requests: self.server.count(|counters| &counters.idr_requests),
            units_dropped: self.server.count(|counters| &counters.units_dropped),
            recordings: self.recorder.totals,
            held_bytes: std::mem::take(&mut self.held_bytes),
            digest: self.digest,
        }
    }
}
