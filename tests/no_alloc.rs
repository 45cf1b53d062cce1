//! After warm-up the server allocates nothing per access unit, on the way from the slot through a session to the
//! socket.
//! This test is a binary of its own because it replaces the global allocator with one that counts.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![expect(unsafe_code, reason = "a counting allocator is an unsafe trait by its nature")]

use support::session_peer as peer;

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator, which fulfils the contract of this trait.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        // `try_with` fails in a thread that is ending and has destroyed its thread-local. The test does not measure
        // such a thread, so the error is ignored.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `memory` holds for the system's allocator too.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        // SAFETY: `pointer` came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

mod stages {
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::Duration;

    use str0m::config::DtlsVersion;
    use streaming_server::camera::RingWriter;
    use streaming_server::camera::{Camera, FORMAT_H264, Layout, Next, SlotMetadata, Wake};
    use streaming_server::h264::{Assembler, Packetizer};
    use streaming_server::session::{DatagramSink, Destination, PacketizedUnit, SrtpChoice, UnitInfo};
    use streaming_server::uring::{Completion, Driver, UdpDriver, UdpDriverConfig, open_socket};

    use super::allocations;
    use super::peer::{Pair, context};

    const WARM_UP: u64 = 400;
    const MEASURED: u64 = 300;

    /// Hands a session's datagrams to the driver, as the worker does.
    struct ToEdge<'a> {
        driver: &'a mut UdpDriver,
        remote: SocketAddr,
    }

    impl DatagramSink for ToEdge<'_> {
        fn push_datagram(&mut self, _: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
            self.driver.send_with(1, None, self.remote, bytes, write);
        }
    }

    /// Writes unit `number` to `into` as a camera would. Every 30th unit has parameter sets and an IDR. Every other
    /// unit is one slice whose size varies.
    fn unit(number: u64, into: &mut Vec<u8>) {
        into.clear();
        let idr = number.is_multiple_of(30);
        if idr {
            into.extend_from_slice(&[0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8]);
            into.extend_from_slice(&[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80]);
        }
        into.extend_from_slice(&[0, 0, 0, 1, if idr { 0x65 } else { 0x41 }, 0xb8]);
        let bytes = if idr { 130_000 } else { 20_000 + usize::try_from(number * 7919 % 17).unwrap() * 613 };
        into.resize(into.len() + bytes, 0xa5);
    }

    fn metadata(number: u64, bytes: usize) -> SlotMetadata {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        SlotMetadata {
            frame_number: number,
            timestamp_s: now.tv_sec,
            timestamp_ns: now.tv_nsec,
            camera_id: 0,
            width: 640,
            height: 352,
            format: FORMAT_H264,
            data_bytes: bytes as u64,
        }
    }

    #[test]
    fn a_unit_from_slot_to_socket_allocates_nothing_of_ours() {
        let name = format!("/ss-test-no-alloc-{}", std::process::id());
        let mut writer = RingWriter::create(&name, Layout::V3, 33).unwrap();
        let mut cursor = Camera::new(&name, Wake::Poll).cursor();
        let (mut assembler, mut packetizer) = (Assembler::default(), Packetizer::for_rtp());
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = receiver.local_addr().unwrap();
        let socket: Arc<OwnedFd> = Arc::new(socket);
        let mut driver =
            UdpDriver::new(UdpDriverConfig { socket, receives: false, eventfds: Vec::new(), sends_max: 64 })
                .unwrap();

        let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
        pair.connect();
        let (mut bytes, mut payloads, mut counted) = (Vec::with_capacity(200_000), Vec::new(), 0);
        for number in 0..WARM_UP + MEASURED {
            unit(number, &mut bytes);
            writer.publish(&metadata(number, bytes.len()), &bytes);
            let before = allocations();
            let Next::Unit(view) = cursor.next(0) else { panic!("unit {number} is there") };
            let assembled = assembler.assemble(&view.bytes).unwrap();
            packetizer.packetize(&assembled, &mut payloads);
            assert!(view.is_intact());
            drop(view);
            let source = allocations() - before;
            let info = UnitInfo {
                is_idr: number.is_multiple_of(30),
                is_reference: true,
                rtp_time_90k: 3_000 * number,
                captured_at_ns: Some(1_700_000_000_000_000_000),
                ..UnitInfo::default()
            };
            let packetized = PacketizedUnit { info, payloads: &payloads };
            pair.run(Duration::from_millis(33));
            let before = allocations();
            let mut sink = ToEdge { driver: &mut driver, remote };
            pair.viewer.push_access_unit(pair.now, &packetized, &mut sink);
            driver.flush();
            driver.submit_and_wait(Duration::ZERO).unwrap();
            while let Some(completion) = driver.next_completion() {
                assert!(!matches!(completion, Completion::Datagram(_)));
            }
            if number >= WARM_UP {
                counted += source + (allocations() - before);
            }
        }
        writer.unlink();
        assert_eq!(counted, 0, "allocations of our stages in {MEASURED} units");
    }
}
