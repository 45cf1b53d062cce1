//! Gives the GOP so far to viewers who need it, spread over turns: a viewer that joins may not hold up the live
//! units of the others, nor overflow a socket. May not decide who needs it: `session` does.

use std::time::{Duration, Instant};

use crate::base::clock::Now;
use crate::base::limits;
use crate::metrics::WorkerCounters;
use crate::session::{CatchUpDecision, CatchUpTime, GopAvailability, IdrReason, PacketizedUnit};
use crate::worker::gop::GopUnit;
use crate::worker::registry::{Registry, SessionSlot};
use crate::worker::source::Source;
use crate::worker::wire::{Driver, ViewerSink};

/// One viewer's way through the GOP.
#[derive(Debug)]
pub(super) struct Replay {
    /// Index of its next unit.
    next: usize,
    pace: TokenBucket,
}

/// How fast it goes: a bucket of bytes that fills with time. The first unit always passes.
#[derive(Debug)]
struct TokenBucket {
    bytes_per_s: u64,
    /// Below 0: what was sent ahead of time.
    bytes: i64,
    filled_at: Instant,
}

impl TokenBucket {
    /// So that `bytes` take [`limits::REPLAY_MS`], within bounds.
    fn new(bytes: usize, now: Instant) -> Self {
        let bytes_per_s = 1_000 * bytes as u64 / limits::REPLAY_MS;
        let (slowest, fastest) = (*limits::REPLAY_BYTES_PER_S.start(), *limits::REPLAY_BYTES_PER_S.end());
        TokenBucket { bytes_per_s: bytes_per_s.clamp(slowest, fastest), bytes: 1, filled_at: now }
    }

    fn may_send(&mut self, now: Instant) -> bool {
        let earned = self.bytes_in(now.saturating_duration_since(self.filled_at));
        let most = self.bytes_in(Duration::from_millis(limits::REPLAY_BURST_MS));
        self.filled_at = now;
        self.bytes = self.bytes.saturating_add(earned).min(most.max(self.bytes));
        self.bytes > 0
    }

    fn sent(&mut self, bytes: usize) {
        self.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    fn bytes_in(&self, span: Duration) -> i64 {
        let nanoseconds = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        i64::try_from(u128::from(nanoseconds) * u128::from(self.bytes_per_s) / 1_000_000_000)
            .unwrap_or(i64::MAX)
    }
}

/// What a turn replays with.
pub(super) struct ReplayTurn<'a, W> {
    pub(super) source: &'a mut Source,
    pub(super) driver: &'a mut W,
    pub(super) counters: &'a WorkerCounters,
    pub(super) now: Now,
    /// The camera is to be asked for an IDR: a viewer has to wait for the next one, or is better off with one.
    pub(super) is_idr_wanted: bool,
}

impl<W: Driver> ReplayTurn<'_, W> {
    /// Answers new needs and sends one turn's share of what is being replayed. `first` goes first. Says whether a
    /// viewer waits for more.
    pub(super) fn turn(&mut self, sessions: &mut Registry, first: usize) -> bool {
        let count = sessions.len();
        let mut share = limits::REPLAY_BYTES_PER_TURN;
        let mut is_any_left = false;
        for place in 0..count {
            let Some(slot) = sessions.at((first + place) % count) else { continue };
            self.answer(slot);
            if !slot.viewer.is_catching_up() {
                // The camera's next IDR came before its end.
                self.counters.replays_cut.add(u64::from(slot.replay.take().is_some()));
            } else {
                self.go_on(slot, &mut share);
                is_any_left |= slot.viewer.is_catching_up();
            }
        }
        is_any_left
    }

    fn answer(&mut self, slot: &mut SessionSlot) {
        let Some(need) = slot.viewer.poll_idr_reason() else { return };
        let now = self.now.instant;
        let next_idr_in = self.source.next_idr_in(self.counters);
        let gop = self.source.gop_so_far(self.now.monotonic_ns, self.counters).filter(|gop| gop.len() > 0);
        let size = gop.map(|gop| (gop.bytes(), gop.packets(), gop.len()));
        match slot.viewer.decide_catch_up(now, need, GopAvailability { has_gop: size.is_some(), next_idr_in })
        {
            CatchUpDecision::Replay => {
                let (bytes, packets, units) = size.unwrap_or_default();
                self.is_idr_wanted |= is_worth_asking(need, units);
                slot.viewer.begin_catch_up(now, need, packets);
                slot.replay = Some(Replay { next: 0, pace: TokenBucket::new(bytes, now) });
                match need {
                    IdrReason::Join => self.counters.replays_of_joins.add(1),
                    IdrReason::Request => self.counters.replays_of_requests.add(1),
                }
            }
            CatchUpDecision::WaitForIdr => {
                self.counters.idr_waits.add(1);
                self.is_idr_wanted = true;
            }
            CatchUpDecision::AlreadySent => {}
        }
    }

    /// Sends units of one viewer until its pace, the turn's share or its socket says stop.
    fn go_on(&mut self, slot: &mut SessionSlot, share: &mut usize) {
        let (now, counters) = (self.now, self.counters);
        while *share > 0 && self.driver.in_flight(slot.viewer.id()) <= limits::REPLAY_IN_FLIGHT_MAX {
            let Some(replay) = slot.replay.as_mut() else { return };
            if !replay.pace.may_send(now.instant) {
                return;
            }
            let latest = self.source.latest(now);
            let Some(gop) = self.source.gop_so_far(now.monotonic_ns, counters) else {
                return end(slot, false);
            };
            let Some(kept) = gop.at(replay.next) else { return end(slot, true) };
            let is_newest = replay.next + 1 == gop.len();
            replay.next += 1;
            replay.pace.sent(kept.bytes());
            *share = share.saturating_sub(kept.bytes());
            let time = latest.time_of(&kept);
            slot.viewer.note_congestion(self.driver.in_flight(slot.viewer.id()));
            let SessionSlot { viewer, sends, .. } = &mut *slot;
            let mut sink = ViewerSink { viewer: viewer.id(), driver: &mut *self.driver, sends };
            let is_sent =
                viewer.push_catch_up_unit(now.instant, &packetized(&kept), time, is_newest, &mut sink);
            counters.units_replayed.add(u64::from(is_sent));
            slot.deadline = slot.viewer.next_deadline();
            self.driver.flush();
            if is_newest {
                return end(slot, true);
            }
        }
    }
}

