//! Sends to a paced viewer. Units wait in the pacer's queue and leave packet by packet. Their sequence numbers are
//! given when they leave, so a dropped unit leaves no gap.

use super::*;
use crate::session::media::arrivals::Arrivals;
use crate::session::media::link::SentSoFar;
use crate::session::media::pacer::{Pacer, Step, Waiting};
use crate::session::media::rtcp::LostPackets;

/// Padding of an RTP packet (RFC 3550 section 5.1): its last byte is its length.
const PADDING: &[u8] = &[0, 0, 0, 4];

impl Sender {
    /// Notes that the viewer's link is in trouble: from now on, its packets are paced.
    pub(super) fn begin_pacing(&mut self, now: Instant) {
        if let Some(pacer) = &mut self.pacer {
            pacer.trouble_at = now;
            return;
        }
        let estimate = self.link.begin_pacing(now);
        self.pacer = Some(Box::new(Pacer::new(now, estimate)));
    }

    /// Returns what a paced viewer's link carries in kbit/s.
    pub(in crate::session) fn link_kbps(&self) -> Option<u64> {
        self.pacer.as_ref().map(|pacer| pacer.estimate.rate() / 125)
    }

    /// Returns the rate of the latest GOP in kbit/s if the viewer is paced and there was one.
    pub(in crate::session) fn stream_kbps(&self) -> Option<u64> {
        self.pacer.as_ref().map(|pacer| pacer.offered_rate / 125).filter(|kbps| *kbps > 0)
    }

