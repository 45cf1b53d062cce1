//! The sessions of one worker, found by ufrag (STUN) and by address (all other datagrams). No I/O.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Instant;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::base::token_bucket::TokenBucket;
use crate::session::{
    CloseReason, DatagramSink, Destination, FragmentError, IceFragment, IceRestart, Viewer,
};
use crate::uring::Driver;
use crate::worker::commands::{Command, Mailbox, SessionGuard};
use crate::worker::idr_budget::{self, AddressBudgets};
use crate::worker::routes::Routes;
use crate::worker::timing::Sending;

/// A session and the worker's state about it.
pub(super) struct SessionSlot {
    pub(super) viewer: Viewer,
    /// When `Viewer::handle_timeout` is due.
    pub(super) deadline: Instant,
    /// True if the session got input since its last drain.
    pub(super) touched: bool,
    pub(super) sends: VecDeque<Sending>,
    /// How often this viewer may make the camera produce an IDR.
    pub(super) idr_budget: TokenBucket,
    /// True if the viewer needs an IDR from the camera, and the camera was not asked for this viewer yet.
    pub(super) needs_idr: bool,
    /// Guard that is dropped with the session, which completes the `SessionEnd`.
    guard: Option<SessionGuard>,
}

/// Passes one viewer's datagrams from its session to the UDP driver, with no step in between.
pub(super) struct ViewerSink<'a, D> {
    pub(super) driver: &'a mut D,
    pub(super) viewer: u32,
}

impl<D: Driver> DatagramSink for ViewerSink<'_, D> {
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        self.driver.send_over(to.connection, self.viewer, to.local, to.remote, bytes, write);
    }
}

/// Updates the tables of addresses, here and at the receiving worker.
fn apply_path_changes(
    slot: &mut SessionSlot,
    ids: &mut Routes<u32>,
    receiver: Option<&Mailbox>,
    now: Instant,
) {
    while let Some(change) = slot.viewer.poll_path_change() {
        slot.guard.iter().for_each(SessionGuard::note_stun);
        let ufrag = slot.viewer.local_ufrag();
        ids.apply(ufrag, change, now);
        if let Some(receiver) = receiver {
            receiver.update_routes(Command::PathChanged { ufrag: ufrag.to_owned(), change });
        }
    }
}

/// The sessions of one worker.
pub(super) struct Registry {
    /// Sessions in order of arrival.
    pub(super) slots: Vec<SessionSlot>,
    /// Viewer numbers by ufrag and by address.
    ids: Routes<u32>,
    /// Mailbox of the receiving worker, which gets the routes to these sessions. `None` if this is the receiving
    /// worker.
    receiver: Option<Mailbox>,
    pub(super) idr_budgets: AddressBudgets,
}

impl Registry {
    pub(super) fn new(receiver: Option<Mailbox>) -> Registry {
        Registry {
            slots: Vec::new(),
            ids: Routes::default(),
            receiver,
            idr_budgets: AddressBudgets::default(),
        }
    }

    /// Adds a session. Its first deadline is `now`.
    pub(super) fn insert(&mut self, viewer: Viewer, guard: Option<SessionGuard>, now: Instant) {
        self.ids.insert(viewer.local_ufrag().to_owned(), viewer.id());
        let (deadline, sends) = (now, VecDeque::new());
        let mut slot = SessionSlot {
            viewer,
            deadline,
            touched: true,
            sends,
            idr_budget: idr_budget::of_viewer(),
            needs_idr: false,
            guard,
        };
        // A publisher has the candidates of its far end from the beginning.
        apply_path_changes(&mut slot, &mut self.ids, self.receiver.as_ref(), now);
        self.slots.push(slot);
    }

    /// Returns the session with the viewer number `id`.
    pub(super) fn by_id(&mut self, id: u32) -> Option<&mut SessionSlot> {
        self.slots.iter_mut().find(|slot| slot.viewer.id() == id)
    }

