//! ICE and DTLS of one session: authenticates STUN, proves the viewer's paths and yields the SRTP keys. The module does no
//! I/O, reads no clock and does not handle media. For viewers the server is ICE-lite. As a publisher it is the full,
//! controlling agent: see [`agent`].
//!
//! str0m drives DTLS (dimpl), but not ICE: it believes in one path that never changes, because it would send to every
//! address that an authenticated request came from. [`paths`] decides where datagrams are really sent.

pub(super) mod accept;
mod agent;
mod answer;
pub(super) mod answer_error;
pub(super) mod dtls;
pub(super) mod fragment;
mod offer;
pub(super) mod offer_error;
mod paths;
pub(super) mod profile;
pub(super) mod publish;
mod remote_answer;
pub(super) mod restart;
mod sdp;
mod section;
pub(super) mod stun;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use str0m::ice::StunMessage;
use str0m::net::{DatagramSend, Protocol, Receive};
use str0m::{Candidate, Event, IceCreds, Input, Rtc, RtcError};

use crate::base::limits;
use crate::session::context::SessionContext;
use crate::session::{Destination, PathChange};
use agent::Agent;
use dtls::DtlsLink;
use paths::{Paths, Request, TransactionId, Verdict};
use stun::stun_ufrag;

/// Protocol of a datagram, as its first bytes show (RFC 7983 section 7, RFC 5761 section 4).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum DatagramKind {
    Stun,
    Dtls,
    Rtcp,
    /// Unexpected datagram. RTP is unexpected too, because a viewer sends no media.
    Other,
}

impl DatagramKind {
    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0..=3, ..] => Self::Stun,
            [20..=63, ..] => Self::Dtls,
            [128..=191, 192..=223, ..] => Self::Rtcp,
            _ => Self::Other,
        }
    }
}

/// Content type of a DTLS alert record that is not encrypted (RFC 6347 section 4.1).
const ALERT_RECORD: u8 = 21;

/// The path that str0m believes in: the viewer's address and our candidate. The address is never sent to.
#[derive(Copy, Clone, Debug)]
struct ConstantPath {
    remote: SocketAddr,
    candidate: SocketAddr,
}

/// What the viewer must know to send us authenticated STUN requests, and what we must know to send it some.
pub(super) struct IceKeys {
    /// Local ICE ufrag. The viewer's requests carry it in their USERNAME, before the colon.
    ufrag: String,
    remote_ufrag: String,
    /// HMAC key from our password. It authenticates the viewer's requests and our answers.
    local: hmac::Key,
    /// HMAC key from the viewer's password. It authenticates our requests and the viewer's answers.
    remote: hmac::Key,
    tie_breaker: [u8; 8],
    /// True for a publisher.
    is_controlling: bool,
}

/// Result of [`Transport::poll_output`].
pub(super) enum TransportOutput {
    /// Send this STUN or DTLS datagram.
    Datagram(Destination, DatagramSend),
    /// The DTLS handshake has finished. [`DtlsLink::take_keys`] returns the keys.
    Connected,
    /// The viewer closed DTLS. Our close_notify is queued, and this drain sends it.
    PeerClosed,
    /// There is no more output until the next input or until `Transport::deadline`.
    Idle,
}

