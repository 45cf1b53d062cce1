//! Finds the ICE host candidates: the addresses at which a browser may reach this machine. They change while the server
//! runs (DHCP, Wi-Fi that comes up later, a VPN), so they are read again for an offer, at most once a second.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::base::limits::{ADDRESSES_FRESH_NS, CANDIDATES_MAX};
use crate::base::log_limit::LogLimit;
use crate::session::{ContextError, SessionConfig, SessionContext};

/// Makes the session context for each offer, with the addresses that this machine has then.
pub struct Addresses {
    /// Address of the UDP socket.
    bound: SocketAddr,
    /// Maximum number of host candidates.
    candidates_max: usize,
    latest: Mutex<Latest>,
    log_limit: LogLimit,
}

struct Latest {
    context: Arc<SessionContext>,
    candidates: Vec<SocketAddr>,
    read_at_ns: i64,
}

impl Addresses {
    /// Reads the addresses and creates the first context. `bound` is the address of the UDP socket, and `now_ns` the
    /// time of CLOCK_MONOTONIC. The candidates in `config` are replaced.
    ///
    /// # Errors
    /// An address of `config.advertise` is unusable, or there are too many.
    pub fn new(bound: SocketAddr, config: SessionConfig, now_ns: i64) -> Result<Addresses, ContextError> {
        let candidates_max = CANDIDATES_MAX.saturating_sub(config.advertise.len()).max(1);
        let found = host_candidates(bound, &interface_addresses(), None);
        let candidates = most_useful(&found, candidates_max);
        if found.len() > candidates.len() {
            log::warn!("{}", too_many(found.len(), candidates.len()));
        }
        let context = SessionContext::new(SessionConfig { candidates: candidates.clone(), ..config })?;
        let latest = Mutex::new(Latest { context, candidates, read_at_ns: now_ns });
        let log_limit = LogLimit::new(ADDRESSES_LOG_NS);
        Ok(Addresses { bound, candidates_max, latest, log_limit })
    }

    /// Returns the same addresses with TCP candidates in the answers.
    #[must_use]
    pub fn with_tcp(mut self) -> Addresses {
        let latest = self.latest.get_mut().unwrap_or_else(PoisonError::into_inner);
        latest.context = latest.context.with_tcp();
        self
    }

    /// Returns the context for an offer. `local` is the address of this machine on which the offer arrived: the viewer
    /// has just reached it, so it is always among the candidates.
    pub fn context(&self, local: Option<IpAddr>, now_ns: i64) -> Arc<SessionContext> {
        self.context_among(interface_addresses, local, now_ns)
    }

    /// Returns the context for an offer. `read` returns the addresses of all interfaces.
    fn context_among(
        &self,
        read: impl Fn() -> Vec<IpAddr>,
        local: Option<IpAddr>,
        now_ns: i64,
    ) -> Arc<SessionContext> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let local = local.map(|ip| ip.to_canonical());
        let needs_local = self.bound.ip().is_unspecified()
            && local.is_some_and(|ip| !latest.candidates.iter().any(|candidate| candidate.ip() == ip));
        if !needs_local && now_ns.saturating_sub(latest.read_at_ns) < ADDRESSES_FRESH_NS {
            return Arc::clone(&latest.context);
        }
        latest.read_at_ns = now_ns;
        let candidates = most_useful(&host_candidates(self.bound, &read(), local), self.candidates_max);
        if candidates != latest.candidates {
            match latest.context.with_candidates(&candidates) {
                Ok(context) => {
                    if self.log_limit.allows(now_ns) {
                        let listed: Vec<String> = candidates.iter().map(ToString::to_string).collect();
                        log::info!("the addresses of this machine have changed: {}", listed.join(", "));
                    }
                    (latest.context, latest.candidates) = (context, candidates);
                }
                // An address that cannot be a candidate. The old list stays in use.
                Err(error) => log::debug!("the new addresses cannot be used: {error}"),
            }
        }
        Arc::clone(&latest.context)
    }

    /// Returns the context that was made last.
    pub fn latest(&self) -> Arc<SessionContext> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner).context)
    }
}

