//! Decides how a viewer gets an IDR: by a replay of the GOP so far, or by waiting for the camera's next IDR. The worker
//! holds the GOP and paces the replay.
//!
//! ```text
//!   joined, nothing sent yet ──┐                      every unit since the IDR, RTP time compressed
//!                              ├─► Replay ─► catching up ────────────────► live
//!   requested an IDR (PLI) ────┘     └─► WaitForIdr: the camera's next IDR
//! ```

use std::time::{Duration, Instant};

use crate::base::limits;
use crate::metrics::status::GateState;

/// Why a viewer needs an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum IdrReason {
    /// The viewer joined and has no picture yet.
    Join,
    /// The viewer requested one (PLI or FIR).
    Request,
}

/// What the worker can offer a viewer that needs an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GopAvailability {
    /// The newest GOP can be replayed from its IDR on.
    pub has_gop: bool,
    /// Time until the camera's next IDR, if known.
    pub next_idr_in: Option<Duration>,
}

/// How the viewer gets its IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CatchUpDecision {
    /// Replay the GOP so far: [`Viewer::begin_catch_up`], then [`Viewer::push_catch_up_unit`].
    ///
    /// [`Viewer::begin_catch_up`]: crate::session::Viewer::begin_catch_up
    /// [`Viewer::push_catch_up_unit`]: crate::session::Viewer::push_catch_up_unit
    Replay,
    /// Wait for the camera's next IDR, and request one if the camera supports that.
    WaitForIdr,
    /// An IDR was sent recently or is being replayed.
    AlreadySent,
}

/// RTP time of a replayed unit: just before the newest live unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CatchUpTime {
    /// RTP time of the unit, 90 kHz, extended. The session raises it where it would not increase.
    pub rtp_time_90k: u64,
    /// The instant that `rtp_time_90k` stands for in sender reports.
    pub at: Instant,
}

/// A viewer's catch-up state.
#[derive(Debug, Default)]
pub(in crate::session) struct CatchUp {
    /// True once the catch-up after the join was decided: a join is decided only once.
    is_join_decided: bool,
    is_active: bool,
    /// Begin of the latest replay that answered a request.
    requested_at: Option<Instant>,
    idr_sent_at: Option<Instant>,
    /// Replays begun.
    pub(in crate::session) count: u64,
}

impl CatchUp {
    pub(in crate::session) fn is_active(&self) -> bool {
        self.is_active
    }

    pub(super) fn is_join_decided(&self) -> bool {
        self.is_join_decided
    }

    pub(super) fn note_sent(&mut self, now: Instant, is_idr: bool) {
        if is_idr {
            self.idr_sent_at = Some(now);
        }
    }

    pub(super) fn begin(&mut self, now: Instant, reason: IdrReason) {
        self.is_active = true;
        self.count += 1;
        if reason == IdrReason::Request {
            self.requested_at = Some(now);
        }
    }

    /// Returns true if a catch-up was in progress.
    pub(super) fn end(&mut self) -> bool {
        std::mem::take(&mut self.is_active)
    }

    pub(super) fn decide(
        &mut self,
        now: Instant,
        reason: IdrReason,
        gate: GateState,
        rtt: Option<Duration>,
        available: GopAvailability,
    ) -> CatchUpDecision {
        match reason {
            IdrReason::Join => {
                self.is_join_decided = true;
                if available.has_gop { CatchUpDecision::Replay } else { CatchUpDecision::WaitForIdr }
            }
            IdrReason::Request => self.decide_request(now, gate, rtt, available),
        }
    }

    fn decide_request(
        &self,
        now: Instant,
        gate: GateState,
        rtt: Option<Duration>,
        available: GopAvailability,
    ) -> CatchUpDecision {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let in_transit = rtt.map_or(limits::IDR_ON_ITS_WAY, |rtt| limits::IDR_ON_ITS_WAY.max(rtt * 3 / 2));
        if self.is_active || since(self.idr_sent_at).is_some_and(|age| age < in_transit) {
            return CatchUpDecision::AlreadySent;
        }
        let is_soon = available.next_idr_in.is_some_and(|wait| wait < limits::REPLAY_WORTH);
        let is_repeated = since(self.requested_at).is_some_and(|age| age < limits::REPLAY_INTERVAL);
        // Units are being dropped until the next IDR, because the link is slow. A replay would add to the congestion.
        let is_congested = gate != GateState::Live;
        if !available.has_gop || is_soon || is_repeated || is_congested {
            return CatchUpDecision::WaitForIdr;
        }
        CatchUpDecision::Replay
    }
}
