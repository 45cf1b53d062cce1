//! Tests of one session and one browser in memory: connecting, media, feedback, closing, forged input.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use support::session_peer as peer;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use peer::{Outbox, Pair, client_address, context, each, payloads, server_address, unit};
use str0m::config::DtlsVersion;
use str0m::media::KeyframeRequestKind;
use streaming_server::metrics::status::ViewerStatus;
use streaming_server::session::{CloseReason, IdrReason, Output, SrtpChoice, Viewer, stun_ufrag};

const PAYLOAD_BYTES: usize = 1_100;

fn connected(choice: SrtpChoice, version: DtlsVersion) -> Pair {
    let mut pair = Pair::new(&context(choice), version);
    pair.connect();
    pair
}

/// Sends `count` units of `packets` payloads each, with numbers from `from` on. The first unit is an IDR.
fn send_units(pair: &mut Pair, from: u32, count: u32, packets: usize) {
    for number in from..from + count {
        let payloads = payloads(number, packets, PAYLOAD_BYTES);
        pair.push(&unit(&payloads, u64::from(number), number == from));
        pair.run(Duration::from_millis(33));
    }
}

fn is_rtp(bytes: &[u8]) -> bool {
    matches!(bytes, [128..=191, second, ..] if !(192..=223).contains(second))
}

fn rtx_ssrc(answer: &str) -> [u8; 4] {
    let group = answer.lines().find_map(|line| line.strip_prefix("a=ssrc-group:FID ")).unwrap();
    group.split(' ').nth(1).unwrap().parse::<u32>().unwrap().to_be_bytes()
}

#[test]
fn dtls_1_2_connects_with_aes_256_gcm() {
    let pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    assert_eq!(pair.viewer.status(pair.now).profile.as_deref(), Some("SRTP_AEAD_AES_256_GCM"));
}

#[test]
fn every_dtls_version_of_the_browser_connects() {
    for (choice, version) in [
        (SrtpChoice::Cm, DtlsVersion::Dtls12),
        (SrtpChoice::Cm, DtlsVersion::Dtls13),
        (SrtpChoice::Cm, DtlsVersion::Auto),
        (SrtpChoice::Gcm, DtlsVersion::Auto),
    ] {
        let mut pair = connected(choice, version);
        send_units(&mut pair, 0, 3, 3);
        assert_eq!(pair.packets.len(), 9, "{choice} {version}");
    }
}

#[test]
fn units_arrive_complete_in_order_with_marker_and_time() {
    for choice in [SrtpChoice::Gcm, SrtpChoice::Cm] {
        let mut pair = connected(choice, DtlsVersion::Auto);
        send_units(&mut pair, 0, 40, 29);
        assert_eq!(pair.packets.len(), 40 * 29);
        let first = pair.packets[0].header.timestamp;
        let sequence = pair.packets[0].header.sequence_number;
        for (index, packet) in pair.packets.iter().enumerate() {
            let (number, part) = (index as u32 / 29, index as u32 % 29);
            let expected = payloads(number, 29, PAYLOAD_BYTES);
            assert_eq!(&packet.payload[..], each(&expected)[part as usize], "packet {index}");
            assert_eq!(packet.header.marker, part == 28);
            assert_eq!(packet.header.timestamp, first.wrapping_add(number * 3_000));
            assert_eq!(packet.header.sequence_number, sequence.wrapping_add(index as u16));
            let extensions = &packet.header.ext_vals;
            assert_eq!(
                extensions.play_delay_max.is_some(),
                part == 28,
                "only the last packet of a unit has a playout delay"
            );
            assert_eq!(extensions.mid, (part == 28).then_some(pair.mid));
        }
        let status = pair.viewer.status(pair.now);
        assert_eq!((status.units_sent, status.units_dropped, status.retransmits), (40, 0, 0));
    }
}

#[test]
fn sequence_numbers_wrap_without_loss() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    for number in 0..300 {
        let payloads = payloads(number, 256, 60);
        pair.push(&unit(&payloads, u64::from(number), number == 0));
        pair.now += Duration::from_millis(33);
        let received = std::mem::take(&mut pair.packets);
        assert_eq!(received.len(), 256, "unit {number}");
        assert!(received.iter().zip(each(&payloads)).all(|(packet, payload)| packet.payload[..] == *payload));
    }
}

