//! One viewer: its transport, its media stream and the phase of its connection. No I/O, no clock: time is an argument,
//! datagrams arrive as bytes and leave through a [`DatagramSink`].
//!
//! After every call of `handle_*` or `close` the caller must call [`Viewer::drain`]. Access units need no drain: their
//! datagrams go to the sink at once.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use str0m::crypto::dtls::SrtpProfile;
use str0m::{Input, RtcError};

use crate::base::limits;
use crate::metrics::status::GateState;
use crate::session::close::CloseReason;
use crate::session::context::SessionContext;
use crate::session::media::catch_up::{CatchUp, CatchUpDecision, GopAvailability, IdrReason};
use crate::session::media::gate::{Gate, GateUnit};
use crate::session::media::sender::Sender;
use crate::session::media::{PacketizedUnit, StreamParameters, UnitInfo, srtp};
use crate::session::transport::accept::accept_offer;
use crate::session::transport::answer_error::AnswerError;
use crate::session::transport::fragment::{FragmentError, IceFragment};
use crate::session::transport::offer_error::OfferError;
use crate::session::transport::publish::PublishOffer;
use crate::session::transport::restart::IceRestart;
use crate::session::transport::{DatagramKind, Transport, TransportOutput};
use crate::session::{DatagramSink, Destination, PathChange};

/// A paced viewer may have a smaller number of datagrams in the kernel.
const PACED_FACTOR: u32 = limits::VIEWER_IN_FLIGHT_MAX / limits::PACED_IN_FLIGHT_MAX;

/// The same for a viewer over TCP.
const TCP_FACTOR: u32 = limits::VIEWER_IN_FLIGHT_MAX / limits::TCP_IN_FLIGHT_MAX;

/// Result of a drain.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// There is nothing more to send. The caller must call [`Viewer::handle_timeout`] at this time at the latest.
    Wait(Instant),
    /// The session is over. Every later drain returns the same reason.
    Closed(CloseReason),
}

/// State of the connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Connected,
    /// The goodbye is being sent: RTCP BYE and DTLS close_notify, or an alert that ends the handshake.
    Closing(CloseReason),
    Closed(CloseReason),
}

/// One viewer (a browser) and the session with it. A WHIP server to which this program publishes is a viewer too.
pub struct Viewer {
    id: u32,
    pub(super) transport: Transport,
    pub(super) sender: Sender,
    pub(super) gate: Gate,
    pub(super) catch_up: CatchUp,
    pub(super) phase: Phase,
    has_said_goodbye: bool,
    /// Latest time that the caller has passed. str0m gets only this time, so its clock never runs backwards.
    now: Instant,
    pub(super) accepted_at: Instant,
    pub(super) connected_at: Option<Instant>,
    pub(super) first_idr_at: Option<Instant>,
    pub(super) profile: Option<SrtpProfile>,
    pub(super) datagrams_rejected: u64,
    pub(super) units_sent: u64,
    pub(super) units_replayed: u64,
    /// Units that were not sent because the link carries less than the stream.
    pub(super) units_thinned: u64,
    /// True from such a unit to the next IDR, if other units refer to that unit.
    is_thinning: bool,
}

impl Viewer {
    /// Reads the offer, sets the session up and returns it with the SDP answer. The viewer has
    /// [`limits::HANDSHAKE_TIMEOUT`] from `now` to connect.
    ///
    /// # Errors
    /// Returns an [`OfferError`] if the offer cannot be served. No state is left behind.
    pub fn accept(
        context: &Arc<SessionContext>,
        id: u32,
        offer_sdp: &str,
        now: Instant,
    ) -> Result<(Self, String), OfferError> {
        let (transport, stream, answer) = accept_offer(context, id, offer_sdp, now)?;
        Ok((Self::new(context, transport, stream, now), answer))
    }

    /// Allows the viewer to hold pictures back for up to `max_ms` milliseconds, at most
    /// [`limits::PLAYOUT_DELAY_MAX_MS`]. Must be called before the first datagram is handled. Without this call, browsers
    /// show each picture at once.
    pub fn allow_playout_delay(&mut self, max_ms: u16) {
        self.sender.allow_playout_delay(max_ms);
    }

    /// Reads the answer to an offer of ours and returns the session, which sends to a WHIP server. It has
    /// [`limits::HANDSHAKE_TIMEOUT`] from `now` to connect.
    ///
    /// # Errors
    /// Returns an [`AnswerError`] if the answer cannot be used. No state is left behind.
    pub fn publish(offer: PublishOffer, answer_sdp: &str, now: Instant) -> Result<Self, AnswerError> {
        let (context, transport, stream) = offer.accept(answer_sdp, now)?;
        Ok(Self::new(&context, transport, stream, now))
    }

