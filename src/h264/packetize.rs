//! RTP payloads of an access unit (RFC 6184, packetization-mode 1), built once and shared by all viewers.
//! Knows nothing of RTP headers, sequence numbers or viewers.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::assembled::AssembledUnit;
use super::nal::kind;
use crate::limits;

pub(super) const STAP_A: u8 = 24;
pub(super) const FU_A: u8 = 28;
pub(super) const FU_START: u8 = 0x80;
pub(super) const FU_END: u8 = 0x40;
/// FU indicator and FU header.
pub(super) const FU_HEADER_BYTES: usize = 2;
/// Length field in front of each NAL unit of a STAP-A.
pub(super) const STAP_SIZE_BYTES: usize = 2;
const F_BIT: u8 = 0x80;
const NRI_BITS: u8 = 0x60;
const KIND_BITS: u8 = 0x1F;
/// Payloads shorter than this would be all headers.
const PAYLOAD_BYTES_MIN: usize = 16;

/// Cuts access units into RTP payloads, in buffers that are reused once nobody holds them any more.
///
/// Consecutive NAL units that are no slices (delimiter, parameter sets, SEI) share a STAP-A (5.7.1) when they
/// fit; a slice is a single NAL unit packet (5.6) when it fits, else FU-A fragments (5.8) that all have the
/// full size but the last: behind the small first payload the rest of a unit is one GSO train per slice.
pub struct Packetizer {
    payload_bytes_max: usize,
    full: Pool,
    tails: Pool,
}

impl Packetizer {
    /// A packetiser whose payloads have at most `payload_bytes_max` bytes.
    ///
    /// # Panics
    /// When `payload_bytes_max` is below 16 or above 65535.
    #[must_use]
    pub fn new(payload_bytes_max: usize) -> Self {
        assert!((PAYLOAD_BYTES_MIN..=usize::from(u16::MAX)).contains(&payload_bytes_max));
        Self {
            payload_bytes_max,
            full: Pool::new(payload_bytes_max..payload_bytes_max + 1, limits::PAYLOAD_POOL_FULL_BYTES_MAX),
            tails: Pool::new(1..payload_bytes_max, limits::PAYLOAD_POOL_TAIL_BYTES_MAX),
        }
    }

    /// Payload buffers newly allocated so far. Stands still in a steady stream.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        self.full.allocations + self.tails.allocations
    }

    /// Puts the payloads of `unit` into `out`, which is cleared first; the last one is the one that gets the
    /// RTP marker.
    pub fn packetize(&mut self, unit: &AssembledUnit<'_>, out: &mut Vec<Arc<[u8]>>) {
        out.clear();
        self.full.collect();
        self.tails.collect();
        let mut run = 0..0; // NAL units waiting to share a STAP-A
        let mut run_bytes = 1;
        for (index, nal) in unit.nals().enumerate() {
            let bytes = STAP_SIZE_BYTES + nal.bytes.len();
            let may_share = !is_slice(nal.kind) && bytes < self.payload_bytes_max;
            if !may_share || run_bytes + bytes > self.payload_bytes_max {
                self.close_run(unit, run, run_bytes, out);
                run = index..index;
                run_bytes = 1;
            }
            if may_share {
                run.end = index + 1;
                run_bytes += bytes;
            } else {
                self.single_or_fragments(nal.bytes, out);
                run = index + 1..index + 1;
            }
        }
        self.close_run(unit, run, run_bytes, out);
    }

    fn close_run(
        &mut self,
        unit: &AssembledUnit<'_>,
        run: Range<usize>,
        bytes: usize,
        out: &mut Vec<Arc<[u8]>>,
    ) {
        match run.len() {
            0 => {}
            1 => self.single_or_fragments(unit.nal(run.start).bytes, out),
            _ => out.push(self.write(bytes, |payload| aggregate(unit, run, payload))),
        }
    }

    fn single_or_fragments(&mut self, nal: &[u8], out: &mut Vec<Arc<[u8]>>) {
        if nal.len() <= self.payload_bytes_max {
            out.push(self.write(nal.len(), |payload| payload.copy_from_slice(nal)));
            return;
        }
        let Some((&header, body)) = nal.split_first() else { return };
        let piece_bytes = self.payload_bytes_max - FU_HEADER_BYTES;
        let last = body.len().div_ceil(piece_bytes) - 1;
        for (index, piece) in body.chunks(piece_bytes).enumerate() {
            let start = if index == 0 { FU_START } else { 0 };
            let end = if index == last { FU_END } else { 0 };
            let headers = [header & (F_BIT | NRI_BITS) | FU_A, start | end | header & KIND_BITS];
            out.push(self.write(FU_HEADER_BYTES + piece.len(), |payload| {
                let (front, rest) = payload.split_at_mut(FU_HEADER_BYTES);
                front.copy_from_slice(&headers);
                rest.copy_from_slice(piece);
            }));
        }
    }

    fn write(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Arc<[u8]> {
        let pool = if bytes == self.payload_bytes_max { &mut self.full } else { &mut self.tails };
        pool.write(bytes, fill)
    }
}

