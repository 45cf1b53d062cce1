//! UNSAFE: the thread that waits for the camera, by its semaphore or by polling, and rings every consumer.
//! May not read units: what a look means is decided in `watch.rs`, here is only the waiting.
#![expect(unsafe_code, reason = "waits on the camera's semaphore; asks for a real-time priority")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::cursor::MonotonicNs;
use super::mapping::Mapping;
use super::settle::Posts;
use super::source::{Camera, Wake};
use super::watch::{Look, Pace, Watch};
use crate::limits::{
    CAMERA_RETRY_NS, DOORBELL_SLEEP_MAX_NS, SEMAPHORE_DRAIN_MAX, SETTLED_NS, WAKES_EMPTY_MAX,
    WAKES_MISSED_MAX,
};

/// Priority asked for with `--realtime`: above every normal thread, below the kernel's own.
const REALTIME_PRIORITY: i32 = 10;

/// Body of the doorbell thread: waits for the camera and for units, rings the camera's bells. Returns
/// within about 200 ms of `stop` being set. With `realtime` the thread asks for `SCHED_RR`; a refusal is a
/// warning.
pub fn run(camera: Camera, stop: Arc<AtomicBool>, realtime: bool) {
    if realtime {
        ask_for_realtime();
    }
    let mut doorbell = Doorbell::new(camera);
    while !stop.load(Ordering::Acquire) {
        doorbell.turn();
    }
}

struct Doorbell {
    watch: Watch,
    /// Whether a lease ring is waited for by its futex, else polled.
    uses_futex: bool,
    pace: Pace,
    trust: Trust,
    /// How long the next turn may wait.
    sleep_ns: i64,
    /// The next turn waits long enough for a wake that comes at all.
    is_patient: bool,
    /// The futex word of a lease ring as it was before the last look.
    futex_seen: u32,
}

impl Doorbell {
    fn new(camera: Camera) -> Doorbell {
        Doorbell {
            uses_futex: camera.wake() != Wake::Poll,
            watch: Watch::new(camera),
            pace: Pace::default(),
            trust: Trust::default(),
            sleep_ns: 0,
            is_patient: false,
            futex_seen: 0,
        }
    }

    /// Waits once, looks once.
    fn turn(&mut self) {
        let (generation, mapping) = self.watch.mapping();
        let mapping = mapping.filter(|_| self.trust.allows(generation)).cloned();
        let wait_ns = self.sleep_ns.min(DOORBELL_SLEEP_MAX_NS);
        let ring = mapping.as_ref().and_then(|mapping| mapping.leases()).filter(|_| self.uses_futex);
        let posts = if let Some(ring) = ring {
            wait_for_change(ring.futex(), self.futex_seen, wait_ns);
            self.futex_seen = ring.futex().load(Ordering::Acquire);
            None
        } else if let Some(semaphore) = mapping.and_then(Semaphore::of) {
            Some(semaphore.wait(wait_ns))
        } else {
            sleep(wait_ns);
            None
        };
        let now_ns = monotonic_ns();
        let look = self.watch.look(now_ns, posts);
        if let Some(posts) = posts {
            self.trust.judge(generation, posts.taken, look, self.is_patient);
        }
        if let Look::Advanced(units) = look
            && units > 0
        {
            self.pace.learn(units, now_ns);
        }
        self.is_patient = !self.watch.is_unsettled();
        self.sleep_ns = self.next_sleep_ns(look, now_ns);
    }

    fn next_sleep_ns(&self, look: Look, now_ns: MonotonicNs) -> i64 {
        let (generation, mapping) = self.watch.mapping();
        let has_futex = mapping.is_some_and(|mapping| mapping.leases().is_some()) && self.uses_futex;
        let has_semaphore = mapping.is_some_and(|mapping| mapping.semaphore().is_some());
        let is_woken = has_futex || has_semaphore && self.trust.allows(generation);
        if look == Look::Away {
            CAMERA_RETRY_NS
        } else if self.watch.is_unsettled() && !self.pace.is_silent(now_ns) {
            SETTLED_NS
        } else if is_woken {
            self.pace.patience_ns(now_ns)
        } else {
            self.pace.sleep_ns(now_ns)
        }
    }
}