/// ICE agent and DTLS endpoint of one session.
pub(super) struct Transport {
    /// Number of the viewer, for the log.
    id: u32,
    context: Arc<SessionContext>,
    pub(super) rtc: Rtc,
    ice: IceKeys,
    /// Keys from before an ICE restart. They stay valid until the viewer has used the new ones.
    previous_ice: Option<Box<IceKeys>>,
    /// The viewer's ufrags from before its ICE restarts, oldest first. Late fragments carry them.
    earlier_ufrags: Vec<String>,
    /// Time of the latest ICE restart.
    restarted_at: Option<Instant>,
    /// Local ufrag of the SDP answer.
    first_ufrag: String,
    pub(super) dtls: DtlsLink,
    paths: Paths,
    /// Nominates the selected path and renews consent. `None` unless this is a publisher.
    agent: Option<Agent>,
    /// `None` before the first authenticated request.
    constant_path: Option<ConstantPath>,
    /// STUN messages to send.
    stun_output: VecDeque<(Destination, Vec<u8>)>,
    /// Where media and reports are sent: the selected path while it is proven and the viewer is not silent.
    destination: Option<Destination>,
    /// Time of the latest authentic STUN request or SRTCP datagram on the selected path (consent freshness, RFC 7675).
    /// Before the first one it is the time of the offer.
    heard_at: Instant,
    /// True while no media is sent, because nothing authentic has arrived for [`limits::CONSENT_PAUSE`].
    pub(super) is_paused: bool,
    /// Alert that ends an unfinished handshake. [`Transport::poll_output`] returns it once.
    pub(super) alert: Option<u8>,
    has_sent_alert: bool,
    /// Source of the latest authenticated STUN request.
    pub(super) checked_from: Option<SocketAddr>,
    /// Time of str0m's next timeout; valid after [`TransportOutput::Idle`].
    deadline: Instant,
}

impl Transport {
    pub(super) fn first_ufrag(&self) -> &str {
        &self.first_ufrag
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Returns true if this end has made the offer.
    pub(super) fn is_publisher(&self) -> bool {
        self.agent.is_some()
    }

    /// Returns true if an authenticated STUN request arrived from `remote`, or if it is a candidate of the answer.
    pub(super) fn accepts_address(&self, remote: SocketAddr) -> bool {
        self.paths.contains(remote)
    }

    /// Returns true if an authenticated request arrived on this TCP connection.
    pub(super) fn accepts_connection(&self, connection: NonZeroU32) -> bool {
        self.paths.has_connection(connection)
    }

    /// Returns the path that DTLS and media use.
    pub(super) fn selected(&self) -> Option<Destination> {
        self.paths.selected()
    }

    /// Removes the path of a TCP connection that has ended.
    pub(super) fn remove_connection(&mut self, now: Instant, connection: NonZeroU32) {
        self.paths.remove_connection(now, connection);
        self.set_destination();
    }

    /// Returns the next change of the viewer's addresses.
    pub(super) fn poll_path_change(&mut self) -> Option<PathChange> {
        self.paths.poll_change()
    }

    /// Returns the destination of media and reports. Returns `None` while no path is proven, and while the viewer is
    /// silent.
    pub(super) fn destination(&self) -> Option<Destination> {
        self.destination
    }

    /// Returns the destination of a goodbye.
    pub(super) fn last_destination(&self) -> Option<Destination> {
        self.paths.proven()
    }

    /// Returns the UDP port of the server.
    pub(super) fn port(&self) -> u16 {
        self.context.candidates.first().map_or(0, |candidate| candidate.addr().port())
    }

    // ---- input -------------------------------------------------------------------------------------

    /// Handles a STUN or DTLS datagram. Returns false if the datagram is malformed, not authenticated, from an unknown
    /// source, or not for this viewer.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        kind: DatagramKind,
        from: Destination,
        bytes: &[u8],
    ) -> bool {
        self.paths.on_bytes(from, bytes.len());
        match kind {
            DatagramKind::Stun if stun::is_success_response(bytes) => self.handle_response(now, from, bytes),
            DatagramKind::Stun => self.handle_request(now, from, bytes),
            DatagramKind::Dtls => self.paths.on_dtls(from) && self.handle_dtls(now, bytes),
            DatagramKind::Rtcp | DatagramKind::Other => false,
        }
    }

    /// Handles a STUN binding request to our ufrag whose MESSAGE-INTEGRITY proves knowledge of our password.
    fn handle_request(&mut self, now: Instant, from: Destination, bytes: &[u8]) -> bool {
        let Some((request, is_conflict)) = self.authenticate(from, bytes) else { return false };
        let Some(check_id) = stun::random_id() else { return false };
        let keys = self.keys_of(bytes);
        if is_conflict {
            let answer = keys.role_conflict(request.id);
            self.push_answer(from, answer);
            return true;
        }
        let answer = keys.answer(request.id, from.remote);
        let verdict = self.paths.on_request(now, &request, bytes.len(), check_id);
        if verdict == Verdict::Replayed {
            return false;
        }
        self.push_answer(from, answer);
        self.open_constant_path(now);
        if verdict == Verdict::New {
            self.checked_from = Some(from.remote);
            if self.paths.trusts_requests(now) {
                self.on_authentic(now, from.remote);
            } else {
                self.set_destination();
            }
        }
        true
    }

