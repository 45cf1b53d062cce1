//! Tests of a viewer that needs an IDR in the middle of a GOP. Either the units of the GOP so far are replayed, or the
//! viewer waits for the next IDR. The viewer must be able to decode every unit that it gets. The tests run in memory on
//! a fake clock.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use support::session_peer as peer;

use std::cell::Cell;
use std::time::Duration;

use peer::{Outbox, Pair, context, payloads, unit};
use proptest::prelude::*;
use str0m::config::DtlsVersion;
use str0m::media::KeyframeRequestKind;
use streaming_server::base::limits;
use streaming_server::session::{CatchUpDecision, GopAvailability, GopSize, IdrReason, SrtpChoice};

const PACKETS: usize = 3;
const NO_GOP: GopAvailability =
    GopAvailability { gop: None, begins_at_recovery_point: false, next_idr_in: None };
const INTERVAL: Duration = Duration::from_millis(33);

/// Returns the availability that a worker with a GOP of `packets` RTP packets reports.
fn with_gop(packets: usize) -> GopAvailability {
    let gop = GopSize { units: packets / PACKETS, packets, bytes: packets * 900 };
    GopAvailability { gop: Some(gop), ..NO_GOP }
}

fn connected() -> Pair {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    pair
}

/// Pushes unit `number` as a live unit.
fn live(pair: &mut Pair, number: u32, is_idr: bool) {
    let payloads = payloads(number, PACKETS, 900);
    pair.push(&unit(&payloads, u64::from(number), is_idr));
}

/// Pushes unit `number` as part of a replay. The newest unit of the GOP is `newest`.
fn replay(pair: &mut Pair, number: u32, newest: u32, is_idr: bool, packets: usize) {
    let payloads = payloads(number, packets, 900);
    let behind = u64::from(newest - number);
    let mut unit = unit(&payloads, u64::from(number), is_idr);
    unit.info.rtp_time_90k = u64::from(newest) * 3_000 - behind;
    let mut outbox = Outbox::default();
    pair.viewer.push_catch_up_unit(pair.now, &unit, pair.now, number == newest, &mut outbox);
    pair.deliver(outbox);
    pair.settle();
}

/// Replays the units from `idr` to `newest` to a viewer that has just joined, as the worker does.
fn join(pair: &mut Pair, idr: u32, newest: u32) {
    assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Join));
    let gop = with_gop(PACKETS * (newest - idr + 1) as usize);
    assert_eq!(pair.viewer.decide_catch_up(pair.now, IdrReason::Join, gop), CatchUpDecision::Replay);
    for number in idr..=newest {
        replay(pair, number, newest, number == idr, PACKETS);
    }
    pair.viewer.end_catch_up(true);
}

/// Returns the numbers of the received units, read from their payloads.
fn received(pair: &Pair) -> Vec<u32> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
    let numbers: Vec<u32> = pair.packets.iter().map(|packet| number(&packet.payload)).collect();
    numbers.chunk_by(|a, b| a == b).map(|unit| unit[0]).collect()
}

fn times(pair: &Pair) -> Vec<u32> {
    let all: Vec<u32> = pair.packets.iter().map(|packet| packet.header.timestamp).collect();
    all.chunk_by(|a, b| a == b).map(|unit| unit[0]).collect()
}

fn request_idr(pair: &mut Pair) -> IdrReason {
    let mid = pair.mid;
    let stream = pair.client.direct_api();
    let mut stream = stream;
    stream.stream_rx_by_mid(mid, None).unwrap().request_keyframe(KeyframeRequestKind::Pli);
    pair.run(Duration::from_millis(10));
    pair.viewer.poll_idr_reason().expect("the PLI arrived")
}

#[test]
fn joining_viewer_gets_the_gop_so_far_and_then_live_units() {
    let mut pair = connected();
    join(&mut pair, 300, 449);
    for number in 450..460 {
        pair.run(INTERVAL);
        live(&mut pair, number, false);
    }
    assert_eq!(received(&pair), (300..460).collect::<Vec<_>>());
    let status = pair.viewer.status(pair.now);
    assert_eq!((status.units_sent, status.units_replayed, status.replays), (160, 150, 1));
    assert_eq!((status.units_dropped, status.drops_to_idr), (0, 0));
    assert!(status.first_idr_ms.is_some());
    assert_eq!(pair.viewer.poll_idr_reason(), None);
}

