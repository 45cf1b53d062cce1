//! Tests of a session with a WHIP server in memory: the offer is ours, the answer is foreign, and this side is the
//! controlling ICE agent.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use str0m::media::KeyframeRequestKind;
use streaming_server::base::limits;
use streaming_server::metrics::status::{EndReason, ViewerState};
use streaming_server::session::{AnswerError, CloseReason, IdrReason, SrtpChoice};
use support::session_peer::{Pair, client_address, context, each, payloads, unit};

const SECOND: Duration = Duration::from_secs(1);

fn same(sdp: String) -> String {
    sdp
}

fn connected(is_lite: bool) -> Pair {
    let mut pair = Pair::publishing(&context(SrtpChoice::Gcm), is_lite, same, same).unwrap();
    pair.connect();
    pair
}

fn send_units(pair: &mut Pair, from: u32, count: u32) {
    for number in from..from + count {
        let payloads = payloads(number, 5, 1_100);
        pair.push(&unit(&payloads, u64::from(number), number == from));
        pair.run(Duration::from_millis(33));
    }
}

/// Returns the error of an answer that was changed by `edit`.
fn refusal(edit: impl FnOnce(String) -> String) -> AnswerError {
    match Pair::publishing(&context(SrtpChoice::Gcm), false, same, edit) {
        Ok(pair) => panic!("accepted: {}", pair.answer),
        Err(error) => error,
    }
}

#[test]
fn every_packet_arrives_at_full_and_lite_servers_in_either_dtls_role() {
    for is_lite in [false, true] {
        // If the offer says `actpass`, the WHIP server chooses `passive`. Our side is then the DTLS client.
        for (setup, chosen) in [("actpass", "passive"), ("passive", "active")] {
            let edit = |offer: String| offer.replace("a=setup:actpass", &format!("a=setup:{setup}"));
            let mut pair = Pair::publishing(&context(SrtpChoice::Gcm), is_lite, edit, same).unwrap();
            assert!(pair.answer.contains(&format!("a=setup:{chosen}")), "{}", pair.answer);
            pair.connect();
            send_units(&mut pair, 0, 20);
            assert_eq!(pair.packets.len(), 100, "lite {is_lite}, {setup}: {}", pair.answer);
            for (index, packet) in pair.packets.iter().enumerate() {
                let expected = payloads(u32::try_from(index / 5).unwrap(), 5, 1_100);
                assert_eq!(&packet.payload[..], each(&expected)[index % 5]);
            }
            assert_eq!(pair.viewer.status(pair.now).remote, Some(client_address()));
            assert!(pair.viewer.is_publisher());
        }
    }
}

#[test]
fn consent_is_renewed_by_our_own_requests() {
    // The server sends no STUN request of its own because it is ICE-lite, and no report because no media arrives.
    let mut pair = connected(true);
    pair.run(120 * SECOND);
    assert_eq!(pair.closed, None);
    assert_eq!(pair.viewer.status(pair.now).state, ViewerState::Connected);
}

#[test]
fn silence_of_the_server_ends_the_session_within_seconds() {
    let mut pair = connected(false);
    send_units(&mut pair, 0, 3);
    pair.to_viewer = Box::new(|_| false);
    pair.run(limits::PUBLISHER_SILENCE_MAX + 2 * SECOND);
    assert_eq!(pair.closed, Some(CloseReason::ConsentExpired));
    let ended = pair.viewer.status(pair.now).ended.unwrap();
    assert!(ended.detail.contains("WHIP server"), "{}", ended.detail);
}

#[test]
fn lost_packets_are_retransmitted_and_idr_requests_arrive() {
    let mut pair = connected(false);
    send_units(&mut pair, 0, 3);
    let lost = Rc::new(Cell::new(0));
    let count = Rc::clone(&lost);
    pair.to_client = Box::new(move |bytes| {
        let is_lost = bytes.len() > 1_000 && count.get() < 2;
        count.set(count.get() + u32::from(is_lost));
        !is_lost
    });
    send_units(&mut pair, 3, 30);
    assert_eq!(lost.get(), 2);
    let mut numbers: Vec<u16> = pair.packets.iter().map(|packet| packet.header.sequence_number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 33 * 5, "every packet has arrived");
    assert_eq!(pair.viewer.status(pair.now).retransmits, 2);
    while pair.viewer.poll_idr_reason().is_some() {}
    let mid = pair.mid;
    let mut api = pair.client.direct_api();
    api.stream_rx_by_mid(mid, None).unwrap().request_keyframe(KeyframeRequestKind::Pli);
    pair.run(SECOND);
    assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Request));
}

#[test]
fn candidates_that_never_answer_get_a_bounded_number_of_requests() {
    let many: String =
        (1..=40).map(|n| format!("a=candidate:{n} 1 udp {n} 203.0.113.{n} 9 typ host\r\n")).collect();
    let edit = |answer: String| answer.replacen("a=mid:", &format!("{many}a=mid:"), 1);
    let mut pair = Pair::publishing(&context(SrtpChoice::Gcm), false, same, edit).unwrap();
    pair.to_client = Box::new(|_| false);
    pair.to_viewer = Box::new(|_| false);
    pair.run(limits::HANDSHAKE_TIMEOUT + SECOND);
    assert_eq!(pair.closed, Some(CloseReason::NoStun));
    let ended = pair.viewer.status(pair.now).ended.unwrap();
    assert_eq!(ended.reason, EndReason::NoStun);
    assert!(ended.detail.contains("WHIP server's answer"), "{}", ended.detail);
    let mut addresses: Vec<_> = pair.astray.iter().map(|(to, _)| *to).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert!(addresses.len() < limits::VIEWER_PATHS_MAX + 1, "{}", addresses.len());
    let requests_max = usize::try_from(limits::CANDIDATE_CHECKS_MAX).unwrap() * limits::VIEWER_PATHS_MAX;
    let sent = pair.astray.len() + pair.sent_sizes.len();
    assert!((1..=requests_max).contains(&sent), "{sent} requests");
    let bytes_max = limits::CANDIDATE_CREDIT_BYTES * limits::UNPROVEN_FACTOR;
    let to_one: usize = pair.sent_sizes.iter().sum();
    assert!(to_one <= bytes_max, "{to_one} bytes to one address");
}

