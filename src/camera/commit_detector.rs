//! Detects when a slot of an index-first ring is completely written. The signs are the camera's semaphore posts, or
//! that the slot no longer changes. This module must not wait, read clocks or wake consumers.

use std::sync::Arc;

use super::layout::SlotMetadata;
use super::mapping::Mapping;
use super::sequence::ahead;
use crate::base::limits::{
    COMMIT_STABLE_NS, COMMIT_UNSEEN_NS, COUNT_ANCHOR_UNITS, PRE_IMAGE_BYTES_MAX, SLOT_DATA_BYTES_MAX,
};

/// Number of bytes at the end of a unit that must stay the same between two polls.
const TAIL_BYTES: usize = 64;

/// Number of bytes at the end of a unit that are compared with the pre-image. A difference in them shows that the
/// camera has copied the end of the unit. The number is small, because the camera must write all of these bytes last:
/// 64 bytes could be more than half of a small unit.
const END_BYTES: usize = 16;

/// Detects the end of the camera's copy into the newest slot, on rings whose index is raised before the copy.
///
/// A slot counts as committed when all these conditions hold:
/// - The metadata and the last bytes of the unit are the same in two polls [`COMMIT_STABLE_NS`] apart.
/// - The frame number is one above that of the previous unit.
/// - The end of the unit differs from the pre-image, which is a copy of the slot taken before the camera began the
///   unit.
///
/// A camera that is preempted in the middle of its copy leaves the end of the unit unchanged. So if the frame number is
/// unexpected or the end does not differ, the slot must stay unchanged for [`COMMIT_UNSEEN_NS`].
#[derive(Debug, Default)]
pub(super) struct CommitDetector {
    /// Number of the unit whose slot was copied before the camera began to write this unit.
    pre_image_unit: Option<u32>,
    pre_image: Vec<u8>,
    pre_image_metadata: SlotMetadata,
    /// Decaying maximum of the sizes of recent units. It determines how many bytes of a slot are copied as pre-image.
    recent_bytes: usize,
    candidate: Option<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    unit: u32,
    metadata: SlotMetadata,
    tail: Tail,
    since_ns: i64,
}

impl CommitDetector {
    /// Copies the slot of `unit` as pre-image. The camera must not have begun to write `unit`.
    pub(super) fn record_pre_image(&mut self, mapping: &Arc<Mapping>, unit: u32) {
        if self.has_pre_image(unit) {
            return;
        }
        let bytes = (self.recent_bytes + self.recent_bytes / 4).max(PRE_IMAGE_BYTES_MAX / 8);
        self.pre_image_metadata = mapping.metadata(unit);
        self.pre_image.clear();
        self.pre_image.extend_from_slice(&mapping.slot_bytes(unit, bytes.min(PRE_IMAGE_BYTES_MAX)));
        // If the camera began to write the unit during the copy, the copy may contain new bytes and is discarded.
        self.pre_image_unit = (mapping.write_index() == unit).then_some(unit);
    }

    /// Returns true if the slot of `unit` was copied before the camera began to write `unit`.
    pub(super) fn has_pre_image(&self, unit: u32) -> bool {
        self.pre_image_unit == Some(unit)
    }

    /// Polls the slot of `unit`, the newest unit that the camera has begun. Returns true if the slot is committed.
    pub(super) fn poll(&mut self, mapping: &Arc<Mapping>, unit: u32, now_ns: i64) -> bool {
        let metadata = mapping.metadata(unit);
        let tail = Tail::of_unit(mapping, unit, &metadata);
        let candidate = self.candidate.as_ref().filter(|seen| seen.unit == unit);
        if candidate.is_none() {
            self.recent_bytes -= self.recent_bytes / 16;
        }
        self.recent_bytes = self.recent_bytes.max(tail.end);
        match candidate.filter(|seen| seen.metadata == metadata && seen.tail == tail) {
            Some(seen) => self
                .required_stable_ns(mapping, unit, &metadata, &tail)
                .is_some_and(|required_ns| now_ns - seen.since_ns >= required_ns),
            None => {
                self.candidate = Some(Candidate { unit, metadata, tail, since_ns: now_ns });
                false
            }
        }
    }

