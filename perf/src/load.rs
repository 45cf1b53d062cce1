//! Runs all load viewers on one thread. While viewers connect, the thread waits with epoll and answers at once. During
//! the measurement, it polls every socket every few milliseconds at the lowest priority. The kernel takes the arrival
//! times, so late polling does not falsify them, and the server spends no time on waking this thread.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver as Inbox, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::Fallible;
use crate::clock::realtime_offset_ns;
use crate::socket::{Receiver, use_idle_priority};
use crate::viewer::Viewer;

/// Interval between two polls of all sockets during the measurement.
const POLL_INTERVAL: Duration = Duration::from_millis(8);
/// Maximum time in ms for which the thread waits for a datagram while viewers connect.
const CONNECTING_WAIT_MS: i64 = 5;
/// Interval between two readings of the clock offset.
const OFFSET_INTERVAL: Duration = Duration::from_millis(500);

enum Command {
    Add(Box<Viewer>),
    /// Starts polling. True also lowers the priority of the thread.
    Measure(bool),
    Finish,
}

/// Counters that the thread publishes while it runs.
#[derive(Default)]
pub(crate) struct Progress {
    /// Viewers whose handshake is complete.
    pub(crate) connected: AtomicUsize,
    /// Viewers that received a complete IDR unit.
    pub(crate) playing: AtomicUsize,
    /// Complete units of all viewers.
    pub(crate) units: AtomicU64,
    /// Id of the thread, with which its CPU time is read.
    pub(crate) thread: AtomicUsize,
}

/// Handle to the load thread.
pub(crate) struct Load {
    commands: Sender<Command>,
    pub(crate) progress: Arc<Progress>,
    thread: JoinHandle<Vec<Viewer>>,
}

impl Load {
    pub(crate) fn start(gro: bool) -> Fallible<Load> {
        let (commands, inbox) = channel();
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let epoll_fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let body = move || {
            let thread = Thread {
                inbox,
                progress: shared,
                viewers: Vec::new(),
                receiver: Receiver::new(gro),
                epoll_fd: Some(epoll_fd),
                offset_ns: realtime_offset_ns(),
                offset_due: Instant::now() + OFFSET_INTERVAL,
            };
            thread.run()
        };
        Ok(Load { commands, progress, thread: std::thread::Builder::new().name("load".into()).spawn(body)? })
    }

    pub(crate) fn add(&self, viewer: Viewer) {
        let _ = self.commands.send(Command::Add(Box::new(viewer)));
    }

    /// Switches the thread from epoll to polling. Late answers are harmless from now on, because no server waits for
    /// them. If `yielding` is true, the thread also lowers its priority.
    pub(crate) fn measure(&self, yielding: bool) {
        let _ = self.commands.send(Command::Measure(yielding));
    }

    /// Closes all sessions and returns the viewers with their statistics.
    pub(crate) fn finish(self) -> Fallible<Vec<Viewer>> {
        let _ = self.commands.send(Command::Finish);
        self.thread.join().map_err(|_| "the load thread panicked".into())
    }
}

struct Thread {
    inbox: Inbox<Command>,
    progress: Arc<Progress>,
    viewers: Vec<Viewer>,
    receiver: Receiver,
    /// The epoll descriptor; `None` during the measurement.
    epoll_fd: Option<OwnedFd>,
    offset_ns: i64,
    offset_due: Instant,
}

impl Thread {
    fn run(mut self) -> Vec<Viewer> {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        self.progress.thread.store(usize::try_from(id).unwrap_or(0), Ordering::Relaxed);
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Add(viewer)) => self.add(*viewer),
                Ok(Command::Measure(yielding)) => {
                    self.epoll_fd = None;
                    if let Err(error) = if yielding { use_idle_priority() } else { Ok(()) } {
                        eprintln!("perf: the load thread keeps its priority: {error}");
                    }
                }
                Ok(Command::Finish) | Err(TryRecvError::Disconnected) => return self.leave(),
                Err(TryRecvError::Empty) => {}
            }
            self.poll();
            self.publish_progress();
        }
    }

    fn add(&mut self, mut viewer: Viewer) {
        viewer.handle_timeout(Instant::now());
        if let Some(epoll_fd) = &self.epoll_fd {
            let data = epoll::EventData::new_u64(self.viewers.len() as u64);
            if let Err(error) = epoll::add(epoll_fd, &viewer.socket, data, epoll::EventFlags::IN) {
                eprintln!("perf: cannot add a viewer to epoll: {error}");
            }
        }
        self.viewers.push(viewer);
    }

    fn poll(&mut self) {
        let now = Instant::now();
        if now >= self.offset_due {
            self.offset_due = now + OFFSET_INTERVAL;
            self.offset_ns = realtime_offset_ns();
        }
        let Some(epoll_fd) = &self.epoll_fd else {
            std::thread::sleep(POLL_INTERVAL);
            for index in 0..self.viewers.len() {
                self.receive(index);
            }
            return self.tick();
        };
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 64];
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: CONNECTING_WAIT_MS * 1_000_000 };
        let ready: Vec<usize> = match epoll::wait(epoll_fd, &mut events, Some(&wait)) {
            Ok((events, _)) => events.iter().map(|event| event.data.u64() as usize).collect(),
            Err(_) => Vec::new(),
        };
        for index in ready {
            self.receive(index);
        }
        self.tick();
    }

    fn receive(&mut self, index: usize) {
        let Some(viewer) = self.viewers.get_mut(index) else { return };
        loop {
            let count = self.receiver.receive(viewer.socket.as_fd()).unwrap_or(0);
            for place in 0..count {
                viewer.handle_datagram(&self.receiver.datagram(place), self.offset_ns);
            }
            if count < Receiver::BATCH {
                return;
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.viewers
            .iter_mut()
            .filter(|viewer| viewer.due <= now)
            .for_each(|viewer| viewer.handle_timeout(now));
    }

    fn publish_progress(&self) {
        let playing = self.viewers.iter().filter(|viewer| viewer.received.first_idr_at_ns.is_some()).count();
        let connected = self.viewers.iter().filter(|viewer| viewer.profile.is_some()).count();
        let units: usize = self.viewers.iter().map(|viewer| viewer.received.samples.len()).sum();
        self.progress.connected.store(connected, Ordering::Relaxed);
        self.progress.playing.store(playing, Ordering::Relaxed);
        self.progress.units.store(units as u64, Ordering::Relaxed);
    }

    fn leave(mut self) -> Vec<Viewer> {
        for index in 0..self.viewers.len() {
            self.receive(index);
        }
        self.viewers.iter_mut().for_each(Viewer::leave);
        self.viewers
    }
}
