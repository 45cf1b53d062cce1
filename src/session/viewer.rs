//! One viewer: str0m's state machine (ICE, DTLS), the stream beside it, the gate before it and the bookkeeping around
//! them. No I/O, no clock: time is an argument, datagrams come as bytes and leave through an [`DatagramSink`].
//!
//! Every call that changes something (`handle_*`, `close`) is followed by a [`Viewer::drain`]; units are sent at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use str0m::crypto::Sha1HmacProvider as _;
use str0m::crypto::dtls::SrtpProfile;
use str0m::ice::StunMessage;
use str0m::net::{Protocol, Receive, Transmit};
use str0m::{Candidate, Event, Input, Rtc, RtcError};

use super::SessionContext;
use super::media::{srtp, wallclock};
use super::sink::{DatagramSink, Destination};
use crate::base::limits;
use crate::h264::Payloads;
use crate::session::media::catch_up::{CatchUpTime, Replays};
use crate::session::media::gate::{Gate, GateUnit};
use crate::session::media::sender::{Sender, UnitTiming};
use crate::session::transport::accept::SessionParts;
use crate::session::transport::crypto::{self, CachedHmac, Handshake};

/// One access unit as RTP payloads, shared by all viewers of a worker.
#[derive(Copy, Clone, Debug)]
pub struct PacketizedUnit<'a> {
    /// RTP payloads in order, each at most [`limits::RTP_PAYLOAD_BYTES_MAX`] bytes.
    pub payloads: &'a [Arc<Payloads>],
    /// The unit is an IDR and carries its parameter sets.
    pub is_idr: bool,
    /// Other units may need this one.
    pub is_reference: bool,
    /// Capture time in 90 kHz, extended beyond 32 bits, monotonic.
    pub rtp_time_90k: u64,
    /// Capture time, CLOCK_REALTIME in ns.
    pub captured_at_ns: Option<i64>,
    /// Units were lost before this one: without an IDR the viewer drops to the next.
    pub gap_before: bool,
}

/// What is to be done after a drain.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Nothing more; call [`Viewer::handle_timeout`] then, at the latest.
    Wait(Instant),
    /// The session is over; it says so from now on.
    Closed(CloseReason),
}

/// Why a session ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// ICE and DTLS did not finish within [`limits::HANDSHAKE_TIMEOUT`].
    HandshakeTimeout,
    /// No authenticated STUN request for [`limits::CONSENT_TIMEOUT`].
    ConsentExpired,
    /// The viewer closed DTLS.
    PeerClosed,
    /// [`Viewer::close`] was called.
    Local,
    /// [`Viewer::log_out`] was called.
    LoggedOut,
    /// DTLS or str0m failed: wrong certificate, no SRTP, broken handshake.
    Failed,
}

/// Where the connection stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Connected,
    /// Draining the last datagrams.
    Closing(CloseReason),
    Closed(CloseReason),
}

/// A way to the viewer that an authenticated STUN request came on.
#[derive(Copy, Clone, Debug)]
struct Path {
    remote: SocketAddr,
    /// Our address as the kernel told it: what we answer from.
    local: Option<IpAddr>,
    /// The candidate that stands for it in str0m.
    candidate: SocketAddr,
}

#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) units_sent: u64,
    pub(super) datagrams_received: u64,
    pub(super) datagrams_rejected: u64,
}

/// The RTP time a unit is sent with.
#[derive(Copy, Clone, Debug)]
pub(super) enum SendTime {
    /// Its own.
    Live,
    /// One that lets it pass quickly.
    Replayed(CatchUpTime),
}

