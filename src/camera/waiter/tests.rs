//! The doorbell, on a thread of its own and looked at by hand.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::*;
use crate::camera::cursor::{Cursor, Next};
use crate::camera::layout::Layout;
use crate::camera::mapping::Access;
use crate::camera::source::Wakeup;
use crate::camera::test_ring::TestRing;

fn poster_of(ring: &TestRing) -> Poster {
    Poster::new(Mapping::open(ring.name(), Access::Semaphore).unwrap())
}

struct ChannelBell(SyncSender<()>);

impl Wakeup for ChannelBell {
    fn wake(&self) {
        let _ = self.0.try_send(());
    }
}

/// A doorbell on a thread of its own.
struct Running {
    camera: Camera,
    cursor: Cursor,
    rung: Receiver<()>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(name: &str, wake: Wake) -> Running {
        let camera = Camera::new(name, wake);
        let (sender, rung) = sync_channel(1);
        camera.add_wakeup(Arc::new(ChannelBell(sender)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (camera, stop) = (camera.clone(), Arc::clone(&stop));
            move || run(camera, stop, false)
        });
        Running { cursor: camera.cursor(), camera, rung, stop, thread: Some(thread) }
    }

    /// The next unit, waited for by the bell.
    fn unit(&mut self) -> Vec<u8> {
        loop {
            match self.cursor.next(monotonic_ns()) {
                Next::Unit(unit) => return unit.bytes.to_vec(),
                Next::Empty | Next::Away => {
                    self.rung.recv_timeout(Duration::from_secs(20)).expect("the wake-up comes");
                }
                Next::Restarted => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn every_way_of_waking_brings_every_unit_on_every_layout() {
    for layout in Layout::LEGACY {
        for wake in [Wake::Auto, Wake::Semaphore, Wake::Poll] {
            let mut ring = TestRing::new(layout);
            let poster = layout.semaphore_offset().map(|_| poster_of(&ring));
            let mut running = Running::new(ring.name(), wake);
            for i in 0..40_u8 {
                ring.publish(&[i; 2000]);
                if let Some(poster) = &poster {
                    poster.post(1);
                }
                assert_eq!(running.unit(), [i; 2000], "{layout}, {wake}");
            }
        }
    }
}

#[test]
fn polling_never_touches_the_semaphore() {
    let mut ring = TestRing::new(Layout::V1);
    let poster = poster_of(&ring);
    let mut running = Running::new(ring.name(), Wake::Poll);
    for i in 0..5_u8 {
        ring.publish(&[i; 500]);
        poster.post(1);
        running.unit();
    }
    assert_eq!(poster.value(), 5);
    assert!(running.camera.place().1.unwrap().mapping.semaphore().is_none(), "mapped read-only");
}

#[test]
fn wakes_that_another_process_takes_are_replaced_by_polling() {
    let mut ring = TestRing::new(Layout::V3);
    let _poster = poster_of(&ring);
    let mut running = Running::new(ring.name(), Wake::Auto);
    for i in 0..60_u8 {
        ring.publish(&[i]);
        assert_eq!(running.unit(), [i]);
    }
}

#[test]
fn posts_piled_up_while_nobody_looked_are_one_wake() {
    let mut ring = TestRing::new(Layout::V1);
    let poster = poster_of(&ring);
    poster.post(50_000);
    let mut running = Running::new(ring.name(), Wake::Auto);
    ring.publish(b"first");
    poster.post(1);
    assert_eq!(running.unit(), b"first");
    assert_eq!(poster.value(), 0);
    assert!(running.camera.counters().wakes.get() < 10_000);
}

#[test]
fn a_camera_that_comes_and_goes_is_followed() {
    let name = format!("/ss-test-{}-doorbell", std::process::id());
    let mut running = Running::new(&name, Wake::Auto);
    for (i, layout) in (1_u8..).zip(Layout::LEGACY) {
        let mut ring = TestRing::named(&name, layout);
        for _ in 0..3 {
            ring.publish(&[i; 100]);
        }
        for _ in 0..3 {
            assert_eq!(running.unit(), [i; 100]);
        }
    }
}

#[test]
fn a_segment_truncated_under_the_semaphore_wait_kills_nobody() {
    for layout in [Layout::V1, Layout::V3] {
        let mut ring = TestRing::new(layout);
        let poster = poster_of(&ring);
        let mut running = Running::new(ring.name(), Wake::Auto);
        ring.publish(b"before");
        poster.post(1);
        assert_eq!(running.unit(), b"before");
        ring.resize(0);
        while !matches!(running.cursor.next(0), Next::Away) {
            std::thread::sleep(Duration::from_millis(1));
        }
        ring.resize(layout.segment_bytes() as u64);
        ring.set_index(0);
        ring.publish(b"after");
        assert_eq!(running.unit(), b"after");
    }
}

#[test]
fn a_semaphore_that_never_blocks_is_given_up() {
    let mut trust = Trust::default();
    for _ in 0..WAKES_EMPTY_MAX {
        assert!(trust.allows(3));
        trust.judge(3, 7, Progress::Quiet, true);
    }
    assert!(!trust.allows(3));
    assert!(trust.allows(4), "the next camera is trusted again");
}

#[test]
fn a_semaphore_shared_with_another_server_is_given_up() {
    let mut trust = Trust::default();
    for _ in 0..100 {
        trust.judge(3, 1, Progress::Advanced(1), true);
        trust.judge(3, 0, Progress::Advanced(1), true);
    }
    assert!(!trust.allows(3));
    let mut trust = Trust::default();
    for _ in 0..100 {
        trust.judge(3, 0, Progress::Advanced(1), false);
        trust.judge(3, 1, Progress::Quiet, true);
    }
    assert!(trust.allows(3), "short looks at an unsettled unit prove nothing");
}

/// Looks as a worker does: when told to.
fn looked(doorbell: &mut CameraWaiter) -> bool {
    let is_rung = doorbell.is_rung();
    doorbell.poll(monotonic_ns());
    is_rung
}

#[test]
fn the_word_tells_of_each_unit_until_somebody_looks() {
    let mut ring = TestRing::new(Layout::V3);
    let poster = poster_of(&ring);
    let camera = Camera::new(ring.name(), Wake::Auto);
    let mut doorbell = CameraWaiter::new(camera.clone());
    assert!(doorbell.word().is_none(), "nothing is mapped yet");
    looked(&mut doorbell);
    for unit in 1..5 {
        assert!(!doorbell.is_rung());
        ring.publish(b"unit");
        poster.post(1);
        assert!(looked(&mut doorbell));
        assert_eq!((camera.counters().units_seen.get(), poster.value()), (unit, 0));
    }
    // The daemon starts again and makes its semaphore anew: we are announced with the next look.
    poster.make();
    looked(&mut doorbell);
    let word = doorbell.word().map(|(word, seen)| (Arc::clone(word), seen));
    let waiting = std::thread::spawn(move || {
        let (word, seen) = word.unwrap();
        while (*word).as_ref().load(Ordering::Acquire) == seen {
            wait_for_change((*word).as_ref(), seen, 60_000_000_000);
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    poster.post(1);
    waiting.join().unwrap();
}

#[test]
fn nobody_is_announced_any_more_when_the_doorbell_is_gone() {
    let ring = TestRing::new(Layout::V1);
    let poster = poster_of(&ring);
    let waiters = || poster.waiters();
    let mut doorbell = CameraWaiter::new(Camera::new(ring.name(), Wake::Auto));
    looked(&mut doorbell);
    looked(&mut doorbell);
    assert_eq!(waiters(), 1);
    doorbell.poll_instead("a test");
    looked(&mut doorbell);
    assert_eq!((waiters(), doorbell.word().is_none()), (0, true));
    drop(doorbell);
    assert_eq!(waiters(), 0);
}

#[test]
fn a_lent_doorbell_goes_on_with_the_thread_that_stands_by() {
    let mut ring = TestRing::new(Layout::V3);
    let poster = poster_of(&ring);
    let camera = Camera::new(ring.name(), Wake::Auto);
    let (bell, rung) = sync_channel(1);
    let (back, given_back) = sync_channel(2);
    let stop = Arc::new(AtomicBool::new(false));
    let standby = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || run_fallback(&given_back, &stop, false)
    });
    let lent = WaiterHandoff::new(CameraWaiter::new(camera.clone()), back.clone());
    // Whatever ends the borrower.
    let borrower = std::thread::spawn(move || {
        let _lent = lent;
        panic!("as a worker never should");
    });
    assert!(borrower.join().is_err());
    camera.add_wakeup(Arc::new(ChannelBell(bell)));
    ring.publish(b"unit");
    poster.post(1);
    rung.recv_timeout(Duration::from_secs(20)).expect("the wake-up comes");
    stop.store(true, Ordering::Release);
    let _ = back.try_send(None);
    standby.join().unwrap();
}
