//! The RTP stream to one viewer: headers, sequence numbers, retransmissions, reports. Encrypts each packet directly
//! into the send buffer. The module does no I/O and reads no clock. It does not handle the gate, ICE or DTLS.
//!
//! ```text
//!  payloads ─► header (once per unit) + sequence number ─► encrypt ─► sink
//!      └─► RTX cache ─► NACK ─► RTX packet (RFC 4588), or the same packet again ─► encrypt ─► sink
//!  receiver reports ─► loss, round trip    once a second: sender report ─► encrypt ─► sink
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::limits;
use crate::session::media::link::LinkWatch;
use crate::session::media::pacer::Pacer;
use crate::session::media::rtcp::{self, Packet, ReportBlock, SenderReport};
use crate::session::media::rtx::{RtxCache, SentUnit};
use crate::session::media::srtp::{Opener, RtpPacket, Sealer, TAG_BYTES_MAX};
use crate::session::media::wallclock::{self, SentReports, Wallclock};
use crate::session::media::{Extensions, PacketizedUnit, StreamParameters};
use crate::session::{DatagramSink, Destination};

/// Length of an RTP header without extensions, in bytes.
const FIXED_BYTES: usize = 12;

/// Largest length of an RTP header with all extensions, in bytes.
const HEADER_BYTES_MAX: usize = FIXED_BYTES + limits::RTP_EXTENSIONS_BYTES_MAX; // local bound

const _: () = assert!(FIXED_BYTES + TAG_BYTES_MAX + 2 == limits::RTP_OVERHEAD_BYTES_MAX);

/// Values of the viewer's latest report, and counts of its feedback so far.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::session) struct Reception {
    pub(in crate::session) loss_fraction: Option<f32>,
    pub(in crate::session) rtt: Option<Duration>,
    /// Interarrival jitter in RTP time (90 kHz).
    pub(in crate::session) jitter: Option<u32>,
    pub(in crate::session) nacks: u64,
    pub(in crate::session) idr_requests: u64,
}

/// Counts of everything that was sent in the session, including STUN and DTLS.
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

    /// Returns the bytes with the headers of UDP and IP.
    fn on_wire(&self) -> u64 {
        self.bytes + self.datagrams * limits::IP_UDP_BYTES as u64
    }
}

/// Sends the stream and handles its feedback.
pub(in crate::session) struct Sender {
    stream: StreamParameters,
    /// `None` before the handshake has finished and after the goodbye. Without keys no RTP or RTCP is sent or received.
    pub(in crate::session) keys: Option<(Sealer, Opener)>,
    wallclock: Wallclock,
    pub(in crate::session) cache: RtxCache,
    /// Set while the RTX cache is enlarged: the time when a replayed unit was last sent.
    large_cache_used_at: Option<Instant>,
    next_rtx: u64,
    pub(in crate::session) reception: Reception,
    /// True if the viewer requested an IDR or missed units because of a gap, and `Viewer::poll_idr_reason` has not
    /// returned that request yet.
    pub(in crate::session) is_idr_wanted: bool,
    pub(in crate::session) sent: SentCounters,
    /// Numbers of packets and payload octets for sender reports. Both wrap around.
    packets: u32,
    octets: u32,
    /// RTP time of the newest unit (90 kHz, without the stream's offset), and the instant that this time corresponds
    /// to.
    newest: Option<(u64, Instant)>,
    /// Time at which a capture time was last sent.
    captured_at_sent: Option<Instant>,
    /// When the next sender report is due; `None` before the first unit.
    pub(in crate::session) report_due_at: Option<Instant>,
    reports_sent: SentReports,
    /// Number of reports sent; it wraps around.
    reports: u32,
    /// The viewer's latest reference time and its arrival time. The next report returns both, so Chromium can compute
    /// the offset between the clocks and from that the age of a picture.
    reference: Option<(rtcp::ReferenceTime, Instant)>,
    link: LinkWatch,
    /// Set while the viewer's link is, or was lately, in trouble: units and retransmissions are then spread out.
    pub(in crate::session) pacer: Option<Box<Pacer>>,
    scratch: Vec<u8>,
}

