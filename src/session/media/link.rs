//! What a viewer's feedback says about its link: the rate that it carries, and whether its queue is full. Pure; time is
//! an argument.
//!
//! ```text
//!  burst of B bytes, last packet marked ─► link ─► time of its arrival ─► B / time in the link = rate
//! ```
//!
//! The last packet of each unit is marked with a transport-wide sequence number, and the viewer reports when it arrived
//! (see `arrivals`). All times of arrival are on the viewer's clock, so reports that come late change nothing.
//!
//! Without this feedback, the loss in receiver reports tells how much of what was sent has passed the link.
//!
//! Feedback is untrusted. Whatever a viewer reports, its estimate stays within [`limits::LINK_BYTES_PER_S`], and no
//! other viewer is affected.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::limits;
use crate::session::media::arrivals::{Arrival, Arrivals};

/// Number of measurements of which the median is the rate.
const MEASUREMENTS: usize = 7;

/// A packet whose arrival the viewer reports.
#[derive(Clone, Copy, Debug)]
struct Marked {
    sent_us: i64,
    /// Bytes sent until then, with this packet, and those of them that were sent at that instant.
    bytes: u64,
    burst: u64,
    /// True until the viewer has reported the packet.
    is_expected: bool,
}

/// The latest reported packet.
#[derive(Clone, Copy, Debug)]
struct Reported {
    sent_us: i64,
    arrived_us: i64,
    bytes: u64,
    queued_us: i64,
}

/// The smallest delay of the last [`limits::DELAY_REMEMBERED`], up to twice that time. Its origin has no meaning.
#[derive(Clone, Copy, Debug, Default)]
struct SmallestDelay {
    since_us: i64,
    current: Option<i64>,
    before: Option<i64>,
}

impl SmallestDelay {
    /// Adds a delay and returns by how much it exceeds the smallest one.
    fn note(&mut self, now_us: i64, delay_us: i64) -> i64 {
        if now_us.saturating_sub(self.since_us) >= microseconds(limits::DELAY_REMEMBERED) {
            self.since_us = now_us;
            self.before = self.current.take();
        }
        let current = self.current.map_or(delay_us, |current| current.min(delay_us));
        self.current = Some(current);
        delay_us.saturating_sub(self.before.map_or(current, |before| before.min(current)))
    }
}

/// The latest measurements of the rate, the newest first. 0 stands for none.
#[derive(Clone, Copy, Debug, Default)]
struct Measured([u64; MEASUREMENTS]);

impl Measured {
    /// Adds a measurement and returns the median of the latest ones.
    fn add(&mut self, rate: u64) -> u64 {
        self.0.rotate_right(1);
        if let Some(newest) = self.0.first_mut() {
            *newest = rate;
        }
        self.median().unwrap_or(rate)
    }

    fn median(&self) -> Option<u64> {
        let mut sorted = self.0;
        sorted.sort_unstable_by_key(|rate| std::cmp::Reverse(*rate));
        let count = sorted.iter().filter(|rate| **rate > 0).count();
        sorted.get(count.checked_sub(1)? / 2).copied()
    }
}

/// What was sent before a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentSoFar {
    pub(super) bytes: u64,
    /// RTP sequence number of the next packet.
    pub(super) sequence: u16,
}

/// The loss of the last second, from the packets that NACKs report: of the period before, and of the current one.
#[derive(Clone, Copy, Debug, Default)]
struct RecentLoss {
    since_us: i64,
    begun: [SentSoFar; 2],
    lost: [u64; 2],
    /// The highest sequence number that was counted. Viewers request the same packet several times.
    newest: Option<u16>,
}

impl RecentLoss {
    /// Adds a lost packet to the period in which it was sent, unless it was counted before.
    fn add(&mut self, sequence: u16) {
        let is_after = |other: u16| sequence.wrapping_sub(other) < 0x8000;
        if self.newest.is_some_and(|newest| newest == sequence || !is_after(newest)) {
            return;
        }
        self.newest = Some(sequence);
        let ([before, current], [lost_before, lost]) = (self.begun, &mut self.lost);
        if is_after(current.sequence) {
            *lost += 1;
        } else if is_after(before.sequence) {
            *lost_before += 1;
        }
    }

