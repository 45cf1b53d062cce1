//! Tests of marks, feedback and estimate.

use super::*;
use crate::base::clock;
use crate::session::media::arrivals::tests::message;
use support::random::Random;

const MS: Duration = Duration::from_millis(1);
const MBPS: u64 = 125_000;

fn low16(value: u64) -> u16 {
    u16::try_from(value & 0xffff).unwrap()
}

/// A viewer behind a link with a rate and an endless queue. Each burst ends with a marked packet.
struct Scene {
    watch: LinkWatch,
    now: Instant,
    rate: u64,
    busy_until: Instant,
    sent: u64,
    /// Arrivals that the viewer has not reported, in ticks since 0, and the time of the last one.
    arrivals: Vec<u32>,
    reported: u16,
    ticks: u32,
    begun: Instant,
}

impl Scene {
    /// Returns what was sent so far, if each packet has 1,200 bytes.
    fn so_far(&self) -> SentSoFar {
        SentSoFar { bytes: self.sent, sequence: low16(self.sent / 1_200) }
    }

    fn new(mbps: u64) -> Scene {
        let now = clock::now().instant;
        Scene {
            watch: LinkWatch::new(now),
            now,
            rate: mbps * MBPS,
            busy_until: now,
            sent: 0,
            arrivals: Vec::new(),
            reported: 0,
            ticks: 0,
            begun: now,
        }
    }

    fn burst(&mut self, bytes: u64) {
        self.watch.begin_burst(self.now, self.sent);
        self.sent += bytes;
        self.watch.mark(self.now, self.sent);
        let takes = Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
        self.busy_until = self.busy_until.max(self.now) + takes;
        let arrived = self.busy_until + 20 * MS - self.begun;
        self.arrivals.push(u32::try_from(arrived.as_micros() / 250).unwrap());
    }

    /// Reports all packets so far, `late` after the last one.
    fn report(&mut self) -> Feedback {
        let reference = self.ticks >> 8;
        let mut before = reference << 8;
        let mut deltas = Vec::new();
        for arrival in self.arrivals.drain(..) {
            deltas.push(Some(i16::try_from(i64::from(arrival) - i64::from(before)).unwrap()));
            before = arrival;
        }
        self.ticks = before;
        let bytes = message(self.reported, reference, &deltas, true);
        self.reported = self.reported.wrapping_add(u16::try_from(deltas.len()).unwrap());
        self.watch.on_feedback(self.now, self.so_far(), &Arrivals::read(&bytes).unwrap())
    }

    /// Sends a unit of `bytes` every 33 ms, with a small packet before every tenth one. Returns the last rate and
    /// whether a queue stands.
    fn stream(&mut self, units: u32, bytes: u64) -> (Option<u64>, Option<u64>, bool) {
        let (mut rate, mut at_least, mut stands) = (None, None, false);
        for unit in 0..units {
            if unit.is_multiple_of(10) {
                self.burst(60);
                self.now += 10 * MS;
            }
            self.burst(bytes);
            self.now += 33 * MS;
            if unit % 3 == 2 {
                let feedback = self.report();
                rate = feedback.rate.or(rate);
                at_least = feedback.at_least.or(at_least);
                stands = feedback.has_standing_queue;
            }
        }
        (rate, at_least, stands)
    }
}

fn near(rate: u64, mbps: u64) -> bool {
    rate.abs_diff(mbps * MBPS) <= mbps * MBPS / 20
}

#[test]
fn bursts_show_the_rate_of_the_link() {
    for mbps in [4, 10, 20] {
        let mut scene = Scene::new(mbps);
        let (rate, _, stands) = scene.stream(60, 14_000);
        assert!(near(rate.unwrap(), mbps), "{mbps} Mbit/s: {rate:?}");
        assert!(!stands, "3.4 Mbit/s leave the queue empty at times");
    }
}

#[test]
fn stream_above_the_rate_makes_a_standing_queue_and_shows_the_rate() {
    let mut scene = Scene::new(3);
    let (rate, _, stands) = scene.stream(60, 14_000);
    assert!(near(rate.unwrap(), 3), "{rate:?}");
    assert!(stands);
    assert!(near(scene.watch.begin_pacing(scene.now).rate(), 3));
    scene.now += Duration::from_secs(5);
    let (_, _, stands) = scene.stream(6, 1_000);
    assert!(!stands, "the queue is empty again");
}

#[test]
fn fast_link_shows_only_that_it_carries_more() {
    let mut scene = Scene::new(1_000);
    let (rate, at_least, stands) = scene.stream(60, 30_000);
    assert_eq!((rate, stands), (None, false));
    assert!(at_least.unwrap() > 60 * MBPS);
    assert_eq!(scene.watch.begin_pacing(scene.now).rate(), limits::LINK_FIRST_BYTES_PER_S, "no measurement");
}

#[test]
fn lost_packets_are_not_counted_as_carried() {
    let mut scene = Scene::new(4);
    scene.stream(60, 14_000);
    // Half of the next packets are lost on the link.
    scene.rate *= 2;
    let mut rate = None;
    for _ in 0..60 {
        let first = scene.so_far().sequence;
        scene.burst(14_000);
        let lost = (0..6).map(|lost| first + 2 * lost);
        scene.watch.on_nack(scene.now, scene.so_far(), lost.clone());
        scene.watch.on_nack(scene.now, scene.so_far(), lost);
        scene.now += 33 * MS;
        rate = scene.report().rate.or(rate);
    }
    assert!(rate.unwrap() < 5 * MBPS && rate.unwrap() > 3 * MBPS, "{rate:?}");
}

