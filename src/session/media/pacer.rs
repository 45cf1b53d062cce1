//! Paces what is sent to one viewer on a slow link, and decides which units fit. Viewers on good links have no pacer:
//! their units leave at once.
//!
//! ```text
//!  units ─► fits? ─► queue of packets ─► token bucket at the estimated rate ─► sender
//!  NACKs ─► a quarter of that rate ─────────┘
//! ```
//!
//! If the link carries less than the stream, each GOP is cut: the IDR and as many of the following units as reach the
//! viewer in time. Units of a GOP leave in order, so no unit is sent without its reference.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::limits;
use crate::h264::Payloads;
use crate::session::media::link::LinkEstimate;

/// Bytes that a payload buffer takes.
const BUFFER_BYTES: usize =
    limits::FULL_PAYLOADS_OF_BUFFER * limits::RTP_PAYLOAD_BYTES_MAX + limits::PAYLOAD_BUFFER_OVERHEAD_BYTES; // local bound

/// Maximum number of buffers in the queue.
const BUFFERS_MAX: usize = limits::PACED_BYTES_MAX / BUFFER_BYTES; // local bound

/// Packets that wait: those of one buffer from place `next` on.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) payloads: Arc<Payloads>,
    pub(super) next: usize,
    pub(super) rtp_time: u32,
    pub(super) captured_ntp: u64,
    /// True if the last packet of the buffer is the last packet of the unit.
    pub(super) is_end: bool,
    /// True if the first packet of the buffer is the first packet of the unit.
    pub(super) is_start: bool,
}

impl Waiting {
    fn bytes(&self) -> usize {
        (self.next..self.payloads.len()).map(|place| wire_bytes(self.payloads.get(place))).sum()
    }
}

fn wire_bytes(payload: Option<&[u8]>) -> usize {
    payload.map_or(0, <[u8]>::len) + limits::RTP_OVERHEAD_BYTES_MAX + limits::IP_UDP_BYTES
}

/// A step of [`Pacer::poll`].
#[derive(Debug)]
pub(super) enum Step {
    /// Send the packet at place `next`.
    Packet(Waiting),
    /// Send a small marked packet, which tells the time in the link before or after a burst.
    Mark,
}

/// The packets of one viewer that wait, and the rate at which they leave.
#[derive(Debug)]
pub(in crate::session) struct Pacer {
    pub(super) estimate: LinkEstimate,
    queue: VecDeque<Waiting>,
    /// Bytes on the wire of all packets in the queue.
    queue_bytes: usize,
    /// Bytes that may be sent now; negative after a burst.
    tokens: i64,
    /// Bytes that may be retransmitted now.
    resend_tokens: i64,
    filled_at: Instant,
    /// Bytes that are left of the burst of a probe; before the burst has begun, it is not marked yet.
    probe: Option<(usize, bool)>,
    probed_at: Option<Instant>,
    idr_at: Option<Instant>,
    /// Time between the last two IDRs.
    idr_interval: Option<Duration>,
    /// When there was trouble last.
    pub(super) trouble_at: Instant,
    /// Bytes of the units that came since the latest IDR, and the rate of the GOP before in bytes per second.
    offered: u64,
    pub(super) offered_rate: u64,
}

impl Pacer {
    pub(super) fn new(now: Instant, estimate: LinkEstimate) -> Pacer {
        let resend_tokens = resend_max(&estimate);
        Pacer {
            estimate,
            queue: VecDeque::new(),
            queue_bytes: 0,
            tokens: 0,
            resend_tokens,
            filled_at: now,
            probe: None,
            probed_at: None,
            idr_at: None,
            idr_interval: None,
            trouble_at: now,
            offered: 0,
            offered_rate: 0,
        }
    }

    // ---- units -------------------------------------------------------------------------------------

