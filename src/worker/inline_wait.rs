//! The camera wait inside a worker's turn: the kernel wakes the worker directly for each unit, without a thread in
//! between. With few viewers and a camera with a steady interval, the worker wakes shortly before the unit and
//! busy-polls until the unit arrives. This saves time, because waking a thread takes longer than sending to one viewer.
//! This module only waits; the waiter wakes the consumers.

use std::io;
use std::time::Duration;

use crate::base::clock::{self, Now};
use crate::base::limits;
use crate::camera::waiter::WaiterHandoff;
use crate::camera::{ArrivalPredictor, PredictedArrival};
use crate::uring::FutexWord;

/// The camera waiter of a worker, and its prediction of the next unit.
pub(super) struct InlineWait {
    handoff: WaiterHandoff,
    /// True if the camera has signalled since the last poll.
    is_signalled: bool,
    predictor: ArrivalPredictor,
    /// Running mean of how late the worker wakes after its timeout.
    wake_latency_ns: i64,
    /// The busy poll that is planned next.
    busy_poll: Option<BusyPoll>,
    /// True if a busy poll found the unit.
    found_by_busy_poll: bool,
    /// Time spent in all busy polls so far.
    polled_ns: u64,
}

/// Start and end of a busy poll, CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BusyPoll {
    from_ns: i64,
    until_ns: i64,
}

impl InlineWait {
    pub(super) fn new(handoff: WaiterHandoff) -> InlineWait {
        InlineWait {
            handoff,
            is_signalled: false,
            predictor: ArrivalPredictor::default(),
            wake_latency_ns: limits::BUSY_POLL_NS_MAX / 4,
            busy_poll: None,
            found_by_busy_poll: false,
            polled_ns: 0,
        }
    }

    /// Returns the futex word to wait on, and its value at the last poll.
    pub(super) fn word(&self) -> Option<(&FutexWord, u32)> {
        self.handoff.waiter.as_ref()?.word()
    }

    /// Returns how long the worker may wait. Plans a busy poll if `viewers` is small enough and the next arrival can be
    /// predicted.
    pub(super) fn time_to_wait(&mut self, now: Now, viewers: usize) -> Duration {
        let may_poll = (1..=limits::BUSY_POLL_VIEWERS_MAX).contains(&viewers);
        let predicted = self.predictor.next_arrival().filter(|_| may_poll && self.word().is_some());
        self.busy_poll = predicted
            .map(|arrival| BusyPoll::around(arrival, self.wake_latency_ns))
            .filter(|poll| poll.from_ns > now.monotonic_ns);
        let due_ns = self.handoff.waiter.as_ref().map_or(i64::MAX, |waiter| waiter.due_ns);
        let until_ns = self.busy_poll.map_or(due_ns, |poll| due_ns.min(poll.from_ns));
        let ns = until_ns.saturating_sub(now.monotonic_ns);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
    }

    /// Handles the completion of the kernel's futex wait; an `Err` holds the errno.
    pub(super) fn on_completion(&mut self, result: Result<(), i32>) {
        self.is_signalled = true;
        if let (Err(errno), Some(waiter)) = (result, &mut self.handoff.waiter) {
            waiter.give_up_wakeups(&io::Error::from_raw_os_error(errno).to_string());
        }
    }

    /// Runs the planned busy poll if it is due: polls until the camera signals or the planned end is reached. Returns
    /// true if time has passed, so that the caller reads the clock again.
    pub(super) fn poll_busily(&mut self, now: Now) -> bool {
        let (Some(poll), Some(waiter)) = (self.busy_poll.take(), &self.handoff.waiter) else { return false };
        if now.monotonic_ns < poll.from_ns || waiter.is_signalled() {
            return false;
        }
        let latency_ns = (now.monotonic_ns - poll.from_ns).min(limits::BUSY_POLL_NS_MAX);
        self.wake_latency_ns += (latency_ns - self.wake_latency_ns) / 8;
        let until_ns = poll.until_ns.min(now.monotonic_ns + limits::BUSY_POLL_NS_MAX);
        let mut at_ns = now.monotonic_ns;
        while !waiter.is_signalled() && at_ns < until_ns {
            std::hint::spin_loop();
            at_ns = clock::monotonic_ns();
        }
        self.found_by_busy_poll = waiter.is_signalled();
        self.is_signalled |= self.found_by_busy_poll;
        self.polled_ns += u64::try_from(at_ns - now.monotonic_ns).unwrap_or(0);
        true
    }

    /// Returns the nanoseconds spent in [`InlineWait::poll_busily`] so far.
    pub(super) fn polled_ns(&self) -> u64 {
        self.polled_ns
    }

    /// Polls the camera if the camera has signalled or if the waiter's next poll is due.
    pub(super) fn turn(&mut self, now: Now) {
        let Some(waiter) = &mut self.handoff.waiter else { return };
        if !std::mem::take(&mut self.is_signalled) && now.monotonic_ns < waiter.due_ns {
            return;
        }
        let found_by_busy_poll = std::mem::take(&mut self.found_by_busy_poll);
        if waiter.poll(now.monotonic_ns) {
            // A busy poll finds the unit without a wake-up. Otherwise the unit woke the worker, so it arrived one
            // wake-up latency earlier.
            let latency_ns = if found_by_busy_poll { 0 } else { self.wake_latency_ns };
            self.predictor.on_unit(now.monotonic_ns - latency_ns);
        }
    }
}