    /// Passes a fragment of SDP to the session `id`. If it restarts ICE, STUN with the new ufrag is routed to the session
    /// from now on.
    pub(super) fn handle_fragment(
        &mut self,
        now: Instant,
        id: u32,
        fragment: &IceFragment,
        if_match: Option<&[String]>,
    ) -> Result<Option<IceRestart>, FragmentError> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.viewer.id() == id) else {
            return Err(FragmentError::Gone);
        };
        let restart = slot.viewer.handle_fragment(now, fragment, if_match)?;
        if restart.is_some() {
            let ufrag = slot.viewer.local_ufrag();
            let aliases: SmallVec<[String; 2]> = slot.viewer.local_ufrags().map(str::to_owned).collect();
            self.ids.set_aliases(ufrag, aliases.clone());
            if let Some(receiver) = &self.receiver {
                receiver.update_routes(Command::Aliases { ufrag: ufrag.to_owned(), aliases });
            }
        }
        Ok(restart)
    }

    /// Closes the session `id`, which its viewer has deleted. Drops `done` when the session has ended.
    pub(super) fn delete(&mut self, now: Instant, id: u32, done: oneshot::Sender<Infallible>) {
        if let Some(slot) = self.by_id(id) {
            slot.viewer.close(now, CloseReason::PeerClosed);
            slot.touched = true;
            if let Some(guard) = &mut slot.guard {
                guard.note_deletion(done);
            }
        }
    }

    /// Passes a datagram to the session that owns `ufrag` (STUN) or the address `remote`. Returns false if there is no
    /// such session. Once STUN from `remote` has passed the session's integrity check, the address belongs to that
    /// session, unless another session holds it.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        local: Option<IpAddr>,
        remote: SocketAddr,
        ufrag: Option<&str>,
        bytes: &[u8],
    ) -> bool {
        let Some(id) = self.ids.find(ufrag, remote) else { return false };
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.viewer.id() == id) else { return false };
        slot.viewer.handle_datagram(now, local, remote, bytes);
        slot.touched = true;
        apply_path_changes(slot, &mut self.ids, self.receiver.as_ref(), now);
        true
    }

    /// Returns the viewer number of the session that owns `ufrag`.
    pub(super) fn owner(&self, ufrag: &str, remote: SocketAddr) -> Option<u32> {
        self.ids.find(Some(ufrag), remote)
    }

    /// Passes a frame to the session `id`. Returns true if an authenticated request has arrived on the frame's connection.
    pub(super) fn deliver_frame(&mut self, now: Instant, id: u32, from: Destination, bytes: &[u8]) -> bool {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.viewer.id() == id) else { return false };
        slot.viewer.handle_bytes(now, from, bytes);
        slot.touched = true;
        let is_accepted =
            from.connection.is_some_and(|connection| slot.viewer.accepts_connection(connection));
        if is_accepted {
            slot.guard.iter().for_each(SessionGuard::note_stun);
        }
        is_accepted
    }

    /// Tells the session `id` that a TCP connection has ended.
    pub(super) fn disconnect(&mut self, now: Instant, id: u32, connection: NonZeroU32) {
        if let Some(slot) = self.by_id(id) {
            slot.viewer.handle_disconnect(now, connection);
            slot.touched = true;
        }
    }

    /// Returns the number of known ufrags and addresses.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.ids.counts()
    }

    /// Returns the earliest deadline of all sessions.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().map(|slot| slot.deadline).min()
    }

    /// Calls `on_closed` with each closed session and removes it. The order of the others is kept.
    pub(super) fn remove_closed(&mut self, mut on_closed: impl FnMut(&Viewer)) {
        for slot in self.slots.extract_if(.., |slot| slot.viewer.is_closed()) {
            on_closed(&slot.viewer);
            let ufrag = slot.viewer.local_ufrag();
            self.ids.remove(ufrag);
            if let Some(receiver) = &self.receiver {
                receiver.update_routes(Command::Forget { ufrag: ufrag.to_owned() });
            }
        }
    }
}