    /// Returns true if no packet waits.
    pub(in crate::session) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Notes a live unit of `bytes` payload bytes. Must be called for every unit. Returns the number of units that are
    /// dropped from the queue, because an IDR comes and the link is too slow for what is left of its GOP.
    pub(in crate::session) fn on_unit(&mut self, now: Instant, bytes: usize, is_idr: bool) -> u64 {
        let mut dropped = 0;
        if is_idr {
            let interval = self.idr_at.map(|at| now.saturating_duration_since(at));
            self.idr_interval = interval.filter(|interval| *interval <= limits::GOP_INTERVAL_MAX);
            if let Some(interval) = self.idr_interval.filter(|interval| !interval.is_zero()) {
                self.offered_rate = self.offered * 1_000 / milliseconds(interval).max(1);
            }
            (self.idr_at, self.offered) = (Some(now), 0);
            if self.wait(now, 0, self.estimate.pace()) > limits::PACED_LATE_MAX * 3 / 2 {
                dropped = self.drop_unstarted();
            }
        }
        self.offered += u64::try_from(bytes).unwrap_or_default();
        dropped
    }

    /// Returns true if a unit of `bytes` payload bytes reaches the viewer in time. Non-reference units get half of that
    /// time, so that they are the first that are not sent.
    pub(in crate::session) fn fits(&self, now: Instant, bytes: usize, is_reference: bool) -> bool {
        let to_idr = self.to_next_idr(now).map(|to_idr| to_idr + limits::PACED_LATE_MAX);
        let limit = to_idr.map_or(limits::PACED_WAIT_MAX, |to_idr| to_idr.min(limits::PACED_WAIT_MAX));
        let limit = if is_reference { limit } else { limit / 2 };
        self.wait(now, bytes, self.estimate.steady_pace().min(self.estimate.pace())) <= limit
    }

    /// Returns true if an IDR can be sent soon enough. If not, the viewer gets the next one, with less delay.
    pub(in crate::session) fn fits_idr(&self, now: Instant) -> bool {
        self.wait(now, 0, self.estimate.pace()) <= limits::PACED_IDR_WAIT_MAX
    }

    /// Returns the time to the next IDR, if the camera sends IDRs at intervals.
    pub(in crate::session) fn to_next_idr(&self, now: Instant) -> Option<Duration> {
        let expected = self.idr_at? + self.idr_interval?;
        (now <= expected + limits::PACED_LATE_MAX).then(|| expected.saturating_duration_since(now))
    }

    /// Returns the time until all packets that wait, and `bytes` more, are sent at `pace`.
    fn wait(&self, now: Instant, bytes: usize, pace: u64) -> Duration {
        let packets = bytes.div_ceil(limits::RTP_PAYLOAD_BYTES_MAX);
        let bytes = bytes + packets * (limits::RTP_OVERHEAD_BYTES_MAX + limits::IP_UDP_BYTES);
        let passed = now.saturating_duration_since(self.filled_at);
        let passed = if self.is_idle() { passed.min(limits::PACE_BURST) } else { passed };
        let tokens = self.tokens + earned(pace, passed);
        let missing = i64::try_from(self.queue_bytes + bytes).unwrap_or(i64::MAX) - tokens;
        span(missing, pace)
    }

    /// Returns true if `buffers` more buffers are within the bound of held memory.
    pub(in crate::session) fn has_room(&self, buffers: usize) -> bool {
        self.queue.len() + buffers <= BUFFERS_MAX
    }