impl Sender {
    pub(in crate::session) fn new(stream: StreamParameters, wallclock: Wallclock, now: Instant) -> Sender {
        Sender {
            keys: None,
            wallclock,
            cache: RtxCache::new(stream.first_sequence.into(), now),
            large_cache_used_at: None,
            next_rtx: stream.first_rtx_sequence.into(),
            reception: Reception::default(),
            is_idr_wanted: false,
            sent: SentCounters::default(),
            packets: 0,
            octets: 0,
            newest: None,
            captured_at_sent: None,
            report_due_at: None,
            reports_sent: SentReports::default(),
            reports: 0,
            reference: None,
            link: LinkWatch::new(now),
            pacer: None,
            scratch: Vec::new(),
            stream,
        }
    }

    /// Returns the `mid` of the stream's m-line; empty if it has none.
    pub(in crate::session) fn mid(&self) -> &str {
        &self.stream.mid
    }

    /// Allows the viewer to hold pictures back for up to `max_ms` milliseconds, at most
    /// [`limits::PLAYOUT_DELAY_MAX_MS`]. Must be called before the first packet is sent.
    pub(in crate::session) fn allow_playout_delay(&mut self, max_ms: u16) {
        let [high, low] = (max_ms.min(limits::PLAYOUT_DELAY_MAX_MS) / 10).to_be_bytes();
        self.stream.playout_delay = [0, high & 0x0f, low];
    }

    /// Enlarges the RTX cache for a replay of `packets` RTP packets, so that lost packets of a long GOP can be
    /// retransmitted.
    pub(in crate::session) fn enlarge_cache(&mut self, now: Instant, packets: usize) {
        if packets > limits::RTX_CACHE_PACKETS && self.large_cache_used_at.is_none() {
            self.cache.set_packets_max(limits::REPLAY_RTX_PACKETS);
            self.large_cache_used_at = Some(now);
        }
    }

    /// Shrinks an enlarged RTX cache when all replayed packets are too old for a retransmission. Called at every live
    /// IDR.
    pub(in crate::session) fn shrink_cache(&mut self, now: Instant) {
        let is_over = |at: Instant| now.saturating_duration_since(at) > limits::RTX_CACHE_AGE;
        if self.large_cache_used_at.is_some_and(is_over) {
            self.large_cache_used_at = None;
            self.cache.set_packets_max(limits::RTX_CACHE_PACKETS);
        }
    }

    // ---- media -------------------------------------------------------------------------------------

