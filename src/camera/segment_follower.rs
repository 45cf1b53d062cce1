//! What the doorbell does at each look: follow the index, find out what is whole, ring, re-attach.
//! Decides on (ring, posts, now) only; may not wait, so that a test can run it on any clock.

use std::sync::Arc;

use super::commit_detector::{CommitDetector, PostCount, Posts};
use super::cursor::{MonotonicNs, ahead};
use super::mapping::{Mapping, MappingError, SegmentIdentity};
use super::source::{Attachment, Camera, restart_at};
use crate::base::limits::{
    CAMERA_CHECK_NS, CAMERA_CHECK_SILENT_NS, CAMERA_SILENT_NS, CAMERA_WAIT_MAX_NS, COMMIT_POSTED_NS,
    COMMIT_UNSEEN_NS, INDEX_STEP_MAX, POLL_STEP_NS,
};
use crate::base::log_limit::LogLimit;

/// What a look found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// No camera is mapped.
    Away,
    /// Nothing new.
    Quiet,
    /// The index went on by this many units.
    Advanced(u32),
}

/// The doorbell's view of the camera.
pub(super) struct SegmentFollower {
    camera: Camera,
    generation: u64,
    run: Option<Run>,
    checked_at_ns: MonotonicNs,
    waiting_log: LogLimit,
    waiting_reason: String,
}

/// One run of the camera, followed by its index.
struct Run {
    attachment: Arc<Attachment>,
    index: u32,
    available: u32,
    /// When the index last moved, or the run was first seen.
    moved_at_ns: MonotonicNs,
    frame_number: u64,
    settle: CommitDetector,
    posted: PostCount,
}

impl SegmentFollower {
    pub(super) fn new(camera: Camera) -> SegmentFollower {
        SegmentFollower {
            camera,
            generation: u64::MAX,
            run: None,
            checked_at_ns: i64::MIN,
            waiting_log: LogLimit::default(),
            waiting_reason: String::new(),
        }
    }

    /// What is mapped now, and the generation that changes with it.
    pub(super) fn mapping(&self) -> (u64, Option<&Arc<Mapping>>) {
        (self.generation, self.run.as_ref().map(|run| &run.attachment.mapping))
    }

