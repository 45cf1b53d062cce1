//! Sums over the sessions of one worker, those that ended included. May not be asked more than about once a
//! second: it walks every session.

use std::time::{Duration, Instant};

use crate::base::clock::Now;
use crate::metrics::drops::DropWatch;
use crate::metrics::{ViewerFigures, WorkerCounters};
use crate::session::{ViewerState, ViewerStatus};
use crate::uring::UdpCounters;
use crate::worker::registry::Registry;

/// Time between two walks.
const PERIOD: Duration = Duration::from_millis(500);

/// What the sessions that ended had counted, and when the next walk is due.
#[derive(Default)]
pub(super) struct Totals {
    ended: Sums,
    due: Option<Instant>,
    figures: Vec<ViewerFigures>,
    drops: DropWatch,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    units_sent: u64,
    units_dropped: u64,
    nacks: u64,
    idr_requests: u64,
    retransmits: u64,
}

impl Sums {
    fn add(&mut self, status: &ViewerStatus) {
        self.units_sent += status.units_sent;
        self.units_dropped += status.units_dropped;
        self.nacks += status.nacks;
        self.idr_requests += status.plis;
        self.retransmits += status.retransmits;
    }
}

impl Totals {
    /// A session ended: what it counted is kept.
    pub(super) fn keep(&mut self, status: &ViewerStatus) {
        self.ended.add(status);
        self.due = None;
    }

    /// The next look at the counters is to be fresh: a session came or went.
    pub(super) fn refresh(&mut self) {
        self.due = None;
    }

    /// Walks the sessions, if a walk is due, and writes the sums to `counters`.
    pub(super) fn count(&mut self, sessions: &mut Registry, now: Now, counters: &WorkerCounters) {
        if self.due.is_some_and(|due| now.instant < due) {
            return;
        }
        self.due = Some(now.instant + PERIOD);
        self.figures.clear();
        let mut sums = self.ended;
        let mut viewers = 0;
        for slot in sessions.iter_mut() {
            let status = slot.viewer.status(now.instant);
            viewers += u64::from(status.state == ViewerState::Connected);
            sums.add(&status);
            self.figures.push(figures(&status));
        }
        counters.viewer_figures.put(self.figures.iter().copied());
        self.warn_of_drops(&sums, now.monotonic_ns);
        counters.sessions.set(sessions.len() as u64);
        counters.viewers.set(viewers);
        counters.units_sent.set_total(sums.units_sent);
        counters.units_dropped.set_total(sums.units_dropped);
        counters.nacks.set_total(sums.nacks);
        counters.idr_requests.set_total(sums.idr_requests);
        counters.retransmits.set_total(sums.retransmits);
    }

    fn warn_of_drops(&mut self, sums: &Sums, now_ns: i64) {
        if let Some(percent) = self.drops.look(now_ns, sums.units_sent, sums.units_dropped) {
            log::warn!(
                "{percent} % of the access units for viewers were dropped in the last 10 s; see /api/viewers"
            );
        }
    }
}

fn figures(status: &ViewerStatus) -> ViewerFigures {
    ViewerFigures {
        id: status.id,
        loss_ratio: status.loss_fraction,
        rtt_s: status.rtt_ms.map(|rtt_ms| rtt_ms / 1e3),
        jitter_s: status.jitter_ms.map(|jitter_ms| jitter_ms / 1e3),
        drops: status.units_dropped,
        nacks: status.nacks,
        plis: status.plis,
        first_idr_s: status.first_idr_ms.map(|ms| Duration::from_millis(ms).as_secs_f32()),
    }
}

/// Copies what the driver counts, as plain integers of the same thread, to where a scrape can read it.
pub(super) fn count_datagrams(driver: &UdpCounters, counters: &WorkerCounters) {
    counters.datagrams_received.set_total(driver.received);
    counters.receive_errors.set_total(driver.recv_truncated + driver.recv_no_buffers + driver.recv_errors);
    counters.datagrams_sent.set_total(driver.datagrams_sent);
    counters.bytes_sent.set_total(driver.bytes_sent);
    counters.datagrams_dropped.set_total(driver.datagrams_dropped);
    counters.send_errors.set_total(driver.send_errors);
    counters.gso_batches.set_total(driver.gso_batches);
    counters.gso_fallbacks.set_total(driver.gso_fallbacks);
    counters.enters.set_total(driver.enters);
}
