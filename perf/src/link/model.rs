//! The model of one direction of a link, in virtual time. It has no clock and no I/O.
//!
//! ```text
//!  push ──► [outage?] ──► queue of `queue_bytes` ──► transmitter at the current rate ──► [loss?] ──► delay + jitter ──► pop
//! ```
//!
//! A packet that does not fit into the queue is dropped (drop-tail). The packet that is being transmitted counts as
//! queued until its last bit has left. Jitter never reorders packets. A lost packet has used the transmitter.

use std::collections::VecDeque;

const NS_PER_S: u128 = 1_000_000_000;

/// One rate of the link, from a time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    /// Time since the start of the schedule, in ns. The first phase begins at 0, and also holds before the start.
    pub(crate) from_ns: u64,
    /// Bits per second; `None` if the link transmits in no time.
    pub(crate) bits_per_s: Option<u64>,
}

/// A time in which every packet is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outage {
    /// Times since the start of the schedule, in ns.
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

/// Properties of one direction of a link.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// In the order of time, at least one.
    pub(crate) phases: Vec<Phase>,
    pub(crate) queue_bytes: usize,
    pub(crate) delay_ns: u64,
    /// Maximum of an additional random delay, in ns.
    pub(crate) jitter_ns: u64,
    /// Share of the packets that are lost at random, from 0 to below 1.
    pub(crate) loss: f64,
    /// Mean number of packets in a run of lost packets. With 1 or less, each packet is lost independently.
    pub(crate) loss_run: f64,
    pub(crate) outages: Vec<Outage>,
}

/// Reason for which a packet did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    QueueFull,
    Loss,
    Outage,
    /// The network does not let this protocol through.
    Blocked,
}

/// What became of a packet, and when.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    Arrived(T),
    Discarded(T, Cause),
}

struct Waiting<T> {
    item: T,
    bytes: usize,
    arrived_ns: u64,
}

/// One direction of a link. `T` is the packet.
pub(crate) struct Link<T> {
    shape: Shape,
    /// Time at which the schedule of phases and outages started; `None` before.
    started_ns: Option<u64>,
    waiting: VecDeque<Waiting<T>>,
    waiting_bytes: usize,
    /// Time at which the transmitter has sent all packets that left the queue.
    free_at_ns: u64,
    /// Packets that left the transmitter, each with the time at which its outcome takes place.
    travelling: VecDeque<(u64, Outcome<T>)>,
    is_in_loss_run: bool,
    random: fastrand::Rng,
}

