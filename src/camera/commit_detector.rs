//! Detects when a slot of an index-first ring is completely written: by the camera's semaphore posts, or by the slot
//! no longer changing. This module must not wait, read clocks or wake consumers.

use std::sync::Arc;

use super::layout::SlotMetadata;
use super::mapping::Mapping;
use super::sequence::ahead;
use crate::base::limits::{COMMIT_STABLE_NS, PRE_IMAGE_BYTES_MAX, SLOT_DATA_BYTES_MAX};

/// The bytes at the end of a unit that are compared.
const TAIL_BYTES: usize = 64;

/// Detects the end of the camera's copy into the newest slot, on rings whose index is raised before the copy.
///
/// A slot counts as committed when all of this holds:
/// - its metadata and the last bytes of its unit are the same in two polls [`COMMIT_STABLE_NS`] apart,
/// - the frame number is the expected one,
/// - the tail differs from the pre-image: a copy of the slot taken before the camera began the unit.
///
/// A camera that is preempted in the middle of its copy leaves the tail unchanged. Without a visible difference the
/// slot must stay unchanged for as long as the caller says.
#[derive(Debug, Default)]
pub(super) struct CommitDetector {
    /// The unit whose slot was copied before the camera began it.
    pre_image_unit: Option<u32>,
    pre_image: Vec<u8>,
    pre_image_metadata: SlotMetadata,
    /// Size of recent units, a decaying maximum: how many bytes of the pre-image to copy.
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
    /// Copies the slot of `unit`, which the camera has not begun.
    pub(super) fn record_pre_image(&mut self, mapping: &Arc<Mapping>, unit: u32) {
        if self.pre_image_unit == Some(unit) {
            return;
        }
        let bytes = (self.recent_bytes + self.recent_bytes / 4).max(PRE_IMAGE_BYTES_MAX / 8);
        self.pre_image_metadata = mapping.metadata(unit);
        self.pre_image.clear();
        self.pre_image.extend_from_slice(&mapping.slot_bytes(unit, bytes.min(PRE_IMAGE_BYTES_MAX)));
        // If the camera began to write the unit during the copy, the copy may contain new bytes and is discarded.
        self.pre_image_unit = (mapping.write_index() == unit).then_some(unit);
    }

    /// Polls the slot of `unit`, the newest one begun. Returns true if it is committed. `unseen_ns` is how long the
    /// slot must stay unchanged if it does not differ from the pre-image.
    pub(super) fn poll(&mut self, mapping: &Arc<Mapping>, unit: u32, now_ns: i64, unseen_ns: i64) -> bool {
        let metadata = mapping.metadata(unit);
        let tail = Tail::of_unit(mapping, unit, &metadata);
        let stable_ns = match &self.candidate {
            Some(seen) if seen.unit == unit && seen.metadata == metadata && seen.tail == tail => {
                now_ns - seen.since_ns
            }
            _ => {
                self.candidate = Some(Candidate { unit, metadata, tail, since_ns: now_ns });
                return false;
            }
        };
        let is_committed = self
            .required_stable_ns(mapping, unit, &metadata, &tail, unseen_ns)
            .is_some_and(|ns| stable_ns >= ns);
        if is_committed {
            self.recent_bytes = tail.end.max(self.recent_bytes - self.recent_bytes / 16);
        }
        is_committed
    }

    /// Returns how long the slot must stay unchanged to count as committed; `None` while it holds the old unit.
    fn required_stable_ns(
        &self,
        mapping: &Arc<Mapping>,
        unit: u32,
        metadata: &SlotMetadata,
        tail: &Tail,
        unseen_ns: i64,
    ) -> Option<i64> {
        if self.pre_image_unit != Some(unit) {
            return Some(unseen_ns);
        }
        if *metadata == self.pre_image_metadata {
            return None;
        }
        let before = mapping.metadata(unit.wrapping_sub(1));
        let is_expected = metadata.frame_number == before.frame_number.wrapping_add(1);
        let is_rewritten = tail.differs_from(&self.pre_image);
        Some(if is_expected && is_rewritten { COMMIT_STABLE_NS } else { unseen_ns })
    }
}

/// A copy of the last bytes of a unit.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    /// Offset of the unit's end in the slot's data; 0 if the metadata is invalid.
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

    fn differs_from(&self, pre_image: &[u8]) -> bool {
        let start = self.end.saturating_sub(TAIL_BYTES);
        let old = pre_image.get(start..self.end);
        old.is_some_and(|old| !self.bytes.starts_with(old))
    }
}

/// Posts taken from the camera's semaphore in one poll.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Posts {
    /// Number of posts.
    pub(super) taken: u32,
    /// The write index just before the posts were taken.
    pub(super) index_before: u32,
}

/// Counts the camera's posts to find out which units are complete. On an index-first ring the camera raises the
/// index, copies, then posts. One post does not prove the newest unit: the camera may have begun another since.
///
/// If all posts are taken after an index of `i` was loaded, at least `i - 1` units have been posted. Every later
/// post is one more unit. The bound is exact after [`PostCount::anchor`]. Posts taken by other processes only make it
/// lag.
#[derive(Debug, Default)]
pub(super) struct PostCount {
    /// Units known to be posted; `None` before the first poll.
    posted: Option<u32>,
}