    /// Queues an answer, which is shorter than its request. Above the limit it is dropped, as if lost on the network.
    fn push_answer(&mut self, to: Destination, answer: Vec<u8>) {
        if self.stun_output.len() < limits::STUN_OUTPUT_MAX {
            self.stun_output.push_back((to, answer));
        }
    }

    /// Handles the viewer's answer to a STUN request of ours. It proves the path.
    fn handle_response(&mut self, now: Instant, from: Destination, bytes: &[u8]) -> bool {
        let is_authentic = self.all_ice().any(|keys| keys.is_authentic_response(bytes));
        let Some(id) = stun::transaction_id(bytes).filter(|_| is_authentic) else { return false };
        let is_consent = self.paths.is_selected(from.remote)
            && self.agent.as_mut().is_some_and(|agent| agent.on_response(now, id));
        if is_consent {
            self.paths.on_consent(now, from);
        }
        let is_proof = is_consent || self.paths.on_response(now, from, id);
        if is_proof {
            self.on_authentic(now, from.remote);
            self.open_constant_path(now);
            if self.is_publisher() {
                self.checked_from = Some(from.remote);
            }
        }
        is_proof
    }

    fn handle_dtls(&mut self, now: Instant, bytes: &[u8]) -> bool {
        let Some(path) = self.constant_path else { return false };
        let Ok(receive) = Receive::new(Protocol::Udp, path.remote, path.candidate, bytes) else {
            return false;
        };
        self.dtls.set_now(now);
        match self.rtc.handle_input(Input::Receive(now, receive)) {
            Ok(()) => true,
            Err(error) => {
                // The session ends if `DtlsLink` has noted the error.
                log::debug!("viewer {}: datagram refused: {error}", self.id);
                false
            }
        }
    }

    /// Makes str0m believe in a path, so that it sends DTLS: a nominating request from an address of documentation
    /// (RFC 5737, RFC 3849).
    fn open_constant_path(&mut self, now: Instant) {
        if self.constant_path.is_some() || self.paths.selected().is_none() {
            return;
        }
        let Some(candidate) = self.context.candidates.first().map(Candidate::addr) else { return };
        let ip: IpAddr = if candidate.is_ipv4() {
            Ipv4Addr::new(192, 0, 2, 1).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
        };
        let path = ConstantPath { remote: SocketAddr::new(ip, 9), candidate };
        let request = self.ice.nomination();
        if let Ok(receive) = Receive::new(Protocol::Udp, path.remote, path.candidate, &request) {
            let handled = self.rtc.handle_input(Input::Receive(now, receive));
            debug_assert!(handled.is_ok(), "STUN never fails in str0m");
            self.constant_path = Some(path);
        }
    }

    /// Handles an authentic SRTCP datagram from `from`.
    pub(super) fn on_authentic_rtcp(&mut self, now: Instant, from: Destination, bytes: usize) {
        self.paths.on_bytes(from, bytes);
        self.paths.on_rtcp(now, from);
        self.on_authentic(now, from.remote);
    }

    /// Handles the end of the DTLS handshake.
    pub(super) fn on_connected(&mut self, now: Instant) {
        self.paths.on_connected(now);
        self.renew_consent(now);
    }

    /// Renews consent if `remote` is the address of the selected path. An address that is not proven cannot renew it,
    /// or a viewer could direct media to a victim and keep it flowing.
    fn on_authentic(&mut self, now: Instant, remote: SocketAddr) {
        if self.paths.is_selected(remote) {
            self.renew_consent(now);
        } else {
            self.set_destination();
        }
    }

    // ---- consent -----------------------------------------------------------------------------------

    fn renew_consent(&mut self, now: Instant) {
        self.heard_at = now;
        self.is_paused = false;
        self.set_destination();
    }

    fn set_destination(&mut self) {
        self.destination = self.paths.proven().filter(|_| !self.is_paused);
    }

