//! Limits what all callers together hold, and what the callers at one address hold. Does no I/O.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::address::{Exempt, group};
use super::lock;
use crate::base::limits;

/// Limits that all public endpoints of the program share.
#[derive(Clone, Debug)]
pub struct HttpShares {
    /// Downloads in progress.
    pub(super) downloads: Arc<Shares>,
    /// Bytes of request bodies, and of answers that are not sent yet. Short bodies and the files of the page are not
    /// counted.
    pub(super) message_bytes: Arc<Shares>,
}

impl HttpShares {
    /// Returns limits that do not apply per address to the addresses in `exempt`.
    #[must_use]
    pub fn new(exempt: Exempt) -> HttpShares {
        let messages = (limits::MESSAGES_BYTES_MAX, limits::MESSAGES_OF_ADDRESS_BYTES_MAX);
        HttpShares {
            downloads: Shares::new(limits::DOWNLOADS_MAX, limits::DOWNLOADS_OF_ADDRESS_MAX, exempt.clone()),
            message_bytes: Shares::new(messages.0, messages.1, exempt),
        }
    }
}

impl Default for HttpShares {
    fn default() -> HttpShares {
        HttpShares::new(Exempt::default())
    }
}

/// Counts the units that callers hold. A unit is a download, or a byte of a body.
#[derive(Debug)]
pub(super) struct Shares {
    held: Mutex<Held>,
    all_max: usize,
    address_max: usize,
    exempt: Exempt,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Units by address, or by network of the prefix length /64 for IPv6. An entry is removed when it reaches zero, so
    /// the map is never longer than `all`.
    addresses: HashMap<IpAddr, usize>,
}

/// Why units were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// All callers together hold as much as they may.
    All,
    /// The callers at this address hold as much as one address may.
    Address,
}

impl Shares {
    fn new(all_max: usize, address_max: usize, exempt: Exempt) -> Arc<Shares> {
        Arc::new(Shares { held: Mutex::default(), all_max, address_max, exempt })
    }

    /// Takes `units` for a caller at `peer`. The limit per address does not apply to loopback and exempt
    /// addresses, because a proxy passes on the requests of many callers.
    ///
    /// # Errors
    /// Returns the limit that would be exceeded.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr, units: usize) -> Result<Share, Refusal> {
        let peer = peer.to_canonical();
        let address = group(peer);
        let mut held = lock(&self.held);
        let of_address = held.addresses.get(&address).copied().unwrap_or(0);
        if held.all + units > self.all_max {
            return Err(Refusal::All);
        }
        if !peer.is_loopback() && !self.exempt.contains(peer) && of_address + units > self.address_max {
            return Err(Refusal::Address);
        }
        held.all += units;
        held.addresses.insert(address, of_address + units);
        Ok(Share { shares: Arc::clone(self), address, units })
    }
}

/// Units that a caller holds until this value is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    address: IpAddr,
    units: usize,
}

impl Share {
    /// Returns the same bytes. The share is held until they are dropped.
    pub(super) fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Shared { bytes, _share: self })
    }
}

struct Shared {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = lock(&self.shares.held);
        held.all = held.all.saturating_sub(self.units);
        let of_address = held.addresses.get(&self.address).copied().unwrap_or(0);
        if of_address <= self.units {
            held.addresses.remove(&self.address);
        } else {
            held.addresses.insert(self.address, of_address - self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_leaves_room_for_others_and_gets_its_units_back() {
        let shares = Shares::new(10, 4, Exempt::default());
        let mine: Vec<Share> = (0..4).map(|_| shares.take(address("192.0.2.1"), 1).unwrap()).collect();
        assert_eq!(shares.take(address("192.0.2.1"), 1).unwrap_err(), Refusal::Address);
        assert_eq!(shares.take(address("::ffff:192.0.2.1"), 1).unwrap_err(), Refusal::Address);
        let other = shares.take(address("2001:db8::1"), 3).unwrap();
        assert_eq!(shares.take(address("2001:db8::2"), 2).unwrap_err(), Refusal::Address, "the same /64");
        let local = shares.take(address("127.0.0.1"), 3).unwrap();
        assert_eq!(shares.take(address("192.0.2.9"), 1).unwrap_err(), Refusal::All);
        drop(mine);
        assert_eq!(
            shares.take(address("127.0.0.1"), 4).map(drop),
            Ok(()),
            "loopback has no limit of its own"
        );
        drop((other, local));
        assert!(lock(&shares.held).addresses.is_empty());
        assert_eq!(lock(&shares.held).all, 0);
    }

    #[test]
    fn one_share_larger_than_the_limit_is_refused() {
        let shares = Shares::new(10, 4, Exempt::default());
        assert_eq!(shares.take(address("127.0.0.1"), 11).unwrap_err(), Refusal::All);
        assert_eq!(shares.take(address("192.0.2.1"), 5).unwrap_err(), Refusal::Address);
    }
}
