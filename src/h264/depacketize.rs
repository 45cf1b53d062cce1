//! The receiving twin of [`packetize`](super::packetize): RTP payloads back to NAL units (RFC 6184). For tests,
//! load viewers and fuzzing; does not reorder, does not ask for retransmission, drops units with a loss in them.

use super::packetize::{FU_A, FU_END, FU_HEADER_BYTES, FU_START, STAP_A, STAP_SIZE_BYTES};
use crate::base::limits;

/// What a [`Depacketizer`] has seen so far.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct DepacketizerCounters {
    /// Whole access units handed out.
    pub units: u64,
    /// Access units with a part missing or broken, dropped. A unit lost as a whole is not seen here.
    pub units_discarded: u64,
    /// Sequence numbers that never came, or came too late.
    pub packets_lost: u64,
    /// Packets older than one seen before: duplicates and stragglers, dropped.
    pub packets_late: u64,
    /// Payloads that are not RFC 6184 mode 1.
    pub packets_malformed: u64,
}

/// Collects RTP payloads into access units.
#[derive(Default)]
pub struct Depacketizer {
    nals: Vec<Vec<u8>>,
    bytes: usize,
    fragment: Option<Vec<u8>>,
    timestamp: Option<u32>,
    next_sequence_number: Option<u16>,
    broken: bool,
    counters: DepacketizerCounters,
}

impl Depacketizer {
    /// A receiver that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was seen so far.
    #[must_use]
    pub fn counters(&self) -> DepacketizerCounters {
        self.counters
    }

    /// Takes the payload of the next RTP packet; the NAL units of a whole access unit when `marker` ends one
    /// that nothing is missing from.
    ///
    /// After a loss everything up to the end of the access unit that came next is dropped: whether that one is
    /// whole cannot be known.
    pub fn push(
        &mut self,
        payload: &[u8],
        marker: bool,
        timestamp: u32,
        sequence_number: u16,
    ) -> Option<Vec<Vec<u8>>> {
        let missing = sequence_number.wrapping_sub(self.next_sequence_number.unwrap_or(sequence_number));
        if missing >= 1 << 15 {
            self.counters.packets_late += 1;
            return None;
        }
        self.next_sequence_number = Some(sequence_number.wrapping_add(1));
        if self.timestamp.is_some_and(|open| open != timestamp) {
            self.discard(); // its end never came
        }
        self.timestamp = Some(timestamp);
        if missing > 0 {
            self.counters.packets_lost += u64::from(missing);
            self.broken = true;
        }
        if !self.broken && self.take(payload).is_none() {
            self.counters.packets_malformed += 1;
            self.broken = true;
        }
        if marker { self.finish() } else { None }
    }

    fn finish(&mut self) -> Option<Vec<Vec<u8>>> {
        if self.broken || self.fragment.is_some() || self.nals.is_empty() {
            self.discard();
            return None;
        }
        self.counters.units += 1;
        let nals = std::mem::take(&mut self.nals);
        self.reset();
        Some(nals)
    }

    fn discard(&mut self) {
        self.counters.units_discarded += 1;
        self.reset();
    }

    fn reset(&mut self) {
        self.nals.clear();
        self.bytes = 0;
        self.fragment = None;
        self.timestamp = None;
        self.broken = false;
    }

    fn take(&mut self, payload: &[u8]) -> Option<()> {
        let header = *payload.first()?;
        self.bytes += payload.len();
        let in_bounds = self.bytes <= limits::RECEIVED_UNIT_BYTES_MAX;
        let whole = self.fragment.is_none();
        match header & 0x1F {
            _ if !in_bounds => None,
            1..=23 if whole => self.add(payload.to_vec()),
            STAP_A if whole => self.take_aggregate(payload.get(1..)?),
            FU_A => self.take_fragment(payload),
            _ => None,
        }
    }

    fn add(&mut self, nal: Vec<u8>) -> Option<()> {
        let room = self.nals.len() < limits::RECEIVED_NAL_UNITS_MAX && !nal.is_empty();
        room.then(|| self.nals.push(nal))
    }

    fn take_aggregate(&mut self, mut rest: &[u8]) -> Option<()> {
        while !rest.is_empty() {
            let (size, tail) = rest.split_first_chunk::<STAP_SIZE_BYTES>()?;
            let (nal, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
            self.add(nal.to_vec())?;
            rest = tail;
        }
        Some(())
    }

    fn take_fragment(&mut self, payload: &[u8]) -> Option<()> {
        let ([indicator, header], body) = payload.split_first_chunk::<FU_HEADER_BYTES>()?;
        let (start, end) = (header & FU_START != 0, header & FU_END != 0);
        let nal_header = indicator & 0xE0 | header & 0x1F;
        let mut nal = match self.fragment.take() {
            None if start && !end => vec![nal_header],
            Some(nal) if !start && nal.first() == Some(&nal_header) => nal,
            _ => return None,
        };
        nal.extend_from_slice(body);
        if end {
            return self.add(nal);
        }
        self.fragment = Some(nal);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: &[u8] = &[0x41, 1, 2];
    const FIRST: &[u8] = &[0x5C, 0x81, 1, 2];
    const MIDDLE: &[u8] = &[0x5C, 0x01, 3];
    const LAST: &[u8] = &[0x5C, 0x41, 4];

    #[test]
    fn single_aggregated_and_fragmented_nal_units_are_put_together() {
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
    fn a_unit_with_a_loss_is_dropped_and_the_one_after_it_is_whole() {
        let mut receiver = Depacketizer::new();
        receiver.push(FIRST, false, 1, 10);
        assert_eq!(receiver.push(LAST, true, 1, 12), None);
        assert_eq!(receiver.push(SLICE, true, 2, 13), Some(vec![SLICE.to_vec()]));
        let counters = receiver.counters();
        assert_eq!((counters.units, counters.units_discarded, counters.packets_lost), (1, 1, 1));
    }

    #[test]
    fn a_lost_end_drops_both_units_it_may_belong_to() {
        let mut receiver = Depacketizer::new();
        receiver.push(FIRST, false, 1, 10);
        assert_eq!(receiver.push(SLICE, true, 2, 12), None);
        assert_eq!(receiver.push(SLICE, true, 3, 13), Some(vec![SLICE.to_vec()]));
        assert_eq!(receiver.counters().units_discarded, 2);
    }

    #[test]
    fn duplicates_and_stragglers_are_ignored() {
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
            &[0x00, 1],       // kind 0
            &[0x79, 0, 1, 9], // STAP-B
            &[0x5C],          // no FU header
            MIDDLE,           // without a start
            &[0x5C, 0xC1, 1], // start and end at once
            &[0x78, 0],       // half a size
            &[0x78, 0, 9, 1], // size beyond the end
            &[0x78, 0, 0],    // empty NAL unit
            &[0x7D, 0x81, 1], // FU-B
            &[0x5F],          // kind 31
            FIRST,            // never ends
        ];
        for (index, payload) in malformed.iter().enumerate() {
            let mut receiver = Depacketizer::new();
            assert_eq!(receiver.push(payload, true, 1, 0), None, "{index}");
            assert_eq!(receiver.push(SLICE, true, 2, 1), Some(vec![SLICE.to_vec()]), "{index}");
            assert_eq!(receiver.counters().units_discarded, 1, "{index}");
        }
        let mut receiver = Depacketizer::new();
        receiver.push(FIRST, false, 1, 0);
        assert_eq!(receiver.push(SLICE, true, 1, 1), None, "a NAL unit between fragments");
    }

    #[test]
    fn what_is_collected_is_bounded() {
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
}