    /// Returns the time at which [`Transport::handle_consent`] must be called.
    pub(super) fn consent_deadline(&self) -> Instant {
        let (pause, timeout) = self.silence_max();
        self.heard_at + if self.is_paused { timeout } else { pause }
    }

    /// Returns the time without an authentic datagram after which media pauses, and after which the session ends. A
    /// publisher can connect again at any time, so its session ends early.
    fn silence_max(&self) -> (Duration, Duration) {
        if self.is_publisher() {
            (limits::PUBLISHER_SILENCE_MAX, limits::PUBLISHER_SILENCE_MAX)
        } else {
            (limits::CONSENT_PAUSE, limits::CONSENT_TIMEOUT)
        }
    }

    /// Pauses media if the viewer has been silent for [`limits::CONSENT_PAUSE`]. Returns true if consent has expired.
    pub(super) fn handle_consent(&mut self, now: Instant) -> bool {
        let (pause, timeout) = self.silence_max();
        self.is_paused = now >= self.heard_at + pause;
        self.set_destination();
        now >= self.heard_at + timeout
    }

    // ---- output ------------------------------------------------------------------------------------

    /// Returns the next datagram or event; [`TransportOutput::Idle`] ends the drain.
    pub(super) fn poll_output(&mut self, now: Instant) -> Result<TransportOutput, RtcError> {
        while let Some(output) = self.poll_stun(now) {
            let (to, bytes) = output;
            // Only the answer to a request in the wrong role goes to an address that has no path.
            if self.paths.may_send(to, bytes.len()) || !self.paths.contains(to.remote) {
                return Ok(TransportOutput::Datagram(to, bytes.into()));
            }
        }
        loop {
            match self.rtc.poll_output()? {
                // str0m answers the request of `open_constant_path`. DTLS goes to the selected path.
                str0m::Output::Transmit(transmit) => {
                    let bytes = transmit.contents;
                    let is_dtls = DatagramKind::of(&bytes) == DatagramKind::Dtls;
                    let Some(to) = self.paths.selected().filter(|_| is_dtls) else { continue };
                    if self.paths.may_send(to, bytes.len()) {
                        self.paths.note_dtls(to);
                        self.has_sent_alert |= bytes.first() == Some(&ALERT_RECORD);
                        return Ok(TransportOutput::Datagram(to, bytes));
                    }
                }
                str0m::Output::Event(Event::Connected) => return Ok(TransportOutput::Connected),
                str0m::Output::Event(Event::Closed) => return Ok(TransportOutput::PeerClosed),
                str0m::Output::Event(_) => {}
                str0m::Output::Timeout(deadline) => {
                    self.deadline = deadline;
                    return Ok(self.poll_alert().unwrap_or(TransportOutput::Idle));
                }
            }
        }
    }

    /// Returns the next STUN message: an answer, or a request that is due.
    fn poll_stun(&mut self, now: Instant) -> Option<(Destination, Vec<u8>)> {
        if let Some(answer) = self.stun_output.pop_front() {
            return Some(answer);
        }
        if let Some((to, id)) = self.paths.poll_check(now) {
            return Some((to, self.ice.request(id, false)));
        }
        let to = self.paths.selected()?;
        let (id, is_nominating) = self.agent.as_mut()?.poll(now)?;
        Some((to, self.ice.request(id, is_nominating)))
    }

    /// Returns the alert that ends an unfinished handshake, unless DTLS has sent one itself. The record is not encrypted,
    /// because the handshake has not agreed on keys.
    fn poll_alert(&mut self) -> Option<TransportOutput> {
        let description = self.alert.take().filter(|_| !self.has_sent_alert)?;
        let to = self.paths.selected()?;
        let [fatal, bytes] = [2, 2];
        // The record number only has to be higher than those that the viewer has received (RFC 6347 section 4.1.2.6).
        let record = [ALERT_RECORD, 254, 253, 0, 0, 0, 1, 0, 0, 0, 0, 0, bytes, fatal, description];
        let is_allowed = self.paths.may_send(to, record.len());
        is_allowed.then(|| TransportOutput::Datagram(to, record.to_vec().into()))
    }

