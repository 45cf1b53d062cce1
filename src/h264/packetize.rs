//! Builds the RTP payloads of an access unit (RFC 6184, packetization-mode 1), once for all viewers.
//! RTP headers, sequence numbers and viewers belong to `session`. Section numbers in this file are those of RFC 6184.

use std::ops::Range;
use std::sync::Arc;

use super::assembled::AssembledUnit;
use super::nal::kind;
use super::payloads::{Payloads, Pool};
use crate::base::limits;

const STAP_A: u8 = 24;
const FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;
/// Bytes of the FU indicator and the FU header together.
const FU_HEADER_BYTES: usize = 2;
/// Bytes of the length field before each NAL unit of a STAP-A.
const STAP_SIZE_BYTES: usize = 2;
const F_BIT: u8 = 0x80;
const NRI_BITS: u8 = 0x60;
const KIND_BITS: u8 = 0x1F;
/// Smallest payload size that leaves room for media after the headers.
const PAYLOAD_BYTES_MIN: usize = 16;

/// Cuts access units into RTP payloads. The payloads are in buffers that are reused when no viewer holds them any more.
///
/// Consecutive NAL units that are not slices (delimiter, parameter sets, SEI) share one STAP-A packet (5.7.1) if they
/// fit. A slice becomes a single NAL unit packet (5.6) if it fits, else several FU-A fragments (5.8). All fragments of
/// a slice except the last have the same size, so that one GSO batch can send them.
pub struct Packetizer {
    payload_bytes_max: usize,
    /// Maximum size in bytes of a slice's last fragment, and of a slice that is not fragmented.
    last_bytes_max: usize,
    pool: Pool,
}

impl Packetizer {
    /// Creates a packetiser whose payloads have at most `payload_bytes_max` bytes.
    ///
    /// # Panics
    /// Panics if `payload_bytes_max` is below 16 or above 65535.
    #[must_use]
    pub fn new(payload_bytes_max: usize) -> Self {
        assert!((PAYLOAD_BYTES_MIN..=usize::from(u16::MAX)).contains(&payload_bytes_max));
        Self {
            payload_bytes_max,
            last_bytes_max: payload_bytes_max,
            pool: Pool::new(
                (limits::FULL_PAYLOADS_OF_BUFFER * payload_bytes_max).min(usize::from(u16::MAX)),
                limits::PAYLOAD_POOL_BYTES_MAX,
            ),
        }
    }

    /// Creates a packetiser for WebRTC, whose payloads have at most [`limits::RTP_PAYLOAD_BYTES_MAX`] bytes. The last
    /// payload of a slice is shorter, because its packet may also have RTP header extensions.
    #[must_use]
    pub fn for_rtp() -> Self {
        let last_bytes_max = limits::RTP_PAYLOAD_BYTES_MAX - limits::RTP_EXTENSIONS_BYTES_MAX;
        Self { last_bytes_max, ..Self::new(limits::RTP_PAYLOAD_BYTES_MAX) }
    }

