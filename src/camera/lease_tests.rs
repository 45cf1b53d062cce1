//! What readers and camera promise each other on a lease ring, one test for each promise, through the same `Camera`
//! and `Cursor` that the server uses and the writer that the simulator uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rustix::fd::OwnedFd;
use rustix::shm;

use super::cursor::Next;
use super::layout::Layout;
use super::lease_header::{CONTROL_BYTES, Geometry, HEADER_BYTES, control, header};
use super::mapping::{Access, Mapping, MappingError};
use super::segment_follower::{Progress, SegmentFollower};
use super::source::{Camera, CameraStatus, Wake};
use super::test_ring::{attach, metadata, unit};
use super::writer::{RingWriter, WriterError};
use super::{Wakeup, waiter};

const MS: i64 = 1_000_000;
const SLOTS: u32 = 8;
const SLOT_BYTES: u32 = 4096;

/// A camera on a small lease ring of its own, unlinked at the end.
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

    /// As a daemon that was killed and started again.
    fn come_back(&mut self) {
        self.writer.abandon();
        self.writer = RingWriter::attach(&self.name).unwrap();
        self.frame_number = 0;
    }

    fn file(&self) -> OwnedFd {
        shm::open(self.name.as_str(), shm::OFlags::RDWR, shm::Mode::empty()).unwrap()
    }

    /// Readers in the slots' words, from the outside.
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
fn every_unit_comes_once_and_in_order() {
    let mut ring = Ring::new();
    ring.publish(b"published before");
    let (camera, mut cursor) = attach(&ring.name);
    let mut watch = SegmentFollower::new(camera.clone());
    for i in 1..100_u8 {
        assert!(matches!(cursor.next(0), Next::Empty));
        assert!(ring.publish(&vec![i; 1000 + usize::from(i)]));
        assert_eq!(watch.poll(i64::from(i) * 33 * MS, None), Progress::Advanced(1));
        let view = unit(cursor.next(0));
        assert_eq!((view.sequence, view.frame_number), (u32::from(i), u64::from(i)));
        assert_eq!((view.width, view.height, view.epoch), (1280, 720, 1));
        assert_eq!(view.bytes, vec![i; 1000 + usize::from(i)]);
        assert!(view.is_intact());
    }
    assert!(matches!(camera.status(), CameraStatus::Attached { width: 1280, height: 720, .. }));
    assert_eq!(ring.leases(), 0);
}

#[test]
fn a_leased_unit_stays_what_it_is_however_long_it_is_held() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    ring.publish(&[7; 4000]);
    let view = unit(cursor.next(0));
    let slice = view.bytes.slice(3990..);
    for i in 0..100_u8 {
        assert!(ring.publish(&[i; 4096]), "the camera goes round it");
        assert!(view.is_intact());
        assert_eq!(view.bytes, [7; 4000][..]);
    }
    drop(view);
    assert_eq!((ring.leases(), &slice[..]), (1, &[7; 10][..]), "a slice holds the lease as well");
    drop(slice);
    assert_eq!((ring.leases(), ring.writer.dropped()), (0, 0));
    assert_eq!(camera.counters().torn.get(), 0);
}

#[test]
fn cursors_of_one_program_share_a_lease_and_other_programs_have_their_own() {
    let mut ring = Ring::new();
    let (camera, mut first) = attach(&ring.name);
    let (_other_camera, mut other) = attach(&ring.name);
    let mut second = camera.cursor();
    ring.publish(b"one");
    let views = [unit(first.next(0)), unit(second.next(0)), unit(other.next(0))];
    assert_eq!(ring.leases(), 2, "a bit for each program");
    let [first, second, other] = views;
    drop(second);
    assert_eq!(ring.leases(), 2);
    drop(first);
    assert_eq!(ring.leases(), 1);
    drop(other);
    assert_eq!(ring.leases(), 0);
}

#[test]
fn a_program_that_holds_too_many_waits_and_gives_back_before_the_camera_has_to_drop() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    for i in 0..4 {
        ring.publish(&[i]);
    }
    let mut held = vec![unit(cursor.next(0)), unit(cursor.next(0))];
    assert!(matches!(cursor.next(0), Next::Empty), "a quarter of eight slots");
    assert_eq!(camera.counters().leases_refused.get(), 1);
    held.remove(0);
    assert_eq!(unit(cursor.next(0)).bytes, [2][..], "it goes on where it was");
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
    assert_eq!(newest, Some(99), "free again, it catches up");
    assert!(camera.counters().lapped_units.get() > 0);
    assert_eq!(ring.writer.dropped(), 0);
}

