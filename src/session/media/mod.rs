//! The media stream of one viewer: gate, GOP catch-up, RTP times, RTP sender, RTX, RTCP, SRTP. No I/O, no clock; ICE and
//! DTLS are not handled here.

pub(super) mod catch_up;
pub mod gate;
pub mod rtcp;
mod rtp_header;
mod rtx;
pub(super) mod sender;
pub mod srtp;
pub(super) mod stream;
pub(super) mod wallclock;

use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::crypto::dtls::SrtpProfile;

use crate::base::limits;
use crate::h264::Payloads;
use crate::metrics::status::GateState;
use crate::session::sink::{DatagramSink, Destination};
use catch_up::{CatchUp, CatchUpDecision, CatchUpTime, GopAvailability, IdrReason};
use gate::{Gate, GateUnit};
use sender::{Sender, UnitTiming};
use stream::StreamParameters;
use wallclock::Wallclock;

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
    /// Units were lost before this one: unless it is an IDR, the viewer drops to the next IDR.
    pub gap_before: bool,
}

/// RTP time of a unit.
#[derive(Copy, Clone, Debug)]
enum SendTime {
    /// The unit's own.
    Live,
    /// Compressed, so that the viewer plays replayed units at once.
    Replayed(CatchUpTime),
}

/// State of the media stream; its fields are read by the viewer's status.
pub(super) struct MediaStream {
    pub(super) sender: Sender,
    pub(super) gate: Gate,
    pub(super) catch_up: CatchUp,
    pub(super) profile: Option<SrtpProfile>,
    pub(super) first_idr_at: Option<Instant>,
    pub(super) units_sent: u64,
    pub(super) units_replayed: u64,
    rtp_offset: u32,
    /// RTP time of the newest unit, 90 kHz, without the offset.
    rtp_time_sent: Option<u64>,
    /// Time at which a capture time was last sent.
    captured_at_sent: Option<Instant>,
    /// An IDR was requested and not yet reported by [`MediaStream::take_idr_wanted`].
    idr_wanted: bool,
    /// The RTX cache is enlarged; time of the newest replayed unit.
    large_cache_used_at: Option<Instant>,
}

impl MediaStream {
    pub(super) fn new(stream: StreamParameters, wallclock: Wallclock, now: Instant) -> Self {
        Self {
            rtp_offset: stream.rtp_offset,
            sender: Sender::new(stream, wallclock, now),
            gate: Gate::new(),
            catch_up: CatchUp::default(),
            profile: None,
            first_idr_at: None,
            units_sent: 0,
            units_replayed: 0,
            rtp_time_sent: None,
            captured_at_sent: None,
            idr_wanted: false,
            large_cache_used_at: None,
        }
    }

    /// Starts SRTP with the keys of a finished handshake. Returns false if they do not fit the profile.
    pub(super) fn start(&mut self, profile: SrtpProfile, material: &[u8], is_client: bool) -> bool {
        let Some(keys) = srtp::contexts(profile, material, is_client) else { return false };
        self.sender.start(keys);
        self.profile = Some(profile);
        true
    }

    /// Handles an SRTCP datagram. Returns false if it is not authentic or was received before.
    pub(super) fn handle_rtcp(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let requests_before = self.sender.reception.idr_requests;
        let is_authentic = self.sender.handle_rtcp(now, datagram);
        self.idr_wanted |= self.sender.reception.idr_requests > requests_before;
        is_authentic
    }

    /// Returns true once after the viewer requested an IDR or lost its reference to a gap.
    pub(super) fn take_idr_wanted(&mut self) -> bool {
        std::mem::take(&mut self.idr_wanted)
    }

    // ---- units -------------------------------------------------------------------------------------

    /// Sends a live unit if the gate admits it and no catch-up is in progress. The camera's next IDR ends a catch-up.
    pub(super) fn push_live(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        to: Option<Destination>,
        sink: &mut impl DatagramSink,
    ) {
        if unit.is_idr {
            self.catch_up.end();
            self.shrink_rtx_cache(now);
        }
        if !self.catch_up.is_active() {
            self.send_unit(now, unit, SendTime::Live, to, sink);
        }
    }