    fn new(context: &SessionContext, transport: Transport, stream: StreamParameters, now: Instant) -> Self {
        let catch_up = CatchUp::new(transport.is_publisher());
        Self {
            id: transport.id(),
            transport,
            sender: Sender::new(stream, context.wallclock, now),
            gate: Gate::new(),
            catch_up,
            phase: Phase::Connecting,
            has_said_goodbye: false,
            now,
            accepted_at: now,
            connected_at: None,
            first_idr_at: None,
            profile: None,
            datagrams_rejected: 0,
            units_sent: 0,
            units_replayed: 0,
            units_thinned: 0,
            is_thinning: false,
        }
    }

    /// Returns true if this session sends to a WHIP server. False for a viewer.
    pub fn is_publisher(&self) -> bool {
        self.transport.is_publisher()
    }

    /// Returns the number passed to [`Viewer::accept`].
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the local ICE ufrag of the SDP answer. STUN requests for this session carry it in their USERNAME, before
    /// the colon, until ICE is restarted.
    pub fn local_ufrag(&self) -> &str {
        self.transport.first_ufrag()
    }

    /// Returns the local ufrags that STUN requests may carry now: the current one and, until that one is used, the one
    /// from before an ICE restart.
    pub fn local_ufrags(&self) -> impl Iterator<Item = &str> {
        self.transport.local_ufrags()
    }

    /// Returns the name of the current generation of ICE. Each restart changes it.
    pub fn ice_tag(&self) -> &str {
        self.transport.ice_tag()
    }

    /// Returns true if an authenticated STUN request has arrived from `remote`. All other datagrams from that address
    /// then belong to this viewer.
    pub fn accepts_address(&self, remote: SocketAddr) -> bool {
        self.transport.accepts_address(remote)
    }

    /// Returns true if an authenticated STUN request has arrived on this TCP connection.
    pub fn accepts_connection(&self, connection: NonZeroU32) -> bool {
        self.transport.accepts_connection(connection)
    }

    /// Returns the next change of the viewer's addresses, for the table that finds sessions by address. Changes come
    /// from
    /// [`Viewer::handle_datagram`].
    pub fn poll_path_change(&mut self) -> Option<PathChange> {
        self.transport.poll_path_change()
    }

    /// Returns the IP address to which media is sent. Returns `None` before DTLS has sent anything.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.transport.destination().map(|to| to.remote.ip())
    }

    /// Returns true if the viewer is connected and waits for an IDR. That includes a viewer whose stream began at a
    /// recovery point and that has requested an IDR since then: browsers cannot start at a recovery point.
    pub fn waits_for_idr(&self) -> bool {
        let has_idr = self.catch_up.idr_sent_at.is_some();
        let is_watching = self.gate.state() == GateState::Live && (has_idr || !self.catch_up.is_waiting);
        self.phase == Phase::Connected && !is_watching && !self.is_catching_up()
    }

    /// Returns the number of datagrams sent so far.
    pub fn datagrams_sent(&self) -> u64 {
        self.sender.sent.datagrams
    }

    /// Returns true if the session is over and can be removed.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    /// Returns the latest time at which [`Viewer::handle_timeout`] must be called. The value is valid only when no
    /// drain is pending.
    pub fn next_deadline(&self) -> Instant {
        let own = match self.phase {
            Phase::Connecting => self.connect_deadline(),
            Phase::Connected => {
                let consent = self.transport.consent_deadline();
                let report = self.sender.report_due_at.filter(|_| !self.transport.is_paused);
                let paced = self.sender.paced_due_at().filter(|_| self.transport.destination().is_some());
                [report, paced].into_iter().flatten().fold(consent, Instant::min)
            }
            Phase::Closing(_) | Phase::Closed(_) => self.now,
        };
        self.transport.next_deadline().min(own)
    }

    /// Returns the time at which an unfinished handshake ends the session: at once if it has failed.
    fn connect_deadline(&self) -> Instant {
        let timeout = self.accepted_at + limits::HANDSHAKE_TIMEOUT;
        self.transport.dtls.failed_at().map_or(timeout, |failed_at| failed_at.min(timeout))
    }
}

// ---- input -----------------------------------------------------------------------------------------

impl Viewer {
    /// Handles a datagram from `remote` to our address `local`. A malformed, unauthenticated or unexpected datagram is
    /// counted and ignored.
    pub fn handle_datagram(&mut self, now: Instant, local: Option<IpAddr>, remote: SocketAddr, bytes: &[u8]) {
        self.handle_bytes(now, Destination::udp(local, remote), bytes);
    }

