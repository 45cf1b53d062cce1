//! UNSAFE: who waits for the camera, by its semaphore, its futex or by polling, and rings every consumer: a thread of
//! its own or, where the kernel lets io_uring wait for a futex, a worker.
//! May not read units: what a look means is decided in `watch.rs`, here is only the waiting.
#![expect(unsafe_code, reason = "asks for a real-time priority")]

#[cfg(test)]
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::Timespec;

use super::commit_detector::Posts;
use super::cursor::MonotonicNs;
use super::mapping::Mapping;
use super::segment_follower::{Pace, Progress, SegmentFollower};
use super::source::{Camera, Wake};
use crate::base::clock::monotonic_ns;
use crate::base::limits::{
    CAMERA_RETRY_NS, CAMERA_WAIT_MAX_NS, COMMIT_STABLE_NS, WAKES_EMPTY_MAX, WAKES_MISSED_MAX,
};

/// Priority asked for with `--realtime`: above every normal thread, below the kernel's own.
const REALTIME_PRIORITY: i32 = 10;

/// A word of shared memory that the camera changes and wakes (futex(2), shared between processes).
pub type Word = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

/// Body of a doorbell thread: waits for the camera and for units, rings the camera's bells. Returns
/// within about 200 ms of `stop` being set. With `realtime` the thread asks for `SCHED_RR`; a refusal is a
/// warning.
pub fn run(camera: Camera, stop: Arc<AtomicBool>, realtime: bool) {
    if realtime {
        ask_for_realtime();
    }
    CameraWaiter::new(camera).run(&stop);
}

/// The same, but it stands by until somebody has a doorbell to give away: see [`WaiterHandoff`]. Returns when nobody can any
/// more, or is told to by `None`.
pub fn run_fallback(given_back: &Receiver<Option<CameraWaiter>>, stop: &AtomicBool, realtime: bool) {
    if realtime {
        ask_for_realtime();
    }
    if let Ok(Some(mut doorbell)) = given_back.recv() {
        doorbell.run(stop);
    }
}

/// A doorbell on loan to a thread with other work. However that thread ends, the doorbell goes to the one that stands
/// by: the camera is watched as long as the program runs.
pub struct WaiterHandoff {
    /// Taken out by the drop alone.
    doorbell: Option<CameraWaiter>,
    back: SyncSender<Option<CameraWaiter>>,
}

impl WaiterHandoff {
    /// Lends `doorbell`; it comes back by `back`, which must have room for it.
    #[must_use]
    pub fn new(doorbell: CameraWaiter, back: SyncSender<Option<CameraWaiter>>) -> WaiterHandoff {
        WaiterHandoff { doorbell: Some(doorbell), back }
    }

    /// The doorbell, there until the drop.
    #[must_use]
    pub fn get(&self) -> Option<&CameraWaiter> {
        self.doorbell.as_ref()
    }

    /// The same, to look.
    pub fn get_mut(&mut self) -> Option<&mut CameraWaiter> {
        self.doorbell.as_mut()
    }
}

impl Drop for WaiterHandoff {
    fn drop(&mut self) {
        // Without a thread that stands by the program has ended.
        let _ = self.back.try_send(self.doorbell.take());
    }
}

/// Follows the camera, one look at a time. Between two looks its owner waits: for [`CameraWaiter::word`] to change, or
/// until [`CameraWaiter::due_ns`].
pub struct CameraWaiter {
    watch: SegmentFollower,
    /// Whether the camera's wakes are used at all.
    is_woken: bool,
    pace: Pace,
    trust: Trust,
    due_ns: MonotonicNs,
    /// The next look comes late enough for a wake that comes at all.
    is_patient: bool,
    waiting: Waiting,
}

/// What tells of a unit in the segment mapped now.
enum Waiting {
    /// Nothing that may be used: the ring is polled.
    Poll,
    /// The futex of a lease ring, and what it held before the last look.
    Futex(Word, u32),
    Semaphore(Arc<Semaphore>, Word),
}

