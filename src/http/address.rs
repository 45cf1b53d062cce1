//! Addresses of callers: under which key an address is counted, and which addresses are exempt from the limits per
//! address.

use std::net::{IpAddr, Ipv6Addr};

use crate::config::Subnet;

/// The addresses to which limits per address do not apply, because many users may share one of them.
#[derive(Clone, Debug, Default)]
pub struct Exempt(Vec<Subnet>);

impl Exempt {
    /// Exempts this machine and these reverse proxies.
    #[must_use]
    pub fn loopback_and(proxies: impl IntoIterator<Item = Subnet>) -> Exempt {
        Exempt([Subnet::LOOPBACK_V4, Subnet::LOOPBACK_V6].into_iter().chain(proxies).collect())
    }

    /// Returns true if the limits per address do not apply to `ip`.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|subnet| subnet.contains(ip))
    }
}

/// Returns the key under which an address is counted. For IPv6 this is the /64 prefix, because one subscriber owns all
/// addresses in it.
#[must_use]
pub(super) fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}
