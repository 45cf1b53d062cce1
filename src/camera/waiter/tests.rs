//! Tests of the camera wait. Some run it on a separate thread; others poll the waiter directly, as a worker does.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::*;
use crate::camera::cursor::{Cursor, Next};
use crate::camera::layout::Layout;
use crate::camera::mapping::{Access, Mapping};
use crate::camera::semaphore::WAITER;
use crate::camera::source::Wakeup;
use crate::camera::test_ring::TestRing;

/// The camera's side of the semaphore: initialises it and posts.
struct Poster(Arc<Mapping>);

impl Poster {
    fn new(ring: &TestRing) -> Poster {
        let poster = Poster(Mapping::open(ring.name(), Access::Semaphore).unwrap());
        poster.initialise();
        poster
    }

    /// Initialises the semaphore, as the daemon does when it starts.
    fn initialise(&self) {
        // SAFETY: the pointer is to 32 aligned, writable bytes. A process that waits on this semaphore only sees its
        // count change, which cannot harm memory.
        let result = unsafe { libc::sem_init(self.pointer(), 1, 0) };
        assert_eq!(result, 0);
    }

    fn pointer(&self) -> *mut libc::sem_t {
        self.0.semaphore().unwrap()
    }

    fn post(&self, times: u32) {
        for _ in 0..times {
            // SAFETY: the semaphore was initialised in `new` and stays mapped.
            let result = unsafe { libc::sem_post(self.pointer()) };
            assert_eq!(result, 0);
        }
    }

    fn value(&self) -> i32 {
        let mut value = 0;
        // SAFETY: as in `post`, the semaphore is initialised and mapped. `value` outlives the call.
        let result = unsafe { libc::sem_getvalue(self.pointer(), &raw mut value) };
        assert_eq!(result, 0);
        value
    }

    /// Returns the number of registered waiters.
    fn waiters(&self) -> u64 {
        let (_, state): (_, &AtomicU64) = self.0.semaphore_words().unwrap();
        state.load(Ordering::Relaxed) / WAITER
    }
}

struct ChannelWakeup(SyncSender<()>);

impl Wakeup for ChannelWakeup {
    fn wake(&self) {
        let _ = self.0.try_send(());
    }
}

/// A camera wait that runs on a separate thread.
struct Running {
    camera: Camera,
    cursor: Cursor,
    wakeups: Receiver<()>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(name: &str, wake: Wake) -> Running {
        let camera = Camera::new(name, wake);
        let (sender, wakeups) = sync_channel(1);
        camera.add_wakeup(Arc::new(ChannelWakeup(sender)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (camera, stop) = (camera.clone(), Arc::clone(&stop));
            move || run(camera, stop, false)
        });
        Running { cursor: camera.cursor(), camera, wakeups, stop, thread: Some(thread) }
    }