    /// Begins a new period if one is due.
    fn advance(&mut self, now_us: i64, sent: SentSoFar) {
        if now_us.saturating_sub(self.since_us) >= microseconds(limits::LOSS_PERIOD) {
            let ([_, begun], [_, lost]) = (self.begun, self.lost);
            (self.since_us, self.begun, self.lost) = (now_us, [begun, sent], [lost, 0]);
        }
    }

    /// Returns those of `bytes` that probably have arrived.
    fn arrived(&self, bytes: u64, sent: SentSoFar) -> u64 {
        let ([before, _], [lost_before, lost]) = (self.begun, self.lost);
        let lost_bytes = (lost_before + lost).saturating_mul(limits::DATAGRAM_BYTES_MAX as u64);
        let sent_since = sent.bytes.saturating_sub(before.bytes).max(1);
        let share = (u128::from(lost_bytes) * 256 / u128::from(sent_since)).min(192);
        bytes / 256 * (256 - u64::try_from(share).unwrap_or_default())
    }
}

/// What the receiver reports of a viewer say about its link.
#[derive(Clone, Copy, Debug, Default)]
struct Reports {
    /// Time of the latest report, and what was sent until then.
    latest: Option<(i64, u64)>,
    /// Number of reports in a row with heavy loss.
    heavy: u32,
    /// Rate that passed the link between the latest two reports, in bytes per second.
    passed: Option<u64>,
}

/// What one receiver report shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// True if so much was lost that the link is probably slower than the stream: packets have waited in its queue, or
    /// the loss lasts.
    pub(super) is_trouble: bool,
    /// True if the loss is not what a link usually loses at random.
    is_heavy: bool,
    /// True if a packet has waited in the link's queue since the report before.
    pub(super) was_queued: bool,
    /// The rate that passed the link, unless the report follows too soon.
    passed: Option<u64>,
}

/// What one feedback message shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Feedback {
    /// Rate that the link carries, in bytes per second: the median of the latest measurements, if there is a new one.
    pub(super) rate: Option<u64>,
    /// A rate that the link carries at least: a burst has passed without a delay that can be measured.
    pub(super) at_least: Option<u64>,
    /// True if the link's queue was never empty for [`limits::QUEUE_STANDS`].
    pub(super) has_standing_queue: bool,
}

/// Marks packets and reads the feedback about them, for every viewer that sends such feedback, paced or not.
#[derive(Debug)]
pub(super) struct LinkWatch {
    begun: Instant,
    /// The latest marked packets. Their sequence numbers are consecutive; the next packet gets `next`.
    marked: VecDeque<Marked>,
    next: u16,
    /// When the next packet is marked, and until when all units are marked.
    due_at: Instant,
    watched_until: Instant,
    /// Time and byte count when the current burst began.
    burst_us: i64,
    burst_from: u64,
    smallest: SmallestDelay,
    /// The viewer's clock at the first reported packet in ticks, which has the arrival time 0.
    origin: Option<u32>,
    latest: Option<Reported>,
    /// Since when all reported packets had waited in a queue, and their number.
    queue_since_us: Option<(i64, u32)>,
    /// True if a packet has waited since the latest receiver report.
    was_queued: bool,
    loss: RecentLoss,
    reports: Reports,
    measured: Measured,
    /// How often the viewer was paced so far.
    pub(super) times_paced: u32,
}

impl LinkWatch {
    pub(super) fn new(now: Instant) -> LinkWatch {
        LinkWatch {
            begun: now,
            marked: VecDeque::new(),
            next: 0,
            due_at: now,
            watched_until: now,
            burst_us: 0,
            burst_from: 0,
            smallest: SmallestDelay::default(),
            origin: None,
            latest: None,
            queue_since_us: None,
            was_queued: false,
            loss: RecentLoss::default(),
            reports: Reports::default(),
            measured: Measured::default(),
            times_paced: 0,
        }
    }

    // ---- sending -----------------------------------------------------------------------------------

    /// Notes that packets are about to be sent, after `bytes` bytes so far.
    pub(super) fn begin_burst(&mut self, now: Instant, bytes: u64) {
        let now_us = self.microseconds(now);
        if now_us != self.burst_us {
            (self.burst_us, self.burst_from) = (now_us, bytes);
        }
    }

