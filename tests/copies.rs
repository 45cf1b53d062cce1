//! Counts the bytes that `memcpy` and `memmove` copy between the slot and the kernel, per access unit and per viewer.
//! This process replaces both functions, so a new copy of a unit or a payload changes the counts. Encryption reads a
//! payload and writes a datagram; the test does not count that as a copy.
//!
//! The numbers in the drawing are the copies that each step makes.
//!
//! ```text
//!   slot ─1─► payloads, shared ─encryption (AES-CM: after a copy)─► batch of datagrams ─0─► kernel ─1─► packet
//! ```
//!
//! This test is a binary of its own because it replaces two functions of C.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: a panic is the report")]
#![expect(unsafe_code, reason = "memcpy and memmove are unsafe by their nature")]

use support::session_peer as peer;

use std::cell::Cell;

thread_local! {
    static COPIED: Cell<Copied> = const { Cell::new(Copied { media: 0, small: 0 }) };
}

/// Bytes copied by one thread.
#[derive(Clone, Copy, Default)]
struct Copied {
    /// Bytes in copies of at least [`MEDIA_BYTES_MIN`] bytes: units and RTP payloads.
    media: usize,
    /// Bytes in smaller copies: headers.
    small: usize,
}

const MEDIA_BYTES_MIN: usize = 1_000;

fn count(bytes: usize) {
    // `try_with` fails in a thread that is ending and has destroyed its thread-local. The test does not measure such a
    // thread, so the error is ignored.
    let _ = COPIED.try_with(|copied| {
        let mut sum = copied.get();
        *(if bytes < MEDIA_BYTES_MIN { &mut sum.small } else { &mut sum.media }) += bytes;
        copied.set(sum);
    });
}

/// Copies one byte. The access is volatile, because otherwise the compiler would turn the caller's loop into a call of
/// `memcpy`.
///
/// # Safety
/// The contract is that of `memmove` for the byte at `index`.
unsafe fn move_byte(target: *mut u8, source: *const u8, index: usize) {
    // SAFETY: the caller's promise covers the byte at `index` of `source`.
    let from = unsafe { source.add(index) };
    // SAFETY: the caller's promise covers the byte at `index` of `target`.
    let to = unsafe { target.add(index) };
    // SAFETY: `from` may be read, by the caller's promise.
    let byte = unsafe { from.read_volatile() };
    // SAFETY: `to` may be written, by the caller's promise.
    unsafe { to.write_volatile(byte) };
}

/// Replaces C's `memcpy` in all statically linked code of this process and counts the copied bytes.
///
/// # Safety
/// The contract is that of C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(target: *mut u8, source: *const u8, bytes: usize) -> *mut u8 {
    count(bytes);
    let mut index = 0;
    while index < bytes {
        // SAFETY: `target` and `source` are valid for `bytes` bytes, by the caller's promise.
        unsafe { move_byte(target, source, index) };
        index += 1;
    }
    target
}

/// Replaces C's `memmove` and counts the copied bytes.
///
/// # Safety
/// The contract is that of C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(target: *mut u8, source: *const u8, bytes: usize) -> *mut u8 {
    count(bytes);
    let is_forward = target.addr() <= source.addr();
    let mut done = 0;
    while done < bytes {
        let index = if is_forward { done } else { bytes - 1 - done };
        // SAFETY: `target` and `source` are valid for `bytes` bytes, and no byte is written before it was read.
        unsafe { move_byte(target, source, index) };
        done += 1;
    }
    target
}

mod path {
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::Duration;

    use str0m::config::DtlsVersion;
    use streaming_server::camera::{Camera, FORMAT_H264, Layout, Next, RingWriter, SlotMetadata, Wake};
    use streaming_server::h264::{Assembler, Packetizer};
    use streaming_server::session::{DatagramSink, Destination, PacketizedUnit, SrtpChoice, UnitInfo};
    use streaming_server::uring::{Driver, UdpDriver, UdpDriverConfig, open_socket};

    use super::peer::{Pair, context};
    use super::{COPIED, Cell, Copied};

    const UNITS: u64 = 100;
    const UNIT_BYTES: usize = 33_000;

    /// Runs `act` and returns its result. Adds to `into` how many bytes `act` copied.
    fn copied<T>(into: &mut Copied, act: impl FnOnce() -> T) -> T {
        let before = COPIED.with(Cell::get);
        let result = act();
        let after = COPIED.with(Cell::get);
        into.media += after.media - before.media;
        into.small += after.small - before.small;
        result
    }

    fn unit(number: u64) -> Vec<u8> {
        let mut unit = Vec::new();
        if number == 0 {
            unit.extend_from_slice(&[0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8]);
            unit.extend_from_slice(&[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80]);
        }
        unit.extend_from_slice(&[0, 0, 0, 1, if number == 0 { 0x65 } else { 0x41 }, 0xb8]);
        unit.resize(UNIT_BYTES, 0xa5);
        unit
    }