    /// Adds a buffer to the queue.
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.queue_bytes += waiting.bytes();
        self.queue.push_back(waiting);
    }

    /// Drops all units of which no packet was sent, and returns their number.
    fn drop_unstarted(&mut self) -> u64 {
        let is_begun = self.queue.front().is_some_and(|first| !first.is_start || first.next > 0);
        let begins = |waiting: &&Waiting| waiting.is_start && waiting.next == 0;
        let dropped = self.queue.iter().filter(begins).count();
        let kept = if is_begun {
            self.queue.iter().position(|waiting| waiting.is_end).map_or(self.queue.len(), |end| end + 1)
        } else {
            0
        };
        self.queue.truncate(kept);
        self.queue_bytes = self.queue.iter().map(Waiting::bytes).sum();
        u64::try_from(dropped).unwrap_or_default()
    }

    /// Drops all packets that wait.
    pub(in crate::session) fn clear(&mut self) {
        self.queue.clear();
        self.queue_bytes = 0;
        self.probe = None;
    }

    // ---- pace --------------------------------------------------------------------------------------

    /// Fills the token buckets.
    pub(super) fn fill(&mut self, now: Instant) {
        let (pace, passed) = (self.estimate.pace(), now.saturating_duration_since(self.filled_at));
        self.filled_at = now;
        let most = earned(pace, limits::PACE_BURST);
        self.tokens = (self.tokens + earned(pace, passed)).min(most);
        let resend = self.resend_tokens + earned(self.estimate.rate() / 4, passed);
        self.resend_tokens = resend.min(resend_max(&self.estimate));
    }

    /// Begins a probe if one is due: at an IDR, or whenever much waits if there was none for long.
    pub(super) fn begin_probe(&mut self, now: Instant, is_idr: bool) {
        let [at_idr, at_any] = limits::PROBE_INTERVAL;
        let (least, most) = (*limits::PROBE_BYTES.start(), *limits::PROBE_BYTES.end());
        let interval = if is_idr { at_idr } else { at_any };
        let is_due = self.probed_at.is_none_or(|at| now.saturating_duration_since(at) >= interval);
        if self.probe.is_none() && is_due && self.queue_bytes >= least {
            let bytes = self.estimate.rate() * limits::PROBE_MS / 1_000;
            self.probed_at = Some(now);
            self.probe = Some((usize::try_from(bytes).unwrap_or(most).clamp(least, most), false));
        }
    }

    /// Begins a probe if one is due and the first unit that waits is as small as one: it leaves in one burst. Its last
    /// packet is marked, so the burst needs no marks before and after it.
    pub(super) fn begin_unit_probe(&mut self, now: Instant) {
        let (least, most) = (*limits::PROBE_BYTES.start(), *limits::PROBE_BYTES.end());
        let is_due =
            self.probed_at.is_none_or(|at| now.saturating_duration_since(at) >= limits::UNIT_PROBE_INTERVAL);
        if self.probe.is_some() || !is_due || self.queue_bytes < least {
            return;
        }
        let end = self.queue.iter().position(|waiting| waiting.is_end).map_or(0, |end| end + 1);
        let bytes: usize = self.queue.iter().take(end).map(Waiting::bytes).sum();
        if (least..=most * 2).contains(&bytes) {
            (self.probed_at, self.probe) = (Some(now), Some((bytes, true)));
        }
    }

    /// Returns what to send now.
    pub(super) fn poll(&mut self) -> Option<Step> {
        match self.probe {
            Some((left, false)) => {
                self.probe = Some((left, true));
                return Some(Step::Mark);
            }
            Some((left, true)) if left == 0 || self.queue.is_empty() => {
                self.probe = None;
                return Some(Step::Mark);
            }
            _ => {}
        }
        if self.tokens <= 0 && self.probe.is_none() {
            return None;
        }
        let first = self.queue.front_mut()?;
        let packet = first.clone();
        first.next += 1;
        let bytes = wire_bytes(packet.payloads.get(packet.next));
        if first.next >= first.payloads.len() {
            self.queue.pop_front();
        }
        self.queue_bytes = self.queue_bytes.saturating_sub(bytes);
        self.tokens -= i64::try_from(bytes).unwrap_or_default();
        if let Some((left, _)) = &mut self.probe {
            *left = left.saturating_sub(bytes);
        }
        Some(Step::Packet(packet))
    }

    /// Returns true if a packet may be retransmitted now.
    pub(super) fn may_resend(&self) -> bool {
        self.tokens > 0 && self.resend_tokens > 0
    }

    /// Returns true if the budget of retransmissions is spent.
    pub(super) fn is_resend_budget_spent(&self) -> bool {
        self.resend_tokens <= 0
    }

    /// Takes a retransmission of `bytes` UDP payload bytes from both buckets.
    pub(super) fn on_resent(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes + limits::IP_UDP_BYTES).unwrap_or_default();
        self.tokens -= bytes;
        self.resend_tokens -= bytes;
    }

    /// Returns when the next packet is due, if `has_pending` retransmissions or packets wait.
    pub(in crate::session) fn due_at(&self, has_pending: bool) -> Option<Instant> {
        let slot = earned(self.estimate.pace(), limits::PACE_SLOT);
        let missing = slot.saturating_sub(self.tokens);
        (has_pending || !self.queue.is_empty()).then(|| self.filled_at + span(missing, self.estimate.pace()))
    }

    /// Returns true if the link carries so much more than the stream that pacing is not needed, and there was no
    /// trouble for the time that the number of earlier troubles asks for.
    pub(super) fn is_over(&self, now: Instant, times_paced: u32) -> bool {
        let calm = limits::PACED_AT_LEAST * 2_u32.saturating_pow(times_paced.clamp(1, 5) - 1);
        let has_room = self.estimate.rate() / 3 > self.offered_rate && self.offered_rate > 0;
        self.is_idle() && has_room && now.saturating_duration_since(self.trouble_at) >= calm
    }
}