#[test]
fn rtp_times_of_replayed_units_lie_just_before_the_newest_unit() {
    let mut pair = connected();
    join(&mut pair, 300, 449);
    for number in 450..453 {
        pair.run(INTERVAL);
        live(&mut pair, number, false);
    }
    let times = times(&pair);
    let steps: Vec<u32> = times.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert_eq!(steps[..149], [1; 149], "replayed units play at once");
    assert_eq!(steps[149..], [3_000; 3], "live units keep their own time");
    // The RTP times of replayed units are compressed, so the last packet of each unit must carry the capture time.
    let carries = |index: usize| pair.packets[index].header.ext_vals.abs_capture_time.is_some();
    assert!((1..=150).all(|unit| carries(unit * PACKETS - 1)));
}

#[test]
fn live_units_are_ignored_during_a_replay() {
    let mut pair = connected();
    pair.viewer.poll_idr_reason();
    pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(12));
    replay(&mut pair, 0, 2, true, PACKETS);
    live(&mut pair, 3, false);
    replay(&mut pair, 1, 3, false, PACKETS);
    replay(&mut pair, 2, 3, false, PACKETS);
    replay(&mut pair, 3, 3, false, PACKETS);
    pair.viewer.end_catch_up(true);
    live(&mut pair, 4, false);
    assert_eq!(received(&pair), [0, 1, 2, 3, 4]);
    assert!(times(&pair).is_sorted_by(|a, b| b.wrapping_sub(*a) as i32 > 0));
}

#[test]
fn live_idr_ends_a_replay() {
    let mut pair = connected();
    pair.viewer.poll_idr_reason();
    pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(30));
    replay(&mut pair, 0, 9, true, PACKETS);
    live(&mut pair, 10, true);
    assert!(!pair.viewer.is_catching_up());
    replay(&mut pair, 1, 10, false, PACKETS);
    live(&mut pair, 11, false);
    assert_eq!(received(&pair), [0, 10, 11]);
    assert_eq!(pair.viewer.status(pair.now).drops_to_idr, 0);
}

#[test]
fn abandoned_replay_drops_to_the_next_idr() {
    let mut pair = connected();
    pair.viewer.poll_idr_reason();
    pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(30));
    replay(&mut pair, 0, 9, true, PACKETS);
    pair.viewer.end_catch_up(false);
    live(&mut pair, 10, false);
    replay(&mut pair, 1, 10, false, PACKETS);
    live(&mut pair, 11, true);
    live(&mut pair, 12, false);
    assert_eq!(received(&pair), [0, 11, 12]);
    assert_eq!(pair.viewer.status(pair.now).drops_to_idr, 1);
}

#[test]
fn joining_viewer_without_a_gop_waits_for_the_next_idr() {
    let mut pair = connected();
    assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Join));
    assert_eq!(pair.viewer.decide_catch_up(pair.now, IdrReason::Join, NO_GOP), CatchUpDecision::WaitForIdr);
    for _ in 0..3 {
        assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Join));
        let decision = pair.viewer.decide_catch_up(pair.now, IdrReason::Join, NO_GOP);
        assert_eq!(decision, CatchUpDecision::StillWaiting);
        live(&mut pair, 7, false);
    }
    assert_eq!(received(&pair), [0; 0]);
    let reason = request_idr(&mut pair);
    assert_eq!(
        pair.viewer.decide_catch_up(pair.now, reason, NO_GOP),
        CatchUpDecision::WaitForIdr,
        "the viewer asked again, so the camera is asked again"
    );
    live(&mut pair, 8, true);
    assert_eq!(received(&pair), [8]);
    assert_eq!(pair.viewer.poll_idr_reason(), None);
}

