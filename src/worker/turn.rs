//! One turn: reap all completions, feed the sessions, fan out new access units, drain every touched session,
//! submit once. Work per turn is bounded. May not block but in `UdpDriver::submit_and_wait`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::{self, Now};
use crate::base::limits;
use crate::camera::Camera;
use crate::camera::waiter::WaiterHandoff;
use crate::metrics::WorkerCounters;
use crate::session::{Output, PacketizedUnit, ViewerStatus, stun_ufrag};
use crate::uring::{Completion, Received, UdpDriverError};
use crate::worker::commands::{Command, Forwarded, Mailbox, MailboxReader};
use crate::worker::inline_wait::InlineWait;
use crate::worker::registry::{Registry, Routes, SessionSlot};
use crate::worker::replay::ReplayTurn;
use crate::worker::source::{Polled, Source};
use crate::worker::timing::Timing;
use crate::worker::totals::{Totals, count_datagrams};
use crate::worker::wire::{Driver, ViewerSink};

/// What a worker is made from; moved to its thread.
pub(super) struct Seed {
    pub(super) index: usize,
    pub(super) camera: Camera,
    pub(super) peers: Vec<Mailbox>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) reader: MailboxReader,
    /// The camera's, where this worker is the one that waits for it.
    pub(super) camera_wait: Option<WaiterHandoff>,
}

/// Longest sleep of a worker that has nothing to wait for.
const IDLE: Duration = Duration::from_secs(1);

/// Deadlines this close are handled together: one wake instead of several.
const DEADLINE_SLACK: Duration = Duration::from_millis(2);

/// One worker: everything its thread owns.
pub(super) struct Worker<W> {
    index: usize,
    pub(super) driver: W,
    camera: Camera,
    source: Source,
    pub(super) sessions: Registry,
    pub(super) routes: Routes,
    peers: Vec<Mailbox>,
    peer_rung: Vec<bool>,
    counters: Arc<WorkerCounters>,
    pub(super) reader: MailboxReader,
    /// The viewer that is served first; moves on with every unit so that no one is always last.
    first: usize,
    totals: Totals,
    timing: Timing,
    stopping_until: Option<Instant>,
    /// A viewer is being given the GOP so far: the next turn comes soon.
    is_replaying: bool,
    camera_wait: Option<InlineWait>,
}

impl<W: Driver> Worker<W> {
    pub(super) fn new(seed: Seed, driver: W) -> Self {
        Worker {
            index: seed.index,
            driver,
            source: Source::new(seed.camera.clone()),
            camera: seed.camera,
            sessions: Registry::default(),
            routes: Routes::default(),
            peer_rung: vec![false; seed.peers.len()],
            peers: seed.peers,
            counters: seed.counters,
            reader: seed.reader,
            first: 0,
            totals: Totals::default(),
            timing: Timing::default(),
            stopping_until: None,
            is_replaying: false,
            camera_wait: seed.camera_wait.map(InlineWait::new),
        }
    }

    /// Turns until told to stop.
    pub(super) fn run(mut self) {
        let mut now = clock::now();
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
        self.timing.submitted(self.sessions.iter_mut().map(|slot| &mut slot.sends));
        let mut wait = self.time_to_wait(now);
        if let Some(camera_wait) = &mut self.camera_wait {
            self.driver.watch(camera_wait.word());
            wait = wait.min(camera_wait.time_to_wait(now, self.sessions.len()));
        }
        self.driver.submit_and_wait(wait)
    }

    fn is_done(&self, now: Now) -> bool {
        self.stopping_until.is_some_and(|until| now.instant >= until || self.sessions.len() == 0)
    }

    fn time_to_wait(&self, now: Now) -> Duration {
        let wait = self
            .sessions
            .next_deadline()
            .map_or(IDLE, |deadline| deadline.saturating_duration_since(now.instant));
        let idle = match self.stopping_until {
            Some(_) => Duration::from_millis(20),
            None if self.is_replaying => limits::REPLAY_TURN,
            None => IDLE,
        };
        wait.min(idle)
    }

    pub(super) fn turn(&mut self, now: Now) {
        // Commands before datagrams: a session's first STUN must find it.
        self.take_commands(now);
        self.reap(now);
        // Others wait to be rung: before this worker's own work.
        if let Some(camera_wait) = &mut self.camera_wait {
            camera_wait.turn(now);
        }
        self.take_forwarded(now);
        self.drain_touched(now);
        self.fan_out(now);
        self.replay(now);
        self.take_deadlines(now);
        self.drain_touched(now);
        self.remove_closed(now);
        self.ring_peers();
        self.count(now);
    }

