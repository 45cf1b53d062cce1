//! One viewer: its transport, its media stream and the phase of its connection. No I/O, no clock: time is an argument,
//! datagrams arrive as bytes and leave through a [`DatagramSink`].
//!
//! Every call that changes something (`handle_*`, `close`) is followed by a [`Viewer::drain`]; units are sent at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use str0m::RtcError;

use crate::base::limits;
use crate::session::context::SessionContext;
use crate::session::media::catch_up::{CatchUpDecision, CatchUpTime, GopAvailability, IdrReason};
use crate::session::media::{MediaStream, PacketizedUnit};
use crate::session::sink::DatagramSink;
use crate::session::transport::accept::{AcceptedOffer, accept_offer};
use crate::session::transport::sdp::OfferError;
use crate::session::transport::{DatagramKind, Transport, TransportOutput};

/// Result of a drain.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Nothing more to send; call [`Viewer::handle_timeout`] at this time at the latest.
    Wait(Instant),
    /// The session is over. Every later drain returns the same.
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

/// State of the connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Connected,
    /// The goodbye is being sent.
    Closing(CloseReason),
    Closed(CloseReason),
}

/// One viewer (a browser) and the session with it.
pub struct Viewer {
    id: u32,
    pub(super) transport: Transport,
    pub(super) media: MediaStream,
    pub(super) phase: Phase,
    has_said_goodbye: bool,
    /// Latest time seen. Time never runs backwards for str0m, whatever the caller passes.
    now: Instant,
    pub(super) accepted_at: Instant,
    pub(super) connected_at: Option<Instant>,
    pub(super) datagrams_rejected: u64,
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
    /// Reads the offer, sets the session up and returns it with the SDP answer. The viewer has
    /// [`limits::HANDSHAKE_TIMEOUT`] from `now` to connect.
    ///
    /// # Errors
    /// See [`OfferError`]; no state is left behind.
    pub fn accept(
        context: &Arc<SessionContext>,
        id: u32,
        offer_sdp: &str,
        now: Instant,
    ) -> Result<(Self, String), OfferError> {
        let AcceptedOffer { transport, stream, answer } = accept_offer(context, id, offer_sdp, now)?;
        let viewer = Self {
            id,
            transport,
            media: MediaStream::new(stream, context.wallclock, now),
            phase: Phase::Connecting,
            has_said_goodbye: false,
            now,
            accepted_at: now,
            connected_at: None,
            datagrams_rejected: 0,
        };
        Ok((viewer, answer))
    }

    /// Returns the number passed to [`Viewer::accept`].
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the local ufrag: STUN requests for this session carry it before the colon of their USERNAME.
    pub fn local_ufrag(&self) -> &str {
        self.transport.ufrag()
    }

    /// Returns true if an authenticated STUN request arrived from `remote`: all other datagrams from there belong to
    /// this viewer.
    pub fn accepts_address(&self, remote: SocketAddr) -> bool {
        self.transport.accepts_address(remote)
    }

    /// Returns true if the session is over and can be removed.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    /// Returns the time at which [`Viewer::handle_timeout`] must be called at the latest; valid after a drain.
    pub fn next_deadline(&self) -> Instant {
        let own = match self.phase {
            Phase::Connecting => self.accepted_at + limits::HANDSHAKE_TIMEOUT,
            Phase::Connected => {
                let consent = self.consent_deadline();
                self.media.sender.report_due_at().map_or(consent, |report| report.min(consent))
            }
            Phase::Closing(_) | Phase::Closed(_) => self.now,
        };
        self.transport.deadline().min(own)
    }

    fn consent_deadline(&self) -> Instant {
        self.transport.checked_at() + limits::CONSENT_TIMEOUT
    }
}

// ---- input -----------------------------------------------------------------------------------------

impl Viewer {
    /// Handles a datagram from `remote` to our address `local`. A malformed, unauthenticated or unexpected one is
    /// counted and ignored.
    pub fn handle_datagram(&mut self, now: Instant, local: Option<IpAddr>, remote: SocketAddr, bytes: &[u8]) {
        if self.is_closed() {
            return;
        }
        self.advance(now);
        let is_handled = match DatagramKind::of(bytes) {
            DatagramKind::Stun => self.transport.handle_stun(self.now, local, remote, bytes),
            DatagramKind::Dtls => self.transport.handle_dtls(self.now, local, remote, bytes),
            DatagramKind::Rtcp => {
                self.transport.accepts_address(remote) && self.media.handle_rtcp(self.now, bytes)
            }
            DatagramKind::Other => false,
        };
        if !is_handled {
            self.datagrams_rejected += 1;
        }
    }

