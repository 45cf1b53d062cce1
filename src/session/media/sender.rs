//! The RTP stream to one viewer: headers, sequence numbers, retransmissions, reports. Encrypts each packet straight into
//! the send buffer. No I/O, no clock; gate, ICE and DTLS are not handled here.
//!
//! ```text
//!  payloads ─► header (once per unit) + sequence number ─► encrypt ─► sink
//!      └─► RTX cache ─► NACK ─► RTX packet (RFC 4588) ───► encrypt ─► sink
//!  receiver reports ─► loss, round trip    once a second: sender report ─► encrypt ─► sink
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::limits;
use crate::h264::Payloads;
use crate::session::media::rtcp::{self, Packet, ReportBlock, SenderReport};
use crate::session::media::rtp_header::{FIXED_BYTES, UnitHeaders};
use crate::session::media::rtx::{RtxCache, SentPackets};
use crate::session::media::srtp::{Opener, RtpPacket, Sealer, TAG_BYTES_MAX};
use crate::session::media::stream::StreamParameters;
use crate::session::media::wallclock::Wallclock;
use crate::session::sink::{DatagramSink, Destination};

const _: () = assert!(FIXED_BYTES + TAG_BYTES_MAX + 2 == limits::RTP_OVERHEAD_BYTES_MAX);

/// Times common to all packets of a unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnitTiming {
    pub(super) now: Instant,
    /// RTP time including the stream's offset.
    pub(super) rtp_time: u32,
    /// The instant that `rtp_time` stands for.
    pub(super) at: Instant,
    /// Capture time to send, NTP; 0 for none.
    pub(super) captured_ntp: u64,
}

/// The viewer's latest reports and its feedback so far.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::session) struct Reception {
    pub(in crate::session) loss_fraction: Option<f32>,
    pub(in crate::session) rtt: Option<Duration>,
    /// In RTP time (90 kHz).
    pub(in crate::session) jitter: Option<u32>,
    pub(in crate::session) nacks: u64,
    pub(in crate::session) idr_requests: u64,
}

/// Everything sent; all datagrams of the session are counted here.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::session) struct SentCounters {
    pub(in crate::session) datagrams: u64,
    pub(in crate::session) bytes: u64,
    pub(in crate::session) retransmits: u64,
}

impl SentCounters {
    fn count(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}

/// Sends the stream and handles its feedback.
pub(in crate::session) struct Sender {
    stream: StreamParameters,
    keys: Option<(Sealer, Opener)>,
    wallclock: Wallclock,
    cache: RtxCache,
    next_rtx: u64,
    pub(in crate::session) reception: Reception,
    pub(in crate::session) sent: SentCounters,
    /// Packets and payload octets for sender reports; both wrap.
    packets: u32,
    octets: u32,
    /// RTP time of the newest unit and the instant it stands for.
    newest: Option<(u32, Instant)>,
    report_due_at: Option<Instant>,
    /// The viewer's latest reference time and its arrival. The next report returns it, so Chromium can compute the
    /// offset of both clocks and thus the age of a picture.
    reference: Option<(rtcp::ReferenceTime, Instant)>,
    scratch: Vec<u8>,
}

impl Sender {
    pub(super) fn new(stream: StreamParameters, wallclock: Wallclock, now: Instant) -> Sender {
        Sender {
            keys: None,
            wallclock,
            cache: RtxCache::new(stream.first_sequence.into(), now),
            next_rtx: stream.first_rtx_sequence.into(),
            reception: Reception::default(),
            sent: SentCounters::default(),
            packets: 0,
            octets: 0,
            newest: None,
            report_due_at: None,
            reference: None,
            scratch: Vec::new(),
            stream,
        }
    }

    /// Allows media: nothing is sent without keys.
    pub(super) fn start(&mut self, keys: (Sealer, Opener)) {
        self.keys = Some(keys);
    }

    /// Sets how many sent packets stay available for retransmission.
    pub(super) fn set_cache(&mut self, packets_max: usize) {
        self.cache.set_packets_max(packets_max);
    }

    /// Returns how many requested retransmissions were refused.
    pub(in crate::session) fn refused(&self) -> u64 {
        self.cache.refused
    }

    /// Returns when the next sender report is due; `None` before the first unit.
    pub(in crate::session) fn report_due_at(&self) -> Option<Instant> {
        self.report_due_at
    }