    /// Returns for how many nanoseconds the slot must stay unchanged to count as committed. Returns `None` while the
    /// slot still holds the old unit.
    fn required_stable_ns(
        &self,
        mapping: &Arc<Mapping>,
        unit: u32,
        metadata: &SlotMetadata,
        tail: &Tail,
    ) -> Option<i64> {
        if !self.has_pre_image(unit) {
            return Some(COMMIT_UNSEEN_NS);
        }
        if *metadata == self.pre_image_metadata {
            return None;
        }
        let before = mapping.metadata(unit.wrapping_sub(1));
        let is_expected = metadata.frame_number == before.frame_number.wrapping_add(1);
        let is_rewritten = tail.differs_from(&self.pre_image);
        Some(if is_expected && is_rewritten { COMMIT_STABLE_NS } else { COMMIT_UNSEEN_NS })
    }
}

/// A copy of the last bytes of a unit.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    /// Offset of the unit's end in the slot's data. It is 0 if the metadata is invalid.
    end: usize,
    bytes: [u8; TAIL_BYTES],
}

impl Tail {
    fn of_unit(mapping: &Arc<Mapping>, unit: u32, metadata: &SlotMetadata) -> Tail {
        let end = usize::try_from(metadata.data_bytes).ok().filter(|end| *end <= SLOT_DATA_BYTES_MAX);
        let end = end.unwrap_or(0);
        let data = mapping.slot_bytes(unit, end);
        let mut bytes = [0; TAIL_BYTES];
        for (target, source) in bytes.iter_mut().zip(data.iter().skip(end.saturating_sub(TAIL_BYTES))) {
            *target = *source;
        }
        Tail { end, bytes }
    }

    /// Returns true if the last [`END_BYTES`] of the unit differ from the pre-image.
    fn differs_from(&self, pre_image: &[u8]) -> bool {
        let tail = self.bytes.get(..self.end.min(TAIL_BYTES)).unwrap_or_default();
        let end_bytes = tail.len().min(END_BYTES);
        let old = pre_image.get(self.end - end_bytes..self.end);
        old.is_some_and(|old| !tail.ends_with(old))
    }
}

/// Posts taken from the camera's semaphore in one poll.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Posts {
    /// Number of posts taken.
    pub(super) taken: u32,
    /// The write index loaded just before the posts were taken.
    pub(super) index_before: u32,
}

/// Counts the camera's posts to find out which units are complete. For each unit of an index-first ring, the camera
/// first raises the index, then copies the unit, then posts. A post does not prove that the newest unit is complete,
/// because the camera may have begun another unit after the post.
///
/// Suppose that a poll loads the index `i` and then takes all posts. Then at least `i - 1` units have been posted, and
/// every later post stands for one more unit. This lower bound may be one unit below the exact count. It becomes exact
/// when a poll happens after the camera has raised the index and before its post. If the camera writes faster than it
/// is polled, the bound stays too low. The newest unit then counts as complete only when the next unit begins.
///
/// A camera with a regular interval may never be polled in that moment. For such a camera, [`COUNT_ANCHOR_UNITS`]
/// consecutive units show that the count is exact, if each was seen complete in its slot and had exactly one post. One
/// unit is not enough, because the camera may be preempted between its copy and its post. Posts taken by other
/// processes only make the count lower.
#[derive(Debug, Default)]
pub(super) struct PostCount {
    /// Number of units known to be posted. `None` before the first poll.
    posted: Option<u32>,
    /// The write index when a slot was last seen to be complete.
    committed: u32,
    /// Number of posts taken since that slot was seen to be complete.
    taken_since: u32,
    /// Number of consecutive units that were seen complete in their slots and had exactly one post each.
    in_step: u32,
}

