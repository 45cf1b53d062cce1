//! Follows the camera by polling it: reads the write index, finds complete units, wakes the consumers and attaches new
//! segments. The decisions depend only on the ring, the posts and the given time. This module must not wait, so that
//! tests can use any clock.

use std::sync::Arc;

use super::commit_detector::{CommitDetector, PostCount, Posts};
use super::mapping::Mapping;
use super::segment::{MappingError, SegmentIdentity};
use super::sequence::ahead;
use super::source::{Attachment, Camera, MonotonicNs, restart_at};
use crate::base::limits::{
    CAMERA_CHECK_NS, CAMERA_CHECK_SILENT_NS, CAMERA_SILENT_NS, INDEX_STEP_MAX, UNIT_INTERVALS_STALLED,
};
use crate::base::log_limit::LogLimit;

/// Result of one poll.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// No camera is mapped.
    Away,
    /// The index did not move.
    Unchanged,
    /// The index advanced by this number of units. The number is 0 if the camera restarted.
    Advanced(u32),
}

/// Follows the camera's segment, across restarts and new segments.
pub(super) struct SegmentFollower {
    camera: Camera,
    generation: u64,
    run: Option<Run>,
    checked_at_ns: MonotonicNs,
    away_log: LogLimit,
    away_reason: String,
}

/// The follower's position in one run of the camera.
struct Run {
    attachment: Arc<Attachment>,
    index: u32,
    /// Number of the first unit that is not known to be complete. All units before it are complete.
    available: u32,
    /// Time at which the index last changed. Before the first change, the time at which the run began.
    moved_at_ns: MonotonicNs,
    /// Nanoseconds between the latest changes of the index. The shorter one is the interval of a slow camera; the longer
    /// one may be a stall.
    gaps_ns: [i64; 2],
    frame_number: u64,
    detector: CommitDetector,
    posts: PostCount,
}

impl SegmentFollower {
    pub(super) fn new(camera: Camera) -> SegmentFollower {
        SegmentFollower {
            camera,
            generation: u64::MAX,
            run: None,
            checked_at_ns: i64::MIN,
            away_log: LogLimit::default(),
            away_reason: String::new(),
        }
    }

    /// Returns the current mapping and its generation.
    pub(super) fn mapping(&self) -> (u64, Option<&Arc<Mapping>>) {
        (self.generation, self.run.as_ref().map(|run| &run.attachment.mapping))
    }

