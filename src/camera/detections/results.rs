//! Passes the results of the detector to consumers on other threads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::Detections;
use crate::base::limits::DETECTIONS_KEPT;

/// Sends each result to all receivers, and keeps the newest ones for consumers that begin later. All clones are the same
/// channel.
#[derive(Clone, Debug)]
pub struct Results {
    sender: broadcast::Sender<Arc<Detections>>,
    newest: Arc<Mutex<VecDeque<Arc<Detections>>>>,
}

impl Default for Results {
    /// Returns a channel without receivers.
    fn default() -> Results {
        Results { sender: broadcast::Sender::new(DETECTIONS_KEPT), newest: Arc::default() }
    }
}

impl Results {
    /// Sends a result.
    pub fn send(&self, result: Detections) {
        let result = Arc::new(result);
        let mut newest = self.newest();
        if newest.len() == DETECTIONS_KEPT {
            newest.pop_front();
        }
        newest.push_back(Arc::clone(&result));
        drop(newest);
        // The error means that there is no receiver.
        let _ = self.sender.send(result);
    }

    /// Returns a receiver of all results from now on. A receiver that is too slow loses results.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Detections>> {
        self.sender.subscribe()
    }

    /// Returns true if there is a receiver.
    #[must_use]
    pub fn has_receivers(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Returns the newest results, the oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<Detections>> {
        self.newest().iter().cloned().collect()
    }

    fn newest(&self) -> MutexGuard<'_, VecDeque<Arc<Detections>>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_results_are_kept_and_all_are_sent() {
        let results = Results::default();
        let mut receiver = results.subscribe();
        let count = DETECTIONS_KEPT as u64 + 5;
        for frame in 0..count {
            results.send(Detections { frame: Some(frame), ..Detections::default() });
            assert_eq!(receiver.try_recv().unwrap().frame, Some(frame));
        }
        let frames: Vec<u64> = results.recent().iter().filter_map(|result| result.frame).collect();
        assert_eq!(frames, (5..count).collect::<Vec<_>>());
    }
}