impl<T> Link<T> {
    pub(crate) fn new(shape: Shape, seed: u64) -> Link<T> {
        assert!(!shape.phases.is_empty(), "a link has at least one rate");
        Link {
            shape,
            started_ns: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            free_at_ns: 0,
            travelling: VecDeque::new(),
            is_in_loss_run: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Starts the schedule of phases and outages.
    pub(crate) fn start(&mut self, now_ns: u64) {
        self.started_ns = Some(now_ns);
    }

    /// Returns the number of bytes in the queue.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Gives a packet to the link. Returns the packet if it is dropped at once.
    pub(crate) fn push(&mut self, now_ns: u64, bytes: usize, item: T) -> Result<(), (T, Cause)> {
        self.advance(now_ns);
        if self.is_out(now_ns) {
            return Err((item, Cause::Outage));
        }
        if self.waiting_bytes + bytes > self.shape.queue_bytes {
            return Err((item, Cause::QueueFull));
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting { item, bytes, arrived_ns: now_ns });
        self.advance(now_ns);
        Ok(())
    }

    /// Returns the next packet whose outcome takes place until `now_ns`, with the time of the outcome.
    pub(crate) fn pop(&mut self, now_ns: u64) -> Option<(u64, Outcome<T>)> {
        self.advance(now_ns);
        let (due_ns, _) = self.travelling.front()?;
        if *due_ns > now_ns {
            return None;
        }
        self.travelling.pop_front()
    }

    /// Returns the earliest time at which [`Self::pop`] may have a packet or the queue may become shorter.
    pub(crate) fn next_at_ns(&self) -> Option<u64> {
        let travels = self.travelling.front().map(|(due_ns, _)| *due_ns);
        let leaves = self.waiting.front().map(|first| self.leaves_at_ns(first));
        [travels, leaves].into_iter().flatten().min()
    }

    fn leaves_at_ns(&self, packet: &Waiting<T>) -> u64 {
        self.transmitted_at_ns(packet.arrived_ns.max(self.free_at_ns), packet.bytes)
    }

    /// Moves all packets on that have left the transmitter at `now_ns`.
    fn advance(&mut self, now_ns: u64) {
        while let Some(first) = self.waiting.front() {
            let left_ns = self.leaves_at_ns(first);
            if left_ns > now_ns {
                return;
            }
            let Some(first) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= first.bytes;
            self.free_at_ns = left_ns;
            let jitter_ns = self.random.u64(..=self.shape.jitter_ns);
            let before_ns = self.travelling.back().map_or(0, |(due_ns, _)| *due_ns);
            let due_ns = before_ns.max(left_ns + self.shape.delay_ns + jitter_ns);
            let outcome = if self.is_out(left_ns) {
                Outcome::Discarded(first.item, Cause::Outage)
            } else if self.loses_next() {
                Outcome::Discarded(first.item, Cause::Loss)
            } else {
                Outcome::Arrived(first.item)
            };
            self.travelling.push_back((due_ns, outcome));
        }
    }

    /// Decides at random if the next packet is lost. Losses come in runs of `loss_run` packets on average, by a
    /// Markov chain with two states (Gilbert).
    fn loses_next(&mut self) -> bool {
        let Shape { loss, loss_run, .. } = self.shape;
        if loss <= 0.0 {
            return false;
        }
        let chance = if loss_run <= 1.0 {
            loss
        } else if self.is_in_loss_run {
            1.0 - 1.0 / loss_run
        } else {
            loss / (1.0 - loss) / loss_run
        };
        self.is_in_loss_run = self.random.f64() < chance;
        self.is_in_loss_run
    }

    fn is_out(&self, now_ns: u64) -> bool {
        let Some(started_ns) = self.started_ns else { return false };
        let at_ns = now_ns.saturating_sub(started_ns);
        self.shape.outages.iter().any(|outage| (outage.from_ns..outage.to_ns).contains(&at_ns))
    }

    /// Returns the time at which a packet has left the transmitter, if its first bit leaves at `begin_ns`. Returns
    /// `u64::MAX` if the rate stays 0.
    fn transmitted_at_ns(&self, begin_ns: u64, bytes: usize) -> u64 {
        let mut at_ns = begin_ns;
        // Bits times ns per second, so that the division by the rate is exact.
        let mut left = bytes as u128 * 8 * NS_PER_S;
        for (index, phase) in self.shape.phases.iter().enumerate() {
            let next = self.shape.phases.get(index + 1);
            let until_ns = match (next, self.started_ns) {
                (Some(next), Some(started_ns)) => started_ns + next.from_ns,
                _ => u64::MAX,
            };
            if until_ns <= at_ns {
                continue;
            }
            let Some(rate) = phase.bits_per_s else { return at_ns };
            let capacity = u128::from(rate) * u128::from(until_ns - at_ns);
            if capacity >= left {
                let took_ns = left.div_ceil(u128::from(rate.max(1)));
                return at_ns + u64::try_from(took_ns).unwrap_or(u64::MAX - at_ns);
            }
            left -= capacity;
            at_ns = until_ns;
        }
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    /// A link of 1 Mbit/s, on which 1250 bytes take 10 ms.
    fn shape() -> Shape {
        Shape {
            phases: vec![Phase { from_ns: 0, bits_per_s: Some(1_000_000) }],
            queue_bytes: 10_000,
            delay_ns: 0,
            jitter_ns: 0,
            loss: 0.0,
            loss_run: 1.0,
            outages: Vec::new(),
        }
    }

    /// Returns the times and numbers of all packets that arrive until `until_ns`, as the relay would see them.
    fn arrivals(link: &mut Link<u32>, until_ns: u64) -> Vec<(u64, u32)> {
        let mut seen = Vec::new();
        while let Some(at_ns) = link.next_at_ns().filter(|at_ns| *at_ns <= until_ns) {
            while let Some((due_ns, outcome)) = link.pop(at_ns) {
                if let Outcome::Arrived(number) = outcome {
                    assert_eq!(due_ns, at_ns);
                    seen.push((at_ns, number));
                }
            }
        }
        seen
    }

    #[test]
    fn packets_leave_one_after_another_at_the_rate() {
        let mut link = Link::new(Shape { delay_ns: 5 * MS, ..shape() }, 1);
        link.push(100 * MS, 1_250, 0).unwrap();
        link.push(100 * MS, 2_500, 1).unwrap();
        link.push(150 * MS, 125, 2).unwrap();
        assert_eq!(arrivals(&mut link, S), [(115 * MS, 0), (135 * MS, 1), (156 * MS, 2)]);
    }

    #[test]
    fn a_late_reader_gets_the_same_order_and_the_link_was_not_idle_meanwhile() {
        let mut link = Link::new(shape(), 1);
        for number in 0..4 {
            link.push(0, 1_250, number).unwrap();
        }
        // The relay slept for 25 ms. Two packets have left, and the third one is half transmitted.
        assert_eq!(link.pop(25 * MS), Some((10 * MS, Outcome::Arrived(0))));
        assert_eq!(link.pop(25 * MS), Some((20 * MS, Outcome::Arrived(1))));
        assert_eq!(link.pop(25 * MS), None);
        assert_eq!((link.next_at_ns(), link.queued_bytes()), (Some(30 * MS), 2_500));
    }

    #[test]
    fn a_packet_that_does_not_fit_into_the_queue_is_dropped() {
        let mut link = Link::new(shape(), 1);
        for number in 0..8 {
            link.push(0, 1_250, number).unwrap();
        }
        assert_eq!(link.push(0, 1_250, 8), Err((8, Cause::QueueFull)));
        assert_eq!(link.push(9 * MS, 1_250, 9), Err((9, Cause::QueueFull)), "the first is not out yet");
        link.push(10 * MS, 1_250, 10).unwrap();
        let numbers: Vec<u32> = arrivals(&mut link, S).into_iter().map(|(_, number)| number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 10]);
    }

    #[test]
    fn rates_change_in_the_middle_of_a_packet_once_the_schedule_has_started() {
        let phase = |from_ns, bits_per_s| Phase { from_ns, bits_per_s };
        let phases = vec![phase(0, Some(1_000_000)), phase(20 * MS, Some(0)), phase(50 * MS, None)];
        let mut link = Link::new(Shape { phases, ..shape() }, 1);
        link.push(S, 1_250, 0).unwrap();
        assert_eq!(arrivals(&mut link, 2 * S), [(S + 10 * MS, 0)], "the first rate holds before the start");
        link.start(2 * S);
        link.push(2 * S + 15 * MS, 1_250, 1).unwrap();
        link.push(2 * S + 15 * MS, 1_250, 2).unwrap();
        let freed_at_ns = 2 * S + 50 * MS;
        assert_eq!(arrivals(&mut link, 3 * S), [(freed_at_ns, 1), (freed_at_ns, 2)]);
    }

    #[test]
    fn a_rate_of_zero_holds_packets_for_ever() {
        let phases = vec![Phase { from_ns: 0, bits_per_s: Some(0) }];
        let mut link = Link::new(Shape { phases, ..shape() }, 1);
        link.push(0, 1_250, 0).unwrap();
        assert_eq!((link.next_at_ns(), link.pop(1_000 * S)), (Some(u64::MAX), None));
    }

    #[test]
    fn every_packet_of_an_outage_is_lost() {
        let outages = vec![Outage { from_ns: 20 * MS, to_ns: 40 * MS }];
        let mut link = Link::new(Shape { outages, ..shape() }, 1);
        link.start(0);
        link.push(5 * MS, 1_250, 0).unwrap();
        link.push(5 * MS, 1_250, 1).unwrap();
        assert_eq!(link.push(30 * MS, 1_250, 2), Err((2, Cause::Outage)));
        link.push(40 * MS, 1_250, 3).unwrap();
        assert_eq!(link.pop(25 * MS), Some((15 * MS, Outcome::Arrived(0))));
        let discarded = Outcome::Discarded(1, Cause::Outage);
        assert_eq!(link.pop(25 * MS), Some((25 * MS, discarded)), "it left in the outage");
        assert_eq!(arrivals(&mut link, S), [(50 * MS, 3)]);
    }

    #[test]
    fn jitter_delays_packets_but_keeps_their_order() {
        let phases = vec![Phase { from_ns: 0, bits_per_s: None }];
        let mut link = Link::new(Shape { phases, delay_ns: 10 * MS, jitter_ns: 20 * MS, ..shape() }, 7);
        let mut seen = Vec::new();
        for number in 0..1_000 {
            let now_ns = u64::from(number) * MS;
            seen.extend(arrivals(&mut link, now_ns));
            link.push(now_ns, 100, number).unwrap();
        }
        seen.extend(arrivals(&mut link, 10 * S));
        assert!(seen.iter().map(|(_, number)| *number).eq(0..1_000));
        let delays: Vec<u64> = seen.iter().map(|(at_ns, number)| at_ns - u64::from(*number) * MS).collect();
        assert!(delays.iter().all(|delay| (10 * MS..=30 * MS).contains(delay)));
        assert!(delays.iter().max() > delays.iter().min());
    }

    /// Returns for each of many packets if it was lost.
    fn losses(loss: f64, loss_run: f64, seed: u64) -> Vec<bool> {
        let phases = vec![Phase { from_ns: 0, bits_per_s: None }];
        let mut link = Link::new(Shape { phases, loss, loss_run, ..shape() }, seed);
        let lost = |number| {
            link.push(number, 100, ()).unwrap();
            link.pop(number) == Some((number, Outcome::Discarded((), Cause::Loss)))
        };
        (0..100_000).map(lost).collect()
    }

    #[test]
    fn losses_have_the_requested_share_and_run_length_and_repeat_with_the_seed() {
        for loss_run in [1.0, 8.0] {
            let lost = losses(0.05, loss_run, 3);
            let count = lost.iter().filter(|lost| **lost).count();
            assert!((4_300..5_700).contains(&count), "{count} of 100000 in runs of {loss_run}");
            let runs = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
            let mean = count as f64 / runs as f64;
            assert!((mean / loss_run - 1.0).abs() < 0.15, "runs of {mean} instead of {loss_run}");
            assert_eq!(lost, losses(0.05, loss_run, 3));
            assert_ne!(lost, losses(0.05, loss_run, 4));
        }
    }
}
