//! Decides how a viewer gets an IDR: by a replay of the GOP so far, or by waiting for the camera's next IDR. This
//! module also paces the replay; the worker holds the units of the GOP.
//!
//! ```text
//!   joined, nothing sent yet ──┐                      every unit since the IDR, RTP time compressed
//!                              ├─► Replay ─► catching up ────────────────► live
//!   requested an IDR (PLI) ────┘     └─► WaitForIdr: the camera's next IDR, or a GOP that is found later
//! ```

use std::time::{Duration, Instant};

use crate::base::limits;
use crate::metrics::status::GateState;

/// Why a viewer needs an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum IdrReason {
    /// The viewer joined and has no picture yet.
    Join,
    /// The viewer requested an IDR (PLI or FIR), or missed units because of a gap.
    Request,
}

/// What the worker can offer a viewer that needs an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GopAvailability {
    /// Size of the newest GOP; `None` if the GOP cannot be replayed from its IDR on.
    pub gop: Option<GopSize>,
    /// True if that GOP begins with a recovery point, not with an IDR.
    pub begins_at_recovery_point: bool,
    /// Time until the camera's next IDR, if known.
    pub next_idr_in: Option<Duration>,
}

/// Size of a GOP so far.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GopSize {
    /// Number of access units.
    pub units: usize,
    /// Number of RTP packets.
    pub packets: usize,
    /// Number of payload bytes.
    pub bytes: usize,
}

/// How the viewer gets its IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CatchUpDecision {
    /// The GOP so far is replayed: [`Viewer::poll_catch_up_unit`] returns its units one by one.
    ///
    /// [`Viewer::poll_catch_up_unit`]: crate::session::Viewer::poll_catch_up_unit
    Replay,
    /// Wait for the camera's next IDR, and request one if the camera supports that.
    WaitForIdr,
    /// The viewer already waits for an IDR, and there is still none.
    StillWaiting,
    /// An IDR was sent recently or is being replayed, so nothing needs to be done.
    AlreadySent,
}

/// A viewer's catch-up state.
#[derive(Debug, Default)]
pub(in crate::session) struct CatchUp {
    /// True if it was reported that the viewer waits for its first IDR. A GOP may still be found: the worker may not have read any
    /// unit yet, or may find the IDR in the ring later.
    pub(in crate::session) is_waiting: bool,
    /// Set while a replay is in progress.
    pub(in crate::session) replay: Option<Replay>,
    /// Start time of the latest replay that answered an IDR request.
    requested_at: Option<Instant>,
    pub(in crate::session) idr_sent_at: Option<Instant>,
    /// True for a publisher. WHIP servers request IDRs for each of their viewers, and some do so all the time.
    is_publisher: bool,
    /// Number of replays begun so far.
    pub(in crate::session) count: u64,
}

impl CatchUp {
    pub(in crate::session) fn new(is_publisher: bool) -> CatchUp {
        CatchUp { is_publisher, ..CatchUp::default() }
    }

    /// Decides how the viewer gets its IDR, and begins a replay if that is the decision.
    pub(in crate::session) fn decide(
        &mut self,
        now: Instant,
        reason: IdrReason,
        gate: GateState,
        rtt: Option<Duration>,
        available: GopAvailability,
    ) -> CatchUpDecision {
        if reason == IdrReason::Request && self.is_idr_on_its_way(now, rtt) {
            return CatchUpDecision::AlreadySent;
        }
        let gop = available.gop.filter(|_| reason == IdrReason::Join || self.is_worth(now, gate, available));
        let Some(gop) = gop else {
            let was_waiting = std::mem::replace(&mut self.is_waiting, true) && reason == IdrReason::Join;
            return if was_waiting { CatchUpDecision::StillWaiting } else { CatchUpDecision::WaitForIdr };
        };
        self.replay = Some(Replay::new(gop.bytes, now));
        self.count += 1;
        if reason == IdrReason::Request {
            self.requested_at = Some(now);
        }
        CatchUpDecision::Replay
    }

    fn is_idr_on_its_way(&self, now: Instant, rtt: Option<Duration>) -> bool {
        let in_transit = rtt.map_or(limits::IDR_ON_ITS_WAY, |rtt| limits::IDR_ON_ITS_WAY.max(rtt * 3 / 2));
        self.replay.is_some() || is_within(self.idr_sent_at, now, in_transit)
    }

    /// Returns true if a replay should answer an IDR request.
    fn is_worth(&self, now: Instant, gate: GateState, available: GopAvailability) -> bool {
        let (worth, interval) = match self.is_publisher {
            true => (limits::PUBLISHER_REPLAY_WORTH, limits::PUBLISHER_REPLAY_INTERVAL),
            false => (limits::REPLAY_WORTH, limits::REPLAY_INTERVAL),
        };
        let is_soon = available.next_idr_in.is_some_and(|wait| wait < worth);
        let is_repeated = is_within(self.requested_at, now, interval);
        // Units are being dropped until the next IDR, because the link is slow. A replay would add to the congestion.
        let is_congested = gate != GateState::Live;
        // A viewer that requests an IDR after a start at a recovery point cannot start there.
        let is_useless = available.begins_at_recovery_point;
        !is_soon && !is_repeated && !is_congested && !is_useless
    }
}