#[test]
fn datagrams_of_a_unit_have_equal_sizes_except_the_last() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    pair.run(Duration::from_millis(100));
    for number in 0..70_u32 {
        let payloads = payloads(number, 29, PAYLOAD_BYTES);
        let mut outbox = Outbox::default();
        let unit = unit(&payloads, u64::from(number), number % 30 == 0);
        pair.viewer.push_access_unit(pair.now, &unit, &mut outbox);
        assert!(outbox.0.iter().all(|(_, bytes)| is_rtp(bytes)));
        let mut sizes: Vec<_> = outbox.0.iter().map(|(_, bytes)| bytes.len()).collect();
        if number == 0 {
            assert!(sizes.remove(0) < 64, "before the first unit, padding measures the delay of the link");
        }
        assert_eq!(sizes.len(), 29);
        assert!(sizes[..28].iter().all(|size| *size == sizes[0]), "{sizes:?}");
        assert!(sizes[28] < sizes[0]);
        pair.run(Duration::from_millis(33));
    }
}

#[test]
fn capture_time_is_sent_with_every_idr_and_every_second() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    send_units(&mut pair, 0, 65, 2);
    let carries: Vec<_> =
        pair.packets.iter().map(|packet| packet.header.ext_vals.abs_capture_time.is_some()).collect();
    assert_eq!(carries[..4], [false, true, false, false], "only the last packet of a unit carries it");
    let units = carries.chunks(2).filter(|unit| unit[1]).count();
    assert!((2..=4).contains(&units), "{units} of 65 units in 2.1 s carry the capture time");
}

#[test]
fn lost_packets_are_requested_and_retransmitted() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    send_units(&mut pair, 0, 5, 10);
    let count = Cell::new(0);
    pair.to_client = Box::new(move |bytes| {
        count.set(count.get() + u32::from(is_rtp(bytes)));
        !(is_rtp(bytes) && count.get().is_multiple_of(10) && count.get() < 200)
    });
    for number in 5..40 {
        let payloads = payloads(number, 10, PAYLOAD_BYTES);
        pair.push(&unit(&payloads, u64::from(number), false));
        pair.run(Duration::from_millis(33));
    }
    pair.run(Duration::from_millis(1_500));
    let mut got: Vec<_> = pair.packets.iter().map(|packet| packet.payload[..8].to_vec()).collect();
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 400, "every packet of 40 units with 10 packets each");
    let status = pair.viewer.status(pair.now);
    assert!(status.retransmits >= 15, "{status:?}");
    assert!(status.nacks > 0, "{status:?}");
}

/// SSRC and sequence number determine the packet index and thus the nonce, so no pair of them may occur twice. No
/// sequence number wraps in this test.
#[test]
fn retransmissions_never_reuse_a_packet_index() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    let sealed = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&sealed);
    let count = Cell::new(0);
    pair.to_client = Box::new(move |bytes| {
        if is_rtp(bytes) {
            seen.borrow_mut().push((bytes[8..12].to_vec(), bytes[2..4].to_vec()));
        }
        count.set(count.get() + 1);
        !is_rtp(bytes) || count.get() % 3 != 0
    });
    send_units(&mut pair, 0, 60, 20);
    pair.run(Duration::from_secs(1));
    assert!(pair.viewer.status(pair.now).retransmits > 100);
    let sealed = sealed.borrow();
    let unique: std::collections::HashSet<_> = sealed.iter().collect();
    assert_eq!(unique.len(), sealed.len());
    let streams: std::collections::HashSet<_> = sealed.iter().map(|(ssrc, _)| ssrc).collect();
    assert_eq!(streams.len(), 2, "one SSRC for the stream, one for its retransmissions");
}

#[test]
fn receiver_reports_give_round_trip_jitter_and_loss() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    // Receiver reports are sent at random times (RFC 3550 section 6.3.1), so units are sent until the reports have
    // arrived.
    let mut sent = 0;
    let mut send_until = |pair: &mut Pair, is_reported: fn(&ViewerStatus) -> bool| {
        let end = sent + 3_000;
        while !is_reported(&pair.viewer.status(pair.now)) {
            assert!(sent < end, "{:?}", pair.viewer.status(pair.now));
            send_units(pair, sent, 150, 5);
            sent += 150;
        }
    };
    send_until(&mut pair, |status| status.rtt_ms.is_some() && status.jitter_ms.is_some());
    let mut count = 0;
    let rtx = rtx_ssrc(&pair.answer);
    pair.to_client = Box::new(move |bytes| {
        count += 1;
        !is_rtp(bytes) || (count % 4 != 0 && bytes[8..12] != rtx)
    });
    send_until(&mut pair, |status| status.loss_fraction.is_some_and(|loss| loss > 0.01));
}

#[test]
fn pli_and_fir_are_reported_once_each() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    send_units(&mut pair, 0, 3, 3);
    assert_eq!(pair.viewer.poll_idr_reason(), None);
    let mid = pair.mid;
    for kind in [KeyframeRequestKind::Pli, KeyframeRequestKind::Fir] {
        pair.client.direct_api().stream_rx_by_mid(mid, None).unwrap().request_keyframe(kind);
        pair.run(Duration::from_millis(100));
        assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Request), "{kind:?}");
        assert_eq!(pair.viewer.poll_idr_reason(), None, "reported once");
    }
    assert_eq!(pair.viewer.status(pair.now).plis, 2);
}

