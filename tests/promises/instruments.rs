//! Tests of tests/support: the viewer simulator, the relay and the counts must report exactly what was sent, including
//! every fault. The sender is a plain str0m instance, not the server under test.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use str0m::change::SdpOffer;
use str0m::media::Mid;
use str0m::net::{Protocol, Receive};
use str0m::rtp::RtpWrite;
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};
use streaming_server::h264::{Stamp, crc32_of_slices};
use support::account::{Account, Arrived};
use support::metrics::Metrics;
use support::monotonic_ns;
use support::random::Random;
use support::relay::{LossyRelay, Weather, rewrite_answer};
use support::viewer::Offer;

// ---- RTP packets of units as a camera makes them --------------------------------------------------------

fn slice(unit_number: u64, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0x60 | kind];
    bytes.extend(Random::new(unit_number).bytes(3000));
    bytes
}

/// Returns the RTP payloads of one unit: one STAP-A with the small NAL units, then FU-As with the slice. A `crc_error`
/// other than 0 makes the checksum in the stamp wrong.
fn payloads(unit_number: u64, crc_error: u32) -> Vec<Vec<u8>> {
    let idr = unit_number.is_multiple_of(10);
    let slice = slice(unit_number, if idr { 5 } else { 1 });
    let slices_crc32 = crc32_of_slices([slice.as_slice()].into_iter()) ^ crc_error;
    let mut stamp = Vec::new();
    Stamp { unit_number, published_monotonic_ns: monotonic_ns(), slices_crc32 }.write(&mut stamp);
    let mut small = vec![stamp];
    if idr {
        small.splice(0..0, [vec![0x67, 66, 0, 31], vec![0x68, 1]]);
    }
    let mut first = vec![24];
    for nal in small {
        first.extend((nal.len() as u16).to_be_bytes());
        first.extend(nal);
    }
    let mut out = vec![first];
    let parts: Vec<&[u8]> = slice[1..].chunks(1000).collect();
    for (index, part) in parts.iter().enumerate() {
        let start = if index == 0 { 0x80 } else { 0 };
        let end = if index + 1 == parts.len() { 0x40 } else { 0 };
        out.push([&[0x60 | 28, start | end | (slice[0] & 0x1F)], *part].concat());
    }
    out
}

fn push_unit(account: &mut Account, sequence: &mut u64, unit_number: u64, crc_error: u32) {
    let payloads = payloads(unit_number, crc_error);
    let last = payloads.len() - 1;
    for (index, payload) in payloads.into_iter().enumerate() {
        let rtp_time = (*sequence / 4) as u32 * 3000;
        account.push(*sequence, Arrived { payload, marker: index == last, rtp_time, at_ns: monotonic_ns() });
        *sequence += 1;
    }
}

// ---- a sender made of str0m ------------------------------------------------------------------------------

struct Sender {
    address: SocketAddr,
    answer: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    fn answer(offer_sdp: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let address = socket.local_addr().unwrap();
        let config = RtcConfig::new().set_ice_lite(true).set_rtp_mode(true).clear_extension_map();
        let mut rtc = config.build(Instant::now());
        rtc.add_local_candidate(Candidate::host(address, "udp").unwrap());
        let offer = SdpOffer::from_sdp_string(offer_sdp).unwrap();
        let answer = rtc.sdp_api().accept_offer(offer).unwrap().to_sdp_string();
        let stop = Arc::new(AtomicBool::new(false));
        let mid = answer.lines().find_map(|line| line.strip_prefix("a=mid:")).unwrap();
        let (mid, stopped) = (Mid::from(mid.trim()), Arc::clone(&stop));
        let thread = thread::spawn(move || send(rtc, mid, &socket, &stopped));
        Self { address, answer, stop, thread: Some(thread) }
    }

