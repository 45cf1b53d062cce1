//! One turn of a worker: reap all completions, feed the sessions, fan out new access units, drain every touched
//! session, submit once. Work per turn is bounded. The only call that blocks is `Driver::submit_and_wait`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::{self, Now};
use crate::base::limits;
use crate::camera::waiter::WaiterHandoff;
use crate::camera::{Camera, IdrRequest};
use crate::metrics::WorkerCounters;
use crate::metrics::status::ViewerStatus;
use crate::session::{CloseReason, Output, stun_ufrag};
use crate::uring::{Completion, Driver, Received, UdpDriverError};
use crate::worker::catch_up::CatchUpTurn;
use crate::worker::commands::{Command, Forwarded, Mailbox, MailboxReader};
use crate::worker::inline_wait::InlineWait;
use crate::worker::registry::{Registry, SessionSlot, ViewerSink};
use crate::worker::routes::Routes;
use crate::worker::source::{Polled, Source};
use crate::worker::timing::Timing;
use crate::worker::totals::{Totals, copy_driver_counters};

/// Everything that a worker is built from. The seed is moved to the worker's thread.
pub(super) struct Seed {
    pub(super) index: usize,
    pub(super) camera: Camera,
    pub(super) peers: Vec<Mailbox>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) reader: MailboxReader,
    /// The camera wait; `None` unless this worker runs it.
    pub(super) camera_wait: Option<WaiterHandoff>,
}

/// Longest sleep of a worker without a deadline.
const IDLE: Duration = Duration::from_secs(1);

/// Deadlines that are due within this time are handled together, in one wake-up.
const DEADLINE_SLACK: Duration = Duration::from_millis(2);

/// One worker: everything its thread owns.
pub(super) struct Worker<D> {
    index: usize,
    pub(super) driver: D,
    camera: Camera,
    source: Source,
    pub(super) sessions: Registry,
    /// Routes to the sessions of the other workers, by worker index. Only the receiving worker has any.
    pub(super) routes: Routes<usize>,
    pub(super) peers: Vec<Mailbox>,
    /// One flag per worker: true if this turn forwarded a datagram to it. These workers are woken at the end of the
    /// turn.
    peers_to_wake: Vec<bool>,
    pub(super) counters: Arc<WorkerCounters>,
    reader: MailboxReader,
    /// Index of the viewer served first. Advances with every unit, so that no viewer is always last.
    first: usize,
    totals: Totals,
    timing: Timing,
    stopping_until: Option<Instant>,
    /// True if a viewer is catching up with the current GOP. The next turn then follows after [`limits::REPLAY_TURN`].
    is_catching_up: bool,
    /// True if the camera must still be asked for an IDR, because it was asked too often.
    is_idr_wanted: bool,
    camera_wait: Option<InlineWait>,
}

impl<D: Driver> Worker<D> {
    pub(super) fn new(seed: Seed, driver: D) -> Self {
        Worker {
            index: seed.index,
            driver,
            source: Source::new(seed.camera.clone()),
            camera: seed.camera,
            sessions: Registry::new(seed.peers.first().filter(|_| seed.index != 0).cloned()),
            routes: Routes::default(),
            peers_to_wake: vec![false; seed.peers.len()],
            peers: seed.peers,
            counters: seed.counters,
            reader: seed.reader,
            first: 0,
            totals: Totals::default(),
            timing: Timing::default(),
            stopping_until: None,
            is_catching_up: false,
            is_idr_wanted: false,
            camera_wait: seed.camera_wait.map(InlineWait::new),
        }
    }

    /// Runs turns until [`Command::Stop`] is done or io_uring fails.
    pub(super) fn run(mut self) {
        let mut now = clock::now();
        // The ring may already hold the current GOP, and may lose it before the camera wakes this worker.
        self.turn(now);
        while !self.is_done(now) {
            if let Err(error) = self.submit(now) {
                log::error!("worker {}: io_uring_enter: {error}; the worker ends", self.index);
                return;
            }
            now = clock::now();
            if self.camera_wait.as_mut().is_some_and(|camera_wait| camera_wait.poll_busily(now)) {
                now = clock::now();
            }
            self.turn(now);
        }
    }