#[test]
fn units_before_the_first_idr_or_after_a_gap_are_not_sent() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    let payloads = payloads(0, 2, PAYLOAD_BYTES);
    pair.push(&unit(&payloads, 0, false));
    assert_eq!(pair.packets.len(), 0);
    pair.push(&unit(&payloads, 1, true));
    let mut after_gap = unit(&payloads, 3, false);
    after_gap.info.gap_before = true;
    pair.push(&after_gap);
    pair.push(&unit(&payloads, 4, false));
    assert_eq!(pair.packets.len(), 2);
    pair.push(&unit(&payloads, 5, true));
    assert_eq!(pair.packets.len(), 4);
    let status = pair.viewer.status(pair.now);
    assert_eq!((status.units_sent, status.units_dropped, status.drops_to_idr), (2, 2, 1));
}

#[test]
fn congested_viewer_drops_to_the_next_idr_and_is_counted() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    let payloads = payloads(0, 2, PAYLOAD_BYTES);
    pair.push(&unit(&payloads, 0, true));
    pair.viewer.note_congestion(100_000);
    pair.push(&unit(&payloads, 1, false));
    pair.viewer.note_congestion(0);
    pair.push(&unit(&payloads, 2, false));
    assert_eq!(pair.packets.len(), 2);
    pair.push(&unit(&payloads, 3, true));
    assert_eq!(pair.packets.len(), 4);
    assert_eq!(pair.viewer.status(pair.now).drops_to_idr, 1);
}

#[test]
fn close_sends_close_notify() {
    for version in [DtlsVersion::Dtls12, DtlsVersion::Dtls13] {
        let mut pair = connected(SrtpChoice::Cm, version);
        pair.viewer.close(pair.now, CloseReason::Local);
        pair.settle();
        assert_eq!(pair.closed, Some(CloseReason::Local));
        assert!(pair.viewer.is_closed());
        assert!(pair.client_closed, "{version}: close_notify arrived");
    }
}

#[test]
fn close_by_the_browser_ends_the_session_at_once() {
    for version in [DtlsVersion::Dtls12, DtlsVersion::Dtls13] {
        let mut pair = connected(SrtpChoice::Cm, version);
        pair.client.close().unwrap();
        pair.settle();
        assert_eq!(pair.closed, Some(CloseReason::PeerClosed), "{version}");
    }
}

#[test]
fn unfinished_handshake_is_closed_after_ten_seconds() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    let start = pair.now;
    pair.to_viewer = Box::new(|_| false);
    pair.run(Duration::from_millis(9_990));
    assert_eq!(pair.closed, None);
    pair.run(Duration::from_millis(20));
    assert_eq!(pair.closed, Some(CloseReason::NoStun));
    let output = pair.viewer.drain(start, &mut Outbox::default());
    assert_eq!(output, Output::Closed(CloseReason::NoStun));
}

#[test]
fn ice_without_dtls_is_closed_after_ten_seconds() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.to_viewer = Box::new(|bytes| bytes[0] < 2);
    pair.run(Duration::from_millis(10_010));
    assert_eq!(pair.closed, Some(CloseReason::HandshakeTimeout));
}

#[test]
fn handshake_succeeds_despite_packet_loss() {
    for seed in 0..8_u32 {
        let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
        let random = Rc::new(Cell::new(seed.wrapping_mul(2_654_435_761) | 1));
        let fate = move |random: &Cell<u32>| {
            let mut x = random.get();
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            random.set(x);
            !x.is_multiple_of(5)
        };
        let other = Rc::clone(&random);
        pair.to_viewer = Box::new(move |_| fate(&random));
        pair.to_client = Box::new(move |_| fate(&other));
        pair.connect();
    }
}

/// In this test the ClientHello arrives long after the last timeout that DTLS has handled.
#[test]
fn late_handshake_sends_no_flight_twice() {
    for version in [DtlsVersion::Dtls12, DtlsVersion::Auto] {
        let mut pair = Pair::new(&context(SrtpChoice::Gcm), version);
        let is_dtls = |bytes: &[u8]| matches!(bytes.first(), Some(20..=63));
        pair.to_viewer = Box::new(move |bytes| !is_dtls(bytes));
        pair.run(Duration::from_millis(700));
        pair.to_viewer = Box::new(|_| true);
        let flights = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&flights);
        pair.to_client = Box::new(move |bytes| {
            if is_dtls(bytes) {
                seen.borrow_mut().push(bytes.to_vec());
            }
            true
        });
        pair.connect();
        pair.run(Duration::from_millis(300));
        // A repeated flight differs only in its record numbers, so it would show as two large datagrams of equal size.
        let sizes: Vec<usize> = flights.borrow().iter().map(Vec::len).collect();
        let mut large: Vec<usize> = sizes.iter().copied().filter(|size| *size > 100).collect();
        let all = large.len();
        large.sort_unstable();
        large.dedup();
        assert_eq!(large.len(), all, "{version:?}: {sizes:?}");
    }
}