    /// Handles a datagram like [`Viewer::handle_datagram`], over UDP or TCP.
    pub fn handle_bytes(&mut self, now: Instant, from: Destination, bytes: &[u8]) {
        if self.is_closed() {
            return;
        }
        self.advance(now);
        let was_paused = self.transport.is_paused;
        let is_handled = match DatagramKind::of(bytes) {
            DatagramKind::Rtcp => {
                let is_authentic =
                    self.transport.accepts_address(from.remote) && self.sender.handle_rtcp(self.now, bytes);
                if is_authentic {
                    self.transport.on_authentic_rtcp(self.now, from, bytes.len());
                }
                is_authentic
            }
            kind => self.transport.handle_datagram(self.now, kind, from, bytes),
        };
        if !is_handled {
            self.datagrams_rejected += 1;
        }
        // The units of the pause are missing, so the viewer needs an IDR.
        self.sender.is_idr_wanted |= was_paused && !self.transport.is_paused;
        self.end_failed_handshake();
    }

    /// Handles the end of a TCP connection: nothing is sent to it any more.
    pub fn handle_disconnect(&mut self, now: Instant, connection: NonZeroU32) {
        self.advance(now);
        self.transport.remove_connection(self.now, connection);
    }

    /// Handles a fragment of the viewer's SDP. Returns the restart if the fragment has restarted ICE, or `None` if it
    /// has only listed candidates, which an ICE-lite agent does not need. `if_match` lists the [tags](Viewer::ice_tag)
    /// of the generations that the fragment may be for; `*` is any, and `None` means that the viewer did not say.
    ///
    /// # Errors
    /// Returns a [`FragmentError`] if the fragment is refused. The session then stays as it was.
    pub fn handle_fragment(
        &mut self,
        now: Instant,
        fragment: &IceFragment,
        if_match: Option<&[String]>,
    ) -> Result<Option<IceRestart>, FragmentError> {
        if !matches!(self.phase, Phase::Connecting | Phase::Connected) {
            return Err(FragmentError::Gone);
        }
        self.transport.handle_fragment(now, fragment, self.sender.mid(), if_match)
    }

    /// Ends the session if its DTLS handshake has failed. A failed session that is connected has got an alert.
    fn end_failed_handshake(&mut self) {
        let is_open = matches!(self.phase, Phase::Connecting | Phase::Connected);
        if is_open && let Some(reason) = self.transport.dtls.failure(self.now) {
            self.close(self.now, reason);
        }
    }

    /// Advances the time to `now`. Ends the session if the handshake or the consent has timed out. Otherwise passes the
    /// time to str0m; the next drain sends the retransmissions and reports that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        self.end_failed_handshake();
        match self.phase {
            Phase::Connecting if self.now >= self.accepted_at + limits::HANDSHAKE_TIMEOUT => {
                let has_stun = self.transport.checked_from.is_some();
                let reason = if has_stun { CloseReason::HandshakeTimeout } else { CloseReason::NoStun };
                self.close(self.now, reason);
            }
            Phase::Connected if self.transport.handle_consent(self.now) => {
                self.close(self.now, CloseReason::ConsentExpired);
            }
            Phase::Closed(_) => {}
            _ => {
                let result = self.transport.rtc.handle_input(Input::Timeout(self.now));
                self.check(result);
            }
        }
    }

    /// Ends the session. The next drain first tells the viewer: with RTCP BYE and DTLS close_notify if it is connected,
    /// else with a DTLS alert if its address is known. The drain then returns [`Output::Closed`].
    pub fn close(&mut self, now: Instant, reason: CloseReason) {
        self.advance(now);
        match self.phase {
            Phase::Connecting => {
                self.phase = Phase::Closing(reason);
                self.transport.alert = reason.alert();
            }
            Phase::Connected => {
                self.phase = Phase::Closing(reason);
                if self.transport.rtc.close().is_err() {
                    self.transport.rtc.disconnect();
                }
            }
            Phase::Closing(_) | Phase::Closed(_) => {}
        }
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Ends the session if str0m has failed, for the reason that DTLS has noted, if any.
    fn check(&mut self, result: Result<(), RtcError>) {
        let Err(error) = result else { return };
        let reason = self.transport.dtls.note_error(self.now, &error);
        match self.phase {
            Phase::Connecting | Phase::Connected => self.close(self.now, reason),
            Phase::Closing(reason) => self.finish(reason),
            Phase::Closed(_) => {}
        }
    }

    fn finish(&mut self, reason: CloseReason) {
        self.transport.rtc.disconnect();
        self.phase = Phase::Closed(reason);
    }
}

