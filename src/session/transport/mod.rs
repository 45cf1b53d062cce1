//! ICE (lite) and DTLS of one session: authenticates STUN, tracks the viewer's paths and yields the SRTP keys. str0m
//! and dimpl implement the protocols. The module does no I/O, reads no clock and does not handle media.

pub(super) mod accept;
mod answer;
pub(super) mod dtls;
pub(super) mod offer_error;
pub(super) mod profile;
mod sdp;
mod section;
pub(super) mod stun;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::hmac;
use smallvec::SmallVec;
use str0m::ice::StunMessage;
use str0m::net::{DatagramSend, Protocol, Receive};
use str0m::{Candidate, Event, Input, Rtc, RtcError};

use crate::base::limits;
use crate::session::Destination;
use crate::session::context::SessionContext;
use dtls::DtlsLink;
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

/// A pair of addresses on which an authenticated STUN request arrived.
#[derive(Copy, Clone, Debug)]
struct Path {
    remote: SocketAddr,
    /// Local address of the request as the kernel reported it. Datagrams to the viewer are sent from this address.
    local: Option<IpAddr>,
    /// Local candidate that represents the local address in str0m.
    candidate: SocketAddr,
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
    /// Local ICE ufrag. The viewer's STUN requests carry it in their USERNAME, before the colon.
    pub(super) ufrag: String,
    /// HMAC key from our ICE password, which authenticates incoming STUN requests.
    stun_key: hmac::Key,
    pub(super) dtls: DtlsLink,
    paths: SmallVec<[Path; 2]>,
    /// Path on which str0m sends DTLS. Media and reports use the same path.
    selected: Option<Path>,
    /// Time of the latest authentic STUN request or SRTCP datagram (consent freshness, RFC 7675). Before the first one
    /// it is the time of the offer.
    heard_at: Instant,
    /// True while no media is sent, because nothing authentic has arrived for [`limits::CONSENT_PAUSE`].
    pub(super) is_paused: bool,
    /// Alert that ends an unfinished handshake. [`Transport::poll_output`] returns it once.
    pub(super) alert: Option<u8>,
    has_sent_alert: bool,
    /// Source of the latest authenticated STUN request.
    pub(super) checked_from: Option<SocketAddr>,
    /// Time of str0m's next timeout; valid after [`TransportOutput::Idle`].
    pub(super) deadline: Instant,
}

impl Transport {
    /// Returns true if an authenticated STUN request arrived from `remote`.
    pub(super) fn accepts_address(&self, remote: SocketAddr) -> bool {
        self.paths.iter().any(|path| path.remote == remote)
    }

    /// Returns the destination of media and reports. Returns `None` before DTLS has sent anything, and while the viewer
    /// is silent.
    pub(super) fn destination(&self) -> Option<Destination> {
        self.last_destination().filter(|_| !self.is_paused)
    }

    /// Returns the destination of a goodbye.
    pub(super) fn last_destination(&self) -> Option<Destination> {
        self.selected.map(|path| Destination { local: path.local, remote: path.remote })
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
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let is_admitted = match kind {
            DatagramKind::Stun => self.is_authenticated(bytes) && self.note_path(now, local, remote),
            DatagramKind::Dtls => self.accepts_address(remote),
            DatagramKind::Rtcp | DatagramKind::Other => false,
        };
        if !is_admitted {
            return false;
        }
        let Some(candidate) = self.candidate_for(local, remote) else { return false };
        let Ok(receive) = Receive::new(Protocol::Udp, remote, candidate, bytes) else { return false };
        self.dtls.set_now(now);
        match self.rtc.handle_input(Input::Receive(now, receive)) {
            Ok(()) => true,
            Err(error) => {
                // Any host on the path can inject broken DTLS, so an error does not end the session.
                log::debug!("viewer {}: datagram refused: {error}", self.id);
                false
            }
        }
    }

    /// Returns true for a STUN binding request to our ufrag whose MESSAGE-INTEGRITY proves knowledge of our password.
    fn is_authenticated(&self, bytes: &[u8]) -> bool {
        stun_ufrag(bytes) == Some(self.ufrag.as_str())
            && StunMessage::parse(bytes).is_ok_and(|message| {
                // The password argument is empty and unused, because `stun_key` was already made from our password.
                message.verify(&[], |_, parts| stun::hmac_sha1(&self.stun_key, parts))
            })
    }

    /// Returns the candidate that represents the local address of a datagram, because str0m knows only candidates.
    /// Without an exact match, returns the first candidate of the same IP version as `remote`.
    fn candidate_for(&self, local: Option<IpAddr>, remote: SocketAddr) -> Option<SocketAddr> {
        let candidates = || self.context.candidates.iter().map(Candidate::addr);
        let exact = local.and_then(|ip| candidates().find(|candidate| candidate.ip() == ip));
        exact.or_else(|| candidates().find(|candidate| candidate.is_ipv4() == remote.is_ipv4()))
    }

