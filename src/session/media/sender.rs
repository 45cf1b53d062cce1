//! The stream to one viewer: RTP headers, sequence numbers, packets sent again, reports. Seals each packet where it
//! leaves from. No I/O, no clock; knows nothing of gates, ICE and DTLS.
//!
//! ```text
//!  payloads ─► header (once per unit) + sequence number ─► seal ─► sink
//!      └─► cache of sent packets ─► NACK ─► RTX (RFC 4588) ─► seal ─► sink
//!  receiver reports ─► loss, round trip         once a second: sender report ─► seal ─► sink
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::limits;
use crate::h264::Payloads;
use crate::session::media::rtcp::{self, Packet, ReportBlock, SenderReport};
use crate::session::media::rtx::{RtxCache, Sent};
use crate::session::media::srtp::{Opener, RtpPacket, Sealer};
use crate::session::media::wallclock::Wallclock;
use crate::session::sink::{DatagramSink, Destination};
use crate::session::transport::signaling::Extensions;

/// RTP header without extensions (RFC 3550 section 5.1).
const FIXED_BYTES: usize = 12;

/// With all extensions.
const HEADER_BYTES_MAX: usize = FIXED_BYTES + limits::RTP_EXTENSIONS_BYTES_MAX;

const _: () =
    assert!(FIXED_BYTES + crate::session::media::srtp::TAG_BYTES_MAX + 2 == limits::RTP_OVERHEAD_BYTES_MAX);

/// What distinguishes the stream, as the answer says.
#[derive(Clone, Debug)]
pub(in crate::session) struct Stream {
    pub(in crate::session) ssrc: u32,
    pub(in crate::session) payload_type: u8,
    /// SSRC and payload type of packets that are sent again.
    pub(in crate::session) rtx: Option<(u32, u8)>,
    pub(in crate::session) extensions: Extensions,
    pub(in crate::session) mid: String,
    pub(in crate::session) cname: String,
    /// Where sequence numbers begin: below 2^15, so that no receiver misjudges the rollovers (RFC 3711 section 3.3.1).
    pub(in crate::session) first_sequence: u16,
    pub(in crate::session) first_rtx_sequence: u16,
}

/// What is the same for all packets of a unit.
#[derive(Clone, Copy, Debug)]
pub(in crate::session) struct UnitTiming {
    pub(in crate::session) now: Instant,
    /// RTP time, with the stream's offset.
    pub(in crate::session) rtp_time: u32,
    /// The moment that RTP time stands for.
    pub(in crate::session) at: Instant,
    /// The capture time to be told, NTP; 0 for none.
    pub(in crate::session) captured_ntp: u64,
}

/// What the viewer reported.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::session) struct Reception {
    pub(in crate::session) loss_fraction: Option<f32>,
    pub(in crate::session) rtt: Option<Duration>,
    /// In RTP time.
    pub(in crate::session) jitter: Option<u32>,
    pub(in crate::session) nacks: u64,
    pub(in crate::session) idr_requests: u64,
}

/// What was sent; all datagrams of the session pass here.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::session) struct SentCounters {
    pub(in crate::session) datagrams: u64,
    pub(in crate::session) bytes: u64,
    pub(in crate::session) retransmits: u64,
}

/// The stream and everything about it.
pub(in crate::session) struct Sender {
    stream: Stream,
    keys: Option<(Sealer, Opener)>,
    wallclock: Wallclock,
    cache: RtxCache,
    next_rtx: u64,
    pub(in crate::session) reception: Reception,
    pub(in crate::session) tally: SentCounters,
    packets: u32,
    octets: u32,
    newest: Option<(u32, Instant)>,
    report_at: Option<Instant>,
    /// The viewer's clock as it told it last, and when: the next report tells it back, and Chromium then knows by how
    /// much our clocks differ and thus how old a picture is.
    reference: Option<(rtcp::Reference, Instant)>,
    scratch: Vec<u8>,
}

impl Sender {
    pub(in crate::session) fn new(stream: Stream, wallclock: Wallclock, now: Instant) -> Sender {
        Sender {
            keys: None,
            wallclock,
            cache: RtxCache::new(stream.first_sequence.into(), now),
            next_rtx: stream.first_rtx_sequence.into(),
            reception: Reception::default(),
            tally: SentCounters::default(),
            packets: 0,
            octets: 0,
            newest: None,
            report_at: None,
            reference: None,
            scratch: Vec::new(),
            stream,
        }
    }