    /// Waits for wake-ups until the next unit has arrived, and returns that unit's bytes.
    fn unit(&mut self) -> Vec<u8> {
        loop {
            match self.cursor.next(monotonic_ns()) {
                Next::Unit(unit) => return unit.bytes.to_vec(),
                Next::Empty | Next::Away => {
                    self.wakeups.recv_timeout(Duration::from_secs(20)).expect("the wake-up comes");
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
fn every_wait_method_delivers_every_unit_on_every_layout() {
    for layout in Layout::LEGACY {
        for wake in [Wake::Auto, Wake::Semaphore, Wake::Poll] {
            let mut ring = TestRing::new(layout);
            let poster = layout.control_offsets().map(|_| Poster::new(&ring));
            let mut running = Running::new(ring.name(), wake);
            for i in 0..40_u8 {
                ring.publish(&[i; 2000]);
                if let Some(poster) = &poster {
                    poster.post(1);
                }
                assert_eq!(running.unit(), [i; 2000], "{layout}, {wake:?}");
            }
        }
    }
}

#[test]
fn polling_leaves_the_semaphore_untouched() {
    let mut ring = TestRing::new(Layout::V1);
    let poster = Poster::new(&ring);
    let mut running = Running::new(ring.name(), Wake::Poll);
    for i in 0..5_u8 {
        ring.publish(&[i; 500]);
        poster.post(1);
        running.unit();
    }
    assert_eq!(poster.value(), 5);
    let (_, attachment) = running.camera.current();
    assert!(attachment.unwrap().mapping.semaphore_words().is_none(), "mapped read-only");
}

#[test]
fn polling_replaces_posts_that_another_process_takes() {
    let mut ring = TestRing::new(Layout::V3);
    let _poster = Poster::new(&ring);
    let mut running = Running::new(ring.name(), Wake::Auto);
    for i in 0..60_u8 {
        ring.publish(&[i]);
        assert_eq!(running.unit(), [i]);
    }
}

#[test]
fn accumulated_posts_are_taken_in_one_poll() {
    let mut ring = TestRing::new(Layout::V1);
    let poster = Poster::new(&ring);
    poster.post(50_000);
    let mut running = Running::new(ring.name(), Wake::Auto);
    ring.publish(b"first");
    poster.post(1);
    assert_eq!(running.unit(), b"first");
    assert_eq!(poster.value(), 0);
    assert!(running.camera.counters().wakes.get() < 10_000);
}

#[test]
fn camera_is_followed_from_segment_to_segment() {
    let name = format!("/ss-test-{}-waiter", std::process::id());
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
fn segment_truncated_during_the_semaphore_wait_does_not_end_the_process() {
    for layout in [Layout::V1, Layout::V3] {
        let mut ring = TestRing::new(layout);
        let poster = Poster::new(&ring);
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
fn semaphore_that_never_blocks_is_given_up() {
    let mut check = WakeupCheck::default();
    for _ in 0..WAKES_EMPTY_MAX {
        assert!(check.allows(3));
        check.on_poll(3, 7, Progress::Unchanged, true);
    }
    assert!(!check.allows(3));
    assert!(check.allows(4), "the next segment is tried again");
}

#[test]
fn semaphore_shared_with_another_server_is_given_up() {
    let mut check = WakeupCheck::default();
    for _ in 0..100 {
        check.on_poll(3, 1, Progress::Advanced(1), true);
        check.on_poll(3, 0, Progress::Advanced(1), true);
    }
    assert!(!check.allows(3));
    let mut check = WakeupCheck::default();
    for _ in 0..100 {
        check.on_poll(3, 0, Progress::Advanced(1), false);
        check.on_poll(3, 1, Progress::Unchanged, true);
    }
    assert!(check.allows(3), "early polls for an incomplete unit prove nothing");
}

/// Polls once, as a worker does. Returns true if the waiter was signalled before the poll.
fn poll_once(waiter: &mut CameraWaiter) -> bool {
    let is_signalled = waiter.is_signalled();
    waiter.poll(monotonic_ns());
    is_signalled
}

#[test]
fn word_signals_each_unit_until_it_is_polled() {
    let mut ring = TestRing::new(Layout::V3);
    let poster = Poster::new(&ring);
    let mut waiter = CameraWaiter::new(Camera::new(ring.name(), Wake::Auto));
    assert!(waiter.word().is_none(), "no segment is followed yet");
    poll_once(&mut waiter);
    for _ in 0..4 {
        assert!(!waiter.is_signalled());
        ring.publish(b"unit");
        poster.post(1);
        assert!(waiter.is_signalled());
        assert!(waiter.poll(monotonic_ns()), "a new unit");
        assert_eq!(poster.value(), 0);
    }
    // The daemon restarts and initialises its semaphore again, which removes the registered waiter. The next poll must
    // register the waiter again.
    poster.initialise();
    poll_once(&mut waiter);
    let word = waiter.word().map(|(word, seen)| (Arc::clone(word), seen));
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
fn dropped_waiter_is_not_registered_at_the_semaphore() {
    let ring = TestRing::new(Layout::V1);
    let poster = Poster::new(&ring);
    let mut waiter = CameraWaiter::new(Camera::new(ring.name(), Wake::Auto));
    poll_once(&mut waiter);
    poll_once(&mut waiter);
    assert_eq!(poster.waiters(), 1);
    waiter.give_up_wakeups("a test");
    poll_once(&mut waiter);
    assert_eq!((poster.waiters(), waiter.word().is_none()), (0, true));
    drop(waiter);
    assert_eq!(poster.waiters(), 0);
}

#[test]
fn handed_out_waiter_continues_on_the_fallback_thread() {
    let mut ring = TestRing::new(Layout::V3);
    let poster = Poster::new(&ring);
    let camera = Camera::new(ring.name(), Wake::Auto);
    let (sender, wakeups) = sync_channel(1);
    let (fallback, returned) = sync_channel(2);
    let stop = Arc::new(AtomicBool::new(false));
    let fallback_thread = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || run_fallback(&returned, &stop, false)
    });
    let handoff = WaiterHandoff::new(CameraWaiter::new(camera.clone()), fallback.clone());
    let worker = std::thread::spawn(move || {
        let _handoff = handoff;
        panic!("the worker fails");
    });
    assert!(worker.join().is_err());
    camera.add_wakeup(Arc::new(ChannelWakeup(sender)));
    ring.publish(b"unit");
    poster.post(1);
    wakeups.recv_timeout(Duration::from_secs(20)).expect("the wake-up comes");
    stop.store(true, Ordering::Release);
    let _ = fallback.try_send(None);
    fallback_thread.join().unwrap();
}