// ---- access units ----------------------------------------------------------------------------------

impl Viewer {
    /// Sends a live access unit if the gate admits it and no replay is in progress. A live IDR ends a replay in
    /// progress; the function then returns true. No drain has to follow, but [`Viewer::next_deadline`] may now be
    /// earlier.
    pub fn push_access_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        sink: &mut impl DatagramSink,
    ) -> bool {
        if self.phase != Phase::Connected {
            return false;
        }
        self.advance(now);
        let mut has_ended_replay = false;
        if unit.info.is_idr {
            has_ended_replay = self.catch_up.replay.take().is_some();
            self.sender.shrink_cache(self.now);
        }
        if self.sender.pacer.is_some() {
            self.note_paced_unit(unit);
        }
        if !self.is_catching_up() {
            self.send_unit(unit, self.now, sink);
        }
        has_ended_replay
    }

    /// Sends a unit if the gate admits it. The unit's RTP time corresponds to the instant `at`. Returns true if the
    /// unit was sent.
    fn send_unit(&mut self, unit: &PacketizedUnit<'_>, at: Instant, sink: &mut impl DatagramSink) -> bool {
        let UnitInfo { is_idr, is_recovery_point, is_reference, gap_before, .. } = unit.info;
        if !self.gate.admit(GateUnit { is_idr, is_recovery_point, is_reference, gap_before }) {
            // A gap makes the viewer need an IDR. Congestion does not request one: an IDR is large and would add to the
            // congestion.
            self.sender.is_idr_wanted |= gap_before;
            self.units_thinned += u64::from(self.is_thinning);
            return false;
        }
        let mut payloads = unit.payloads.iter().flat_map(|payloads| payloads.iter());
        let oversized = payloads.any(|payload| payload.len() > limits::RTP_PAYLOAD_BYTES_MAX);
        debug_assert!(!oversized, "the packetizer's bound");
        let to = self.transport.destination().filter(|_| !oversized && !unit.payloads.is_empty());
        let Some(to) = to else {
            self.gate.retract();
            return false;
        };
        let is_paced = self.sender.pacer.is_some();
        if is_paced && !self.fits_link(unit) {
            return false;
        }
        if !is_paced || !self.queue_unit(unit, at, sink) {
            self.sender.send_unit(self.now, unit, at, self.catch_up.replay.is_some(), &to, sink);
        }
        self.units_sent += 1;
        if is_idr {
            self.catch_up.idr_sent_at = Some(self.now);
        }
        self.first_idr_at.get_or_insert(self.now);
        true
    }

    /// Sets the number of this viewer's datagrams that the kernel still holds. See [`Gate::note_in_flight`].
    pub fn note_congestion(&mut self, in_flight_datagrams: u32) {
        let factor = match self.transport.destination().and_then(|to| to.connection) {
            _ if self.sender.pacer.is_some() => PACED_FACTOR,
            Some(_) => TCP_FACTOR,
            None => 1,
        };
        self.gate.note_in_flight(in_flight_datagrams.saturating_mul(factor));
    }

    /// Returns the reason if the viewer needs an IDR. The caller must then call [`Viewer::decide_catch_up`]. A join is
    /// returned until an IDR is sent or replayed. Each request is returned once; it comes from a PLI, a FIR or a gap in
    /// the units.
    pub fn poll_idr_reason(&mut self) -> Option<IdrReason> {
        if self.phase != Phase::Connected {
            return None;
        }
        let is_asked = std::mem::take(&mut self.sender.is_idr_wanted);
        if self.gate.state() == GateState::WaitingForIdr && !self.is_catching_up() {
            // If a waiting viewer asks for an IDR, its wait is reported once more, so that the camera is asked again.
            self.catch_up.is_waiting &= !is_asked;
            return Some(IdrReason::Join);
        }
        is_asked.then_some(IdrReason::Request)
    }

    /// Decides how the viewer gets its IDR, from the GOP that the worker has available. If the decision is a replay,
    /// the replay begins: the viewer then ignores live units until
    /// [`Viewer::end_catch_up`] or the next live IDR.
    pub fn decide_catch_up(
        &mut self,
        now: Instant,
        reason: IdrReason,
        available: GopAvailability,
    ) -> CatchUpDecision {
        let (gate, rtt) = (self.gate.state(), self.sender.reception.rtt);
        let available = self.replayable(available);
        let decision = self.catch_up.decide(now, reason, gate, rtt, available);
        if decision == CatchUpDecision::Replay {
            self.sender.enlarge_cache(now, available.gop.map_or(0, |gop| gop.packets));
        }
        decision
    }

    /// Returns true if a replay is in progress.
    pub fn is_catching_up(&self) -> bool {
        self.catch_up.replay.is_some()
    }

    /// Returns the index within the GOP of the unit to push next; the IDR has index 0. Returns `None` if no unit may be
    /// sent now.
    pub fn poll_catch_up_unit(&mut self, now: Instant) -> Option<usize> {
        let is_waiting = self.sender.pacer.as_ref().is_some_and(|pacer| !pacer.is_idle());
        self.catch_up.replay.as_mut()?.poll(now).filter(|_| !is_waiting)
    }

    /// Sends the next unit of the GOP, whose RTP time corresponds to the instant `at`. A non-reference unit is skipped
    /// unless it is the newest unit (`is_newest`). Returns true if the unit was sent.
    pub fn push_catch_up_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        at: Instant,
        is_newest: bool,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let Some(replay) = &mut self.catch_up.replay else { return false };
        replay.advance(unit.bytes());
        self.advance(now);
        let is_needed = unit.info.is_reference || unit.info.is_idr || is_newest;
        let is_sent = self.phase == Phase::Connected && is_needed && self.send_unit(unit, at, sink);
        self.units_replayed += u64::from(is_sent);
        is_sent
    }

    /// Ends a replay. `is_complete` is true if the newest unit was pushed, so that live units can follow. It is false
    /// if the rest of the GOP is unavailable: the viewer then has a gap and drops to the next IDR.
    pub fn end_catch_up(&mut self, is_complete: bool) {
        let was_active = self.catch_up.replay.take().is_some();
        if was_active && !is_complete && self.gate.state() == GateState::Live {
            self.gate.retract();
        }
    }
}