    /// DTLS has finished.
    pub(in crate::session) fn start(&mut self, keys: (Sealer, Opener)) {
        self.keys = Some(keys);
    }

    /// How many sent packets can be asked for.
    pub(in crate::session) fn set_cache(&mut self, packets_max: usize) {
        self.cache.set_packets_max(packets_max);
    }

    /// Packets that were asked for too often.
    pub(in crate::session) fn refused(&self) -> u64 {
        self.cache.refused
    }

    /// When [`Sender::report`] is due.
    pub(in crate::session) fn deadline(&self) -> Option<Instant> {
        self.report_at
    }

    // ---- media -------------------------------------------------------------------------------------

    /// Sends a unit. Without keys nothing is sent; without room in the sink a packet counts as sent and lost.
    pub(in crate::session) fn send_unit(
        &mut self,
        payloads: &[Arc<Payloads>],
        moment: &UnitTiming,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        let Some((sealer, _)) = &self.keys else { return };
        let mut headers = Headers::new(&self.stream, moment.rtp_time, moment.captured_ntp);
        self.cache.begin_unit(moment.now);
        let ssrc = self.stream.ssrc;
        let last_of_unit = payloads.len().saturating_sub(1);
        for (place, payloads) in payloads.iter().enumerate() {
            let is_end = place == last_of_unit;
            let last = payloads.len().saturating_sub(1);
            for ((place, payload), index) in payloads.iter().enumerate().zip(self.cache.next()..) {
                let header = headers.of(payload, is_end && place == last);
                header.set_packet(self.stream.payload_type, is_end && place == last, index);
                let packet = RtpPacket { ssrc, index, header: header.bytes(), prefix: &[], payload };
                seal(sealer, &packet, to, sink, &mut self.tally);
            }
            let count = |count: usize| u32::try_from(count).unwrap_or_default();
            self.octets = self.octets.wrapping_add(count(payloads.bytes()));
            self.packets = self.packets.wrapping_add(count(payloads.len()));
            let UnitTiming { rtp_time, captured_ntp, .. } = *moment;
            self.cache.push(Sent { payloads: Arc::clone(payloads), captured_ntp, rtp_time, is_end });
        }
        self.newest = Some((moment.rtp_time, moment.at));
        self.report_at.get_or_insert(moment.now);
    }

    /// Sends again what was asked for (RFC 4588: a stream of its own, the payload behind the original sequence
    /// number).
    pub(in crate::session) fn send_again(&mut self, to: &Destination, sink: &mut impl DatagramSink) {
        let (Some((sealer, _)), Some((ssrc, payload_type))) = (&self.keys, self.stream.rtx) else { return };
        while let Some((sequence, sent, place)) = self.cache.take_wanted() {
            let payload = sent.payloads.get(place).unwrap_or_default();
            let mut headers = Headers::new(&self.stream, sent.rtp_time, sent.captured_ntp);
            let header = headers.of(payload, sent.is_last(place));
            header.set_ssrc(ssrc);
            header.set_packet(payload_type, sent.is_last(place), self.next_rtx);
            let packet = RtpPacket {
                ssrc,
                index: self.next_rtx,
                header: header.bytes(),
                prefix: &low16(sequence).to_be_bytes(),
                payload,
            };
            seal(sealer, &packet, to, sink, &mut self.tally);
            self.next_rtx += 1;
            self.tally.retransmits += 1;
        }
    }

    /// A datagram that is no RTP of ours.
    pub(in crate::session) fn send_plain(
        &mut self,
        bytes: &[u8],
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        self.tally.count(bytes.len());
        sink.push_datagram(to, bytes.len(), |out| out.copy_from_slice(bytes));
    }

    // ---- reports -----------------------------------------------------------------------------------

    /// Sends a sender report where one is due.
    pub(in crate::session) fn report(
        &mut self,
        now: Instant,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        if self.report_at.is_some_and(|at| now >= at) {
            self.report_at = Some(now + limits::SENDER_REPORT_INTERVAL);
            self.send_rtcp(now, false, to, sink);
        }
    }

    /// Says goodbye; nothing may be sent after it.
    pub(in crate::session) fn goodbye(
        &mut self,
        now: Instant,
        to: &Destination,
        sink: &mut impl DatagramSink,
    ) {
        self.send_rtcp(now, true, to, sink);
        self.keys = None;
        self.report_at = None;
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
        self.tally.count(bytes);
        sink.push_datagram(to, bytes, |out| {
            let sealed = sealer.seal_rtcp(&self.scratch, out);
            debug_assert!(sealed, "the lengths fit");
        });
    }