#[test]
fn a_unit_the_camera_had_to_drop_is_missing_and_the_next_ones_are_not() {
    let mut ring = Ring::new();
    let readers: Vec<_> = (0..4).map(|_| attach(&ring.name)).collect();
    let (camera, mut watching) = attach(&ring.name);
    let mut held = Vec::new();
    for (_, mut cursor) in readers.iter().map(|(camera, _)| (camera, camera.cursor())) {
        for i in 0..2 {
            assert!(ring.publish(&[i]));
            held.push(unit(cursor.next(0)));
        }
        while matches!(watching.next(0), Next::Unit(_)) {}
    }
    // Four readers hold two slots each; the newest is one of them, and none is free.
    assert_eq!(ring.leases(), 8);
    assert!(!ring.publish(b"dropped") && !ring.publish(b"dropped too"));
    assert_eq!(camera.units_dropped(), 2);
    assert!(matches!(watching.next(0), Next::Empty), "nobody knows of it yet");
    held.clear();
    assert!(ring.publish(b"next") && ring.publish(b"and next"));
    assert!(matches!(watching.next(0), Next::Lapped { missed_units: 2 }));
    assert_eq!(unit(watching.next(0)).bytes, b"next"[..]);
    assert_eq!(unit(watching.next(0)).bytes, b"and next"[..]);
    assert!(matches!(watching.next(0), Next::Empty));
}

#[test]
fn a_late_cursor_is_told_once_and_goes_on_with_the_newest() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    for i in 0..100_u8 {
        ring.publish(&[i]);
    }
    assert_eq!(cursor.lag_slots(), 100);
    assert!(matches!(cursor.next(0), Next::Lapped { missed_units: 99 }));
    assert_eq!(unit(cursor.next(0)).bytes, [99][..]);
    assert!(matches!(cursor.next(0), Next::Empty));
    assert_eq!(camera.counters().lapped_units.get(), 99);
}

#[test]
fn units_back_are_read_again_as_far_as_the_slots_reach() {
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
    ring.come_back();
    let (_camera, cursor) = attach(&ring.name);
    assert!(cursor.units_back(1).is_none(), "of an earlier camera");
}

#[test]
fn a_camera_that_goes_on_in_the_segment_is_a_restart_and_leases_outlive_it() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut other = camera.cursor();
    let mut watch = SegmentFollower::new(camera.clone());
    watch.poll(0, None);
    for _ in 0..20 {
        ring.publish(b"old");
        unit(cursor.next(0));
    }
    let held = unit(cursor.units_back(1).unwrap().next(0));
    ring.come_back();
    for i in 0..7 {
        assert!(ring.publish(&[i]));
    }
    assert_eq!(held.bytes, b"old"[..], "still leased");
    assert!(!held.is_intact(), "but of another camera");
    watch.poll(33 * MS, None);
    for cursor in [&mut cursor, &mut other] {
        assert!(matches!(cursor.next(0), Next::Restarted), "every cursor is told");
        let first = unit(cursor.next(0));
        assert_eq!((&first.bytes[..], first.epoch, first.frame_number), (&[0][..], 2, 0));
    }
    assert_eq!(camera.counters().restarted.get(), 1);
    assert_eq!(camera.counters().torn.get(), 0);
    drop(held);
    assert_eq!(ring.leases(), 0);
}

#[test]
fn a_camera_that_ends_is_away_at_once_and_its_ring_is_no_camera() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut watch = SegmentFollower::new(camera.clone());
    watch.poll(0, None);
    for step in 1..100 {
        watch.poll(step * 200 * MS, None);
    }
    assert!(matches!(camera.status(), CameraStatus::Attached { .. }), "silent, but alive");
    ring.writer.abandon();
    watch.poll(30_000 * MS, None);
    let CameraStatus::Away { reason } = camera.status() else { panic!("still attached") };
    assert!(reason.contains("writer has ended"), "{reason}");
    assert!(matches!(cursor.next(0), Next::Away));
    ring.come_back();
    ring.publish(b"again");
    watch.poll(30_100 * MS, None);
    assert!(matches!(cursor.next(0), Next::Restarted));
    assert_eq!(unit(cursor.next(0)).bytes, b"again"[..]);
}

