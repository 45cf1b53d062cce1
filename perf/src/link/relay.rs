//! The thread that is the link: it takes IP packets from one TUN device, holds them as the model says, and writes them
//! to the other device. It keeps a log entry for every packet.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::model::{Cause, Link, Outcome, Shape};
use super::network::is_inside;
use super::packet::{self, Kind};
use crate::Fallible;
use crate::clock::monotonic_ns;
use crate::socket::use_real_time_priority;

const PACKET_BYTES_MAX: usize = 2_048;
/// Entries of the log that need no new memory. Moving a long log would delay packets.
const LOG_ENTRIES: usize = 1 << 20;
/// Packets taken from one device before due packets are delivered.
const BATCH: usize = 32;
/// Longest time for which the thread waits, in ns. It looks at `stop` and `start` that often.
const PATIENCE_NS: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the server to the viewer.
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Travelling,
    Delivered,
    Discarded(Cause),
}

/// Log entry of one packet. Times are CLOCK_MONOTONIC ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) at_ns: u64,
    pub(crate) direction: Direction,
    pub(crate) kind: Kind,
    pub(crate) bytes: usize,
    /// Bytes in the queue after this packet was given to the link.
    pub(crate) queued_bytes: usize,
    pub(crate) fate: Fate,
    /// Time at which the model delivers or loses the packet.
    pub(crate) out_ns: u64,
    /// Time by which the relay did so too late, because its thread did not run.
    pub(crate) late_ns: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    start: AtomicBool,
    /// Time at which the schedule started, or 0.
    started_ns: AtomicU64,
    log: Mutex<Vec<Entry>>,
}

/// A running relay. Dropping it stops the thread.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Held {
    bytes: Vec<u8>,
    /// Index of the log entry.
    entry: usize,
}

/// One direction: packets come from `from`, pass the link and go to `to`.
struct Path {
    direction: Direction,
    from: File,
    to: File,
    link: Link<Held>,
    blocks: Vec<Block>,
}

/// A protocol that the network drops from a time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) protocol: Protocol,
    /// Time since the start of the schedule, in ns. 0 means always.
    pub(crate) from_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    /// TCP except this port, which is that of the page.
    TcpExcept(u16),
}

impl Block {
    fn holds(&self, kind: Kind, now_ns: u64, started_ns: u64) -> bool {
        let has_begun = self.from_ns == 0 || (started_ns != 0 && now_ns >= started_ns + self.from_ns);
        has_begun
            && match (self.protocol, kind) {
                (Protocol::Udp, kind) => kind.is_udp(),
                (Protocol::TcpExcept(page), Kind::Tcp(ports)) => !ports.contains(&page),
                _ => false,
            }
    }
}

impl Relay {
    /// Starts a relay between the devices of server and viewer. Both directions have the same shape.
    pub(crate) fn start(
        server: &File,
        viewer: &File,
        shape: &Shape,
        blocks: &[Block],
        seed: u64,
    ) -> Fallible<Relay> {
        let path = |direction, from: &File, to: &File, seed| -> std::io::Result<Path> {
            let link = Link::new(shape.clone(), seed);
            let blocks = blocks.to_vec();
            Ok(Path { direction, from: from.try_clone()?, to: to.try_clone()?, link, blocks })
        };
        let paths = [
            path(Direction::Down, server, viewer, seed)?,
            path(Direction::Up, viewer, server, seed ^ 0x5EED)?,
        ];
        let log = Mutex::new(Vec::with_capacity(LOG_ENTRIES));
        let shared = Arc::new(Shared { log, ..Shared::default() });
        let theirs = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("link".to_owned()).spawn(move || run(paths, &theirs))?;
        Ok(Relay { shared, thread: Some(thread) })
    }

    /// Starts the schedule of rates and outages.
    pub(crate) fn start_schedule(&self) {
        self.shared.start.store(true, Ordering::Release);
    }

    /// Returns the time at which the schedule started; `None` before.
    pub(crate) fn started_ns(&self) -> Option<u64> {
        Some(self.shared.started_ns.load(Ordering::Acquire)).filter(|ns| *ns != 0)
    }

    /// Returns a copy of the log. The newest packets may still be travelling.
    pub(crate) fn log(&self) -> Vec<Entry> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut paths: [Path; 2], shared: &Shared) {
    let _ = use_real_time_priority();
    let mut has_started = false;
    while !shared.stop.load(Ordering::Acquire) {
        if !has_started && shared.start.load(Ordering::Acquire) {
            has_started = true;
            let now_ns = now();
            paths.iter_mut().for_each(|path| path.link.start(now_ns));
            shared.started_ns.store(now_ns, Ordering::Release);
        }
        let [down, up] = &mut paths;
        let are_exhausted = [down.turn(shared), up.turn(shared)];
        if are_exhausted == [true, true] {
            wait(&paths);
        }
    }
}

fn now() -> u64 {
    u64::try_from(monotonic_ns()).unwrap_or_default()
}

/// Waits until a device has a packet or a packet of the link is due.
fn wait(paths: &[Path; 2]) {
    let due_ns = paths.iter().filter_map(|path| path.link.next_at_ns()).min().unwrap_or(u64::MAX);
    let left_ns = due_ns.saturating_sub(now()).min(PATIENCE_NS);
    let timeout = Timespec { tv_sec: 0, tv_nsec: left_ns.cast_signed() };
    let mut files = [PollFd::new(&paths[0].from, PollFlags::IN), PollFd::new(&paths[1].from, PollFlags::IN)];
    let _ = poll(&mut files, Some(&timeout));
}

impl Path {
    /// Takes packets from the device and delivers due ones. Returns true if the device has no further packet.
    fn turn(&mut self, shared: &Shared) -> bool {
        let started_ns = shared.started_ns.load(Ordering::Acquire);
        let mut log = shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; PACKET_BYTES_MAX];
        let mut is_exhausted = false;
        for _ in 0..BATCH {
            let Ok(count) = self.from.read(&mut buffer) else {
                is_exhausted = true;
                break;
            };
            self.take(&buffer[..count], started_ns, &mut log);
        }
        let now_ns = now();
        while let Some((due_ns, outcome)) = self.link.pop(now_ns) {
            let (held, fate) = match outcome {
                Outcome::Arrived(held) => {
                    let _ = self.to.write(&held.bytes);
                    (held, Fate::Delivered)
                }
                Outcome::Discarded(held, cause) => (held, Fate::Discarded(cause)),
            };
            log[held.entry].fate = fate;
            log[held.entry].out_ns = due_ns;
            log[held.entry].late_ns = now_ns - due_ns;
        }
        is_exhausted
    }

    /// Gives a packet to the link. Packets from or to other networks are discarded.
    fn take(&mut self, bytes: &[u8], started_ns: u64, log: &mut Vec<Entry>) {
        let Some((to, kind)) = packet::parse(bytes) else { return };
        if !is_inside(to) {
            return;
        }
        let at_ns = now();
        let held = Held { bytes: bytes.to_vec(), entry: log.len() };
        let refused = if self.blocks.iter().any(|block| block.holds(kind, at_ns, started_ns)) {
            Some((held, Cause::Blocked))
        } else {
            self.link.push(at_ns, bytes.len(), held).err()
        };
        log.push(Entry {
            at_ns,
            direction: self.direction,
            kind,
            bytes: bytes.len(),
            queued_bytes: self.link.queued_bytes(),
            fate: refused.map_or(Fate::Travelling, |(_, cause)| Fate::Discarded(cause)),
            out_ns: at_ns,
            late_ns: 0,
        });
    }
}
