//! The paths of one viewer: the addresses that its authenticated STUN requests came from, which of them are proven, and
//! which one gets media. No I/O, no clock, no cryptography.
//!
//! An authenticated request does not prove its source address, because a viewer can send with the address of a victim.
//! A path is therefore proven in one of these ways (RFC 9000 section 8 has the same rule):
//! - the whole DTLS handshake was exchanged with this address only;
//! - the viewer has answered a STUN request of ours with its random transaction id;
//! - authentic SRTCP came from it, and only its port differs from a proven path: the viewer's NAT has rebound it.
//!
//! Until then at most [`limits::UNPROVEN_FACTOR`] times the bytes received from an address are sent to it, and no media.
//! A proven path takes over as soon as the viewer uses it.
//!
//! Requests have no sequence number, and only the latest ones are remembered. An attacker on the path can therefore send
//! an older one again from its own address, and pass our request on to the viewer and the answer back to us: the address
//! then looks proven. As soon as requests have been forgotten, a nomination moves media only from a silent path. SRTCP,
//! which cannot be replayed, moves it at any time. Consent then needs SRTCP or answers from time to time, too.
//!
//! A publisher is the controlling side (RFC 8445 section 6.1.1). It sends a few requests to each candidate of the answer,
//! and selects the first path that an answer proves. The far end cannot change that choice.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::base::limits;
use crate::session::{Destination, PathChange};

/// Transaction id of a STUN message.
pub(super) type TransactionId = [u8; 12];

/// Time between two reports that a path is in use.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Time without a nomination after which the next nomination of a path counts as a new one.
const NOMINATION_OLD: Duration = Duration::from_secs(5);

/// Time without an authentic datagram on the selected path after which any other proven path takes over.
const SELECTED_SILENT: Duration = Duration::from_secs(5);

/// After the first requests are forgotten, a request may be a replay. If the latest proof is at least this old, a request
/// makes the server check the selected path again.
const PROOF_OLD: Duration = Duration::from_secs(5);

/// If the latest proof is at least this old, such a request does not renew consent.
const PROOF_STALE: Duration = Duration::from_secs(20);

/// Time after a change of the selected path in which late SRTCP from another path does not change it again.
const SETTLE: Duration = Duration::from_secs(1);

/// An authenticated STUN request of the viewer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) id: TransactionId,
    pub(super) from: Destination,
    pub(super) priority: u32,
    pub(super) is_nominating: bool,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer it.
    New,
    /// Answer it: the viewer repeats a request from the same address. It has no other effect.
    Repeated,
    /// Ignore it: the same request came from another address before, so this is a replay.
    Replayed,
}

/// A STUN request of ours that the viewer has not answered yet.
#[derive(Clone, Copy, Debug)]
struct Check {
    id: TransactionId,
    /// When it is sent, or sent again.
    due: Instant,
    sent: u32,
}

#[derive(Clone, Debug)]
struct Path {
    /// Address of the viewer, and our address that its request came to as the kernel reported it.
    to: Destination,
    is_proven: bool,
    /// Bytes received from this path and sent to it. Only counted until the path is proven.
    received_bytes: usize,
    sent_bytes: usize,
    /// When the latest authentic datagram that was not a repetition arrived.
    heard_at: Instant,
    reported_at: Option<Instant>,
    nominated_at: Option<Instant>,
    /// PRIORITY of the latest request. A request with the same value comes from the same candidate of the viewer.
    priority: u32,
    check: Option<Check>,
}