    /// Returns true if the last packet of a unit must be marked. A good link is measured a few times a second, because
    /// each message of feedback costs time: viewers send one only if a marked packet has arrived. At a sign of trouble,
    /// all units are marked.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due_at
    }

    fn watch_closely(&mut self, now: Instant) {
        (self.due_at, self.watched_until) = (now, now + limits::LINK_WATCHED);
    }

    /// Returns the transport-wide sequence number of the next marked packet.
    pub(super) fn next_sequence(&self) -> u16 {
        self.next
    }

    /// Returns true if so much was sent since the latest marked packet that another one is due. It keeps the
    /// measurement going while only retransmissions are sent.
    pub(super) fn is_mark_due(&self, now: Instant, bytes: u64) -> bool {
        let is_due = |marked: &Marked| {
            self.microseconds(now) - marked.sent_us >= microseconds(limits::MARK_INTERVAL)
                && bytes.saturating_sub(marked.bytes) >= limits::MEASURED_BYTES_MIN
        };
        self.marked.back().is_none_or(is_due)
    }

    /// Notes that the packet with that number was sent. `bytes` includes it.
    pub(super) fn mark(&mut self, now: Instant, bytes: u64) {
        if self.marked.len() >= limits::MARKED_PACKETS_MAX {
            self.marked.pop_front();
        } else if self.marked.capacity() == 0 {
            self.marked.reserve_exact(limits::MARKED_PACKETS_MAX);
        }
        let burst = bytes.saturating_sub(self.burst_from);
        let sent_us = self.microseconds(now);
        self.marked.push_back(Marked { sent_us, bytes, burst, is_expected: true });
        self.next = self.next.wrapping_add(1);
        self.due_at = if now < self.watched_until { now } else { now + limits::MARK_REST };
    }

    // ---- feedback ----------------------------------------------------------------------------------

    /// Reads a feedback message.
    pub(super) fn on_feedback(&mut self, now: Instant, sent: SentSoFar, arrivals: &Arrivals<'_>) -> Feedback {
        let mut feedback = Feedback::default();
        self.loss.advance(self.microseconds(now), sent);
        for arrival in arrivals.iter() {
            let Some(marked) = self.take(arrival.sequence) else { continue };
            self.on_arrival(&marked, &arrival, sent, &mut feedback);
        }
        if self.was_queued {
            self.watch_closely(now);
        }
        feedback
    }

    /// Returns the marked packet with this number, once.
    fn take(&mut self, sequence: u16) -> Option<Marked> {
        let age = usize::from(self.next.wrapping_sub(sequence));
        let place = self.marked.len().checked_sub(age)?;
        let marked = self.marked.get_mut(place)?;
        std::mem::take(&mut marked.is_expected).then_some(*marked)
    }

    fn on_arrival(
        &mut self,
        marked: &Marked,
        arrival: &Arrival,
        sent_so_far: SentSoFar,
        feedback: &mut Feedback,
    ) {
        let origin = *self.origin.get_or_insert(arrival.ticks);
        let since = arrival.ticks.wrapping_sub(origin).cast_signed();
        let arrived_us = i64::from(since) * Arrivals::TICK_US;
        let queued_us = self.smallest.note(marked.sent_us, arrived_us - marked.sent_us);
        self.note_queue(marked.sent_us, queued_us, feedback);
        let Marked { sent_us, bytes, burst, .. } = *marked;
        let before = self.latest.replace(Reported { sent_us, arrived_us, bytes, queued_us });
        let noise_us = microseconds(limits::DELAY_NOISE);
        // The link was busy since the packet before if that one still waited when the next packets were sent. If not,
        // the link was busy for as long as the burst has waited. A shorter wait than the noise may be no wait at all:
        // the packet before a probe then says nothing.
        let in_a_row = before
            .filter(|before| before.queued_us >= noise_us && sent_us - before.sent_us < before.queued_us);
        let (sent, busy_us) = match in_a_row {
            Some(before) => (bytes.saturating_sub(before.bytes), arrived_us - before.arrived_us),
            None => (burst, queued_us),
        };
        if in_a_row.is_some() && busy_us < noise_us {
            // Both packets waited, so the link was busy, but the viewer has read them together.
            return;
        }
        if sent < limits::MEASURED_BYTES_MIN {
            return;
        }
        let arrived = self.loss.arrived(sent, sent_so_far);
        let rate = per_second(arrived, Duration::from_micros(busy_us.max(noise_us).unsigned_abs()));
        if busy_us < noise_us {
            feedback.at_least = Some(rate);
        } else {
            feedback.rate = Some(self.measured.add(rate));
        }
    }

    fn note_queue(&mut self, now_us: i64, queued_us: i64, feedback: &mut Feedback) {
        self.was_queued |= queued_us >= microseconds(limits::DELAY_NOISE * 4);
        if queued_us < microseconds(limits::QUEUE_DELAY) {
            self.queue_since_us = None;
            return;
        }
        let (since_us, packets) = self.queue_since_us.get_or_insert((now_us, 0));
        *packets += 1;
        let stands = now_us - *since_us >= microseconds(limits::QUEUE_STANDS);
        feedback.has_standing_queue |= stands && *packets >= limits::QUEUE_PACKETS_MIN;
    }

    /// Notes the lost packets of a NACK. Returns true if they include so many in a row that a full queue has dropped
    /// them. Random loss has no such rows.
    pub(super) fn on_nack(&mut self, now: Instant, sent: SentSoFar, lost: impl Iterator<Item = u16>) -> bool {
        self.loss.advance(self.microseconds(now), sent);
        self.watch_closely(now);
        let (mut row, mut expected, mut is_overflow) = (0, None, false);
        for sequence in lost {
            row = if expected == Some(sequence) { row + 1 } else { 1 };
            expected = Some(sequence.wrapping_add(1));
            is_overflow |= row >= limits::PACED_FROM_LOST_IN_A_ROW;
            self.loss.add(sequence);
        }
        is_overflow && (self.has_arrivals() || self.reports.passed.is_some())
    }

    /// Returns true if the viewer has reported when packets arrived.
    pub(super) fn has_arrivals(&self) -> bool {
        self.origin.is_some()
    }

    /// Notes the loss of a receiver report in 256ths. `bytes` is what was sent so far.
    pub(super) fn on_report(&mut self, now: Instant, bytes: u64, fraction_lost: u8) -> Report {
        let was_queued = std::mem::take(&mut self.was_queued);
        let now_us = self.microseconds(now);
        // A viewer that never requests a packet again repairs nothing, so less loss is too much.
        let is_repaired = self.loss.newest.is_some();
        let heavy_from =
            if is_repaired { limits::PACED_FROM_LOSS_256THS } else { limits::NEARLY_NO_LOSS_256THS };
        let is_heavy = fraction_lost > heavy_from;
        let (since_us, bytes_before) = *self.reports.latest.get_or_insert((now_us, bytes));
        let span_us = now_us - since_us;
        if span_us < microseconds(limits::REPORT_SPAN_MIN) {
            return Report { is_trouble: is_heavy && was_queued, is_heavy, was_queued, passed: None };
        }
        let sent = bytes.saturating_sub(bytes_before) / 256 * (256 - u64::from(fraction_lost));
        let passed = per_second(sent, Duration::from_micros(span_us.unsigned_abs()));
        let heavy = if is_heavy { self.reports.heavy + 1 } else { 0 };
        self.reports = Reports { latest: Some((now_us, bytes)), heavy, passed: Some(passed) };
        let is_trouble = is_heavy && (was_queued || heavy >= limits::PACED_FROM_HEAVY_REPORTS);
        Report { is_trouble, is_heavy, was_queued, passed: Some(passed) }
    }

    /// Begins to pace the viewer. Returns the first estimate.
    pub(super) fn begin_pacing(&mut self, now: Instant) -> LinkEstimate {
        self.times_paced += 1;
        let known = self.measured.median().or(self.reports.passed);
        LinkEstimate::new(now, known.unwrap_or(limits::LINK_FIRST_BYTES_PER_S))
    }

    fn microseconds(&self, now: Instant) -> i64 {
        microseconds(now.saturating_duration_since(self.begun))
    }
}

