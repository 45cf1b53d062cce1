//! How far and how fast one viewer catches up with the current GOP. Pure.

use std::time::{Duration, Instant};

use crate::base::limits;

/// One viewer's position in the GOP.
#[derive(Debug)]
pub(super) struct CatchUpProgress {
    /// Index of the viewer's next unit, the IDR being 0.
    pub(super) next: usize,
    pub(super) bucket: TokenBucket,
}

impl CatchUpProgress {
    /// Starts at the IDR of a GOP of `gop_bytes`.
    pub(super) fn new(gop_bytes: usize, now: Instant) -> Self {
        CatchUpProgress { next: 0, bucket: TokenBucket::new(gop_bytes, now) }
    }
}

/// A token bucket in bytes. The first unit always passes.
#[derive(Debug)]
pub(super) struct TokenBucket {
    bytes_per_s: u64,
    /// Bytes that may be sent now. Negative after a unit that was larger than the rest of the bucket.
    bytes: i64,
    filled_at: Instant,
}

impl TokenBucket {
    /// Fills at a rate that sends `bytes` in [`limits::REPLAY_MS`], within [`limits::REPLAY_BYTES_PER_S`].
    pub(super) fn new(bytes: usize, now: Instant) -> Self {
        let bytes_per_s = 1_000 * bytes as u64 / limits::REPLAY_MS;
        let (slowest, fastest) = (*limits::REPLAY_BYTES_PER_S.start(), *limits::REPLAY_BYTES_PER_S.end());
        TokenBucket { bytes_per_s: bytes_per_s.clamp(slowest, fastest), bytes: 1, filled_at: now }
    }

    /// Fills the bucket. Returns true if a unit may be sent.
    pub(super) fn may_send(&mut self, now: Instant) -> bool {
        let earned = self.bytes_in(now.saturating_duration_since(self.filled_at));
        let burst_max = self.bytes_in(Duration::from_millis(limits::REPLAY_BURST_MS));
        self.filled_at = now;
        self.bytes = self.bytes.saturating_add(earned).min(burst_max.max(self.bytes));
        self.bytes > 0
    }

    /// Takes out the bytes of a unit that was sent.
    pub(super) fn take(&mut self, bytes: usize) {
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

    /// Milliseconds to send `units` of `unit_bytes` each, with a turn every `turn_ms`.
    fn duration_ms(unit_bytes: usize, units: usize, turn_ms: u64) -> u64 {
        let begin = clock::now().instant;
        let mut bucket = TokenBucket::new(unit_bytes * units, begin);
        let mut sent = 0;
        for turn in 0.. {
            let now = begin + Duration::from_millis(turn * turn_ms);
            while sent < units && bucket.may_send(now) {
                bucket.take(unit_bytes);
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
        let mut bucket = TokenBucket::new(400_000, now);
        assert!(bucket.may_send(now));
        bucket.take(300_000);
        assert!(!bucket.may_send(now + Duration::from_millis(1)));
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
        let mut bucket = TokenBucket::new(10_000_000, begin);
        let late = begin + Duration::from_secs(1);
        let burst = std::iter::from_fn(|| bucket.may_send(late).then(|| bucket.take(1_200)));
        let bytes = 1_200 * burst.count() as u64;
        let burst_max = *limits::REPLAY_BYTES_PER_S.end() * limits::REPLAY_BURST_MS / 1_000;
        assert!(bytes <= burst_max + 1_200, "{bytes} bytes at once");
    }
}