    /// Returns the number of payload buffers allocated so far. With a steady stream, this number stops growing.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        self.pool.allocations
    }

    /// Clears `out`, then writes the payloads of `unit` to it in sending order. Each buffer in `out` holds one or more
    /// payloads. The caller must set the RTP marker in the packet of the last payload.
    pub fn packetize(&mut self, unit: &AssembledUnit<'_>, out: &mut Vec<Arc<Payloads>>) {
        out.clear();
        self.pool.collect();
        let mut group = 0..0; // indexes of the NAL units collected for one STAP-A
        let mut group_bytes = 1;
        for (index, nal) in unit.nals().enumerate() {
            let bytes = STAP_SIZE_BYTES + nal.bytes.len();
            let may_share = !is_slice(nal.kind) && bytes < self.payload_bytes_max;
            if !may_share || group_bytes + bytes > self.payload_bytes_max {
                self.flush_group(unit, group, group_bytes, out);
                group = index..index;
                group_bytes = 1;
            }
            if may_share {
                group.end = index + 1;
                group_bytes += bytes;
            } else {
                self.single_or_fragments(nal.bytes, out);
                group = index + 1..index + 1;
            }
        }
        self.flush_group(unit, group, group_bytes, out);
        self.pool.close(out);
    }

    fn flush_group(
        &mut self,
        unit: &AssembledUnit<'_>,
        group: Range<usize>,
        bytes: usize,
        out: &mut Vec<Arc<Payloads>>,
    ) {
        match group.len() {
            0 => {}
            1 => self.single_or_fragments(unit.nal(group.start).bytes, out),
            _ => self.pool.write(bytes, out, |payload| aggregate(unit, &group, payload)),
        }
    }

    fn single_or_fragments(&mut self, nal: &[u8], out: &mut Vec<Arc<Payloads>>) {
        if nal.len() <= self.last_bytes_max {
            return self.pool.write(nal.len(), out, |payload| payload.extend_from_slice(nal));
        }
        let Some((&header, body)) = nal.split_first() else { return };
        let piece_bytes = self.piece_bytes(body.len());
        let last = body.len().div_ceil(piece_bytes) - 1;
        for (index, piece) in body.chunks(piece_bytes).enumerate() {
            let start = if index == 0 { FU_START } else { 0 };
            let end = if index == last { FU_END } else { 0 };
            let headers = [header & (F_BIT | NRI_BITS) | FU_A, start | end | header & KIND_BITS];
            self.pool.write(FU_HEADER_BYTES + piece.len(), out, |payload| {
                payload.extend_from_slice(&headers);
                payload.extend_from_slice(piece);
            });
        }
    }

    /// Returns how many body bytes each fragment of a NAL unit with `body_bytes` bytes gets. This is the maximum, or a
    /// little less if the last fragment would otherwise exceed `last_bytes_max`.
    fn piece_bytes(&self, body_bytes: usize) -> usize {
        let full = self.payload_bytes_max - FU_HEADER_BYTES;
        let last_max = self.last_bytes_max - FU_HEADER_BYTES;
        let last = match body_bytes % full {
            0 => full,
            rest => rest,
        };
        if last <= last_max { full } else { last_max }
    }
}

fn is_slice(nal_kind: u8) -> bool {
    (kind::SLICE..=kind::IDR_SLICE).contains(&nal_kind)
}