impl BusyPoll {
    /// Plans a busy poll for a predicted arrival. The poll starts before most units arrive, and earlier by the wake-up
    /// latency. It ends after most units have arrived.
    fn around(arrival: PredictedArrival, wake_latency_ns: i64) -> BusyPoll {
        let PredictedArrival { at_ns, jitter_ns } = arrival;
        let from_ns = at_ns.saturating_sub(jitter_ns + limits::BUSY_POLL_MARGIN_NS + wake_latency_ns);
        BusyPoll { from_ns, until_ns: at_ns.saturating_add(2 * jitter_ns + limits::BUSY_POLL_MARGIN_NS) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::camera::waiter::CameraWaiter;
    use crate::camera::{Camera, FORMAT_H264, Layout, RingWriter, SlotMetadata, Wake, Wakeup};

    const INTERVAL_NS: i64 = 33_000_000;

    /// Counts the wake-ups of consumers.
    #[derive(Default)]
    struct WakeupCount(AtomicU32);

    impl Wakeup for WakeupCount {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Scene {
        ring: RingWriter,
        wait: InlineWait,
        wakeups: Arc<WakeupCount>,
        _returned: Receiver<Option<CameraWaiter>>,
    }

    impl Scene {
        /// Creates the wait of a worker that has just polled a camera with a steady interval.
        fn new(name: &str) -> Scene {
            let name = format!("/ss-test-{}-{name}", std::process::id());
            let ring = RingWriter::create(&name, Layout::V3, 33).unwrap();
            let (fallback, returned) = sync_channel(1);
            let camera = Camera::new(&name, Wake::Auto);
            let wakeups = Arc::new(WakeupCount::default());
            camera.add_wakeup(Arc::clone(&wakeups) as Arc<dyn Wakeup>);
            let waiter = CameraWaiter::new(camera);
            let mut scene = Scene {
                ring,
                wait: InlineWait::new(WaiterHandoff::new(waiter, fallback)),
                wakeups,
                _returned: returned,
            };
            let now_ns = clock::now().monotonic_ns;
            for unit in -40..=0 {
                scene.wait.predictor.on_unit(now_ns + unit * INTERVAL_NS);
            }
            scene.wait.turn(clock::now());
            scene
        }

        fn wakeups(&self) -> u32 {
            self.wakeups.0.load(Ordering::Relaxed)
        }

        fn publish(&mut self) {
            let metadata = SlotMetadata {
                width: 640,
                height: 480,
                format: FORMAT_H264,
                data_bytes: 4,
                ..SlotMetadata::default()
            };
            assert!(self.ring.publish(&metadata, b"unit"));
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            self.ring.unlink();
        }
    }

    #[test]
    fn busy_poll_is_planned_for_few_viewers_only() {
        let mut scene = Scene::new("few");
        let now = clock::now();
        for (viewers, polls) in [
            (0, false),
            (1, true),
            (limits::BUSY_POLL_VIEWERS_MAX, true),
            (limits::BUSY_POLL_VIEWERS_MAX + 1, false),
        ] {
            let wait = scene.wait.time_to_wait(now, viewers);
            assert_eq!(scene.wait.busy_poll.is_some(), polls, "{viewers} viewers");
            assert!(!polls || wait < Duration::from_millis(33), "{wait:?}");
        }
    }

    #[test]
    fn busy_poll_for_a_missing_unit_ends_soon() {
        let mut scene = Scene::new("late");
        let now = clock::now();
        scene.wait.busy_poll =
            Some(BusyPoll { from_ns: now.monotonic_ns, until_ns: now.monotonic_ns + 60_000_000_000 });
        assert!(scene.wait.poll_busily(now), "time has passed");
        assert!((1..60_000_000_000).contains(&scene.wait.polled_ns()));
        assert!(!scene.wait.found_by_busy_poll && !scene.wait.is_signalled);
        assert!(!scene.wait.poll_busily(clock::now()), "only once");
    }

    #[test]
    fn published_unit_needs_no_busy_poll() {
        let mut scene = Scene::new("there");
        let now = clock::now();
        scene.wait.busy_poll = Some(BusyPoll { from_ns: now.monotonic_ns, until_ns: i64::MAX });
        scene.publish();
        assert!(!scene.wait.poll_busily(now));
        assert_eq!(scene.wait.polled_ns(), 0);
        scene.wait.on_completion(Ok(()));
        scene.wait.turn(clock::now());
        assert_eq!(scene.wakeups(), 1);
        let (word, seen) = scene.wait.word().unwrap();
        assert_eq!((**word).as_ref().load(Ordering::Relaxed), seen, "the signal is handled");
    }

    #[test]
    fn ring_is_polled_if_the_kernel_refuses_the_wait() {
        let mut scene = Scene::new("refused");
        scene.wait.on_completion(Err(libc::EFAULT));
        scene.wait.turn(clock::now());
        assert!(scene.wait.word().is_none());
        scene.publish();
        while scene.wakeups() == 0 {
            let wait = scene.wait.time_to_wait(clock::now(), 1);
            std::thread::sleep(wait);
            scene.wait.turn(clock::now());
        }
    }
}