    /// Puts a unit into the queue of a paced viewer. The unit's RTP time corresponds to the instant `at`. Returns false
    /// if the viewer is not paced or the queue has no room.
    pub(in crate::session) fn queue_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        at: Instant,
        is_replayed: bool,
    ) -> bool {
        if self.pacer.as_ref().is_none_or(|pacer| !pacer.has_room(unit.payloads.len())) {
            return false;
        }
        let (rtp_time, captured_ntp) = self.begin_unit(now, unit, at, is_replayed);
        let Some(pacer) = &mut self.pacer else { return false };
        let last = unit.payloads.len().saturating_sub(1);
        for (place, payloads) in unit.payloads.iter().enumerate() {
            let (is_start, is_end) = (place == 0, place == last);
            let payloads = Arc::clone(payloads);
            pacer.push(Waiting { payloads, next: 0, rtp_time, captured_ntp, is_end, is_start });
        }
        if unit.info.is_idr && self.stream.rtx.is_some() {
            pacer.begin_probe(now, true);
        }
        true
    }

    /// Sends the packets that are due to a paced viewer: retransmissions first, then units. Returns false if the viewer
    /// requests more retransmissions than its link can carry. Nothing is then left of the units so far: the viewer
    /// needs an IDR.
    pub(in crate::session) fn send_paced(
        &mut self,
        now: Instant,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let Some(mut pacer) = self.pacer.take() else { return true };
        pacer.fill(now);
        while pacer.may_resend()
            && let Some(bytes) = self.send_retransmission(to, sink)
        {
            pacer.on_resent(bytes);
        }
        let is_over_budget = pacer.is_resend_budget_spent() && self.cache.has_pending();
        if is_over_budget {
            self.cache.forget();
            pacer.clear();
        }
        if self.stream.rtx.is_some() {
            pacer.begin_probe(now, false);
        } else if self.can_mark() {
            pacer.begin_unit_probe(now);
        }
        while let Some(step) = pacer.poll() {
            match step {
                Step::Packet(packet) => self.send_waiting(now, packet, to, sink),
                Step::Mark => self.send_mark(now, to, sink),
            }
        }
        self.pacer = Some(pacer);
        if self.link.is_mark_due(now, self.sent.on_wire()) {
            self.send_mark(now, to, sink);
        }
        !is_over_budget
    }

    fn send_waiting(
        &mut self,
        now: Instant,
        packet: Waiting,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        let Some((sealer, _)) = &self.keys else { return };
        let Waiting { payloads, next: place, rtp_time, captured_ntp, is_end, .. } = packet;
        let StreamParameters { ssrc, payload_type, .. } = self.stream;
        let mark = self.can_mark().then(|| self.link.next_sequence());
        let mut headers = UnitHeaders::new(&self.stream, (ssrc, payload_type), rtp_time, captured_ntp, mark);
        let index = self.cache.next();
        let payload = payloads.get(place).unwrap_or_default();
        let is_last = is_end && place + 1 == payloads.len();
        self.link.begin_burst(now, self.sent.on_wire());
        let header = headers.for_packet(payload, is_last, low16(index));
        let packet = RtpPacket { ssrc, index, header, prefix: &[], payload };
        seal(sealer, &packet, to, sink, &mut self.sent);
        if headers.is_marked {
            self.link.mark(now, self.sent.on_wire());
        }
        self.octets = self.octets.wrapping_add(u32::try_from(payload.len()).unwrap_or_default());
        self.packets = self.packets.wrapping_add(1);
        self.cache.begin_unit(now);
        let sent = SentUnit { rtp_time, captured_ntp, mark: self.repeated(mark) };
        self.cache.push_part(payloads, place..place + 1, &sent, is_end);
    }

    /// Returns when the next packet of a paced viewer is due.
    pub(in crate::session) fn paced_due_at(&self) -> Option<Instant> {
        self.pacer.as_ref()?.due_at(self.cache.has_pending())
    }

    /// Sends a small packet with a transport-wide sequence number: padding of the RTX stream, which a receiver ignores.
    /// Its arrival tells the time that a packet needs through the link. Sends nothing if the viewer has not negotiated
    /// both; then only the last packets of units are marked.
    pub(super) fn send_mark(&mut self, now: Instant, to: &Destination, sink: &mut impl DatagramSink) {
        if !self.can_mark() {
            return;
        }
        let mark = self.link.next_sequence();
        let (Some((sealer, _)), Some((ssrc, payload_type))) = (&self.keys, self.stream.rtx) else { return };
        self.link.begin_burst(now, self.sent.on_wire());
        let rtp_time = self.rtp_time_at(now);
        let mut headers = UnitHeaders::for_padding(&self.stream, (ssrc, payload_type), rtp_time, mark);
        let header = headers.for_packet(PADDING, true, low16(self.next_rtx));
        let packet = RtpPacket { ssrc, index: self.next_rtx, header, prefix: &[], payload: PADDING };
        seal(sealer, &packet, to, sink, &mut self.sent);
        self.next_rtx += 1;
        self.link.mark(now, self.sent.on_wire());
    }

    fn sent_so_far(&self) -> SentSoFar {
        SentSoFar { bytes: self.sent.on_wire(), sequence: low16(self.cache.next()) }
    }

    /// Learns from transport-wide feedback about the link.
    pub(super) fn on_arrivals(&mut self, now: Instant, arrivals: &Arrivals<'_>) {
        let feedback = self.link.on_feedback(now, self.sent_so_far(), arrivals);
        if let Some(pacer) = &mut self.pacer {
            pacer.estimate.on_feedback(&feedback);
        }
        if feedback.has_standing_queue {
            self.begin_pacing(now);
        }
    }

    /// Learns from a NACK about the link.
    pub(super) fn on_lost(&mut self, now: Instant, lost: &LostPackets<'_>) {
        if self.link.on_nack(now, self.sent_so_far(), lost.iter()) {
            self.begin_pacing(now);
        }
    }

    /// Learns from the loss of a receiver report in 256ths about the link.
    pub(super) fn on_loss(&mut self, now: Instant, fraction_lost: u8) {
        let report = self.link.on_report(now, self.sent.on_wire(), fraction_lost);
        if let Some(pacer) = &mut self.pacer {
            pacer.estimate.on_loss(now, fraction_lost, report.was_queued);
            if !self.link.has_arrivals() {
                pacer.estimate.on_passed(now, fraction_lost, &report);
            }
            if pacer.is_over(now, self.link.times_paced) && !report.is_trouble {
                self.pacer = None;
            }
        }
        if report.is_trouble {
            self.begin_pacing(now);
        }
    }
}