fn is_slice(nal_kind: u8) -> bool {
    (kind::SLICE..=kind::IDR_SLICE).contains(&nal_kind)
}

/// STAP-A of the NAL units in `run`: F is the or, NRI the maximum of theirs.
fn aggregate(unit: &AssembledUnit<'_>, run: Range<usize>, payload: &mut [u8]) {
    let Some((indicator, mut rest)) = payload.split_first_mut() else { return };
    *indicator = STAP_A;
    for nal in unit.nals().skip(run.start).take(run.len()) {
        let header = nal.bytes.first().copied().unwrap_or_default();
        let nri = (*indicator & NRI_BITS).max(header & NRI_BITS);
        *indicator = *indicator & !NRI_BITS | header & F_BIT | nri;
        let (size, tail) = rest.split_at_mut(STAP_SIZE_BYTES);
        let (body, tail) = tail.split_at_mut(nal.bytes.len());
        size.copy_from_slice(&u16::try_from(nal.bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        body.copy_from_slice(nal.bytes);
        rest = tail;
    }
}

/// Buffers of one exact length that nobody holds.
#[derive(Default)]
struct Bin {
    free: Vec<Arc<[u8]>>,
    /// Free ones and handed-out ones the pool still knows.
    count: usize,
}

/// Payload buffers for reuse. An `Arc<[u8]>` cannot shrink, so they are kept by exact length.
///
/// The pool keeps a handle to what it hands out and gets the buffer back when that handle is the only one
/// left. Viewers let go roughly in the order of sending, so the search starts at the oldest.
struct Pool {
    /// Length of the first bin's buffers; each next bin's are one byte longer.
    bytes_min: usize,
    bins: Vec<Bin>,
    handed_out: VecDeque<Arc<[u8]>>,
    /// Buffers the pool knows, and their cost.
    buffers: usize,
    bytes: usize,
    bytes_max: usize,
    /// Bin to look at first when a free buffer has to give way.
    give_way: usize,
    allocations: u64,
}

/// What a buffer costs beside its bytes: the counters of the `Arc`, the handle, the allocator's share.
const BUFFER_OVERHEAD_BYTES: usize = 48;

impl Pool {
    fn new(lengths: Range<usize>, bytes_max: usize) -> Self {
        Self {
            bytes_min: lengths.start,
            bins: lengths.map(|_| Bin::default()).collect(),
            handed_out: VecDeque::new(),
            buffers: 0,
            bytes: 0,
            bytes_max,
            give_way: 0,
            allocations: 0,
        }
    }

    /// Takes back buffers that nobody else holds, oldest first. Held ones are passed over, at most
    /// [`limits::PAYLOAD_POOL_LOOKS_MAX`] of them; if nothing else was found they go to the back of the queue,
    /// so that one viewer's hoard does not hide what lies behind it.
    fn collect(&mut self) {
        let mut passed = 0;
        let mut found = false;
        while passed < limits::PAYLOAD_POOL_LOOKS_MAX
            && let Some(buffer) = self.handed_out.get_mut(passed)
        {
            if Arc::strong_count(buffer) == 1 && Arc::get_mut(buffer).is_some() {
                // Puts the passed front one in its place: the order stays nearly that of handing out.
                if let Some(buffer) = self.handed_out.swap_remove_front(passed) {
                    self.free(buffer);
                }
                found = true;
            } else {
                passed += 1;
            }
        }
        if !found && passed < self.handed_out.len() {
            self.handed_out.rotate_left(passed);
        }
    }

    fn write(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Arc<[u8]> {
        let mut buffer = match self.bin(bytes).and_then(|bin| bin.free.pop()) {
            Some(buffer) => buffer,
            None => self.allocate(bytes),
        };
        let unique = Arc::get_mut(&mut buffer);
        assert!(unique.is_some(), "a free buffer has one handle");
        if let Some(payload) = unique {
            fill(payload);
        }
        self.handed_out.push_back(Arc::clone(&buffer));
        buffer
    }

    fn bin(&mut self, bytes: usize) -> Option<&mut Bin> {
        self.bins.get_mut(bytes.checked_sub(self.bytes_min)?)
    }

    fn free(&mut self, buffer: Arc<[u8]>) {
        if let Some(bin) = self.bin(buffer.len()) {
            bin.free.push(buffer);
        }
    }

    fn allocate(&mut self, bytes: usize) -> Arc<[u8]> {
        while self.bytes + bytes + BUFFER_OVERHEAD_BYTES > self.bytes_max && self.drop_one() {}
        self.bytes += bytes + BUFFER_OVERHEAD_BYTES;
        self.allocations += 1;
        // Room to keep the buffer in either place: nothing else here grows.
        self.buffers += 1;
        self.handed_out.reserve(self.buffers - self.handed_out.len());
        if let Some(bin) = self.bin(bytes) {
            bin.count += 1;
            bin.free.reserve(bin.count - bin.free.len());
        }
        std::iter::repeat_n(0, bytes).collect()
    }

    /// Lets go of a free buffer of another length, else of the oldest handed-out one.
    fn drop_one(&mut self) -> bool {
        let bins = self.bins.len();
        for step in 0..bins {
            let at = (self.give_way + step) % bins;
            if let Some(buffer) = self.bins.get_mut(at).and_then(|bin| bin.free.pop()) {
                self.give_way = at + 1;
                self.forget(buffer.len());
                return true;
            }
        }
        match self.handed_out.pop_front() {
            Some(buffer) => self.forget(buffer.len()),
            None => return false,
        }
        true
    }

    fn forget(&mut self, bytes: usize) {
        self.buffers -= 1;
        self.bytes -= bytes + BUFFER_OVERHEAD_BYTES;
        if let Some(bin) = self.bin(bytes) {
            bin.count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{AUD, SEI, annex_b, hostile_bytes, idr, non_idr, pps, slice, sps};
    use super::super::{Assembler, Depacketizer};
    use super::*;
    use proptest::prelude::*;

    /// A stream's state for the tests: assembler, packetiser and the payloads of the last unit.
    struct Sender {
        assembler: Assembler,
        packetizer: Packetizer,
        payloads: Vec<Arc<[u8]>>,
    }

    impl Sender {
        fn new(payload_bytes_max: usize) -> Self {
            let packetizer = Packetizer::new(payload_bytes_max);
            Self { assembler: Assembler::new(), packetizer, payloads: Vec::new() }
        }

        fn send(&mut self, nals: &[&[u8]]) -> &[Arc<[u8]>] {
            let unit = annex_b(nals);
            self.packetizer.packetize(&self.assembler.assemble(&unit).unwrap(), &mut self.payloads);
            &self.payloads
        }
    }

    #[test]
    fn small_leading_nal_units_share_a_stap_a() {
        let mut sender = Sender::new(1140);
        let (sps, pps, idr) = (sps(0, 31, 80, 45), pps(0, 0, 0), idr(0));
        let payloads = sender.send(&[AUD, &sps, &pps, SEI, &idr]);
        let mut expected = vec![0x60 | STAP_A]; // the SPS's NRI is the highest
        for nal in [AUD, &sps, &pps, SEI] {
            expected.extend([0, u8::try_from(nal.len()).unwrap()]);
            expected.extend(nal);
        }
        assert_eq!(payloads.iter().map(|payload| &payload[..]).collect::<Vec<_>>(), [&expected[..], &idr]);
    }

    #[test]
    fn a_run_of_one_and_a_small_slice_are_single_nal_units() {
        let mut sender = Sender::new(1140);
        let slice = non_idr(0);
        let payloads = sender.send(&[AUD, &slice, SEI]);
        assert_eq!(payloads.iter().map(|payload| &payload[..]).collect::<Vec<_>>(), [AUD, &slice, SEI]);
    }

    #[test]
    fn a_large_slice_is_cut_into_equal_fragments_and_a_rest() {
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
    fn sizes_around_the_limit_are_cut_right() {
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
    fn aggregates_are_split_where_they_do_not_fit_and_large_ones_are_fragments() {
        let mut sender = Sender::new(64);
        let sei = |bytes: usize| [&[0x06][..], &vec![0x55; bytes - 1]].concat();
        let (small, one, exact, large) = (sei(20), sei(63), sei(64), sei(65));
        let slice = non_idr(0);
        let payloads = sender.send(&[&small, &small, &small, &one, &exact, &large, AUD, &small, &slice]);
        let kinds: Vec<(u8, usize)> =
            payloads.iter().map(|payload| (payload[0] & 0x1F, payload.len())).collect();
        let expected =
            [(9, 2), (24, 45), (6, 20), (6, 63), (6, 64), (28, 64), (28, 4), (6, 20), (1, slice.len())];
        // The delimiter is moved to the front and shares the first aggregate.
        let expected = [&[(24, 1 + 4 + 22 + 22)][..], &[(6, 20)], &expected[3..]].concat();
        assert_eq!(kinds, expected);
    }

    #[test]
    fn an_aggregate_has_the_highest_nri_of_its_nal_units() {
        let mut sender = Sender::new(1140);
        let payloads = sender.send(&[&[0x26, 1, 2], &[0x46, 3, 4], &[0x06, 5, 6], &non_idr(0)]);
        assert_eq!(payloads[0][0], 0x40 | STAP_A);
    }

    /// Units of varying sizes, the payloads of the last `held` units held as a retransmission cache does.
    fn allocations_per_round(held: usize, rounds: usize) -> Vec<u64> {
        let mut sender = Sender::new(1140);
        let mut cache = VecDeque::new();
        let mut per_round = Vec::new();
        for _ in 0..rounds {
            let before = sender.packetizer.allocations();
            for unit in 0..30 {
                let slice = slice(0x41, 0, if unit == 0 { 30_000 } else { 3_000 + unit * 137 });
                cache.push_back(sender.send(&[AUD, &slice]).to_vec());
                if cache.len() > held {
                    cache.pop_front();
                }
            }
            per_round.push(sender.packetizer.allocations() - before);
        }
        per_round
    }

    #[test]
    fn a_steady_stream_stops_allocating() {
        for held in [0, 1, 7, 30, 45] {
            let per_round = allocations_per_round(held, 12);
            assert!(per_round[0] > 0);
            assert_eq!(per_round[4..], [0; 8], "{held} units held: {per_round:?}");
        }
    }

    #[test]
    fn a_viewer_that_holds_on_does_not_stop_the_reuse() {
        let mut sender = Sender::new(1140);
        let mut hoard = Vec::new();
        let mut last = 0;
        for round in 0..200 {
            let payloads = sender.send(&[AUD, &slice(0x41, 0, 20_000)]).to_vec();
            if round < 20 {
                hoard.extend(payloads);
            } else if round == 100 {
                last = sender.packetizer.allocations();
            }
        }
        assert!(hoard.len() > 4 * limits::PAYLOAD_POOL_LOOKS_MAX);
        assert_eq!(sender.packetizer.allocations(), last);
    }

    #[test]
    fn held_payloads_are_never_written_again() {
        let mut sender = Sender::new(100);
        let held: Vec<Arc<[u8]>> = sender.send(&[&slice(0x41, 0, 1_000)]).to_vec();
        let copy: Vec<Vec<u8>> = held.iter().map(|payload| payload.to_vec()).collect();
        for _ in 0..50 {
            sender.send(&[&slice(0x61, 0, 1_003)]);
        }
        assert_eq!(held.iter().map(|payload| payload.to_vec()).collect::<Vec<_>>(), copy);
    }

    #[test]
    fn the_pool_is_bounded_however_much_is_held() {
        let mut pool = Pool::new(1..1000, 100_000);
        let mut held = Vec::new();
        for index in 0..5_000 {
            held.push(pool.write(1 + index * 7 % 999, |payload| payload.fill(1)));
            assert!(pool.bytes <= 100_000 && pool.handed_out.len() <= pool.buffers);
        }
        held.clear();
        for index in 0..5_000 {
            pool.collect();
            pool.write(1 + index * 13 % 999, |payload| payload.fill(2));
            let free: usize = pool.bins.iter().map(|bin| bin.free.len()).sum();
            assert_eq!(free + pool.handed_out.len(), pool.buffers);
            assert!(pool.bytes <= 100_000);
        }
    }

    proptest! {
        #[test]
        fn the_receiving_twin_gets_the_nal_units_back(
            sizes in prop::collection::vec((0..4_usize, 3..400_usize), 1..20),
            payload_bytes_max in 16..300_usize,
        ) {
            let mut sender = Sender::new(payload_bytes_max);
            let mut nals = vec![AUD.to_vec(), sps(0, 31, 80, 45), pps(0, 0, 0)];
            nals.extend(sizes.iter().map(|(kind, size)| slice([0x06, 0x65, 0x41, 0x2C][*kind], 0, *size)));
            nals.push(idr(0));
            let nals: Vec<&[u8]> = nals.iter().map(Vec::as_slice).collect();
            let payloads = sender.send(&nals).to_vec();
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
        fn hostile_units_never_panic_and_survive_the_round_trip(
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
                for (index, payload) in sender.payloads.iter().enumerate() {
                    let last = index + 1 == sender.payloads.len();
                    received = receiver.push(payload, last, 90, sequence_number);
                    sequence_number = sequence_number.wrapping_add(1);
                }
                let sent: Vec<Vec<u8>> = assembled.nals().map(|nal| nal.bytes.to_vec()).collect();
                prop_assert_eq!(received, Some(sent));
            }
        }
    }
}