/// Minimum time between two log lines about changed addresses.
const ADDRESSES_LOG_NS: i64 = 10_000_000_000;

/// Returns the text of the warning about addresses that are left out.
pub fn too_many(found: usize, used: usize) -> String {
    format!(
        "this machine has {found} addresses; viewers get the {used} that probably lead to it. Choose others with --udp ADDRESS:PORT or --advertise"
    )
}

/// Returns the host candidates of a socket that is bound to `bound`, the most useful ones first. A specific address is
/// the only candidate. If `bound` is unspecified (0.0.0.0 or ::), every usable address of this machine is one
/// (RFC 8445 section 5.1.1.1). `local`, an address at which a viewer has reached this machine, comes first.
/// `interfaces` must be sorted by usefulness. Loopback addresses come last, because only viewers on this machine can
/// use them. For an IPv4 socket, IPv6 addresses are omitted. Link-local addresses are omitted too: in IPv6 they need a
/// zone, which SDP cannot carry.
pub fn host_candidates(bound: SocketAddr, interfaces: &[IpAddr], local: Option<IpAddr>) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let mut usable: Vec<IpAddr> = Vec::new();
    for ip in local.into_iter().chain(interfaces.iter().copied()) {
        let has_family = bound.is_ipv6() || ip.is_ipv4();
        let is_usable = has_family && !ip.is_unspecified() && !ip.is_multicast() && !is_link_local(ip);
        if is_usable && !usable.contains(&ip) {
            usable.push(ip);
        }
    }
    let (last, first): (Vec<IpAddr>, Vec<IpAddr>) = usable.into_iter().partition(IpAddr::is_loopback);
    first.into_iter().chain(last).map(|ip| SocketAddr::new(ip, bound.port())).collect()
}

