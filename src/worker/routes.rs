//! Tables that map ufrags and addresses to the session or worker that owns them. Every worker finds its own sessions
//! with such a table. Worker 0 receives for all workers and has a second table, by which it forwards datagrams. The
//! other workers keep that table up to date with [`Command::PathChanged`] and [`Command::Forget`].
//!
//! [`Command::PathChanged`]: crate::worker::commands::Command::PathChanged
//! [`Command::Forget`]: crate::worker::commands::Command::Forget

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use smallvec::SmallVec;

use crate::base::limits;
use crate::session::PathChange;

/// Owners by ufrag (STUN) and by address (all other datagrams). A table has at most [`limits::ROUTES_MAX`] routes, each
/// with at most [`limits::VIEWER_PATHS_MAX`] addresses.
///
/// A session may claim an address only by an authenticated request from there, but the source address of a request can
/// be forged. An address therefore stays with the session that claimed it first as long as that session uses it.
pub(super) struct Routes<T> {
    by_ufrag: HashMap<String, Route<T>>,
    /// The keys in `by_ufrag` of sessions that have restarted ICE, by their other ufrags.
    aliases: HashMap<String, String>,
    by_address: HashMap<SocketAddr, Claim<T>>,
    /// Number of routes added so far.
    added: u64,
}

struct Route<T> {
    owner: T,
    /// Addresses that passed the session's integrity check. Another session may have claimed some of them since.
    remotes: SmallVec<[SocketAddr; 2]>,
    /// Ufrags of the session since its ICE restarts.
    aliases: SmallVec<[String; 2]>,
    /// Value of `Routes::added` when this route was added.
    number: u64,
}

/// The right of a session to the datagrams from an address.
struct Claim<T> {
    owner: T,
    /// Number of the session's route.
    number: u64,
    is_proven: bool,
    /// When an authentic datagram came last; when the first one came if the address is not proven.
    used_at: Instant,
}

impl<T> Claim<T> {
    /// Returns true if no other session may claim the address.
    fn is_held(&self, now: Instant) -> bool {
        let span = if self.is_proven { limits::ADDRESS_HELD } else { limits::ADDRESS_CLAIMED };
        now.saturating_duration_since(self.used_at) < span
    }
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Routes { by_ufrag: HashMap::new(), aliases: HashMap::new(), by_address: HashMap::new(), added: 0 }
    }
}

impl<T: Copy> Routes<T> {
    /// Adds a route: STUN for `ufrag` goes to `owner`. At the limit the oldest route is removed.
    pub(super) fn insert(&mut self, ufrag: String, owner: T) {
        if self.by_ufrag.len() >= limits::ROUTES_MAX
            && let Some(oldest) = self.oldest()
        {
            self.remove(&oldest);
        }
        self.added += 1;
        let (remotes, aliases) = (SmallVec::new(), SmallVec::new());
        self.by_ufrag.insert(ufrag, Route { owner, remotes, aliases, number: self.added });
    }

    /// Replaces the further ufrags of the session with `ufrag`, which has restarted ICE.
    pub(super) fn set_aliases(&mut self, ufrag: &str, aliases: SmallVec<[String; 2]>) {
        let Some(route) = self.by_ufrag.get_mut(ufrag) else { return };
        for alias in std::mem::replace(&mut route.aliases, aliases) {
            self.aliases.remove(&alias);
        }
        for alias in &route.aliases {
            self.aliases.insert(alias.clone(), ufrag.to_owned());
        }
    }

    fn oldest(&self) -> Option<String> {
        let (ufrag, _) = self.by_ufrag.iter().min_by_key(|(_, route)| route.number)?;
        Some(ufrag.clone())
    }

    /// Applies a change of the addresses of the session with `ufrag`.
    pub(super) fn apply(&mut self, ufrag: &str, change: PathChange, now: Instant) {
        match change {
            PathChange::InUse { remote, is_proven } => self.claim(ufrag, remote, is_proven, now),
            PathChange::Gone { remote } => {
                let Some(route) = self.by_ufrag.get_mut(ufrag) else { return };
                route.remotes.retain(|known| *known != remote);
                let number = route.number;
                self.remove_claim(remote, number);
            }
        }
    }

    /// Claims the datagrams from `remote` for the session with `ufrag`, unless another session holds the address.
    fn claim(&mut self, ufrag: &str, remote: SocketAddr, is_proven: bool, now: Instant) {
        let Some(route) = self.by_ufrag.get_mut(ufrag) else { return };
        let (owner, number) = (route.owner, route.number);
        if let Some(claim) = self.by_address.get_mut(&remote).filter(|claim| claim.number == number) {
            claim.is_proven = is_proven;
            if is_proven {
                claim.used_at = now;
            }
            return;
        }
        let is_held = self.by_address.get(&remote).is_some_and(|claim| claim.is_held(now));
        if is_held || route.remotes.len() >= limits::VIEWER_PATHS_MAX {
            return;
        }
        route.remotes.push(remote);
        self.by_address.insert(remote, Claim { owner, number, is_proven, used_at: now });
    }

    /// Removes the route and the addresses of the session with `ufrag`.
    pub(super) fn remove(&mut self, ufrag: &str) {
        let Some(Route { remotes, aliases, number, .. }) = self.by_ufrag.remove(ufrag) else { return };
        for alias in aliases {
            self.aliases.remove(&alias);
        }
        for remote in remotes {
            self.remove_claim(remote, number);
        }
    }

    /// Removes an address, unless it belongs to another session by now.
    fn remove_claim(&mut self, remote: SocketAddr, number: u64) {
        if self.by_address.get(&remote).is_some_and(|claim| claim.number == number) {
            self.by_address.remove(&remote);
        }
    }