    /// What the stream's RTP time is now: that of the newest unit, gone on since.
    fn rtp_time_at(&self, now: Instant) -> u32 {
        let Some((rtp_time, at)) = self.newest else { return 0 };
        let ticks = |span: Duration| low32(span.as_micros() * 9 / 100);
        let after = ticks(now.saturating_duration_since(at));
        rtp_time.wrapping_add(after).wrapping_sub(ticks(at.saturating_duration_since(now)))
    }

    /// Takes an SRTCP datagram; false where it isn't the viewer's.
    pub(in crate::session) fn handle_rtcp(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let mut compound = std::mem::take(&mut self.scratch);
        let opened = match &mut self.keys {
            Some((_, opener)) => opener.open_rtcp(datagram, &mut compound),
            None => false,
        };
        if opened {
            rtcp::packets(&compound).for_each(|packet| self.handle_rtcp_packet(now, &packet));
        }
        self.scratch = compound;
        opened
    }

    fn handle_rtcp_packet(&mut self, now: Instant, packet: &Packet<'_>) {
        let ours = self.stream.ssrc;
        match packet {
            Packet::Report(blocks) => {
                let about_us = blocks.iter().filter(|block| block.ssrc == ours);
                about_us.for_each(|block| self.note_reception(now, &block));
            }
            Packet::Nack { media, lost } if *media == ours && self.stream.rtx.is_some() => {
                self.reception.nacks += 1;
                lost.iter().for_each(|sequence| self.cache.ask(now, sequence));
            }
            Packet::ReferenceTime(reference) => self.reference = Some((*reference, now)),
            Packet::Pli { media } if *media == ours => self.reception.idr_requests += 1,
            Packet::Fir(requests) if requests.contains(ours) => self.reception.idr_requests += 1,
            _ => {}
        }
    }

    fn note_reception(&mut self, now: Instant, block: &ReportBlock) {
        self.reception.loss_fraction = Some(f32::from(block.fraction_lost) / 256.0);
        self.reception.jitter = Some(block.jitter);
        if let Some(span) = block.round_trip_65536ths(self.wallclock.ntp(now)) {
            self.reception.rtt = Some(Duration::from_micros((u64::from(span) * 1_000_000) >> 16));
        }
    }
}

impl SentCounters {
    fn count(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}

fn seal(
    sealer: &Sealer,
    packet: &RtpPacket<'_>,
    to: &Destination,
    sink: &mut impl DatagramSink,
    tally: &mut SentCounters,
) {
    let bytes = packet.header.len() + packet.prefix.len() + packet.payload.len() + sealer.tag_bytes();
    tally.count(bytes);
    sink.push_datagram(to, bytes, |out| {
        let sealed = sealer.seal_rtp(packet, out);
        debug_assert!(sealed, "the lengths fit");
    });
}

#[expect(clippy::cast_possible_truncation, reason = "the low 16 bits are what is meant")]
fn low16(value: u64) -> u16 {
    value as u16
}

#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are what is meant")]
fn low32(value: u128) -> u32 {
    value as u32
}

/// The headers of a unit's packets: all but the last have none of the extensions. Receivers keep what an extension told
/// them for the packets without (the playout delay and the mid until they change; the capture time goes on with the RTP time,
/// abs-capture-time section 4), and each byte less in every packet is one less to send and to authenticate.
struct Headers {
    plain: Header,
    extended: Header,
}

impl Headers {
    fn new(stream: &Stream, rtp_time: u32, captured_ntp: u64) -> Headers {
        let extended = Header::new(stream, rtp_time, captured_ntp);
        let mut plain = Header { bytes: extended.bytes, length: FIXED_BYTES };
        plain.set(0, &[0x80]);
        Headers { plain, extended }
    }

    /// The header for a packet. A last packet without room for them (the packetiser makes none of a slice) goes without.
    fn of(&mut self, payload: &[u8], is_last: bool) -> &mut Header {
        let extended_bytes = self.extended.length - FIXED_BYTES + payload.len();
        if is_last && extended_bytes <= limits::RTP_PAYLOAD_BYTES_MAX {
            &mut self.extended
        } else {
            &mut self.plain
        }
    }
}

/// An RTP header; marker, payload type and sequence number change from packet to packet.
struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    length: usize,
}