/// Estimate of the rate that a paced viewer's link carries.
#[derive(Debug)]
pub(super) struct LinkEstimate {
    rate: u64,
    /// Follows `rate` only in large steps, so that the number of units that are sent does not change all the time.
    steady: u64,
    /// Share of the rate at which is sent, in 64ths: less after heavy loss, and while a queue stands.
    share: u64,
    has_standing_queue: bool,
    /// When `share` was set lower last. The next report of loss is still about the time before.
    lowered_at: Instant,
    /// How often in a row `rate` was above `steady`.
    times_above: u32,
    /// Until when a rate from receiver reports is not raised, and how long that was the last time.
    fixed_until: Instant,
    raised_after: Duration,
}

/// The usual share of the rate at which is sent: slightly less than the link carries, so that its queue drains.
const USUAL_SHARE: u64 = 63;

impl LinkEstimate {
    /// Creates an estimate from a first measurement.
    pub(super) fn new(now: Instant, rate: u64) -> LinkEstimate {
        let rate = rate.clamp(*limits::LINK_BYTES_PER_S.start(), *limits::LINK_BYTES_PER_S.end());
        LinkEstimate {
            rate,
            steady: rate,
            share: USUAL_SHARE,
            has_standing_queue: false,
            lowered_at: now,
            times_above: 0,
            fixed_until: now,
            raised_after: Duration::ZERO,
        }
    }