/// One browser.
pub struct Viewer {
    pub(super) id: u32,
    context: Arc<SessionContext>,
    rtc: Rtc,
    ufrag: String,
    password: String,
    pub(super) sender: Sender,
    handshake: Handshake,
    pub(super) phase: Phase,
    pub(super) gate: Gate,
    paths: SmallVec<[Path; 2]>,
    /// The path that str0m sends on.
    selected: Option<Path>,
    has_said_goodbye: bool,
    /// Time never runs backwards for str0m, whatever the caller's order of events.
    now: Instant,
    pub(super) accepted_at: Instant,
    pub(super) connected_at: Option<Instant>,
    heard_at: Instant,
    pub(super) heard_from: Option<SocketAddr>,
    str0m_deadline: Instant,
    rtp_offset: u32,
    /// RTP time of the last unit, without the offset.
    rtp_time_sent: Option<u64>,
    captured_at_sent: Option<Instant>,
    idr_wanted: bool,
    pub(super) replays: Replays,
    pub(super) first_idr_at: Option<Instant>,
    pub(super) profile: Option<SrtpProfile>,
    pub(super) counters: Counters,
}

impl std::fmt::Debug for Viewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Viewer").field("id", &self.id).field("phase", &self.phase).finish_non_exhaustive()
    }
}

const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Viewer>();
};

impl Viewer {
    pub(super) fn new(context: &Arc<SessionContext>, id: u32, parts: SessionParts, now: Instant) -> Self {
        let SessionParts { rtc, ufrag, password, rtp_offset, stream, handshake } = parts;
        Self {
            id,
            context: Arc::clone(context),
            rtc,
            ufrag,
            password,
            sender: Sender::new(stream, context.wallclock, now),
            handshake,
            phase: Phase::Connecting,
            gate: Gate::new(),
            paths: SmallVec::new(),
            selected: None,
            has_said_goodbye: false,
            now,
            accepted_at: now,
            connected_at: None,
            heard_at: now,
            heard_from: None,
            str0m_deadline: now,
            rtp_offset,
            rtp_time_sent: None,
            captured_at_sent: None,
            idr_wanted: false,
            replays: Replays::default(),
            first_idr_at: None,
            profile: None,
            counters: Counters::default(),
        }
    }

    /// The number given to [`Viewer::accept`].
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What STUN requests to this viewer's session carry before the colon of their USERNAME.
    pub fn local_ufrag(&self) -> &str {
        &self.ufrag
    }
}

// ---- input -----------------------------------------------------------------------------------------

/// What a datagram is, by its first bytes (RFC 7983 section 7, RFC 5761 section 4).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Kind {
    Stun,
    Dtls,
    Rtcp,
    /// RTP too: a viewer has nothing to send.
    Other,
}

impl Kind {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0..=3, ..] => Self::Stun,
            [20..=63, ..] => Self::Dtls,
            [128..=191, 192..=223, ..] => Self::Rtcp,
            _ => Self::Other,
        }
    }
}

impl Viewer {
    /// Whether an authenticated STUN request came from there: then everything else from there is for
    /// this viewer.
    pub fn accepts_address(&self, remote: SocketAddr) -> bool {
        self.paths.iter().any(|path| path.remote == remote)
    }