    // ---- media -------------------------------------------------------------------------------------

    /// Sends a unit; nothing without keys. A packet for which the sink has no room counts as sent and lost.
    pub(super) fn send_unit(
        &mut self,
        payloads: &[Arc<Payloads>],
        timing: &UnitTiming,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        let Some((sealer, _)) = &self.keys else { return };
        let mut headers = UnitHeaders::new(&self.stream, timing.rtp_time, timing.captured_ntp);
        self.cache.begin_unit(timing.now);
        let ssrc = self.stream.ssrc;
        let last_of_unit = payloads.len().saturating_sub(1);
        for (buffer, payloads) in payloads.iter().enumerate() {
            let is_end = buffer == last_of_unit;
            let last = payloads.len().saturating_sub(1);
            for ((place, payload), index) in payloads.iter().enumerate().zip(self.cache.next()..) {
                let is_last = is_end && place == last;
                let header = headers.for_packet(payload, is_last);
                header.set_packet(self.stream.payload_type, is_last, low16(index));
                let packet = RtpPacket { ssrc, index, header: header.bytes(), prefix: &[], payload };
                seal(sealer, &packet, to, sink, &mut self.sent);
            }
            let count = |count: usize| u32::try_from(count).unwrap_or_default();
            self.octets = self.octets.wrapping_add(count(payloads.bytes()));
            self.packets = self.packets.wrapping_add(count(payloads.len()));
            let UnitTiming { rtp_time, captured_ntp, .. } = *timing;
            self.cache.push(SentPackets { payloads: Arc::clone(payloads), captured_ntp, rtp_time, is_end });
        }
        self.newest = Some((timing.rtp_time, timing.at));
        self.report_due_at.get_or_insert(timing.now);
    }

    /// Sends the requested retransmissions (RFC 4588: a stream of its own; the original sequence number precedes the
    /// payload).
    pub(in crate::session) fn send_retransmissions(
        &mut self,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        let (Some((sealer, _)), Some((ssrc, payload_type))) = (&self.keys, self.stream.rtx) else { return };
        while let Some((sequence, sent, place)) = self.cache.poll_retransmission() {
            let payload = sent.payloads.get(place).unwrap_or_default();
            let mut headers = UnitHeaders::new(&self.stream, sent.rtp_time, sent.captured_ntp);
            let header = headers.for_packet(payload, sent.is_last(place));
            header.set_ssrc(ssrc);
            header.set_packet(payload_type, sent.is_last(place), low16(self.next_rtx));
            let packet = RtpPacket {
                ssrc,
                index: self.next_rtx,
                header: header.bytes(),
                prefix: &low16(sequence).to_be_bytes(),
                payload,
            };
            seal(sealer, &packet, to, sink, &mut self.sent);
            self.next_rtx += 1;
            self.sent.retransmits += 1;
        }
    }

    /// Sends a STUN or DTLS datagram as it is.
    pub(in crate::session) fn send_plain(
        &mut self,
        bytes: &[u8],
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        self.sent.count(bytes.len());
        sink.push_datagram(to, bytes.len(), |out| out.copy_from_slice(bytes));
    }

    // ---- reports -----------------------------------------------------------------------------------

    /// Sends a sender report if one is due.
    pub(in crate::session) fn send_report_if_due(
        &mut self,
        now: Instant,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        if self.report_due_at.is_some_and(|at| now >= at) {
            self.report_due_at = Some(now + limits::SENDER_REPORT_INTERVAL);
            self.send_rtcp(now, false, to, sink);
        }
    }

    /// Sends a last report with BYE and drops the keys: no media can be sent afterwards.
    pub(in crate::session) fn send_goodbye(
        &mut self,
        now: Instant,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        self.send_rtcp(now, true, to, sink);
        self.keys = None;
        self.report_due_at = None;
    }