/// Whether the camera is asked for an IDR although a GOP of `units` can be given: who asked for one may have lost more
/// than it knows, and who joins late would have a long way through the GOP. The IDR ends the replay.
fn is_worth_asking(need: IdrReason, units: usize) -> bool {
    need == IdrReason::Request || units > limits::REPLAY_UNITS_SHORT
}

fn end(slot: &mut SessionSlot, is_complete: bool) {
    slot.replay = None;
    slot.viewer.end_catch_up(is_complete);
}

/// The newest live unit: what replayed ones are put just before.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewestUnit {
    pub(super) number: u32,
    pub(super) rtp_time_90k: u64,
    /// When it was taken.
    pub(super) at: Instant,
}

impl NewestUnit {
    /// One tick of RTP time between two replayed units: the viewer's clock stands where it will when the live ones
    /// come, and everything before is late and shown at once.
    fn time_of(&self, kept: &GopUnit<'_>) -> CatchUpTime {
        let units_before = self.number.wrapping_sub(kept.unit.number);
        let rtp_time_90k =
            self.rtp_time_90k.saturating_sub(u64::from(units_before) * limits::REPLAY_STEP_90K);
        CatchUpTime { rtp_time_90k, at: self.at }
    }
}

fn packetized<'a>(kept: &GopUnit<'a>) -> PacketizedUnit<'a> {
    PacketizedUnit {
        payloads: kept.payloads,
        is_idr: kept.unit.is_idr,
        is_reference: kept.unit.is_reference,
        rtp_time_90k: 0,
        captured_at_ns: kept.unit.captured_at_ns,
        gap_before: false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::base::clock;

    /// Milliseconds that units of `unit_bytes` take, `units` of them, with a turn every `turn_ms`.
    fn duration_ms(unit_bytes: usize, units: usize, turn_ms: u64) -> u64 {
        let begin = clock::now().instant;
        let mut pace = TokenBucket::new(unit_bytes * units, begin);
        let mut sent = 0;
        for turn in 0.. {
            let now = begin + Duration::from_millis(turn * turn_ms);
            while sent < units && pace.may_send(now) {
                pace.sent(unit_bytes);
                sent += 1;
            }
            if sent == units {
                return turn * turn_ms;
            }
        }
        unreachable!("the loop has no end")
    }

    #[test]
    fn the_first_unit_goes_at_once_whatever_its_size() {
        let now = clock::now().instant;
        let mut pace = TokenBucket::new(400_000, now);
        assert!(pace.may_send(now));
        pace.sent(300_000);
        assert!(!pace.may_send(now + Duration::from_millis(1)));
    }

    #[test]
    fn a_gop_of_a_usual_size_takes_a_quarter_of_a_second() {
        let expected = limits::REPLAY_MS;
        for turn_ms in [1, 3] {
            let took = duration_ms(8_000, 300, turn_ms);
            assert!((expected - 10..=expected + 10).contains(&took), "{took} ms");
        }
    }

    #[test]
    fn a_large_gop_does_not_go_faster_than_allowed_nor_a_small_one_slower() {
        let large_ms = 1_000 * 10_000_000 / *limits::REPLAY_BYTES_PER_S.end();
        let took = duration_ms(33_333, 300, 1);
        assert!((large_ms - 10..=large_ms + 10).contains(&took), "{took} ms");
        assert!(duration_ms(4_000, 10, 1) <= 10);
    }

    #[test]
    fn a_worker_that_was_held_up_does_not_burst() {
        let begin = clock::now().instant;
        let mut pace = TokenBucket::new(10_000_000, begin);
        let late = begin + Duration::from_secs(1);
        let burst = std::iter::from_fn(|| pace.may_send(late).then(|| pace.sent(1_200)));
        let bytes = 1_200 * burst.count() as u64;
        let most = *limits::REPLAY_BYTES_PER_S.end() * limits::REPLAY_BURST_MS / 1_000;
        assert!(bytes <= most + 1_200, "{bytes} bytes at once");
    }

    #[test]
    fn replayed_units_stand_before_the_newest_whatever_wraps() {
        let at = clock::now().instant;
        let latest = NewestUnit { number: 5, rtp_time_90k: 90_000, at };
        let unit = |number| crate::worker::gop::UnitInfo {
            number,
            is_idr: false,
            is_reference: true,
            captured_at_ns: None,
        };
        let time = |number| latest.time_of(&GopUnit { unit: unit(number), payloads: &[] }).rtp_time_90k;
        assert_eq!((time(5), time(4), time(u32::MAX)), (90_000, 89_999, 89_994));
    }
}
