//! Finds the ICE host candidates: the addresses at which a browser may reach this machine. They are read once, at
//! start.

use std::net::{IpAddr, SocketAddr};

/// Returns the host candidates of a socket that is bound to `bound`. A specific address is the only candidate. If
/// `bound` is unspecified (0.0.0.0 or ::), every usable address of this machine is one (RFC 8445 section 5.1.1.1).
/// Loopback addresses come last, because only viewers on this machine can use them. For an IPv4 socket, IPv6 addresses
/// are omitted. Link-local addresses are omitted too: in IPv6 they need a zone, which SDP cannot carry.
pub fn host_candidates(bound: SocketAddr, interfaces: &[IpAddr]) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let mut usable: Vec<IpAddr> = interfaces
        .iter()
        .copied()
        .filter(|ip| bound.is_ipv6() || ip.is_ipv4())
        .filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !is_link_local(*ip))
        .collect();
    usable.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    usable.dedup();
    usable.into_iter().map(|ip| SocketAddr::new(ip, bound.port())).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Returns the addresses of all network interfaces, or only 127.0.0.1 if the interfaces cannot be listed.
pub fn interface_addresses() -> Vec<IpAddr> {
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces.into_iter().map(|interface| interface.ip()).collect(),
        Err(error) => {
            log::warn!(
                "cannot list the network interfaces ({error}): viewers reach this server only on loopback or an --advertise address"
            );
            vec![IpAddr::from([127, 0, 0, 1])]
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn candidates(bound: &str) -> Vec<String> {
        let interfaces: Vec<IpAddr> =
            ["127.0.0.1", "::1", "fe80::1", "169.254.1.1", "10.1.2.3", "2001:db8::1"]
                .iter()
                .map(|ip| ip.parse().unwrap())
                .collect();
        host_candidates(bound.parse().unwrap(), &interfaces).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_unspecified_socket_offers_every_usable_address_loopback_last() {
        assert_eq!(candidates("[::]:9"), ["10.1.2.3:9", "[2001:db8::1]:9", "127.0.0.1:9", "[::1]:9"]);
    }

    #[test]
    fn an_ipv4_socket_offers_no_ipv6_address() {
        assert_eq!(candidates("0.0.0.0:9"), ["10.1.2.3:9", "127.0.0.1:9"]);
    }

    #[test]
    fn a_bound_socket_offers_its_own_address_only() {
        assert_eq!(candidates("10.9.9.9:7"), ["10.9.9.9:7"]);
    }
}