#[test]
fn demultiplexing_follows_ufrag_and_address() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let ufrags = Rc::clone(&seen);
    pair.to_viewer = Box::new(move |bytes| {
        ufrags.borrow_mut().extend(stun_ufrag(bytes).map(str::to_owned));
        true
    });
    assert!(!pair.viewer.accepts_address(client_address()));
    pair.connect();
    assert!(pair.viewer.accepts_address(client_address()));
    assert!(!pair.viewer.accepts_address(server_address()));
    assert!(!seen.borrow().is_empty());
    assert!(seen.borrow().iter().all(|ufrag| ufrag == pair.viewer.local_ufrag()));
}

/// Builds a STUN binding request with the attributes of a browser and an invalid MESSAGE-INTEGRITY.
fn forged_request(username: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let mut attribute = |kind: u16, value: &[u8]| {
        body.extend(kind.to_be_bytes());
        body.extend((value.len() as u16).to_be_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    attribute(0x0006, username.as_bytes());
    attribute(0x0024, &[0, 0, 0, 1]);
    attribute(0x802a, &[1; 8]);
    attribute(0x0025, &[]);
    attribute(0x0008, &[9; 20]);
    let mut bytes = vec![0, 1];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend([0x21, 0x12, 0xa4, 0x42]);
    bytes.extend([3; 12]);
    bytes.extend(body);
    bytes
}

#[test]
fn forged_stun_gets_no_answer_and_adds_no_address() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    let ufrag = pair.viewer.local_ufrag().to_owned();
    let stranger: SocketAddr = "203.0.113.9:5000".parse().unwrap();
    pair.settle();
    for username in [format!("{ufrag}:peer"), "other:peer".to_owned()] {
        let request = forged_request(&username);
        let rejected = pair.viewer.status(pair.now).datagrams_rejected;
        for from in [stranger, client_address()] {
            pair.viewer.handle_datagram(pair.now, None, from, &request);
            let mut outbox = Outbox::default();
            assert!(matches!(pair.viewer.drain(pair.now, &mut outbox), Output::Wait(_)));
            assert_eq!(outbox.0, []);
        }
        assert_eq!(pair.viewer.status(pair.now).datagrams_rejected, rejected + 2);
    }
    assert!(!pair.viewer.accepts_address(stranger));
    send_units(&mut pair, 0, 2, 3);
    assert_eq!(pair.packets.len(), 6, "the viewer is not affected");
}

#[test]
fn two_hundred_unfinished_handshakes_are_all_closed() {
    let context = context(SrtpChoice::Gcm);
    let pair = Pair::new(&context, DtlsVersion::Dtls12);
    let start = pair.now;
    let mut viewers: Vec<_> =
        (0..200).map(|id| Viewer::accept(&context, id, &pair.offer, start).unwrap().0).collect();
    let mut now = start;
    while !viewers.is_empty() {
        let mut outbox = Outbox::default();
        viewers.retain_mut(|viewer| match viewer.drain(now, &mut outbox) {
            Output::Wait(deadline) => deadline > now || now < start + Duration::from_secs(10),
            Output::Closed(reason) => {
                assert_eq!(reason, CloseReason::NoStun);
                false
            }
        });
        assert_eq!(outbox.0, [], "ICE-lite only answers");
        now = viewers
            .iter()
            .map(Viewer::next_deadline)
            .min()
            .unwrap_or(now)
            .max(now + Duration::from_millis(1));
        viewers.iter_mut().for_each(|viewer| viewer.handle_timeout(now));
    }
    assert!(now <= start + Duration::from_secs(11), "{:?}", now - start);
    assert_eq!(
        std::sync::Arc::strong_count(&context) - 1,
        usize::from(true),
        "only the viewer of `pair` is left"
    );
}

#[test]
fn backward_time_is_ignored() {
    let mut pair = connected(SrtpChoice::Gcm, DtlsVersion::Dtls12);
    let before: Instant = pair.now.checked_sub(Duration::from_secs(5)).unwrap();
    let payloads = payloads(0, 3, PAYLOAD_BYTES);
    pair.viewer.handle_timeout(before);
    let mut outbox = Outbox::default();
    pair.viewer.push_access_unit(before, &unit(&payloads, 0, true), &mut outbox);
    pair.deliver(outbox);
    pair.settle();
    assert_eq!(pair.packets.len(), 3);
}
