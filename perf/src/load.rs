//! All load viewers on one thread. While viewers connect it waits with epoll and answers at once; while measuring
//! it looks at every socket each few milliseconds and yields to everybody: arrival times are the kernel's, so
//! being late costs nothing, and the server is not charged for waking us.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver as Inbox, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::Fallible;
use crate::clock::realtime_offset_ns;
use crate::socket::{Receiver, yield_to_others};
use crate::viewer::Viewer;

/// Between two looks at all sockets while measuring.
const NAP: Duration = Duration::from_millis(8);
/// Longest wait for a datagram while connecting.
const CONNECTING_WAIT_MS: i64 = 5;
/// Between two samplings of the clocks' offset.
const OFFSET_INTERVAL: Duration = Duration::from_millis(500);

enum Command {
    Add(Box<Viewer>),
    /// Yielding to everybody, or not.
    Measure(bool),
    Finish,
}

/// What the thread tells while it runs.
#[derive(Default)]
pub(crate) struct Progress {
    /// Viewers that have shaken hands.
    pub(crate) connected: AtomicUsize,
    /// Viewers that got a whole IDR unit.
    pub(crate) playing: AtomicUsize,
    /// Whole units of all viewers.
    pub(crate) units: AtomicU64,
    /// The thread's id, for its CPU time.
    pub(crate) thread: AtomicUsize,
}

/// Handle to the thread.
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
        let ring = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let body = move || {
            let thread = Thread {
                inbox,
                progress: shared,
                viewers: Vec::new(),
                receiver: Receiver::new(gro),
                ring: Some(ring),
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

    /// From now on nobody waits for our answers.
    pub(crate) fn measure(&self, yielding: bool) {
        let _ = self.commands.send(Command::Measure(yielding));
    }

    /// Says goodbye and hands all viewers with their books back.
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
    /// Only while connecting.
    ring: Option<OwnedFd>,
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
                    self.ring = None;
                    if let Err(error) = if yielding { yield_to_others() } else { Ok(()) } {
                        eprintln!("perf: the load thread keeps its priority: {error}");
                    }
                }
                Ok(Command::Finish) | Err(TryRecvError::Disconnected) => return self.leave(),
                Err(TryRecvError::Empty) => {}
            }
            self.look();
            self.tell();
        }
    }

    fn add(&mut self, mut viewer: Viewer) {
        viewer.handle_timeout(Instant::now());
        if let Some(ring) = &self.ring {
            let data = epoll::EventData::new_u64(self.viewers.len() as u64);
            if let Err(error) = epoll::add(ring, &viewer.socket, data, epoll::EventFlags::IN) {
                eprintln!("perf: a viewer cannot be waited for: {error}");
            }
        }
        self.viewers.push(viewer);
    }

    fn look(&mut self) {
        let now = Instant::now();
        if now >= self.offset_due {
            self.offset_due = now + OFFSET_INTERVAL;
            self.offset_ns = realtime_offset_ns();
        }
        let Some(ring) = &self.ring else {
            std::thread::sleep(NAP);
            for index in 0..self.viewers.len() {
                self.receive(index);
            }
            return self.tick();
        };
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 64];
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: CONNECTING_WAIT_MS * 1_000_000 };
        let ready: Vec<usize> = match epoll::wait(ring, &mut events, Some(&wait)) {
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
                viewer.take(&self.receiver.datagram(place), self.offset_ns);
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

    fn tell(&self) {
        let playing = self.viewers.iter().filter(|viewer| viewer.books.first_idr_at_ns.is_some()).count();
        let connected = self.viewers.iter().filter(|viewer| viewer.profile.is_some()).count();
        let units: usize = self.viewers.iter().map(|viewer| viewer.books.samples.len()).sum();
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
