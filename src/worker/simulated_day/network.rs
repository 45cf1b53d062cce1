//! The network of a simulated day: what becomes of a datagram between server and browser, and the worker's edge
//! at its one end. Seeded: the same datagrams in the same order meet the same fate.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::random::Random;
use super::{MS, SECOND};
use crate::uring::{Completion, EdgeCounters, EdgeError, Received};
use crate::worker::wire::Wire;

/// A day is thinned: one datagram that waits in the kernel stands for so many of a real stream.
const STANDS_FOR: u32 = 64;

/// What a datagram takes on a narrow way, whatever its size: sizes differ by a byte from day to day.
const NARROW_NS: i64 = 5 * MS;

/// What a browser's way to the server is like.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Nothing is lost, everything stays in order.
    Clean,
    /// As clean, but now and then jammed: datagrams wait in the server's kernel.
    Narrow,
    /// Some loss, delays that change, so that datagrams overtake each other.
    Lossy,
    /// A lot of loss, at times all of it.
    Awful,
}

/// One browser's way.
pub(super) struct Link {
    pub(super) weather: Weather,
    delay_ns: i64,
    /// Narrow: the datagrams before have left by then. Awful: nothing comes through until then.
    busy_until_ns: i64,
}

impl Link {
    pub(super) fn new(weather: Weather, random: &mut Random) -> Link {
        Link { weather, delay_ns: (1 + random.below(60) as i64) * MS, busy_until_ns: 0 }
    }

    /// When a datagram from the server has left the kernel, and when it arrives, if it does.
    pub(super) fn downwards(&mut self, now_ns: i64, random: &mut Random) -> (i64, Option<i64>) {
        if self.weather != Weather::Narrow {
            return (now_ns, self.arrival(now_ns, random));
        }
        if random.below(2_000) == 0 {
            self.busy_until_ns = now_ns + (1 + random.below(20) as i64) * SECOND;
        }
        self.busy_until_ns = self.busy_until_ns.max(now_ns) + NARROW_NS;
        (self.busy_until_ns, Some(self.busy_until_ns + self.delay_ns))
    }

    /// When a datagram sent now arrives, if it does.
    pub(super) fn arrival(&mut self, now_ns: i64, random: &mut Random) -> Option<i64> {
        let (loss_percent, jitter_ms) = match self.weather {
            Weather::Clean | Weather::Narrow => return Some(now_ns + self.delay_ns),
            Weather::Lossy => (3.0, 8),
            Weather::Awful => (15.0, 60),
        };
        if self.weather == Weather::Awful && random.below(3_000) == 0 {
            self.busy_until_ns = now_ns + random.below(6_000) as i64 * MS;
        }
        let is_lost = random.chance(loss_percent) || now_ns < self.busy_until_ns;
        (!is_lost).then(|| now_ns + self.delay_ns + random.below(jitter_ms) as i64 * MS)
    }
}

/// Where something is due.
pub(super) enum Event {
    ToServer { from: SocketAddr, bytes: Vec<u8> },
    ToBrowser { viewer: u32, bytes: Vec<u8> },
    LeftKernel { viewer: u32 },
}

/// Everything on its way, in order of arrival.
#[derive(Default)]
pub(super) struct Calendar {
    due: BinaryHeap<Reverse<(i64, u64)>>,
    events: HashMap<u64, Event>,
    count: u64,
}

impl Calendar {
    pub(super) fn add(&mut self, at_ns: i64, event: Event) {
        self.count += 1;
        self.due.push(Reverse((at_ns, self.count)));
        self.events.insert(self.count, event);
    }

    pub(super) fn next_ns(&self) -> Option<i64> {
        self.due.peek().map(|Reverse((at_ns, _))| *at_ns)
    }

    pub(super) fn take(&mut self, now_ns: i64) -> Option<Event> {
        if self.next_ns()? > now_ns {
            return None;
        }
        let Reverse((_, number)) = self.due.pop()?;
        self.events.remove(&number)
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }
}

/// The worker's edge: takes datagrams, tells what is in flight.
#[derive(Default)]
pub(super) struct SimulatedWire {
    /// What the worker sent since the last look, by viewer.
    pub(super) outbox: Vec<(u32, SocketAddr, Vec<u8>)>,
    pub(super) completions: VecDeque<Completion>,
    in_flight: HashMap<u32, u32>,
    counters: EdgeCounters,
    /// How long the worker last wanted to sleep.
    pub(super) asked_to_wait: Duration,
}

impl SimulatedWire {
    /// A datagram has left the kernel: the worker is told with its next turn.
    pub(super) fn left(&mut self, viewer: u32) {
        self.completions.push_back(Completion::Sent { viewer, datagrams: 1, result: Ok(0) });
        if let Some(count) = self.in_flight.get_mut(&viewer) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&viewer);
            }
        }
    }
}

impl Wire for SimulatedWire {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), EdgeError> {
        self.asked_to_wait = timeout;
        Ok(())
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    fn datagram(&self, _: &Received) -> &[u8] {
        unreachable!("datagrams come through the mailbox")
    }

    fn recycle(&mut self, _: Received) {
        unreachable!("datagrams come through the mailbox")
    }

    fn send_with(
        &mut self,
        viewer: u32,
        _: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        self.counters.datagrams_sent += 1;
        self.counters.bytes_sent += bytes as u64;
        let mut datagram = super::heap::as_world(|| vec![0; bytes]);
        write(&mut datagram);
        super::heap::as_world(|| {
            *self.in_flight.entry(viewer).or_default() += 1;
            self.outbox.push((viewer, remote, datagram));
        });
    }

    fn flush(&mut self) {}

    fn counters(&self) -> &EdgeCounters {
        &self.counters
    }

    fn in_flight(&self, viewer: u32) -> u32 {
        self.in_flight.get(&viewer).map_or(0, |count| count * STANDS_FOR)
    }
}