/// Writes a STAP-A with the NAL units in `group`. The F bit of its header is the OR of the NAL units' F bits, and its
/// NRI is the highest of their NRI values.
fn aggregate(unit: &AssembledUnit<'_>, group: &Range<usize>, payload: &mut Vec<u8>) {
    let nals = || unit.nals().skip(group.start).take(group.len());
    let indicator = nals().fold(STAP_A, |indicator, nal| {
        let header = nal.bytes.first().copied().unwrap_or_default();
        let nri = (indicator & NRI_BITS).max(header & NRI_BITS);
        indicator & !NRI_BITS | header & F_BIT | nri
    });
    payload.push(indicator);
    for nal in nals() {
        payload.extend_from_slice(&u16::try_from(nal.bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        payload.extend_from_slice(nal.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Assembler;
    use super::super::testing::{AUD, SEI, annex_b, hostile_bytes, idr, non_idr, pps, slice, sps};
    use std::collections::VecDeque;
    use support::depacketize::Depacketizer;

    use super::*;
    use proptest::prelude::*;

    /// An assembler and a packetiser with the payloads of the last unit.
    struct Sender {
        assembler: Assembler,
        packetizer: Packetizer,
        payloads: Vec<Arc<Payloads>>,
    }

    impl Sender {
        fn new(payload_bytes_max: usize) -> Self {
            let packetizer = Packetizer::new(payload_bytes_max);
            Self { assembler: Assembler::default(), packetizer, payloads: Vec::new() }
        }

        fn send_shared(&mut self, nals: &[&[u8]]) -> &[Arc<Payloads>] {
            let unit = annex_b(nals);
            self.packetizer.packetize(&self.assembler.assemble(&unit).unwrap(), &mut self.payloads);
            &self.payloads
        }

        fn send(&mut self, nals: &[&[u8]]) -> Vec<Vec<u8>> {
            copied(self.send_shared(nals))
        }
    }

    fn copied(groups: &[Arc<Payloads>]) -> Vec<Vec<u8>> {
        groups.iter().flat_map(|group| group.iter().map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn small_leading_nal_units_share_a_stap_a() {
        let mut sender = Sender::new(1140);
        let (sps, pps, idr) = (sps(0, 31, 80, 45), pps(0, 0, 0), idr(0));
        let payloads = sender.send(&[AUD, &sps, &pps, SEI, &idr]);
        let mut expected = vec![0x60 | STAP_A]; // NRI 3, the highest, is that of the SPS
        for nal in [AUD, &sps, &pps, SEI] {
            expected.extend([0, u8::try_from(nal.len()).unwrap()]);
            expected.extend(nal);
        }
        assert_eq!(payloads.iter().map(|payload| &payload[..]).collect::<Vec<_>>(), [&expected[..], &idr]);
    }

    #[test]
    fn a_lone_nal_unit_and_a_small_slice_are_single_nal_unit_packets() {
        let mut sender = Sender::new(1140);
        let slice = non_idr(0);
        let payloads = sender.send(&[AUD, &slice, SEI]);
        assert_eq!(payloads.iter().map(|payload| &payload[..]).collect::<Vec<_>>(), [AUD, &slice, SEI]);
    }

    #[test]
    fn large_slice_is_cut_into_equal_fragments_and_a_remainder() {
        let mut sender = Sender::new(100);
        let slice = slice(0x41, 0, 300);
        let payloads = sender.send(&[&slice]);
        let (last, full) = payloads.split_last().unwrap();
        assert!(full.len() >= 2 && full.iter().all(|payload| payload.len() == 100));
        assert!(last.len() <= 100);
        assert!(payloads.iter().all(|payload| payload[0] == 0x40 | FU_A));
        assert_eq!(full[0][1], FU_START | 1);
        assert!(full[1..].iter().all(|payload| payload[1] == 1));
        assert_eq!(last[1], FU_END | 1);
        let body: Vec<u8> = payloads.iter().flat_map(|payload| payload[2..].to_vec()).collect();
        assert_eq!(body, slice[1..]);
    }

    #[test]
    fn slices_around_the_size_limit_are_cut_correctly() {
        for size in 95..=205 {
            let mut sender = Sender::new(100);
            let nal: Vec<u8> = slice(0x41, 0, 400)[..size].iter().map(|byte| byte | 0x40).collect();
            let lengths: Vec<usize> = sender.send(&[&nal]).iter().map(|payload| payload.len()).collect();
            let expected = match size {
                ..=100 => vec![size],
                101..=197 => vec![100, size - 99 + 2],
                _ => vec![100, 100, size - 197 + 2],
            };
            assert_eq!(lengths, expected, "slice of {size} bytes");
        }
    }

    #[test]
    fn last_packet_of_a_slice_leaves_room_for_header_extensions() {
        let last_max = limits::RTP_PAYLOAD_BYTES_MAX - limits::RTP_EXTENSIONS_BYTES_MAX;
        let mut sender = Sender::new(1140);
        sender.packetizer = Packetizer::for_rtp();
        for size in (1_000..4_000).chain(119_000..121_000) {
            let nal = slice(0x41, 0, size);
            let lengths: Vec<usize> = sender.send(&[&nal]).iter().map(Vec::len).collect();
            let (last, full) = lengths.split_last().unwrap();
            assert!(*last <= last_max, "{size} bytes: {lengths:?}");
            assert!(
                full.iter().all(|length| *length == full[0] && last <= length),
                "one GSO batch: {lengths:?}"
            );
            assert!(full.iter().all(|length| *length <= limits::RTP_PAYLOAD_BYTES_MAX));
        }
    }

    #[test]
    fn nal_units_that_do_not_fit_one_aggregate_are_split_or_fragmented() {
        let mut sender = Sender::new(64);
        let sei = |bytes: usize| [&[0x06][..], &vec![0x55; bytes - 1]].concat();
        let (small, one, exact, large) = (sei(20), sei(63), sei(64), sei(65));
        let slice = non_idr(0);
        let payloads = sender.send(&[&small, &small, &small, &one, &exact, &large, AUD, &small, &slice]);
        let kinds: Vec<(u8, usize)> =
            payloads.iter().map(|payload| (payload[0] & 0x1F, payload.len())).collect();
        let expected =
            [(9, 2), (24, 45), (6, 20), (6, 63), (6, 64), (28, 64), (28, 4), (6, 20), (1, slice.len())];
        // The assembler moves the delimiter to the front, so it is in the first STAP-A together with two small SEI.
        let expected = [&[(24, 1 + 4 + 22 + 22)][..], &[(6, 20)], &expected[3..]].concat();
        assert_eq!(kinds, expected);
    }

    #[test]
    fn aggregate_takes_the_highest_nri_of_its_nal_units() {
        let mut sender = Sender::new(1140);
        let payloads = sender.send(&[&[0x26, 1, 2], &[0x46, 3, 4], &[0x06, 5, 6], &non_idr(0)]);
        assert_eq!(payloads[0][0], 0x40 | STAP_A);
    }

    /// Packetises rounds of 30 units of varying sizes, while a retransmission cache holds the payloads of the last
    /// `held` units. Returns the number of buffers that each round allocated.
    fn allocations_per_round(held: usize, rounds: usize) -> Vec<u64> {
        let mut sender = Sender::new(1140);
        let mut cache = VecDeque::new();
        let mut per_round = Vec::new();
        for _ in 0..rounds {
            let before = sender.packetizer.allocations();
            for unit in 0..30 {
                let slice = slice(0x41, 0, if unit == 0 { 30_000 } else { 3_000 + unit * 137 });
                cache.push_back(sender.send_shared(&[AUD, &slice]).to_vec());
                if cache.len() > held {
                    cache.pop_front();
                }
            }
            per_round.push(sender.packetizer.allocations() - before);
        }
        per_round
    }

    #[test]
    fn steady_stream_stops_allocating() {
        for held in [0, 1, 7, 30, 45] {
            let per_round = allocations_per_round(held, 12);
            assert!(per_round[0] > 0);
            assert_eq!(per_round[4..], [0; 8], "{held} units held: {per_round:?}");
        }
    }

    #[test]
    fn buffers_are_reused_while_one_viewer_holds_old_ones() {
        let mut sender = Sender::new(1140);
        let mut held_forever = Vec::new();
        let mut last = 0;
        for round in 0..200 {
            let payloads = sender.send_shared(&[AUD, &slice(0x41, 0, 20_000)]).to_vec();
            if round < 100 {
                held_forever.extend(payloads);
            } else if round == 180 {
                last = sender.packetizer.allocations();
            }
        }
        assert!(held_forever.len() > 4 * limits::PAYLOAD_POOL_CHECKS_MAX);
        assert_eq!(sender.packetizer.allocations(), last);
    }

    #[test]
    fn held_payloads_are_never_overwritten() {
        let mut sender = Sender::new(100);
        let held: Vec<Arc<Payloads>> = sender.send_shared(&[&slice(0x41, 0, 1_000)]).to_vec();
        let copy = copied(&held);
        for _ in 0..50 {
            sender.send(&[&slice(0x61, 0, 1_003)]);
        }
        assert_eq!(copied(&held), copy);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn depacketizer_returns_the_sent_nal_units(
            sizes in prop::collection::vec((0..4_usize, 3..400_usize), 1..20),
            payload_bytes_max in 16..300_usize,
        ) {
            let mut sender = Sender::new(payload_bytes_max);
            let mut nals = vec![AUD.to_vec(), sps(0, 31, 80, 45), pps(0, 0, 0)];
            nals.extend(sizes.iter().map(|(kind, size)| slice([0x06, 0x65, 0x41, 0x30][*kind], 0, *size)));
            nals.push(idr(0));
            let nals: Vec<&[u8]> = nals.iter().map(Vec::as_slice).collect();
            let payloads = sender.send(&nals);
            prop_assert!(payloads.iter().all(|payload| payload.len() <= payload_bytes_max));
            let mut receiver = Depacketizer::new();
            for (index, payload) in payloads.iter().enumerate() {
                let last = index + 1 == payloads.len();
                let unit = receiver.push(payload, last, 90, u16::try_from(index).unwrap());
                prop_assert_eq!(unit.is_some(), last);
                if let Some(unit) = unit {
                    prop_assert_eq!(unit, nals.iter().map(|nal| nal.to_vec()).collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn hostile_units_never_panic_and_round_trip(
            units in prop::collection::vec(hostile_bytes(200), 1..6),
            payload_bytes_max in 16..200_usize,
        ) {
            let mut sender = Sender::new(payload_bytes_max);
            let mut receiver = Depacketizer::new();
            let mut sequence_number = 65_500_u16;
            for unit in &units {
                let Ok(assembled) = sender.assembler.assemble(unit) else { continue };
                sender.packetizer.packetize(&assembled, &mut sender.payloads);
                let mut received = None;
                let payloads = copied(&sender.payloads);
                for (index, payload) in payloads.iter().enumerate() {
                    let last = index + 1 == payloads.len();
                    received = receiver.push(payload, last, 90, sequence_number);
                    sequence_number = sequence_number.wrapping_add(1);
                }
                let sent: Vec<Vec<u8>> = assembled.nals().map(|nal| nal.bytes.to_vec()).collect();
                prop_assert_eq!(received, Some(sent));
            }
        }
    }
}
