//! The sessions of one worker, found by ufrag (STUN) and by address (all other datagrams). No I/O.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::session::Viewer;
use crate::worker::catch_up_pace::CatchUpProgress;
use crate::worker::commands::SessionGuard;
use crate::worker::timing::SendTiming;
use crate::worker::viewer_sink::ViewerSink;

/// A session and the worker's state about it.
pub(super) struct SessionSlot {
    pub(super) viewer: Viewer,
    /// When `Viewer::handle_timeout` is due.
    pub(super) deadline: Instant,
    /// The session got input since its last drain.
    pub(super) touched: bool,
    /// The newest address that passed the session's integrity check.
    pub(super) remote: Option<SocketAddr>,
    pub(super) sends: SendTiming,
    /// Set while the viewer catches up with the current GOP.
    pub(super) catch_up: Option<CatchUpProgress>,
    /// Dropped with the session, which completes its `SessionEnd`.
    _guard: Option<SessionGuard>,
}

impl SessionSlot {
    /// The session, and a sink that hands its datagrams to `driver`.
    pub(super) fn with_sink<'a, D>(&'a mut self, driver: &'a mut D) -> (&'a mut Viewer, ViewerSink<'a, D>) {
        let sink = ViewerSink { driver, viewer: self.viewer.id(), sends: &mut self.sends };
        (&mut self.viewer, sink)
    }
}

/// The sessions of one worker, in order of arrival.
#[derive(Default)]
pub(super) struct Registry {
    slots: Vec<SessionSlot>,
    by_ufrag: HashMap<String, u32>,
    by_address: HashMap<SocketAddr, u32>,
}

impl Registry {
    /// Adds a session. Its first deadline is `now`.
    pub(super) fn insert(&mut self, viewer: Viewer, guard: Option<SessionGuard>, now: Instant) {
        self.by_ufrag.insert(viewer.local_ufrag().to_owned(), viewer.id());
        self.slots.push(SessionSlot {
            viewer,
            deadline: now,
            touched: true,
            remote: None,
            sends: SendTiming::default(),
            catch_up: None,
            _guard: guard,
        });
    }

    /// Returns the session that owns `ufrag`.
    pub(super) fn by_ufrag(&mut self, ufrag: &str) -> Option<&mut SessionSlot> {
        let id = *self.by_ufrag.get(ufrag)?;
        self.by_id(id)
    }

    /// Returns the session that owns the address `remote`.
    pub(super) fn by_address(&mut self, remote: SocketAddr) -> Option<&mut SessionSlot> {
        let id = *self.by_address.get(&remote)?;
        self.by_id(id)
    }

    /// Returns the session with the viewer number `id`.
    pub(super) fn by_id(&mut self, id: u32) -> Option<&mut SessionSlot> {
        self.slots.iter_mut().find(|slot| slot.viewer.id() == id)
    }

    /// Notes that `remote` passed the integrity check of session `id`. The session's older address is removed.
    pub(super) fn learn_address(&mut self, id: u32, remote: SocketAddr) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.viewer.id() == id) else { return };
        if let Some(old) = slot.remote.replace(remote)
            && old != remote
            && self.by_address.get(&old) == Some(&id)
        {
            self.by_address.remove(&old);
        }
        self.by_address.insert(remote, id);
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut SessionSlot> {
        self.slots.iter_mut()
    }

    /// Returns the session at `index`, in order of arrival.
    pub(super) fn at(&mut self, index: usize) -> Option<&mut SessionSlot> {
        self.slots.get_mut(index)
    }

    /// Returns the number of known ufrags and addresses.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_ufrag.len(), self.by_address.len())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the earliest deadline of all sessions.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().map(|slot| slot.deadline).min()
    }

    /// Removes the closed sessions after `on_closed` has seen each. The order of the others is kept.
    pub(super) fn remove_closed(&mut self, mut on_closed: impl FnMut(&SessionSlot)) {
        let (by_ufrag, by_address) = (&mut self.by_ufrag, &mut self.by_address);
        self.slots.retain(|slot| {
            let is_closed = slot.viewer.is_closed();
            if is_closed {
                on_closed(slot);
                by_ufrag.remove(slot.viewer.local_ufrag());
                if let Some(remote) = slot.remote
                    && by_address.get(&remote) == Some(&slot.viewer.id())
                {
                    by_address.remove(&remote);
                }
            }
            !is_closed
        });
    }
}