    /// Remembers the path of an authenticated request and renews consent. Returns false if no candidate matches, or if
    /// the path is new and the viewer already has [`limits::VIEWER_PATHS_MAX`] paths.
    fn note_path(&mut self, now: Instant, local: Option<IpAddr>, remote: SocketAddr) -> bool {
        let Some(candidate) = self.candidate_for(local, remote) else { return false };
        let path = Path { remote, local, candidate };
        let is_full = self.paths.len() >= limits::VIEWER_PATHS_MAX;
        match self.paths.iter_mut().find(|path| path.remote == remote && path.candidate == candidate) {
            Some(known) => *known = path,
            None if is_full => return false,
            None => self.paths.push(path),
        }
        self.renew_consent(now);
        self.checked_from = Some(remote);
        true
    }

    fn renew_consent(&mut self, now: Instant) {
        self.heard_at = now;
        self.is_paused = false;
    }

    /// Renews consent: an authentic SRTCP datagram has arrived from `remote`.
    pub(super) fn on_authentic_rtcp(&mut self, now: Instant, _remote: SocketAddr) {
        self.renew_consent(now);
    }

    /// Starts the consent clock when the handshake has finished.
    pub(super) fn on_connected(&mut self, now: Instant) {
        self.renew_consent(now);
    }

    /// Returns the time at which [`Transport::handle_consent`] must be called.
    pub(super) fn consent_deadline(&self) -> Instant {
        self.heard_at + if self.is_paused { limits::CONSENT_TIMEOUT } else { limits::CONSENT_PAUSE }
    }

    /// Pauses media if the viewer has been silent for [`limits::CONSENT_PAUSE`]. Returns true if consent has expired.
    pub(super) fn handle_consent(&mut self, now: Instant) -> bool {
        self.is_paused = now >= self.heard_at + limits::CONSENT_PAUSE;
        now >= self.heard_at + limits::CONSENT_TIMEOUT
    }

    // ---- output ------------------------------------------------------------------------------------

    /// Returns the next datagram or event; [`TransportOutput::Idle`] ends the drain.
    pub(super) fn poll_output(&mut self) -> Result<TransportOutput, RtcError> {
        loop {
            match self.rtc.poll_output()? {
                str0m::Output::Transmit(transmit) => {
                    let (remote, source) = (transmit.destination, transmit.source);
                    self.has_sent_alert |= transmit.contents.first() == Some(&ALERT_RECORD);
                    if DatagramKind::of(&transmit.contents) == DatagramKind::Dtls {
                        self.select(remote, source);
                    }
                    let local = self.path(remote, source).map_or(Some(source.ip()), |path| path.local);
                    return Ok(TransportOutput::Datagram(Destination { local, remote }, transmit.contents));
                }
                str0m::Output::Event(Event::Connected) => return Ok(TransportOutput::Connected),
                str0m::Output::Event(Event::Closed) => return Ok(TransportOutput::PeerClosed),
                // This event comes once a second. ICE may have selected another path although DTLS has sent nothing.
                str0m::Output::Event(Event::PeerStats(stats)) => {
                    if let Some(pair) = stats.selected_candidate_pair {
                        self.select(pair.remote.addr, pair.local.addr);
                    }
                }
                str0m::Output::Event(_) => {}
                str0m::Output::Timeout(deadline) => {
                    self.deadline = deadline;
                    return Ok(self.poll_alert().unwrap_or(TransportOutput::Idle));
                }
            }
        }
    }

    /// Returns the alert that ends an unfinished handshake, unless DTLS has sent one itself. The record is not encrypted,
    /// because the handshake has not agreed on keys.
    fn poll_alert(&mut self) -> Option<TransportOutput> {
        let description = self.alert.take().filter(|_| !self.has_sent_alert)?;
        let path = self.selected.or(self.paths.last().copied())?;
        let [fatal, bytes] = [2, 2];
        // The record number only has to be higher than those that the viewer has received (RFC 6347 section 4.1.2.6).
        let record = [ALERT_RECORD, 254, 253, 0, 0, 0, 1, 0, 0, 0, 0, 0, bytes, fatal, description];
        let to = Destination { local: path.local, remote: path.remote };
        Some(TransportOutput::Datagram(to, record.to_vec().into()))
    }

    fn path(&self, remote: SocketAddr, candidate: SocketAddr) -> Option<Path> {
        self.paths.iter().find(|path| path.remote == remote && path.candidate == candidate).copied()
    }

    /// Selects the path between these addresses; an unknown pair changes nothing.
    fn select(&mut self, remote: SocketAddr, candidate: SocketAddr) {
        self.selected = self.path(remote, candidate).or(self.selected);
    }
}