    /// Sends a unit, or nothing if there are no keys. The unit's RTP time is raised if it would not increase; it
    /// corresponds to the instant `at`. If the sink has no room for a packet, that packet counts as sent and is lost.
    pub(in crate::session) fn send_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        at: Instant,
        is_replayed: bool,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        if self.newest.is_none() {
            // The queue of the link is still empty, so this packet tells the link's delay.
            self.send_mark(now, to, sink);
        }
        let (rtp_time, captured_ntp) = self.begin_unit(now, unit, at, is_replayed);
        let Some((sealer, _)) = &self.keys else { return };
        let StreamParameters { ssrc, payload_type, .. } = self.stream;
        let mark = self.next_mark(now);
        if mark.is_some() {
            self.link.begin_burst(now, self.sent.on_wire());
        }
        let mut headers = UnitHeaders::new(&self.stream, (ssrc, payload_type), rtp_time, captured_ntp, mark);
        self.cache.begin_unit(now);
        let sent = SentUnit { rtp_time, captured_ntp, mark: self.repeated(mark) };
        let last_of_unit = unit.payloads.len().saturating_sub(1);
        for (buffer, payloads) in unit.payloads.iter().enumerate() {
            let is_end = buffer == last_of_unit;
            let last = payloads.len().saturating_sub(1);
            for ((place, payload), index) in payloads.iter().enumerate().zip(self.cache.next()..) {
                let is_last = is_end && place == last;
                let header = headers.for_packet(payload, is_last, low16(index));
                let packet = RtpPacket { ssrc, index, header, prefix: &[], payload };
                seal(sealer, &packet, to, sink, &mut self.sent);
            }
            let count = |count: usize| u32::try_from(count).unwrap_or_default();
            self.octets = self.octets.wrapping_add(count(payloads.bytes()));
            self.packets = self.packets.wrapping_add(count(payloads.len()));
            self.cache.push(Arc::clone(payloads), &sent, is_end);
        }
        if headers.is_marked {
            self.link.mark(now, self.sent.on_wire());
        }
    }

    /// Returns the transport-wide sequence number for a unit, if the unit must be marked.
    fn next_mark(&self, now: Instant) -> Option<u16> {
        (self.link.is_due(now) && self.can_mark()).then(|| self.link.next_sequence())
    }

    /// Returns true if packets can be marked.
    fn can_mark(&self) -> bool {
        self.stream.extensions.transport.is_some()
    }

    /// Returns the mark that a retransmission must repeat: without RTX, the packet is sent again with the same SRTP
    /// index, so it must not change.
    fn repeated(&self, mark: Option<u16>) -> Option<u16> {
        mark.filter(|_| self.stream.rtx.is_none())
    }

    /// Notes the times of a unit that will be sent. Returns its RTP time for the header and its capture time, see
    /// [`Sender::capture_time`].
    #[inline(always)] // runs for every unit and viewer
    fn begin_unit(
        &mut self,
        now: Instant,
        unit: &PacketizedUnit<'_>,
        at: Instant,
        is_replayed: bool,
    ) -> (u32, u64) {
        let rtp_time_90k = unit.info.rtp_time_90k.max(self.newest.map_or(0, |(sent, _)| sent + 1));
        self.newest = Some((rtp_time_90k, at));
        if let Some(offset_ns) = unit.info.realtime_offset_ns {
            self.wallclock.realtime_offset_ns = offset_ns;
        }
        let rtp_time = self.rtp_time(rtp_time_90k);
        let captured_ntp = self.capture_time(now, unit, is_replayed);
        if is_replayed {
            self.large_cache_used_at = self.large_cache_used_at.map(|_| now);
        }
        self.report_due_at.get_or_insert(now);
        (rtp_time, captured_ntp)
    }

    /// Returns the RTP time for the header: the low 32 bits of `rtp_time_90k` plus the stream's offset.
    fn rtp_time(&self, rtp_time_90k: u64) -> u32 {
        low32(rtp_time_90k.into()).wrapping_add(self.stream.rtp_offset)
    }

    /// Returns the capture time to send with a unit as an NTP timestamp, or 0 to send none. IDRs carry the capture
    /// time, and so does at least one unit a second: receivers interpolate in between, for up to 5 s. Replayed units
    /// always carry it, because their RTP time is not their capture time.
    fn capture_time(&mut self, now: Instant, unit: &PacketizedUnit<'_>, is_replayed: bool) -> u64 {
        let due = self.captured_at_sent.is_none_or(|at| now >= at + Duration::from_secs(1));
        let captured_at = unit.info.captured_at_ns.and_then(|ns| u64::try_from(ns).ok());
        let Some(ns) = captured_at.filter(|_| due || unit.info.is_idr || is_replayed) else { return 0 };
        self.captured_at_sent = Some(now);
        wallclock::ntp(Duration::from_nanos(ns))
    }

    /// Sends the requested retransmissions. With RTX they form a separate RTP stream, in which the original sequence
    /// number precedes the payload (RFC 4588). Without RTX the original packet is built again. It is identical byte by
    /// byte, because its header comes from the same values: the nonce of AES-GCM thus never protects different bytes.
    pub(in crate::session) fn send_retransmissions(
        &mut self,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        while self.send_retransmission(to, sink).is_some() {}
    }

    /// Sends the next requested retransmission, and returns the bytes of its datagram.
    fn send_retransmission(&mut self, to: &Destination, sink: &mut impl DatagramSink) -> Option<usize> {
        let (sealer, _) = self.keys.as_ref()?;
        let StreamParameters { ssrc, payload_type, rtx, .. } = self.stream;
        let (ssrc, payload_type) = rtx.unwrap_or((ssrc, payload_type));
        let (sequence, sent, place) = self.cache.poll_retransmission()?;
        let payload = sent.payloads.get(place).unwrap_or_default();
        let original = low16(sequence).to_be_bytes();
        let (index, prefix) = match rtx {
            Some(_) => (self.next_rtx, original.as_slice()),
            None => (sequence, [].as_slice()),
        };
        let mut headers = UnitHeaders::new(
            &self.stream,
            (ssrc, payload_type),
            sent.rtp_time,
            sent.captured_ntp,
            sent.mark(),
        );
        let header = headers.for_packet(payload, sent.is_last(place), low16(index));
        let packet = RtpPacket { ssrc, index, header, prefix, payload };
        seal(sealer, &packet, to, sink, &mut self.sent);
        self.next_rtx += u64::from(rtx.is_some());
        self.sent.retransmits += 1;
        Some(header.len() + prefix.len() + payload.len() + sealer.tag_bytes())
    }

    /// Sends a STUN or DTLS datagram unchanged.
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
            self.reports = self.reports.wrapping_add(1);
            if self.reports.is_multiple_of(limits::REPORTS_PER_MARK) {
                self.send_mark(now, to, sink);
            }
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
        let report = self.sender_report(now);
        let Some((sealer, _)) = &mut self.keys else { return };
        self.reports_sent.push(report.ntp, self.wallclock.realtime_offset_ns);
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

    fn sender_report(&self, now: Instant) -> SenderReport {
        SenderReport {
            ssrc: self.stream.ssrc,
            ntp: self.wallclock.ntp(now),
            rtp_time: self.rtp_time_at(now),
            packets: self.packets,
            octets: self.octets,
        }
    }

    /// Returns the stream's RTP time at `now`, extrapolated from the newest unit.
    fn rtp_time_at(&self, now: Instant) -> u32 {
        let Some((rtp_time_90k, at)) = self.newest else { return 0 };
        let ticks = |span: Duration| low32(span.as_micros() * 9 / 100);
        let after = ticks(now.saturating_duration_since(at));
        self.rtp_time(rtp_time_90k).wrapping_add(after).wrapping_sub(ticks(at.saturating_duration_since(now)))
    }

    /// Handles an SRTCP datagram. Returns false if there are no keys, or if the datagram is not authentic or was
    /// received before.
    pub(in crate::session) fn handle_rtcp(&mut self, now: Instant, datagram: &[u8]) -> bool {
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
            Packet::Nack { media, lost } if *media == ours => {
                self.reception.nacks += 1;
                lost.iter().for_each(|sequence| self.cache.on_nack(now, sequence));
                self.on_lost(now, lost);
            }
            Packet::Arrivals(arrivals) => self.on_arrivals(now, arrivals),
            Packet::ReferenceTime(reference) => self.reference = Some((*reference, now)),
            Packet::Pli { media } if *media == ours => self.on_idr_request(),
            Packet::Fir(requests) if requests.contains(ours) => self.on_idr_request(),
            _ => {}
        }
    }

    fn on_idr_request(&mut self) {
        self.reception.idr_requests += 1;
        self.is_idr_wanted = true;
    }

    fn on_report_block(&mut self, now: Instant, block: &ReportBlock) {
        self.reception.loss_fraction = Some(f32::from(block.fraction_lost) / 256.0);
        self.reception.jitter = Some(block.jitter);
        // The viewer returns the NTP time of our report, so the round trip is measured with the offset of that report.
        if let Some(realtime_offset_ns) = self.reports_sent.offset_of(block.last_report) {
            let wallclock = self.wallclock.with_offset(realtime_offset_ns);
            if let Some(span) = block.round_trip_65536ths(wallclock.ntp(now)) {
                self.reception.rtt = Some(Duration::from_micros((u64::from(span) * 1_000_000) >> 16));
            }
        }
        self.on_loss(now, block.fraction_lost);
    }
}

