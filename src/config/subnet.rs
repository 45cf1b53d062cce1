//! A set of IP addresses that share a prefix, as the option --trusted-proxy takes it.

use std::fmt;
use std::net::IpAddr;

/// A subnet: all addresses whose first bits equal those of `ip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    ip: IpAddr,
    /// Number of leading bits that are compared.
    bits: u32,
}

impl Subnet {
    /// The IPv4 loopback addresses.
    pub const LOOPBACK_V4: Subnet = Subnet { ip: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), bits: 8 };
    /// The IPv6 loopback address.
    pub const LOOPBACK_V6: Subnet = Subnet { ip: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), bits: 128 };

    /// Returns true if `ip` lies in the subnet. An IPv4 address mapped into IPv6 counts as the IPv4 address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                (mine.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                (mine.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.ip.is_ipv4() { 32 } else { 128 };
        if self.bits == all { self.ip.fmt(f) } else { write!(f, "{}/{}", self.ip, self.bits) }
    }
}

/// Parses `IP` or `IP/BITS`.
pub(super) fn subnet(text: &str) -> Result<Subnet, String> {
    let (ip, bits) = match text.split_once('/') {
        Some((ip, bits)) => (ip, Some(bits)),
        None => (text, None),
    };
    let parsed = ip.parse::<IpAddr>().ok().and_then(|ip| {
        let all = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), str::parse).ok().filter(|bits| (1..=all).contains(bits))?;
        Some(Subnet { ip: ip.to_canonical(), bits })
    });
    parsed.ok_or_else(|| {
        "the address of a proxy: IP or IP/BITS, such as 192.0.2.7, 172.17.0.0/16 or 2001:db8::/64".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(text: &str, ip: &str) -> bool {
        subnet(text).unwrap().contains(ip.parse().unwrap())
    }

    #[test]
    fn a_subnet_contains_the_addresses_with_its_prefix() {
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("172.17.0.0/16", "172.17.255.9") && !contains("172.17.0.0/16", "172.18.0.1"));
        assert!(contains("172.17.0.0/16", "::ffff:172.17.0.1"), "a socket of both families maps IPv4");
        assert!(contains("2001:db8::/64", "2001:db8::9") && !contains("2001:db8::/64", "2001:db8:0:1::9"));
        assert!(!contains("2001:db8::/64", "192.0.2.7") && !contains("192.0.2.0/24", "2001:db8::1"));
        assert!(Subnet::LOOPBACK_V4.contains("127.9.9.9".parse().unwrap()));
        assert!(!Subnet::LOOPBACK_V4.contains("128.0.0.1".parse().unwrap()));
        assert!(Subnet::LOOPBACK_V6.contains("::1".parse().unwrap()));
    }

    #[test]
    fn malformed_subnets_are_refused_and_good_ones_are_shown() {
        let bad =
            ["", "camera", "192.0.2.7/0", "192.0.2.7/33", "192.0.2.7/", "2001:db8::/129", "1.2.3.4:80", "/8"];
        for bad in bad {
            assert!(subnet(bad).is_err(), "{bad}");
        }
        for good in ["192.0.2.7", "172.17.0.0/16", "2001:db8::/64"] {
            assert_eq!(subnet(good).unwrap().to_string(), good);
        }
    }
}
