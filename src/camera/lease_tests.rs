//! Tests of the guarantees between readers and camera on a lease ring, one test for each guarantee. The tests use the
//! server's `Camera` and `Cursor`, and the simulator's writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rustix::fd::OwnedFd;
use rustix::shm;

use super::cursor::Next;
use super::layout::Layout;
use super::lease_header::{CONTROL_BYTES, Geometry, HEADER_BYTES, control, header};
use super::mapping::{Access, Mapping};
use super::segment::MappingError;
use super::segment_follower::{Progress, SegmentFollower};
use super::source::{Camera, CameraStatus, IdrRequest, Wake};
use super::test_ring::{attach, metadata, unit};
use super::writer::{RingWriter, WriterError};
use super::{Wakeup, waiter};

const MS: i64 = 1_000_000;
const SLOTS: u32 = 8;
const SLOT_BYTES: u32 = 4096;

/// A camera that writes a small lease ring. Dropping it unlinks the segment.
struct Ring {
    name: String,
    writer: RingWriter,
    frame_number: u64,
}

impl Ring {
    fn new() -> Ring {
        static RINGS: AtomicU32 = AtomicU32::new(0);
        let number = RINGS.fetch_add(1, Ordering::Relaxed);
        Ring::named(&format!("/ss-test-{}-lease-{number}", std::process::id()))
    }

    fn named(name: &str) -> Ring {
        let writer = RingWriter::create(name, layout(), 33).unwrap();
        Ring { name: name.to_owned(), writer, frame_number: 0 }
    }

    fn publish(&mut self, data: &[u8]) -> bool {
        let metadata = metadata(self.frame_number, data);
        self.frame_number += 1;
        self.writer.publish(&metadata, data)
    }

    /// Restarts the camera in the same segment, as if the old camera had been killed.
    fn restart(&mut self) {
        self.writer.abandon();
        self.writer = RingWriter::attach(&self.name).unwrap();
        self.frame_number = 0;
    }

    fn file(&self) -> OwnedFd {
        shm::open(self.name.as_str(), shm::OFlags::RDWR, shm::Mode::empty()).unwrap()
    }

