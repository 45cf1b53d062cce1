//! Tables that map ufrags and addresses to the session or worker that owns them. Every worker finds its own sessions
//! with such a table. Worker 0 receives for all workers and has a second table, by which it forwards datagrams. The
//! other workers keep that table up to date with [`Command::Learned`] and [`Command::Forget`].
//!
//! [`Command::Learned`]: crate::worker::commands::Command::Learned
//! [`Command::Forget`]: crate::worker::commands::Command::Forget

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::base::limits;

/// Owners by ufrag (STUN) and by address (all other datagrams). A table has at most [`limits::ROUTES_MAX`] routes.
pub(super) struct Routes<T> {
    by_ufrag: HashMap<String, Route<T>>,
    by_address: HashMap<SocketAddr, T>,
    /// Number of routes added so far.
    added: u64,
}

struct Route<T> {
    owner: T,
    /// The newest address that passed the session's integrity check.
    remote: Option<SocketAddr>,
    /// Value of `Routes::added` when this route was added.
    number: u64,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Routes { by_ufrag: HashMap::new(), by_address: HashMap::new(), added: 0 }
    }
}

impl<T: Copy + PartialEq> Routes<T> {
    /// Adds a route: STUN for `ufrag` goes to `owner`. At the limit the oldest route is removed.
    pub(super) fn insert(&mut self, ufrag: String, owner: T) {
        if self.by_ufrag.len() >= limits::ROUTES_MAX
            && let Some(oldest) = self.oldest()
        {
            self.remove(&oldest);
        }
        self.added += 1;
        self.by_ufrag.insert(ufrag, Route { owner, remote: None, number: self.added });
    }

    fn oldest(&self) -> Option<String> {
        let (ufrag, _) = self.by_ufrag.iter().min_by_key(|(_, route)| route.number)?;
        Some(ufrag.clone())
    }

    /// Records that datagrams from `remote` belong to the session with `ufrag`, and removes the session's older
    /// address. Returns false if the address was known already or there is no such session.
    pub(super) fn learn_address(&mut self, ufrag: &str, remote: SocketAddr) -> bool {
        let Some(route) = self.by_ufrag.get_mut(ufrag) else { return false };
        let (old, owner) = (route.remote.replace(remote), route.owner);
        if old == Some(remote) {
            return false;
        }
        self.remove_address(old, owner);
        self.by_address.insert(remote, owner);
        true
    }

    /// Removes the route and the address of the session with `ufrag`.
    pub(super) fn remove(&mut self, ufrag: &str) {
        if let Some(Route { owner, remote, .. }) = self.by_ufrag.remove(ufrag) {
            self.remove_address(remote, owner);
        }
    }

    /// Removes an address, unless it belongs to another owner by now.
    fn remove_address(&mut self, remote: Option<SocketAddr>, owner: T) {
        if let Some(remote) = remote
            && self.by_address.get(&remote) == Some(&owner)
        {
            self.by_address.remove(&remote);
        }
    }

    /// Returns the number of known ufrags and addresses.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_ufrag.len(), self.by_address.len())
    }

    /// Returns the owner of `ufrag`. If `ufrag` is `None`, returns the owner of the address `remote`.
    pub(super) fn find(&self, ufrag: Option<&str>, remote: SocketAddr) -> Option<T> {
        match ufrag {
            Some(ufrag) => self.by_ufrag.get(ufrag).map(|route| route.owner),
            None => self.by_address.get(&remote).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn routes_follow_a_session_to_its_new_address_and_are_removed_whole() {
        let mut routes = Routes::default();
        routes.learn_address("unknown", address(1000));
        assert_eq!(routes.find(None, address(1000)), None);
        routes.insert("abc".to_owned(), 3);
        assert_eq!(routes.find(Some("abc"), address(9)), Some(3));
        routes.learn_address("abc", address(1000));
        routes.learn_address("abc", address(2000));
        assert_eq!(routes.find(None, address(1000)), None);
        assert_eq!(routes.find(None, address(2000)), Some(3));
        routes.remove("abc");
        assert_eq!((routes.find(Some("abc"), address(9)), routes.find(None, address(2000))), (None, None));
    }

    #[test]
    fn routes_are_bounded_and_the_oldest_is_removed_first() {
        let mut routes = Routes::default();
        for number in 0..=limits::ROUTES_MAX {
            routes.insert(format!("ufrag {number}"), 1);
            routes.learn_address(&format!("ufrag {number}"), address(u16::try_from(number).unwrap()));
        }
        assert_eq!(routes.counts(), (limits::ROUTES_MAX, limits::ROUTES_MAX));
        assert_eq!((routes.find(Some("ufrag 0"), address(9)), routes.find(None, address(0))), (None, None));
        assert_eq!(
            (routes.find(Some("ufrag 1"), address(9)), routes.find(None, address(1))),
            (Some(1), Some(1))
        );
    }

    #[test]
    fn address_that_another_owner_took_over_stays_with_it() {
        let mut routes = Routes::default();
        routes.insert("old".to_owned(), 1);
        routes.insert("new".to_owned(), 2);
        assert!(routes.learn_address("old", address(1000)));
        assert!(!routes.learn_address("old", address(1000)), "known");
        assert!(routes.learn_address("new", address(1000)));
        routes.remove("old");
        assert_eq!(routes.find(None, address(1000)), Some(2));
    }
}