    /// Takes a datagram that came from `remote` to our address `local`. What is malformed, not
    /// authenticated or not for this viewer is counted and ignored.
    pub fn handle_datagram(&mut self, now: Instant, local: Option<IpAddr>, remote: SocketAddr, bytes: &[u8]) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        self.advance(now);
        self.counters.datagrams_received += 1;
        let kind = Kind::of(bytes);
        let wanted = match kind {
            Kind::Stun => self.is_authenticated(bytes) && self.note_path(local, remote),
            Kind::Dtls | Kind::Rtcp => self.accepts_address(remote),
            Kind::Other => false,
        };
        let handled = wanted
            && match kind {
                Kind::Rtcp => self.handle_rtcp(bytes),
                _ => self.feed(local, remote, bytes),
            };
        if !handled {
            self.counters.datagrams_rejected += 1;
        }
    }

    fn handle_rtcp(&mut self, bytes: &[u8]) -> bool {
        let asked_before = self.sender.reception.idr_requests;
        let is_authentic = self.sender.handle_rtcp(self.now, bytes);
        self.idr_wanted |= self.sender.reception.idr_requests > asked_before;
        is_authentic
    }

    fn feed(&mut self, local: Option<IpAddr>, remote: SocketAddr, bytes: &[u8]) -> bool {
        let Some(candidate) = self.candidate_for(local, remote) else { return false };
        let Ok(receive) = Receive::new(Protocol::Udp, remote, candidate, bytes) else { return false };
        crypto::tell_time(self.now);
        match self.rtc.handle_input(Input::Receive(self.now, receive)) {
            Ok(()) => true,
            Err(error) => {
                // Anyone on the path can send broken DTLS: it is not the end of the session.
                log::debug!("viewer {}: datagram refused: {error}", self.id);
                false
            }
        }
    }

    /// A STUN binding request for us whose MESSAGE-INTEGRITY proves that the viewer sent it.
    fn is_authenticated(&self, bytes: &[u8]) -> bool {
        super::stun_ufrag(bytes) == Some(self.ufrag.as_str())
            && StunMessage::parse(bytes).is_ok_and(|message| {
                message.verify(self.password.as_bytes(), |key, parts| CachedHmac.sha1_hmac(key, parts))
            })
    }

    /// The candidate that stands for the local address a datagram came to: str0m knows only those.
    fn candidate_for(&self, local: Option<IpAddr>, remote: SocketAddr) -> Option<SocketAddr> {
        let candidates = || self.context.candidates.iter().map(Candidate::addr);
        let exact = local.and_then(|ip| candidates().find(|candidate| candidate.ip() == ip));
        exact.or_else(|| candidates().find(|candidate| candidate.is_ipv4() == remote.is_ipv4()))
    }

    /// Remembers the way an authenticated request came on; the viewer lives.
    fn note_path(&mut self, local: Option<IpAddr>, remote: SocketAddr) -> bool {
        let Some(candidate) = self.candidate_for(local, remote) else { return false };
        let path = Path { remote, local, candidate };
        let is_full = self.paths.len() >= limits::VIEWER_PATHS_MAX;
        match self.paths.iter_mut().find(|path| path.remote == remote && path.candidate == candidate) {
            Some(known) => *known = path,
            None if is_full => return false,
            None => self.paths.push(path),
        }
        self.heard_at = self.now;
        self.heard_from = Some(remote);
        true
    }

    /// Moves time forward: retransmissions, reports, and the deadlines of handshake and consent.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        match self.phase {
            Phase::Connecting if self.now >= self.accepted_at + limits::HANDSHAKE_TIMEOUT => {
                self.finish(CloseReason::HandshakeTimeout);
            }
            Phase::Connected if self.now >= self.heard_at + limits::CONSENT_TIMEOUT => {
                self.finish(CloseReason::ConsentExpired);
            }
            Phase::Closed(_) => {}
            _ => {
                let result = self.rtc.handle_input(Input::Timeout(self.now));
                self.check(result);
            }
        }
    }

    /// When [`Viewer::handle_timeout`] must be called at the latest; valid after a drain.
    pub fn next_deadline(&self) -> Instant {
        let own = match self.phase {
            Phase::Connecting => self.accepted_at + limits::HANDSHAKE_TIMEOUT,
            Phase::Connected => {
                let consent = self.heard_at + limits::CONSENT_TIMEOUT;
                self.sender.deadline().map_or(consent, |report| report.min(consent))
            }
            Phase::Closing(_) | Phase::Closed(_) => self.now,
        };
        self.str0m_deadline.min(own)
    }

    /// Sends a live access unit, if the gate lets it pass and the viewer isn't being given older ones. No drain has to
    /// follow; [`Viewer::next_deadline`] may have come closer.
    pub fn push_access_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        sink: &mut impl DatagramSink,
    ) {
        if self.phase == Phase::Connected && self.takes_live(now, unit.is_idr) {
            self.send_unit(now, unit, SendTime::Live, sink);
        }
    }

    pub(super) fn send_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        time: SendTime,
        sink: &mut impl DatagramSink,
    ) {
        self.advance(now);
        let &PacketizedUnit { is_idr, is_reference, gap_before, .. } = unit;
        if !self.gate.admit(GateUnit { is_idr, is_reference, gap_before }) {
            // A congested viewer is better off without: an IDR is large.
            self.idr_wanted |= gap_before;
            return;
        }
        if self.write(unit, time, sink) {
            self.counters.units_sent += 1;
            self.replays.note_sent(self.now, is_idr);
            self.first_idr_at.get_or_insert(self.now);
        } else {
            self.gate.retract();
        }
    }

    fn write(&mut self, unit: &PacketizedUnit<'_>, time: SendTime, sink: &mut impl DatagramSink) -> bool {
        let mut payloads = unit.payloads.iter().flat_map(|payloads| payloads.iter());
        let oversized = payloads.any(|payload| payload.len() > limits::RTP_PAYLOAD_BYTES_MAX);
        debug_assert!(!oversized, "the packetizer's bound");
        let Some(to) = self.destination().filter(|_| !oversized && !unit.payloads.is_empty()) else {
            return false;
        };
        let (rtp_time_90k, at) = match time {
            SendTime::Live => (unit.rtp_time_90k, self.now),
            SendTime::Replayed(time) => (time.rtp_time_90k, time.at),
        };
        let rtp_time_90k = rtp_time_90k.max(self.rtp_time_sent.map_or(0, |sent| sent + 1));
        self.rtp_time_sent = Some(rtp_time_90k);
        #[expect(clippy::cast_possible_truncation, reason = "RTP time is the low 32 bits")]
        let rtp_time = (rtp_time_90k as u32).wrapping_add(self.rtp_offset);
        let captured_ntp = self.capture_time_of(unit, time);
        let moment = UnitTiming { now: self.now, rtp_time, at, captured_ntp };
        self.sender.send_unit(unit.payloads, &moment, &to, sink);
        true
    }

    /// The capture time to be told with a unit, NTP, or 0: on every packet of it, as equal sizes make it one GSO train.
    /// It goes with IDRs and at least once a second; receivers interpolate between (for up to 5 s), which
    /// they can't where the RTP time is not that of the capture.
    fn capture_time_of(&mut self, unit: &PacketizedUnit<'_>, time: SendTime) -> u64 {
        let due = self.captured_at_sent.is_none_or(|at| self.now >= at + Duration::from_secs(1));
        let captured_at = unit.captured_at_ns.and_then(|ns| u64::try_from(ns).ok());
        let is_replayed = matches!(time, SendTime::Replayed(_));
        let Some(ns) = captured_at.filter(|_| due || unit.is_idr || is_replayed) else { return 0 };
        self.captured_at_sent = Some(self.now);
        wallclock::ntp(Duration::from_nanos(ns))
    }

    /// Where media and reports go: where DTLS goes.
    fn destination(&self) -> Option<Destination> {
        self.selected.map(|path| Destination { local: path.local, remote: path.remote })
    }

    /// The path between these addresses.
    fn path(&self, remote: SocketAddr, candidate: SocketAddr) -> Option<Path> {
        self.paths.iter().find(|path| path.remote == remote && path.candidate == candidate).copied()
    }

    /// str0m sends between these addresses.
    fn select(&mut self, remote: SocketAddr, candidate: SocketAddr) {
        self.selected = self.path(remote, candidate).or(self.selected);
    }

    /// Tells how many datagrams of this viewer the kernel has not sent yet: see [`Gate::note_in_flight`].
    pub fn note_congestion(&mut self, in_flight_datagrams: u32) {
        self.gate.note_in_flight(in_flight_datagrams);
    }

    /// Says good-bye (RTCP BYE, DTLS close_notify); the drain that follows does and ends with
    /// [`Output::Closed`].
    pub fn close(&mut self, now: Instant) {
        self.leave(now, CloseReason::Local);
    }

    /// [`Viewer::close`] because the login it was let in with is over.
    pub fn log_out(&mut self, now: Instant) {
        self.leave(now, CloseReason::LoggedOut);
    }

    fn leave(&mut self, now: Instant, reason: CloseReason) {
        self.advance(now);
        match self.phase {
            Phase::Connecting => self.finish(reason),
            Phase::Connected => {
                self.phase = Phase::Closing(reason);
                let result = self.rtc.close();
                self.check(result);
            }
            Phase::Closing(_) | Phase::Closed(_) => {}
        }
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn check(&mut self, result: Result<(), RtcError>) {
        if let Err(error) = result {
            log::info!("viewer {}: session failed: {error}", self.id);
            self.finish(CloseReason::Failed);
        }
    }

    fn finish(&mut self, reason: CloseReason) {
        self.rtc.disconnect();
        self.phase = Phase::Closed(reason);
    }
}

