//! The server of a simulated day: its workers, one after another in one thread, each with the real turn and a wire of
//! the simulated network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::heap::as_server;
use super::network::SimulatedDriver;
use crate::base::clock::Now;
use crate::base::counters::Counter;
use crate::base::limits;
use crate::camera::Camera;
use crate::metrics::WorkerCounters;
use crate::session::Viewer;
use crate::worker::commands::{Command, Mailbox, mailbox};
use crate::worker::turn::{Seed, Worker};

/// Turns of all workers at one moment: more means that they never come to rest.
const TURNS_MAX: usize = 100;

pub(super) struct Server {
    workers: Vec<Worker<SimulatedDriver>>,
    mailboxes: Vec<Mailbox>,
    counters: Vec<Arc<WorkerCounters>>,
}

impl Server {
    pub(super) fn new(camera: &Camera, count: usize) -> Server {
        let (mailboxes, readers): (Vec<_>, Vec<_>) = (0..count).map(|_| mailbox().unwrap()).unzip();
        let counters: Vec<Arc<WorkerCounters>> = (0..count).map(|_| Arc::default()).collect();
        let seeds = readers.into_iter().zip(&counters).enumerate().map(|(index, (reader, counters))| Seed {
            index,
            camera: camera.clone(),
            peers: mailboxes.clone(),
            counters: Arc::clone(counters),
            reader,
            camera_wait: None,
        });
        let workers = seeds.map(|seed| as_server(|| Worker::new(seed, SimulatedDriver::default()))).collect();
        Server { workers, mailboxes, counters }
    }

    fn owner(&self, viewer: u32) -> usize {
        viewer as usize % self.workers.len()
    }

    /// As the backend does it.
    pub(super) fn adopt(&self, viewer: Viewer) {
        let worker = self.owner(viewer.id());
        let (receiver, mailbox) = (&self.mailboxes[0], &self.mailboxes[worker]);
        if worker != 0 {
            let ufrag = viewer.local_ufrag().to_owned();
            assert!(receiver.send(Command::Route { ufrag, worker }).is_ok());
        }
        assert!(mailbox.send(Command::Adopt { viewer: Box::new(viewer), guard: None }).is_ok());
    }

    /// A datagram came to the server's socket.
    pub(super) fn receive(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        self.workers[0].driver.receive(from, bytes);
    }

    /// Every worker turns until nobody has anything to do; says how long they want to sleep.
    pub(super) fn turn(&mut self, now: Now) -> Duration {
        for _ in 0..TURNS_MAX {
            for worker in &mut self.workers {
                take_ring(worker);
                as_server(|| {
                    worker.turn(now);
                    worker.submit(now).unwrap();
                });
            }
            if !self.workers.iter().any(|worker| is_rung(worker) || worker.driver.has_news()) {
                let waits = self.workers.iter().map(|worker| worker.driver.asked_to_wait);
                return waits.min().unwrap();
            }
        }
        panic!("the workers do not come to rest");
    }

    /// What was sent since the last look, by viewer.
    pub(super) fn take_outbox(&mut self) -> Vec<(u32, SocketAddr, Vec<u8>)> {
        self.workers.iter_mut().flat_map(|worker| std::mem::take(&mut worker.driver.outbox)).collect()
    }

    /// A datagram of this viewer has left the kernel.
    pub(super) fn left(&mut self, viewer: u32) {
        let owner = self.owner(viewer);
        self.workers[owner].driver.left(viewer);
    }

    pub(super) fn sessions(&self) -> usize {
        self.workers.iter().map(|worker| worker.sessions.len()).sum()
    }

    pub(super) fn viewer(&mut self, id: u32) -> Option<&mut Viewer> {
        let owner = self.owner(id);
        self.workers[owner].sessions.by_id(id).map(|entry| &mut entry.viewer)
    }

    /// A count of all workers.
    pub(super) fn count(&self, counter: impl Fn(&WorkerCounters) -> &Counter) -> u64 {
        self.counters.iter().map(|counters| counter(counters).get()).sum()
    }

    /// A jam is seen: what waits in the kernel for one viewer is bounded, by the gate, the unit that went past it and
    /// what is sent again.
    pub(super) fn check_in_flight(&self) -> Result<(), String> {
        let most = self.workers.iter().map(|worker| worker.driver.most_in_flight()).max();
        match most {
            Some(most) if most > 4 * limits::VIEWER_IN_FLIGHT_MAX => {
                Err(format!("{most} datagrams in flight"))
            }
            _ => Ok(()),
        }
    }

    /// Nothing may be known of sessions that are gone: each has one ufrag and at most one address.
    pub(super) fn check_tables(&self) -> Result<(), String> {
        let elsewhere: usize = self.workers.iter().skip(1).map(|worker| worker.sessions.len()).sum();
        let routes = self.workers[0].routes.counts();
        if routes != (elsewhere, elsewhere) {
            return Err(format!("{routes:?} routes to {elsewhere} sessions"));
        }
        for worker in &self.workers {
            let (sessions, known) = (worker.sessions.len(), worker.sessions.counts());
            if known != (sessions, sessions) {
                return Err(format!("{known:?} ways to {sessions} sessions"));
            }
        }
        Ok(())
    }
}

fn is_rung(worker: &Worker<SimulatedDriver>) -> bool {
    let eventfd = worker.reader.eventfd();
    let mut polled = [PollFd::new(&*eventfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
}

/// Empties the eventfd, as the driver does.
fn take_ring(worker: &Worker<SimulatedDriver>) {
    if is_rung(worker) {
        rustix::io::read(&*worker.reader.eventfd(), &mut [0; 8]).unwrap();
    }
}