    pub(super) fn submit(&mut self, now: Now) -> Result<(), UdpDriverError> {
        self.timing.on_submitted(self.sessions.slots.iter_mut().map(|slot| &mut slot.sends));
        let mut wait = self.time_to_wait(now);
        if let Some(camera_wait) = &mut self.camera_wait {
            self.driver.set_futex_wait(camera_wait.word());
            wait = wait.min(camera_wait.time_to_wait(now, self.sessions.slots.len()));
        }
        self.driver.submit_and_wait(wait)
    }

    fn is_done(&self, now: Now) -> bool {
        self.stopping_until.is_some_and(|until| now.instant >= until || self.sessions.slots.is_empty())
    }

    fn time_to_wait(&self, now: Now) -> Duration {
        let wait = self
            .sessions
            .next_deadline()
            .map_or(IDLE, |deadline| deadline.saturating_duration_since(now.instant));
        let idle = match self.stopping_until {
            Some(_) => Duration::from_millis(20),
            None if self.is_catching_up => limits::REPLAY_TURN,
            None => IDLE,
        };
        wait.min(idle)
    }

    pub(super) fn turn(&mut self, now: Now) {
        // Commands are handled before datagrams, so that the first STUN request of a session finds that session.
        self.take_commands(now);
        self.reap(now);
        // The camera wait wakes the other consumers of the camera, so it runs before this worker's own work.
        if let Some(camera_wait) = &mut self.camera_wait {
            camera_wait.turn(now);
        }
        self.take_forwarded(now);
        self.drain_touched(now);
        self.fan_out(now);
        self.catch_up(now);
        self.handle_deadlines(now);
        self.drain_touched(now);
        self.remove_closed(now);
        if let Some(connections) = self.driver.connections() {
            connections.tend(now.instant);
        }
        self.wake_peers();
        self.update_counters(now);
    }

    fn reap(&mut self, now: Now) {
        let mut any_sent = false;
        for _ in 0..limits::COMPLETIONS_PER_TURN_MAX {
            match self.driver.next_completion() {
                Some(Completion::Datagram(received)) => self.receive(now, received),
                Some(Completion::Frames(connection)) => self.receive_frames(now, connection),
                Some(Completion::Disconnected { connection, viewer }) => {
                    self.sessions.disconnect(now.instant, viewer, connection);
                }
                // The driver itself counts sent datagrams. Only the time is recorded here.
                Some(Completion::Sent { .. }) => any_sent = true,
                // Nothing to do here: every turn polls the mailbox and the camera anyway.
                Some(Completion::Eventfd(_)) => {}
                Some(Completion::Futex(result)) => {
                    if let Some(camera_wait) = &mut self.camera_wait {
                        camera_wait.on_completion(result);
                    }
                }
                None => break,
            }
        }
        if any_sent {
            self.time_sent(now);
        }
    }

    fn time_sent(&mut self, now: Now) {
        for slot in &mut self.sessions.slots {
            let in_flight = self.driver.in_flight(slot.viewer.id());
            let ended = slot.viewer.datagrams_sent().saturating_sub(in_flight.into());
            self.timing.on_sent(&mut slot.sends, ended, now.monotonic_ns, &self.counters);
        }
    }

    fn receive(&mut self, now: Now, received: Received) {
        let (remote, local) = (received.remote, received.local);
        let bytes = self.driver.datagram(&received);
        let ufrag = stun_ufrag(bytes);
        if !self.sessions.deliver(now.instant, local, remote, ufrag, bytes) {
            match self.routes.find(ufrag, remote) {
                Some(worker) => {
                    let datagram = Forwarded { remote, local, bytes: bytes.to_vec() };
                    self.forward(worker, datagram);
                }
                None => self.counters.datagrams_unclaimed.add(1),
            }
        }
        self.driver.recycle(received);
    }

    fn forward(&mut self, worker: usize, datagram: Forwarded) {
        let Some(peer) = self.peers.get(worker) else { return };
        if peer.forward(datagram) {
            self.counters.datagrams_forwarded.add(1);
            if let Some(to_wake) = self.peers_to_wake.get_mut(worker) {
                *to_wake = true;
            }
        } else {
            self.counters.inbox_full.add(1);
        }
    }

    fn wake_peers(&mut self) {
        for (peer, to_wake) in self.peers.iter().zip(&mut self.peers_to_wake) {
            if std::mem::take(to_wake) {
                peer.wake();
            }
        }
    }

