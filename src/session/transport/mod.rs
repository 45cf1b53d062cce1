//! ICE (lite) and DTLS of one session: authenticates STUN, tracks the viewer's paths, yields the SRTP keys.
//! str0m and dimpl do the protocols. No I/O, no clock; media is not handled here.

pub(super) mod accept;
pub(super) mod dtls;
pub(super) mod profile;
pub(super) mod sdp;
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

/// Protocol of a datagram, by its first bytes (RFC 7983 section 7, RFC 5761 section 4).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum DatagramKind {
    Stun,
    Dtls,
    Rtcp,
    /// Unexpected, RTP included: a viewer sends no media.
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

/// A pair of addresses on which an authenticated STUN request arrived.
#[derive(Copy, Clone, Debug)]
struct Path {
    remote: SocketAddr,
    /// Local address as the kernel reported it; answers leave from it.
    local: Option<IpAddr>,
    /// The local candidate that stands for it in str0m.
    candidate: SocketAddr,
}

/// Next result of [`Transport::poll_output`].
pub(super) enum TransportOutput {
    /// Send this STUN or DTLS datagram.
    Datagram(Destination, DatagramSend),
    /// DTLS has finished: [`DtlsLink::take_keys`] has the keys.
    Connected,
    /// The viewer closed DTLS. Our close_notify is queued and leaves with this drain.
    PeerClosed,
    /// Nothing more until the next input or `Transport::deadline`.
    Idle,
}

/// ICE agent and DTLS endpoint of one session.
pub(super) struct Transport {
    /// Number of the viewer, for the log.
    id: u32,
    context: Arc<SessionContext>,
    pub(super) rtc: Rtc,
    /// Local ufrag: viewers' STUN requests carry it before the colon of their USERNAME.
    pub(super) ufrag: String,
    /// Key schedule of our ICE password: what incoming STUN is authenticated with.
    stun_key: hmac::Key,
    pub(super) dtls: DtlsLink,
    paths: SmallVec<[Path; 2]>,
    /// Path on which str0m sends DTLS; media and reports follow it.
    selected: Option<Path>,
    /// Time and source of the latest authenticated STUN request (consent freshness, RFC 7675). Before the first, the time
    /// of the offer.
    pub(super) checked_at: Instant,
    pub(super) checked_from: Option<SocketAddr>,
    /// Time of str0m's next timeout; valid after [`TransportOutput::Idle`].
    pub(super) deadline: Instant,
}

impl Transport {
    /// Returns true if an authenticated STUN request arrived from `remote`.
    pub(super) fn accepts_address(&self, remote: SocketAddr) -> bool {
        self.paths.iter().any(|path| path.remote == remote)
    }

    /// Returns where media and reports go; `None` before DTLS has sent anything.
    pub(super) fn destination(&self) -> Option<Destination> {
        self.selected.map(|path| Destination { local: path.local, remote: path.remote })
    }

    // ---- input -------------------------------------------------------------------------------------

    /// Handles a STUN or DTLS datagram. Returns false if it is malformed, not authenticated, from an unknown source, or
    /// not for this viewer.
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
                // Anyone on the path can inject broken DTLS, so it does not end the session.
                log::debug!("viewer {}: datagram refused: {error}", self.id);
                false
            }
        }
    }

    /// Returns true for a STUN binding request to our ufrag whose MESSAGE-INTEGRITY proves knowledge of our password.
    fn is_authenticated(&self, bytes: &[u8]) -> bool {
        stun_ufrag(bytes) == Some(self.ufrag.as_str())
            && StunMessage::parse(bytes).is_ok_and(|message| {
                // The password itself is not needed: `stun_key` is its key schedule.
                message.verify(&[], |_, parts| stun::hmac_sha1(&self.stun_key, parts))
            })
    }

    /// Returns the candidate that stands for the local address of a datagram; str0m knows only candidates.
    fn candidate_for(&self, local: Option<IpAddr>, remote: SocketAddr) -> Option<SocketAddr> {
        let candidates = || self.context.candidates.iter().map(Candidate::addr);
        let exact = local.and_then(|ip| candidates().find(|candidate| candidate.ip() == ip));
        exact.or_else(|| candidates().find(|candidate| candidate.is_ipv4() == remote.is_ipv4()))
    }

    /// Remembers the path of an authenticated request and renews consent. Returns false at
    /// [`limits::VIEWER_PATHS_MAX`] paths.
    fn note_path(&mut self, now: Instant, local: Option<IpAddr>, remote: SocketAddr) -> bool {
        let Some(candidate) = self.candidate_for(local, remote) else { return false };
        let path = Path { remote, local, candidate };
        let is_full = self.paths.len() >= limits::VIEWER_PATHS_MAX;
        match self.paths.iter_mut().find(|path| path.remote == remote && path.candidate == candidate) {
            Some(known) => *known = path,
            None if is_full => return false,
            None => self.paths.push(path),
        }
        self.checked_at = now;
        self.checked_from = Some(remote);
        true
    }

    // ---- output ------------------------------------------------------------------------------------

    /// Returns the next datagram or event; [`TransportOutput::Idle`] ends the drain.
    pub(super) fn poll_output(&mut self) -> Result<TransportOutput, RtcError> {
        loop {
            match self.rtc.poll_output()? {
                str0m::Output::Transmit(transmit) => {
                    let (remote, source) = (transmit.destination, transmit.source);
                    if DatagramKind::of(&transmit.contents) == DatagramKind::Dtls {
                        self.select(remote, source);
                    }
                    let local = self.path(remote, source).map_or(Some(source.ip()), |path| path.local);
                    return Ok(TransportOutput::Datagram(Destination { local, remote }, transmit.contents));
                }
                str0m::Output::Event(Event::Connected) => return Ok(TransportOutput::Connected),
                str0m::Output::Event(Event::Closed) => return Ok(TransportOutput::PeerClosed),
                // Once a second: ICE may have selected another path although DTLS sent nothing.
                str0m::Output::Event(Event::PeerStats(stats)) => {
                    if let Some(pair) = stats.selected_candidate_pair {
                        self.select(pair.remote.addr, pair.local.addr);
                    }
                }
                str0m::Output::Event(_) => {}
                str0m::Output::Timeout(deadline) => {
                    self.deadline = deadline;
                    return Ok(TransportOutput::Idle);
                }
            }
        }
    }

    fn path(&self, remote: SocketAddr, candidate: SocketAddr) -> Option<Path> {
        self.paths.iter().find(|path| path.remote == remote && path.candidate == candidate).copied()
    }

    /// Selects the path between these addresses; an unknown pair changes nothing.
    fn select(&mut self, remote: SocketAddr, candidate: SocketAddr) {
        self.selected = self.path(remote, candidate).or(self.selected);
    }
}
