//! Limits the rate of wrong tokens with one leaky bucket per address. There is no limit for all addresses together,
//! because strangers could then exhaust it for all callers. Does no I/O. The time is an argument, and memory is bounded.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::address::group;
use crate::base::limits;

/// The buckets of all addresses.
#[derive(Default)]
pub(super) struct Throttle {
    addresses: HashMap<IpAddr, Address>,
}

struct Address {
    bucket: Bucket,
    /// True if the right token came from this address.
    is_known: bool,
}

/// What an address may try now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The token may be compared.
    Allowed,
    /// Too many wrong tokens came from the address, but the right token came from it too. The token may be compared,
    /// but a wrong one is answered with this waiting time.
    OnlyTheRightToken(Duration),
    /// The token must not be compared. The address must wait for this time.
    Refused(Duration),
}

/// A leaky bucket (GCRA). Its whole state is `full_at`, the time at which all attempts are available again.
#[derive(Clone, Copy)]
struct Bucket {
    full_at: Instant,
    interval: Duration,
    attempts: u32,
}

impl Bucket {
    fn new(interval: Duration, attempts: u32, now: Instant) -> Bucket {
        Bucket { full_at: now, interval, attempts }
    }

    /// Returns the time until the next attempt is allowed, which is zero if an attempt is allowed now.
    fn wait(&self, now: Instant) -> Duration {
        let missing = self.full_at.saturating_duration_since(now) + self.interval;
        missing.saturating_sub(self.interval * self.attempts)
    }

    fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.interval;
    }
}

impl Throttle {
    /// Returns whether this address may try a token now.
    pub(super) fn attempt(&self, peer: IpAddr, now: Instant) -> Attempt {
        let Some(address) = self.addresses.get(&group(peer)) else { return Attempt::Allowed };
        match address.bucket.wait(now) {
            Duration::ZERO => Attempt::Allowed,
            wait if address.is_known => Attempt::OnlyTheRightToken(wait),
            wait => Attempt::Refused(wait),
        }
    }

    /// Counts a wrong token from this address.
    pub(super) fn on_failure(&mut self, peer: IpAddr, now: Instant) {
        self.entry(peer, now).bucket.take(now);
    }

    /// Records that the right token came from this address. Wrong tokens of others at the same address, for example
    /// behind the same router, then never cause that the right one is refused.
    pub(super) fn on_success(&mut self, peer: IpAddr, now: Instant) {
        self.entry(peer, now).is_known = true;
    }

    fn entry(&mut self, peer: IpAddr, now: Instant) -> &mut Address {
        let peer = group(peer);
        if !self.addresses.contains_key(&peer) && self.addresses.len() >= limits::ATTEMPT_ADDRESSES_MAX {
            // The table is full, so one address is removed. The one with the most attempts left is chosen, because it
            // gains the fewest attempts when it is forgotten. An address that has sent the right token is removed only
            // if all addresses have.
            let least = self.addresses.iter().min_by_key(|(_, a)| (a.is_known, a.bucket.full_at));
            if let Some(least) = least.map(|(peer, _)| *peer) {
                self.addresses.remove(&least);
            }
        }
        let (interval, attempts) = (limits::ATTEMPT_INTERVAL_OF_ADDRESS, limits::ATTEMPTS_OF_ADDRESS);
        let new = || Address { bucket: Bucket::new(interval, attempts, now), is_known: false };
        self.addresses.entry(peer).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_refused(throttle: &Throttle, peer: IpAddr, now: Instant) -> bool {
        matches!(throttle.attempt(peer, now), Attempt::Refused(_))
    }

    #[test]
    fn an_address_runs_out_of_attempts_and_gets_them_back_one_by_one() {
        let now = start();
        let mut throttle = Throttle::default();
        let peer = ip("192.0.2.1");
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            assert_eq!(throttle.attempt(peer, now), Attempt::Allowed);
            throttle.on_failure(peer, now);
        }
        assert_eq!(throttle.attempt(peer, now), Attempt::Refused(limits::ATTEMPT_INTERVAL_OF_ADDRESS));
        assert_eq!(throttle.attempt(ip("192.0.2.2"), now), Attempt::Allowed);
        let later = now + limits::ATTEMPT_INTERVAL_OF_ADDRESS;
        assert_eq!(throttle.attempt(peer, later), Attempt::Allowed);
        throttle.on_failure(peer, later);
        assert!(is_refused(&throttle, peer, later));
        let full = later + limits::ATTEMPT_INTERVAL_OF_ADDRESS * limits::ATTEMPTS_OF_ADDRESS;
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            assert_eq!(throttle.attempt(peer, full), Attempt::Allowed);
            throttle.on_failure(peer, full);
        }
        assert!(is_refused(&throttle, peer, full));
    }

    #[test]
    fn addresses_of_one_ipv6_subscriber_count_as_one() {
        let now = start();
        let mut throttle = Throttle::default();
        for host in 0..limits::ATTEMPTS_OF_ADDRESS {
            throttle.on_failure(ip(&format!("2001:db8::{host:x}")), now);
        }
        assert!(is_refused(&throttle, ip("2001:db8::ffff"), now));
        assert!(!is_refused(&throttle, ip("2001:db8:0:1::1"), now));
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            throttle.on_failure(ip("::ffff:192.0.2.1"), now);
        }
        assert!(
            is_refused(&throttle, ip("192.0.2.1"), now),
            "an IPv4 address mapped into IPv6 is the same address"
        );
    }

    #[test]
    fn wrong_tokens_of_others_refuse_no_address_that_sent_none() {
        let now = start();
        let mut throttle = Throttle::default();
        for host in 0..100_000_u32 {
            throttle.on_failure(IpAddr::from((0x0a00_0000 + host).to_be_bytes()), now);
        }
        assert_eq!(throttle.attempt(ip("203.0.113.1"), now), Attempt::Allowed);
    }

    #[test]
    fn an_address_that_sent_the_right_token_may_send_it_again_at_any_time() {
        let now = start();
        let mut throttle = Throttle::default();
        let home = ip("198.51.100.7");
        throttle.on_success(home, now);
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            throttle.on_failure(home, now);
        }
        let wait = limits::ATTEMPT_INTERVAL_OF_ADDRESS;
        assert_eq!(throttle.attempt(home, now), Attempt::OnlyTheRightToken(wait));
    }

    #[test]
    fn memory_stays_bounded_when_many_addresses_attempt() {
        let mut now = start();
        let mut throttle = Throttle::default();
        let home = ip("198.51.100.7");
        throttle.on_success(home, now);
        for host in 0..100_000_u32 {
            throttle.on_failure(IpAddr::from((0x0a00_0000 + host).to_be_bytes()), now);
            now += Duration::from_micros(1);
        }
        assert_eq!(throttle.addresses.len(), limits::ATTEMPT_ADDRESSES_MAX);
        assert!(throttle.addresses.contains_key(&home));
    }
}
