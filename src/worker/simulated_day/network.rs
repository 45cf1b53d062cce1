//! The network of a simulated day: what becomes of a datagram between server and browser, and the worker's driver
//! at its one end. Seeded: see `Link`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{MS, SECOND};
use crate::uring::{Completion, Driver, FutexWord, Received, UdpCounters, UdpDriverError};
use support::random::Random;

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

/// One browser's way. What becomes of a datagram depends on the seed, the viewer, the direction, the millisecond and
/// its place among those of that millisecond, and on nothing else: one datagram more does not change the others' fate.
pub(super) struct Link {
    pub(super) weather: Weather,
    seed: u64,
    /// When the day began.
    start_ns: i64,
    delay_ns: i64,
    /// Narrow: the datagrams before have left by then. Awful: nothing comes through until then.
    busy_until_ns: i64,
    /// Downwards and upwards: the newest moment, and datagrams in it so far.
    places: [(i64, u64); 2],
}

impl Link {
    pub(super) fn new(weather: Weather, (seed, start_ns): (u64, i64), viewer: u32) -> Link {
        let mut random = Random::new(seed ^ u64::from(viewer) << 32);
        let seed = random.next();
        let delay_ns = (1 + random.below(60) as i64) * MS;
        Link { weather, seed, start_ns, delay_ns, busy_until_ns: 0, places: [(0, 0); 2] }
    }

    /// What is drawn for the next datagram of this direction.
    fn fate(&mut self, direction: usize, now_ns: i64) -> Random {
        let place = &mut self.places[direction];
        *place = if place.0 == now_ns { (now_ns, place.1 + 1) } else { (now_ns, 0) };
        let since_start_ns = now_ns - self.start_ns;
        let moment =
            Random::new(since_start_ns.cast_unsigned()).next().wrapping_add(place.1 << 1 | direction as u64);
        Random::new(self.seed ^ Random::new(moment).next())
    }

    /// When a datagram from the server has left the kernel, and when it arrives, if it does.
    pub(super) fn downwards(&mut self, now_ns: i64) -> (i64, Option<i64>) {
        let mut random = self.fate(0, now_ns);
        if self.weather != Weather::Narrow {
            return (now_ns, self.arrival(now_ns, &mut random));
        }
        if random.below(2_000) == 0 {
            // Never sooner than a jam before it: what waits would be overtaken.
            self.busy_until_ns = self.busy_until_ns.max(now_ns + (1 + random.below(20) as i64) * SECOND);
        }
        self.busy_until_ns = self.busy_until_ns.max(now_ns) + NARROW_NS;
        (self.busy_until_ns, Some(self.busy_until_ns + self.delay_ns))
    }

    /// When a datagram from the browser arrives, if it does.
    pub(super) fn upwards(&mut self, now_ns: i64) -> Option<i64> {
        let mut random = self.fate(1, now_ns);
        self.arrival(now_ns, &mut random)
    }

    fn arrival(&mut self, now_ns: i64, random: &mut Random) -> Option<i64> {
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

/// The worker's driver: takes datagrams, tells what is in flight.
#[derive(Default)]
pub(super) struct SimulatedDriver {
    /// What the worker sent since the last look, by viewer.
    pub(super) outbox: Vec<(u32, SocketAddr, Vec<u8>)>,
    completions: VecDeque<Completion>,
    /// Datagrams that came in, and the one that is being looked at.
    arrived: VecDeque<(SocketAddr, Vec<u8>)>,
    looked_at: Option<Vec<u8>>,
    in_flight: HashMap<u32, u32>,
    counters: UdpCounters,
    /// How long the worker last wanted to sleep.
    pub(super) last_timeout: Duration,
}

impl SimulatedDriver {
    /// A datagram has come in.
    pub(super) fn receive(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        self.arrived.push_back((from, bytes));
    }

    /// Datagrams in flight for the viewer that has the most.
    pub(super) fn most_in_flight(&self) -> u32 {
        self.in_flight.values().map(|count| count * STANDS_FOR).max().unwrap_or(0)
    }

    /// Whether the next look at it gives something.
    pub(super) fn has_completions(&self) -> bool {
        !self.completions.is_empty() || !self.arrived.is_empty()
    }

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

impl Driver for SimulatedDriver {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), UdpDriverError> {
        self.last_timeout = timeout;
        Ok(())
    }

    fn next_completion(&mut self) -> Option<Completion> {
        assert!(self.looked_at.is_none(), "a receive buffer was not given back");
        if let Some(completion) = self.completions.pop_front() {
            return Some(completion);
        }
        let (from, bytes) = self.arrived.pop_front()?;
        self.looked_at = Some(bytes);
        Some(Completion::Datagram(Received::simulated(from, super::browser::server_address().ip())))
    }

    fn datagram(&self, _: &Received) -> &[u8] {
        self.looked_at.as_deref().unwrap()
    }

    fn recycle(&mut self, _: Received) {
        let bytes = self.looked_at.take().unwrap();
        super::heap::as_world(|| drop(bytes));
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

    fn counters(&self) -> &UdpCounters {
        &self.counters
    }

    fn in_flight(&self, viewer: u32) -> u32 {
        self.in_flight.get(&viewer).map_or(0, |count| count * STANDS_FOR)
    }

    fn set_futex_wait(&mut self, _: Option<(&FutexWord, u32)>) {}
}