/// All paths of one viewer.
#[derive(Debug, Default)]
pub(super) struct Paths {
    paths: SmallVec<[Path; 2]>,
    selected: Option<Destination>,
    selected_at: Option<Instant>,
    is_connected: bool,
    is_controlling: bool,
    /// Address with which DTLS was exchanged, and true if there were several.
    dtls: Option<(SocketAddr, bool)>,
    has_received_dtls: bool,
    /// Requests seen lately, as hashes of the transaction id and of the source address.
    seen: VecDeque<(u64, u64)>,
    /// True if a replay may look like a new request, because not all requests with the current keys are in `seen`.
    has_forgotten: bool,
    /// Time of the latest authentic datagram that cannot be a replay: SRTCP, or an answer to a request of ours.
    proof_at: Option<Instant>,
    changes: VecDeque<PathChange>,
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Paths {
    /// Returns the paths of a publisher. They have no candidate yet.
    pub(super) fn controlling() -> Paths {
        Paths { is_controlling: true, ..Paths::default() }
    }

    /// Returns true if an authenticated request came from `remote`, or if it is a candidate of the answer.
    pub(super) fn contains(&self, remote: SocketAddr) -> bool {
        self.paths.iter().any(|path| path.to.remote == remote)
    }

    /// Returns the path that DTLS, media and reports use.
    pub(super) fn selected(&self) -> Option<Destination> {
        self.selected
    }

    /// Returns the selected path if it is proven.
    pub(super) fn proven(&self) -> Option<Destination> {
        self.selected.filter(|to| self.path(*to).is_some_and(|path| path.is_proven))
    }

    /// Returns the next change for the table of addresses.
    pub(super) fn poll_change(&mut self) -> Option<PathChange> {
        self.changes.pop_front()
    }

    fn path(&self, to: Destination) -> Option<&Path> {
        self.paths.iter().find(|path| path.to == to)
    }

    fn path_mut(&mut self, to: Destination) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.to == to)
    }

    // ---- input -------------------------------------------------------------------------------------

    /// Adds a candidate of the answer. The first request to it is due at `due` and has the transaction id `id`.
    pub(super) fn add_candidate(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        due: Instant,
        id: TransactionId,
    ) {
        if self.paths.len() < limits::VIEWER_PATHS_MAX && !self.contains(remote) {
            let to = Destination::udp(None, remote);
            self.add(now, to);
            self.on_bytes(to, limits::CANDIDATE_CREDIT_BYTES);
            if let Some(path) = self.path_mut(to) {
                path.check = Some(Check { id, due, sent: 0 });
            }
            // Answers are found by this address.
            self.report(now, to);
        }
    }

    /// Handles an authentic answer to a request by which a publisher renews consent.
    pub(super) fn on_consent(&mut self, now: Instant, from: Destination) {
        self.proof_at = Some(now);
        if let Some(path) = self.path_mut(from) {
            path.heard_at = now;
            self.report(now, from);
        }
    }

    /// Counts the bytes of a datagram from `from`. They allow bytes in the other direction.
    pub(super) fn on_bytes(&mut self, from: Destination, bytes: usize) {
        if let Some(path) = self.path_mut(from).filter(|path| !path.is_proven) {
            path.received_bytes = path.received_bytes.saturating_add(bytes);
        }
    }

    /// Handles an authenticated request of `bytes` bytes. `check_id` becomes the transaction id of our own request if
    /// the path has to be proven.
    pub(super) fn on_request(
        &mut self,
        now: Instant,
        request: &Request,
        bytes: usize,
        check_id: TransactionId,
    ) -> Verdict {
        let (id, remote) = (hash(request.id), hash(request.from.remote));
        if let Some((_, first)) = self.seen.iter().find(|(seen, _)| *seen == id) {
            return if *first == remote { Verdict::Repeated } else { Verdict::Replayed };
        }
        if self.seen.len() >= limits::SEEN_REQUESTS_MAX {
            self.seen.pop_front();
            self.has_forgotten = true;
        }
        self.seen.push_back((id, remote));
        if self.path(request.from).is_none() {
            self.add(now, request.from);
            self.on_bytes(request.from, bytes);
        }
        let is_moved = self.is_rebound(request);
        let is_doubtful = self.selected == Some(request.from) && self.is_proof_older(now, PROOF_OLD);
        let Some(path) = self.path_mut(request.from) else { return Verdict::New };
        path.heard_at = now;
        path.priority = request.priority;
        let previous = path.nominated_at;
        if request.is_nominating || is_moved {
            path.nominated_at = Some(now);
        }
        if (!path.is_proven || is_doubtful) && path.check.is_none() {
            path.check = Some(Check { id: check_id, due: now, sent: 0 });
        }
        self.report(now, request.from);
        self.choose(now, request.from, previous);
        Verdict::New
    }

    /// Returns true if a request can be a replay, and the latest proof is at least `age` old.
    fn is_proof_older(&self, now: Instant, age: Duration) -> bool {
        self.has_forgotten && self.proof_at.is_none_or(|at| now >= at + age)
    }

    /// Returns true if a STUN request that was not seen before renews the viewer's consent. Returns false if the request may
    /// be a replay and the latest proof is older than [`PROOF_STALE`].
    pub(super) fn trusts_requests(&self, now: Instant) -> bool {
        !self.is_proof_older(now, PROOF_STALE)
    }

    /// Handles the end of the keys before an ICE restart: requests from before it cannot be replayed any more.
    pub(super) fn on_new_keys(&mut self) {
        self.seen.clear();
        self.has_forgotten = false;
    }

    /// Returns true if the request has the priority of the selected path and differs from it only in the viewer's
    /// address. It is then from the same candidate, behind a NAT that has rebound it.
    fn is_rebound(&self, request: &Request) -> bool {
        self.is_connected
            && request.from.connection.is_none()
            && self.selected.and_then(|to| self.path(to)).is_some_and(|selected| {
                selected.to.remote != request.from.remote
                    && selected.to.local == request.from.local
                    && selected.priority == request.priority
            })
    }

    /// Handles an authentic answer to a request of ours. Returns false if there is no such request to this address.
    pub(super) fn on_response(&mut self, now: Instant, from: Destination, id: TransactionId) -> bool {
        let asked =
            |path: &Path| path.to.remote == from.remote && path.check.is_some_and(|check| check.id == id);
        let Some(index) = self.paths.iter().position(asked) else { return false };
        let is_known = self.path(from).is_some();
        let Some(path) = self.paths.get_mut(index) else { return false };
        if path.to.local.is_none() && !is_known {
            // Our address of a candidate's path is known only now.
            path.to = from;
        }
        let to = if path.to.local.is_none() { from } else { path.to };
        self.proof_at = Some(now);
        self.prove(now, to);
        true
    }

    /// Handles a DTLS datagram. Returns false if its path is unknown.
    pub(super) fn on_dtls(&mut self, from: Destination) -> bool {
        let known = self.path(from).or_else(|| self.paths.iter().find(|path| path.to.remote == from.remote));
        let Some(to) = known.map(|path| path.to) else { return false };
        if !self.is_connected {
            self.note_dtls(to);
            self.has_received_dtls = true;
            if !self.is_controlling {
                self.selected = Some(to);
            }
        }
        true
    }

    /// Notes that a DTLS datagram was exchanged with this address.
    pub(super) fn note_dtls(&mut self, with: Destination) {
        let (first, several) = *self.dtls.get_or_insert((with.remote, false));
        self.dtls = Some((first, several || first != with.remote));
    }

    /// Handles an authentic SRTCP datagram.
    pub(super) fn on_rtcp(&mut self, now: Instant, from: Destination) {
        self.proof_at = Some(now);
        let proven = |path: &Path| path.is_proven && path.to.remote.ip() == from.remote.ip();
        let is_rebound = self.paths.iter().any(proven);
        let settled = self.selected_at.is_none_or(|at| now >= at + SETTLE);
        let Some(path) = self.path_mut(from) else { return };
        path.heard_at = now;
        if is_rebound && !path.is_proven {
            self.prove(now, from);
        }
        self.report(now, from);
        // The nomination of the controlling side stays valid (RFC 8445 section 8.1.1).
        if settled && !self.is_controlling && self.path(from).is_some_and(|path| path.is_proven) {
            self.select(now, from);
        }
    }

    /// Handles the end of the DTLS handshake.
    pub(super) fn on_connected(&mut self, now: Instant) {
        self.is_connected = true;
        self.proof_at = Some(now);
        let dtls = self.dtls.filter(|(_, several)| !several);
        if let Some(to) = self.selected.filter(|to| dtls.is_some_and(|(remote, _)| remote == to.remote)) {
            self.prove(now, to);
        }
        // The handshake is as good as a datagram of the viewer.
        let selected = self.selected;
        if let Some(path) = selected.and_then(|to| self.path_mut(to)) {
            path.heard_at = now;
        }
    }

    // ---- changes -----------------------------------------------------------------------------------

    fn add(&mut self, now: Instant, to: Destination) {
        if self.paths.len() >= limits::VIEWER_PATHS_MAX {
            self.remove_oldest();
        }
        let is_proven = self.paths.iter().any(|path| path.is_proven && path.to.remote == to.remote);
        self.paths.push(Path {
            to,
            is_proven,
            received_bytes: 0,
            sent_bytes: 0,
            heard_at: now,
            reported_at: None,
            nominated_at: None,
            priority: 0,
            check: None,
        });
    }

    /// Removes the path that was not used for the longest time. The selected path stays, and proven paths stay as long
    /// as there are others.
    fn remove_oldest(&mut self) {
        let selected = self.selected;
        let unused = self.paths.iter().enumerate().filter(|(_, path)| Some(path.to) != selected);
        let oldest = unused.min_by_key(|(_, path)| (path.is_proven, path.heard_at));
        let Some(index) = oldest.map(|(index, _)| index) else { return };
        let Destination { remote, connection, .. } = self.paths.remove(index).to;
        if connection.is_none() && !self.contains(remote) {
            self.changes.push_back(PathChange::Gone { remote });
        }
    }

    /// Removes the path of a TCP connection that has ended. If it was selected, the proven path that was used last takes
    /// over, unless it is silent.
    pub(super) fn remove_connection(&mut self, now: Instant, connection: NonZeroU32) {
        self.paths.retain(|path| path.to.connection != Some(connection));
        if self.selected.is_some_and(|to| to.connection == Some(connection)) {
            let usable = |path: &&Path| path.is_proven && now < path.heard_at + SELECTED_SILENT;
            self.selected =
                self.paths.iter().filter(usable).max_by_key(|path| path.heard_at).map(|path| path.to);
            self.selected_at = self.selected.map(|_| now);
        }
    }

    /// Returns true if an authenticated request arrived on this TCP connection.
    pub(super) fn has_connection(&self, connection: NonZeroU32) -> bool {
        self.paths.iter().any(|path| path.to.connection == Some(connection))
    }

    /// Reports that a path is in use, at most every [`REPORT_INTERVAL`]. A TCP connection finds its session by itself.
    fn report(&mut self, now: Instant, to: Destination) {
        if to.connection.is_some() {
            return;
        }
        let Some(path) = self.path_mut(to) else { return };
        if path.reported_at.is_none_or(|at| now >= at + REPORT_INTERVAL) {
            path.reported_at = Some(now);
            let change = PathChange::InUse { remote: to.remote, is_proven: path.is_proven };
            self.changes.push_back(change);
        }
    }

    fn prove(&mut self, now: Instant, to: Destination) {
        for path in self.paths.iter_mut().filter(|path| path.to.remote == to.remote) {
            path.is_proven = true;
            path.check = None;
            path.reported_at = None;
        }
        self.report(now, to);
        self.choose(now, to, None);
    }

    /// Selects the path `to` if the viewer uses it rather than the selected one. `previous` is the time of its previous
    /// nomination.
    fn choose(&mut self, now: Instant, to: Destination, previous: Option<Instant>) {
        let Some(path) = self.path(to) else { return };
        let Some(selected) = self.selected.and_then(|selected| self.path(selected)) else {
            if path.is_proven || !self.is_controlling {
                self.select(now, to);
            }
            return;
        };
        if self.is_controlling {
            return;
        }
        // During the handshake the viewer's DTLS decides, and a nomination only before that.
        if !self.is_connected {
            if !self.has_received_dtls && path.nominated_at.is_some() {
                self.select(now, to);
            }
            return;
        }
        // Two nominated paths in turn must not make media alternate between them.
        let is_newly_nominated = !self.has_forgotten
            && path.nominated_at > selected.nominated_at
            && (previous.is_none_or(|at| now >= at + NOMINATION_OLD) || previous > selected.nominated_at);
        let is_silent = now >= selected.heard_at + SELECTED_SILENT;
        if path.is_proven && (!selected.is_proven || is_newly_nominated || is_silent) {
            self.select(now, to);
        }
    }

    fn select(&mut self, now: Instant, to: Destination) {
        if self.selected != Some(to) {
            self.selected = Some(to);
            self.selected_at = Some(now);
        }
    }

    // ---- output ------------------------------------------------------------------------------------

    /// Returns true if a datagram of `bytes` bytes may be sent to `to`, and counts it.
    pub(super) fn may_send(&mut self, to: Destination, bytes: usize) -> bool {
        let Some(path) = self.path_mut(to) else { return false };
        if path.is_proven {
            return true;
        }
        let sent_bytes = path.sent_bytes.saturating_add(bytes);
        let is_allowed = sent_bytes <= path.received_bytes.saturating_mul(limits::UNPROVEN_FACTOR);
        if is_allowed {
            path.sent_bytes = sent_bytes;
        }
        is_allowed
    }

    /// Returns a STUN request that is due: the path and the transaction id.
    pub(super) fn poll_check(&mut self, now: Instant) -> Option<(Destination, TransactionId)> {
        let sent_max =
            if self.is_controlling { limits::CANDIDATE_CHECKS_MAX } else { limits::PATH_CHECKS_MAX };
        for path in &mut self.paths {
            let Some(check) = path.check.as_mut().filter(|check| now >= check.due) else { continue };
            if check.sent == sent_max {
                // The next request of the viewer starts a new check.
                path.check = None;
                continue;
            }
            check.due = now + limits::PATH_CHECK_INTERVAL * 2_u32.pow(check.sent);
            check.sent += 1;
            return Some((path.to, check.id));
        }
        None
    }

    /// Returns the time at which [`Paths::poll_check`] has something to do.
    pub(super) fn check_due(&self) -> Option<Instant> {
        self.paths.iter().filter_map(|path| path.check.map(|check| check.due)).min()
    }

    /// Returns true if `from` is the selected path or its remote address.
    pub(super) fn is_selected(&self, from: SocketAddr) -> bool {
        self.selected.is_some_and(|to| to.remote == from)
    }
}

#[cfg(test)]
mod tests;