// ---- output ----------------------------------------------------------------------------------------

impl Viewer {
    /// Sends all there is to be sent through `sink`: what str0m wants sent, packets asked for again, reports.
    pub fn drain(&mut self, now: Instant, sink: &mut impl DatagramSink) -> Output {
        self.advance(now);
        loop {
            if let Phase::Closing(_) = self.phase {
                self.say_goodbye(sink);
            }
            if let Phase::Closed(reason) = self.phase {
                return Output::Closed(reason);
            }
            match self.rtc.poll_output() {
                Ok(str0m::Output::Transmit(transmit)) => self.transmit(&transmit, sink),
                Ok(str0m::Output::Event(event)) => self.handle_event(event),
                Ok(str0m::Output::Timeout(deadline)) => {
                    self.str0m_deadline = deadline;
                    match self.phase {
                        // Everything that could be said has been said.
                        Phase::Closing(reason) if self.has_said_goodbye => self.finish(reason),
                        Phase::Closing(_) => {}
                        _ if !self.rtc.is_alive() => self.finish(CloseReason::Failed),
                        _ => {
                            self.send_rest(sink);
                            return Output::Wait(self.next_deadline());
                        }
                    }
                }
                Err(error) => self.check(Err(error)),
            }
        }
    }

    fn transmit(&mut self, transmit: &Transmit, sink: &mut impl DatagramSink) {
        let &Transmit { source, destination: remote, ref contents, .. } = transmit;
        if Kind::of(contents) == Kind::Dtls {
            self.select(remote, source);
        }
        let local = self.path(remote, source).map_or(Some(source.ip()), |path| path.local);
        self.sender.send_plain(contents, &Destination { local, remote }, sink);
    }