// ---- output ----------------------------------------------------------------------------------------

impl Viewer {
    /// Sends all pending datagrams through `sink`: STUN, DTLS, retransmissions and reports. Returns what the caller
    /// must do next.
    pub fn drain(&mut self, now: Instant, sink: &mut impl DatagramSink) -> Output {
        self.advance(now);
        loop {
            if let Phase::Closing(_) = self.phase {
                self.say_goodbye(sink);
            }
            if let Phase::Closed(reason) = self.phase {
                return Output::Closed(reason);
            }
            match self.transport.poll_output(self.now) {
                Ok(TransportOutput::Datagram(to, bytes)) => self.sender.send_plain(&bytes, &to, sink),
                Ok(TransportOutput::Connected) => self.start_media(),
                Ok(TransportOutput::PeerClosed) => {
                    if !matches!(self.phase, Phase::Closing(_)) {
                        self.phase = Phase::Closing(CloseReason::PeerClosed);
                    }
                }
                Ok(TransportOutput::Idle) => match self.phase {
                    Phase::Closing(reason) => self.finish(reason),
                    _ if !self.transport.rtc.is_alive() => self.close(self.now, CloseReason::Failed),
                    _ => {
                        self.end_failed_handshake();
                        if matches!(self.phase, Phase::Connecting | Phase::Connected) {
                            self.send_feedback_answers(sink);
                            return Output::Wait(self.next_deadline());
                        }
                    }
                },
                Err(error) => self.check(Err(error)),
            }
        }
    }

    /// Sends requested retransmissions, and a sender report if one is due.
    fn send_feedback_answers(&mut self, sink: &mut impl DatagramSink) {
        if self.phase != Phase::Connected {
            return;
        }
        if self.sender.pacer.is_some() {
            self.send_paced(sink);
        }
        if let Some(to) = self.transport.destination() {
            if self.sender.pacer.is_none() {
                self.sender.send_retransmissions(&to, sink);
            }
            self.sender.send_report_if_due(self.now, &to, sink);
        }
    }

    fn say_goodbye(&mut self, sink: &mut impl DatagramSink) {
        if !std::mem::replace(&mut self.has_said_goodbye, true)
            && let Some(to) = self.transport.last_destination()
        {
            self.sender.send_goodbye(self.now, &to, sink);
        }
    }

    fn start_media(&mut self) {
        if self.phase != Phase::Connecting {
            return;
        }
        let keys = self.transport.dtls.take_keys();
        self.profile = keys.as_ref().map(|keys| keys.profile);
        self.sender.keys = keys.and_then(|keys| srtp::contexts(keys.profile, &keys.material, keys.is_client));
        self.phase = Phase::Connected;
        if self.sender.keys.is_some() {
            self.transport.on_connected(self.now);
            self.connected_at = Some(self.now);
        } else {
            self.close(self.now, CloseReason::NoSrtpProfile);
        }
    }
}

mod paced;
