//! Which worker owns which session. Worker 0 receives for all workers and forwards by [`Routes`]; the other workers
//! keep it up to date with [`RouteUpdates`].

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use crate::base::limits;
use crate::worker::commands::{Command, Mailbox};

/// The receiving worker's routes to the sessions of the other workers. At most [`limits::ROUTES_MAX`].
#[derive(Default)]
pub(super) struct Routes {
    by_ufrag: HashMap<String, Route>,
    by_address: HashMap<SocketAddr, usize>,
    /// Routes added so far.
    added: u64,
}

struct Route {
    worker: usize,
    remote: Option<SocketAddr>,
    /// Value of `Routes::added` when this route was added.
    number: u64,
}

impl Routes {
    /// STUN for `ufrag` goes to `worker`. At the limit the oldest route is removed.
    pub(super) fn insert(&mut self, ufrag: String, worker: usize) {
        if self.by_ufrag.len() >= limits::ROUTES_MAX
            && let Some(oldest) = self.oldest()
        {
            self.remove(&oldest);
        }
        self.added += 1;
        self.by_ufrag.insert(ufrag, Route { worker, remote: None, number: self.added });
    }

    fn oldest(&self) -> Option<String> {
        let (ufrag, _) = self.by_ufrag.iter().min_by_key(|(_, route)| route.number)?;
        Some(ufrag.clone())
    }

    /// Datagrams from `remote` belong to the session with `ufrag`. The session's older address is removed.
    pub(super) fn learn_address(&mut self, ufrag: &str, remote: SocketAddr) {
        let Some(route) = self.by_ufrag.get_mut(ufrag) else { return };
        if let Some(old) = route.remote.replace(remote)
            && old != remote
        {
            self.by_address.remove(&old);
        }
        self.by_address.insert(remote, route.worker);
    }

    /// Removes the route and the address of the session with `ufrag`.
    pub(super) fn remove(&mut self, ufrag: &str) {
        if let Some(Route { remote: Some(remote), .. }) = self.by_ufrag.remove(ufrag) {
            self.by_address.remove(&remote);
        }
    }

    /// Returns the number of known ufrags and addresses.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_ufrag.len(), self.by_address.len())
    }

    /// Returns the index of the worker that owns `ufrag`.
    pub(super) fn by_ufrag(&self, ufrag: &str) -> Option<usize> {
        self.by_ufrag.get(ufrag).map(|route| route.worker)
    }

    /// Returns the index of the worker that owns the address `remote`.
    pub(super) fn by_address(&self, remote: SocketAddr) -> Option<usize> {
        self.by_address.get(&remote).copied()
    }
}

/// Route commands on their way to the receiving worker, in order. One that does not fit its mailbox waits for the
/// next turn. At most [`limits::ROUTE_UPDATES_MAX`] wait; beyond, the oldest is dropped.
#[derive(Default)]
pub(super) struct RouteUpdates {
    unsent: VecDeque<Command>,
}

impl RouteUpdates {
    /// Queues a command for the next [`RouteUpdates::send`].
    pub(super) fn push(&mut self, command: Command) {
        if self.unsent.len() >= limits::ROUTE_UPDATES_MAX {
            self.unsent.pop_front();
            log::debug!("the receiving worker's mailbox is full: one route update is dropped");
        }
        self.unsent.push_back(command);
    }

    /// Sends what fits the mailbox of the receiving worker.
    pub(super) fn send(&mut self, receiver: &Mailbox) {
        while let Some(command) = self.unsent.pop_front() {
            if let Err(command) = receiver.send(command) {
                self.unsent.push_front(command);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::worker::commands::mailbox;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn routes_follow_a_session_to_its_new_address_and_are_removed_whole() {
        let mut routes = Routes::default();
        routes.learn_address("unknown", address(1000));
        assert_eq!(routes.by_address(address(1000)), None);
        routes.insert("abc".to_owned(), 3);
        assert_eq!(routes.by_ufrag("abc"), Some(3));
        routes.learn_address("abc", address(1000));
        routes.learn_address("abc", address(2000));
        assert_eq!(routes.by_address(address(1000)), None);
        assert_eq!(routes.by_address(address(2000)), Some(3));
        routes.remove("abc");
        assert_eq!((routes.by_ufrag("abc"), routes.by_address(address(2000))), (None, None));
    }

    #[test]
    fn routes_are_bounded_and_the_oldest_is_removed_first() {
        let mut routes = Routes::default();
        for number in 0..=limits::ROUTES_MAX {
            routes.insert(format!("ufrag {number}"), 1);
            routes.learn_address(&format!("ufrag {number}"), address(u16::try_from(number).unwrap()));
        }
        assert_eq!(routes.counts(), (limits::ROUTES_MAX, limits::ROUTES_MAX));
        assert_eq!((routes.by_ufrag("ufrag 0"), routes.by_address(address(0))), (None, None));
        assert_eq!((routes.by_ufrag("ufrag 1"), routes.by_address(address(1))), (Some(1), Some(1)));
    }

    fn forget(number: usize) -> Command {
        Command::Forget { ufrag: number.to_string() }
    }

    #[test]
    fn updates_that_do_not_fit_the_mailbox_are_sent_in_the_next_turn_in_order() {
        let (mailbox, reader) = mailbox().unwrap();
        let mut updates = RouteUpdates::default();
        let count = limits::COMMANDS_MAX + 2;
        (0..count).for_each(|number| updates.push(forget(number)));
        updates.send(&mailbox);
        let mut received: Vec<Command> = reader.commands.try_iter().collect();
        assert_eq!(received.len(), limits::COMMANDS_MAX);
        updates.send(&mailbox);
        received.extend(reader.commands.try_iter());
        let numbers: Vec<usize> = received
            .iter()
            .map(|command| match command {
                Command::Forget { ufrag } => ufrag.parse().unwrap(),
                _ => panic!("another command"),
            })
            .collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn unsent_updates_are_bounded() {
        let mut updates = RouteUpdates::default();
        (0..limits::ROUTE_UPDATES_MAX + 5).for_each(|number| updates.push(forget(number)));
        assert_eq!(updates.unsent.len(), limits::ROUTE_UPDATES_MAX);
        assert!(matches!(updates.unsent.front(), Some(Command::Forget { ufrag }) if ufrag == "5"));
    }
}
