//! A rate limit that allows bursts: a token bucket. The time is an argument, in nanoseconds of any clock that never runs
//! backwards.

/// A token bucket (GCRA). Its whole state is `full_at_ns`, the time at which all tokens are available again.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    full_at_ns: i64,
    interval_ns: i64,
    tokens: u32,
}

impl TokenBucket {
    /// Creates a full bucket of `tokens` tokens, to which one token is added per `interval_ns`.
    #[must_use]
    pub const fn new(interval_ns: i64, tokens: u32) -> TokenBucket {
        TokenBucket { full_at_ns: i64::MIN, interval_ns, tokens }
    }

    /// Returns true if there is a token.
    #[must_use]
    pub fn has_token(&self, now_ns: i64) -> bool {
        let missing_ns = self.full_at_ns.saturating_sub(now_ns).max(0);
        missing_ns <= self.interval_ns * (i64::from(self.tokens) - 1)
    }

    /// Takes a token. Returns false if there is none.
    pub fn take(&mut self, now_ns: i64) -> bool {
        let has_token = self.has_token(now_ns);
        if has_token {
            self.full_at_ns = self.full_at_ns.max(now_ns).saturating_add(self.interval_ns);
        }
        has_token
    }

    /// Returns the time in nanoseconds at which the bucket is full.
    #[must_use]
    pub fn full_at_ns(&self) -> i64 {
        self.full_at_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_and_then_one_token_per_interval_pass() {
        let mut bucket = TokenBucket::new(1_000, 3);
        let taken: Vec<i64> = (0..6_000).filter(|now_ns| bucket.take(*now_ns)).collect();
        assert_eq!(taken, [0, 1, 2, 1_000, 2_000, 3_000, 4_000, 5_000]);
        assert!(!bucket.take(5_999) && bucket.full_at_ns() == 8_000);
        assert_eq!((0..10).filter(|_| bucket.take(20_000)).count(), 3, "full again");
    }
}