    /// Returns the number of known ufrags and addresses.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_ufrag.len() + self.aliases.len(), self.by_address.len())
    }

    /// Returns the owner of `ufrag`. If `ufrag` is `None`, returns the owner of the address `remote`.
    pub(super) fn find(&self, ufrag: Option<&str>, remote: SocketAddr) -> Option<T> {
        match ufrag {
            Some(ufrag) => {
                let route = self.by_ufrag.get(ufrag).or_else(|| self.by_ufrag.get(self.aliases.get(ufrag)?));
                route.map(|route| route.owner)
            }
            None => self.by_address.get(&remote).map(|claim| claim.owner),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn now() -> Instant {
        crate::base::clock::now().instant
    }

    fn in_use(port: u16, is_proven: bool) -> PathChange {
        PathChange::InUse { remote: address(port), is_proven }
    }

    #[test]
    fn all_addresses_of_a_session_are_routed_and_removed_with_it() {
        let (mut routes, now) = (Routes::default(), now());
        routes.apply("unknown", in_use(1000, true), now);
        assert_eq!(routes.find(None, address(1000)), None);
        routes.insert("abc".to_owned(), 3);
        assert_eq!(routes.find(Some("abc"), address(9)), Some(3));
        for port in [1000, 2000, 3000] {
            routes.apply("abc", in_use(port, false), now);
        }
        assert_eq!([1000, 2000, 3000].map(|port| routes.find(None, address(port))), [Some(3); 3]);
        routes.apply("abc", PathChange::Gone { remote: address(1000) }, now);
        assert_eq!((routes.find(None, address(1000)), routes.find(None, address(2000))), (None, Some(3)));
        routes.remove("abc");
        assert_eq!((routes.find(Some("abc"), address(9)), routes.find(None, address(2000))), (None, None));
        assert_eq!(routes.counts(), (0, 0));
    }

    #[test]
    fn ufrags_of_an_ice_restart_lead_to_the_same_session_and_are_removed_with_it() {
        let (mut routes, now) = (Routes::default(), now());
        let aliases = |names: [&str; 2]| names.iter().map(|name| (*name).to_owned()).collect();
        routes.set_aliases("unknown", aliases(["x", "y"]));
        routes.insert("first".to_owned(), 3);
        routes.apply("first", in_use(1000, true), now);
        routes.set_aliases("first", aliases(["second", "first"]));
        assert_eq!(["first", "second"].map(|ufrag| routes.find(Some(ufrag), address(9))), [Some(3); 2]);
        routes.set_aliases("first", aliases(["third", "second"]));
        let found = ["first", "second", "third", "x"].map(|ufrag| routes.find(Some(ufrag), address(9)));
        assert_eq!(found, [Some(3), Some(3), Some(3), None]);
        routes.set_aliases("first", aliases(["fourth", "third"]));
        assert_eq!(routes.find(Some("second"), address(9)), None);
        routes.apply("first", in_use(2000, true), now);
        assert_eq!(routes.find(None, address(2000)), Some(3));
        routes.remove("first");
        assert_eq!(routes.find(Some("fourth"), address(9)), None);
        assert_eq!(routes.counts(), (0, 0));
    }

    #[test]
    fn routes_are_bounded_and_the_oldest_is_removed_first() {
        let (mut routes, now) = (Routes::default(), now());
        for number in 0..=limits::ROUTES_MAX {
            routes.insert(format!("ufrag {number}"), 1);
            routes.apply(&format!("ufrag {number}"), in_use(u16::try_from(number).unwrap(), true), now);
        }
        assert_eq!(routes.counts(), (limits::ROUTES_MAX, limits::ROUTES_MAX));
        assert_eq!((routes.find(Some("ufrag 0"), address(9)), routes.find(None, address(0))), (None, None));
        assert_eq!(
            (routes.find(Some("ufrag 1"), address(9)), routes.find(None, address(1))),
            (Some(1), Some(1))
        );
    }

    #[test]
    fn address_in_use_cannot_be_taken_over() {
        let (mut routes, mut at) = (Routes::default(), now());
        routes.insert("victim".to_owned(), 1);
        routes.insert("thief".to_owned(), 2);
        routes.apply("victim", in_use(1000, true), at);
        for _ in 0..60 {
            at += Duration::from_secs(1);
            routes.apply("thief", in_use(1000, true), at);
            assert_eq!(routes.find(None, address(1000)), Some(1));
            routes.apply("victim", in_use(1000, true), at);
        }
        routes.remove("thief");
        assert_eq!(routes.find(None, address(1000)), Some(1));
    }

    #[test]
    fn address_of_a_silent_session_goes_to_the_session_that_uses_it() {
        let (mut routes, start) = (Routes::default(), now());
        routes.insert("old".to_owned(), 1);
        routes.insert("new".to_owned(), 2);
        routes.apply("old", in_use(1000, true), start);
        routes.apply("new", in_use(1000, false), start + limits::ADDRESS_HELD);
        assert_eq!(routes.find(None, address(1000)), Some(2));
        routes.remove("old");
        assert_eq!(routes.find(None, address(1000)), Some(2));
    }

    #[test]
    fn address_that_is_never_proven_cannot_be_kept() {
        let (mut routes, mut at) = (Routes::default(), now());
        routes.insert("squatter".to_owned(), 1);
        routes.insert("viewer".to_owned(), 2);
        routes.apply("squatter", in_use(1000, false), at);
        for _ in 0..4 {
            at += Duration::from_secs(1);
            routes.apply("squatter", in_use(1000, false), at);
        }
        routes.apply("viewer", in_use(1000, false), at);
        assert_eq!(routes.find(None, address(1000)), Some(2));
    }
}