    fn send_rest(&mut self, sink: &mut impl DatagramSink) {
        let Some(to) = self.destination() else { return };
        if self.phase == Phase::Connected {
            self.sender.send_again(&to, sink);
            self.sender.report(self.now, &to, sink);
        }
    }

    fn say_goodbye(&mut self, sink: &mut impl DatagramSink) {
        if !std::mem::replace(&mut self.has_said_goodbye, true)
            && let Some(to) = self.destination()
        {
            self.sender.goodbye(self.now, &to, sink);
        }
    }

    /// How many sent packets can be asked for again.
    pub(super) fn set_rtx_cache(&mut self, packets: usize) {
        self.sender.set_cache(packets);
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Connected => self.connected(),
            // Once a second: the path may have changed without a word of DTLS.
            Event::PeerStats(stats) => {
                if let Some(pair) = stats.selected_candidate_pair {
                    self.select(pair.remote.addr, pair.local.addr);
                }
            }
            // str0m has queued our close_notify; it leaves with this drain.
            Event::Closed if !matches!(self.phase, Phase::Closing(_)) => {
                self.phase = Phase::Closing(CloseReason::PeerClosed);
            }
            _ => {}
        }
    }

    fn connected(&mut self) {
        let agreed = self.handshake.lock().unwrap_or_else(PoisonError::into_inner).take();
        let keys = agreed
            .as_ref()
            .and_then(|agreed| srtp::contexts(agreed.profile, &agreed.material, agreed.is_client));
        if let (Some(agreed), Some(keys)) = (agreed, keys) {
            self.sender.start(keys);
            self.profile = Some(agreed.profile);
            self.phase = Phase::Connected;
            self.connected_at = Some(self.now);
        } else {
            log::info!("viewer {}: DTLS finished without SRTP", self.id);
            self.finish(CloseReason::Failed);
        }
    }

    /// The round trip, from the viewer's latest report.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.sender.reception.rtt
    }

    /// Whether the viewer asked for an IDR (PLI or FIR) since the last call, or lost its reference to a gap.
    pub fn take_idr_wanted(&mut self) -> bool {
        std::mem::take(&mut self.idr_wanted)
    }

    /// Whether the session is over; the caller may forget it.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }
}