    /// Whether a unit is begun of which it is not known yet that it is whole.
    pub(super) fn is_unsettled(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.available != run.index)
    }

    /// One look. `posts` is what the wait on the semaphore brought, `None` when the ring is polled.
    pub(super) fn poll(&mut self, now_ns: MonotonicNs, posts: Option<Posts>) -> Progress {
        self.camera.counters().wakes.add_shared(1);
        self.follow_camera(now_ns);
        if self.is_check_due(now_ns) {
            self.check(now_ns);
            self.follow_camera(now_ns);
        }
        let Some(run) = &mut self.run else { return Progress::Away };
        if run.attachment.mapping.is_lost() {
            self.camera.detach("the segment shrank under its mapping");
            self.follow_camera(now_ns);
            return Progress::Away;
        }
        let index = run.attachment.mapping.write_index();
        let step = index.wrapping_sub(run.index);
        if step > INDEX_STEP_MAX || !run.attachment.has_its_writer() {
            self.camera.restart(&run.attachment, now_ns);
            self.follow_camera(now_ns);
            return Progress::Advanced(0);
        }
        if step > 0 {
            run.follow_index(index, now_ns);
            let metadata = run.attachment.mapping.metadata(index.wrapping_sub(1));
            self.camera.note_units(step, metadata.width, metadata.height, now_ns);
            self.camera.counters().wakes_with_unit.add_shared(1);
        }
        let available = run.available;
        run.find_whole(now_ns, posts);
        if run.note_frame_number() {
            self.camera.count_restart(now_ns, "without resetting the index");
        }
        if run.available != available {
            self.camera.wake_consumers();
        }
        if step > 0 { Progress::Advanced(step) } else { Progress::Quiet }
    }

    /// Takes up the current run when cursors or this watch changed it.
    fn follow_camera(&mut self, now_ns: MonotonicNs) {
        if self.generation == self.camera.generation() {
            return;
        }
        let (generation, attachment) = self.camera.place();
        self.generation = generation;
        self.run = attachment.map(|attachment| Run::new(attachment, now_ns));
    }

    fn is_check_due(&self, now_ns: MonotonicNs) -> bool {
        let since_ns = now_ns.saturating_sub(self.checked_at_ns);
        match &self.run {
            None => true,
            Some(run) if now_ns - run.moved_at_ns >= CAMERA_CHECK_SILENT_NS => {
                since_ns >= CAMERA_CHECK_SILENT_NS
            }
            Some(_) => since_ns >= CAMERA_CHECK_NS,
        }
    }

    /// Compares the segment's name with what is mapped, and attaches what is there now.
    fn check(&mut self, now_ns: MonotonicNs) {
        self.checked_at_ns = now_ns;
        self.camera.refresh_clocks();
        let Some(run) = &self.run else {
            return self.attach(now_ns, false);
        };
        let mapping = &run.attachment.mapping;
        let is_whole = mapping.is_whole();
        let is_silent = now_ns - run.moved_at_ns >= CAMERA_CHECK_SILENT_NS;
        if is_silent && mapping.leases().is_some_and(|ring| !ring.has_writer()) {
            // A lease ring says that its camera is gone; another may have come under the name.
            return self.attach(now_ns, false);
        }
        match SegmentIdentity::of_name(self.camera.name()) {
            Ok(identity) if is_whole && identity.inode == mapping.identity() => {}
            // The name is gone or points elsewhere. A camera that still writes keeps its readers until
            // there is another one.
            _ => {
                let is_alive = is_whole && now_ns - run.moved_at_ns < CAMERA_SILENT_NS;
                self.attach(now_ns, is_alive);
            }
        }
    }

    /// Attaches the segment that has the name now; without one the camera is away unless `is_alive`.
    fn attach(&mut self, now_ns: MonotonicNs, is_alive: bool) {
        match self.camera.open_mapping() {
            Ok(mapping) => {
                if self.camera.counters().attached.get() > 0 {
                    self.camera.count_restart(now_ns, "with another segment");
                }
                let (start, _) = restart_at(&mapping);
                self.camera.attach(mapping, start);
            }
            Err(_) if is_alive => {}
            Err(error) => self.wait(now_ns, &error),
        }
    }

    /// Says what is waited for: at once when the reason is new, else once a minute.
    fn wait(&mut self, now_ns: MonotonicNs, error: &MappingError) {
        let reason = error.to_string();
        self.camera.detach(&reason);
        if self.waiting_reason != reason {
            self.waiting_log = LogLimit::default();
        }
        if self.waiting_log.allows(now_ns) {
            log::info!("waiting for the camera: {reason}");
        }
        self.waiting_reason = reason;
    }
}

impl Run {
    fn new(attachment: Arc<Attachment>, now_ns: MonotonicNs) -> Run {
        // From the run's start: units published before this first look are news too.
        let index = attachment.start;
        // On an index-first ring the newest unit may be in the middle of its copy; at 0 there is none.
        let is_known_whole = !attachment.mapping.layout().publishes_index_first() || index == 0;
        Run {
            index,
            available: if is_known_whole { index } else { index.wrapping_sub(1) },
            moved_at_ns: now_ns,
            frame_number: 0,
            settle: CommitDetector::default(),
            posted: PostCount::default(),
            attachment,
        }
    }

    fn follow_index(&mut self, index: u32, now_ns: MonotonicNs) {
        self.index = index;
        self.moved_at_ns = now_ns;
    }

    /// Index-first rings: finds out how many units are whole and tells the cursors.
    fn find_whole(&mut self, now_ns: MonotonicNs, posts: Option<Posts>) {
        let mapping = &self.attachment.mapping;
        if !mapping.layout().publishes_index_first() {
            self.available = self.index;
            return;
        }
        let posted = posts.map(|posts| (posts, self.posted.update(posts, self.index)));
        let newest = self.index.wrapping_sub(1);
        let was_whole = self.available == self.index;
        let mut whole = if was_whole { self.index } else { newest };
        if let Some((_, posted)) = posted
            && ahead(posted, whole) > 0
        {
            whole = posted;
        }
        let is_posted = posted.is_none_or(|(_, posted)| posted == self.index);
        // With posts a rest only has to tell once where the count stands; alone it has to prove every unit.
        let unseen_ns = if posts.is_some() { COMMIT_POSTED_NS } else { COMMIT_UNSEEN_NS };
        if (whole != self.index || !is_posted) && self.settle.look(mapping, newest, now_ns, unseen_ns) {
            whole = self.index;
            if posts.is_some() {
                self.posted.anchor(self.index);
            }
        }
        if whole == self.index && posts.is_none() {
            self.settle.record_pre_image(mapping, self.index);
        }
        self.available = whole;
        self.attachment.set_whole(whole);
    }