/// The bucket of retransmissions holds those of a second, so that one lost burst can be repaired.
fn resend_max(estimate: &LinkEstimate) -> i64 {
    earned(estimate.rate() / 4, Duration::from_secs(1))
}

fn earned(rate: u64, span: Duration) -> i64 {
    i64::try_from(span.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(i64::MAX)
}

/// Returns the time that `bytes` take at `rate`.
fn span(bytes: i64, rate: u64) -> Duration {
    let bytes = u64::try_from(bytes).unwrap_or(0);
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const MS: Duration = Duration::from_millis(1);
    const MBPS: u64 = 125_000;

    fn now() -> Instant {
        clock::now().instant
    }

    /// Returns a pacer of a link that carries `mbps` Mbit/s.
    fn pacer(now: Instant, mbps: u64) -> Pacer {
        Pacer::new(now, LinkEstimate::new(now, mbps * MBPS))
    }

    fn push(pacer: &mut Pacer, packets: usize) {
        let buffers = packets.div_ceil(8);
        for buffer in 0..buffers {
            let count = (packets - 8 * buffer).min(8);
            let payloads = Arc::new((0..count).map(|_| vec![7; 1_150]).collect());
            let (is_start, is_end) = (buffer == 0, buffer + 1 == buffers);
            pacer.push(Waiting { payloads, next: 0, rtp_time: 0, captured_ntp: 0, is_end, is_start });
        }
    }

    /// Returns the number of packets sent, and the number of packets before each mark.
    fn sent(pacer: &mut Pacer) -> (usize, Vec<usize>) {
        let (mut packets, mut marks) = (0, Vec::new());
        while let Some(step) = pacer.poll() {
            match step {
                Step::Packet(_) => packets += 1,
                Step::Mark => marks.push(packets),
            }
        }
        (packets, marks)
    }

    #[test]
    fn packets_leave_at_the_estimated_rate() {
        let mut now = now();
        let mut pacer = pacer(now, 12);
        push(&mut pacer, 140);
        let begun = now;
        let mut packets = 0;
        while let Some(due) = pacer.due_at(false) {
            now = now.max(due);
            pacer.fill(now);
            let (burst, _) = sent(&mut pacer);
            assert!(burst <= 7, "{burst} packets at once");
            packets += burst;
        }
        let (took, expected) = (now - begun, span(140 * 1_208, pacer.estimate.pace()));
        assert_eq!(packets, 140);
        assert!(took.abs_diff(expected) < 6 * MS, "{took:?} instead of {expected:?}");
    }

    #[test]
    fn probe_is_a_burst_between_marks_and_the_pace_makes_up_for_it() {
        let mut now = now();
        let mut pacer = pacer(now, 4);
        push(&mut pacer, 100);
        pacer.begin_probe(now, true);
        pacer.fill(now);
        assert_eq!(sent(&mut pacer), (20, vec![0, 20]));
        now += 40 * MS;
        pacer.fill(now);
        assert_eq!(sent(&mut pacer).0, 0, "the burst is paid off first");
        pacer.begin_probe(now, true);
        assert_eq!(sent(&mut pacer), (0, vec![]), "the next probe is not due");
    }

    #[test]
    fn units_that_would_be_late_do_not_fit_and_non_reference_units_give_way_first() {
        let mut now = now();
        let mut pacer = pacer(now, 4);
        pacer.on_unit(now, 165_000, true);
        now += Duration::from_secs(1);
        pacer.on_unit(now, 165_000, true);
        assert_eq!(pacer.to_next_idr(now), Some(Duration::from_secs(1)));
        pacer.fill(now);
        push(&mut pacer, 140);
        assert!(pacer.fits(now, 28_000, true), "370 ms");
        assert!(!pacer.fits(now, 28_000, false), "370 ms");
        push(&mut pacer, 140);
        assert!(!pacer.fits(now, 28_000, true), "740 ms");
        assert!(pacer.fits(now + 600 * MS, 1_000, true));
        assert!(!pacer.fits(now + 600 * MS, 250_000, true), "after the next IDR");
    }

    #[test]
    fn idr_replaces_units_that_have_not_begun() {
        let now = now();
        let mut pacer = pacer(now, 1);
        push(&mut pacer, 100);
        push(&mut pacer, 100);
        push(&mut pacer, 100);
        pacer.fill(now + 10 * MS);
        let begun = sent(&mut pacer).0;
        assert!(begun > 0 && begun < 10);
        assert_eq!(pacer.on_unit(now + 10 * MS, 1_000, true), 2);
        assert_eq!(pacer.queue_bytes, (100 - begun) * 1_208, "the unit that has begun is finished");
        assert!(pacer.queue.back().unwrap().is_end);
    }

    #[test]
    fn fast_link_keeps_the_last_units_when_an_idr_comes() {
        let now = now();
        let mut pacer = pacer(now, 20);
        push(&mut pacer, 20);
        push(&mut pacer, 20);
        assert_eq!(pacer.on_unit(now, 1_000, true), 0);
        assert_eq!(pacer.queue_bytes, 40 * 1_208);
    }

    #[test]
    fn retransmissions_get_a_quarter_of_the_rate() {
        let mut now = now();
        let mut pacer = pacer(now, 8);
        let mut bytes = 0;
        for _ in 0..5_000 {
            now += 2 * MS;
            pacer.fill(now);
            while pacer.may_resend() {
                pacer.on_resent(1_172);
                bytes += 1_200;
            }
        }
        let expected = 11 * pacer.estimate.rate() / 4;
        assert!(bytes <= expected + 1_200, "{bytes} bytes in 10 s, with a burst of one second's");
        assert!(bytes >= expected - 5_000, "{bytes}");
    }

    #[test]
    fn memory_of_waiting_units_is_bounded() {
        let mut pacer = pacer(now(), 1);
        let mut held = 0;
        while pacer.has_room(10) {
            push(&mut pacer, 80);
            held += 10 * BUFFER_BYTES;
        }
        assert!(held <= limits::PACED_BYTES_MAX && held > limits::PACED_BYTES_MAX / 2);
    }

    #[test]
    fn pacing_ends_when_the_link_has_room_and_lasts_longer_each_time() {
        let begun = now();
        let mut pacer = pacer(begun, 60);
        let mut now = begun;
        for _ in 0..3 {
            pacer.on_unit(now, 1_000_000, true);
            now += Duration::from_secs(1);
        }
        assert!(!pacer.is_over(begun + 9_999 * MS, 1));
        assert!(pacer.is_over(begun + 10_000 * MS, 1));
        assert!(!pacer.is_over(begun + 30_000 * MS, 3));
        assert!(pacer.is_over(begun + 160_000 * MS, u32::MAX));
        pacer.offered_rate = 30 * MBPS;
        assert!(!pacer.is_over(begun + 160_000 * MS, 1), "the link has little room");
    }
}