    /// Returns the time of the next timeout of str0m, or of the next STUN request.
    pub(super) fn next_deadline(&self) -> Instant {
        let agent = self.agent.as_ref().filter(|_| self.paths.selected().is_some()).map(Agent::due);
        let checks = self.paths.check_due().into_iter().chain(agent);
        checks.fold(self.deadline, Instant::min)
    }
}

impl IceKeys {
    pub(super) fn new(
        local: &IceCreds,
        remote: &IceCreds,
        tie_breaker: [u8; 8],
        is_controlling: bool,
    ) -> IceKeys {
        let key = |credentials: &IceCreds| {
            hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, credentials.pass.as_bytes())
        };
        let (ufrag, remote_ufrag) = (local.ufrag.clone(), remote.ufrag.clone());
        let (local, remote) = (key(local), key(remote));
        IceKeys { ufrag, remote_ufrag, local, remote, tie_breaker, is_controlling }
    }

    /// Returns an authentic request of the viewer, and true if the viewer claims our role. Returns `None` for anything
    /// else.
    fn authenticate(&self, from: Destination, bytes: &[u8]) -> Option<(Request, bool)> {
        if stun_ufrag(bytes) != Some(self.ufrag.as_str()) {
            return None;
        }
        let message = StunMessage::parse(bytes).ok().filter(StunMessage::is_binding_request)?;
        let is_ours = message.split_username() == Some((&self.ufrag, &self.remote_ufrag));
        // The password argument is empty and unused, because the key was already made from it.
        let is_authentic = is_ours && message.verify(&[], |_, parts| stun::hmac_sha1(&self.local, parts));
        let (id, priority) = (stun::transaction_id(bytes)?, message.prio()?);
        let request = Request { id, from, priority, is_nominating: message.use_candidate() };
        let is_conflict = match self.is_controlling {
            true => message.ice_controlling().is_some(),
            false => message.ice_controlled().is_some(),
        };
        is_authentic.then_some((request, is_conflict))
    }

    fn is_authentic_response(&self, bytes: &[u8]) -> bool {
        StunMessage::parse(bytes).is_ok_and(|message| {
            message.is_successful_binding_response()
                && message.verify(&[], |_, parts| stun::hmac_sha1(&self.remote, parts))
        })
    }

    fn answer(&self, id: TransactionId, remote: SocketAddr) -> Vec<u8> {
        stun::Message::new(stun::SUCCESS, id).mapped_address(remote).sign(&self.local)
    }

    fn role_conflict(&self, id: TransactionId) -> Vec<u8> {
        stun::Message::new(stun::FAILURE, id)
            .attribute(stun::ERROR_CODE, &stun::ROLE_CONFLICT)
            .sign(&self.local)
    }

    /// Returns our request to the viewer. It asks only for an answer unless it is nominating.
    fn request(&self, id: TransactionId, is_nominating: bool) -> Vec<u8> {
        let username = format!("{}:{}", self.remote_ufrag, self.ufrag);
        let role = if self.is_controlling { stun::ICE_CONTROLLING } else { stun::ICE_CONTROLLED };
        let mut request = stun::Message::new(stun::REQUEST, id)
            .attribute(stun::USERNAME, username.as_bytes())
            .attribute(stun::PRIORITY, &stun::PEER_REFLEXIVE_PRIORITY)
            .attribute(role, &self.tie_breaker);
        if is_nominating {
            request = request.attribute(stun::USE_CANDIDATE, &[]);
        }
        request.sign(&self.remote)
    }

    /// Returns a nominating request as the viewer would send it.
    fn nomination(&self) -> Vec<u8> {
        let username = format!("{}:{}", self.ufrag, self.remote_ufrag);
        stun::Message::new(stun::REQUEST, [0; 12])
            .attribute(stun::USERNAME, username.as_bytes())
            .attribute(stun::PRIORITY, &stun::PEER_REFLEXIVE_PRIORITY)
            .attribute(stun::USE_CANDIDATE, &[])
            .attribute(stun::ICE_CONTROLLING, &self.tie_breaker)
            .sign(&self.local)
    }
}