    /// Returns the number of reader bits in all slot words. The words are read through the file, without a mapping.
    fn leases(&self) -> u32 {
        let Layout::Lease(geometry) = layout() else { unreachable!() };
        let file = self.file();
        let readers = (0..SLOTS).map(|slot| {
            let mut word = [0; 8];
            rustix::io::pread(&file, &mut word, (geometry.control_of(slot) + control::WORD) as u64).unwrap();
            (u64::from_ne_bytes(word) & super::lease::READERS).count_ones()
        });
        readers.sum()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}

fn layout() -> Layout {
    Layout::Lease(Geometry::new(SLOTS, SLOT_BYTES).unwrap())
}

#[test]
fn every_unit_arrives_once_and_in_order() {
    let mut ring = Ring::new();
    ring.publish(b"published before");
    let (camera, mut cursor) = attach(&ring.name);
    let mut follower = SegmentFollower::new(camera.clone());
    for i in 1..100_u8 {
        assert!(matches!(cursor.next(0), Next::Empty));
        assert!(ring.publish(&vec![i; 1000 + usize::from(i)]));
        assert_eq!(follower.poll(i64::from(i) * 33 * MS, None), Progress::Advanced(1));
        let view = unit(cursor.next(0));
        assert_eq!((view.sequence, view.frame_number), (u32::from(i), u64::from(i)));
        assert_eq!((view.width, view.height), (1280, 720));
        assert_eq!(view.bytes, vec![i; 1000 + usize::from(i)]);
        assert!(view.is_intact());
    }
    assert_eq!(ring.leases(), 0);
}

#[test]
fn leased_unit_is_unchanged_however_long_it_is_held() {
    let mut ring = Ring::new();
    let (_camera, mut cursor) = attach(&ring.name);
    ring.publish(&[7; 4000]);
    let view = unit(cursor.next(0));
    let slice = view.bytes.slice(3990..);
    for i in 0..100_u8 {
        assert!(ring.publish(&[i; 4096]), "the camera skips the leased slot");
        assert!(view.is_intact());
        assert_eq!(view.bytes, [7; 4000][..]);
    }
    drop(view);
    assert_eq!((ring.leases(), &slice[..]), (1, &[7; 10][..]), "a slice holds the lease too");
    drop(slice);
    assert_eq!((ring.leases(), ring.writer.dropped()), (0, 0));
}

#[test]
fn cursors_of_one_process_share_a_lease_and_each_process_has_its_own() {
    let mut ring = Ring::new();
    let (camera, mut first) = attach(&ring.name);
    let (_other_camera, mut other) = attach(&ring.name);
    let mut second = camera.cursor();
    ring.publish(b"one");
    let views = [unit(first.next(0)), unit(second.next(0)), unit(other.next(0))];
    assert_eq!(ring.leases(), 2, "one bit per process");
    let [first, second, other] = views;
    drop(second);
    assert_eq!(ring.leases(), 2);
    drop(first);
    assert_eq!(ring.leases(), 1);
    drop(other);
    assert_eq!(ring.leases(), 0);
}

#[test]
fn reader_at_its_lease_limit_waits_and_the_camera_drops_nothing() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    for i in 0..4 {
        ring.publish(&[i]);
    }
    let mut held = vec![unit(cursor.next(0)), unit(cursor.next(0))];
    assert!(matches!(cursor.next(0), Next::Empty), "the limit is a quarter of eight slots");
    assert_eq!(camera.counters().leases_refused.get(), 1);
    held.remove(0);
    assert_eq!(unit(cursor.next(0)).bytes, [2][..], "it continues at its position");
    held.push(unit(cursor.next(0)));
    for i in 4..100 {
        assert!(ring.publish(&[i]), "the camera never drops for one reader");
        assert!(matches!(cursor.next(0), Next::Empty | Next::Lapped { .. }));
    }
    assert_eq!((&held[0].bytes[..], &held[1].bytes[..]), (&[1][..], &[3][..]));
    held.clear();
    let mut newest = None;
    loop {
        match cursor.next(0) {
            Next::Unit(view) => newest = view.bytes.first().copied(),
            Next::Lapped { .. } => {}
            Next::Empty => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(newest, Some(99), "after its releases it catches up");
    assert_eq!(ring.writer.dropped(), 0);
}

#[test]
fn dropped_unit_is_skipped_and_the_next_ones_arrive() {
    let mut ring = Ring::new();
    let readers: Vec<_> = (0..4).map(|_| attach(&ring.name)).collect();
    let (camera, mut reading) = attach(&ring.name);
    let mut held = Vec::new();
    for (_, mut cursor) in readers.iter().map(|(camera, _)| (camera, camera.cursor())) {
        for i in 0..2 {
            assert!(ring.publish(&[i]));
            held.push(unit(cursor.next(0)));
        }
        while matches!(reading.next(0), Next::Unit(_)) {}
    }
    // Four readers lease two slots each, so none of the eight slots is free.
    assert_eq!(ring.leases(), 8);
    assert!(!ring.publish(b"dropped") && !ring.publish(b"dropped too"));
    assert_eq!(camera.units_dropped(), 2);
    assert!(matches!(reading.next(0), Next::Empty), "it shows with the next unit only");
    held.clear();
    assert!(ring.publish(b"next") && ring.publish(b"and next"));
    assert!(matches!(reading.next(0), Next::Lapped { missed_units: 2 }));
    assert_eq!(unit(reading.next(0)).bytes, b"next"[..]);
    assert_eq!(unit(reading.next(0)).bytes, b"and next"[..]);
    assert!(matches!(reading.next(0), Next::Empty));
}

#[test]
fn lapped_cursor_reports_it_once_and_continues_with_the_newest_unit() {
    let mut ring = Ring::new();
    let (_camera, mut cursor) = attach(&ring.name);
    for i in 0..100_u8 {
        ring.publish(&[i]);
    }
    assert_eq!(cursor.lag_slots(), 100);
    assert!(matches!(cursor.next(0), Next::Lapped { missed_units: 99 }));
    assert_eq!(unit(cursor.next(0)).bytes, [99][..]);
    assert!(matches!(cursor.next(0), Next::Empty));
}

#[test]
fn units_in_the_ring_can_be_read_again() {
    let mut ring = Ring::new();
    let (_camera, mut cursor) = attach(&ring.name);
    for i in 0..50_u8 {
        ring.publish(&[i]);
        unit(cursor.next(0));
    }
    let mut back = cursor.units_back(SLOTS).unwrap();
    for i in 42..50 {
        assert_eq!(unit(back.next(0)).sequence, i);
    }
    assert!(cursor.units_back(SLOTS + 1).is_none());
    assert!(matches!(cursor.units_back(0).unwrap().next(0), Next::Empty));
    ring.restart();
    let (_camera, cursor) = attach(&ring.name);
    assert!(cursor.units_back(1).is_none(), "it belongs to an earlier run");
}

#[test]
fn camera_restart_in_the_segment_keeps_leases() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut other = camera.cursor();
    let mut follower = SegmentFollower::new(camera.clone());
    follower.poll(0, None);
    for _ in 0..20 {
        ring.publish(b"old");
        unit(cursor.next(0));
    }
    let held = unit(cursor.units_back(1).unwrap().next(0));
    ring.restart();
    for i in 0..7 {
        assert!(ring.publish(&[i]));
    }
    assert_eq!(held.bytes, b"old"[..], "still leased");
    assert!(!held.is_intact(), "but it belongs to an earlier run");
    follower.poll(33 * MS, None);
    for cursor in [&mut cursor, &mut other] {
        assert!(matches!(cursor.next(0), Next::Restarted), "every cursor reports it");
        let first = unit(cursor.next(0));
        assert_eq!((&first.bytes[..], first.frame_number), (&[0][..], 0));
    }
    drop(held);
    assert_eq!(ring.leases(), 0);
}

#[test]
fn ended_camera_is_away_at_once() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut follower = SegmentFollower::new(camera.clone());
    follower.poll(0, None);
    for step in 1..100 {
        follower.poll(step * 200 * MS, None);
    }
    assert!(matches!(camera.status(), CameraStatus::Attached { .. }), "silent but alive");
    ring.writer.abandon();
    follower.poll(30_000 * MS, None);
    let CameraStatus::Away { reason } = camera.status() else { panic!("still attached") };
    assert!(reason.contains("writer has ended"), "{reason}");
    assert!(matches!(cursor.next(0), Next::Away));
    ring.restart();
    ring.publish(b"again");
    follower.poll(30_100 * MS, None);
    assert!(matches!(cursor.next(0), Next::Restarted));
    assert_eq!(unit(cursor.next(0)).bytes, b"again"[..]);
}

