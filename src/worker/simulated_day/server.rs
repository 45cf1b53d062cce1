//! The server of a simulated day. All its workers run in one thread, each with the real turn and with a driver of the
//! simulated network.

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
use crate::worker::commands::{Mailbox, SessionPlace, hand_over, mailbox, session_guard};
use crate::worker::turn::{Seed, Worker};

/// Most turns of each worker at one moment. If there are more, the workers wake each other forever.
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

    /// Gives a new session to its worker, as the backend does. Returns the place that the session holds.
    pub(super) fn adopt(&self, viewer: Viewer) -> SessionPlace {
        let owner = self.owner(viewer.id());
        let (guard, _) = session_guard();
        let place = guard.place();
        assert_eq!(hand_over(&self.mailboxes, owner, Box::new(viewer), Some(guard)), Ok(()));
        place
    }

    /// Delivers a datagram to the server's socket.
    pub(super) fn receive(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        self.workers[0].driver_mut().receive(from, bytes);
    }

    /// Runs turns of all workers until none has work left. Returns the shortest wait that a worker asked for.
    pub(super) fn turn(&mut self, now: Now) -> Duration {
        for _ in 0..TURNS_MAX {
            for worker in &mut self.workers {
                clear_wakeup(worker);
                as_server(|| {
                    worker.turn(now);
                    worker.submit(now).unwrap();
                });
            }
            if !self.workers.iter().any(|worker| is_woken(worker) || worker.driver().has_completions()) {
                let waits = self.workers.iter().map(|worker| worker.driver().last_timeout);
                return waits.min().unwrap();
            }
        }
        panic!("the workers still have work after {TURNS_MAX} turns");
    }

    /// Returns the datagrams that were sent since the last call, each with its viewer and its target.
    pub(super) fn take_outbox(&mut self) -> Vec<(u32, SocketAddr, Vec<u8>)> {
        self.workers.iter_mut().flat_map(|worker| std::mem::take(&mut worker.driver_mut().outbox)).collect()
    }

    /// Records that one datagram of this viewer has left the kernel.
    pub(super) fn left(&mut self, viewer: u32) {
        let owner = self.owner(viewer);
        self.workers[owner].driver_mut().left(viewer);
    }

    pub(super) fn sessions(&self) -> usize {
        self.workers.iter().map(|worker| worker.sessions().slots.len()).sum()
    }

    pub(super) fn viewer(&mut self, id: u32) -> Option<&mut Viewer> {
        let owner = self.owner(id);
        self.workers[owner].session(id).map(|slot| &mut slot.viewer)
    }

    /// Returns the sum of a counter over all workers.
    pub(super) fn count(&self, counter: impl Fn(&WorkerCounters) -> &Counter) -> u64 {
        self.counters.iter().map(|counters| counter(counters).get()).sum()
    }

    /// Checks that the number of datagrams that wait in the kernel for one viewer is bounded. The bound covers the
    /// limit of the gate, the last unit that passed the gate, and retransmissions.
    pub(super) fn check_in_flight(&self) -> Result<(), String> {
        let most = self.workers.iter().map(|worker| worker.driver().most_in_flight()).max();
        match most {
            Some(most) if most > 4 * limits::VIEWER_IN_FLIGHT_MAX => {
                Err(format!("{most} datagrams in flight"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the tables hold only live sessions: one ufrag and at most one address for each.
    pub(super) fn check_tables(&self) -> Result<(), String> {
        let elsewhere: usize = self.workers.iter().skip(1).map(|worker| worker.sessions().slots.len()).sum();
        let routes = self.workers[0].routes().counts();
        if routes != (elsewhere, elsewhere) {
            return Err(format!("{routes:?} routes to {elsewhere} sessions"));
        }
        for worker in &self.workers {
            let (sessions, known) = (worker.sessions().slots.len(), worker.sessions().counts());
            if known != (sessions, sessions) {
                return Err(format!("{known:?} ufrags and addresses for {sessions} sessions"));
            }
        }
        Ok(())
    }
}

fn is_woken(worker: &Worker<SimulatedDriver>) -> bool {
    let eventfd = worker.reader().eventfd();
    let mut polled = [PollFd::new(&*eventfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap() == 1
}

/// Clears the worker's wake-up by reading the eventfd, as the real driver does.
fn clear_wakeup(worker: &Worker<SimulatedDriver>) {
    if is_woken(worker) {
        rustix::io::read(&*worker.reader().eventfd(), &mut [0; 8]).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::super::browser::{Browser, Manners, server_address};
    use super::super::network::{Link, Weather};
    use super::*;
    use crate::base::clock;
    use crate::session::{SessionConfig, SessionContext, SrtpChoice};
    use crate::worker::commands::{Command, MailboxFull};

    fn viewer(id: u32) -> Box<Viewer> {
        let now = clock::now();
        let config =
            SessionConfig { candidates: vec![server_address()], advertise: vec![], srtp: SrtpChoice::Gcm };
        let link = Link::new(Weather::Clean, (1, 0), id);
        let (_, offer) = Browser::new(id, Manners::Polite, link, (now.instant, now.monotonic_ns));
        let context = SessionContext::new(config).unwrap();
        let (viewer, _) = Viewer::accept(&context, id, &offer, now.instant).unwrap();
        Box::new(viewer)
    }

    #[test]
    fn session_of_another_worker_gets_a_route() {
        let (mailboxes, readers): (Vec<_>, Vec<_>) = (0..2).map(|_| mailbox().unwrap()).unzip();
        let session = viewer(1);
        let expected = session.local_ufrag().to_owned();
        assert_eq!(hand_over(&mailboxes, 1, session, None), Ok(()));
        let route = readers[0].commands.try_recv();
        assert!(matches!(route, Ok(Command::Route { ufrag, worker: 1 }) if ufrag == expected));
        assert!(readers[0].commands.try_recv().is_err());
        assert!(matches!(readers[1].commands.try_recv(), Ok(Command::Adopt { .. })));
    }

    #[test]
    fn route_is_removed_when_the_owner_cannot_adopt_the_session() {
        let (mailboxes, readers): (Vec<_>, Vec<_>) = (0..2).map(|_| mailbox().unwrap()).unzip();
        while mailboxes[1].send(Command::Stop).is_ok() {}
        let session = viewer(2);
        let expected = session.local_ufrag().to_owned();
        assert_eq!(hand_over(&mailboxes, 1, session, None), Err(MailboxFull));
        assert!(matches!(readers[0].commands.try_recv(), Ok(Command::Route { .. })));
        let forget = readers[0].commands.try_recv();
        assert!(matches!(forget, Ok(Command::Forget { ufrag }) if ufrag == expected));
    }

    #[test]
    fn route_is_removed_later_when_the_mailbox_of_its_worker_is_full_too() {
        let (now, camera) = (clock::now(), Camera::new("/ss-test-no-camera", crate::camera::Wake::Poll));
        let mut server = Server::new(&camera, 2);
        while server.mailboxes[1].send(Command::Statuses(tokio::sync::oneshot::channel().0)).is_ok() {}
        // The mailbox of worker 0 has room for one more command, which will be the route.
        for _ in 1..limits::COMMANDS_MAX {
            let unrelated = Command::Forget { ufrag: "unrelated".to_owned() };
            assert!(server.mailboxes[0].send(unrelated).is_ok());
        }
        assert_eq!(hand_over(&server.mailboxes, 1, viewer(3), None), Err(MailboxFull));
        assert!(server.mailboxes[0].send(Command::Stop).is_err(), "full");
        server.turn(now);
        assert_eq!(server.workers[0].routes().counts(), (0, 0));
    }
}
