//! The results of the object detector, as the recorder's thread receives them.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::pre_roll::PreRollRules;
use crate::base::limits;
use crate::camera::detections::{Detections, Results};

/// Time in nanoseconds within which a result follows its picture.
const DELAY_NS_MAX: i64 = 2_000_000_000; // local bound: detectors need 16 to 40 ms

/// Receives results while they are needed: always if recordings may begin before they are requested, otherwise while a
/// recording runs.
pub(super) struct ResultsFeed {
    results: Option<Results>,
    receiver: Option<Receiver<Arc<Detections>>>,
    /// Results that arrived in so many nanoseconds are kept. `None` to keep none.
    kept_ns: Option<i64>,
    /// When each kept result arrived, the oldest first.
    kept: VecDeque<(i64, Arc<Detections>)>,
}

impl ResultsFeed {
    pub(super) fn new(results: Option<Results>, pre_roll: Option<PreRollRules>) -> ResultsFeed {
        let kept_ns = pre_roll.map(|rules| rules.duration_ns.saturating_add(DELAY_NS_MAX));
        let mut feed = ResultsFeed { results, receiver: None, kept_ns, kept: VecDeque::new() };
        if kept_ns.is_some() {
            feed.subscribe();
        }
        feed
    }

    /// Returns the next result. Waits for ever if no results are needed. Returns `None` if results were lost.
    pub(super) async fn next(&mut self) -> Option<Arc<Detections>> {
        let Some(receiver) = &mut self.receiver else { return pending().await };
        match receiver.recv().await {
            Ok(result) => Some(result),
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => {
                self.receiver = None;
                None
            }
        }
    }

    /// Keeps a result that arrived at `now_ns`, if results are kept.
    pub(super) fn keep(&mut self, now_ns: i64, result: &Arc<Detections>) {
        let Some(kept_ns) = self.kept_ns else { return };
        let is_old = |arrived_ns: i64| now_ns.saturating_sub(arrived_ns) > kept_ns;
        while self.kept.front().is_some_and(|(arrived_ns, _)| is_old(*arrived_ns))
            || self.kept.len() >= limits::LOGGED_RESULTS_WAITING_MAX
        {
            self.kept.pop_front();
        }
        self.kept.push_back((now_ns, Arc::clone(result)));
    }

    /// Must be called when a recording has begun. Returns the results that were kept, the oldest first.
    pub(super) fn begin(&mut self) -> Vec<Arc<Detections>> {
        if self.receiver.is_some() {
            return self.kept.iter().map(|(_, result)| Arc::clone(result)).collect();
        }
        self.subscribe();
        self.results.as_ref().map(Results::recent).unwrap_or_default()
    }

    /// Must be called when a recording has ended.
    pub(super) fn handle_recording_end(&mut self) {
        if self.kept_ns.is_none() {
            self.receiver = None;
        }
    }

    fn subscribe(&mut self) {
        if self.receiver.is_none() {
            self.receiver = self.results.as_ref().map(Results::subscribe);
        }
    }
}