#[test]
fn waiting_viewer_gets_a_gop_that_is_found_after_it_joined() {
    let mut pair = connected();
    assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Join));
    assert_eq!(pair.viewer.decide_catch_up(pair.now, IdrReason::Join, NO_GOP), CatchUpDecision::WaitForIdr);
    live(&mut pair, 20, false);
    join(&mut pair, 5, 21);
    live(&mut pair, 22, false);
    assert_eq!(received(&pair), (5..=22).collect::<Vec<_>>());
}

#[test]
fn viewer_that_cannot_start_at_a_recovery_point_waits_for_the_next_idr() {
    let mut pair = connected();
    let recovering = GopAvailability { begins_at_recovery_point: true, ..with_gop(9) };
    assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Join));
    assert_eq!(pair.viewer.decide_catch_up(pair.now, IdrReason::Join, recovering), CatchUpDecision::Replay);
    let mut first = |number: u32| {
        let payloads = payloads(number, PACKETS, 900);
        let mut unit = unit(&payloads, u64::from(number), false);
        unit.info.is_recovery_point = number == 0;
        let mut outbox = Outbox::default();
        pair.viewer.push_catch_up_unit(pair.now, &unit, pair.now, number == 2, &mut outbox);
        pair.deliver(outbox);
        pair.settle();
    };
    (0..3).for_each(&mut first);
    pair.viewer.end_catch_up(true);
    live(&mut pair, 3, false);
    assert_eq!(received(&pair), [0, 1, 2, 3]);
    assert!(!pair.viewer.waits_for_idr());
    let reason = request_idr(&mut pair);
    assert_eq!(pair.viewer.decide_catch_up(pair.now, reason, recovering), CatchUpDecision::WaitForIdr);
    assert!(pair.viewer.waits_for_idr(), "a browser, which needs an IDR");
    live(&mut pair, 4, true);
    assert!(!pair.viewer.waits_for_idr());
}

#[test]
fn viewer_whose_first_replay_was_lost_before_its_idr_joins_again() {
    let mut pair = connected();
    assert_eq!(pair.viewer.poll_idr_reason(), Some(IdrReason::Join));
    assert_eq!(pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(9)), CatchUpDecision::Replay);
    pair.viewer.end_catch_up(false);
    join(&mut pair, 5, 9);
    assert_eq!(received(&pair), (5..=9).collect::<Vec<_>>());
}

#[test]
fn unconnected_viewer_needs_no_idr() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    assert_eq!(pair.viewer.poll_idr_reason(), None);
}

#[test]
fn idr_request_is_answered_by_a_replay_unless_an_idr_is_recent_or_near() {
    let mut pair = connected();
    live(&mut pair, 0, true);
    let reason = request_idr(&mut pair);
    assert_eq!(reason, IdrReason::Request);
    assert_eq!(
        pair.viewer.decide_catch_up(pair.now, reason, with_gop(3)),
        CatchUpDecision::AlreadySent,
        "an IDR was just sent"
    );
    pair.run(Duration::from_secs(1));
    let near = GopAvailability { next_idr_in: Some(Duration::from_millis(100)), ..with_gop(93) };
    assert_eq!(pair.viewer.decide_catch_up(pair.now, reason, near), CatchUpDecision::WaitForIdr);
    assert_eq!(pair.viewer.decide_catch_up(pair.now, reason, NO_GOP), CatchUpDecision::WaitForIdr);
    let far = GopAvailability { next_idr_in: Some(Duration::from_secs(3)), ..with_gop(93) };
    assert_eq!(pair.viewer.decide_catch_up(pair.now, reason, far), CatchUpDecision::Replay);
    assert_eq!(
        pair.viewer.decide_catch_up(pair.now, reason, far),
        CatchUpDecision::AlreadySent,
        "the replay is in progress"
    );
    for number in 0..=30 {
        replay(&mut pair, number, 30, number == 0, PACKETS);
    }
    pair.viewer.end_catch_up(true);
    pair.run(Duration::from_millis(500));
    assert_eq!(
        pair.viewer.decide_catch_up(pair.now, reason, far),
        CatchUpDecision::WaitForIdr,
        "at most one replay starts within two seconds"
    );
    pair.run(limits::REPLAY_INTERVAL);
    assert_eq!(pair.viewer.decide_catch_up(pair.now, reason, far), CatchUpDecision::Replay);
    assert!(times(&pair).is_sorted_by(|a, b| b.wrapping_sub(*a) as i32 > 0), "RTP time never goes back");
}