    fn reap(&mut self, now: Now) {
        let mut any_sent = false;
        for _ in 0..limits::COMPLETIONS_PER_TURN_MAX {
            match self.driver.next_completion() {
                Some(Completion::Datagram(received)) => self.receive(now, received),
                // The driver counts them.
                Some(Completion::Sent { .. }) => any_sent = true,
                // What rang is looked at in every turn.
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
        for slot in self.sessions.iter_mut() {
            let in_flight = self.driver.in_flight(slot.viewer.id());
            self.timing.sent(&mut slot.sends, in_flight, now.monotonic_ns, &self.counters);
        }
    }

    fn receive(&mut self, now: Now, received: Received) {
        let (remote, local) = (received.remote, received.local);
        let bytes = self.driver.datagram(&received);
        let ufrag = stun_ufrag(bytes);
        if let Some(slot) = find(&mut self.sessions, remote, ufrag) {
            slot.viewer.handle_datagram(now.instant, local, remote, bytes);
            slot.touched = true;
            let id = slot.viewer.id();
            if slot.remote != Some(remote) && slot.viewer.accepts_address(remote) {
                self.sessions.learn(id, remote);
            }
        } else {
            let owner = match ufrag {
                Some(ufrag) => self.routes.by_ufrag(ufrag),
                None => self.routes.by_address(remote),
            };
            match owner {
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
            if let Some(rung) = self.peer_rung.get_mut(worker) {
                *rung = true;
            }
        } else {
            self.counters.inbox_full.add(1);
        }
    }

    fn ring_peers(&mut self) {
        for (peer, rung) in self.peers.iter().zip(&mut self.peer_rung) {
            if std::mem::take(rung) {
                peer.wake();
            }
        }
    }

    fn take_forwarded(&mut self, now: Now) {
        for _ in 0..limits::COMMANDS_PER_TURN_MAX {
            let Ok(datagram) = self.reader.datagrams.try_recv() else { return };
            self.take_forwarded_datagram(now, &datagram);
        }
        // More are waiting: come back at once.
        if let Some(own) = self.peers.get(self.index) {
            own.wake();
        }
    }

    fn take_forwarded_datagram(&mut self, now: Now, datagram: &Forwarded) {
        let ufrag = stun_ufrag(&datagram.bytes);
        let Some(slot) = find(&mut self.sessions, datagram.remote, ufrag) else {
            self.counters.datagrams_unclaimed.add(1);
            return;
        };
        slot.viewer.handle_datagram(now.instant, datagram.local, datagram.remote, &datagram.bytes);
        slot.touched = true;
        if slot.remote != Some(datagram.remote) && slot.viewer.accepts_address(datagram.remote) {
            let (id, ufrag) = (slot.viewer.id(), slot.viewer.local_ufrag().to_owned());
            self.sessions.learn(id, datagram.remote);
            self.tell_receiver(Command::Learned { ufrag, remote: datagram.remote });
        }
    }

    /// Worker 0 receives for all.
    fn tell_receiver(&self, command: Command) {
        if let Some(receiver) = self.peers.first()
            && receiver.send(command).is_err()
        {
            log::warn!("worker {}: the receiving worker's mailbox is full", self.index);
        }
    }

    fn take_commands(&mut self, now: Now) {
        for _ in 0..limits::COMMANDS_PER_TURN_MAX {
            let Ok(command) = self.reader.commands.try_recv() else { return };
            self.take_command(now, command);
        }
        if let Some(own) = self.peers.get(self.index) {
            own.wake();
        }
    }

    fn take_command(&mut self, now: Now, command: Command) {
        match command {
            Command::Adopt { viewer, guard } => {
                self.sessions.insert(*viewer, guard, now.instant);
                self.totals.refresh();
            }
            Command::LogOut { viewer } => {
                // It may have gone by itself meanwhile.
                if let Some(slot) = self.sessions.by_id(viewer) {
                    slot.viewer.log_out(now.instant);
                    slot.touched = true;
                }
            }
            Command::Statuses(reply) => {
                let statuses: Vec<ViewerStatus> =
                    self.sessions.iter_mut().map(|slot| slot.viewer.status(now.instant)).collect();
                // The asker may have given up.
                let _ = reply.send(statuses);
            }
            Command::Route { ufrag, worker } => self.routes.insert(ufrag, worker),
            Command::Learned { ufrag, remote } => self.routes.learn(&ufrag, remote),
            Command::Forget { ufrag } => self.routes.forget(&ufrag),
            Command::Stop => self.stop(now),
        }
    }

    fn stop(&mut self, now: Now) {
        self.stopping_until = Some(now.instant + Duration::from_millis(limits::STOP_MS_MAX));
        for slot in self.sessions.iter_mut() {
            slot.viewer.close(now.instant);
            slot.touched = true;
        }
    }

    fn fan_out(&mut self, now: Now) {
        for _ in 0..limits::UNITS_PER_TURN_MAX {
            let wanted = self.sessions.len() > 0 && self.stopping_until.is_none();
            match self.source.take(now, wanted, &self.counters) {
                Polled::Unit => {
                    self.timing.packetised(self.source.timed(), now.monotonic_ns, wanted, &self.counters);
                    if wanted {
                        self.publish(now);
                    }
                }
                Polled::Again => {}
                Polled::Empty => return,
            }
        }
        if let Some(own) = self.peers.get(self.index) {
            own.wake();
        }
    }

    fn publish(&mut self, now: Now) {
        let unit = self.source.unit();
        let count = self.sessions.len();
        self.first = (self.first + 1) % count.max(1);
        for place in 0..count {
            let Some(slot) = self.sessions.at((self.first + place) % count) else { continue };
            push(&mut self.driver, slot, now, &unit);
            self.timing.encrypted(slot.viewer.id(), &mut slot.sends);
        }
    }

    /// After the live units: they come first.
    fn replay(&mut self, now: Now) {
        let (source, driver, counters) = (&mut self.source, &mut self.driver, &*self.counters);
        let mut replayer = ReplayTurn { source, driver, counters, now, is_idr_wanted: false };
        self.is_replaying = replayer.turn(&mut self.sessions, self.first);
        // Once for all viewers.
        if replayer.is_idr_wanted {
            self.camera.request_idr(now.monotonic_ns);
        }
    }

    fn take_deadlines(&mut self, now: Now) {
        for slot in self.sessions.iter_mut() {
            if slot.deadline <= now.instant + DEADLINE_SLACK {
                slot.viewer.handle_timeout(now.instant);
                slot.touched = true;
            }
        }
    }

    fn drain_touched(&mut self, now: Now) {
        for slot in self.sessions.iter_mut() {
            if std::mem::take(&mut slot.touched) {
                drain(&mut self.driver, slot, now.instant);
            }
        }
    }

    fn remove_closed(&mut self, now: Now) {
        let (counters, totals, index, peers) = (&self.counters, &mut self.totals, self.index, &self.peers);
        self.sessions.remove_closed(|slot| {
            counters.sessions_closed.add(1);
            totals.keep(&slot.viewer.status(now.instant));
            if index != 0
                && let Some(receiver) = peers.first()
            {
                // A route that stays behind only forwards datagrams nobody claims.
                let _ = receiver.send(Command::Forget { ufrag: slot.viewer.local_ufrag().to_owned() });
            }
        });
    }

    fn count(&mut self, now: Now) {
        self.counters.turns.add(1);
        if let Some(camera_wait) = &self.camera_wait {
            self.counters.busy_poll_ns.set_total(camera_wait.polled_ns());
        }
        count_datagrams(self.driver.counters(), &self.counters);
        self.totals.count(&mut self.sessions, now, &self.counters);
        self.timing.publish(now.monotonic_ns, &self.counters);
    }
}

fn find<'a>(
    sessions: &'a mut Registry,
    remote: SocketAddr,
    ufrag: Option<&str>,
) -> Option<&'a mut SessionSlot> {
    match ufrag {
        Some(ufrag) => sessions.by_ufrag(ufrag),
        None => sessions.by_address(remote),
    }
}

fn push(driver: &mut impl Driver, slot: &mut SessionSlot, now: Now, unit: &PacketizedUnit<'_>) {
    slot.viewer.note_congestion(driver.in_flight(slot.viewer.id()));
    slot.sends.skip();
    let SessionSlot { viewer, sends, .. } = slot;
    let viewer_id = viewer.id();
    viewer.push_access_unit(now.instant, unit, &mut ViewerSink { driver, viewer: viewer_id, sends });
    slot.deadline = slot.viewer.next_deadline();
    driver.flush();
}

/// Every mutation of a session is followed by this: all it wants sent goes to the driver.
pub(super) fn drain(driver: &mut impl Driver, slot: &mut SessionSlot, now: Instant) {
    let SessionSlot { viewer, sends, .. } = slot;
    let viewer_id = viewer.id();
    match viewer.drain(now, &mut ViewerSink { driver, viewer: viewer_id, sends }) {
        Output::Wait(deadline) => slot.deadline = deadline,
        Output::Closed(reason) => log::info!("viewer {viewer_id}: closed: {reason:?}"),
    }
    driver.flush();
}
