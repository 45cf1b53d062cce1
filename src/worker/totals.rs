//! Sums over all sessions of one worker, including those that have ended. A pass visits every session. It therefore
//! runs only every [`PERIOD`], and when a session starts or ends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::clock::Now;
use crate::base::limits;
use crate::metrics::WorkerCounters;
use crate::metrics::drops::DropWatch;
use crate::metrics::status::{ViewerState, ViewerStatus, ViewerTransport};
use crate::uring::UdpCounters;
use crate::worker::registry::Registry;

/// Time between two passes.
const PERIOD: Duration = Duration::from_millis(500);

/// Counts of the ended sessions, and when the next pass is due.
#[derive(Default)]
pub(super) struct Totals {
    ended: SumsByKind,
    due: Option<Instant>,
    /// The sessions that ended last, the latest first, with the time of the end.
    latest: VecDeque<(Instant, ViewerStatus)>,
    statuses: Vec<ViewerStatus>,
    viewer_drops: DropWatch,
    publisher_drops: DropWatch,
}

/// Sums over the sessions of the viewers, and over those with a WHIP server.
#[derive(Clone, Copy, Default)]
struct SumsByKind {
    viewers: Sums,
    publisher: Sums,
}

impl SumsByKind {
    fn add(&mut self, status: &ViewerStatus) {
        let sums = if status.is_publisher { &mut self.publisher } else { &mut self.viewers };
        sums.add(status);
    }
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
    /// Adds the final counts of a session that ended, and keeps its status.
    pub(super) fn keep(&mut self, status: ViewerStatus, now: Instant) {
        self.ended.add(&status);
        self.due = None;
        if status.is_publisher {
            // A WHIP server that stays away must not push the viewers out of the list.
            self.latest.retain(|(_, other)| !other.is_publisher);
        }
        self.latest.truncate(limits::ENDED_SESSIONS_MAX - 1);
        self.latest.push_front((now, status));
    }

    /// Returns the statuses of the sessions that ended last, the latest first.
    pub(super) fn ended(&self, now: Instant) -> impl Iterator<Item = ViewerStatus> {
        self.latest.iter().map(move |(at, status)| {
            let mut status = status.clone();
            if let Some(ended) = &mut status.ended {
                ended.ms_ago =
                    u64::try_from(now.saturating_duration_since(*at).as_millis()).unwrap_or(u64::MAX);
            }
            status
        })
    }

    /// Makes the next [`Totals::update`] run a pass, because a session has started or ended.
    pub(super) fn refresh(&mut self) {
        self.due = None;
    }

    /// If a pass is due, writes the sums over all sessions to `counters`.
    pub(super) fn update(&mut self, sessions: &Registry, now: Now, counters: &WorkerCounters) {
        if self.due.is_some_and(|due| now.instant < due) {
            return;
        }
        self.due = Some(now.instant + PERIOD);
        self.statuses.clear();
        let mut sums = self.ended;
        let (mut all, mut viewers, mut without_idr, mut over_tcp) = (0, 0, 0, 0);
        for slot in &sessions.slots {
            let status = slot.viewer.status(now.instant);
            all += u64::from(!status.is_publisher);
            let is_connected = status.state == ViewerState::Connected && !status.is_publisher;
            viewers += u64::from(is_connected);
            over_tcp += u64::from(is_connected && status.transport == Some(ViewerTransport::Tcp));
            without_idr += u64::from(!status.is_publisher && slot.viewer.waits_for_idr());
            sums.add(&status);
            self.statuses.push(status);
        }
        counters.viewer_statuses.put(&mut self.statuses);
        for warning in self.drop_warnings(&sums, now.monotonic_ns).into_iter().flatten() {
            log::warn!("{warning}");
        }
        counters.sessions.set(all);
        counters.viewers.set(viewers);
        counters.viewers_without_idr.set(without_idr);
        counters.viewers_over_tcp.set(over_tcp);
        let SumsByKind { viewers, publisher } = sums;
        counters.units_sent.set_total(viewers.units_sent + publisher.units_sent);
        counters.units_dropped.set_total(viewers.units_dropped + publisher.units_dropped);
        counters.nacks.set_total(viewers.nacks + publisher.nacks);
        counters.idr_requests.set_total(viewers.idr_requests + publisher.idr_requests);
        counters.retransmits.set_total(viewers.retransmits + publisher.retransmits);
    }

