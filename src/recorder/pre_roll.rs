//! PURE: copies of the newest access units, for recordings that begin earlier than the ring reaches. The units form whole
//! GOPs, so a recording can begin with the first of them.

use std::collections::VecDeque;

use super::operation::IncomingUnit;
use super::recording::StartPoint;

/// How much is kept.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PreRollRules {
    /// Nanoseconds before the newest unit.
    pub duration_ns: i64,
    /// Maximum bytes of the units.
    pub bytes_max: usize,
}

/// A unit and when it was read from the ring.
#[derive(Clone, Debug)]
pub(super) struct StoredUnit {
    pub(super) unit: IncomingUnit,
    pub(super) read_ns: i64,
    is_start: bool,
}

/// The units, the oldest first. The first one is always an IDR or a recovery point.
#[derive(Debug)]
pub(super) struct PreRoll {
    rules: PreRollRules,
    units: VecDeque<StoredUnit>,
    bytes: usize,
}

impl PreRoll {
    pub(super) fn new(rules: PreRollRules) -> PreRoll {
        PreRoll { rules, units: VecDeque::new(), bytes: 0 }
    }

    /// Adds the unit after the last one. Its bytes must be a copy that the camera does not overwrite.
    pub(super) fn push(&mut self, unit: IncomingUnit, start: Option<StartPoint>, read_ns: i64) {
        let is_start = start.is_some();
        if self.units.is_empty() && !is_start {
            return;
        }
        self.bytes += unit.bytes.len();
        self.units.push_back(StoredUnit { unit, read_ns, is_start });
        while self.bytes > self.rules.bytes_max || self.is_second_start_old_enough() {
            self.remove_first_gop();
        }
    }

    /// Forgets all units. Must be called if a unit is missing.
    pub(super) fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
    }

    /// Returns the seconds of video that are held.
    pub(super) fn held_s(&self) -> f64 {
        let captured = |stored: &StoredUnit| stored.unit.captured_ns;
        let span = self.units.front().map(captured).zip(self.units.back().map(captured));
        span.map_or(0.0, |(first, last)| last.saturating_sub(first).max(0) as f64 / 1e9)
    }

    /// Returns the units that are held, and the index of the one with which a recording begins that shows `pre_roll_ns`
    /// before `now_ns`, or as much as is held. The units before it may have parameter sets. Returns `None` if nothing is
    /// held.
    pub(super) fn from(&self, now_ns: i64, pre_roll_ns: i64) -> Option<(&VecDeque<StoredUnit>, usize)> {
        let wanted_ns = now_ns.saturating_sub(pre_roll_ns);
        let is_old_enough = |stored: &StoredUnit| stored.is_start && stored.unit.captured_ns <= wanted_ns;
        let begin = self.units.iter().rposition(is_old_enough).unwrap_or(0);
        (!self.units.is_empty()).then_some((&self.units, begin))
    }

    /// Returns true if the units from the second GOP on are enough.
    fn is_second_start_old_enough(&self) -> bool {
        let Some(newest) = self.units.back() else { return false };
        let wanted_ns = newest.unit.captured_ns.saturating_sub(self.rules.duration_ns);
        let second = self.units.iter().skip(1).find(|stored| stored.is_start);
        second.is_some_and(|second| second.unit.captured_ns <= wanted_ns)
    }

    fn remove_first_gop(&mut self) {
        while let Some(first) = self.units.pop_front() {
            self.bytes -= first.unit.bytes.len();
            if self.units.front().is_some_and(|next| next.is_start) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn unit(number: i64, bytes: usize) -> IncomingUnit {
        IncomingUnit {
            bytes: Bytes::from(vec![0; bytes]),
            captured_ns: number * SECOND,
            captured_at_ns: None,
        }
    }

    /// Returns a store after these units of one second each, with an IDR every `gop` units.
    fn stored(rules: PreRollRules, units: i64, gop: i64) -> PreRoll {
        let mut store = PreRoll::new(rules);
        for number in 0..units {
            store.push(unit(number, 10), (number % gop == 0).then_some(StartPoint::Idr), number * SECOND);
        }
        store
    }

    fn first_s(store: &PreRoll, now_s: i64, pre_roll_s: i64) -> Option<i64> {
        let (units, begin) = store.from(now_s * SECOND, pre_roll_s * SECOND)?;
        units.get(begin).map(|stored| stored.unit.captured_ns / SECOND)
    }

    #[test]
    fn begins_with_the_last_gop_that_is_early_enough() {
        let store = stored(PreRollRules { duration_ns: 10 * SECOND, bytes_max: 1_000 }, 40, 4);
        assert_eq!(first_s(&store, 39, 10), Some(28));
        assert_eq!(first_s(&store, 39, 0), Some(36));
        assert_eq!(first_s(&store, 39, 60), Some(28), "no more is held");
        assert!((store.held_s() - 11.0).abs() < 1e-9);
    }

    #[test]
    fn whole_gops_are_dropped_for_the_bytes() {
        let store = stored(PreRollRules { duration_ns: 100 * SECOND, bytes_max: 95 }, 20, 4);
        assert_eq!((first_s(&store, 19, 100), store.bytes), (Some(12), 80));
        // A GOP that does not fit leaves nothing, because its end alone cannot be decoded.
        assert_eq!(
            first_s(&stored(PreRollRules { duration_ns: SECOND, bytes_max: 95 }, 20, 40), 19, 1),
            None
        );
    }

    #[test]
    fn after_a_gap_the_next_idr_is_first() {
        let mut store = stored(PreRollRules { duration_ns: 10 * SECOND, bytes_max: 1_000 }, 10, 4);
        store.clear();
        store.push(unit(11, 10), None, 0);
        assert_eq!(first_s(&store, 11, 5), None);
        store.push(unit(12, 10), Some(StartPoint::RecoveryPoint), 0);
        assert_eq!(first_s(&store, 12, 5), Some(12));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_the_first_unit_is_a_start(
            units in prop::collection::vec((0_i64..3, 0_usize..200, any::<bool>()), 1..100),
            duration_s in 0_i64..20,
            bytes_max in 0_usize..500,
        ) {
            let mut store = PreRoll::new(PreRollRules { duration_ns: duration_s * SECOND, bytes_max });
            let mut at = 0;
            for (step, bytes, is_start) in units {
                at += step;
                store.push(unit(at, bytes), is_start.then_some(StartPoint::Idr), at);
                let held: usize = store.units.iter().map(|stored| stored.unit.bytes.len()).sum();
                prop_assert_eq!(held, store.bytes);
                prop_assert!(held <= bytes_max);
                prop_assert!(store.units.front().is_none_or(|first| first.is_start));
                prop_assert!(!store.is_second_start_old_enough());
            }
        }
    }
}
