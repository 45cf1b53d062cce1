//! Runs one operation of each stage that an access unit passes through, for `scripts/bench-gate`. callgrind counts the
//! instructions, and this program counts the allocations. The other benches measure times.
//!
//! `gate` lists the stages. `gate STAGE OPERATIONS` runs one stage. `gate under valgrind ...` starts valgrind, which
//! then runs `gate STAGE OPERATIONS`. Only the work inside `gate_measured` is counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench fails by panicking")]
#![allow(missing_docs, reason = "a program")]
#![expect(unsafe_code, reason = "a counting allocator is an unsafe trait by its nature")]

use support::session_peer as peer;

use std::alloc::{GlobalAlloc, Layout as Memory};
use std::collections::VecDeque;
use std::hint::black_box;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mimalloc::MiMalloc;
use peer::{Pair, ReusedBuffer};
use smallvec::SmallVec;
use str0m::config::DtlsVersion;
use str0m::crypto::dtls::SrtpProfile;
use streaming_server::camera::{Camera, Cursor, FORMAT_H264, Layout, Next, RingWriter, SlotMetadata, Wake};
use streaming_server::h264::{Assembler, Packetizer, Payloads, scan};
use streaming_server::recorder::format::{Fragment, Index, UnitKind, fmp4};
use streaming_server::session::SrtpChoice;
use streaming_server::session::media::srtp::{self, RtpPacket, Sealer};
use streaming_server::uring::{Driver, UdpDriver, UdpDriverConfig, open_socket};