    fn send_rtcp(
        &mut self,
        now: Instant,
        with_goodbye: bool,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        let ssrc = self.stream.ssrc;
        let report = SenderReport {
            ssrc,
            ntp: self.wallclock.ntp(now),
            rtp_time: self.rtp_time_at(now),
            packets: self.packets,
            octets: self.octets,
        };
        let Some((sealer, _)) = &mut self.keys else { return };
        self.scratch.clear();
        rtcp::write_report(&report, &self.stream.cname, &mut self.scratch);
        if let Some((reference, at)) = self.reference.take() {
            let delay = low32((now.saturating_duration_since(at).as_micros() << 16) / 1_000_000);
            rtcp::write_delay_since(ssrc, reference, delay, &mut self.scratch);
        }
        match self.stream.rtx {
            Some((rtx, _)) if with_goodbye => rtcp::write_goodbye(&[ssrc, rtx], &mut self.scratch),
            None if with_goodbye => rtcp::write_goodbye(&[ssrc], &mut self.scratch),
            _ => {}
        }
        let bytes = self.scratch.len() + sealer.rtcp_overhead_bytes();
        self.sent.count(bytes);
        sink.push_datagram(to, bytes, |out| {
            let sealed = sealer.seal_rtcp(&self.scratch, out);
            debug_assert!(sealed, "the lengths fit");
        });
    }

    /// Returns the stream's RTP time at `now`, extrapolated from the newest unit.
    fn rtp_time_at(&self, now: Instant) -> u32 {
        let Some((rtp_time, at)) = self.newest else { return 0 };
        let ticks = |span: Duration| low32(span.as_micros() * 9 / 100);
        let after = ticks(now.saturating_duration_since(at));
        rtp_time.wrapping_add(after).wrapping_sub(ticks(at.saturating_duration_since(now)))
    }

    /// Handles an SRTCP datagram. Returns false if it is not authentic or was received before.
    pub(super) fn handle_rtcp(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let mut compound = std::mem::take(&mut self.scratch);
        let opened = match &mut self.keys {
            Some((_, opener)) => opener.open_rtcp(datagram, &mut compound),
            None => false,
        };
        if opened {
            rtcp::packets(&compound).for_each(|packet| self.on_rtcp_packet(now, &packet));
        }
        self.scratch = compound;
        opened
    }

    fn on_rtcp_packet(&mut self, now: Instant, packet: &Packet<'_>) {
        let ours = self.stream.ssrc;
        match packet {
            Packet::Report(blocks) => {
                let about_us = blocks.iter().filter(|block| block.ssrc == ours);
                about_us.for_each(|block| self.on_report_block(now, &block));
            }
            Packet::Nack { media, lost } if *media == ours && self.stream.rtx.is_some() => {
                self.reception.nacks += 1;
                lost.iter().for_each(|sequence| self.cache.on_nack(now, sequence));
            }
            Packet::ReferenceTime(reference) => self.reference = Some((*reference, now)),
            Packet::Pli { media } if *media == ours => self.reception.idr_requests += 1,
            Packet::Fir(requests) if requests.contains(ours) => self.reception.idr_requests += 1,
            _ => {}
        }
    }

    fn on_report_block(&mut self, now: Instant, block: &ReportBlock) {
        self.reception.loss_fraction = Some(f32::from(block.fraction_lost) / 256.0);
        self.reception.jitter = Some(block.jitter);
        if let Some(span) = block.round_trip_65536ths(self.wallclock.ntp(now)) {
            self.reception.rtt = Some(Duration::from_micros((u64::from(span) * 1_000_000) >> 16));
        }
    }
}

fn seal(
    sealer: &Sealer,
    packet: &RtpPacket<'_>,
    to: &Destination,
    sink: &mut impl DatagramSink,
    sent: &mut SentCounters,
) {
    let bytes = packet.header.len() + packet.prefix.len() + packet.payload.len() + sealer.tag_bytes();
    sent.count(bytes);
    sink.push_datagram(to, bytes, |out| {
        let sealed = sealer.seal_rtp(packet, out);
        debug_assert!(sealed, "the lengths fit");
    });
}

#[expect(clippy::cast_possible_truncation, reason = "sequence numbers are the low 16 bits")]
fn low16(value: u64) -> u16 {
    value as u16
}

#[expect(clippy::cast_possible_truncation, reason = "RTP and NTP spans are the low 32 bits")]
fn low32(value: u128) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtp_time_of_a_report_is_extrapolated_from_the_newest_unit() {
        #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
        let now = Instant::now();
        let mut sender = Sender::new(StreamParameters::for_tests(), Wallclock::read(), now);
        assert_eq!(sender.rtp_time_at(now), 0, "no unit was sent");
        sender.newest = Some((u32::MAX - 999, now));
        assert_eq!(sender.rtp_time_at(now + Duration::from_millis(100)), 8_000, "RTP time wraps");
    }
}