/// Returns at most `max` of the candidates, which are sorted by usefulness, in a fixed order: IPv4 before IPv6, loopback
/// last. Without a fixed order, each offer from another interface would need another list.
pub fn most_useful(candidates: &[SocketAddr], max: usize) -> Vec<SocketAddr> {
    let mut chosen: Vec<SocketAddr> = candidates.iter().take(max).copied().collect();
    chosen.sort_unstable_by_key(|address| (address.ip().is_loopback(), address.is_ipv6(), *address));
    chosen
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Returns the addresses of all network interfaces, the most useful ones first. Returns only 127.0.0.1 if there are none
/// or if they cannot be listed.
pub fn interface_addresses() -> Vec<IpAddr> {
    let addresses = match if_addrs::get_if_addrs() {
        Ok(interfaces) => by_usefulness(
            interfaces.iter().map(|interface| (interface.name.as_str(), interface.ip())).collect(),
        ),
        Err(error) => {
            log::warn!(
                "cannot list the network interfaces ({error}): viewers reach this server only on loopback or an --advertise address"
            );
            Vec::new()
        }
    };
    if addresses.is_empty() { vec![IpAddr::from([127, 0, 0, 1])] } else { addresses }
}

/// Sorts the addresses of interfaces by usefulness. The bridges of containers and virtual machines come after all other
/// interfaces, because no viewer is behind them. One interface may have many addresses (IPv6 privacy extensions), so the
/// first address of each interface comes before the second one of any.
fn by_usefulness(interfaces: Vec<(&str, IpAddr)>) -> Vec<IpAddr> {
    let mut count: HashMap<(&str, bool), u32> = HashMap::new();
    let mut ranked: Vec<(bool, u32, bool, IpAddr)> = Vec::new();
    for (name, ip) in interfaces {
        let index = count.entry((name, ip.is_ipv6())).or_default();
        ranked.push((is_bridge(name), *index, ip.is_ipv6(), ip));
        *index += 1;
    }
    ranked.sort_unstable();
    ranked.into_iter().map(|(.., ip)| ip).collect()
}

/// Returns true if an interface with this name usually leads only to containers or virtual machines on this machine.
fn is_bridge(name: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "br-", "docker", "veth", "virbr", "vnet", "podman", "cni", "flannel", "cali", "lxc", "lxdbr", "vmnet",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn candidates(bound: &str) -> Vec<String> {
        let interfaces = ["127.0.0.1", "::1", "fe80::1", "169.254.1.1", "10.1.2.3", "2001:db8::1"].map(ip);
        let found = host_candidates(bound.parse().unwrap(), &interfaces, None);
        most_useful(&found, CANDIDATES_MAX).iter().map(ToString::to_string).collect()
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

    #[test]
    fn of_many_addresses_those_of_real_interfaces_and_the_first_of_each_are_kept() {
        let bridges: Vec<(String, IpAddr)> =
            (0..60).map(|number| (format!("br-{number}"), IpAddr::from([172, 18, number, 1]))).collect();
        let privacy = (0..20).map(|number| ("eth0", ip(&format!("2001:db8::{number:x}"))));
        let mut interfaces: Vec<(&str, IpAddr)> = vec![("lo", ip("127.0.0.1"))];
        interfaces.extend(bridges.iter().map(|(name, ip)| (name.as_str(), *ip)));
        interfaces.extend(privacy);
        interfaces.extend([
            ("eth0", ip("192.168.1.5")),
            ("wlan0", ip("192.168.2.5")),
            ("wg0", ip("10.8.0.2")),
        ]);
        let sorted = by_usefulness(interfaces);
        let local = Some(ip("172.18.59.1"));
        let found = host_candidates("[::]:9".parse().unwrap(), &sorted, local);
        assert_eq!(found.len(), 84);
        let chosen = most_useful(&found, 8);
        for expected in ["192.168.1.5", "192.168.2.5", "10.8.0.2", "2001:db8::", "172.18.59.1"] {
            assert!(chosen.iter().any(|address| address.ip() == ip(expected)), "{expected} in {chosen:?}");
        }
        assert_eq!(chosen.len(), 8);
        assert!(!chosen.iter().any(|address| address.ip().is_loopback()), "{chosen:?}");
    }

    fn listed(context: &SessionContext) -> Vec<String> {
        context.announced().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn address_that_appears_later_and_the_address_of_the_request_are_announced() {
        let advertise = vec!["203.0.113.1:9".parse().unwrap()];
        let config = SessionConfig { advertise, ..SessionConfig::default() };
        let addresses = Addresses::new("0.0.0.0:9".parse().unwrap(), config, 0).unwrap();
        let wifi = || vec![ip("192.168.7.7"), ip("127.0.0.1")];
        let second = 1_000_000_000;
        let context = addresses.context_among(wifi, None, second);
        assert_eq!(listed(&context), ["203.0.113.1:9", "192.168.7.7:9", "127.0.0.1:9"]);
        let vpn = || vec![ip("10.8.0.2"), ip("127.0.0.1")];
        let same = addresses.context_among(vpn, Some(ip("::ffff:192.168.7.7")), second + 1);
        assert!(Arc::ptr_eq(&same, &context), "the list is fresh and has the address of the request");
        let context = addresses.context_among(vpn, Some(ip("10.9.9.9")), second + 2);
        assert_eq!(listed(&context), ["203.0.113.1:9", "10.8.0.2:9", "10.9.9.9:9", "127.0.0.1:9"]);
        let context = addresses.context_among(vpn, None, 3 * second);
        assert_eq!(listed(&context), ["203.0.113.1:9", "10.8.0.2:9", "127.0.0.1:9"]);
        assert!(Arc::ptr_eq(&context, &addresses.latest()));
        addresses.latest().join_preparation();
    }

    #[test]
    fn bound_socket_keeps_its_address() {
        let bound: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let addresses = Addresses::new(bound, SessionConfig::default(), 0).unwrap();
        let context = addresses.context_among(|| vec![ip("10.8.0.2")], Some(ip("10.8.0.2")), i64::MAX);
        assert_eq!(listed(&context), ["127.0.0.1:9"]);
        addresses.latest().join_preparation();
    }
}