    /// Whether the camera began to count its pictures anew.
    fn note_frame_number(&mut self) -> bool {
        let is_told_by_epoch = self.attachment.mapping.leases().is_some();
        if is_told_by_epoch || ahead(self.available, self.attachment.start) <= 0 {
            return false;
        }
        let frame_number = self.attachment.mapping.metadata(self.available.wrapping_sub(1)).frame_number;
        let is_anew = frame_number < self.frame_number;
        self.frame_number = frame_number;
        is_anew
    }
}

/// When to look at a ring that is polled: from just before the expected arrival, less and less often when
/// the camera is late, so that a silent camera costs next to nothing.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Learned time from one unit to the next; 0 before the second unit.
    interval_ns: i64,
    arrived_at_ns: MonotonicNs,
}

/// Intervals are learned within these bounds: 1 ms to 1 s.
const INTERVAL_MIN_NS: i64 = 1_000_000;
const INTERVAL_MAX_NS: i64 = 1_000_000_000;

impl Pace {
    /// `units` new ones were seen at `now_ns`.
    pub(super) fn learn(&mut self, units: u32, now_ns: MonotonicNs) {
        let seen_ns = (now_ns - self.arrived_at_ns) / i64::from(units.max(1));
        self.arrived_at_ns = now_ns;
        let learned_ns = match self.interval_ns {
            0 => seen_ns.min(INTERVAL_MAX_NS / 30),
            // Slept too long: several came meanwhile.
            known_ns if units > 1 => seen_ns.min(known_ns),
            // A stall says nothing about the interval.
            known_ns if seen_ns > INTERVAL_MAX_NS => known_ns,
            known_ns if seen_ns > known_ns => known_ns + (seen_ns - known_ns) / 8,
            known_ns => known_ns - (known_ns - seen_ns) / 4,
        };
        self.interval_ns = learned_ns.clamp(INTERVAL_MIN_NS, INTERVAL_MAX_NS);
    }

    /// Nanoseconds until the next look.
    pub(super) fn sleep_ns(&self, now_ns: MonotonicNs) -> i64 {
        let expected_ns = self.arrived_at_ns.saturating_add(self.interval_ns);
        let early_ns = expected_ns.saturating_sub(2 * POLL_STEP_NS).saturating_sub(now_ns);
        if early_ns > POLL_STEP_NS {
            return early_ns.min(self.interval_ns);
        }
        let late_ns = now_ns.saturating_sub(expected_ns);
        match late_ns {
            _ if late_ns < self.interval_ns / 4 => POLL_STEP_NS,
            _ if late_ns < 4 * self.interval_ns => 4 * POLL_STEP_NS,
            _ if late_ns < 10_000_000_000 => 20 * POLL_STEP_NS,
            _ => 40 * POLL_STEP_NS,
        }
    }

    /// How long a wake of the semaphore may stay out before one looks at the index anyway.
    pub(super) fn patience_ns(&self, now_ns: MonotonicNs) -> i64 {
        if self.is_silent(now_ns) {
            return CAMERA_WAIT_MAX_NS;
        }
        (self.interval_ns + self.interval_ns / 2 + 10 * POLL_STEP_NS).min(CAMERA_WAIT_MAX_NS)
    }