/// Whether the semaphore of the segment mapped now does its work. Another server on the ring may take the
/// wakes, a damaged semaphore may wake without end: then the ring is polled until the camera comes anew.
#[derive(Debug, Default)]
struct Trust {
    lost_in: Option<u64>,
    /// Two more for every unit without its wake, one less for every wake.
    missed: u32,
    /// Wakes in a row without a unit.
    empty: u32,
}

impl Trust {
    fn allows(&self, generation: u64) -> bool {
        self.lost_in != Some(generation)
    }

    fn judge(&mut self, generation: u64, posts: u32, look: Look, is_patient: bool) {
        let is_unit = matches!(look, Look::Advanced(1..));
        if posts > 0 {
            self.missed = self.missed.saturating_sub(1);
        } else if is_unit && is_patient {
            self.missed += 2;
        }
        self.empty = if is_unit { 0 } else { self.empty + posts.min(1) };
        let trouble = if self.missed >= 2 * WAKES_MISSED_MAX {
            "units come without their wake, another process takes it"
        } else if self.empty >= WAKES_EMPTY_MAX {
            "wakes come without units"
        } else {
            return;
        };
        log::warn!("the camera's semaphore is of no use: {trouble}; polling instead");
        *self = Trust { lost_in: Some(generation), ..Trust::default() };
    }
}

/// The camera's semaphore in its mapping.
struct Semaphore {
    pointer: NonNull<libc::sem_t>,
    /// Keeps the pointer valid.
    mapping: Arc<Mapping>,
}

unsafe extern "C" {
    /// glibc 2.30. Unlike `sem_timedwait` it does not wait for hours when the wall clock is set back.
    fn sem_clockwait(
        semaphore: *mut libc::sem_t,
        clock: libc::clockid_t,
        deadline: *const libc::timespec,
    ) -> libc::c_int;
}

impl Semaphore {
    fn of(mapping: Arc<Mapping>) -> Option<Semaphore> {
        let pointer = mapping.semaphore()?;
        Some(Semaphore { pointer, mapping })
    }

    /// Waits for a post, at most `timeout_ns`, then takes every further one.
    fn wait(&self, timeout_ns: i64) -> Posts {
        let deadline_ns = monotonic_ns() + timeout_ns;
        let deadline = libc::timespec {
            tv_sec: deadline_ns.div_euclid(1_000_000_000),
            tv_nsec: deadline_ns.rem_euclid(1_000_000_000),
        };
        // SAFETY: the pointer is to the `sem_t` of the camera's segment, mapped read-write and 8-aligned
        // (const asserts in layout.rs), valid while `self.mapping` lives; glibc's semaphores are made to
        // be used by several processes, and any content of the 32 bytes is a valid state (a counter and
        // a number of waiters). A page that is gone is replaced by zeros (mapping.rs).
        let result =
            unsafe { sem_clockwait(self.pointer.as_ptr(), libc::CLOCK_MONOTONIC, &raw const deadline) };
        let mut taken = u32::from(result == 0);
        let mut index_before = self.mapping.write_index();
        let mut is_emptied = !self.take();
        while !is_emptied && taken < SEMAPHORE_DRAIN_MAX {
            taken += 1;
            index_before = self.mapping.write_index();
            is_emptied = !self.take();
        }
        taken += u32::from(!is_emptied);
        Posts { taken, index_before, is_emptied }
    }

    /// Takes one post if there is one.
    fn take(&self) -> bool {
        // SAFETY: as in `wait`; never blocks.
        let result = unsafe { libc::sem_trywait(self.pointer.as_ptr()) };
        result == 0
    }
}

fn ask_for_realtime() {
    let parameter = libc::sched_param { sched_priority: REALTIME_PRIORITY };
    // SAFETY: 0 is the calling thread, and the parameter outlives the call, which only reads it.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        log::warn!(
            "--realtime: SCHED_RR refused ({error}); give the program CAP_SYS_NICE or an rtprio limit"
        );
    }
}