    fn take_forwarded(&mut self, now: Now) {
        for _ in 0..limits::COMMANDS_PER_TURN_MAX {
            let Ok(Forwarded { remote, local, bytes }) = self.reader.datagrams.try_recv() else { return };
            if !self.sessions.deliver(now.instant, local, remote, stun_ufrag(&bytes), &bytes) {
                self.counters.datagrams_unclaimed.add(1);
            }
        }
        self.wake_again();
    }

    /// Makes the next turn follow at once, because work is left over from this turn.
    fn wake_again(&self) {
        if let Some(own) = self.peers.get(self.index) {
            own.wake();
        }
    }

    fn take_commands(&mut self, now: Now) {
        let mut taken = 0;
        while taken < limits::COMMANDS_PER_TURN_MAX
            && let Ok(command) = self.reader.commands.try_recv()
        {
            self.handle_command(now, command);
            taken += 1;
        }
        // Route updates wait only because the mailbox was full. The commands just taken have made room for them.
        if taken > 0
            && let Some(own) = self.peers.get(self.index)
        {
            own.retry_updates();
        }
        if taken == limits::COMMANDS_PER_TURN_MAX {
            self.wake_again();
        }
    }

    fn handle_command(&mut self, now: Now, command: Command) {
        match command {
            Command::Adopt { viewer, guard } => {
                self.sessions.insert(*viewer, guard, now.instant);
                self.totals.refresh();
            }
            Command::LogOut { viewer } => self.close(now, viewer, CloseReason::LoggedOut),
            Command::GiveWay { viewer } => self.close(now, viewer, CloseReason::GaveWay),
            Command::Delete { viewer, done } => self.sessions.delete(now.instant, viewer, done),
            Command::Fragment { viewer, fragment, if_match, reply } => {
                let handled =
                    self.sessions.handle_fragment(now.instant, viewer, &fragment, if_match.as_deref());
                // The result is ignored: the send fails only if the requester has timed out.
                let _ = reply.send(handled);
            }
            Command::Statuses(reply) => {
                let live = self.sessions.slots.iter().map(|slot| slot.viewer.status(now.instant));
                let statuses: Vec<ViewerStatus> = live.chain(self.totals.ended(now.instant)).collect();
                // The result is ignored: the send fails only if the requester has timed out.
                let _ = reply.send(statuses);
            }
            Command::Route { ufrag, worker } => self.routes.insert(ufrag, worker),
            Command::Aliases { ufrag, aliases } => self.routes.set_aliases(&ufrag, aliases),
            Command::PathChanged { ufrag, change } => self.routes.apply(&ufrag, change, now.instant),
            Command::Forget { ufrag } => self.routes.remove(&ufrag),
            Command::Connection(handover) => {
                if let Some(connections) = self.driver.connections() {
                    connections.adopt(*handover);
                }
            }
            Command::Stop => self.stop(now),
        }
    }

    /// Closes a session, unless it has ended in the meantime.
    fn close(&mut self, now: Now, viewer: u32, reason: CloseReason) {
        if let Some(slot) = self.sessions.by_id(viewer) {
            slot.viewer.close(now.instant, reason);
            slot.touched = true;
        }
    }

    fn stop(&mut self, now: Now) {
        self.stopping_until = Some(now.instant + Duration::from_millis(limits::STOP_MS_MAX));
        for slot in &mut self.sessions.slots {
            slot.viewer.close(now.instant, CloseReason::Local);
            slot.touched = true;
        }
    }

    fn fan_out(&mut self, now: Now) {
        for _ in 0..limits::UNITS_PER_TURN_MAX {
            let has_viewers = !self.sessions.slots.is_empty() && self.stopping_until.is_none();
            match self.source.poll_unit(now, has_viewers, &self.counters) {
                Polled::Unit(unit) => {
                    self.timing.on_packetised(unit, now.monotonic_ns, has_viewers, &self.counters);
                    if has_viewers {
                        self.send_live(now);
                    }
                }
                Polled::Again => {}
                Polled::Empty => return,
            }
        }
        self.wake_again();
    }

