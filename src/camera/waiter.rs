//! UNSAFE: waits for the camera by semaphore, futex or polling, and wakes every consumer. It runs on a thread of its
//! own or, if the kernel lets io_uring wait for a futex, inside a worker.
//! This module must not read units. `segment_follower.rs` decides what a poll means; this module only waits.
#![expect(unsafe_code, reason = "requests a real-time priority")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::Timespec;

use super::segment_follower::{Progress, SegmentFollower};
use super::semaphore::Semaphore;
use super::source::{Camera, MonotonicNs, Wake};
use super::unit_interval::PollSchedule;
use crate::base::clock::monotonic_ns;
use crate::base::limits::{
    CAMERA_RETRY_NS, CAMERA_WAIT_MAX_NS, COMMIT_STABLE_NS, WAKES_EMPTY_MAX, WAKES_MISSED_MAX,
};

/// Priority requested by `--realtime`: above every normal thread, below the kernel's own.
const REALTIME_PRIORITY: i32 = 10;

/// A futex word in shared memory that the camera changes and wakes (futex(2), shared between processes).
pub type FutexWord = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

/// Body of a camera-wait thread: waits for the camera and its units, and wakes the consumers. Returns within about
/// 200 ms after `stop` is set. With `realtime` the thread requests `SCHED_RR`; a refusal is logged as a warning.
pub fn run(camera: Camera, stop: Arc<AtomicBool>, realtime: bool) {
    if realtime {
        request_realtime();
    }
    CameraWaiter::new(camera).run(&stop);
}

/// Body of the fallback thread: waits until a worker hands the camera wait back (see [`WaiterHandoff`]), then runs it
/// until `stop` is set. Returns at once if it receives `None` or if all senders are gone.
pub fn run_fallback(returned: &Receiver<Option<CameraWaiter>>, stop: &AtomicBool, realtime: bool) {
    if realtime {
        request_realtime();
    }
    if let Ok(Some(mut waiter)) = returned.recv() {
        waiter.run(stop);
    }
}

/// A camera waiter owned by a thread with other work. When that thread ends, even by a panic, the drop sends the waiter
/// to the fallback thread. So the camera is followed as long as the program runs.
pub struct WaiterHandoff {
    /// Always `Some` before the drop, which takes it out.
    pub(crate) waiter: Option<CameraWaiter>,
    fallback: SyncSender<Option<CameraWaiter>>,
}

impl WaiterHandoff {
    /// Wraps `waiter`; the drop sends it to `fallback`, which must have room for it.
    #[must_use]
    pub fn new(waiter: CameraWaiter, fallback: SyncSender<Option<CameraWaiter>>) -> WaiterHandoff {
        WaiterHandoff { waiter: Some(waiter), fallback }
    }
}

impl Drop for WaiterHandoff {
    fn drop(&mut self) {
        // Fails only if the fallback thread has ended, which happens only when the program stops.
        let _ = self.fallback.try_send(self.waiter.take());
    }
}

/// Follows the camera, one poll at a time. Between two polls its owner waits until [`CameraWaiter::word`] changes, or
/// until its `due_ns`.
pub struct CameraWaiter {
    follower: SegmentFollower,
    /// False with `--wake poll`.
    uses_wakeups: bool,
    schedule: PollSchedule,
    check: WakeupCheck,
    /// Latest time of the next poll, CLOCK_MONOTONIC nanoseconds.
    pub(crate) due_ns: MonotonicNs,
    /// True if a wake-up should arrive before the next poll, because that poll is late.
    expects_wakeup: bool,
    method: WaitMethod,
}

/// How the owner learns of units in the mapped segment.
enum WaitMethod {
    /// No usable wake-up: the ring is polled.
    Poll,
    /// The futex of a lease ring, and its value before the last poll.
    Futex(FutexWord, u32),
    /// The semaphore of a legacy ring, and the same as a futex word.
    Semaphore(Arc<Semaphore>, FutexWord),
}

impl CameraWaiter {
    /// A waiter whose first poll is due at once.
    #[must_use]
    pub fn new(camera: Camera) -> CameraWaiter {
        CameraWaiter {
            uses_wakeups: camera.wake() != Wake::Poll,
            follower: SegmentFollower::new(camera),
            schedule: PollSchedule::default(),
            check: WakeupCheck::default(),
            due_ns: i64::MIN,
            expects_wakeup: false,
            method: WaitMethod::Poll,
        }
    }

