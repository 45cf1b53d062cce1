//! The sessions of one worker, found by ufrag (STUN) and by address (everything else). No I/O.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::session::Viewer;
use crate::worker::commands::SessionGuard;
use crate::worker::replay::Replay;
use crate::worker::timing::Sends;

/// A session and what the worker knows about it.
pub(super) struct SessionSlot {
    /// The session.
    pub(super) viewer: Viewer,
    /// When it next wants `handle_timeout`.
    pub(super) deadline: Instant,
    /// Input since the last drain.
    pub(super) touched: bool,
    /// The address it was last heard from, once it passed the session's check.
    pub(super) remote: Option<SocketAddr>,
    /// Its datagrams on their way.
    pub(super) sends: Sends,
    /// It is being given the GOP so far.
    pub(super) replay: Option<Replay>,
    /// Dropped with the session: whoever watches over its login hears that.
    _guard: Option<SessionGuard>,
}

/// The sessions of one worker, in order of arrival.
#[derive(Default)]
pub(super) struct Registry {
    slots: Vec<SessionSlot>,
    by_ufrag: HashMap<String, u32>,
    by_address: HashMap<SocketAddr, u32>,
}

impl Registry {
    /// Takes a session in.
    pub(super) fn insert(&mut self, viewer: Viewer, guard: Option<SessionGuard>, now: Instant) {
        self.by_ufrag.insert(viewer.local_ufrag().to_owned(), viewer.id());
        self.slots.push(SessionSlot {
            viewer,
            deadline: now,
            touched: true,
            remote: None,
            sends: Sends::default(),
            replay: None,
            _guard: guard,
        });
    }

    /// The session STUN for `ufrag` belongs to.
    pub(super) fn by_ufrag(&mut self, ufrag: &str) -> Option<&mut SessionSlot> {
        let id = *self.by_ufrag.get(ufrag)?;
        self.by_id(id)
    }

    /// The session that `remote` belongs to.
    pub(super) fn by_address(&mut self, remote: SocketAddr) -> Option<&mut SessionSlot> {
        let id = *self.by_address.get(&remote)?;
        self.by_id(id)
    }

    /// The session with this number.
    pub(super) fn by_id(&mut self, id: u32) -> Option<&mut SessionSlot> {
        self.slots.iter_mut().find(|slot| slot.viewer.id() == id)
    }

    /// Notes that `remote` passed the check of session `id`: from now on its datagrams go there.
    pub(super) fn learn(&mut self, id: u32, remote: SocketAddr) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.viewer.id() == id) else { return };
        if let Some(old) = slot.remote.replace(remote)
            && old != remote
            && self.by_address.get(&old) == Some(&id)
        {
            self.by_address.remove(&old);
        }
        self.by_address.insert(remote, id);
    }

    /// Every session.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut SessionSlot> {
        self.slots.iter_mut()
    }

    /// The session at `index`, in order of arrival.
    pub(super) fn at(&mut self, index: usize) -> Option<&mut SessionSlot> {
        self.slots.get_mut(index)
    }

    /// Ufrags and addresses that are known.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_ufrag.len(), self.by_address.len())
    }

    /// How many sessions there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The earliest deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().map(|slot| slot.deadline).min()
    }

    /// Takes out the sessions that are closed; their order among the others is kept.
    pub(super) fn remove_closed(&mut self, mut gone: impl FnMut(&SessionSlot)) {
        let (by_ufrag, by_address) = (&mut self.by_ufrag, &mut self.by_address);
        self.slots.retain(|slot| {
            let closed = slot.viewer.is_closed();
            if closed {
                gone(slot);
                by_ufrag.remove(slot.viewer.local_ufrag());
                if let Some(remote) = slot.remote
                    && by_address.get(&remote) == Some(&slot.viewer.id())
                {
                    by_address.remove(&remote);
                }
            }
            !closed
        });
    }
}

/// What the receiving worker knows of the other workers' sessions.
#[derive(Default)]
pub(super) struct Routes {
    by_ufrag: HashMap<String, (usize, Option<SocketAddr>)>,
    by_address: HashMap<SocketAddr, usize>,
}

impl Routes {
    /// STUN for `ufrag` belongs to `worker`.
    pub(super) fn insert(&mut self, ufrag: String, worker: usize) {
        self.by_ufrag.insert(ufrag, (worker, None));
    }

    /// Datagrams from `remote` belong to the session with `ufrag`.
    pub(super) fn learn(&mut self, ufrag: &str, remote: SocketAddr) {
        let Some((worker, known)) = self.by_ufrag.get_mut(ufrag) else { return };
        if let Some(old) = known.replace(remote)
            && old != remote
        {
            self.by_address.remove(&old);
        }
        self.by_address.insert(remote, *worker);
    }

    /// The session with `ufrag` is gone.
    pub(super) fn forget(&mut self, ufrag: &str) {
        if let Some((_, Some(remote))) = self.by_ufrag.remove(ufrag) {
            self.by_address.remove(&remote);
        }
    }

    /// Ufrags and addresses that are known.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_ufrag.len(), self.by_address.len())
    }

    /// The worker of a STUN request's ufrag.
    pub(super) fn by_ufrag(&self, ufrag: &str) -> Option<usize> {
        self.by_ufrag.get(ufrag).map(|&(worker, _)| worker)
    }

    /// The worker of any other datagram.
    pub(super) fn by_address(&self, remote: SocketAddr) -> Option<usize> {
        self.by_address.get(&remote).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn routes_follow_a_session_that_moves_and_forget_it_whole() {
        let (first, second): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1000".parse().unwrap(), "127.0.0.1:2000".parse().unwrap());
        let mut routes = Routes::default();
        routes.learn("unknown", first);
        assert_eq!(routes.by_address(first), None);
        routes.insert("abc".to_owned(), 3);
        assert_eq!(routes.by_ufrag("abc"), Some(3));
        routes.learn("abc", first);
        routes.learn("abc", second);
        assert_eq!(routes.by_address(first), None);
        assert_eq!(routes.by_address(second), Some(3));
        routes.forget("abc");
        assert_eq!(routes.by_address(second), None);
        assert_eq!(routes.by_ufrag("abc"), None);
    }
}
