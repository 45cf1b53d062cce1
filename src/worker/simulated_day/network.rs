//! The network of a simulated day: loss and delay of datagrams between server and browser, and the driver that connects
//! a worker to it. The seed of the day decides what is lost or delayed: see [`Link`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::{MS, SECOND};
use crate::uring::{Completion, Connections, Driver, FutexWord, Received, UdpCounters, UdpDriverError};
use support::random::Random;

/// Number of real datagrams that one simulated datagram in the kernel counts as, because a simulated stream has few
/// datagrams.
const STANDS_FOR: u32 = 64;

/// Time that a datagram takes on a narrow link. It does not depend on the datagram's size, which differs by a byte from
/// day to day.
const NARROW_NS: i64 = 5 * MS;

/// Time that a datagram takes on a slow link, and the time for which its queue holds datagrams. A burst of more is
/// lost: IDRs must be paced.
const SLOW_NS: i64 = 8 * MS;
const SLOW_QUEUE_NS: i64 = 5 * SLOW_NS;

/// Quality of a browser's link.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// No loss, no reordering.
    Clean,
    /// Like `Clean`, but congested at times: datagrams then wait in the server's kernel.
    Narrow,
    /// Slower than a burst, with a short queue.
    Slow,
    /// Some loss, and jitter that reorders datagrams.
    Lossy,
    /// Heavy loss, and outages.
    Awful,
}

impl Weather {
    /// Returns true if datagrams may be lost.
    pub(super) fn loses(self) -> bool {
        matches!(self, Weather::Slow | Weather::Lossy | Weather::Awful)
    }
}

/// One browser's link. The fate of a datagram depends only on the seed, the viewer, the direction, the millisecond and
/// its place in that millisecond. An additional datagram therefore does not change the fate of datagrams at other
/// times.
pub(super) struct Link {
    pub(super) weather: Weather,
    seed: u64,
    /// Time at which the day began.
    start_ns: i64,
    delay_ns: i64,
    /// On a narrow or slow link, the time when all earlier datagrams have left. On an awful link, the end of the
    /// outage.
    busy_until_ns: i64,
    /// For each direction (0 down, 1 up), the newest millisecond with a datagram, and the place of the newest datagram
    /// in it.
    places: [(i64, u64); 2],
}

impl Link {
    pub(super) fn new(weather: Weather, (seed, start_ns): (u64, i64), viewer: u32) -> Link {
        let mut random = Random::new(seed ^ u64::from(viewer) << 32);
        let seed = random.next_u64();
        let delay_ns = (1 + random.below(60) as i64) * MS;
        Link { weather, seed, start_ns, delay_ns, busy_until_ns: 0, places: [(0, 0); 2] }
    }

    /// Returns the random numbers of the next datagram in this direction.
    fn fate(&mut self, direction: usize, now_ns: i64) -> Random {
        let place = &mut self.places[direction];
        *place = if place.0 == now_ns { (now_ns, place.1 + 1) } else { (now_ns, 0) };
        let since_start_ns = now_ns - self.start_ns;
        let moment = Random::new(since_start_ns.cast_unsigned())
            .next_u64()
            .wrapping_add(place.1 << 1 | direction as u64);
        Random::new(self.seed ^ Random::new(moment).next_u64())
    }

    /// Returns when a datagram from the server leaves the kernel, and when it arrives unless it is lost.
    pub(super) fn downwards(&mut self, now_ns: i64) -> (i64, Option<i64>) {
        let mut random = self.fate(0, now_ns);
        if self.weather == Weather::Slow {
            return self.slowly(now_ns);
        }
        if self.weather != Weather::Narrow {
            return (now_ns, self.arrival(now_ns, &mut random));
        }
        if random.below(2_000) == 0 {
            // A new congestion never ends before an earlier one: new datagrams would then overtake the waiting ones.
            self.busy_until_ns = self.busy_until_ns.max(now_ns + (1 + random.below(20) as i64) * SECOND);
        }
        self.busy_until_ns = self.busy_until_ns.max(now_ns) + NARROW_NS;
        (self.busy_until_ns, Some(self.busy_until_ns + self.delay_ns))
    }

    /// Returns the same for a slow link, which drops datagrams when its queue is full.
    fn slowly(&mut self, now_ns: i64) -> (i64, Option<i64>) {
        if self.busy_until_ns - now_ns > SLOW_QUEUE_NS {
            return (now_ns, None);
        }
        self.busy_until_ns = self.busy_until_ns.max(now_ns) + SLOW_NS;
        (now_ns, Some(self.busy_until_ns + self.delay_ns))
    }

    /// Returns when a datagram from the browser arrives, unless it is lost.
    pub(super) fn upwards(&mut self, now_ns: i64) -> Option<i64> {
        let mut random = self.fate(1, now_ns);
        self.arrival(now_ns, &mut random)
    }

    fn arrival(&mut self, now_ns: i64, random: &mut Random) -> Option<i64> {
        let (loss_percent, jitter_ms) = match self.weather {
            Weather::Clean | Weather::Narrow | Weather::Slow => return Some(now_ns + self.delay_ns),
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

/// Event that happens at a later time.
pub(super) enum Event {
    ToServer { from: SocketAddr, bytes: Vec<u8> },
    ToBrowser { viewer: u32, bytes: Vec<u8> },
    LeftKernel { viewer: u32 },
}

/// Future events in order of time.
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

/// The worker's driver on the simulated network.
#[derive(Default)]
pub(super) struct SimulatedDriver {
    /// Datagrams that the worker has sent since the outbox was last taken, with their viewers and targets.
    pub(super) outbox: Vec<(u32, SocketAddr, Vec<u8>)>,
    completions: VecDeque<Completion>,
    /// Received datagrams that the worker has not read yet.
    arrived: VecDeque<(SocketAddr, Vec<u8>)>,
    /// The received datagram that the worker is reading.
    current: Option<Vec<u8>>,
    in_flight: HashMap<u32, u32>,
    counters: UdpCounters,
    /// Timeout of the worker's last wait.
    pub(super) last_timeout: Duration,
}

impl SimulatedDriver {
    /// Adds a received datagram.
    pub(super) fn receive(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        self.arrived.push_back((from, bytes));
    }

    /// Returns how many datagrams are in flight for the viewer that has the most.
    pub(super) fn most_in_flight(&self) -> u32 {
        self.in_flight.values().map(|count| count * STANDS_FOR).max().unwrap_or(0)
    }

    /// Returns true if a completion is waiting.
    pub(super) fn has_completions(&self) -> bool {
        !self.completions.is_empty() || !self.arrived.is_empty()
    }

    /// Records that a datagram has left the kernel. The worker gets the completion in its next turn.
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
        assert!(self.current.is_none(), "a receive buffer was not given back");
        if let Some(completion) = self.completions.pop_front() {
            return Some(completion);
        }
        let (from, bytes) = self.arrived.pop_front()?;
        self.current = Some(bytes);
        Some(Completion::Datagram(Received::simulated(from, super::browser::server_address().ip())))
    }

    fn datagram(&self, _: &Received) -> &[u8] {
        self.current.as_deref().unwrap()
    }

    fn recycle(&mut self, _: Received) {
        let bytes = self.current.take().unwrap();
        super::heap::as_world(|| drop(bytes));
    }

    fn connections(&mut self) -> Option<&mut Connections> {
        None
    }

    fn send_over(
        &mut self,
        _: Option<NonZeroU32>,
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
