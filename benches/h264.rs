//! Measures the cost of the h264 module per access unit (scan, assemble, packetise). The inputs are a P unit of 33 kB
//! (8 Mbit/s at 30 units/s) and an IDR of 130 kB. Allocations are counted too. In steady state there are none.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "synthetic input of known size")]

use std::collections::VecDeque;
use std::sync::Arc;

use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher, black_box};
use smallvec::SmallVec;
use streaming_server::h264::{AssembledUnit, Assembler, Packetizer, Payloads, scan};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const AUD: &[u8] = &[0x09, 0xF0];
/// Sequence parameter set for 1280x720 in High profile, written by x264.
const SPS: &[u8] = &[
    0x67, 0x64, 0x00, 0x1F, 0xAC, 0xD9, 0x40, 0x50, 0x05, 0xBB, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10,
    0x00, 0x00, 0x03, 0x03, 0xC0, 0xF1, 0x83, 0x19, 0x60,
];
const PPS: &[u8] = &[0x68, 0xEB, 0xE3, 0xCB, 0x22, 0xC0];
const UNITS: [Unit; 2] = [
    Unit { name: "P 33 kB", idr: false, bytes: 33_000 },
    Unit { name: "IDR 130 kB", idr: true, bytes: 130_000 },
];

/// Bytes of payloads that stay in use while the next unit is packetised. They stand for a retransmission cache of one
/// second at 8 Mbit/s.
const HELD_BYTES: usize = 1_000_000;

#[derive(Copy, Clone)]
struct Unit {
    name: &'static str,
    idr: bool,
    bytes: usize,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

impl Unit {
    /// Returns the unit as a camera writes it: a delimiter, parameter sets if it is an IDR, and one slice of
    /// pseudo-random bytes.
    fn annex_b(self) -> Vec<u8> {
        let mut unit = vec![0, 0, 0, 1];
        unit.extend_from_slice(AUD);
        if self.idr {
            for set in [SPS, PPS] {
                unit.extend_from_slice(&[0, 0, 0, 1]);
                unit.extend_from_slice(set);
            }
        }
        unit.extend_from_slice(&[0, 0, 0, 1, if self.idr { 0x65 } else { 0x41 }, 0x88, 0x84]);
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut zeros = 0;
        while unit.len() < self.bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let mut byte = (state >> 32) as u8;
            if zeros >= 2 && byte <= 3 {
                byte = 0x80;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            unit.push(byte);
        }
        unit.push(0x80);
        unit
    }
}

fn main() {
    divan::main();
}

#[divan::bench(args = UNITS)]
fn scan_unit(bencher: Bencher<'_, '_>, unit: Unit) {
    let bytes = unit.annex_b();
    let mut nals = SmallVec::new();
    bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| scan(black_box(&bytes), &mut nals));
}

#[divan::bench(args = UNITS)]
fn assemble_unit(bencher: Bencher<'_, '_>, unit: Unit) {
    let bytes = unit.annex_b();
    let mut assembler = started();
    bencher
        .counter(BytesCount::of_slice(&bytes))
        .bench_local(|| assembler.assemble(black_box(&bytes)).unwrap().nal_count());
}

/// Assembles an IDR without parameter sets. The assembler inserts them from its cache.
#[divan::bench]
fn assemble_idr_without_parameter_sets(bencher: Bencher<'_, '_>) {
    let whole = UNITS[1].annex_b();
    let slice_at = 6 + 4 + SPS.len() + 4 + PPS.len();
    let (_, bytes) = whole.split_at(slice_at);
    let mut assembler = started();
    bencher.bench_local(|| assembler.assemble(black_box(bytes)).unwrap().nal_count());
}

#[divan::bench(args = UNITS)]
fn packetize_unit(bencher: Bencher<'_, '_>, unit: Unit) {
    let bytes = unit.annex_b();
    let mut assembler = started();
    let assembled = assembler.assemble(&bytes).unwrap();
    let mut steady = SteadyPacketizer::new(&assembled);
    bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| steady.packetize(&assembled));
}

/// Assembles and packetises a unit, as a worker does.
#[divan::bench(args = UNITS)]
fn assemble_and_packetize_unit(bencher: Bencher<'_, '_>, unit: Unit) {
    let bytes = unit.annex_b();
    let mut assembler = started();
    let mut steady = SteadyPacketizer::new(&assembler.assemble(&bytes).unwrap());
    bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
        let assembled = assembler.assemble(black_box(&bytes)).unwrap();
        steady.packetize(&assembled)
    });
}

fn started() -> Assembler {
    let mut assembler = Assembler::default();
    assembler.assemble(&UNITS[1].annex_b()).unwrap();
    assembler
}

/// A packetiser in steady state. Its payloads are dropped one second after they were made.
struct SteadyPacketizer {
    packetizer: Packetizer,
    queue: VecDeque<Vec<Arc<Payloads>>>,
}

impl SteadyPacketizer {
    fn new(unit: &AssembledUnit<'_>) -> Self {
        let packetizer = Packetizer::for_rtp();
        let unit_bytes: usize = unit.nals().map(|nal| nal.bytes.len()).sum();
        let units = HELD_BYTES / unit_bytes;
        let mut steady = Self { packetizer, queue: (0..units).map(|_| Vec::new()).collect() };
        for _ in 0..4 * units {
            steady.packetize(unit);
        }
        steady
    }

    fn packetize(&mut self, unit: &AssembledUnit<'_>) -> usize {
        let mut payloads = self.queue.pop_front().unwrap_or_default();
        self.packetizer.packetize(unit, &mut payloads);
        let count = payloads.iter().map(|buffer| buffer.len()).sum();
        self.queue.push_back(payloads);
        count
    }
}
