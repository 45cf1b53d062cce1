//! When a viewer is given the GOP so far, and how it joins the live units behind it. Decisions only: where the GOP
//! comes from and how fast it goes out is the caller's business.
//!
//! ```text
//!   joined, nothing sent yet ──┐                      every unit since the IDR, its RTP time compressed
//!                              ├─► Replay ─► catching up ────────────────► live
//!   asked for an IDR (PLI) ────┘     └─► Wait: the next IDR of the camera
//! ```

use std::time::{Duration, Instant};

use crate::base::limits;
use crate::session::media::gate::{Gate, GateState};
use crate::session::sink::DatagramSink;
use crate::session::viewer::{Phase, Viewer};
use crate::session::{PacketizedUnit, viewer};

/// Why a viewer needs an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum IdrReason {
    /// It joined and has no picture yet.
    Join,
    /// It asked for one (PLI or FIR).
    Request,
}

/// What the worker can offer a viewer that needs an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GopAvailability {
    /// The newest GOP can be given from its IDR on.
    pub has_gop: bool,
    /// Time until the camera's next IDR, where that is known.
    pub next_idr_in: Option<Duration>,
}

/// What is done about it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CatchUpDecision {
    /// Give it the GOP so far: [`Viewer::begin_catch_up`], then [`Viewer::push_catch_up_unit`].
    Replay,
    /// It has to wait for the camera's next IDR; ask the camera for one, where that can be asked.
    WaitForIdr,
    /// An IDR is on its way to it already.
    AlreadySent,
}

/// The time of a replayed unit: just before the newest live one.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CatchUpTime {
    /// RTP time of the unit, 90 kHz, extended; raised where it would not increase.
    pub rtp_time_90k: u64,
    /// The moment that RTP time stands for: sender reports tell it.
    pub at: Instant,
}

/// A viewer's replays.
#[derive(Debug, Default)]
pub(in crate::session) struct Replays {
    /// A viewer that joined and has to wait is not asked again.
    is_join_settled: bool,
    is_active: bool,
    /// When the last one of a request began.
    requested_at: Option<Instant>,
    idr_sent_at: Option<Instant>,
    /// The cache of packets to send again is the large one; since the end of the replay.
    wide_since: Option<Instant>,
    pub(in crate::session) count: u64,
    pub(in crate::session) units: u64,
}

impl Replays {
    /// A unit was sent.
    pub(in crate::session) fn note_sent(&mut self, now: Instant, is_idr: bool) {
        if is_idr {
            self.idr_sent_at = Some(now);
        }
    }

    /// The rule for a viewer that asked for an IDR.
    fn answer(
        &self,
        now: Instant,
        gate: GateState,
        rtt: Option<Duration>,
        available: GopAvailability,
    ) -> CatchUpDecision {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let on_its_way = rtt.map_or(limits::IDR_ON_ITS_WAY, |rtt| limits::IDR_ON_ITS_WAY.max(rtt * 3 / 2));
        if self.is_active || since(self.idr_sent_at).is_some_and(|age| age < on_its_way) {
            return CatchUpDecision::AlreadySent;
        }
        let is_soon = available.next_idr_in.is_some_and(|wait| wait < limits::REPLAY_WORTH);
        let is_again = since(self.requested_at).is_some_and(|age| age < limits::REPLAY_INTERVAL);
        // One that dropped to the next IDR has a way that is too narrow: a burst would not help it.
        let is_congested = gate != GateState::Live;
        if !available.has_gop || is_soon || is_again || is_congested {
            return CatchUpDecision::WaitForIdr;
        }
        CatchUpDecision::Replay
    }
}

impl Viewer {
    /// Whether the viewer needs an IDR; then ask [`Viewer::decide`] what to do. A request is told once.
    pub fn poll_idr_reason(&mut self) -> Option<IdrReason> {
        if self.phase != Phase::Connected {
            return None;
        }
        if self.gate.state() == GateState::WaitingForIdr && !self.replays.is_join_settled {
            return Some(IdrReason::Join);
        }
        self.take_idr_wanted().then_some(IdrReason::Request)
    }

    /// What to do about a need, given what the worker has. The answer to a join is given once.
    pub fn decide_catch_up(
        &mut self,
        now: Instant,
        need: IdrReason,
        available: GopAvailability,
    ) -> CatchUpDecision {
        match need {
            IdrReason::Join => {
                self.replays.is_join_settled = true;
                if available.has_gop { CatchUpDecision::Replay } else { CatchUpDecision::WaitForIdr }
            }
            IdrReason::Request => self.replays.answer(now, self.gate.state(), self.rtt(), available),
        }
    }

    /// From now on the viewer gets [`Viewer::push_catch_up_unit`]; live units are ignored until the replay ends or
    /// an IDR comes. `packets`: how many RTP packets the GOP so far makes.
    pub fn begin_catch_up(&mut self, now: Instant, need: IdrReason, packets: usize) {
        self.replays.is_active = true;
        self.replays.count += 1;
        if need == IdrReason::Request {
            self.replays.requested_at = Some(now);
        }
        if packets > limits::RTX_CACHE_PACKETS && self.replays.wide_since.is_none() {
            self.set_rtx_cache(limits::REPLAY_RTX_PACKETS);
            self.replays.wide_since = Some(now);
        }
    }

    /// Whether it is being given the GOP so far.
    pub fn is_catching_up(&self) -> bool {
        self.replays.is_active
    }

    /// Sends the next unit of the GOP, the IDR first, every one in order. Units that no other refers to are
    /// left out, but for the last: `is_newest`. Says whether it was sent.
    pub fn push_catch_up_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        time: CatchUpTime,
        is_newest: bool,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let is_needed = unit.is_reference || unit.is_idr || is_newest;
        if self.phase != Phase::Connected || !self.replays.is_active || !is_needed {
            return false;
        }
        let sent_before = self.counters.units_sent;
        self.send_unit(now, unit, viewer::SendTime::Replayed(time), sink);
        let is_sent = self.counters.units_sent > sent_before;
        self.replays.units += u64::from(is_sent);
        self.replays.wide_since = self.replays.wide_since.map(|_| now);
        is_sent
    }

    /// The replay is over: with `is_complete` the newest unit was pushed and live ones follow; otherwise the
    /// rest is not to be had and the viewer drops to the next IDR.
    pub fn end_catch_up(&mut self, is_complete: bool) {
        if std::mem::take(&mut self.replays.is_active) && !is_complete {
            self.gate.lose();
        }
    }

    /// A live unit comes: whether it is for this viewer now. The camera's next IDR ends a replay.
    pub(in crate::session) fn takes_live(&mut self, now: Instant, is_idr: bool) -> bool {
        if is_idr {
            self.replays.is_active = false;
            self.narrow_rtx_cache(now);
        }
        !self.replays.is_active
    }

    /// Goes back to the usual cache: at an IDR, when the replay can't be asked for any more.
    fn narrow_rtx_cache(&mut self, now: Instant) {
        let is_over = |since: Instant| now.saturating_duration_since(since) > limits::RTX_CACHE_AGE;
        if self.replays.wide_since.is_some_and(is_over) {
            self.replays.wide_since = None;
            self.set_rtx_cache(limits::RTX_CACHE_PACKETS);
        }
    }
}

impl Gate {
    /// Units are missing that the viewer should have had: it drops to the next IDR, if it had got any.
    fn lose(&mut self) {
        if self.state() == GateState::Live {
            self.retract();
        }
    }
}
