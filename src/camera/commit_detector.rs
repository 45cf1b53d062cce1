//! When a slot of an index-first ring is whole: from the camera's posts, or from the slot not changing.
//! Decides on what it is shown; may not wait, read clocks or ring bells.

use std::sync::Arc;

use super::cursor::ahead;
use super::layout::SlotMetadata;
use super::mapping::Mapping;
use crate::base::limits::{COMMIT_STABLE_NS, PRE_IMAGE_BYTES_MAX, SLOT_DATA_BYTES_MAX};

/// The bytes at the end of a unit that are compared.
const TAIL_BYTES: usize = 64;

/// Watches the newest slot of a ring whose index is raised before the slot is copied.
///
/// A slot is settled when its metadata and the last bytes of its unit did not change over two looks
/// [`COMMIT_STABLE_NS`] apart, the frame number is the expected one and the tail is seen to differ from what lay
/// there before (the scout, copied before the camera began). A camera that is held up in the middle of
/// its copy shows an unchanged tail: where no difference is seen the slot must rest for as long as the caller says.
#[derive(Debug, Default)]
pub(super) struct CommitDetector {
    /// The unit whose slot was copied before the camera began it.
    scouted: Option<u32>,
    scout: Vec<u8>,
    scout_metadata: SlotMetadata,
    /// Bytes of recent units, slowly forgotten: how much to scout.
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
    /// Remembers what lies in the slot of `unit`, which the camera has not begun.
    pub(super) fn record_pre_image(&mut self, mapping: &Arc<Mapping>, unit: u32) {
        if self.scouted == Some(unit) {
            return;
        }
        let wanted = (self.recent_bytes + self.recent_bytes / 4).max(PRE_IMAGE_BYTES_MAX / 8);
        self.scout_metadata = mapping.metadata(unit);
        self.scout.clear();
        self.scout.extend_from_slice(&mapping.slot_bytes(unit, wanted.min(PRE_IMAGE_BYTES_MAX)));
        // Begun meanwhile: then this copy proves nothing.
        self.scouted = (mapping.write_index() == unit).then_some(unit);
    }

    /// Looks at the slot of `unit`, the newest one begun: is it settled? `unseen_ns` is the rest that stands in for a
    /// change that is not seen.
    pub(super) fn look(&mut self, mapping: &Arc<Mapping>, unit: u32, now_ns: i64, unseen_ns: i64) -> bool {
        let metadata = mapping.metadata(unit);
        let tail = Tail::of_unit(mapping, unit, &metadata);
        let rested_ns = match &self.candidate {
            Some(seen) if seen.unit == unit && seen.metadata == metadata && seen.tail == tail => {
                now_ns - seen.since_ns
            }
            _ => {
                self.candidate = Some(Candidate { unit, metadata, tail, since_ns: now_ns });
                return false;
            }
        };
        let settled = self
            .required_rest_ns(mapping, unit, &metadata, &tail, unseen_ns)
            .is_some_and(|ns| rested_ns >= ns);
        if settled {
            self.recent_bytes = tail.end.max(self.recent_bytes - self.recent_bytes / 16);
        }
        settled
    }

    /// How long the slot must rest to count as settled; `None` while it still holds the old unit.
    fn required_rest_ns(
        &self,
        mapping: &Arc<Mapping>,
        unit: u32,
        metadata: &SlotMetadata,
        tail: &Tail,
        unseen_ns: i64,
    ) -> Option<i64> {
        if self.scouted != Some(unit) {
            return Some(unseen_ns);
        }
        if *metadata == self.scout_metadata {
            return None;
        }
        let before = mapping.metadata(unit.wrapping_sub(1));
        let is_expected = metadata.frame_number == before.frame_number.wrapping_add(1);
        let is_rewritten = tail.differs_from(&self.scout);
        Some(if is_expected && is_rewritten { COMMIT_STABLE_NS } else { unseen_ns })
    }
}

/// A copy of the last bytes of a unit.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    /// Where the unit ends in the slot's data; 0 when the metadata makes no sense.
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

    fn differs_from(&self, scout: &[u8]) -> bool {
        let start = self.end.saturating_sub(TAIL_BYTES);
        let old = scout.get(start..self.end);
        old.is_some_and(|old| !self.bytes.starts_with(old))
    }
}

/// What one look at the camera's semaphore brought.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Posts {
    /// Posts taken.
    pub(super) taken: u32,
    /// The write index as it was before all posts were taken.
    pub(super) index_before: u32,
}

/// Counts the camera's posts to know which units are whole: on an index-first ring it raises the index,
/// copies, posts. One post is not proof for the newest unit: the camera may have begun another since.
///
/// When all posts so far were taken, an index of `i` loaded before says that at least
/// `i - 1` units were posted; every post taken later is one unit more. That bound is exact once
/// [`PostCount::anchor`] was told of a moment of rest. Posts that others take only make it lag.
#[derive(Debug, Default)]
pub(super) struct PostCount {
    /// Units known to be posted; `None` before the first look.
    whole: Option<u32>,
}

impl PostCount {
    /// Takes in one look; `index` was loaded after it. Returns how many units are whole.
    pub(super) fn update(&mut self, posts: Posts, index: u32) -> u32 {
        let proven = posts.index_before.wrapping_sub(1);
        let counted = self.whole.map(|whole| whole.wrapping_add(posts.taken));
        let whole = match counted {
            // More posts than units: posts of others, or an anchor set too high.
            Some(counted) if ahead(counted, index) <= 0 => {
                if ahead(proven, counted) > 0 {
                    proven
                } else {
                    counted
                }
            }
            _ => proven,
        };
        self.whole = Some(whole);
        whole
    }