// ---- headers ---------------------------------------------------------------------------------------

/// RTP header (RFC 3550 section 5.1) of a unit's packets, with header extensions (RFC 8285). Only the last packet
/// carries the extensions, which saves bytes in all others. Receivers keep the latest playout delay and mid until they
/// get new ones, and extrapolate the capture time from the RTP time (abs-capture-time section 4).
struct UnitHeaders {
    bytes: [u8; HEADER_BYTES_MAX],
    /// Length of the header with all its extensions, in bytes.
    length: usize,
    payload_type: u8,
    /// First byte of a packet with extensions.
    flags: u8,
    /// True if the extensions include a transport-wide sequence number.
    has_mark: bool,
    /// True if a packet has had such a number.
    is_marked: bool,
}

impl UnitHeaders {
    /// Creates the headers of a unit with the negotiated extensions in the one-byte form (RFC 8285 section 4.2). The
    /// extensions are the mid, the playout delay, the capture time unless it is 0, and `mark` as transport-wide sequence
    /// number.
    fn new(
        stream: &StreamParameters,
        (ssrc, payload_type): (u32, u8),
        rtp_time: u32,
        captured_ntp: u64,
        mark: Option<u16>,
    ) -> UnitHeaders {
        let mut headers = UnitHeaders::begin((ssrc, payload_type), rtp_time);
        let Extensions { mid, playout_delay, capture_time, transport } = stream.extensions;
        headers.put_extension(mid, stream.mid.as_bytes());
        headers.put_extension(playout_delay, &stream.playout_delay);
        if captured_ntp != 0 {
            // The second half is the clock offset. It stays 0, because our clock is also the camera's clock.
            let mut value = [0; 16];
            let (time, _) = value.split_at_mut(8);
            time.copy_from_slice(&captured_ntp.to_be_bytes());
            headers.put_extension(capture_time, &value);
        }
        if let Some(mark) = mark {
            headers.put_extension(transport, &mark.to_be_bytes());
            headers.has_mark = transport.is_some();
        }
        headers.end()
    }