impl Header {
    /// With the extensions that were agreed on, in the one-byte form of RFC 8285 section 4.2: the mid, a playout delay
    /// of nothing, and the capture time where there is one.
    fn new(stream: &Stream, rtp_time: u32, captured_ntp: u64) -> Header {
        let mut header = Header { bytes: [0; HEADER_BYTES_MAX], length: 0 };
        header.put(&[0x80, 0, 0, 0]);
        header.put(&rtp_time.to_be_bytes());
        header.put(&stream.ssrc.to_be_bytes());
        header.put(&[0xBE, 0xDE, 0, 0]);
        let Extensions { mid, playout_delay, capture_time } = stream.extensions;
        header.put_extension(mid, stream.mid.as_bytes());
        header.put_extension(playout_delay, &[0; 3]);
        if captured_ntp != 0 {
            let mut value = [0; 16]; // the upper half: our clock is the camera's, an offset of 0
            let (time, _) = value.split_at_mut(8);
            time.copy_from_slice(&captured_ntp.to_be_bytes());
            header.put_extension(capture_time, &value);
        }
        let words = header.length.saturating_sub(FIXED_BYTES + 4).div_ceil(4);
        if words == 0 {
            header.length = FIXED_BYTES;
        } else {
            header.length = FIXED_BYTES + 4 + 4 * words; // zeros are padding
            header.set(0, &[0x90]);
            header.set(FIXED_BYTES + 3, &[u8::try_from(words).unwrap_or_default()]);
        }
        header
    }

    fn put_extension(&mut self, id: Option<u8>, value: &[u8]) {
        let Some(id) = id.filter(|id| (1..=14).contains(id)) else { return };
        let Some(length) = value.len().checked_sub(1).and_then(|length| u8::try_from(length).ok()) else {
            return;
        };
        if length < 16 {
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
            None => debug_assert!(false, "HEADER_BYTES_MAX is the sum of all"),
        }
    }

    fn set_packet(&mut self, payload_type: u8, is_last: bool, index: u64) {
        let [high, low] = low16(index).to_be_bytes();
        self.set(1, &[payload_type & 0x7F | if is_last { 0x80 } else { 0 }, high, low]);
    }

    fn set_ssrc(&mut self, ssrc: u32) {
        self.set(8, &ssrc.to_be_bytes());
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(extensions: Extensions) -> Stream {
        Stream {
            ssrc: 0x0102_0304,
            payload_type: 96,
            rtx: Some((0x0102_0305, 97)),
            extensions,
            mid: "0".to_owned(),
            cname: "camera".to_owned(),
            first_sequence: 7,
            first_rtx_sequence: 9,
        }
    }

    #[test]
    fn a_header_without_extensions_is_the_fixed_part() {
        let mut header = Header::new(&stream(Extensions::default()), 0x0a0b_0c0d, 5);
        header.set_packet(96, true, 0x1_fffe);
        assert_eq!(header.bytes(), [0x80, 0xe0, 0xff, 0xfe, 0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4]);
    }

    #[test]
    fn extensions_have_the_one_byte_form_and_end_at_a_word() {
        let all = Extensions { mid: Some(4), playout_delay: Some(5), capture_time: Some(14) };
        let mut header = Header::new(&stream(all), 0, 0);
        header.set_packet(96, false, 1);
        assert_eq!(header.bytes()[..4], [0x90, 0x60, 0, 1]);
        assert_eq!(header.bytes()[12..], [0xbe, 0xde, 0, 2, 0x40, b'0', 0x52, 0, 0, 0, 0, 0]);
        let header = Header::new(&Stream { mid: "m".repeat(16), ..stream(all) }, 0, 0x1122_3344_5566_7788);
        assert_eq!(header.bytes().len(), HEADER_BYTES_MAX);
        assert_eq!(header.bytes()[37..47], [0xef, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0]);
    }

    #[test]
    fn the_rtp_time_of_a_report_goes_on_since_the_newest_unit() {
        #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
        let now = Instant::now();
        let mut sender = Sender::new(stream(Extensions::default()), Wallclock::read(), now);
        assert_eq!(sender.rtp_time_at(now), 0, "nothing was sent");
        sender.newest = Some((u32::MAX - 999, now));
        assert_eq!(sender.rtp_time_at(now + Duration::from_millis(100)), 8_000, "and wraps");
    }
}