impl CameraWaiter {
    /// A doorbell whose first look is due at once.
    #[must_use]
    pub fn new(camera: Camera) -> CameraWaiter {
        CameraWaiter {
            is_woken: camera.wake() != Wake::Poll,
            watch: SegmentFollower::new(camera),
            pace: Pace::default(),
            trust: Trust::default(),
            due_ns: i64::MIN,
            is_patient: false,
            waiting: Waiting::Poll,
        }
    }

    /// Looks and waits in turn until `stop` is set.
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let wait_ns = self.due_ns.saturating_sub(monotonic_ns());
            match self.word() {
                Some((word, seen)) => wait_for_change((**word).as_ref(), seen, wait_ns),
                None => sleep(wait_ns),
            }
            self.poll(monotonic_ns());
        }
    }

    /// When to look at the latest, CLOCK_MONOTONIC.
    #[must_use]
    pub fn due_ns(&self) -> MonotonicNs {
        self.due_ns
    }

    /// What to wait for until then: that the word is no longer as given. `None`: nothing tells.
    #[must_use]
    pub fn word(&self) -> Option<(&Word, u32)> {
        match &self.waiting {
            Waiting::Poll => None,
            Waiting::Futex(word, seen) => Some((word, *seen)),
            Waiting::Semaphore(_, word) => Some((word, 0)),
        }
    }

    /// Whether the camera tells of something at this moment: a look may wait until it does.
    #[must_use]
    pub fn is_rung(&self) -> bool {
        self.word().is_some_and(|(word, seen)| (**word).as_ref().load(Ordering::Relaxed) != seen)
    }

    /// The kernel will not wait for the word: polls until the camera comes anew.
    pub fn poll_instead(&mut self, reason: &str) {
        log::warn!("the camera's wakes cannot be waited for: {reason}; polling instead");
        self.trust.lost_in = Some(self.watch.mapping().0);
        self.due_ns = i64::MIN;
    }

    /// One look: takes what the camera posted, rings the bells where that is news. Does not wait. Whether units came.
    pub fn poll(&mut self, now_ns: MonotonicNs) -> bool {
        let (generation, _) = self.watch.mapping();
        let posts = match &mut self.waiting {
            Waiting::Poll => None,
            Waiting::Futex(word, seen) => {
                *seen = (**word).as_ref().load(Ordering::Acquire);
                None
            }
            Waiting::Semaphore(semaphore, _) => Some(semaphore.take_all()),
        };
        let progress = self.watch.poll(now_ns, posts);
        if let Some(posts) = posts {
            self.trust.judge(generation, posts.taken, progress, self.is_patient);
        }
        let units = if let Progress::Advanced(units) = progress { units } else { 0 };
        if units > 0 {
            self.pace.learn(units, now_ns);
        }
        self.is_patient = !self.watch.is_unsettled();
        self.follow();
        self.due_ns = now_ns + self.next_sleep_ns(progress, now_ns).min(CAMERA_WAIT_MAX_NS);
        units > 0
    }

    /// Takes up what tells of units in the segment that is mapped now.
    fn follow(&mut self) {
        let (generation, mapping) = self.watch.mapping();
        let Some(mapping) = mapping.filter(|_| self.is_woken && self.trust.allows(generation)) else {
            self.waiting = Waiting::Poll;
            return;
        };
        if let Some(ring) = mapping.leases() {
            let word = Arc::clone(ring) as Word;
            if !matches!(&self.waiting, Waiting::Futex(known, _) if Word::ptr_eq(known, &word)) {
                // As it never is: the first wait ends at once.
                let seen = (*word).as_ref().load(Ordering::Acquire).wrapping_sub(1);
                self.waiting = Waiting::Futex(word, seen);
            }
        } else if !matches!(&self.waiting, Waiting::Semaphore(known, _) if Arc::ptr_eq(&known.mapping, mapping))
        {
            self.waiting = match Semaphore::of(Arc::clone(mapping)).map(Arc::new) {
                Some(semaphore) => Waiting::Semaphore(Arc::clone(&semaphore), semaphore),
                None => Waiting::Poll,
            };
        }
        if let Waiting::Semaphore(semaphore, _) = &self.waiting {
            semaphore.announce();
        }
    }

    fn next_sleep_ns(&self, progress: Progress, now_ns: MonotonicNs) -> i64 {
        if progress == Progress::Away {
            CAMERA_RETRY_NS
        } else if self.watch.is_unsettled() && !self.pace.is_silent(now_ns) {
            COMMIT_STABLE_NS
        } else if self.word().is_some() {
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

    fn judge(&mut self, generation: u64, posts: u32, progress: Progress, is_patient: bool) {
        let is_unit = matches!(progress, Progress::Advanced(1..));
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

/// The camera's semaphore in its mapping, with us announced as somebody who waits.
///
/// What glibc keeps in a `sem_t` (64 bits, since 2.21, the same for all programs that share one): the count in the
/// first four bytes, which is the futex word, and the number of those who wait in the next four. `sem_post` wakes only
/// when there are some. Dying with a wait announced is what a program killed in `sem_wait` does: a post then
/// makes one system call more.
struct Semaphore {
    mapping: Arc<Mapping>,
}

/// One more who waits, in the first eight bytes of a `sem_t`; what is below is the count.
const WAITER: u64 = 1 << 32;

#[cfg(not(all(target_pointer_width = "64", target_endian = "little", target_env = "gnu")))]
compile_error!("the camera's semaphore is that of glibc on a 64-bit, little-endian machine");

impl Semaphore {
    /// Announces us.
    fn of(mapping: Arc<Mapping>) -> Option<Semaphore> {
        let (_, state) = mapping.semaphore_words()?;
        state.fetch_add(WAITER, Ordering::SeqCst);
        Some(Semaphore { mapping })
    }

    fn state(&self) -> Option<&AtomicU64> {
        self.mapping.semaphore_words().map(|(_, state)| state)
    }

    /// Announces us again where nobody is announced any more: the camera made the semaphore anew.
    fn announce(&self) {
        if let Some(state) = self.state().filter(|state| state.load(Ordering::Relaxed) < WAITER) {
            state.fetch_add(WAITER, Ordering::SeqCst);
        }
    }

    /// Takes every post there is, as so many `sem_trywait`.
    fn take_all(&self) -> Posts {
        let index_before = self.mapping.write_index();
        let posts =
            self.state().map_or(0, |state| state.fetch_and(!(WAITER - 1), Ordering::Acquire) & (WAITER - 1));
        Posts { taken: u32::try_from(posts).unwrap_or(u32::MAX), index_before }
    }
}

impl AsRef<AtomicU32> for Semaphore {
    /// The count: zero while there is nothing to take.
    fn as_ref(&self) -> &AtomicU32 {
        static NEVER: AtomicU32 = AtomicU32::new(0);
        self.mapping.semaphore_words().map_or(&NEVER, |(count, _)| count)
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        if let Some(state) = self.state() {
            let withdraw = |state: u64| state.checked_sub(WAITER);
            // Nobody is announced where the camera made it anew.
            let _ = state.fetch_update(Ordering::SeqCst, Ordering::Relaxed, withdraw);
        }
    }
}

/// Asks for a real-time priority of the calling thread.
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

/// The camera's side of the semaphore, for the tests.
#[cfg(test)]
struct Poster(Arc<Mapping>);

#[cfg(test)]
impl Poster {
    fn new(mapping: Arc<Mapping>) -> Poster {
        let poster = Poster(mapping);
        poster.make();
        poster
    }

    /// As the daemon does when it starts.
    fn make(&self) {
        // SAFETY: the pointer is to 32 aligned, writable bytes; whoever waits there is not disturbed in a way that
        // matters to memory.
        let result = unsafe { libc::sem_init(self.pointer(), 1, 0) };
        assert_eq!(result, 0);
    }

    fn pointer(&self) -> *mut libc::sem_t {
        self.0.semaphore().map_or(std::ptr::null_mut(), NonNull::as_ptr)
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
        // SAFETY: as in `post`; `value` outlives the call.
        let result = unsafe { libc::sem_getvalue(self.pointer(), &raw mut value) };
        assert_eq!(result, 0);
        value
    }

    /// How many are announced.
    fn waiters(&self) -> u64 {
        self.0.semaphore_words().map_or(0, |(_, state)| state.load(Ordering::Relaxed) / WAITER)
    }
}

#[cfg(test)]
mod tests;