    fn send_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        time: SendTime,
        to: Option<Destination>,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let &PacketizedUnit { is_idr, is_reference, gap_before, .. } = unit;
        if !self.gate.admit(GateUnit { is_idr, is_reference, gap_before }) {
            // Congestion requests no IDR: an IDR is large and would make it worse.
            self.idr_wanted |= gap_before;
            return false;
        }
        let is_sent = self.write(now, unit, time, to, sink);
        if is_sent {
            self.units_sent += 1;
            self.catch_up.note_sent(now, is_idr);
            self.first_idr_at.get_or_insert(now);
        } else {
            self.gate.retract();
        }
        is_sent
    }

    fn write(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        time: SendTime,
        to: Option<Destination>,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let mut payloads = unit.payloads.iter().flat_map(|payloads| payloads.iter());
        let oversized = payloads.any(|payload| payload.len() > limits::RTP_PAYLOAD_BYTES_MAX);
        debug_assert!(!oversized, "the packetizer's bound");
        let Some(to) = to.filter(|_| !oversized && !unit.payloads.is_empty()) else {
            return false;
        };
        let (rtp_time_90k, at) = match time {
            SendTime::Live => (unit.rtp_time_90k, now),
            SendTime::Replayed(time) => (time.rtp_time_90k, time.at),
        };
        let rtp_time_90k = rtp_time_90k.max(self.rtp_time_sent.map_or(0, |sent| sent + 1));
        self.rtp_time_sent = Some(rtp_time_90k);
        #[expect(clippy::cast_possible_truncation, reason = "RTP time is the low 32 bits")]
        let rtp_time = (rtp_time_90k as u32).wrapping_add(self.rtp_offset);
        let captured_ntp = self.capture_time_of(now, unit, time);
        let timing = UnitTiming { now, rtp_time, at, captured_ntp };
        self.sender.send_unit(unit.payloads, &timing, &to, sink);
        true
    }

    /// Returns the capture time to send with a unit (NTP), or 0. It goes with IDRs and at least once a second: receivers
    /// interpolate in between, for up to 5 s. Replayed units always carry it, as their RTP time is not the capture time.
    fn capture_time_of(&mut self, now: Instant, unit: &PacketizedUnit<'_>, time: SendTime) -> u64 {
        let due = self.captured_at_sent.is_none_or(|at| now >= at + Duration::from_secs(1));
        let captured_at = unit.captured_at_ns.and_then(|ns| u64::try_from(ns).ok());
        let is_replayed = matches!(time, SendTime::Replayed(_));
        let Some(ns) = captured_at.filter(|_| due || unit.is_idr || is_replayed) else { return 0 };
        self.captured_at_sent = Some(now);
        wallclock::ntp(Duration::from_nanos(ns))
    }

    // ---- GOP catch-up ------------------------------------------------------------------------------

    /// Returns why the viewer needs an IDR, if it does. Each request is reported once.
    pub(super) fn poll_idr_reason(&mut self) -> Option<IdrReason> {
        if self.gate.state() == GateState::WaitingForIdr && !self.catch_up.is_join_decided() {
            return Some(IdrReason::Join);
        }
        self.take_idr_wanted().then_some(IdrReason::Request)
    }

    pub(super) fn decide_catch_up(
        &mut self,
        now: Instant,
        reason: IdrReason,
        available: GopAvailability,
    ) -> CatchUpDecision {
        self.catch_up.decide(now, reason, self.gate.state(), self.sender.reception.rtt, available)
    }

    /// Begins a catch-up of `packets` RTP packets. The RTX cache grows so that a long GOP can be repaired.
    pub(super) fn begin_catch_up(&mut self, now: Instant, reason: IdrReason, packets: usize) {
        self.catch_up.begin(now, reason);
        if packets > limits::RTX_CACHE_PACKETS && self.large_cache_used_at.is_none() {
            self.sender.set_cache(limits::REPLAY_RTX_PACKETS);
            self.large_cache_used_at = Some(now);
        }
    }

    /// Sends the next unit of the GOP. Units that no other unit needs are skipped, except the newest.
    pub(super) fn push_catch_up_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        time: CatchUpTime,
        is_newest: bool,
        to: Option<Destination>,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let is_needed = unit.is_reference || unit.is_idr || is_newest;
        if !self.catch_up.is_active() || !is_needed {
            return false;
        }
        let is_sent = self.send_unit(now, unit, SendTime::Replayed(time), to, sink);
        self.units_replayed += u64::from(is_sent);
        self.large_cache_used_at = self.large_cache_used_at.map(|_| now);
        is_sent
    }

    /// Ends a catch-up. An incomplete one leaves a gap, so the viewer drops to the next IDR.
    pub(super) fn end_catch_up(&mut self, is_complete: bool) {
        if self.catch_up.end() && !is_complete && self.gate.state() == GateState::Live {
            self.gate.retract();
        }
    }

    /// Shrinks an enlarged RTX cache once replayed packets are too old to be requested. Called at an IDR.
    fn shrink_rtx_cache(&mut self, now: Instant) {
        let is_over = |at: Instant| now.saturating_duration_since(at) > limits::RTX_CACHE_AGE;
        if self.large_cache_used_at.is_some_and(is_over) {
            self.large_cache_used_at = None;
            self.sender.set_cache(limits::RTX_CACHE_PACKETS);
        }
    }
}