    /// Returns true if the camera has begun the newest unit and the unit is not known to be complete.
    pub(super) fn has_incomplete_unit(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.available != run.index)
    }

    /// Polls the camera once. `posts` are the posts that the caller has taken from the semaphore, or `None` if it uses
    /// no semaphore.
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
            run.index = index;
            run.gaps_ns = [now_ns - run.moved_at_ns, run.gaps_ns[0]];
            run.moved_at_ns = now_ns;
        }
        let available = run.available;
        run.find_complete(now_ns, posts);
        if run.frame_number_restarted() {
            self.camera.log_restart(now_ns, "without resetting the index");
        }
        if run.available != available {
            self.camera.wake_consumers();
        }
        if step > 0 { Progress::Advanced(step) } else { Progress::Unchanged }
    }

    /// Continues with the camera's current run, if a cursor or this follower has begun another one.
    fn follow_camera(&mut self, now_ns: MonotonicNs) {
        if self.generation == self.camera.generation() {
            return;
        }
        let (generation, attachment) = self.camera.current();
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

    /// Checks that the name still refers to the mapped segment. If not, tries to attach the segment that has the name
    /// now.
    fn check(&mut self, now_ns: MonotonicNs) {
        self.checked_at_ns = now_ns;
        self.camera.refresh_clocks();
        let Some(run) = &self.run else {
            return self.attach(now_ns, false);
        };
        let mapping = &run.attachment.mapping;
        let has_its_size = mapping.check_size();
        let is_silent = now_ns - run.moved_at_ns >= CAMERA_CHECK_SILENT_NS;
        if is_silent && mapping.leases().is_some_and(|ring| !ring.has_writer()) {
            // The lease ring's writer has ended, and another camera may have created a new segment under the name.
            return self.attach(now_ns, false);
        }
        match SegmentIdentity::of_name(self.camera.name()) {
            Ok(identity) if has_its_size && identity.inode == mapping.identity() => {}
            // The name is removed or refers to another segment. While the old camera still writes, consumers stay on
            // its segment until a new segment can be attached.
            _ => {
                let interval_ns = run.gaps_ns[0].min(run.gaps_ns[1]);
                let silent_ns = (UNIT_INTERVALS_STALLED * interval_ns).max(CAMERA_SILENT_NS);
                let is_alive = has_its_size && now_ns - run.moved_at_ns < silent_ns;
                self.attach(now_ns, is_alive);
            }
        }
    }

    /// Attaches the segment that has the name now. If that fails, the camera counts as away, unless `is_alive` says
    /// that the mapped camera still writes.
    fn attach(&mut self, now_ns: MonotonicNs, is_alive: bool) {
        match self.camera.open_mapping() {
            Ok(mapping) => {
                if self.camera.counters().attached.get() > 0 {
                    self.camera.log_restart(now_ns, "with another segment");
                }
                let (start, _) = restart_at(&mapping);
                self.camera.attach(mapping, start);
            }
            Err(_) if is_alive => {}
            Err(error) => self.stay_away(now_ns, &error),
        }
    }

    /// Detaches the camera and logs the reason. A new reason is logged at once, a repeated one at most once a minute.
    fn stay_away(&mut self, now_ns: MonotonicNs, error: &MappingError) {
        let reason = error.to_string();
        self.camera.detach(&reason);
        if self.away_reason != reason {
            self.away_log = LogLimit::default();
        }
        if self.away_log.allows(now_ns) {
            log::info!("waiting for the camera: {reason}");
        }
        self.away_reason = reason;
    }
}

impl Run {
    fn new(attachment: Arc<Attachment>, now_ns: MonotonicNs) -> Run {
        // The run begins at the start index of the attachment, so units published before the first poll count as new.
        let index = attachment.start;
        // On an index-first ring, the camera may still be copying the newest unit. At index 0 there is no unit.
        let is_complete = !attachment.mapping.layout().publishes_index_first() || index == 0;
        Run {
            index,
            available: if is_complete { index } else { index.wrapping_sub(1) },
            moved_at_ns: now_ns,
            gaps_ns: [0; 2],
            frame_number: 0,
            detector: CommitDetector::default(),
            posts: PostCount::default(),
            attachment,
        }
    }

    /// Updates `available`. On index-first rings, this finds out how many units are complete and passes the number on
    /// to the cursors.
    fn find_complete(&mut self, now_ns: MonotonicNs, posts: Option<Posts>) {
        let mapping = &self.attachment.mapping;
        if !mapping.layout().publishes_index_first() {
            self.available = self.index;
            return;
        }
        let posted = posts.map(|posts| self.posts.update(posts, self.index));
        let newest = self.index.wrapping_sub(1);
        let mut complete = if self.available == self.index { self.index } else { newest };
        if let Some(posted) = posted
            && ahead(posted, complete) > 0
        {
            complete = posted;
        }
        // If the posts do not prove that the newest unit is complete, the detector inspects its slot.
        if complete != self.index && self.detector.poll(mapping, newest, now_ns) {
            complete = self.index;
            self.posts.on_committed(self.index);
        }
        let needs_pre_image = complete == self.index || !self.detector.has_pre_image(newest);
        if posted != Some(self.index) && needs_pre_image {
            self.detector.record_pre_image(mapping, self.index);
        }
        self.available = complete;
        self.attachment.set_committed(complete);
    }