    fn metadata(number: u64) -> SlotMetadata {
        let data_bytes = UNIT_BYTES as u64;
        SlotMetadata {
            frame_number: number,
            width: 640,
            height: 352,
            format: FORMAT_H264,
            data_bytes,
            ..SlotMetadata::default()
        }
    }

    /// Hands a session's datagrams to the driver, as the worker does.
    struct ToEdge<'a> {
        driver: &'a mut UdpDriver,
        remote: SocketAddr,
        bytes: usize,
    }

    impl DatagramSink for ToEdge<'_> {
        fn push_datagram(&mut self, _: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
            self.bytes += bytes;
            self.driver.send_with(1, None, self.remote, bytes, write);
        }
    }

    fn driver() -> UdpDriver {
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let socket: Arc<OwnedFd> = Arc::new(socket);
        UdpDriver::new(UdpDriverConfig { socket, receives: false, eventfds: Vec::new(), sends_max: 64 })
            .unwrap()
    }

    #[test]
    fn a_unit_is_copied_once_for_all_viewers_and_a_fixed_number_of_times_per_viewer() {
        let mut seen = Copied::default();
        let sample = vec![7_u8; UNIT_BYTES];
        let twin = copied(&mut seen, || std::hint::black_box(&sample).to_vec());
        assert_eq!((seen.media, twin.len()), (UNIT_BYTES, UNIT_BYTES), "the replaced memcpy counts");

        for choice in [SrtpChoice::Gcm, SrtpChoice::Cm] {
            measure(choice);
        }
    }

    fn measure(choice: SrtpChoice) {
        let name = format!("/ss-test-copies-{choice}-{}", std::process::id());
        let mut writer = RingWriter::create(&name, Layout::V3, 33).unwrap();
        let mut cursor = Camera::new(&name, Wake::Poll).cursor();
        writer.unlink();
        let (mut assembler, mut packetizer) = (Assembler::default(), Packetizer::for_rtp());
        let mut pair = Pair::new(&context(choice), DtlsVersion::Auto);
        pair.connect();
        let mut driver = driver();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = receiver.local_addr().unwrap();
        let (mut source, mut session, mut sending) =
            (Copied::default(), Copied::default(), Copied::default());
        let mut datagram_bytes = 0;
        let mut payloads = Vec::new();
        for number in 0..UNITS {
            writer.publish(&metadata(number), &unit(number));
            copied(&mut source, || {
                let Next::Unit(view) = cursor.next(0) else { panic!("unit {number} is there") };
                packetizer.packetize(&assembler.assemble(&view.bytes).unwrap(), &mut payloads);
                assert!(view.is_intact());
            });
            let info = UnitInfo {
                is_idr: number == 0,
                is_reference: true,
                rtp_time_90k: 3_000 * number,
                captured_at_ns: None,
                ..UnitInfo::default()
            };
            let packetized = PacketizedUnit { info, payloads: &payloads };
            copied(&mut session, || {
                let mut sink = ToEdge { driver: &mut driver, remote, bytes: 0 };
                pair.viewer.push_access_unit(pair.now, &packetized, &mut sink);
                datagram_bytes += sink.bytes;
            });
            copied(&mut sending, || {
                driver.flush();
                driver.submit_and_wait(Duration::ZERO).unwrap();
                while driver.next_completion().is_some() {}
            });
            pair.run(Duration::from_millis(33));
        }
        let media_bytes = UNIT_BYTES * usize::try_from(UNITS).unwrap();
        let times = |bytes: usize| bytes as f64 / media_bytes as f64;
        let [once, each, handing] = [source, session, sending].map(|copied| times(copied.media));
        eprintln!(
            "{choice}: each media byte is copied {once:.3} times for all viewers, and for each viewer {each:.3} times \
             in its session, {handing:.3} on the way to the kernel and {:.3} by the kernel; smaller copies before, in \
             and after the session: {:.3}, {:.3}, {:.3}",
            times(datagram_bytes),
            times(source.small),
            times(session.small),
            times(sending.small),
        );
        // The ratio is not exactly 1. The last payload of a unit may be below `MEDIA_BYTES_MIN`, and a table that grows
        // is copied too.
        assert!((0.9..1.1).contains(&once), "from the slot into payloads: {once}");
        // AES-GCM reads the payload and writes the datagram without a copy. AES-CM first copies the payload and
        // encrypts the copy.
        let is_gcm = pair.viewer.status(pair.now).profile.is_some_and(|profile| profile.contains("GCM"));
        let expected = if is_gcm { 0.0..0.001 } else { 0.9..1.1 };
        assert!(expected.contains(&each), "from a payload into a datagram: {each}");
        assert_eq!(sending.media, 0, "datagrams are handed on without a copy");
    }
}