    /// The semaphore is empty and the newest unit is whole: `index` units are posted.
    pub(super) fn anchor(&mut self, index: u32) {
        self.whole = Some(index);
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
        let mut settle = CommitDetector::default();
        settle.record_pre_image(&mapping, ring.index);
        (ring, mapping, settle)
    }

    #[test]
    fn a_slot_that_is_rewritten_and_rests_is_settled_after_a_millisecond() {
        let (mut ring, mapping, mut settle) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1200]));
        ring.write_data(unit, 0, &[99; 1200]);
        assert!(!settle.look(&mapping, unit, 0, COMMIT_UNSEEN_NS), "one look is never enough");
        assert!(!settle.look(&mapping, unit, MS - 1, COMMIT_UNSEEN_NS));
        assert!(settle.look(&mapping, unit, MS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn a_slot_is_not_settled_while_its_tail_changes() {
        let (mut ring, mapping, mut settle) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1200]));
        for step in 0..6 {
            ring.write_data(unit, 0, &vec![99; 1150 + step * 10]);
            assert!(!settle.look(&mapping, unit, step as i64 * MS, COMMIT_UNSEEN_NS), "step {step}");
        }
        assert!(settle.look(&mapping, unit, 6 * MS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn a_camera_held_up_before_its_copy_settles_nothing() {
        let (mut ring, mapping, mut settle) = ring_of_units();
        let unit = ring.begin();
        for ms in 0..1000 {
            assert!(!settle.look(&mapping, unit, ms * MS, COMMIT_UNSEEN_NS));
        }
    }

    #[test]
    fn a_camera_held_up_in_its_copy_needs_the_long_rest() {
        let (mut ring, mapping, mut settle) = ring_of_units();
        let unit = ring.begin();
        ring.write_metadata(unit, &ring.metadata(&[99; 1000]));
        ring.write_data(unit, 0, &[99; 500]);
        assert!(!settle.look(&mapping, unit, 0, COMMIT_UNSEEN_NS));
        assert!(!settle.look(&mapping, unit, 4 * MS, COMMIT_UNSEEN_NS), "the old tail is still there");
        ring.write_data(unit, 500, &[99; 500]);
        assert!(!settle.look(&mapping, unit, 5 * MS, COMMIT_UNSEEN_NS));
        assert!(settle.look(&mapping, unit, 6 * MS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn lying_metadata_settles_after_the_long_rest() {
        let (mut ring, mapping, mut settle) = ring_of_units();
        let unit = ring.begin();
        let lie = SlotMetadata { data_bytes: u64::MAX, ..ring.metadata(b"") };
        ring.write_metadata(unit, &lie);
        assert!(!settle.look(&mapping, unit, 0, COMMIT_UNSEEN_NS));
        assert!(!settle.look(&mapping, unit, 2 * MS, COMMIT_UNSEEN_NS));
        assert!(settle.look(&mapping, unit, COMMIT_UNSEEN_NS, COMMIT_UNSEEN_NS));
    }

    #[test]
    fn a_scout_taken_too_late_proves_nothing() {
        let (mut ring, mapping, mut settle) = ring_of_units();
        let unit = ring.begin();
        settle.scouted = None;
        settle.record_pre_image(&mapping, unit);
        assert_eq!(settle.scouted, None);
    }

    /// A camera that raises its index, copies and posts, against a count that looks at arbitrary moments.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Camera,
        Look,
        Rest,
        StolenPost,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Camera),
            4 => Just(Step::Look),
            1 => Just(Step::Rest),
            1 => Just(Step::StolenPost),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn counted_posts_never_claim_a_unit_in_the_middle_of_its_copy(
            start in prop_oneof![Just(0_u32), Just(u32::MAX - 20), any::<u32>()],
            stale_posts in 0..50_u32,
            steps in steps(),
        ) {
            let (mut index, mut whole, mut semaphore) = (start, start, stale_posts);
            let mut count = PostCount::default();
            for step in steps {
                match step {
                    // Half a unit: the index, then copy and post.
                    Step::Camera if index == whole => index = index.wrapping_add(1),
                    Step::Camera => {
                        whole = index;
                        semaphore += 1;
                    }
                    Step::StolenPost => semaphore = semaphore.saturating_sub(1),
                    Step::Look | Step::Rest => {
                        let posts = Posts { taken: semaphore, index_before: index };
                        semaphore = 0;
                        let claimed = count.update(posts, index);
                        prop_assert!(ahead(claimed, whole) <= 0, "claims {claimed}, whole are {whole}");
                        prop_assert!(ahead(claimed, index) >= -50, "never far behind");
                        if matches!(step, Step::Rest) && index == whole {
                            count.anchor(index);
                            prop_assert_eq!(count.update(Posts { taken: 0, ..posts }, index), index);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_anchored_count_proves_the_newest_unit_with_its_post() {
        let mut count = PostCount::default();
        let posts = Posts { taken: 900, index_before: 7 };
        assert_eq!(count.update(posts, 7), 6, "stale posts prove nothing");
        count.anchor(7);
        let posts = Posts { taken: 1, index_before: 8 };
        assert_eq!(count.update(posts, 8), 8);
        let posts = Posts { taken: 1, index_before: 10 };
        assert_eq!(count.update(posts, 10), 9, "the tenth is begun, not posted");
    }
}