    /// Moves time forward: retransmissions, reports, and the deadlines of handshake and consent.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        match self.phase {
            Phase::Connecting if self.now >= self.accepted_at + limits::HANDSHAKE_TIMEOUT => {
                self.finish(CloseReason::HandshakeTimeout);
            }
            Phase::Connected if self.now >= self.consent_deadline() => {
                self.finish(CloseReason::ConsentExpired);
            }
            Phase::Closed(_) => {}
            _ => {
                let result = self.transport.handle_timeout(self.now);
                self.check(result);
            }
        }
    }

    /// Sends a live access unit if the gate admits it and no catch-up is in progress. No drain has to follow;
    /// [`Viewer::next_deadline`] may have come closer.
    pub fn push_access_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        sink: &mut impl DatagramSink,
    ) {
        if self.phase == Phase::Connected {
            self.advance(now);
            self.media.push_live(self.now, unit, self.transport.destination(), sink);
        }
    }

    /// Sets how many datagrams of this viewer the kernel still holds. See [`Gate::note_in_flight`].
    ///
    /// [`Gate::note_in_flight`]: crate::session::media::gate::Gate::note_in_flight
    pub fn note_congestion(&mut self, in_flight_datagrams: u32) {
        self.media.gate.note_in_flight(in_flight_datagrams);
    }

    /// Ends the session with a goodbye (RTCP BYE, DTLS close_notify). The next drain sends it and returns
    /// [`Output::Closed`].
    pub fn close(&mut self, now: Instant) {
        self.leave(now, CloseReason::Local);
    }

    /// Ends the session as [`Viewer::close`] does, because its login has ended.
    pub fn log_out(&mut self, now: Instant) {
        self.leave(now, CloseReason::LoggedOut);
    }

    fn leave(&mut self, now: Instant, reason: CloseReason) {
        self.advance(now);
        match self.phase {
            Phase::Connecting => self.finish(reason),
            Phase::Connected => {
                self.phase = Phase::Closing(reason);
                let result = self.transport.close();
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
        self.transport.disconnect();
        self.phase = Phase::Closed(reason);
    }
}

// ---- GOP catch-up ----------------------------------------------------------------------------------

impl Viewer {
    /// Returns why the viewer needs an IDR, if it does; then call [`Viewer::decide_catch_up`]. Each request is reported
    /// once.
    pub fn poll_idr_reason(&mut self) -> Option<IdrReason> {
        if self.phase == Phase::Connected { self.media.poll_idr_reason() } else { None }
    }

    /// Returns true once after the viewer requested an IDR (PLI or FIR) or lost its reference to a gap.
    pub fn take_idr_wanted(&mut self) -> bool {
        self.media.take_idr_wanted()
    }

    /// Decides how the viewer gets its IDR, given what the worker has. A join is decided once.
    pub fn decide_catch_up(
        &mut self,
        now: Instant,
        reason: IdrReason,
        available: GopAvailability,
    ) -> CatchUpDecision {
        self.media.decide_catch_up(now, reason, available)
    }

    /// Begins a catch-up: the viewer gets [`Viewer::push_catch_up_unit`] and ignores live units until
    /// [`Viewer::end_catch_up`] or the next live IDR. `packets`: RTP packets in the GOP so far.
    pub fn begin_catch_up(&mut self, now: Instant, reason: IdrReason, packets: usize) {
        self.media.begin_catch_up(now, reason, packets);
    }

    /// Returns true if a catch-up is in progress.
    pub fn is_catching_up(&self) -> bool {
        self.media.catch_up.is_active()
    }

    /// Sends the next unit of the GOP. Units are pushed in order, the IDR first. Units that no other unit needs are
    /// skipped, except the newest (`is_newest`). Returns true if the unit was sent.
    pub fn push_catch_up_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        time: CatchUpTime,
        is_newest: bool,
        sink: &mut impl DatagramSink,
    ) -> bool {
        if self.phase != Phase::Connected {
            return false;
        }
        self.advance(now);
        let to = self.transport.destination();
        self.media.push_catch_up_unit(self.now, unit, time, is_newest, to, sink)
    }

    /// Ends a catch-up. If `is_complete`, the newest unit was pushed and live units follow; otherwise the rest is
    /// unavailable and the viewer drops to the next IDR.
    pub fn end_catch_up(&mut self, is_complete: bool) {
        self.media.end_catch_up(is_complete);
    }
}

// ---- output ----------------------------------------------------------------------------------------

impl Viewer {
    /// Sends everything pending through `sink`: STUN, DTLS, retransmissions, reports.
    pub fn drain(&mut self, now: Instant, sink: &mut impl DatagramSink) -> Output {
        self.advance(now);
        loop {
            if let Phase::Closing(_) = self.phase {
                self.say_goodbye(sink);
            }
            if let Phase::Closed(reason) = self.phase {
                return Output::Closed(reason);
            }
            match self.transport.poll_output() {
                Ok(TransportOutput::Datagram(to, bytes)) => self.media.sender.send_plain(&bytes, &to, sink),
                Ok(TransportOutput::Connected) => self.start_media(),
                Ok(TransportOutput::PeerClosed) => {
                    if !matches!(self.phase, Phase::Closing(_)) {
                        self.phase = Phase::Closing(CloseReason::PeerClosed);
                    }
                }
                Ok(TransportOutput::Idle) => match self.phase {
                    Phase::Closing(reason) if self.has_said_goodbye => self.finish(reason),
                    Phase::Closing(_) => {}
                    _ if !self.transport.is_alive() => self.finish(CloseReason::Failed),
                    _ => {
                        self.send_feedback_answers(sink);
                        return Output::Wait(self.next_deadline());
                    }
                },
                Err(error) => self.check(Err(error)),
            }
        }
    }

    /// Sends requested retransmissions, and a sender report if one is due.
    fn send_feedback_answers(&mut self, sink: &mut impl DatagramSink) {
        let Some(to) = self.transport.destination() else { return };
        if self.phase == Phase::Connected {
            self.media.sender.send_retransmissions(&to, sink);
            self.media.sender.send_report_if_due(self.now, &to, sink);
        }
    }

    fn say_goodbye(&mut self, sink: &mut impl DatagramSink) {
        if !std::mem::replace(&mut self.has_said_goodbye, true)
            && let Some(to) = self.transport.destination()
        {
            self.media.sender.send_goodbye(self.now, &to, sink);
        }
    }

    fn start_media(&mut self) {
        let keys = self.transport.take_keys();
        if keys.is_some_and(|keys| self.media.start(keys.profile, &keys.material, keys.is_client)) {
            self.phase = Phase::Connected;
            self.connected_at = Some(self.now);
        } else {
            log::info!("viewer {}: DTLS finished without SRTP", self.id);
            self.finish(CloseReason::Failed);
        }
    }
}