    fn close(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn send(mut rtc: Rtc, mid: Mid, socket: &UdpSocket, stop: &AtomicBool) {
    let local = socket.local_addr().unwrap();
    let mut buffer = [0; 2048];
    let (mut connected, mut closing) = (false, false);
    let (mut sequence, mut unit_number, mut next_unit) = (1000_u64, 0_u64, Instant::now());
    while rtc.is_alive() {
        if connected && !closing && Instant::now() >= next_unit {
            write_unit(&mut rtc, mid, unit_number, &mut sequence);
            unit_number += 1;
            next_unit += Duration::from_millis(10);
        }
        if stop.load(Ordering::Relaxed) && !closing {
            closing = true;
            rtc.close().unwrap();
        }
        loop {
            match rtc.poll_output().unwrap() {
                Output::Timeout(_) => break,
                Output::Transmit(t) => drop(socket.send_to(&t.contents, t.destination)),
                Output::Event(Event::Connected) => (connected, next_unit) = (true, Instant::now()),
                Output::Event(_) => {}
            }
        }
        let now = Instant::now();
        let input = match socket.recv_from(&mut buffer) {
            Ok((count, from)) => match Receive::new(Protocol::Udp, from, local, &buffer[..count]) {
                Ok(receive) => Input::Receive(now, receive),
                Err(_) => Input::Timeout(now),
            },
            Err(_) => Input::Timeout(now),
        };
        rtc.handle_input(input).unwrap();
    }
}

fn write_unit(rtc: &mut Rtc, mid: Mid, unit_number: u64, sequence: &mut u64) {
    let pt = rtc.media(mid).unwrap().remote_pts()[0];
    let payloads = payloads(unit_number, 0);
    let last = payloads.len() - 1;
    for (index, payload) in payloads.into_iter().enumerate() {
        let rtp_time = unit_number as u32 * 900;
        let write = RtpWrite::new(pt, (*sequence).into(), rtp_time, Instant::now(), payload)
            .marker(index == last)
            .nackable(true);
        let mut api = rtc.direct_api();
        api.stream_tx_by_mid(mid, None).unwrap().write_rtp(write);
        *sequence += 1;
    }
}

// ---- tests -----------------------------------------------------------------------------------------------

#[test]
fn a_clean_stream_counts_no_fault() {
    let (mut account, mut sequence) = (Account::default(), 0);
    (0..30).for_each(|unit_number| push_unit(&mut account, &mut sequence, unit_number, 0));
    account.report.assert_perfect("a clean stream");
    assert_eq!((account.report.units, account.report.idrs), (30, 3));
}

#[test]
fn missing_duplicated_reordered_torn_and_restarted_units_are_counted() {
    let (mut account, mut sequence) = (Account::default(), 0);
    for unit_number in [0, 1, 4, 4] {
        push_unit(&mut account, &mut sequence, unit_number, 0);
    }
    push_unit(&mut account, &mut sequence, 5, 1);
    push_unit(&mut account, &mut sequence, 0, 0);
    let report = &account.report;
    assert_eq!((report.missing, report.duplicated, report.torn, report.restarts), (2, 1, 1, 1));
    assert_eq!(report.units, 6);
    let (mut account, mut sequence) = (Account::default(), 0);
    push_unit(&mut account, &mut sequence, 3, 0);
    assert!(account.report.began_without_idr);
}

#[test]
fn a_late_packet_is_awaited_and_a_lost_one_is_counted() {
    let mut account = Account::default();
    let packets: Vec<Vec<u8>> = (0..3).flat_map(|unit_number| payloads(unit_number, 0)).collect();
    let arrived = |sequence: usize, at_ns| Arrived {
        payload: packets[sequence].clone(),
        marker: sequence % 4 == 3,
        rtp_time: (sequence / 4) as u32,
        at_ns,
    };
    for sequence in [0, 2, 1, 3, 5, 6, 7, 8, 9, 10] {
        account.push(sequence as u64, arrived(sequence, 0));
    }
    assert_eq!(account.report.units, 1, "the second unit waits for its first packet");
    account.push(11, arrived(11, 2_000_000_000));
    assert_eq!((account.report.lost_packets, account.report.units, account.report.missing), (1, 2, 1));
    account.push(4, arrived(4, 2_000_000_000));
    assert_eq!(account.report.late_packets, 1);
}

#[test]
fn samples_are_found_by_name_and_labels() {
    let metrics = Metrics::parse("# HELP a b\na_total 3\nb{c=\"d\",e=\"f\"} 1.5\nb{c=\"x\"} 2\n");
    assert_eq!(metrics.value("a_total", &[]), Some(3.0));
    assert_eq!(metrics.value("b", &[("c", "d")]), Some(1.5));
    assert_eq!(metrics.value("b", &[]), Some(3.5));
    assert_eq!(metrics.value("missing", &[]), None);
}

#[test]
fn rewriting_an_answer_changes_only_the_candidates() {
    let sdp =
        "v=0\r\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\r\na=x\r\na=candidate:2 1 udp 1 ::1 5 typ host\r\n";
    let rewritten = rewrite_answer(sdp, "127.0.0.1:9".parse().unwrap());
    assert_eq!(rewritten, "v=0\r\na=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\na=x\r\n");
}

#[test]
fn a_relay_loses_its_share_and_delivers_the_rest() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let weather =
        Weather { seed: 7, loss_percent: 50.0, delay: Duration::from_millis(3), reorder_percent: 10.0 };
    let relay = LossyRelay::start(server.local_addr().unwrap(), weather);
    let viewer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..200_u8 {
        viewer.send_to(&[number], relay.address).unwrap();
    }
    let mut buffer = [0; 16];
    let mut arrived = 0;
    while server.recv_from(&mut buffer).is_ok() {
        arrived += 1;
    }
    assert_eq!(arrived + relay.lost(), 200);
    assert!((60..140).contains(&arrived), "{arrived} of 200 at 50 % loss");
}

#[test]
fn a_viewer_receives_every_unit_and_the_close_notify() {
    let offer = Offer::create();
    let sender = Sender::answer(&offer.sdp);
    let viewer = offer.watch(&sender.answer);
    viewer.wait_units(100);
    viewer.report().assert_perfect("a viewer of a bare sender");
    sender.close();
    support::wait_until("the close_notify", || viewer.report().got_close_notify);
}

#[test]
fn a_viewer_behind_a_lossy_relay_is_repaired() {
    let offer = Offer::create();
    let sender = Sender::answer(&offer.sdp);
    let weather =
        Weather { seed: 5, loss_percent: 5.0, delay: Duration::from_millis(15), reorder_percent: 1.0 };
    let relay = LossyRelay::start(sender.address, weather);
    let viewer = offer.watch(&rewrite_answer(&sender.answer, relay.address));
    viewer.wait_units(300);
    let report = viewer.leave();
    assert!(relay.lost() > 20, "{} lost", relay.lost());
    assert_eq!(report.torn + report.duplicated + report.reordered, 0, "{report:?}");
    assert!(report.missing * 20 <= report.units, "missing {} of {}", report.missing, report.units);
}
