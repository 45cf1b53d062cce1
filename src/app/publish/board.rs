//! The state of publishing, as HTTP and the metrics show it. The publisher writes it, and any thread may read it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::REASONS;
use crate::base::counters::Counter;
use crate::http::{PublishState, PublishStatus};
use crate::metrics::status::ViewerStatus;

/// State and counters of publishing.
pub(in crate::app) struct PublishBoard {
    status: Mutex<PublishStatus>,
    /// Attempts so far.
    pub(in crate::app) attempts: Counter,
    /// Sessions so far in which DTLS has finished.
    pub(in crate::app) sessions: Counter,
    /// Failed attempts and ended sessions, in the order of [`REASONS`].
    pub(in crate::app) failures: [Counter; REASONS.len()],
    /// Totals of the sessions that have ended.
    ended: Mutex<Totals>,
    running: Mutex<Totals>,
}

/// What the sessions have sent.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::app) struct Totals {
    pub(in crate::app) units_sent: u64,
    pub(in crate::app) units_dropped: u64,
    pub(in crate::app) bytes_sent: u64,
    pub(in crate::app) retransmits: u64,
    pub(in crate::app) idr_requests: u64,
}

impl Totals {
    fn of(status: &ViewerStatus) -> Totals {
        Totals {
            units_sent: status.units_sent,
            units_dropped: status.units_dropped,
            bytes_sent: status.bytes_sent,
            retransmits: status.retransmits,
            idr_requests: status.plis,
        }
    }

    fn plus(self, other: Totals) -> Totals {
        Totals {
            units_sent: self.units_sent + other.units_sent,
            units_dropped: self.units_dropped + other.units_dropped,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            retransmits: self.retransmits + other.retransmits,
            idr_requests: self.idr_requests + other.idr_requests,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PublishBoard {
    /// Creates the board of a publisher to `host`, which waits for the camera.
    pub(in crate::app) fn new(host: String) -> PublishBoard {
        PublishBoard {
            status: Mutex::new(PublishStatus::new(host)),
            attempts: Counter::default(),
            sessions: Counter::default(),
            failures: Default::default(),
            ended: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// Returns the current state.
    pub(in crate::app) fn status(&self) -> PublishStatus {
        lock(&self.status).clone()
    }

    /// Returns the totals of all sessions.
    pub(in crate::app) fn totals(&self) -> Totals {
        let ended = lock(&self.ended);
        lock(&self.running).plus(*ended)
    }

    /// Sets the state. The last error stays until the session is connected.
    pub(super) fn set(&self, state: PublishState) {
        let mut status = lock(&self.status);
        status.state = state;
        status.retry_s = None;
        if state == PublishState::Publishing {
            status.error = None;
        } else {
            (status.rtt_ms, status.loss_fraction) = (None, None);
        }
    }

    /// Notes a failure and the seconds until the next attempt.
    pub(super) fn set_failure(&self, error: String, retry_s: u64) {
        self.set(PublishState::Retrying);
        let mut status = lock(&self.status);
        status.error = Some(error);
        status.retry_s = Some(retry_s);
    }

    /// Notes the statistics of the session.
    pub(super) fn note_session(&self, session: &ViewerStatus) {
        let totals = Totals::of(session);
        *lock(&self.running) = totals;
        let mut status = lock(&self.status);
        status.units_sent = lock(&self.ended).units_sent + totals.units_sent;
        (status.rtt_ms, status.loss_fraction) = (session.rtt_ms, session.loss_fraction);
    }

    /// Notes that the session has ended.
    pub(super) fn end_session(&self) {
        // `ended` stays locked meanwhile, so that no reader misses the session.
        let mut ended = lock(&self.ended);
        let running = std::mem::take(&mut *lock(&self.running));
        *ended = ended.plus(running);
    }
}