#[test]
fn congested_viewer_gets_no_replay() {
    let mut pair = connected();
    live(&mut pair, 0, true);
    pair.run(Duration::from_secs(1));
    pair.viewer.note_congestion(limits::VIEWER_IN_FLIGHT_MAX + 1);
    live(&mut pair, 1, false);
    pair.viewer.note_congestion(0);
    let reason = request_idr(&mut pair);
    assert_eq!(pair.viewer.decide_catch_up(pair.now, reason, with_gop(3)), CatchUpDecision::WaitForIdr);
}

#[test]
fn replay_skips_non_reference_units_except_the_newest() {
    let mut pair = connected();
    pair.viewer.poll_idr_reason();
    pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(12));
    for number in 0..4 {
        let payloads = payloads(number, PACKETS, 900);
        let mut unit = unit(&payloads, u64::from(number), number == 0);
        unit.info.is_reference = number == 0;
        unit.info.rtp_time_90k = u64::from(number);
        let mut outbox = Outbox::default();
        pair.viewer.push_catch_up_unit(pair.now, &unit, pair.now, number == 3, &mut outbox);
        pair.deliver(outbox);
        pair.settle();
    }
    pair.viewer.end_catch_up(true);
    assert_eq!(received(&pair), [0, 3]);
    assert_eq!(pair.viewer.status(pair.now).drops_to_idr, 0);
}

/// Makes the network lose every `every`th RTP packet, up to packet number `until`.
fn lose(pair: &mut Pair, every: u32, until: u32) {
    let count = Cell::new(0_u32);
    pair.to_client = Box::new(move |bytes| {
        let is_rtp = matches!(bytes[..], [128..=191, second, ..] if !(192..=223).contains(&second));
        count.set(count.get() + u32::from(is_rtp));
        !(is_rtp && count.get().is_multiple_of(every) && count.get() <= until)
    });
}

/// Returns the number of different packets that the browser has received.
fn unique(pair: &Pair) -> usize {
    pair.packets.iter().map(|packet| packet.seq_no).collect::<std::collections::BTreeSet<_>>().len()
}

#[test]
fn packets_lost_in_and_after_a_replay_are_retransmitted() {
    let mut pair = connected();
    lose(&mut pair, 50, 400);
    pair.viewer.poll_idr_reason();
    pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(2 * limits::RTX_CACHE_PACKETS));
    for number in 0..50 {
        replay(&mut pair, number, 49, number == 0, 10);
        pair.run(Duration::from_millis(20));
    }
    pair.viewer.end_catch_up(true);
    for number in 50..90 {
        pair.run(INTERVAL);
        live(&mut pair, number, false);
    }
    assert_eq!(unique(&pair), 500 + 40 * PACKETS, "every packet arrived");
    assert!(pair.viewer.status(pair.now).retransmits >= 8);
    // An IDR a second later restores the usual cache size. Packets lost after it must still be retransmitted.
    live(&mut pair, 90, true);
    pair.packets.clear();
    lose(&mut pair, 5, 5);
    for number in 91..120 {
        pair.run(INTERVAL);
        live(&mut pair, number, false);
    }
    assert_eq!(unique(&pair), 29 * PACKETS);
}

/// Returns RTP time minus NTP time of each sender report, in seconds. A receiver dates a unit with this difference.
fn report_offsets(pair: &Pair) -> Vec<f64> {
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    };
    let infos = pair.packets.iter().filter_map(|packet| packet.last_sender_info);
    infos.map(|info| info.rtp_time.as_seconds() - seconds(info.ntp_time)).collect()
}

