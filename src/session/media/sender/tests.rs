//! Tests of packet headers, reports, and retransmissions without RTX.

use std::net::SocketAddr;

use str0m::crypto::dtls::SrtpProfile;
use support::random::Random;

use super::*;
use crate::h264::Payloads;
use crate::session::media::UnitInfo;
use crate::session::media::srtp;

fn stream(extensions: Extensions) -> StreamParameters {
    StreamParameters {
        ssrc: 0x0102_0304,
        payload_type: 96,
        rtx: Some((0x0102_0305, 97)),
        extensions,
        mid: "0".to_owned(),
        cname: "camera".to_owned(),
        first_sequence: 7,
        first_rtx_sequence: 9,
        rtp_offset: 0,
        playout_delay: [0; 3],
    }
}

fn headers(stream: &StreamParameters, rtp_time: u32, captured_ntp: u64) -> UnitHeaders {
    UnitHeaders::new(stream, (stream.ssrc, stream.payload_type), rtp_time, captured_ntp, Some(0x0a0b))
}

#[test]
fn header_without_extensions_is_the_fixed_part() {
    let mut headers = headers(&stream(Extensions::default()), 0x0a0b_0c0d, 5);
    let fixed = [0x80, 0xe0, 0xff, 0xfe, 0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4];
    assert_eq!(headers.for_packet(&[], true, 0xfffe), fixed);
}

#[test]
fn extensions_have_the_one_byte_form_and_are_padded_to_a_word() {
    let all = Extensions { mid: Some(4), playout_delay: Some(5), capture_time: Some(14), transport: Some(3) };
    let mut short = headers(&stream(all), 0, 0);
    let header = short.for_packet(&[], true, 1);
    assert_eq!(header[..4], [0x90, 0xe0, 0, 1]);
    assert_eq!(header[12..], [0xbe, 0xde, 0, 3, 0x40, b'0', 0x52, 0, 0, 0, 0x31, 0x0a, 0x0b, 0, 0, 0]);
    let long = StreamParameters { mid: "m".repeat(16), ..stream(all) };
    let mut long = headers(&long, 0, 0x1122_3344_5566_7788);
    let header = long.for_packet(&[], true, 1);
    assert_eq!(header.len(), HEADER_BYTES_MAX);
    assert_eq!(header[37..47], [0xef, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0]);
    assert_eq!(header[54..], [0x31, 0x0a, 0x0b, 0, 0, 0]);
}

#[test]
fn playout_delay_is_0_unless_the_viewer_may_hold_pictures_back() {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let now = Instant::now();
    let all = Extensions { playout_delay: Some(5), ..Extensions::default() };
    let mut sender = Sender::new(stream(all), Wallclock::read(), now);
    for (max_ms, value) in
        [(None, [0, 0, 0]), (Some(0), [0, 0, 0]), (Some(500), [0, 0, 50]), (Some(u16::MAX), [0, 0, 50])]
    {
        if let Some(max_ms) = max_ms {
            sender.allow_playout_delay(max_ms);
        }
        let mut headers = headers(&sender.stream, 0, 0);
        let header = headers.for_packet(&[], true, 1);
        assert_eq!(header[12..], [&[0xbe, 0xde, 0, 1, 0x52][..], &value].concat(), "{max_ms:?}");
    }
}

#[test]
fn only_the_last_packet_has_extensions_and_only_if_there_is_room() {
    let all = Extensions { mid: Some(4), playout_delay: Some(5), capture_time: Some(14), transport: Some(3) };
    let mut headers = headers(&stream(all), 0, 0);
    assert_eq!(headers.for_packet(&[], false, 1)[..4], [0x80, 0x60, 0, 1]);
    assert_eq!(headers.for_packet(&[], false, 1).len(), FIXED_BYTES);
    let full = [0; limits::RTP_PAYLOAD_BYTES_MAX];
    assert_eq!(headers.for_packet(&full, true, 1)[..4], [0x80, 0xe0, 0, 1]);
    assert_eq!(headers.for_packet(&full, true, 1).len(), FIXED_BYTES);
    assert!(!headers.is_marked, "no packet has had the transport-wide sequence number");
    headers.for_packet(&[], true, 1);
    assert!(headers.is_marked);
}

#[test]
fn rtp_time_of_a_report_is_extrapolated_from_the_newest_unit() {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let now = Instant::now();
    let mut sender = Sender::new(stream(Extensions::default()), Wallclock::read(), now);
    assert_eq!(sender.rtp_time_at(now), 0, "no unit was sent");
    sender.newest = Some((u64::from(u32::MAX) - 999, now));
    assert_eq!(sender.rtp_time_at(now + Duration::from_millis(100)), 8_000, "RTP time wraps");
}