fn is_within(at: Option<Instant>, now: Instant, span: Duration) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < span)
}

/// Progress and pace of a replay: the position in the GOP, and a token bucket in bytes. The first unit may always be
/// sent at once.
#[derive(Debug)]
pub(in crate::session) struct Replay {
    /// Index of the unit to send next; the IDR has index 0.
    next: usize,
    bytes_per_s: u64,
    /// Bytes that may be sent now. Negative after a unit that was larger than the rest of the bucket.
    bytes: i64,
    filled_at: Instant,
}

impl Replay {
    /// Creates a replay that starts at the IDR. Its bucket fills at the rate that sends `gop_bytes` in
    /// [`limits::REPLAY_MS`], limited to the range [`limits::REPLAY_BYTES_PER_S`].
    fn new(gop_bytes: usize, now: Instant) -> Replay {
        let bytes_per_s = 1_000 * gop_bytes as u64 / limits::REPLAY_MS;
        let (slowest, fastest) = (*limits::REPLAY_BYTES_PER_S.start(), *limits::REPLAY_BYTES_PER_S.end());
        Replay { next: 0, bytes_per_s: bytes_per_s.clamp(slowest, fastest), bytes: 1, filled_at: now }
    }

    /// Fills the bucket. Returns the index of the next unit if it may be sent now.
    pub(in crate::session) fn poll(&mut self, now: Instant) -> Option<usize> {
        let earned = self.bytes_in(now.saturating_duration_since(self.filled_at));
        let burst_max = self.bytes_in(Duration::from_millis(limits::REPLAY_BURST_MS));
        self.filled_at = now;
        self.bytes = self.bytes.saturating_add(earned).min(burst_max.max(self.bytes));
        (self.bytes > 0).then_some(self.next)
    }

    /// Takes the `bytes` of the next unit from the bucket, and moves on to the unit after it.
    pub(in crate::session) fn advance(&mut self, bytes: usize) {
        self.next += 1;
        self.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    fn bytes_in(&self, span: Duration) -> i64 {
        let nanoseconds = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        i64::try_from(u128::from(nanoseconds) * u128::from(self.bytes_per_s) / 1_000_000_000)
            .unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    /// Returns how many milliseconds a replay of `units` units of `unit_bytes` each takes with a turn every `turn_ms`.
    fn duration_ms(unit_bytes: usize, units: usize, turn_ms: u64) -> u64 {
        let begin = clock::now().instant;
        let mut replay = Replay::new(unit_bytes * units, begin);
        let mut sent = 0;
        for turn in 0.. {
            let now = begin + Duration::from_millis(turn * turn_ms);
            while sent < units && replay.poll(now) == Some(sent) {
                replay.advance(unit_bytes);
                sent += 1;
            }
            if sent == units {
                return turn * turn_ms;
            }
        }
        unreachable!("the loop has no end")
    }

    #[test]
    fn first_unit_of_any_size_is_sent_at_once() {
        let now = clock::now().instant;
        let mut replay = Replay::new(400_000, now);
        assert_eq!(replay.poll(now), Some(0));
        replay.advance(300_000);
        assert_eq!(replay.poll(now + Duration::from_millis(1)), None);
    }

    #[test]
    fn gop_of_usual_size_takes_a_quarter_of_a_second() {
        let expected = limits::REPLAY_MS;
        for turn_ms in [1, 3] {
            let took = duration_ms(8_000, 300, turn_ms);
            assert!((expected - 10..=expected + 10).contains(&took), "{took} ms");
        }
    }

    #[test]
    fn rate_stays_within_its_limits_for_large_and_small_gops() {
        let large_ms = 1_000 * 10_000_000 / *limits::REPLAY_BYTES_PER_S.end();
        let took = duration_ms(33_333, 300, 1);
        assert!((large_ms - 10..=large_ms + 10).contains(&took), "{took} ms");
        assert!(duration_ms(4_000, 10, 1) <= 10);
    }

    #[test]
    fn delayed_worker_does_not_burst() {
        let begin = clock::now().instant;
        let mut replay = Replay::new(10_000_000, begin);
        let late = begin + Duration::from_secs(1);
        let burst = std::iter::from_fn(|| replay.poll(late).map(|_| replay.advance(1_200)));
        let bytes = 1_200 * burst.count() as u64;
        let burst_max = *limits::REPLAY_BYTES_PER_S.end() * limits::REPLAY_BURST_MS / 1_000;
        assert!(bytes <= burst_max + 1_200, "{bytes} bytes at once");
    }
}