#[test]
fn new_segment_under_the_name_is_attached() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut follower = SegmentFollower::new(camera);
    ring.publish(b"old");
    follower.poll(0, None);
    let held = unit(cursor.next(0));
    let mut new = Ring::named(&ring.name);
    new.publish(b"new");
    follower.poll(1000 * MS, None);
    assert!(matches!(cursor.next(0), Next::Restarted));
    assert_eq!(unit(cursor.next(0)).bytes, b"new"[..]);
    assert_eq!((&held.bytes[..], held.is_intact()), (&b"old"[..], true));
}

#[test]
fn ring_allows_one_writer_and_sixteen_readers() {
    let ring = Ring::new();
    assert!(matches!(RingWriter::attach(&ring.name), Err(WriterError::InUse { .. })));
    let mut readers: Vec<_> =
        (0..16).map(|_| Mapping::open(&ring.name, Access::Semaphore).unwrap()).collect();
    let refused = Mapping::open(&ring.name, Access::Semaphore);
    assert!(matches!(refused, Err(MappingError::ReadersMax { .. })), "{refused:?}");
    assert!(Mapping::open(&ring.name, Access::Inspect).is_ok(), "inspecting needs no reader number");
    readers.pop();
    assert!(Mapping::open(&ring.name, Access::ReadOnly).is_ok());
}

#[test]
fn segment_that_shrinks_under_a_lease_does_not_end_the_process() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut follower = SegmentFollower::new(camera.clone());
    ring.publish(&[9; 4000]);
    follower.poll(0, None);
    let held = unit(cursor.next(0));
    rustix::fs::ftruncate(ring.file(), 0).unwrap();
    assert_eq!(held.bytes, [0; 4000][..], "no SIGBUS");
    assert!(!held.is_intact());
    assert!(matches!(cursor.next(0), Next::Away));
    follower.poll(1000 * MS, None);
    let CameraStatus::Away { reason } = camera.status() else { panic!("still attached") };
    assert!(reason.contains("of 0 bytes"), "{reason}");
    drop(held);
    // The writer's pages are gone too. Dropping the writer would access them and fault, so the ring is forgotten
    // instead.
    ring.writer.unlink();
    std::mem::forget(ring);
}