/// Datagrams of a sender, in order.
#[derive(Default)]
struct Sent(Vec<Vec<u8>>);

impl DatagramSink for Sent {
    fn push_datagram(&mut self, _: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        let mut datagram = vec![0xee; bytes];
        write(&mut datagram);
        self.0.push(datagram);
    }
}

/// Sends units of several packets to a viewer without RTX, and then answers the NACK of all their packets. Returns the
/// original datagrams and the repeated ones.
fn sent_and_repeated(profile: SrtpProfile, first_sequence: u16) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let now = Instant::now();
    let to = Destination::udp(None, SocketAddr::from(([192, 0, 2, 1], 9)));
    let all = Extensions { mid: Some(4), playout_delay: Some(5), capture_time: Some(14), transport: Some(3) };
    let stream = StreamParameters { rtx: None, first_sequence, ..stream(all) };
    let mut sender = Sender::new(stream, Wallclock::read(), now);
    sender.keys = srtp::contexts(profile, &[9; 96], false);
    let (mut viewer, _) = srtp::contexts(profile, &[9; 96], true).unwrap();
    let mut original = Sent::default();
    for number in 0..4_u8 {
        // The last packet has room for the extensions in the first units and none in the last.
        let last = if number == 3 { limits::RTP_PAYLOAD_BYTES_MAX } else { 300 };
        let buffer = |lengths: &[usize]| -> Arc<Payloads> {
            Arc::new(lengths.iter().map(|bytes| vec![number; *bytes]).collect())
        };
        let payloads = [buffer(&[1_000, 1_100]), buffer(&[900, last])];
        let info = UnitInfo {
            is_idr: number == 0,
            rtp_time_90k: u64::from(number) * 3_000,
            captured_at_ns: Some(1_700_000_000_000_000_000),
            ..UnitInfo::default()
        };
        let unit = PacketizedUnit { info, payloads: &payloads };
        sender.send_unit(now, &unit, now, number == 1, &to, &mut original);
    }
    let mut nack = vec![0x81, 205, 0, 3, 0, 0, 0, 7, 1, 2, 3, 4];
    nack.extend(first_sequence.to_be_bytes());
    nack.extend([0x7f, 0xff]);
    let mut sealed = vec![0; nack.len() + viewer.rtcp_overhead_bytes()];
    assert!(viewer.seal_rtcp(&nack, &mut sealed) && sender.handle_rtcp(now, &sealed));
    let mut repeated = Sent::default();
    sender.send_retransmissions(&to, &mut repeated);
    assert_eq!(sender.sent.retransmits, 16);
    (original.0, repeated.0)
}

/// AES-GCM must never protect two different plaintexts with the same nonce, which comes from SSRC, rollover counter and
/// sequence number. Without RTX a repeated packet has the nonce of the original, so it must be the same packet.
#[test]
fn packet_repeated_without_rtx_is_identical_byte_by_byte() {
    for profile in
        [SrtpProfile::AEAD_AES_256_GCM, SrtpProfile::AEAD_AES_128_GCM, SrtpProfile::AES128_CM_SHA1_80]
    {
        // In the second run the sequence number wraps in the middle, so the rollover counter changes.
        for first_sequence in [7, 65_530] {
            let (original, repeated) = sent_and_repeated(profile, first_sequence);
            assert_eq!(original.len(), 16);
            assert!(original == repeated, "{profile:?} from {first_sequence}");
        }
    }
}

/// A destination that gets nothing, because there are no keys.
struct Nothing;

impl DatagramSink for Nothing {
    fn push_datagram(&mut self, _: &Destination, _: usize, _: impl FnOnce(&mut [u8])) {}
}

#[test]
fn reports_and_capture_times_follow_the_system_clock_and_the_round_trip_does_not() {
    const HOUR_NS: i64 = 3_600_000_000_000;
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let now = Instant::now();
    let mut sender = Sender::new(stream(Extensions::default()), Wallclock::read(), now);
    let offset_ns = sender.wallclock.realtime_offset_ns;
    let to = Destination::udp(None, "192.0.2.1:9".parse().unwrap());
    let mut times = Vec::new();
    for step_ns in [0, HOUR_NS] {
        let info = UnitInfo {
            is_idr: true,
            captured_at_ns: Some(sender.wallclock.monotonic_ns() + offset_ns + step_ns),
            realtime_offset_ns: Some(offset_ns + step_ns),
            ..UnitInfo::default()
        };
        let unit = PacketizedUnit { info, payloads: &[] };
        sender.send_unit(now, &unit, now, false, &to, &mut Nothing);
        times.push((sender.sender_report(now).ntp, sender.capture_time(now, &unit, false)));
        sender.reports_sent.push(sender.sender_report(now).ntp, offset_ns + step_ns);
    }
    let (report, captured) = (times[1].0 - times[0].0, times[1].1 - times[0].1);
    assert_eq!((report >> 32, captured >> 32), (3_600, 3_600), "both stepped by an hour");
    for (ntp, _) in times {
        sender.reception.rtt = None;
        let block = ReportBlock {
            ssrc: 0x0102_0304,
            fraction_lost: 0,
            jitter: 0,
            last_report: low32((ntp >> 16).into()),
            delay: 0,
        };
        sender.on_report_block(now + Duration::from_millis(20), &block);
        let rtt = sender.reception.rtt.unwrap();
        assert!(rtt.abs_diff(Duration::from_millis(20)) < Duration::from_millis(1), "{rtt:?}");
    }
}

