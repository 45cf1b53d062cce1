//! The wait before the next attempt to publish: exponential, capped, and jittered. No clock, no random numbers.

use std::time::Duration;

use super::error::PublishError;
use crate::base::limits;

/// Counts the failures in a row.
#[derive(Debug, Default)]
pub(in crate::app) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the wait after this error. `connected` is how long the session lasted. `random` is any number: the wait
    /// lies between half of the full wait and the full wait, so that many publishers do not return at the same moment.
    pub(in crate::app) fn after(
        &mut self,
        error: &PublishError,
        connected: Duration,
        random: u16,
    ) -> Duration {
        if connected >= limits::WHIP_SESSION_STABLE {
            self.failures = 0;
        }
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        let full = if error.is_refusal() {
            limits::WHIP_RETRY_REFUSED
        } else if failures < limits::WHIP_RETRIES_SOON {
            (limits::WHIP_RETRY_FIRST * 2_u32.pow(failures)).min(limits::WHIP_RETRY_SOON)
        } else {
            limits::WHIP_RETRY_LATER
        };
        let jittered = full / 2 + full / 2 * u32::from(random) / u32::from(u16::MAX);
        let demanded = error.retry_after().unwrap_or_default().min(limits::WHIP_RETRY_AFTER_MAX);
        jittered.max(demanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> PublishError {
        PublishError::Ended("gone".to_owned())
    }

    fn status(status: u16, retry_after: Option<Duration>) -> PublishError {
        PublishError::Status { host: "h".to_owned(), status, text: String::new(), retry_after }
    }

    #[test]
    fn wait_doubles_up_to_its_caps_and_begins_anew_after_a_stable_session() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> =
            (0..6).map(|_| backoff.after(&ended(), Duration::ZERO, u16::MAX).as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        for _ in 0..1_000 {
            assert!(backoff.after(&ended(), Duration::ZERO, 0) <= limits::WHIP_RETRY_LATER);
        }
        assert_eq!(backoff.after(&ended(), Duration::ZERO, u16::MAX), limits::WHIP_RETRY_LATER);
        let stable = limits::WHIP_SESSION_STABLE;
        assert_eq!(backoff.after(&ended(), stable, u16::MAX), limits::WHIP_RETRY_FIRST);
    }

    #[test]
    fn jitter_takes_at_most_half_of_the_wait() {
        let wait = |random| Backoff::default().after(&ended(), Duration::ZERO, random);
        assert_eq!((wait(0), wait(u16::MAX)), (limits::WHIP_RETRY_FIRST / 2, limits::WHIP_RETRY_FIRST));
    }

    #[test]
    fn a_wrong_token_is_tried_at_most_twice_a_minute() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.after(&status(401, None), Duration::ZERO, 0) >= limits::WHIP_RETRY_REFUSED / 2);
        }
    }

    #[test]
    fn retry_after_is_honoured_within_a_bound() {
        let wait = |seconds| {
            let error = status(503, Some(Duration::from_secs(seconds)));
            Backoff::default().after(&error, Duration::ZERO, 0).as_secs()
        };
        assert_eq!((wait(20), wait(1_000_000)), (20, limits::WHIP_RETRY_AFTER_MAX.as_secs()));
    }
}
