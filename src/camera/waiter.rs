//! UNSAFE: waits for the camera by semaphore, futex or polling, and wakes every consumer. The camera wait runs on a
//! separate thread. If io_uring can wait for a futex on this kernel, it runs inside a worker instead.
//! This module must not read units. It only waits; `segment_follower.rs` decides what a poll has found.
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

/// Real-time priority requested by `--realtime`. It is above every normal thread and below the kernel's own threads.
const REALTIME_PRIORITY: i32 = 10;

/// A futex word in shared memory (futex(2)). The camera, which is another process, changes the word and wakes its
/// waiters.
pub type FutexWord = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

/// Runs the camera wait on the calling thread: waits for the camera and its units, and wakes the consumers. Returns
/// within about 200 ms after `stop` is set. If `realtime` is true, the thread requests `SCHED_RR`; a refusal is logged
/// as a warning.
pub fn run(camera: Camera, stop: Arc<AtomicBool>, realtime: bool) {
    if realtime {
        request_realtime();
    }
    CameraWaiter::new(camera).run(&stop);
}

/// Runs the fallback thread: waits until a worker hands back the camera waiter (see [`WaiterHandoff`]), then runs the
/// camera wait until `stop` is set. Returns at once if it receives `None` or if all senders are gone.
pub fn run_fallback(returned: &Receiver<Option<CameraWaiter>>, stop: &AtomicBool, realtime: bool) {
    if realtime {
        request_realtime();
    }
    if let Ok(Some(mut waiter)) = returned.recv() {
        waiter.run(stop);
    }
}

/// A camera waiter owned by a thread that also does other work. When that thread ends, even by a panic, dropping this
/// value sends the waiter to the fallback thread. So the camera is followed as long as the program runs.
pub struct WaiterHandoff {
    /// The waiter. It is always `Some`, until the drop takes the waiter out.
    pub(crate) waiter: Option<CameraWaiter>,
    fallback: SyncSender<Option<CameraWaiter>>,
}

impl WaiterHandoff {
    /// Wraps `waiter`. Dropping the result sends the waiter to `fallback`, a channel that must have room for it.
    #[must_use]
    pub fn new(waiter: CameraWaiter, fallback: SyncSender<Option<CameraWaiter>>) -> WaiterHandoff {
        WaiterHandoff { waiter: Some(waiter), fallback }
    }
}

impl Drop for WaiterHandoff {
    fn drop(&mut self) {
        // The send can fail only if the fallback thread has ended, which happens only when the program stops. So the
        // error is ignored.
        let _ = self.fallback.try_send(self.waiter.take());
    }
}

/// Follows the camera, one poll at a time. Between two polls, the owner of this value waits until the word of
/// [`CameraWaiter::word`] changes or the time `due_ns` is reached.
pub struct CameraWaiter {
    follower: SegmentFollower,
    /// True unless the user has set `--wake poll`.
    uses_wakeups: bool,
    schedule: PollSchedule,
    check: WakeupCheck,
    /// Time of the next poll if no wake-up comes earlier.
    pub(crate) due_ns: MonotonicNs,
    /// True if the next unit should come with a wake-up. False while the next poll only checks an incomplete unit.
    expects_wakeup: bool,
    method: WaitMethod,
}

/// How the owner of a [`CameraWaiter`] learns that a new unit has arrived.
enum WaitMethod {
    /// By polling, because no wake-up can be used.
    Poll,
    /// By the futex of a lease ring. The number is the futex word's value before the last poll.
    Futex(FutexWord, u32),
    /// By the semaphore of a legacy ring. The word is the semaphore's count, used as a futex.
    Semaphore(Arc<Semaphore>, FutexWord),
}

impl CameraWaiter {
    /// Returns a waiter whose first poll is due at once.
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

    /// Alternately waits and polls until `stop` is set.
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

    /// Returns the futex word and the value that it had at the last poll. The owner waits until the word has another
    /// value. Returns `None` if no wake-up can be used; the owner then waits until `due_ns`.
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

    /// Stops using the wake-ups of the current segment, because the kernel refuses to wait for them. The ring is polled
    /// instead until a segment is attached again.
    pub fn give_up_wakeups(&mut self, reason: &str) {
        self.check.give_up(self.follower.mapping().0, reason);
        self.due_ns = i64::MIN;
    }

    /// Takes the camera's posts, polls the ring once and wakes the consumers if units are complete or the camera's
    /// state changed. Does not wait. Returns true if the write index has advanced.
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

    /// Sets the wait method that the mapped segment supports.
    fn choose_method(&mut self) {
        let (generation, mapping) = self.follower.mapping();
        let Some(mapping) = mapping.filter(|_| self.uses_wakeups && self.check.allows(generation)) else {
            self.method = WaitMethod::Poll;
            return;
        };
        if let Some(ring) = mapping.leases() {
            let word = Arc::clone(ring) as FutexWord;
            if !matches!(&self.method, WaitMethod::Futex(known, _) if FutexWord::ptr_eq(known, &word)) {
                // The expected value is wrong on purpose, so that the first futex wait returns at once.
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

/// Decides if the wake-ups of the mapped segment are usable. Another server on the ring may take the semaphore's posts,
/// or a damaged semaphore may wake without end. In both cases the ring is polled until a segment is attached again.
#[derive(Debug, Default)]
struct WakeupCheck {
    /// The generation of the camera's state in which the wake-ups were found unusable.
    given_up_in: Option<u64>,
    /// Score of missing posts. A unit without a post adds two, and a poll with posts subtracts one.
    missed: u32,
    /// Number of consecutive polls that took posts but found no unit.
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

/// Requests a real-time priority for the calling thread. Logs a warning if the kernel refuses.
fn request_realtime() {
    let parameter = libc::sched_param { sched_priority: REALTIME_PRIORITY };
    // SAFETY: 0 means the calling thread. The parameter outlives the call, which only reads it.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        log::warn!(
            "--realtime: SCHED_RR is refused ({error}); give the program CAP_SYS_NICE or an rtprio limit"
        );
    }
}

/// Waits until `word` is no longer `seen`, but at most `timeout_ns` nanoseconds. Other processes change the word and
/// wake its waiters.
fn wait_for_change(word: &AtomicU32, seen: u32, timeout_ns: i64) {
    let timeout = Timespec { tv_sec: timeout_ns / 1_000_000_000, tv_nsec: timeout_ns.max(0) % 1_000_000_000 };
    // The result is ignored, because the caller polls the camera after a change, a timeout and an interruption alike.
    let _ = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
}

#[cfg(test)]
mod tests;