impl PostCount {
    /// Adds the posts taken by one poll. `index` is the write index loaded after the posts were taken. Returns how many
    /// units are known to be complete.
    pub(super) fn update(&mut self, posts: Posts, index: u32) -> u32 {
        self.taken_since = self.taken_since.saturating_add(posts.taken);
        let proven = posts.index_before.wrapping_sub(1);
        let counted = self.posted.map(|posted| posted.wrapping_add(posts.taken));
        let posted = match counted {
            // More posts of the semaphore were counted than units begun: our count was too high, or another process
            // has posted. Only the units that the write index proves are taken as posted.
            Some(counted) if ahead(counted, index) > 0 => {
                self.in_step = 0;
                proven
            }
            Some(counted) if ahead(proven, counted) <= 0 => counted,
            _ => proven,
        };
        self.posted = Some(posted);
        posted
    }

    /// Takes note that the newest of `index` units was seen complete in its slot.
    pub(super) fn on_committed(&mut self, index: u32) {
        let is_in_step = index.wrapping_sub(self.committed) == 1 && self.taken_since == 1;
        self.in_step = if is_in_step { self.in_step + 1 } else { 0 };
        self.committed = index;
        self.taken_since = 0;
        if self.in_step >= COUNT_ANCHOR_UNITS {
            self.posted = Some(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::camera::layout::Layout;
    use crate::camera::mapping::Access;
    use crate::camera::test_ring::TestRing;

    const MS: i64 = 1_000_000;

    fn ring_of_units() -> (TestRing, Arc<Mapping>, CommitDetector) {
        let mut ring = TestRing::new(Layout::V0);
        for i in 0..40_u8 {
            ring.publish(&[i; 1000]);
        }
        let mapping = Mapping::open(ring.name(), Access::ReadOnly).unwrap();
        let mut detector = CommitDetector::default();
        detector.record_pre_image(&mapping, ring.index);
        (ring, mapping, detector)
    }

    #[test]
    fn rewritten_slot_is_committed_after_a_stable_millisecond() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1200]));
        ring.write_data(unit, 0, &[99; 1200]);
        assert!(!detector.poll(&mapping, unit, 0), "one poll is never enough");
        assert!(!detector.poll(&mapping, unit, MS - 1));
        assert!(detector.poll(&mapping, unit, MS));
    }

    #[test]
    fn slot_is_not_committed_while_its_tail_changes() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1200]));
        for step in 0..6 {
            ring.write_data(unit, 0, &vec![99; 1150 + step * 10]);
            assert!(!detector.poll(&mapping, unit, step as i64 * MS), "step {step}");
        }
        assert!(detector.poll(&mapping, unit, 6 * MS));
    }

    #[test]
    fn slot_stays_uncommitted_while_the_camera_is_preempted_before_its_copy() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        for ms in 0..1000 {
            assert!(!detector.poll(&mapping, unit, ms * MS));
        }
    }

    #[test]
    fn camera_preempted_during_its_copy_needs_the_long_wait() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1000]));
        ring.write_data(unit, 0, &[99; 500]);
        assert!(!detector.poll(&mapping, unit, 0));
        assert!(!detector.poll(&mapping, unit, 4 * MS), "the old tail is still there");
        ring.write_data(unit, 500, &[99; 500]);
        assert!(!detector.poll(&mapping, unit, 5 * MS));
        assert!(detector.poll(&mapping, unit, 6 * MS));
    }

    #[test]
    fn small_unit_is_not_committed_by_its_first_half() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 80]));
        ring.write_data(unit, 0, &[99; 40]);
        for ms in 0..10 {
            assert!(!detector.poll(&mapping, unit, ms * MS));
        }
        ring.write_data(unit, 40, &[99; 40]);
        assert!(!detector.poll(&mapping, unit, 20 * MS));
        assert!(detector.poll(&mapping, unit, 21 * MS));
    }

    #[test]
    fn invalid_metadata_is_committed_after_the_long_wait() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        let invalid = SlotMetadata { data_bytes: u64::MAX, ..ring.metadata(b"") };
        ring.write_metadata(unit, &invalid);
        assert!(!detector.poll(&mapping, unit, 0));
        assert!(!detector.poll(&mapping, unit, 2 * MS));
        assert!(detector.poll(&mapping, unit, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn late_pre_image_is_discarded() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        detector.pre_image_unit = None;
        detector.record_pre_image(&mapping, unit);
        assert_eq!(detector.pre_image_unit, None);
    }

    /// One step of the test: of the camera, of the count that polls at arbitrary moments, or of another process.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Camera,
        Poll,
        Committed,
        StolenPost,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Camera),
            4 => Just(Step::Poll),
            1 => Just(Step::Committed),
            1 => Just(Step::StolenPost),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn post_count_never_includes_a_unit_that_is_being_copied(
            start in prop_oneof![Just(0_u32), Just(u32::MAX - 20), any::<u32>()],
            stale_posts in 0..50_u32,
            steps in steps(),
        ) {
            let (mut index, mut copied, mut semaphore) = (start, start, stale_posts);
            let mut count = PostCount::default();
            for step in steps {
                match step {
                    // The camera takes two steps per unit: the first raises the index, the second copies and posts.
                    Step::Camera if index == copied => index = index.wrapping_add(1),
                    Step::Camera => {
                        copied = index;
                        semaphore += 1;
                    }
                    Step::StolenPost => semaphore = semaphore.saturating_sub(1),
                    Step::Poll | Step::Committed => {
                        let posts = Posts { taken: semaphore, index_before: index };
                        semaphore = 0;
                        let counted = count.update(posts, index);
                        prop_assert!(ahead(counted, copied) <= 0, "counted {counted}, copied {copied}");
                        prop_assert!(ahead(counted, index) >= -50, "never far behind");
                        if matches!(step, Step::Committed) && index == copied {
                            count.on_committed(index);
                        }
                    }
                }
            }
        }
    }

    fn poll(count: &mut PostCount, taken: u32, index: u32) -> u32 {
        count.update(Posts { taken, index_before: index }, index)
    }

    #[test]
    fn posts_prove_the_newest_unit_after_units_in_step() {
        let mut count = PostCount::default();
        assert_eq!(poll(&mut count, 900, 7), 6, "stale posts prove nothing");
        count.on_committed(7);
        for index in 8..8 + COUNT_ANCHOR_UNITS {
            assert_eq!(poll(&mut count, 1, index), index - 1);
            count.on_committed(index);
        }
        let next = 8 + COUNT_ANCHOR_UNITS;
        assert_eq!(poll(&mut count, 1, next), next);
        assert_eq!(poll(&mut count, 1, next + 2), next + 1, "the newest unit is begun but not posted");
    }

    #[test]
    fn camera_preempted_before_its_post_does_not_raise_the_count() {
        let mut count = PostCount::default();
        poll(&mut count, 0, 7);
        count.on_committed(7);
        // The post of unit 7 comes late, together with the start of unit 8.
        assert_eq!(poll(&mut count, 1, 8), 7);
        count.on_committed(8);
        assert_eq!(poll(&mut count, 1, 9), 8);
    }

    #[test]
    fn post_too_many_ends_the_sequence_of_units_in_step() {
        let mut count = PostCount::default();
        poll(&mut count, 0, 7);
        count.on_committed(7);
        for index in 8..8 + COUNT_ANCHOR_UNITS {
            poll(&mut count, 1, index);
            count.on_committed(index);
        }
        let newest = 7 + COUNT_ANCHOR_UNITS;
        assert_eq!(poll(&mut count, 1, newest), newest - 1, "the count was too high");
        assert_eq!(poll(&mut count, 0, newest + 1), newest);
        count.on_committed(newest + 1);
        assert_eq!(poll(&mut count, 1, newest + 2), newest + 1);
    }
}