    /// Creates the header of a packet that consists of padding and has only a transport-wide sequence number.
    fn for_padding(
        stream: &StreamParameters,
        (ssrc, payload_type): (u32, u8),
        rtp_time: u32,
        mark: u16,
    ) -> UnitHeaders {
        let mut headers = UnitHeaders::begin((ssrc, payload_type), rtp_time);
        headers.put_extension(stream.extensions.transport, &mark.to_be_bytes());
        headers.flags |= 0x20;
        headers.end()
    }

    fn begin((ssrc, payload_type): (u32, u8), rtp_time: u32) -> UnitHeaders {
        let mut headers = UnitHeaders {
            bytes: [0; HEADER_BYTES_MAX],
            length: 0,
            payload_type,
            flags: 0x80,
            is_marked: false,
            has_mark: false,
        };
        headers.put(&[0x80, 0, 0, 0]);
        headers.put(&rtp_time.to_be_bytes());
        headers.put(&ssrc.to_be_bytes());
        headers.put(&[0xBE, 0xDE, 0, 0]);
        headers
    }

    /// Completes the extensions, or removes their empty header.
    fn end(mut self) -> UnitHeaders {
        let words = self.length.saturating_sub(FIXED_BYTES + 4).div_ceil(4);
        if words == 0 {
            self.length = FIXED_BYTES;
        } else {
            self.length = FIXED_BYTES + 4 + 4 * words; // the rest of the last word stays zero as padding
            self.set(FIXED_BYTES + 3, &[u8::try_from(words).unwrap_or_default()]);
        }
        self
    }

    fn put_extension(&mut self, id: Option<u8>, value: &[u8]) {
        let Some(id) = id.filter(|id| (1..=14).contains(id)) else { return };
        let length = value.len().checked_sub(1).and_then(|length| u8::try_from(length).ok());
        if let Some(length) = length.filter(|length| *length < 16) {
            self.put(&[id << 4 | length]);
            self.put(value);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.set(self.length, bytes);
        self.length += bytes.len();
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        match self.bytes.get_mut(at..at + bytes.len()) {
            Some(room) => room.copy_from_slice(bytes),
            None => debug_assert!(false, "HEADER_BYTES_MAX is the sum of all parts"),
        }
    }

    /// Returns the header for a packet. The last packet of a unit has the extensions if there is room for them. When
    /// the packetizer fragments a slice, it leaves that room in the last packet.
    fn for_packet(&mut self, payload: &[u8], is_last: bool, sequence: u16) -> &[u8] {
        let has_room = self.length - FIXED_BYTES + payload.len() <= limits::RTP_PAYLOAD_BYTES_MAX;
        let length = if is_last && has_room { self.length } else { FIXED_BYTES };
        if length > FIXED_BYTES {
            // The extension bit need not be cleared again, because no other packet of the unit follows the last one.
            self.set(0, &[self.flags | 0x10]);
            self.is_marked = self.has_mark;
        }
        let marker = if is_last { 0x80 } else { 0 };
        let [high, low] = sequence.to_be_bytes();
        self.set(1, &[self.payload_type & 0x7F | marker, high, low]);
        self.bytes.get(..length).unwrap_or_default()
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

mod paced;
#[cfg(test)]
mod tests;