    /// Returns the warnings that must be logged: that of the viewers, and that of the WHIP server.
    fn drop_warnings(&mut self, sums: &SumsByKind, now_ns: i64) -> [Option<String>; 2] {
        let percent =
            |watch: &mut DropWatch, sums: &Sums| watch.look(now_ns, sums.units_sent, sums.units_dropped);
        let viewers = percent(&mut self.viewer_drops, &sums.viewers);
        let publisher = percent(&mut self.publisher_drops, &sums.publisher);
        let text = |percent: u64, receiver: &str, advice: &str| {
            format!("{percent} % of the access units for {receiver} were dropped in the last 10 s; {advice}")
        };
        [
            viewers.map(|percent| text(percent, "viewers", "see /api/viewers")),
            publisher.map(|percent| text(percent, "the WHIP server", "is the uplink fast enough?")),
        ]
    }
}

/// Copies the driver's plain integers to the counters that a scrape reads.
pub(super) fn copy_driver_counters(driver: &UdpCounters, counters: &WorkerCounters) {
    counters.datagrams_received.set_total(driver.received);
    counters.receive_errors.set_total(driver.recv_truncated + driver.recv_no_buffers + driver.recv_errors);
    counters.datagrams_sent.set_total(driver.datagrams_sent);
    counters.bytes_sent.set_total(driver.bytes_sent);
    counters.datagrams_dropped.set_total(driver.datagrams_dropped);
    counters.send_errors.set_total(driver.send_errors);
    counters.gso_batches.set_total(driver.gso_batches);
    counters.gso_fallbacks.set_total(driver.gso_fallbacks);
    let tcp = &driver.tcp;
    counters.tcp_connections.set(tcp.open);
    counters.tcp_accepted.set_total(tcp.accepted);
    counters.tcp_refused.set_total(tcp.refused);
    counters.tcp_frames_received.set_total(tcp.frames_received);
    counters.tcp_frames_sent.set_total(tcp.frames_sent);
    counters.tcp_frames_dropped.set_total(tcp.frames_dropped);
    counters.tcp_bytes_sent.set_total(tcp.bytes_sent);
    counters.enters.set_total(driver.enters);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{SessionConfig, SessionContext, SrtpChoice, Viewer};

    const OFFER: &str = include_str!("../../tests/fuzz/seeds/sdp/chromium");

    /// Returns the warnings of a worker with a viewer and a publisher, of whose 1000 units this many were dropped.
    fn warnings(of_viewer: u64, of_publisher: u64) -> [Option<String>; 2] {
        let candidates = vec!["192.0.2.1:8189".parse().unwrap()];
        let config = SessionConfig { candidates, advertise: vec![], srtp: SrtpChoice::Gcm };
        let now = crate::base::clock::now().instant;
        let (viewer, _) = Viewer::accept(&SessionContext::new(config).unwrap(), 1, OFFER, now).unwrap();
        let mut totals = Totals::default();
        let mut sums = SumsByKind::default();
        assert_eq!(totals.drop_warnings(&sums, 0), [None, None]);
        for (is_publisher, units_dropped) in [(false, of_viewer), (true, of_publisher)] {
            let units_sent = 1_000 - units_dropped;
            sums.add(&ViewerStatus { is_publisher, units_sent, units_dropped, ..viewer.status(now) });
        }
        totals.drop_warnings(&sums, 5_000_000_000)
    }

    #[test]
    fn drops_of_the_publisher_are_not_reported_as_those_of_viewers() {
        let viewers = "20 % of the access units for viewers were dropped in the last 10 s; see /api/viewers";
        let publisher = "30 % of the access units for the WHIP server were dropped in the last 10 s; is the uplink fast enough?";
        let [viewers, publisher] = [viewers, publisher].map(|text| Some(text.to_owned()));
        assert_eq!(warnings(0, 0), [None, None]);
        assert_eq!(warnings(200, 0), [viewers.clone(), None]);
        assert_eq!(warnings(0, 300), [None, publisher.clone()]);
        assert_eq!(warnings(200, 300), [viewers, publisher]);
    }
}