    /// Whether nothing came for so long that haste is of no use.
    pub(super) fn is_silent(&self, now_ns: MonotonicNs) -> bool {
        self.interval_ns == 0 || now_ns - self.arrived_at_ns >= CAMERA_SILENT_NS
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::camera::cursor::{Cursor, Next};
    use crate::camera::layout::Layout;
    use crate::camera::source::{CameraStatus, Wake, Wakeup};
    use crate::camera::test_ring::TestRing;

    const MS: i64 = 1_000_000;

    #[derive(Default)]
    struct Rings(AtomicU32);

    impl Wakeup for Rings {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Rings {
        fn take(&self) -> u32 {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    struct Scene {
        camera: Camera,
        watch: SegmentFollower,
        cursor: Cursor,
        bell: Arc<Rings>,
        now_ns: MonotonicNs,
    }

    impl Scene {
        fn new(name: &str) -> Scene {
            let camera = Camera::new(name, Wake::Poll);
            let bell = Arc::new(Rings::default());
            camera.add_wakeup(Arc::clone(&bell) as Arc<dyn Wakeup>);
            let watch = SegmentFollower::new(camera.clone());
            Scene { cursor: camera.cursor(), camera, watch, bell, now_ns: 0 }
        }

        fn look_after(&mut self, ms: i64) -> Progress {
            self.now_ns += ms * MS;
            self.watch.poll(self.now_ns, None)
        }

        fn next(&mut self) -> Next {
            self.cursor.next(self.now_ns)
        }

        fn is_away(&self) -> bool {
            matches!(self.camera.status(), CameraStatus::Away { .. })
        }
    }

    fn units(scene: &mut Scene) -> Vec<Vec<u8>> {
        let next = std::iter::from_fn(|| match scene.next() {
            Next::Unit(unit) => Some(unit.bytes.to_vec()),
            _ => None,
        });
        next.collect()
    }

    #[test]
    fn a_camera_that_comes_later_is_attached_and_read_from_its_first_unit() {
        let gone = TestRing::new(Layout::V3);
        let name = gone.name().to_owned();
        drop(gone);
        let mut scene = Scene::new(&name);
        assert_eq!(scene.look_after(100), Progress::Away);
        assert!(matches!(scene.next(), Next::Away));
        let mut ring = TestRing::named(&name, Layout::V3);
        ring.publish(b"first");
        assert_eq!(scene.look_after(100), Progress::Advanced(1));
        assert!(scene.bell.take() > 0, "attached");
        assert!(matches!(scene.next(), Next::Restarted));
        assert_eq!(units(&mut scene), [b"first"]);
        assert!(matches!(scene.camera.status(), CameraStatus::Attached { width: 1280, height: 720, .. }));
    }

    #[test]
    fn a_new_segment_under_the_name_is_taken_up_with_whatever_layout_it_has() {
        for layout in Layout::LEGACY {
            let mut ring = TestRing::new(Layout::V3);
            let name = ring.name().to_owned();
            let mut scene = Scene::new(&name);
            ring.publish(b"old");
            scene.look_after(0);
            let Next::Unit(held) = scene.next() else { panic!() };
            let mut new = TestRing::named(&name, layout);
            new.publish(b"new");
            scene.look_after(1000);
            assert!(matches!(scene.next(), Next::Restarted), "{layout}");
            for _ in 0..40 {
                scene.look_after(20);
            }
            assert_eq!(units(&mut scene), [b"new"], "{layout}");
            assert_eq!(
                (&held.bytes[..], held.is_intact()),
                (&b"old"[..], true),
                "the old segment is still mapped"
            );
            assert_eq!(scene.camera.counters().restarted.get(), 1);
        }
    }

    #[test]
    fn an_unlinked_segment_is_read_as_long_as_its_camera_writes() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        ring.unlink();
        for _ in 0..100 {
            ring.publish(b"still alive");
            scene.look_after(33);
            assert_eq!(units(&mut scene), [b"still alive"]);
        }
        for _ in 0..10 {
            scene.look_after(200);
        }
        assert!(scene.is_away());
        assert!(scene.bell.take() > 100);
        assert!(matches!(scene.next(), Next::Away));
    }

    #[test]
    fn a_silent_camera_whose_segment_stays_is_not_away() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        for _ in 0..100 {
            scene.look_after(200);
        }
        assert!(!scene.is_away());
        ring.publish(b"awake");
        assert_eq!(scene.look_after(200), Progress::Advanced(1));
        assert_eq!(units(&mut scene), [b"awake"]);
    }

    #[test]
    fn a_segment_that_shrinks_is_left_and_taken_up_when_it_is_whole_again() {
        let mut ring = TestRing::new(Layout::V3Ring6);
        let mut scene = Scene::new(ring.name());
        ring.publish(b"before");
        scene.look_after(0);
        assert_eq!(units(&mut scene), [b"before"]);
        for bytes in [0, 4096, 12_345_678] {
            ring.resize(bytes);
            assert!(matches!(scene.next(), Next::Empty | Next::Away | Next::Restarted), "{bytes}");
            scene.look_after(1000);
            scene.look_after(100);
            assert!(scene.is_away(), "{bytes}");
            let CameraStatus::Away { reason } = scene.camera.status() else { panic!() };
            assert!(reason.contains(&bytes.to_string()) && reason.contains("v3-6 18662976"), "{reason}");
            ring.resize(Layout::V3Ring6.segment_bytes() as u64);
            ring.set_index(0);
            ring.publish(b"after");
            scene.look_after(100);
            assert!(matches!(scene.next(), Next::Restarted), "{bytes}");
            assert_eq!(units(&mut scene), [b"after"], "{bytes}");
        }
    }

    #[test]
    fn a_segment_of_another_size_in_place_of_the_camera_is_refused() {
        let mut ring = TestRing::new(Layout::V3);
        let name = ring.name().to_owned();
        let mut scene = Scene::new(&name);
        ring.publish(b"old");
        scene.look_after(0);
        let other = TestRing::named(&name, Layout::V3);
        other.resize(1_000_000);
        for _ in 0..6 {
            scene.look_after(200);
        }
        let CameraStatus::Away { reason } = scene.camera.status() else { panic!("still attached") };
        assert!(reason.contains("1000000") && reason.contains("v0 93313448"), "{reason}");
    }

    #[test]
    fn a_restart_in_the_same_segment_between_two_looks_is_noticed() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        (0..10).for_each(|_| ring.publish(b"old"));
        scene.look_after(0);
        ring.set_index(0);
        (0..3).for_each(|_| ring.publish(b"new"));
        scene.look_after(200);
        assert!(matches!(scene.next(), Next::Restarted));
        assert_eq!(units(&mut scene), [b"new"; 3]);
        assert_eq!(scene.camera.counters().restarted.get(), 1);
    }

    #[test]
    fn an_index_reset_after_years_is_a_restart_and_no_step_forward() {
        let mut ring = TestRing::new(Layout::V3);
        ring.set_index(3_000_000_000);
        let mut scene = Scene::new(ring.name());
        scene.look_after(0);
        ring.set_index(0);
        ring.publish(b"new");
        scene.look_after(200);
        assert!(matches!(scene.next(), Next::Restarted));
        assert_eq!(units(&mut scene), [b"new"]);
    }

    #[test]
    fn bells_ring_once_for_a_unit_and_not_before_it_is_whole() {
        for layout in [Layout::V3, Layout::V0] {
            let mut ring = TestRing::new(layout);
            let mut scene = Scene::new(ring.name());
            ring.publish(b"the first has nothing to be compared with");
            for _ in 0..30 {
                scene.look_after(20);
            }
            units(&mut scene);
            scene.bell.take();
            for number in 0..20_u8 {
                ring.publish(&[number + 1; 10]);
                let rings: u32 = (0..30)
                    .map(|_| {
                        scene.look_after(1);
                        let rings = scene.bell.take();
                        assert_eq!(rings > 0, !units(&mut scene).is_empty(), "{layout}");
                        rings
                    })
                    .sum();
                assert_eq!(rings, 1, "{layout}");
            }
        }
    }

    #[test]
    fn polling_sees_units_soon_and_a_silent_camera_costs_next_to_nothing() {
        let mut pace = Pace::default();
        let (mut now_ns, mut looks, mut late_ns) = (0, 0_u32, Vec::new());
        for unit in 1..=3000_i64 {
            let jitter_ns = unit * 7_919 % 1000 * MS / 1000 - MS / 2;
            let published_ns = unit * 100 * MS / 3 + jitter_ns;
            while now_ns < published_ns {
                now_ns += pace.sleep_ns(now_ns);
                looks += 1;
            }
            pace.learn(1, now_ns);
            late_ns.push(now_ns - published_ns);
        }
        assert!(looks < 3000 * 6, "{looks} looks for 3000 units");
        let late = late_ns.iter().skip(50).filter(|ns| **ns > POLL_STEP_NS).count();
        assert!(late < 30, "{late} of 3000 seen later than one look");
        let silent_from_ns = now_ns + 20_000 * MS;
        looks = 0;
        while now_ns < silent_from_ns {
            now_ns += pace.sleep_ns(now_ns);
            looks += 1;
        }
        assert!(looks < 2000, "{looks} looks in 20 s of silence");
    }

    #[test]
    fn polling_learns_any_usual_frame_rate() {
        for fps in [5, 10, 25, 60, 120] {
            let mut pace = Pace::default();
            let (mut now_ns, mut seen) = (0, 0_i64);
            while seen < 400 {
                now_ns += pace.sleep_ns(now_ns);
                let published = now_ns * fps / (1000 * MS);
                if published > seen {
                    pace.learn(u32::try_from(published - seen).unwrap(), now_ns);
                    seen = published;
                }
            }
            let interval_ns = 1000 * MS / fps;
            assert!((pace.interval_ns - interval_ns).abs() < interval_ns / 8, "{fps} fps: {pace:?}");
        }
    }
}