impl PostCount {
    /// Adds the posts of one poll; `index` was loaded after it. Returns how many units are complete.
    pub(super) fn update(&mut self, posts: Posts, index: u32) -> u32 {
        let proven = posts.index_before.wrapping_sub(1);
        let counted = self.posted.map(|posted| posted.wrapping_add(posts.taken));
        let posted = match counted {
            // The count is valid only up to the index. More posts than units mean that another process posted, or that
            // the count was anchored too high.
            Some(counted) if ahead(counted, index) <= 0 => {
                if ahead(proven, counted) > 0 {
                    proven
                } else {
                    counted
                }
            }
            _ => proven,
        };
        self.posted = Some(posted);
        posted
    }

    /// Sets the exact count. The semaphore must be empty and the newest unit complete: `index` units are posted.
    pub(super) fn anchor(&mut self, index: u32) {
        self.posted = Some(index);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::limits::COMMIT_UNSEEN_NS;
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
        assert!(!detector.poll(&mapping, unit, 0, COMMIT_UNSEEN_NS), "one poll is never enough");
        assert!(!detector.poll(&mapping, unit, MS - 1, COMMIT_UNSEEN_NS));
        assert!(detector.poll(&mapping, unit, MS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn slot_is_not_committed_while_its_tail_changes() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1200]));
        for step in 0..6 {
            ring.write_data(unit, 0, &vec![99; 1150 + step * 10]);
            assert!(!detector.poll(&mapping, unit, step as i64 * MS, COMMIT_UNSEEN_NS), "step {step}");
        }
        assert!(detector.poll(&mapping, unit, 6 * MS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn slot_stays_uncommitted_while_the_camera_is_preempted_before_its_copy() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        for ms in 0..1000 {
            assert!(!detector.poll(&mapping, unit, ms * MS, COMMIT_UNSEEN_NS));
        }
    }

    #[test]
    fn camera_preempted_during_its_copy_needs_the_long_wait() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1000]));
        ring.write_data(unit, 0, &[99; 500]);
        assert!(!detector.poll(&mapping, unit, 0, COMMIT_UNSEEN_NS));
        assert!(!detector.poll(&mapping, unit, 4 * MS, COMMIT_UNSEEN_NS), "the old tail is still there");
        ring.write_data(unit, 500, &[99; 500]);
        assert!(!detector.poll(&mapping, unit, 5 * MS, COMMIT_UNSEEN_NS));
        assert!(detector.poll(&mapping, unit, 6 * MS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn invalid_metadata_is_committed_after_the_long_wait() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        let invalid = SlotMetadata { data_bytes: u64::MAX, ..ring.metadata(b"") };
        ring.write_metadata(unit, &invalid);
        assert!(!detector.poll(&mapping, unit, 0, COMMIT_UNSEEN_NS));
        assert!(!detector.poll(&mapping, unit, 2 * MS, COMMIT_UNSEEN_NS));
        assert!(detector.poll(&mapping, unit, COMMIT_UNSEEN_NS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn late_pre_image_is_discarded() {
        let (mut ring, mapping, mut detector) = ring_of_units();
        let unit = ring.begin();
        detector.pre_image_unit = None;
        detector.record_pre_image(&mapping, unit);
        assert_eq!(detector.pre_image_unit, None);
    }

    /// Steps of a camera that raises its index, copies and posts, and of a count that polls at arbitrary moments.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Camera,
        Poll,
        Anchor,
        StolenPost,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Camera),
            4 => Just(Step::Poll),
            1 => Just(Step::Anchor),
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
                    // Each step is half of a unit: the first raises the index, the second copies and posts.
                    Step::Camera if index == copied => index = index.wrapping_add(1),
                    Step::Camera => {
                        copied = index;
                        semaphore += 1;
                    }
                    Step::StolenPost => semaphore = semaphore.saturating_sub(1),
                    Step::Poll | Step::Anchor => {
                        let posts = Posts { taken: semaphore, index_before: index };
                        semaphore = 0;
                        let counted = count.update(posts, index);
                        prop_assert!(ahead(counted, copied) <= 0, "counted {counted}, copied {copied}");
                        prop_assert!(ahead(counted, index) >= -50, "never far behind");
                        if matches!(step, Step::Anchor) && index == copied {
                            count.anchor(index);
                            prop_assert_eq!(count.update(Posts { taken: 0, ..posts }, index), index);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn anchored_count_proves_the_newest_unit_by_its_post() {
        let mut count = PostCount::default();
        let posts = Posts { taken: 900, index_before: 7 };
        assert_eq!(count.update(posts, 7), 6, "stale posts prove nothing");
        count.anchor(7);
        let posts = Posts { taken: 1, index_before: 8 };
        assert_eq!(count.update(posts, 8), 8);
        let posts = Posts { taken: 1, index_before: 10 };
        assert_eq!(count.update(posts, 10), 9, "the tenth unit is begun but not posted");
    }
}