    /// Sends the source's current unit to every viewer.
    fn send_live(&mut self, now: Now) {
        let unit = self.source.unit();
        self.is_idr_wanted &= !unit.info.is_idr;
        let count = self.sessions.slots.len();
        self.first = (self.first + 1) % count.max(1);
        for place in 0..count {
            let Some(slot) = self.sessions.slots.get_mut((self.first + place) % count) else { continue };
            let id = slot.viewer.id();
            slot.needs_idr &= !unit.info.is_idr;
            slot.viewer.note_congestion(self.driver.in_flight(id));
            let before = slot.viewer.datagrams_sent();
            let sink = &mut ViewerSink { driver: &mut self.driver, viewer: id };
            let has_ended_replay = slot.viewer.push_access_unit(now.instant, &unit, sink);
            self.counters.replays_cut.add(u64::from(has_ended_replay));
            slot.deadline = slot.viewer.next_deadline();
            self.driver.flush();
            self.timing.on_encrypted(id, before..slot.viewer.datagrams_sent(), &mut slot.sends);
        }
    }

    /// Sends this turn's share of the catch-ups. Runs after the live units, which have priority.
    fn catch_up(&mut self, now: Now) {
        let (source, driver, counters) = (&mut self.source, &mut self.driver, &*self.counters);
        let mut turn = CatchUpTurn { source, driver, counters, now, is_idr_wanted: self.is_idr_wanted };
        self.is_catching_up = turn.run(&mut self.sessions, self.first);
        // One request to the camera serves all viewers that need an IDR.
        self.is_idr_wanted =
            turn.is_idr_wanted && self.camera.request_idr(now.monotonic_ns) == IdrRequest::TooSoon;
    }

    fn handle_deadlines(&mut self, now: Now) {
        for slot in &mut self.sessions.slots {
            if slot.deadline <= now.instant + DEADLINE_SLACK {
                slot.viewer.handle_timeout(now.instant);
                slot.touched = true;
            }
        }
    }

    fn drain_touched(&mut self, now: Now) {
        for slot in &mut self.sessions.slots {
            if std::mem::take(&mut slot.touched) {
                drain(&mut self.driver, slot, now.instant);
            }
        }
    }

    fn remove_closed(&mut self, now: Now) {
        let (counters, totals, driver) = (&self.counters, &mut self.totals, &mut self.driver);
        self.sessions.remove_closed(|viewer| {
            if let Some(connections) = driver.connections() {
                connections.finish(viewer.id());
            }
            let status = viewer.status(now.instant);
            // The publisher itself logs the end of its session.
            if !status.is_publisher {
                counters.sessions_closed.add(1);
                note_end(&status, counters);
            }
            totals.keep(status, now.instant);
        });
    }

    fn update_counters(&mut self, now: Now) {
        self.counters.turns.add(1);
        if let Some(camera_wait) = &self.camera_wait {
            self.counters.busy_poll_ns.set_total(camera_wait.polled_ns());
        }
        copy_driver_counters(self.driver.counters(), &self.counters);
        self.totals.update(&self.sessions, now, &self.counters);
        self.timing.publish(now.monotonic_ns, &self.counters);
    }
}

/// Counts and logs the end of a viewer's session.
fn note_end(status: &ViewerStatus, counters: &WorkerCounters) {
    let Some(ended) = &status.ended else { return };
    if let Some(counter) = counters.sessions_ended.get(ended.reason as usize) {
        counter.add(1);
    }
    let from = status.remote.map_or_else(String::new, |remote| format!(" ({remote})"));
    log::info!("viewer {}{from}: session ended: {}", status.id, ended.detail);
}

/// Passes everything that a session wants to send to the driver. Must be called after every change of a session.
fn drain(driver: &mut impl Driver, slot: &mut SessionSlot, now: Instant) {
    let sink = &mut ViewerSink { driver: &mut *driver, viewer: slot.viewer.id() };
    // A closed session is removed and logged at the end of the turn.
    if let Output::Wait(deadline) = slot.viewer.drain(now, sink) {
        slot.deadline = deadline;
    }
    driver.flush();
}

/// Access for the simulated day, which drives the worker and checks its state.
#[cfg(test)]
impl<D> Worker<D> {
    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    pub(super) fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    pub(super) fn sessions(&self) -> &Registry {
        &self.sessions
    }

    pub(super) fn session(&mut self, id: u32) -> Option<&mut SessionSlot> {
        self.sessions.by_id(id)
    }

    pub(super) fn routes(&self) -> &Routes<usize> {
        &self.routes
    }

    pub(super) fn reader(&self) -> &MailboxReader {
        &self.reader
    }
}
