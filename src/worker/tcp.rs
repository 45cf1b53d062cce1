//! Frames on TCP connections: the first one finds the session, and the connection then belongs to that session. The
//! receiving worker accepts all connections, and hands those of other workers' sessions over with all that it has read.

use std::num::NonZeroU32;

use crate::base::clock::Now;
use crate::session::{Destination, stun_ufrag};
use crate::uring::Driver;
use crate::worker::commands::Command;
use crate::worker::turn::Worker;

impl<D: Driver> Worker<D> {
    /// Passes the frames that have arrived on a connection to the session that owns it.
    pub(super) fn receive_frames(&mut self, now: Now, connection: NonZeroU32) {
        loop {
            let Some(connections) = self.driver.connections() else { return };
            let Some(frame) = connections.next_frame(connection) else { return };
            let from = Destination { local: None, remote: frame.remote, connection: Some(connection) };
            if let Some(viewer) = frame.viewer {
                self.sessions.deliver_frame(now.instant, viewer, from, frame.bytes);
                continue;
            }
            let ufrag = stun_ufrag(frame.bytes);
            let found = ufrag.and_then(|ufrag| self.sessions.owner(ufrag, from.remote));
            let accepted =
                found.filter(|viewer| self.sessions.deliver_frame(now.instant, *viewer, from, frame.bytes));
            let peer = ufrag
                .filter(|_| found.is_none())
                .and_then(|ufrag| self.routes.find(Some(ufrag), from.remote));
            match (accepted, peer) {
                (Some(viewer), _) => connections.claim(connection, viewer),
                (None, Some(worker)) => {
                    let handover = connections.hand_over(connection).zip(self.peers.get(worker));
                    // A full mailbox drops the connection, which closes it. The browser connects again.
                    let is_sent = handover.is_some_and(|(handover, peer)| {
                        peer.send(Command::Connection(Box::new(handover))).is_ok()
                    });
                    self.counters.inbox_full.add(u64::from(!is_sent));
                    return;
                }
                (None, None) => return connections.refuse(connection),
            }
        }
    }
}
