//! The controlling ICE agent of a publisher (RFC 8445). [`Paths`](super::paths::Paths) checks the candidates and selects a
//! path. This agent nominates the selected path, and then renews consent on it (RFC 7675). No I/O, no clock.

use std::time::Instant;

use super::paths::TransactionId;
use super::stun;
use crate::base::limits;

/// The requests on the selected path.
#[derive(Debug)]
pub(super) struct Agent {
    /// Transaction id of the latest request.
    id: TransactionId,
    /// When the next request is sent.
    due: Instant,
    /// Number of nominating requests sent.
    sent: u32,
    /// True if the far end has answered a nominating request.
    is_nominated: bool,
}

impl Agent {
    pub(super) fn new(now: Instant, id: TransactionId) -> Agent {
        Agent { id, due: now, sent: 0, is_nominated: false }
    }

    /// Returns the time at which [`Agent::poll`] has a request. Valid only while a path is selected.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Returns the request that is due: its transaction id, and true if it nominates the path. The nominating request is
    /// repeated with the same id. Every request that renews consent has an id of its own.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(TransactionId, bool)> {
        if now < self.due {
            return None;
        }
        if self.is_nominated {
            self.id = stun::random_id()?;
            self.due = now + limits::PUBLISHER_CHECK_INTERVAL;
        } else {
            let doubled = limits::PATH_CHECK_INTERVAL * 2_u32.pow(self.sent.min(limits::PATH_CHECKS_MAX));
            self.due = now + doubled.min(limits::PUBLISHER_CHECK_INTERVAL);
            self.sent += 1;
        }
        Some((self.id, !self.is_nominated))
    }

    /// Handles an authentic answer from the selected path. Returns false if it does not belong to the latest request.
    pub(super) fn on_response(&mut self, now: Instant, id: TransactionId) -> bool {
        let is_latest = id == self.id && (self.sent > 0 || self.is_nominated);
        if is_latest && !self.is_nominated {
            self.is_nominated = true;
            self.due = now + limits::PUBLISHER_CHECK_INTERVAL;
        }
        is_latest
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;

    const ID: TransactionId = [7; 12];

    fn now() -> Instant {
        crate::base::clock::now().instant
    }

    #[test]
    fn nomination_is_repeated_with_the_same_id_until_it_is_answered() {
        let mut now = now();
        let mut agent = Agent::new(now, ID);
        assert!(!agent.on_response(now, ID), "no request was sent");
        let mut gaps = Vec::new();
        for _ in 0..6 {
            assert_eq!(agent.poll(now), Some((ID, true)));
            assert_eq!(agent.poll(now), None);
            gaps.push((agent.due() - now).as_millis());
            now = agent.due();
        }
        assert_eq!(gaps, [100, 200, 400, 800, 1_000, 1_000]);
        assert!(!agent.on_response(now, [8; 12]));
        assert!(agent.on_response(now, ID));
        assert_eq!(agent.due(), now + limits::PUBLISHER_CHECK_INTERVAL);
    }

    #[test]
    fn consent_is_renewed_with_new_ids_and_only_the_latest_counts() {
        let now = now();
        let mut agent = Agent::new(now, ID);
        agent.poll(now);
        assert!(agent.on_response(now, ID));
        let first = agent.poll(now + Duration::from_secs(1)).unwrap();
        let second = agent.poll(now + Duration::from_secs(2)).unwrap();
        assert!(!first.1 && !second.1 && first.0 != second.0);
        assert!(!agent.on_response(now, first.0), "answered too late");
        assert!(agent.on_response(now, second.0));
    }
}
