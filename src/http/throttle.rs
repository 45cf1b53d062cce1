//! Limits the rate of wrong tokens with one leaky bucket per address and one for all addresses together. Does no I/O.
//! The time is an argument, and memory is bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::base::limits;

/// The buckets of all addresses.
pub(super) struct Throttle {
    all: Bucket,
    addresses: HashMap<IpAddr, Address>,
}

struct Address {
    bucket: Bucket,
    /// True if the right token came from this address. The bucket of all addresses then does not apply to this address.
    is_known: bool,
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
    pub(super) fn new(now: Instant) -> Throttle {
        let all = Bucket::new(limits::ATTEMPT_INTERVAL_OF_ALL, limits::ATTEMPTS_OF_ALL, now);
        Throttle { all, addresses: HashMap::new() }
    }

    /// Checks that this address may try a token now.
    ///
    /// # Errors
    /// Returns the time for which the address must wait.
    pub(super) fn may_attempt(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = self.addresses.get(&group(peer));
        let mine = address.map_or(Duration::ZERO, |address| address.bucket.wait(now));
        let is_known = address.is_some_and(|address| address.is_known);
        let wait = if is_known { mine } else { mine.max(self.all.wait(now)) };
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Counts a wrong token from this address.
    pub(super) fn on_failure(&mut self, peer: IpAddr, now: Instant) {
        let address = self.entry(peer, now);
        address.bucket.take(now);
        if !address.is_known {
            self.all.take(now);
        }
    }

    /// Records that the right token came from this address. The bucket of all addresses no longer applies to it.
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

/// Returns the key under which an address is counted. For IPv6 this is the /64 prefix, because one subscriber owns all
/// addresses in it.
pub(super) fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
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

    #[test]
    fn an_address_runs_out_of_attempts_and_gets_them_back_one_by_one() {
        let now = start();
        let mut throttle = Throttle::new(now);
        let peer = ip("192.0.2.1");
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            assert_eq!(throttle.may_attempt(peer, now), Ok(()));
            throttle.on_failure(peer, now);
        }
        assert_eq!(throttle.may_attempt(peer, now), Err(limits::ATTEMPT_INTERVAL_OF_ADDRESS));
        assert_eq!(throttle.may_attempt(ip("192.0.2.2"), now), Ok(()));
        let later = now + limits::ATTEMPT_INTERVAL_OF_ADDRESS;
        assert_eq!(throttle.may_attempt(peer, later), Ok(()));
        throttle.on_failure(peer, later);
        assert!(throttle.may_attempt(peer, later).is_err());
        let full = later + limits::ATTEMPT_INTERVAL_OF_ADDRESS * limits::ATTEMPTS_OF_ADDRESS;
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            assert_eq!(throttle.may_attempt(peer, full), Ok(()));
            throttle.on_failure(peer, full);
        }
        assert!(throttle.may_attempt(peer, full).is_err());
    }

    #[test]
    fn addresses_of_one_ipv6_subscriber_count_as_one() {
        let now = start();
        let mut throttle = Throttle::new(now);
        for host in 0..limits::ATTEMPTS_OF_ADDRESS {
            throttle.on_failure(ip(&format!("2001:db8::{host:x}")), now);
        }
        assert!(throttle.may_attempt(ip("2001:db8::ffff"), now).is_err());
        assert!(throttle.may_attempt(ip("2001:db8:0:1::1"), now).is_ok());
        for _ in 0..limits::ATTEMPTS_OF_ADDRESS {
            throttle.on_failure(ip("::ffff:192.0.2.1"), now);
        }
        assert!(
            throttle.may_attempt(ip("192.0.2.1"), now).is_err(),
            "an IPv4 address mapped into IPv6 is the same address"
        );
    }

    #[test]
    fn many_addresses_share_a_limit_that_exempts_known_ones() {
        let now = start();
        let mut throttle = Throttle::new(now);
        let home = ip("198.51.100.7");
        throttle.on_success(home, now);
        for host in 0..limits::ATTEMPTS_OF_ALL {
            throttle.on_failure(IpAddr::from((0x0a00_0000 + host).to_be_bytes()), now);
        }
        assert!(throttle.may_attempt(ip("203.0.113.1"), now).is_err());
        assert_eq!(throttle.may_attempt(home, now), Ok(()));
        assert!(throttle.may_attempt(ip("203.0.113.1"), now + limits::ATTEMPT_INTERVAL_OF_ALL).is_ok());
    }

    #[test]
    fn memory_stays_bounded_when_many_addresses_attempt() {
        let mut now = start();
        let mut throttle = Throttle::new(now);
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