#[test]
fn sender_reports_agree_during_and_after_a_replay() {
    let mut pair = connected();
    pair.viewer.poll_idr_reason();
    pair.viewer.decide_catch_up(pair.now, IdrReason::Join, with_gop(900));
    let mut newest = 299;
    // This replay is slow: it sends ten seconds of units in two seconds, so that sender reports are sent during the
    // replay.
    for number in 0..300 {
        replay(&mut pair, number, newest, number == 0, PACKETS);
        if number % 5 == 4 {
            pair.run(Duration::from_nanos(33_333_333));
            newest += 1;
        }
    }
    for number in 300..=newest {
        replay(&mut pair, number, newest, false, PACKETS);
    }
    pair.viewer.end_catch_up(true);
    for number in newest + 1..newest + 200 {
        pair.run(Duration::from_nanos(33_333_333));
        live(&mut pair, number, false);
    }
    let offsets = report_offsets(&pair);
    assert!(offsets.len() > 100, "only {} packets follow a sender report", offsets.len());
    let (least, most) = offsets.iter().fold((f64::MAX, f64::MIN), |(a, b), &o| (a.min(o), b.max(o)));
    assert!(most - least < 0.1, "reports differ by {} s", most - least);
}

#[derive(Clone, Debug)]
enum Step {
    Live { is_idr: bool, gap_before: bool },
    Replayed,
    Abandon,
    IdrNeeded,
    Congested(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let live =
        (0..12_u8, 0..20_u8).prop_map(|(idr, gap)| Step::Live { is_idr: idr == 0, gap_before: gap == 0 });
    let step = prop_oneof![
        8 => live,
        16 => Just(Step::Replayed),
        1 => Just(Step::Abandon),
        4 => Just(Step::IdrNeeded),
        1 => any::<bool>().prop_map(Step::Congested),
    ];
    proptest::collection::vec(step, 400)
}

proptest! {
    #![proptest_config(support::properties_of(12))]

    /// Replaces worker and decoder by naive models. The worker is a list of the units since the last IDR. The decoder
    /// accepts an IDR, or a unit that directly follows the last accepted one.
    #[test]
    fn every_unit_sent_can_be_decoded(steps in steps()) {
        let mut pair = connected();
        let (mut number, mut gop, mut place): (u32, Option<Vec<u32>>, usize) = (0, None, 0);
        let mut idrs = std::collections::BTreeSet::new();
        let mut lost = std::collections::BTreeSet::new();
        for step in steps {
            match step {
                Step::Live { is_idr, gap_before } => {
                    number += 1 + u32::from(gap_before);
                    if is_idr {
                        idrs.insert(number);
                        gop = Some(vec![number]);
                    } else if gap_before {
                        lost.insert(number - 1);
                        gop = None;
                    } else if let Some(gop) = &mut gop {
                        gop.push(number);
                    }
                    let payloads = payloads(number, PACKETS, 100);
                    let mut unit = unit(&payloads, u64::from(number), is_idr);
                    unit.info.gap_before = gap_before;
                    pair.push(&unit);
                    pair.now += INTERVAL;
                }
                Step::IdrNeeded => {
                    let available = if gop.is_some() { with_gop(10) } else { NO_GOP };
                    let reason = pair.viewer.poll_idr_reason().unwrap_or(IdrReason::Request);
                    if pair.viewer.decide_catch_up(pair.now, reason, available) == CatchUpDecision::Replay {
                        place = 0;
                    }
                }
                Step::Replayed if pair.viewer.is_catching_up() => match &gop {
                    None => pair.viewer.end_catch_up(false),
                    Some(units) => match units.get(place) {
                        None => pair.viewer.end_catch_up(true),
                        Some(&unit) => {
                            replay(&mut pair, unit, number, idrs.contains(&unit), PACKETS);
                            place += 1;
                        }
                    },
                },
                Step::Abandon if pair.viewer.is_catching_up() => pair.viewer.end_catch_up(false),
                Step::Congested(full) if !pair.viewer.is_catching_up() => {
                    pair.viewer.note_congestion(if full { limits::VIEWER_IN_FLIGHT_MAX + 1 } else { 0 });
                }
                _ => {}
            }
        }
        let mut decoded: Option<u32> = None;
        for unit in received(&pair) {
            let follows = decoded.is_some_and(|before| before + 1 == unit && !lost.contains(&before));
            prop_assert!(idrs.contains(&unit) || follows, "unit {unit} after {decoded:?}");
            decoded = Some(unit);
        }
        prop_assert!(times(&pair).is_sorted_by(|a, b| b.wrapping_sub(*a) as i32 > 0));
    }
}
