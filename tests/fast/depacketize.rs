//! Tests of the receiver with which other tests reassemble RTP payloads (RFC 6184).

use proptest::prelude::*;
use support::depacketize::{Depacketizer, DepacketizerCounters};

const SLICE: &[u8] = &[0x41, 1, 2];
const FIRST: &[u8] = &[0x5C, 0x81, 1, 2];
const MIDDLE: &[u8] = &[0x5C, 0x01, 3];
const LAST: &[u8] = &[0x5C, 0x41, 4];

#[test]
fn single_aggregated_and_fragmented_nal_units_are_reassembled() {
    let mut receiver = Depacketizer::new();
    assert_eq!(receiver.push(&[0x78, 0, 2, 0x09, 0xF0, 0, 3, 0x06, 5, 6], false, 9, 65_534), None);
    assert_eq!(receiver.push(FIRST, false, 9, 65_535), None);
    assert_eq!(receiver.push(MIDDLE, false, 9, 0), None);
    assert_eq!(receiver.push(LAST, false, 9, 1), None);
    let unit = receiver.push(SLICE, true, 9, 2).unwrap();
    assert_eq!(unit, [&[0x09, 0xF0][..], &[0x06, 5, 6], &[0x41, 1, 2, 3, 4], SLICE]);
    assert_eq!(receiver.counters(), DepacketizerCounters { units: 1, ..Default::default() });
}

#[test]
fn unit_with_a_loss_is_dropped_and_the_next_is_complete() {
    let mut receiver = Depacketizer::new();
    receiver.push(FIRST, false, 1, 10);
    assert_eq!(receiver.push(LAST, true, 1, 12), None);
    assert_eq!(receiver.push(SLICE, true, 2, 13), Some(vec![SLICE.to_vec()]));
    let counters = receiver.counters();
    assert_eq!((counters.units, counters.units_discarded, counters.packets_lost), (1, 1, 1));
}

#[test]
fn lost_end_of_a_unit_drops_both_possible_units() {
    let mut receiver = Depacketizer::new();
    receiver.push(FIRST, false, 1, 10);
    assert_eq!(receiver.push(SLICE, true, 2, 12), None);
    assert_eq!(receiver.push(SLICE, true, 3, 13), Some(vec![SLICE.to_vec()]));
    assert_eq!(receiver.counters().units_discarded, 2);
}

#[test]
fn duplicate_and_late_packets_are_ignored() {
    let mut receiver = Depacketizer::new();
    receiver.push(FIRST, false, 1, 10);
    assert_eq!(receiver.push(FIRST, false, 1, 10), None);
    assert_eq!(receiver.push(MIDDLE, false, 1, 3), None);
    assert_eq!(receiver.push(LAST, true, 1, 11), Some(vec![vec![0x41, 1, 2, 4]]));
    assert_eq!(receiver.counters().packets_late, 2);
}

#[test]
fn malformed_payloads_drop_their_unit() {
    let malformed: [&[u8]; 12] = [
        &[],
        &[0x00, 1],       // type 0 is undefined
        &[0x79, 0, 1, 9], // STAP-B is not supported
        &[0x5C],          // the FU header is missing
        MIDDLE,           // the start fragment is missing
        &[0x5C, 0xC1, 1], // start and end bit are both set
        &[0x78, 0],       // the length field is truncated
        &[0x78, 0, 9, 1], // the length exceeds the payload
        &[0x78, 0, 0],    // the NAL unit is empty
        &[0x7D, 0x81, 1], // FU-B is not supported
        &[0x5F],          // type 31 is undefined
        FIRST,            // the end fragment is missing
    ];
    for (index, payload) in malformed.iter().enumerate() {
        let mut receiver = Depacketizer::new();
        assert_eq!(receiver.push(payload, true, 1, 0), None, "{index}");
        assert_eq!(receiver.push(SLICE, true, 2, 1), Some(vec![SLICE.to_vec()]), "{index}");
        assert_eq!(receiver.counters().units_discarded, 1, "{index}");
    }
    let mut receiver = Depacketizer::new();
    receiver.push(FIRST, false, 1, 0);
    assert_eq!(receiver.push(SLICE, true, 1, 1), None, "a NAL unit between fragments is malformed");
}

#[test]
fn collected_bytes_and_nal_units_are_bounded() {
    let mut receiver = Depacketizer::new();
    receiver.push(FIRST, false, 1, 0);
    let fragment = [&[0x5C, 0x01][..], &vec![7; 65_000]].concat();
    for index in 1..200 {
        receiver.push(&fragment, false, 1, index);
    }
    assert_eq!(receiver.push(LAST, true, 1, 200), None);
    for index in 0..1_000 {
        assert_eq!(receiver.push(SLICE, index == 999, 2, 201 + index), None);
    }
    assert_eq!(receiver.counters().units_discarded, 2);
}

proptest! {
    #![proptest_config(support::properties())]

    #[test]
    fn hostile_payloads_never_panic(
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..12), any::<bool>(), 0..3_u32, 0..6_u16), 0..60)
    ) {
        let mut receiver = Depacketizer::new();
        let mut sequence_number = 0_u16;
        for (payload, marker, timestamp, step) in packets {
            sequence_number = sequence_number.wrapping_add(step);
            receiver.push(&payload, marker, timestamp, sequence_number);
        }
    }
}