/// Waits, at most `timeout_ns`, until `word` is no longer `seen`. Other processes change it and wake.
fn wait_for_change(word: &AtomicU32, seen: u32, timeout_ns: i64) {
    let timeout = Timespec { tv_sec: timeout_ns / 1_000_000_000, tv_nsec: timeout_ns.max(0) % 1_000_000_000 };
    // Changed already, woken, timed out, interrupted: one looks in any case.
    let _ = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
}

fn sleep(ns: i64) {
    if let Ok(ns @ 1..) = u64::try_from(ns) {
        std::thread::sleep(Duration::from_nanos(ns));
    }
}

/// CLOCK_MONOTONIC now. This thread owns its clock; other programs that read a ring give it to
/// [`super::Cursor::next`].
#[must_use]
pub fn monotonic_ns() -> MonotonicNs {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread::JoinHandle;

    use super::*;
    use crate::camera::cursor::{Cursor, Next};
    use crate::camera::layout::Layout;
    use crate::camera::mapping::Access;
    use crate::camera::source::Bell;
    use crate::camera::test_ring::TestRing;

    /// The camera's side of the semaphore.
    struct Poster(Semaphore);

    impl Poster {
        fn new(ring: &TestRing) -> Poster {
            let mapping = Mapping::open(ring.name(), Access::Semaphore).unwrap();
            let semaphore = Semaphore::of(mapping).unwrap();
            // SAFETY: the pointer is to 32 aligned, writable bytes that nobody waits on yet.
            let result = unsafe { libc::sem_init(semaphore.pointer.as_ptr(), 1, 0) };
            assert_eq!(result, 0);
            Poster(semaphore)
        }

        fn post(&self, times: u32) {
            for _ in 0..times {
                // SAFETY: the semaphore was initialised in `new` and stays mapped.
                let result = unsafe { libc::sem_post(self.0.pointer.as_ptr()) };
                assert_eq!(result, 0);
            }
        }

        fn value(&self) -> i32 {
            let mut value = 0;
            // SAFETY: as in `post`; `value` outlives the call.
            let result = unsafe { libc::sem_getvalue(self.0.pointer.as_ptr(), &raw mut value) };
            assert_eq!(result, 0);
            value
        }
    }

    struct ChannelBell(SyncSender<()>);

    impl Bell for ChannelBell {
        fn ring(&self) {
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
            camera.add_bell(Arc::new(ChannelBell(sender)));
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
                        self.rung.recv_timeout(Duration::from_secs(20)).expect("the bell rings");
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
                let poster = layout.semaphore_offset().map(|_| Poster::new(&ring));
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
        let poster = Poster::new(&ring);
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
        let _poster = Poster::new(&ring);
        let mut running = Running::new(ring.name(), Wake::Auto);
        for i in 0..60_u8 {
            ring.publish(&[i]);
            assert_eq!(running.unit(), [i]);
        }
    }

    #[test]
    fn posts_piled_up_while_nobody_looked_are_one_wake() {
        let mut ring = TestRing::new(Layout::V1);
        let poster = Poster::new(&ring);
        poster.post(50_000);
        let mut running = Running::new(ring.name(), Wake::Auto);
        ring.publish(b"first");
        poster.post(1);
        assert_eq!(running.unit(), b"first");
        assert_eq!(poster.value(), 0);
        assert!(running.camera.counters().wakes.load(Ordering::Relaxed) < 10_000);
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
    fn a_semaphore_that_never_blocks_is_given_up() {
        let mut trust = Trust::default();
        for _ in 0..WAKES_EMPTY_MAX {
            assert!(trust.allows(3));
            trust.judge(3, 7, Look::Quiet, true);
        }
        assert!(!trust.allows(3));
        assert!(trust.allows(4), "the next camera is trusted again");
    }

    #[test]
    fn a_semaphore_shared_with_another_server_is_given_up() {
        let mut trust = Trust::default();
        for _ in 0..100 {
            trust.judge(3, 1, Look::Advanced(1), true);
            trust.judge(3, 0, Look::Advanced(1), true);
        }
        assert!(!trust.allows(3));
        let mut trust = Trust::default();
        for _ in 0..100 {
            trust.judge(3, 0, Look::Advanced(1), false);
            trust.judge(3, 1, Look::Quiet, true);
        }
        assert!(trust.allows(3), "short looks at an unsettled unit prove nothing");
    }
}