#[test]
fn a_second_candidate_is_used_if_the_first_does_not_answer() {
    let edit = |answer: String| {
        let dead = "a=candidate:9 1 udp 2130706431 203.0.113.9 9 typ host\r\n";
        answer.replacen("a=mid:", &format!("{dead}a=mid:"), 1)
    };
    let mut pair = Pair::publishing(&context(SrtpChoice::Gcm), false, same, edit).unwrap();
    pair.connect();
    send_units(&mut pair, 0, 3);
    assert_eq!(pair.packets.len(), 15);
    assert!(!pair.astray.is_empty(), "the dead candidate was tried");
}

#[test]
fn requests_from_elsewhere_do_not_move_the_media() {
    let mut pair = connected(false);
    send_units(&mut pair, 0, 3);
    // The server's datagrams now come from another address, as if a third host passed them on. Nothing arrives there.
    pair.seen_as = "203.0.113.66:4000".parse().unwrap();
    pair.to_client = Box::new(|_| false);
    pair.run(4 * SECOND);
    pair.sent_sizes.clear();
    pair.astray.clear();
    pair.packets.clear();
    let payloads = payloads(9, 5, 1_100);
    pair.push(&unit(&payloads, 9, true));
    assert!(pair.astray.iter().all(|(to, _)| *to == client_address()), "media goes to the proven address");
    assert!(!pair.astray.is_empty() && pair.sent_sizes.is_empty());
}

#[test]
fn stop_says_goodbye() {
    let mut pair = connected(false);
    send_units(&mut pair, 0, 2);
    pair.viewer.close(pair.now, CloseReason::Local);
    pair.run(SECOND);
    assert!(pair.client_closed && pair.closed == Some(CloseReason::Local));
}

#[test]
fn unusable_answers_are_refused_with_a_reason() {
    let line = |answer: &str, start: &str| {
        let found =
            answer.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}"));
        format!("{found}\r\n")
    };
    let without = |start: &'static str| {
        move |answer: String| {
            let kept = answer.split_inclusive("\r\n").filter(|line| !line.starts_with(start));
            kept.collect::<String>()
        }
    };
    let candidate = |text: &'static str| {
        move |answer: String| {
            let old = line(&answer, "a=candidate:");
            answer.replace(&old, text)
        }
    };
    let cases: Vec<(&str, AnswerError)> = vec![
        ("not SDP", refusal(|_| "<html>no</html>".to_owned())),
        ("longer than", refusal(|answer| answer + &"a=x\r\n".repeat(1 << 20))),
        ("no m-line", refusal(|_| "v=0\r\n".to_owned())),
        ("2 m-lines", refusal(|answer| answer + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n")),
        ("port 0", refusal(|answer| answer.replace("m=video 9", "m=video 0"))),
        ("sendonly or inactive", refusal(|answer| answer.replace("a=recvonly", "a=sendonly"))),
        ("sendonly or inactive", refusal(|answer| answer.replace("a=recvonly", "a=inactive"))),
        ("H264/90000", refusal(|answer| answer.replace("H264/90000", "VP8/90000"))),
        (
            "packetization-mode",
            refusal(|answer| answer.replace("packetization-mode=1", "packetization-mode=0")),
        ),
        ("a=setup", refusal(|answer| answer.replace("a=setup:passive", "a=setup:actpass"))),
        ("ice-pwd", refusal(without("a=ice-pwd"))),
        ("ice-ufrag", refusal(without("a=ice-ufrag"))),
        ("fingerprint", refusal(without("a=fingerprint"))),
        ("no a=candidate", refusal(without("a=candidate"))),
        (
            "relay",
            refusal(candidate("a=candidate:1 1 udp 1 203.0.113.1 9 typ relay raddr 0.0.0.0 rport 0\r\n")),
        ),
        ("TCP", refusal(candidate("a=candidate:1 1 tcp 1 203.0.113.1 9 typ host tcptype passive\r\n"))),
        ("host names", refusal(candidate("a=candidate:1 1 udp 1 x.local 9 typ host\r\n"))),
        ("family", refusal(candidate("a=candidate:1 1 udp 1 2001:db8::1 9 typ host\r\n"))),
        ("cannot be read", refusal(candidate("a=candidate:1 1 udp 1 224.0.0.1 9 typ host\r\n"))),
        ("cannot be read", refusal(candidate("a=candidate:1 1 udp 1 203.0.113.1 0 typ host\r\n"))),
        ("cannot be read", refusal(candidate("a=candidate:rubbish\r\n"))),
    ];
    for (part, error) in cases {
        assert!(error.to_string().contains(part), "`{part}` is not in `{error}`");
    }
}