#[test]
fn packets_lost_in_a_row_are_an_overflow_and_random_loss_is_not() {
    let mut scene = Scene::new(4);
    let now = scene.now;
    let row = || 100..108_u16;
    assert!(
        !scene.watch.on_nack(now, SentSoFar::default(), row()),
        "a viewer without transport-wide feedback"
    );
    scene.stream(3, 14_000);
    assert!(scene.watch.on_nack(now, SentSoFar::default(), row()));
    assert!(!scene.watch.on_nack(now, SentSoFar::default(), row().take(7)));
    assert!(!scene.watch.on_nack(now, SentSoFar::default(), (0..200).map(|number| 2 * number)));
    assert!(scene.watch.on_nack(
        now,
        SentSoFar::default(),
        [7, 65_530].into_iter().chain(65_531..=65_535).chain(0..3)
    ));
}

#[test]
fn packets_are_reported_once_and_unknown_numbers_are_ignored() {
    let mut scene = Scene::new(4);
    scene.burst(60);
    scene.now += 50 * MS;
    scene.burst(24_000);
    let deltas = [Some(80), Some(500), Some(9), Some(9)];
    let bytes = message(0, 0, &deltas, false);
    let arrivals = Arrivals::read(&bytes).unwrap();
    let feedback = scene.watch.on_feedback(scene.now, scene.so_far(), &arrivals);
    assert!(feedback.rate.is_some());
    let again = scene.watch.on_feedback(scene.now, scene.so_far(), &arrivals);
    assert_eq!(again, Feedback::default());
}

#[test]
fn packets_that_waited_and_were_read_together_show_no_rate() {
    let mut scene = Scene::new(4);
    scene.burst(60);
    scene.now += 50 * MS;
    scene.burst(24_000);
    scene.now += 10 * MS;
    scene.burst(24_000);
    // The second burst has waited 40 ms when the third one leaves, and both are reported with the same time.
    let bytes = message(0, 0, &[Some(80), Some(400), Some(0)], false);
    let arrivals = Arrivals::read(&bytes).unwrap();
    let feedback = scene.watch.on_feedback(scene.now, scene.so_far(), &arrivals);
    assert!(feedback.rate.is_some(), "of the second burst");
    assert_eq!(feedback.at_least, None);
}

#[test]
fn remembered_packets_are_bounded() {
    let mut scene = Scene::new(4);
    (0..100_000).for_each(|_| scene.watch.mark(scene.now, 7));
    assert_eq!(scene.watch.marked.len(), limits::MARKED_PACKETS_MAX);
    assert!(scene.watch.marked.capacity() <= limits::MARKED_PACKETS_MAX);
}

#[test]
fn absurd_feedback_stays_within_the_bounds() {
    let mut estimate = LinkEstimate::new(clock::now().instant, u64::MAX);
    let mut scene = Scene::new(4);
    let mut random = Random::new(5);
    for _ in 0..5_000 {
        scene.now += MS;
        scene.burst(random.below(100_000));
        let mut bytes = random.bytes(40);
        bytes[..2].copy_from_slice(&scene.watch.next.to_be_bytes());
        bytes[2..4].copy_from_slice(&[0, 20]);
        if let Some(arrivals) = Arrivals::read(&bytes) {
            estimate.on_feedback(&scene.watch.on_feedback(scene.now, scene.so_far(), &arrivals));
        }
        estimate.on_loss(scene.now, random.bytes(1)[0], random.chance(50.0));
        assert!(limits::LINK_BYTES_PER_S.contains(&estimate.rate()), "{estimate:?}");
        assert!(estimate.pace() <= estimate.rate() && estimate.pace() >= estimate.rate() / 4);
    }
}

#[test]
fn steady_pace_ignores_small_changes() {
    let mut estimate = LinkEstimate::new(clock::now().instant, 4 * MBPS);
    let steady = estimate.steady_pace();
    for percent in [104, 100, 105, 97, 102] {
        estimate.on_feedback(&Feedback { rate: Some(4 * MBPS / 100 * percent), ..Feedback::default() });
        assert_eq!(estimate.steady_pace(), steady, "{estimate:?}");
    }
    estimate.on_feedback(&Feedback { rate: Some(8 * MBPS), ..Feedback::default() });
    assert!(estimate.steady_pace().abs_diff(2 * steady) <= 1);
}

#[test]
fn heavy_loss_lowers_the_pace_only_if_packets_waited() {
    let mut now = clock::now().instant;
    let mut estimate = LinkEstimate::new(now, 8 * MBPS);
    let pace = estimate.pace();
    estimate.on_loss(now, 90, true);
    assert_eq!(estimate.pace(), pace, "the loss was before");
    now += limits::LOSS_SETTLES;
    estimate.on_loss(now, 90, false);
    estimate.on_loss(now, 20, true);
    assert_eq!(estimate.pace(), pace, "random loss");
    for _ in 0..20 {
        estimate.on_loss(now, 90, true);
        now += limits::LOSS_SETTLES;
    }
    assert!(near(estimate.pace(), 4), "at most by half");
    (0..20).for_each(|_| estimate.on_loss(now, 0, true));
    assert_eq!(estimate.pace(), pace);
}

#[test]
fn smallest_delay_is_forgotten_when_the_path_changes() {
    let mut smallest = SmallestDelay::default();
    let span_us = microseconds(limits::DELAY_REMEMBERED);
    assert_eq!(smallest.note(0, 20_000), 0);
    assert_eq!(smallest.note(1, 80_000), 60_000);
    assert_eq!(smallest.note(span_us, 80_000), 60_000);
    assert_eq!(smallest.note(2 * span_us, 80_000), 0);
}