#[test]
fn idr_requests_have_a_burst_and_a_rate_that_all_consumers_share() {
    let mut ring = Ring::new();
    let (camera, _cursor) = attach(&ring.name);
    let mut requests = Vec::new();
    for step in 0..600 {
        let result = camera.request_idr(step * 100 * MS);
        let is_sent = ring.writer.take_idr_request();
        assert_eq!(result, if is_sent { IdrRequest::Sent } else { IdrRequest::TooSoon });
        assert!(!ring.writer.take_idr_request(), "taken once");
        requests.extend(is_sent.then_some(step));
    }
    assert_eq!(requests[..5], [0, 5, 10, 15, 20], "the burst: at most two requests a second");
    let count = requests.len();
    assert!((30..=35).contains(&count), "{count} requests in a minute");
    assert_eq!(camera.counters().idrs_requested.get(), count as u64);
    drop(ring);
    let legacy = super::test_ring::TestRing::new(Layout::V3Ring6);
    let impossible = Camera::new(legacy.name(), Wake::Poll).request_idr(0);
    assert_eq!(impossible, IdrRequest::Impossible, "legacy rings have no request");
    let away = Camera::new("/ss-test-never-there", Wake::Poll);
    assert_eq!(away.request_idr(0), IdrRequest::Impossible);
}

#[test]
fn futex_wakes_the_waiter_for_every_unit() {
    struct Unpark(std::thread::Thread);
    impl Wakeup for Unpark {
        fn wake(&self) {
            self.0.unpark();
        }
    }
    for wake in [Wake::Auto, Wake::Semaphore, Wake::Poll] {
        let mut ring = Ring::new();
        let camera = Camera::new(&ring.name, wake);
        camera.add_wakeup(Arc::new(Unpark(std::thread::current())));
        let (mut cursor, stop) = (camera.cursor(), AtomicBool::new(false));
        let stop = Arc::new(stop);
        let waiting = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || waiter::run(camera, stop, false))
        };
        for i in 0..100_u8 {
            ring.publish(&[i; 100]);
            let view = loop {
                match cursor.next(0) {
                    Next::Unit(view) => break view,
                    Next::Empty => std::thread::park_timeout(Duration::from_secs(20)),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(view.bytes, [i; 100][..], "{wake:?}");
        }
        stop.store(true, Ordering::Release);
        waiting.join().unwrap();
    }
}

proptest! {
    #![proptest_config(support::properties_of(64))]

    /// Writes any bytes into the control blocks and into the header's changing words. A reader must not panic, read
    /// outside the ring or loop forever.
    #[test]
    fn hostile_ring_contents_do_not_break_a_reader(
        writes in prop::collection::vec((0..4096 + 8 * 128_u64, prop_oneof![Just(0_u64), any::<u64>(), 0..600_u64]), 1..200),
    ) {
        let mut ring = Ring::new();
        let (camera, mut cursor) = attach(&ring.name);
        let mut follower = SegmentFollower::new(camera.clone());
        let file = ring.file();
        for i in 0..3 {
            ring.publish(&[i; 100]);
        }
        let mut held = Vec::new();
        for (i, (offset, value)) in (1_i64..).zip(writes) {
            // The header fields before EPOCH are read only once, when the ring is mapped, so they are not overwritten.
            let offset = (offset & !7).max(header::EPOCH as u64);
            rustix::io::pwrite(&file, &value.to_ne_bytes(), offset).unwrap();
            follower.poll(i * 33 * MS, None);
            let _ = camera.status();
            let _ = cursor.lag_slots();
            for count in [0, 1, 7, 1000] {
                let _ = cursor.units_back(count).map(|mut back| back.next(0));
            }
            for _ in 0..20 {
                match cursor.next(i * 33 * MS) {
                    Next::Unit(view) => {
                        prop_assert!(!view.bytes.is_empty() && view.bytes.len() <= SLOT_BYTES as usize);
                        let _ = view.bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                        held.push(view);
                    }
                    Next::Empty | Next::Away => break,
                    _ => {}
                }
            }
            if i % 7 == 0 {
                held.clear();
            }
        }
    }
}