    /// Returns true if the camera has restarted its picture count. Always returns false on a lease ring, where the
    /// epoch shows a restart.
    fn frame_number_restarted(&mut self) -> bool {
        let has_epoch = self.attachment.mapping.leases().is_some();
        if has_epoch || ahead(self.available, self.attachment.start) <= 0 {
            return false;
        }
        let frame_number = self.attachment.mapping.metadata(self.available.wrapping_sub(1)).frame_number;
        let is_restarted = frame_number < self.frame_number;
        self.frame_number = frame_number;
        is_restarted
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

    /// Counts the wake-ups of consumers.
    #[derive(Default)]
    struct WakeupCount(AtomicU32);

    impl Wakeup for WakeupCount {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl WakeupCount {
        fn take(&self) -> u32 {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    struct Scene {
        camera: Camera,
        follower: SegmentFollower,
        cursor: Cursor,
        wakeups: Arc<WakeupCount>,
        now_ns: MonotonicNs,
    }

    impl Scene {
        fn new(name: &str) -> Scene {
            let camera = Camera::new(name, Wake::Poll);
            let wakeups = Arc::new(WakeupCount::default());
            camera.add_wakeup(Arc::clone(&wakeups) as Arc<dyn Wakeup>);
            let follower = SegmentFollower::new(camera.clone());
            Scene { cursor: camera.cursor(), camera, follower, wakeups, now_ns: 0 }
        }

        fn poll_after(&mut self, ms: i64) -> Progress {
            self.now_ns += ms * MS;
            self.follower.poll(self.now_ns, None)
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
    fn camera_that_starts_later_is_read_from_its_first_unit() {
        let gone = TestRing::new(Layout::V3);
        let name = gone.name().to_owned();
        drop(gone);
        let mut scene = Scene::new(&name);
        assert_eq!(scene.poll_after(100), Progress::Away);
        assert!(matches!(scene.next(), Next::Away));
        let mut ring = TestRing::named(&name, Layout::V3);
        ring.publish(b"first");
        assert_eq!(scene.poll_after(100), Progress::Advanced(1));
        assert!(scene.wakeups.take() > 0, "attached");
        assert!(matches!(scene.next(), Next::Restarted));
        assert_eq!(units(&mut scene), [b"first"]);
        assert!(!scene.is_away());
    }

    #[test]
    fn pipe_link_directory_or_sparse_file_under_the_name_does_not_block_and_the_camera_comes_back() {
        let ring = TestRing::new(Layout::V3);
        let other = TestRing::new(Layout::V3);
        let path = format!("/dev/shm{}", ring.name());
        let mut scene = Scene::new(ring.name());
        assert_eq!(scene.poll_after(100), Progress::Unchanged);
        let fifo = |path: &str| {
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o666));
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        };
        let squatters: [&dyn Fn(); 4] = [
            &|| fifo(&path),
            &|| std::os::unix::fs::symlink(format!("/dev/shm{}", other.name()), &path).unwrap(),
            &|| std::fs::create_dir(&path).unwrap(),
            &|| std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap(),
        ];
        for squat in squatters {
            ring.unlink();
            squat();
            // The old camera is silent for so long that its name is checked again.
            assert_eq!(scene.poll_after(10_000), Progress::Away);
            assert!(scene.is_away());
            let removed = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
            removed.unwrap();
            let mut next = TestRing::named(ring.name(), Layout::V3);
            next.publish(b"unit");
            assert_eq!(scene.poll_after(1_000), Progress::Advanced(1));
            std::mem::forget(next); // the loop or the drop of `ring` unlinks the name
        }
    }

    #[test]
    fn new_segment_of_any_layout_is_attached() {
        for layout in Layout::LEGACY {
            let mut ring = TestRing::new(Layout::V3);
            let name = ring.name().to_owned();
            let mut scene = Scene::new(&name);
            ring.publish(b"old");
            scene.poll_after(0);
            let Next::Unit(held) = scene.next() else { panic!() };
            let mut new = TestRing::named(&name, layout);
            new.publish(b"new");
            scene.poll_after(1000);
            assert!(matches!(scene.next(), Next::Restarted), "{layout}");
            for _ in 0..40 {
                scene.poll_after(20);
            }
            assert_eq!(units(&mut scene), [b"new"], "{layout}");
            assert_eq!(
                (&held.bytes[..], held.is_intact()),
                (&b"old"[..], true),
                "the old segment is still mapped"
            );
            assert!(matches!(scene.next(), Next::Empty), "{layout}: one restart");
        }
    }

    #[test]
    fn unlinked_segment_is_read_while_its_camera_writes() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        ring.unlink();
        for _ in 0..100 {
            ring.publish(b"still alive");
            scene.poll_after(33);
            assert_eq!(units(&mut scene), [b"still alive"]);
        }
        for _ in 0..10 {
            scene.poll_after(200);
        }
        assert!(scene.is_away());
        assert!(scene.wakeups.take() > 100);
        assert!(matches!(scene.next(), Next::Away));
    }

    #[test]
    fn silent_camera_with_its_segment_in_place_is_not_away() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        for _ in 0..100 {
            scene.poll_after(200);
        }
        assert!(!scene.is_away());
        ring.publish(b"awake");
        assert_eq!(scene.poll_after(200), Progress::Advanced(1));
        assert_eq!(units(&mut scene), [b"awake"]);
    }

    #[test]
    fn shrunken_segment_is_detached_and_attached_again_at_full_size() {
        let mut ring = TestRing::new(Layout::V3Ring6);
        let mut scene = Scene::new(ring.name());
        ring.publish(b"before");
        scene.poll_after(0);
        assert_eq!(units(&mut scene), [b"before"]);
        for bytes in [0, 4096, 12_345_678] {
            ring.resize(bytes);
            assert!(matches!(scene.next(), Next::Empty | Next::Away | Next::Restarted), "{bytes}");
            scene.poll_after(1000);
            scene.poll_after(100);
            assert!(scene.is_away(), "{bytes}");
            let CameraStatus::Away { reason } = scene.camera.status() else { panic!() };
            assert!(reason.contains(&bytes.to_string()) && reason.contains("v3-6 18662976"), "{reason}");
            ring.resize(Layout::V3Ring6.segment_bytes() as u64);
            ring.set_index(0);
            ring.publish(b"after");
            scene.poll_after(100);
            assert!(matches!(scene.next(), Next::Restarted), "{bytes}");
            assert_eq!(units(&mut scene), [b"after"], "{bytes}");
        }
    }

    #[test]
    fn replacement_segment_of_unknown_size_is_refused() {
        let mut ring = TestRing::new(Layout::V3);
        let name = ring.name().to_owned();
        let mut scene = Scene::new(&name);
        ring.publish(b"old");
        scene.poll_after(0);
        let other = TestRing::named(&name, Layout::V3);
        other.resize(1_000_000);
        for _ in 0..6 {
            scene.poll_after(200);
        }
        let CameraStatus::Away { reason } = scene.camera.status() else { panic!("still attached") };
        assert!(reason.contains("1000000") && reason.contains("v0 93313448"), "{reason}");
    }

    #[test]
    fn slow_camera_whose_name_was_removed_is_followed_as_long_as_it_writes() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        for unit in 0..10_u8 {
            if unit == 3 {
                ring.unlink();
            }
            ring.publish(&[unit]);
            for _ in 0..10 {
                scene.poll_after(200);
            }
            assert!(!scene.is_away(), "unit {unit}");
            assert_eq!(units(&mut scene).len(), 1, "one unit in two seconds");
        }
        for _ in 0..40 {
            scene.poll_after(200);
        }
        assert!(scene.is_away(), "it has ended");
    }

    #[test]
    fn restart_in_the_same_segment_between_two_polls_is_detected() {
        let mut ring = TestRing::new(Layout::V3);
        let mut scene = Scene::new(ring.name());
        (0..10).for_each(|_| ring.publish(b"old"));
        scene.poll_after(0);
        ring.set_index(0);
        (0..3).for_each(|_| ring.publish(b"new"));
        scene.poll_after(200);
        assert!(matches!(scene.next(), Next::Restarted));
        assert_eq!(units(&mut scene), [b"new"; 3]);
        assert!(matches!(scene.next(), Next::Empty), "one restart");
    }

    #[test]
    fn index_reset_after_years_is_a_restart_not_an_advance() {
        let mut ring = TestRing::new(Layout::V3);
        ring.set_index(3_000_000_000);
        let mut scene = Scene::new(ring.name());
        scene.poll_after(0);
        ring.set_index(0);
        ring.publish(b"new");
        scene.poll_after(200);
        assert!(matches!(scene.next(), Next::Restarted));
        assert_eq!(units(&mut scene), [b"new"]);
    }

    /// Polls once after `ms` milliseconds, with `taken` posts, as on a ring with a semaphore.
    fn poll_posts(scene: &mut Scene, ms: i64, taken: u32) {
        scene.now_ns += ms * MS;
        let index_before = scene.follower.mapping().1.map_or(0, |mapping| mapping.write_index());
        scene.follower.poll(scene.now_ns, Some(Posts { taken, index_before }));
    }

    #[test]
    fn unit_of_a_camera_preempted_in_its_copy_is_not_delivered() {
        let mut ring = TestRing::new(Layout::V1);
        let mut scene = Scene::new(ring.name());
        for number in 0..10_u8 {
            ring.publish(&[number; 1000]);
            poll_posts(&mut scene, 0, 1);
        }
        units(&mut scene);
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1000]));
        ring.write_data(unit, 0, &[99; 500]);
        for _ in 0..100 {
            poll_posts(&mut scene, 1, 0);
        }
        assert!(units(&mut scene).iter().all(|unit| unit[0] != 99), "half of a unit was delivered");
        ring.write_data(unit, 500, &[99; 500]);
        (0..3).for_each(|_| poll_posts(&mut scene, 1, 1));
        assert_eq!(units(&mut scene), [[99; 1000]]);
    }

    #[test]
    fn units_of_a_regular_camera_are_delivered_before_the_next_one_begins() {
        for (layout, posts) in [(Layout::V0, None), (Layout::V1, Some(1))] {
            let mut ring = TestRing::new(layout);
            (0..50).for_each(|_| ring.publish(&[200; 40_000]));
            let mut scene = Scene::new(ring.name());
            scene.poll_after(0);
            for number in 0..20_u8 {
                ring.publish(&vec![number; 40_000]);
                for ms in 0..33 {
                    match posts {
                        Some(posts) => poll_posts(&mut scene, 1, if ms == 0 { posts } else { 0 }),
                        None => {
                            scene.poll_after(1);
                        }
                    }
                }
                let delivered = units(&mut scene);
                if number > 2 {
                    let numbers: Vec<u8> = delivered.iter().map(|unit| unit[0]).collect();
                    assert_eq!(numbers, [number], "{layout}");
                }
            }
        }
    }

    #[test]
    fn consumers_are_woken_once_per_unit_and_only_when_it_is_complete() {
        for layout in [Layout::V3, Layout::V0] {
            let mut ring = TestRing::new(layout);
            let mut scene = Scene::new(ring.name());
            ring.publish(b"the first unit has no pre-image");
            for _ in 0..30 {
                scene.poll_after(20);
            }
            units(&mut scene);
            scene.wakeups.take();
            for number in 0..20_u8 {
                ring.publish(&[number + 1; 10]);
                let wakeups: u32 = (0..30)
                    .map(|_| {
                        scene.poll_after(1);
                        let count = scene.wakeups.take();
                        assert_eq!(count > 0, !units(&mut scene).is_empty(), "{layout}");
                        count
                    })
                    .sum();
                assert_eq!(wakeups, 1, "{layout}");
            }
        }
    }
}