    /// Waits and polls in turn until `stop` is set.
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let wait_ns = self.due_ns.saturating_sub(monotonic_ns());
            match self.word() {
                Some((word, seen)) => wait_for_change((**word).as_ref(), seen, wait_ns),
                None => std::thread::sleep(Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(0))),
            }
            self.poll(monotonic_ns());
        }
    }

    /// Returns the futex word and the value it had at the last poll. The owner waits until the word differs. `None`: no
    /// wake-up can be used, the owner waits until `due_ns`.
    #[must_use]
    pub fn word(&self) -> Option<(&FutexWord, u32)> {
        match &self.method {
            WaitMethod::Poll => None,
            WaitMethod::Futex(word, seen) => Some((word, *seen)),
            WaitMethod::Semaphore(_, word) => Some((word, 0)),
        }
    }

    /// Returns true if the camera has signalled something that [`CameraWaiter::poll`] has not handled yet.
    #[must_use]
    pub fn is_signalled(&self) -> bool {
        self.word().is_some_and(|(word, seen)| (**word).as_ref().load(Ordering::Relaxed) != seen)
    }

    /// Gives the wake-ups of the current segment up, because the kernel refuses to wait for them. The ring is polled
    /// until the camera attaches again.
    pub fn give_up_wakeups(&mut self, reason: &str) {
        self.check.give_up(self.follower.mapping().0, reason);
        self.due_ns = i64::MIN;
    }

    /// Takes the camera's posts, polls the ring once and wakes the consumers if there is news. Does not wait. Returns
    /// true if new units were published.
    pub fn poll(&mut self, now_ns: MonotonicNs) -> bool {
        let (generation, _) = self.follower.mapping();
        let posts = match &mut self.method {
            WaitMethod::Poll => None,
            WaitMethod::Futex(word, seen) => {
                *seen = (**word).as_ref().load(Ordering::Acquire);
                None
            }
            WaitMethod::Semaphore(semaphore, _) => Some(semaphore.take_all()),
        };
        let progress = self.follower.poll(now_ns, posts);
        if let Some(posts) = posts {
            self.check.on_poll(generation, posts.taken, progress, self.expects_wakeup);
        }
        let units = if let Progress::Advanced(units) = progress { units } else { 0 };
        if units > 0 {
            self.schedule.on_units(units, now_ns);
        }
        self.expects_wakeup = !self.follower.has_incomplete_unit();
        self.choose_method();
        self.due_ns = now_ns + self.next_sleep_ns(progress, now_ns).min(CAMERA_WAIT_MAX_NS);
        units > 0
    }

    /// Sets the wait method for the mapped segment.
    fn choose_method(&mut self) {
        let (generation, mapping) = self.follower.mapping();
        let Some(mapping) = mapping.filter(|_| self.uses_wakeups && self.check.allows(generation)) else {
            self.method = WaitMethod::Poll;
            return;
        };
        if let Some(ring) = mapping.leases() {
            let word = Arc::clone(ring) as FutexWord;
            if !matches!(&self.method, WaitMethod::Futex(known, _) if FutexWord::ptr_eq(known, &word)) {
                // Start with a wrong expected value, so that the first futex wait returns at once.
                let seen = (*word).as_ref().load(Ordering::Acquire).wrapping_sub(1);
                self.method = WaitMethod::Futex(word, seen);
            }
        } else if !matches!(&self.method, WaitMethod::Semaphore(known, _) if known.belongs_to(mapping)) {
            self.method = match Semaphore::register(Arc::clone(mapping)).map(Arc::new) {
                Some(semaphore) => WaitMethod::Semaphore(Arc::clone(&semaphore), semaphore),
                None => WaitMethod::Poll,
            };
        }
        if let WaitMethod::Semaphore(semaphore, _) = &self.method {
            semaphore.renew();
        }
    }

    fn next_sleep_ns(&self, progress: Progress, now_ns: MonotonicNs) -> i64 {
        if progress == Progress::Away {
            CAMERA_RETRY_NS
        } else if self.follower.has_incomplete_unit() && !self.schedule.is_silent(now_ns) {
            COMMIT_STABLE_NS
        } else if self.word().is_some() {
            self.schedule.wakeup_timeout_ns(now_ns)
        } else {
            self.schedule.sleep_ns(now_ns)
        }
    }
}

/// Decides if the wake-ups of the mapped segment are usable. Another server on the ring may take the semaphore's
/// posts; a damaged semaphore may wake without end. Then the ring is polled until the camera attaches again.
#[derive(Debug, Default)]
struct WakeupCheck {
    /// The generation whose wake-ups were given up.
    given_up_in: Option<u64>,
    /// Grows by two for a unit without a post, shrinks by one for a post.
    missed: u32,
    /// Polls in a row that took posts and found no unit.
    empty: u32,
}

impl WakeupCheck {
    fn allows(&self, generation: u64) -> bool {
        self.given_up_in != Some(generation)
    }

    /// Evaluates one poll that took `posts` from the semaphore.
    fn on_poll(&mut self, generation: u64, posts: u32, progress: Progress, expects_wakeup: bool) {
        let is_unit = matches!(progress, Progress::Advanced(1..));
        if posts > 0 {
            self.missed = self.missed.saturating_sub(1);
        } else if is_unit && expects_wakeup {
            self.missed += 2;
        }
        self.empty = if is_unit { 0 } else { self.empty + posts.min(1) };
        if self.missed >= 2 * WAKES_MISSED_MAX {
            self.give_up(generation, "units arrive without a post, another process takes the posts");
        } else if self.empty >= WAKES_EMPTY_MAX {
            self.give_up(generation, "posts arrive without units");
        }
    }

    fn give_up(&mut self, generation: u64, reason: &str) {
        log::warn!("the camera's wake-ups are unusable: {reason}; polling instead");
        *self = WakeupCheck { given_up_in: Some(generation), ..WakeupCheck::default() };
    }
}

/// Requests a real-time priority for the calling thread.
fn request_realtime() {
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

/// Waits at most `timeout_ns` until `word` is no longer `seen`. Other processes change the word and wake.
fn wait_for_change(word: &AtomicU32, seen: u32, timeout_ns: i64) {
    let timeout = Timespec { tv_sec: timeout_ns / 1_000_000_000, tv_nsec: timeout_ns.max(0) % 1_000_000_000 };
    // The result does not matter: the caller polls the camera after a change, a timeout and an interruption alike.
    let _ = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
}

#[cfg(test)]
mod tests;