    /// Returns what the link carries in bytes per second.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// Returns the rate at which to send.
    pub(super) fn pace(&self) -> u64 {
        let share = if self.has_standing_queue { self.share * 3 / 4 } else { self.share };
        self.rate * share / 64
    }

    /// Returns the pace with hysteresis.
    pub(super) fn steady_pace(&self) -> u64 {
        self.steady * self.share / 64
    }

    /// Learns from a feedback message.
    pub(super) fn on_feedback(&mut self, feedback: &Feedback) {
        self.has_standing_queue = feedback.has_standing_queue;
        match (feedback.rate, feedback.at_least) {
            (Some(rate), _) => self.set(rate),
            (None, Some(rate)) if rate > self.rate => self.set(rate),
            _ => {}
        }
    }

    /// Learns from the loss of a receiver report in 256ths. `was_queued` is true if packets have waited in the link's
    /// queue in the meantime: then heavy loss is not random.
    pub(super) fn on_loss(&mut self, now: Instant, fraction_lost: u8, was_queued: bool) {
        let is_heavy = fraction_lost > limits::PACED_FROM_LOSS_256THS;
        if !is_heavy {
            self.share = (self.share + 4).min(USUAL_SHARE);
        } else if was_queued && now.saturating_duration_since(self.lowered_at) >= limits::LOSS_SETTLES {
            self.share = (self.share * 7 / 8).max(USUAL_SHARE / 2);
            self.lowered_at = now;
        }
    }

    /// Learns from a receiver report of a viewer that does not report arrivals. After heavy loss, the link carries what
    /// has passed it. After nearly none it may carry more, which is tried less often each time it was wrong, because
    /// each attempt costs pictures.
    pub(super) fn on_passed(&mut self, now: Instant, fraction_lost: u8, report: &Report) {
        let Some(passed) = report.passed else { return };
        if report.is_heavy {
            self.set(passed - passed / 16);
            self.raised_after = (self.raised_after * 2)
                .clamp(*limits::PASSED_RATE_TRUSTED.start(), *limits::PASSED_RATE_TRUSTED.end());
            self.fixed_until = now + self.raised_after;
        } else if fraction_lost <= limits::NEARLY_NO_LOSS_256THS && now >= self.fixed_until {
            self.set(self.rate + self.rate / 16);
        }
    }

    fn set(&mut self, rate: u64) {
        self.rate = rate.clamp(*limits::LINK_BYTES_PER_S.start(), *limits::LINK_BYTES_PER_S.end());
        let (low, high) = (self.steady - self.steady / 16, self.steady + self.steady / 8);
        self.times_above = if self.rate > self.steady { self.times_above + 1 } else { 0 };
        if self.times_above >= 8 || !(low..=high).contains(&self.rate) {
            self.steady = self.rate;
            self.times_above = 0;
        }
    }
}

fn per_second(bytes: u64, span: Duration) -> u64 {
    let nanoseconds = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(nanoseconds)).unwrap_or(u64::MAX)
}

fn microseconds(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