/// The allocator of the server, with a counter of allocations.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on unchanged to mimalloc, which fulfils the contract of `GlobalAlloc`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: mimalloc has the same requirement for `memory` as this function, and the caller guarantees it.
        unsafe { MiMalloc.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        // SAFETY: `pointer` was returned by `alloc` above, and therefore by mimalloc, for this layout.
        unsafe { MiMalloc.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Number of operations before the counting starts. They fill the pools and caches.
const WARM_UP: u64 = 100;
/// Size of a P unit at 8 Mbit/s and 30 units/s.
const UNIT_BYTES: usize = 33_000;
const DATAGRAMS: usize = 29;
const PAYLOAD_BYTES: usize = 1_140;
const DATAGRAM_BYTES: usize = 1_170;
const HEADER_BYTES: usize = 24;

/// The name of a stage, and a function that runs the stage the given number of times.
type Stage = (&'static str, fn(u64));

const STAGES: [Stage; 8] = [
    ("ring_cursor", ring_cursor),
    ("nal_scan", nal_scan),
    ("packetize", packetize),
    ("session_turn", session_turn),
    ("seal_gcm", |operations| seal(operations, SrtpProfile::AEAD_AES_256_GCM)),
    ("seal_cm", |operations| seal(operations, SrtpProfile::AES128_CM_SHA1_80)),
    ("gso_run", gso_run),
    ("fmp4_fragment", fmp4_fragment),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.as_slice() {
        [] => STAGES.iter().for_each(|(name, _)| println!("{name}")),
        [first, program, words @ ..] if first == "under" => under(program, words),
        [name, operations] => {
            let (_, stage) = STAGES.iter().find(|(known, _)| known == name).expect("a stage");
            stage(operations.parse().expect("a number of operations"));
        }
        _ => panic!("gate [STAGE OPERATIONS]"),
    }
}

/// Replaces this process by `program`, which is valgrind.
fn under(program: &str, words: &[String]) {
    support::valgrind::hide_auxiliary_vector();
    panic!("{program}: {}", Command::new(program).args(words).exec());
}

/// callgrind counts the instructions inside this function.
#[inline(never)]
fn gate_measured<S>(state: &mut S, work: fn(&mut S)) {
    work(black_box(state));
}

/// Calls `work` `operations` times, each time after `prepare`. Prints the number of allocations that these calls of
/// `work` made.
fn run<S>(operations: u64, mut state: S, prepare: fn(&mut S), work: fn(&mut S)) {
    for _ in 0..WARM_UP {
        prepare(&mut state);
        work(&mut state);
    }
    let mut allocations = 0;
    for _ in 0..operations {
        prepare(&mut state);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        gate_measured(&mut state, work);
        allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
    }
    println!("allocations {allocations}");
}

/// Returns an access unit: an IDR with parameter sets, or a P slice. The slice data is pseudo-random and contains no
/// start codes.
fn unit(is_idr: bool) -> Vec<u8> {
    let mut unit = Vec::new();
    if is_idr {
        unit.extend_from_slice(&[0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8]);
        unit.extend_from_slice(&[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80]);
    }
    unit.extend_from_slice(&[0, 0, 0, 1, if is_idr { 0x65 } else { 0x41 }, 0xb8]);
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    while unit.len() < UNIT_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        unit.push((state >> 56).to_le_bytes()[0].max(4));
    }
    unit
}

struct Ring {
    writer: RingWriter,
    cursor: Cursor,
    number: u64,
    bytes: Vec<u8>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}

/// Measures how a consumer takes the next unit and checks that it is intact, without reading its bytes.
fn ring_cursor(operations: u64) {
    let name = format!("/ss-test-gate-{}", std::process::id());
    let writer = RingWriter::create(&name, Layout::V3, 33).unwrap();
    let cursor = Camera::new(&name, Wake::Poll).cursor();
    let ring = Ring { writer, cursor, number: 0, bytes: unit(false) };
    let publish = |ring: &mut Ring| {
        let metadata = SlotMetadata {
            frame_number: ring.number,
            width: 1280,
            height: 720,
            format: FORMAT_H264,
            data_bytes: ring.bytes.len() as u64,
            ..SlotMetadata::default()
        };
        ring.number += 1;
        assert!(ring.writer.publish(&metadata, &ring.bytes), "a slot is free");
    };
    run(operations, ring, publish, |ring| {
        let Next::Unit(view) = ring.cursor.next(0) else { panic!("no unit") };
        assert!(view.is_intact());
    });
}

fn nal_scan(operations: u64) {
    let state = (unit(false), SmallVec::new());
    run(operations, state, |_| {}, |(bytes, found)| scan(black_box(bytes), found).unwrap());
}

struct Packets {
    bytes: Vec<u8>,
    assembler: Assembler,
    packetizer: Packetizer,
    /// Payloads of the last 30 units, which stay in use as in a retransmission cache of one second.
    held: VecDeque<Vec<Arc<Payloads>>>,
}

/// Measures how the bytes of a slot are scanned and packetised.
fn packetize(operations: u64) {
    let mut assembler = Assembler::default();
    assembler.assemble(&unit(true)).unwrap();
    let packetizer = Packetizer::for_rtp();
    let held = (0..30).map(|_| Vec::new()).collect();
    let packets = Packets { bytes: unit(false), assembler, packetizer, held };
    run(
        operations,
        packets,
        |_| {},
        |packets| {
            let Packets { bytes, assembler, packetizer, held } = packets;
            let mut payloads = held.pop_front().unwrap_or_default();
            let unit = assembler.assemble(black_box(bytes)).unwrap();
            packetizer.packetize(&unit, &mut payloads);
            held.push_back(payloads);
        },
    );
}

struct Viewing {
    pair: Pair,
    payloads: Vec<Arc<Payloads>>,
    number: u64,
    out: ReusedBuffer,
}

/// Measures how one unit is sent to one viewer: gate, headers, SRTP with AES-256-GCM, retransmission cache.
fn session_turn(operations: u64) {
    let mut pair = Pair::new(&peer::context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    let payloads = peer::payloads(0, DATAGRAMS, PAYLOAD_BYTES);
    let viewing = Viewing { pair, payloads, number: 0, out: ReusedBuffer(Vec::with_capacity(1 << 16)) };
    let pass = |viewing: &mut Viewing| {
        viewing.pair.now += Duration::from_millis(33);
        viewing.number += 1;
        viewing.out.0.clear();
    };
    run(operations, viewing, pass, |viewing| {
        let Viewing { pair, payloads, number, out } = viewing;
        let sent_before = out.0.len();
        pair.viewer.push_access_unit(pair.now, &peer::unit(payloads, *number, *number == 1), out);
        assert!(out.0.len() > sent_before, "the unit is sent");
    });
}

struct Sealing {
    sealer: Sealer,
    index: u64,
    header: [u8; HEADER_BYTES],
    payload: Vec<u8>,
    out: Vec<u8>,
}

/// Measures how one packet is encrypted into its send buffer.
fn seal(operations: u64, profile: SrtpProfile) {
    let (sealer, _) = srtp::contexts(profile, &[1; 96], false).unwrap();
    let out = vec![0; HEADER_BYTES + PAYLOAD_BYTES + sealer.tag_bytes()];
    let sealing =
        Sealing { sealer, index: 0, header: [2; HEADER_BYTES], payload: vec![7; PAYLOAD_BYTES], out };
    let pass = |sealing: &mut Sealing| sealing.index += 1;
    run(operations, sealing, pass, |sealing| {
        let Sealing { sealer, index, header, payload, out } = sealing;
        let packet = RtpPacket { ssrc: 1, index: *index, header, prefix: &[], payload };
        assert!(sealer.seal_rtp(&packet, out));
    });
}

struct Sending {
    driver: UdpDriver,
    sink: UdpSocket,
    datagram: Vec<u8>,
}

/// Measures how a batch is built from the datagrams of a unit and submitted. The work of the kernel is not counted.
fn gso_run(operations: u64) {
    let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let config =
        UdpDriverConfig { socket: Arc::new(socket), receives: false, eventfds: Vec::new(), sends_max: 64 };
    let driver = UdpDriver::new(config).unwrap();
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    sink.set_nonblocking(true).unwrap();
    let sending = Sending { driver, sink, datagram: vec![0x5a; DATAGRAM_BYTES] };
    // Outstanding completions are reaped before the next operation, so that all operations do the same work.
    let prepare = |sending: &mut Sending| {
        let mut buffer = [0; 2_048];
        while sending.driver.in_flight(1) > 0 {
            sending.driver.submit_and_wait(Duration::from_millis(10)).unwrap();
            while sending.driver.next_completion().is_some() {}
        }
        while sending.sink.recv(&mut buffer).is_ok() {}
    };
    run(operations, sending, prepare, |sending| {
        let remote = sending.sink.local_addr().unwrap();
        for _ in 0..DATAGRAMS {
            let bytes = &sending.datagram;
            sending.driver.send_with(1, None, remote, bytes.len(), |room| room.copy_from_slice(bytes));
        }
        sending.driver.flush();
        sending.driver.submit_and_wait(Duration::ZERO).unwrap();
    });
}

struct Writing {
    unit: [Bytes; 1],
    parts: Vec<Bytes>,
    index: Index,
}

/// Measures how the header, lengths and parts of a fragment are built, and its entry in the index.
fn fmp4_fragment(operations: u64) {
    let writing = Writing { unit: [Bytes::from(unit(false))], parts: Vec::new(), index: Index::default() };
    run(
        operations,
        writing,
        |writing| writing.parts.clear(),
        |writing| {
            let fragment = Fragment {
                sequence: u32::try_from(writing.index.len()).unwrap() + 1,
                time_90k: writing.index.len() as u64 * 3_000,
                composition_90k: 0,
                duration_90k: 3_000,
                unit_bytes: writing.unit.iter().map(|nal| u32::try_from(nal.len()).unwrap() + 4).sum(),
                kind: UnitKind::Reference,
            };
            fmp4::gather(&fragment, &writing.unit, &mut writing.parts);
            writing.index.push(&fragment);
        },
    );
}