const _: () = assert!(HEADER_BYTES == 4096 && CONTROL_BYTES == 128, "the writes reach every control word");

#[test]
fn bitrate_request_reaches_a_camera_that_obeys_and_ends_when_it_is_not_renewed() {
    const S: i64 = 1_000 * MS;
    let mut ring = Ring::new();
    let camera = Camera::new(&ring.name, Wake::Auto);
    assert!(!camera.request_bitrate(900, 10 * S), "the flag is not set");
    assert_eq!(ring.writer.bitrate_request(10 * S), None);
    ring.writer.set_obeys_bitrate(true);
    assert!(camera.request_bitrate(900, 10 * S));
    assert_eq!(ring.writer.bitrate_request(10 * S), Some(900));
    assert_eq!(ring.writer.bitrate_request(15 * S), Some(900));
    assert_eq!(ring.writer.bitrate_request(16 * S), None, "the reader has not renewed it");
    assert!(camera.request_bitrate(900, 16 * S));
    assert_eq!(ring.writer.bitrate_request(16 * S), Some(900));
    ring.restart();
    assert_eq!(ring.writer.bitrate_request(16 * S), None, "the request was made to another camera");
    assert!(!camera.request_bitrate(900, 16 * S), "the new camera does not say that it obeys");
    ring.writer.set_obeys_bitrate(true);
    assert!(camera.request_bitrate(700, 17 * S) && camera.request_bitrate(0, 17 * S));
    assert_eq!(ring.writer.bitrate_request(17 * S), None, "withdrawn");
}

/// Returns the bytes of the header without the words that change with every unit.
fn quiet_header(ring: &Ring) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    rustix::io::pread(ring.file(), &mut bytes, 0).unwrap();
    [header::LATEST, header::FUTEX].iter().for_each(|at| bytes[*at..at + 8].fill(0));
    bytes
}

#[test]
fn header_of_a_camera_that_does_not_obey_stays_as_it_always_was() {
    let mut ring = Ring::new();
    let before = quiet_header(&ring);
    assert_eq!(before[header::VERSION], 1, "older readers accept the ring");
    assert!(before[header::STATE + 4..].iter().all(|byte| *byte == 0));
    assert_eq!(before[header::FLAGS..header::FLAGS + 4], [0; 4]);
    let camera = Camera::new(&ring.name, Wake::Auto);
    let mut cursor = camera.cursor();
    for kbps in [0, 500, u32::MAX] {
        assert!(!camera.request_bitrate(kbps, 5_000 * MS));
        assert!(ring.publish(b"unit"));
        assert!(matches!(cursor.next(0), Next::Unit(_)));
    }
    assert_eq!(quiet_header(&ring), before);
}

#[test]
fn nonsense_in_the_request_and_the_flags_disturbs_no_reader() {
    let mut ring = Ring::new();
    let write = |ring: &Ring, at: usize, value: u32| {
        rustix::io::pwrite(ring.file(), &value.to_ne_bytes(), at as u64).unwrap();
    };
    for nonsense in [1, 0x8000_0000, u32::MAX] {
        write(&ring, header::BITRATE_REQUEST, nonsense);
        write(&ring, header::BITRATE_REQUESTED_S, nonsense);
        write(&ring, header::FLAGS, nonsense & !1);
        let camera = Camera::new(&ring.name, Wake::Auto);
        let mut cursor = camera.cursor();
        assert!(matches!(camera.status(), CameraStatus::Attached { .. }), "{nonsense:#x}");
        assert!(ring.publish(b"unit"));
        assert!(matches!(cursor.next(0), Next::Unit(_)), "{nonsense:#x}");
        assert!(!camera.request_bitrate(900, 0), "{nonsense:#x}");
        write(&ring, header::FLAGS, u32::MAX);
        assert!(camera.request_bitrate(900, 7_000 * MS), "the request replaces the nonsense");
        assert_eq!(ring.writer.bitrate_request(7_000 * MS), Some(900));
    }
}