/// Returns a random receiver report about our stream, transport-wide feedback, and a NACK of many packets.
fn hostile_compound(random: &mut Random, last_report: u32) -> Vec<u8> {
    let mut bytes = vec![0x81, 201, 0, 7, 0, 0, 0, 7, 1, 2, 3, 4];
    (0..3).for_each(|_| bytes.extend(random.next_u64().to_be_bytes()));
    bytes.truncate(32);
    // Half of the reports refer to a report of ours, so that their round trip is believed.
    if random.below(2) == 0 {
        bytes[24..28].copy_from_slice(&last_report.to_be_bytes());
    }
    bytes.extend([0x8f, 205, 0, 12, 0, 0, 0, 7, 1, 2, 3, 4]);
    // Of 14 packets, some of which were never sent, all have arrived.
    bytes.extend(low16(random.below(300)).to_be_bytes());
    bytes.extend([0, 14]);
    (0..5).for_each(|_| bytes.extend(random.next_u64().to_be_bytes()));
    bytes[52..54].copy_from_slice(&[0x20, 14]);
    bytes.truncate(32 + 4 * 13);
    bytes.extend([0x81, 205, 0, 42, 0, 0, 0, 7, 1, 2, 3, 4]);
    for _ in 0..40 {
        bytes.extend(low16(random.below(2_000)).to_be_bytes());
        bytes.extend([0xff, 0xff]);
    }
    bytes
}

#[test]
fn hostile_feedback_is_answered_within_the_budget() {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let begun = Instant::now();
    let to = Destination::udp(None, SocketAddr::from(([192, 0, 2, 1], 9)));
    let extensions = Extensions { transport: Some(3), ..Extensions::default() };
    let mut sender = Sender::new(stream(extensions), Wallclock::read(), begun);
    let profile = SrtpProfile::AEAD_AES_128_GCM;
    sender.keys = srtp::contexts(profile, &[9; 96], false);
    let (mut viewer, _) = srtp::contexts(profile, &[9; 96], true).unwrap();
    let payloads = [Arc::new((0..8).map(|_| vec![7; 1_000]).collect::<Payloads>())];
    let (mut random, mut sent, mut units) = (Random::new(3), Sent::default(), 0);
    for round in 0..2_000_u32 {
        let now = begun + round * Duration::from_millis(2);
        if round.is_multiple_of(16) {
            let info = UnitInfo { rtp_time_90k: u64::from(round) * 180, ..UnitInfo::default() };
            let unit = PacketizedUnit { info, payloads: &payloads };
            if !sender.queue_unit(now, &unit, now, false) {
                sender.send_unit(now, &unit, now, false, &to, &mut sent);
            }
            units += 1;
        }
        sender.send_report_if_due(now, &to, &mut sent);
        let last_report =
            sender.reports_sent.reports.iter().flatten().last().map_or(0, |(middle, _)| *middle);
        let compound = hostile_compound(&mut random, last_report);
        let mut sealed = vec![0; compound.len() + viewer.rtcp_overhead_bytes()];
        assert!(viewer.seal_rtcp(&compound, &mut sealed) && sender.handle_rtcp(now, &sealed));
        sender.send_paced(now, &to, &mut sent);
        let rate = sender.pacer.as_ref().map(|pacer| pacer.estimate.rate());
        assert!(rate.is_none_or(|rate| limits::LINK_BYTES_PER_S.contains(&rate)), "{rate:?}");
    }
    assert!(sender.pacer.is_some() && sender.cache.refused > 0);
    let retransmits = sender.sent.retransmits;
    assert!(retransmits <= 5 * u64::from(limits::RETRANSMITS_PER_SECOND_MAX), "{retransmits}");
    assert!(sent.0.len() as u64 <= 8 * units + retransmits + 100, "{} datagrams", sent.0.len());
}
