//! The camera's waiter as a part of a worker's turn: the kernel wakes the worker for the unit itself, instead of a thread
//! that wakes the worker. With few viewers and an even camera it wakes a moment before the unit and polls busily until it
//! is there: a thread takes longer to wake than to send to a viewer. May not ring: the waiter does.

use std::io;
use std::time::Duration;

use crate::base::clock::{self, Now};
use crate::base::limits;
use crate::camera::waiter::{CameraWaiter, WaiterHandoff};
use crate::uring::FutexWord;
use crate::worker::rhythm::{Expected, Rhythm};

/// The waiter, and what is known of the next unit.
pub(super) struct InlineWait {
    lent: WaiterHandoff,
    /// The camera was heard since the last look.
    is_heard: bool,
    rhythm: Rhythm,
    /// How much later than asked for the worker wakes, on average.
    late_ns: i64,
    poll: Option<BusyPoll>,
    /// A busy poll saw the unit come.
    is_seen: bool,
    /// Time spent polling for units that were not there yet.
    polled_ns: u64,
}

/// From when to when to poll for a unit, CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BusyPoll {
    from_ns: i64,
    until_ns: i64,
}

impl InlineWait {
    pub(super) fn new(lent: WaiterHandoff) -> InlineWait {
        InlineWait {
            lent,
            is_heard: false,
            rhythm: Rhythm::default(),
            late_ns: limits::BUSY_POLL_NS_MAX / 4,
            poll: None,
            is_seen: false,
            polled_ns: 0,
        }
    }

    /// What to wait for.
    pub(super) fn word(&self) -> Option<(&FutexWord, u32)> {
        self.lent.get()?.word()
    }

    /// How long, at most, with so many viewers.
    pub(super) fn time_to_wait(&mut self, now: Now, viewers: usize) -> Duration {
        let is_wanted = (1..=limits::BUSY_POLL_VIEWERS_MAX).contains(&viewers);
        let expected = self.rhythm.expected().filter(|_| is_wanted && self.word().is_some());
        self.poll = expected
            .map(|expected| BusyPoll::around(expected, self.late_ns))
            .filter(|poll| poll.from_ns > now.monotonic_ns);
        let due_ns = self.lent.get().map_or(i64::MAX, CameraWaiter::due_ns);
        let until_ns = self.poll.map_or(due_ns, |poll| due_ns.min(poll.from_ns));
        let ns = until_ns.saturating_sub(now.monotonic_ns);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
    }

    /// The wait ended.
    pub(super) fn on_completion(&mut self, result: Result<(), i32>) {
        self.is_heard = true;
        if let (Err(errno), Some(waiter)) = (result, self.lent.get_mut()) {
            waiter.poll_instead(&io::Error::from_raw_os_error(errno).to_string());
        }
    }

    /// Where the worker woke for a unit that is about to come, polls until it is there or too late. Whether time has gone
    /// by.
    pub(super) fn poll_busily(&mut self, now: Now) -> bool {
        let (Some(poll), Some(waiter)) = (self.poll.take(), self.lent.get()) else { return false };
        if now.monotonic_ns < poll.from_ns || waiter.is_rung() {
            return false;
        }
        let late_ns = (now.monotonic_ns - poll.from_ns).min(limits::BUSY_POLL_NS_MAX);
        self.late_ns += (late_ns - self.late_ns) / 8;
        let until_ns = poll.until_ns.min(now.monotonic_ns + limits::BUSY_POLL_NS_MAX);
        let mut at_ns = now.monotonic_ns;
        while !waiter.is_rung() && at_ns < until_ns {
            std::hint::spin_loop();
            at_ns = clock::monotonic_ns();
        }
        self.is_seen = waiter.is_rung();
        self.is_heard |= self.is_seen;
        self.polled_ns += u64::try_from(at_ns - now.monotonic_ns).unwrap_or(0);
        true
    }

    /// Nanoseconds spent in [`InlineWait::poll_busily`].
    pub(super) fn polled_ns(&self) -> u64 {
        self.polled_ns
    }

    /// Looks where that is due.
    pub(super) fn turn(&mut self, now: Now) {
        let Some(waiter) = self.lent.get_mut() else { return };
        if !std::mem::take(&mut self.is_heard) && now.monotonic_ns < waiter.due_ns() {
            return;
        }
        let is_seen = std::mem::take(&mut self.is_seen);
        if waiter.poll(now.monotonic_ns) {
            // One that woke the worker came by as much before.
            let late_ns = if is_seen { 0 } else { self.late_ns };
            self.rhythm.learn(now.monotonic_ns - late_ns);
        }
    }
}