#[test]
fn another_segment_under_the_name_is_taken_up() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut watch = SegmentFollower::new(camera);
    ring.publish(b"old");
    watch.poll(0, None);
    let held = unit(cursor.next(0));
    let mut new = Ring::named(&ring.name);
    new.publish(b"new");
    watch.poll(1000 * MS, None);
    assert!(matches!(cursor.next(0), Next::Restarted));
    assert_eq!(unit(cursor.next(0)).bytes, b"new"[..]);
    assert_eq!((&held.bytes[..], held.is_intact()), (&b"old"[..], true));
}

#[test]
fn a_ring_has_one_camera_and_sixteen_readers() {
    let ring = Ring::new();
    assert!(matches!(RingWriter::attach(&ring.name), Err(WriterError::InUse { .. })));
    let mut readers: Vec<_> =
        (0..16).map(|_| Mapping::open(&ring.name, Access::Semaphore).unwrap()).collect();
    let refused = Mapping::open(&ring.name, Access::Semaphore);
    assert!(matches!(refused, Err(MappingError::ReadersMax { .. })), "{refused:?}");
    assert!(Mapping::open(&ring.name, Access::Inspect).is_ok(), "who only looks takes no number");
    readers.pop();
    assert!(Mapping::open(&ring.name, Access::ReadOnly).is_ok());
}

#[test]
fn a_segment_that_shrinks_under_a_lease_kills_nobody() {
    let mut ring = Ring::new();
    let (camera, mut cursor) = attach(&ring.name);
    let mut watch = SegmentFollower::new(camera.clone());
    ring.publish(&[9; 4000]);
    watch.poll(0, None);
    let held = unit(cursor.next(0));
    rustix::fs::ftruncate(ring.file(), 0).unwrap();
    assert_eq!(held.bytes, [0; 4000][..], "no SIGBUS");
    assert!(!held.is_intact());
    assert!(matches!(cursor.next(0), Next::Away));
    watch.poll(1000 * MS, None);
    let CameraStatus::Away { reason } = camera.status() else { panic!("still attached") };
    assert!(reason.contains("of 0 bytes"), "{reason}");
    drop(held);
    // The camera's own pages are gone as well; nothing in this process may touch them.
    ring.writer.unlink();
    std::mem::forget(ring);
}

#[test]
fn the_camera_is_asked_for_an_idr_at_most_twice_a_second() {
    let mut ring = Ring::new();
    let (camera, _cursor) = attach(&ring.name);
    let mut answered = 0;
    for step in 0..100 {
        assert!(camera.request_idr(step * 100 * MS), "it can be asked");
        answered += u32::from(ring.writer.take_idr_request());
        assert!(!ring.writer.take_idr_request(), "taken");
    }
    assert_eq!(answered, 20);
    assert_eq!(camera.counters().idrs_requested.get(), 20);
    drop(ring);
    let legacy = super::test_ring::TestRing::new(Layout::V3Ring6);
    assert!(!Camera::new(legacy.name(), Wake::Poll).request_idr(0), "legacy rings cannot be asked");
    assert!(!Camera::new("/ss-test-never-there", Wake::Poll).request_idr(0));
}

#[test]
fn the_futex_wakes_the_doorbell_for_every_unit() {
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
        let bell = {
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
            assert_eq!(view.bytes, [i; 100][..], "{wake}");
        }
        stop.store(true, Ordering::Release);
        bell.join().unwrap();
    }
}

proptest! {
    #![proptest_config(support::properties_of(64))]

    /// Any bytes in the control blocks and in the header's changing words: a reader neither panics, nor reads
    /// outside, nor goes round for ever.
    #[test]
    fn a_hostile_camera_gets_nothing_out_of_a_reader(
        writes in prop::collection::vec((0..4096 + 8 * 128_u64, prop_oneof![Just(0_u64), any::<u64>(), 0..600_u64]), 1..200),
    ) {
        let mut ring = Ring::new();
        let (camera, mut cursor) = attach(&ring.name);
        let mut watch = SegmentFollower::new(camera.clone());
        let file = ring.file();
        for i in 0..3 {
            ring.publish(&[i; 100]);
        }
        let mut held = Vec::new();
        for (i, (offset, value)) in (1_i64..).zip(writes) {
            // What was checked when the ring was mapped is not looked at again; the rest is.
            let offset = (offset & !7).max(header::EPOCH as u64);
            rustix::io::pwrite(&file, &value.to_ne_bytes(), offset).unwrap();
            watch.poll(i * 33 * MS, None);
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

const _: () =
    assert!(HEADER_BYTES == 4096 && CONTROL_BYTES == 128, "the hostile camera reaches every control word");