impl BusyPoll {
    /// From when most such units have not come yet, by a worker that wakes `late_ns` after it asked to, until most have.
    fn around(expected: Expected, late_ns: i64) -> BusyPoll {
        let Expected { at_ns, jitter_ns } = expected;
        let from_ns = at_ns.saturating_sub(jitter_ns + limits::BUSY_POLL_MARGIN_NS + late_ns);
        BusyPoll { from_ns, until_ns: at_ns.saturating_add(2 * jitter_ns + limits::BUSY_POLL_MARGIN_NS) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::camera::{Camera, FORMAT_H264, Layout, RingWriter, SlotMetadata, Wake};

    const INTERVAL_NS: i64 = 33_000_000;

    struct Scene {
        ring: RingWriter,
        own: InlineWait,
        camera: Camera,
        _back: Receiver<Option<CameraWaiter>>,
    }

    impl Scene {
        /// A worker that has just looked at a camera which goes on evenly.
        fn new(name: &str) -> Scene {
            let name = format!("/ss-test-{}-{name}", std::process::id());
            let ring = RingWriter::create(&name, Layout::V3, 33).unwrap();
            let (give_back, back) = sync_channel(1);
            let camera = Camera::new(&name, Wake::Auto);
            let waiter = CameraWaiter::new(camera.clone());
            let mut scene = Scene {
                ring,
                own: InlineWait::new(WaiterHandoff::new(waiter, give_back)),
                camera,
                _back: back,
            };
            let now_ns = clock::now().monotonic_ns;
            for unit in -40..=0 {
                scene.own.rhythm.learn(now_ns + unit * INTERVAL_NS);
            }
            scene.own.turn(clock::now());
            scene
        }

        fn units_seen(&self) -> u64 {
            self.camera.counters().units_seen.get()
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
    fn few_viewers_have_the_worker_awake_before_the_unit_and_many_or_none_have_not() {
        let mut scene = Scene::new("few");
        let now = clock::now();
        for (viewers, polls) in [
            (0, false),
            (1, true),
            (limits::BUSY_POLL_VIEWERS_MAX, true),
            (limits::BUSY_POLL_VIEWERS_MAX + 1, false),
        ] {
            let wait = scene.own.time_to_wait(now, viewers);
            assert_eq!(scene.own.poll.is_some(), polls, "{viewers} viewers");
            assert!(!polls || wait < Duration::from_millis(33), "{wait:?}");
        }
    }

    #[test]
    fn a_unit_that_does_not_come_is_not_waited_for_long() {
        let mut scene = Scene::new("late");
        let now = clock::now();
        scene.own.poll =
            Some(BusyPoll { from_ns: now.monotonic_ns, until_ns: now.monotonic_ns + 60_000_000_000 });
        assert!(scene.own.poll_busily(now), "time has gone by");
        assert!((1..60_000_000_000).contains(&scene.own.polled_ns()));
        assert!(!scene.own.is_seen && !scene.own.is_heard);
        assert!(!scene.own.poll_busily(clock::now()), "once");
    }

    #[test]
    fn a_unit_that_is_there_already_is_not_polled_for() {
        let mut scene = Scene::new("there");
        let now = clock::now();
        scene.own.poll = Some(BusyPoll { from_ns: now.monotonic_ns, until_ns: i64::MAX });
        scene.publish();
        assert!(!scene.own.poll_busily(now));
        assert_eq!(scene.own.polled_ns(), 0);
        scene.own.on_completion(Ok(()));
        scene.own.turn(clock::now());
        assert_eq!(scene.units_seen(), 1);
        assert!(scene.own.word().is_some_and(|(word, seen)| {
            (**word).as_ref().load(std::sync::atomic::Ordering::Relaxed) == seen
        }));
    }

    #[test]
    fn a_kernel_that_will_not_wait_has_the_ring_polled() {
        let mut scene = Scene::new("refused");
        scene.own.on_completion(Err(libc::EFAULT));
        scene.own.turn(clock::now());
        assert!(scene.own.word().is_none());
        scene.publish();
        while scene.units_seen() == 0 {
            let wait = scene.own.time_to_wait(clock::now(), 1);
            std::thread::sleep(wait);
            scene.own.turn(clock::now());
        }
    }
}
