//! PURE: computes decoding and presentation times from capture times. Time is an argument.
//!
//! A camera stamps a unit either in the order in which units are sent, or with the time at which the picture was taken.
//! Without B-frames both are the same. With B-frames a picture is sent after a picture that is shown later:
//!
//! ```text
//!   sent                  I0   P3   B1   B2   P6   B4   B5
//!   stamps as sent         0    1    2    3    4    5    6      decoding time = stamp
//!   stamps as shown        0    3    1    2    6    4    5      presentation time = stamp
//!   displacement           0   +2   -1   -1   +2   -1   -1      place when shown less place when sent
//! ```
//!
//! While a file is written, each unit gets the other of the two times from its displacement and the camera's interval.
//! When the file is finished, all times are computed again, from the stamps of all units in the order in which they are
//! shown. The result is then exact, even if the interval varies.

use std::collections::VecDeque;

use super::track::{Index, TIMESCALE};
use crate::base::limits::CAPTURE_AGE_MAX_NS;

/// Largest displacement: a decoder holds at most so many pictures (H.264 A.3.1).
const DISPLACEMENT_MAX: i64 = 16; // local bound: set by the standard
/// Number of units before the first B-frame whose order is remembered. Older pictures are shown before that B-frame.
const REMEMBERED_UNITS: usize = 32; // local bound: twice DISPLACEMENT_MAX
/// A stamp may go back by so many nanoseconds, or by so many intervals, before the camera's clock counts as set back.
const STEP_BACK_NS: i64 = 500_000_000; // local bound
const STEP_BACK_INTERVALS: i64 = 3; // local bound
/// Interval of a camera of which nothing is known yet.
const INTERVAL_NS: i64 = 1_000_000_000 / 30; // local bound

/// What is known about the time of a unit before it is written.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitTime {
    /// Capture time in nanoseconds of `CLOCK_MONOTONIC`. If the camera's timestamp is not plausible, the time of
    /// arrival.
    pub(crate) captured_ns: i64,
    /// Picture order count, by which pictures are shown. `None` if it is unknown.
    pub(crate) order: Option<i64>,
    /// Difference of `order` between two pictures that are shown one after the other.
    pub(crate) order_step: i64,
    /// True if the counting of `order` starts again with this unit.
    pub(crate) is_idr: bool,
    /// The camera's interval. `None` if it is not known yet.
    pub(crate) interval_ns: Option<i64>,
    /// True if the stream has B-frames.
    pub(crate) has_b_frames: bool,
    /// True if the camera stamps a picture with the time at which it was taken, and not in the order of sending.
    pub(crate) is_stamped_as_shown: bool,
}

/// Times of a unit in a file, in ticks of [`TIMESCALE`], and the state of the timeline after it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlannedTime {
    pub(crate) time_90k: u64,
    pub(crate) composition_90k: i32,
    pub(crate) duration_90k: u32,
    /// Capture time that has time 0.
    zero_ns: i64,
    /// Decoding time in nanoseconds.
    time_ns: i64,
}

/// Times of the units of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    units: usize,
    last: PlannedTime,
    /// Number of IDRs, the number of units since the last one, and its order.
    sequence: u32,
    since_start: i64,
    start_order: i64,
    last_order: i64,
    /// Order and stamp of the newest units; of all units from `remembered_from` on, once a B-frame was seen.
    remembered: VecDeque<Remembered>,
    remembered_from: usize,
    has_b_frames: bool,
    /// True if [`Timeline::finish`] is never called, so that only the newest units are remembered.
    is_endless: bool,
}

#[derive(Copy, Clone, Debug)]
struct Remembered {
    /// Key by which the units are sorted in the order in which they are shown.
    place: (u32, i64),
    stamp_90k: u64,
    /// Presentation time in the fragment.
    shown_90k: u64,
}

impl Timeline {
    /// Returns a timeline for a stream that has no end. Its memory does not grow.
    pub(crate) fn endless() -> Timeline {
        Timeline { is_endless: true, ..Timeline::default() }
    }

    /// Returns the times of the next unit. They become part of the timeline with [`Timeline::commit`].
    pub(crate) fn plan(&self, unit: &UnitTime) -> PlannedTime {
        let interval_ns = unit.interval_ns.unwrap_or(INTERVAL_NS).max(1);
        let duration_90k = u32::try_from(ticks(interval_ns)).unwrap_or(u32::MAX).max(1);
        if self.units == 0 {
            return PlannedTime { duration_90k, zero_ns: unit.captured_ns, ..PlannedTime::default() };
        }
        let ahead_ns = self.displacement(unit).saturating_mul(interval_ns);
        let stamp_ns = unit.captured_ns.saturating_sub(if unit.is_stamped_as_shown { ahead_ns } else { 0 });
        let mut zero_ns = self.last.zero_ns;
        let mut time_ns = stamp_ns.saturating_sub(zero_ns);
        let back_ns = self.last.time_ns.saturating_sub(time_ns);
        if back_ns > STEP_BACK_NS.max(interval_ns.saturating_mul(STEP_BACK_INTERVALS)) {
            time_ns = self.last.time_ns.saturating_add(interval_ns);
            zero_ns = stamp_ns.saturating_sub(time_ns);
        }
        let time_90k = ticks(time_ns).max(self.last.time_90k + 1);
        let composition_90k = if unit.has_b_frames {
            let shown_90k = if unit.is_stamped_as_shown {
                ticks(unit.captured_ns.saturating_sub(zero_ns)).cast_signed()
            } else {
                time_90k.cast_signed() + ahead_ns / 100_000 * 9 + ahead_ns % 100_000 * 9 / 100_000
            };
            i32::try_from(self.in_order(unit, shown_90k) - time_90k.cast_signed()).unwrap_or(0)
        } else {
            0
        };
        PlannedTime { time_90k, composition_90k, duration_90k, zero_ns, time_ns }
    }

    /// Adds a unit that was written with the times that [`Timeline::plan`] returned.
    pub(crate) fn commit(&mut self, unit: &UnitTime, planned: &PlannedTime) {
        let (sequence, order) = self.place(unit);
        if sequence != self.sequence {
            (self.sequence, self.since_start, self.start_order) = (sequence, 0, order);
        }
        self.has_b_frames |= unit.has_b_frames && order < self.last_order && self.since_start > 0;
        if (self.is_endless || !self.has_b_frames) && self.remembered.len() == REMEMBERED_UNITS {
            self.remembered.pop_front();
            self.remembered_from += 1;
        }
        let shown_90k = planned.time_90k.saturating_add_signed(i64::from(planned.composition_90k));
        let stamp_90k = if unit.is_stamped_as_shown { shown_90k } else { planned.time_90k };
        self.remembered.push_back(Remembered { place: (sequence, order), stamp_90k, shown_90k });
        self.since_start += 1;
        self.units += 1;
        self.last_order = order;
        self.last = *planned;
    }

    /// Computes the times of all units again and stores them in `index`, which must hold all units of this timeline.
    /// Does nothing if the file has no B-frames.
    pub(crate) fn finish(&self, index: &mut Index) {
        if !self.has_b_frames {
            return;
        }
        let mut times: Vec<(u64, u64)> = Vec::with_capacity(self.units);
        let mut time_90k = 0;
        for duration in index.durations_90k().take(self.remembered_from) {
            times.push((time_90k, time_90k));
            time_90k += u64::from(duration);
        }
        let mut stamps: Vec<u64> = self.remembered.iter().map(|unit| unit.stamp_90k).collect();
        stamps.sort_unstable();
        let mut after = times.last().map(|(decoded, _)| *decoded);
        for stamp in &mut stamps {
            *stamp = after.map_or(*stamp, |after| (*stamp).max(after + 1));
            after = Some(*stamp);
        }
        let mut in_order: Vec<(usize, &Remembered)> = self.remembered.iter().enumerate().collect();
        in_order.sort_unstable_by_key(|(sent, unit)| (unit.place, *sent));
        let mut shown: Vec<(usize, u64)> =
            in_order.iter().zip(&stamps).map(|((sent, _), stamp)| (*sent, *stamp)).collect();
        shown.sort_unstable();
        times.extend(stamps.iter().zip(shown).map(|(decoded, (_, shown))| (*decoded, shown)));
        index.set_times(&times);
    }

    /// Returns the key by which the units are sorted in the order in which they are shown.
    fn place(&self, unit: &UnitTime) -> (u32, i64) {
        let order = unit.order.unwrap_or_else(|| self.last_order.saturating_add(1));
        (self.sequence + u32::from(unit.is_idr || self.units == 0), order)
    }

    /// Returns `shown_90k` if the unit is then shown in order. Otherwise returns a time between those of its
    /// neighbours, which were sent before it. The interval varies, so an estimate may be wrong by more than an
    /// interval.
    fn in_order(&self, unit: &UnitTime, shown_90k: i64) -> i64 {
        let place = self.place(unit);
        let neighbours = || self.remembered.iter().rev().take(REMEMBERED_UNITS);
        let at = |unit: &Remembered| (unit.shown_90k.cast_signed(), unit.place);
        let before = neighbours().filter(|other| other.place < place).map(at).max();
        let after = neighbours().filter(|other| other.place > place).map(at).min();
        match (before, after) {
            (Some((before, _)), Some((after, _))) if before < shown_90k && shown_90k < after => shown_90k,
            (Some((before, (_, first))), Some((after, (_, last)))) => {
                let whole = last.saturating_sub(first).max(1);
                let part = place.1.saturating_sub(first).clamp(1, whole);
                // Both parts fit: times of a file and orders within a GOP have far fewer than 62 bits.
                before.saturating_add((after - before).saturating_mul(part) / whole)
            }
            (Some((before, _)), None) => shown_90k.max(before + 1),
            (None, Some((after, _))) => shown_90k.min(after - 1),
            (None, None) => shown_90k,
        }
    }

    /// Returns the place of a picture when it is shown, less its place when it is sent.
    fn displacement(&self, unit: &UnitTime) -> i64 {
        let Some(order) = unit.order.filter(|_| unit.has_b_frames && !unit.is_idr) else { return 0 };
        let shown = order.saturating_sub(self.start_order).div_euclid(unit.order_step.max(1));
        shown.saturating_sub(self.since_start).clamp(-DISPLACEMENT_MAX, DISPLACEMENT_MAX)
    }
}

/// Converts nanoseconds to ticks of [`TIMESCALE`]. Negative times become 0.
fn ticks(ns: i64) -> u64 {
    const _: () = assert!(TIMESCALE == 90_000, "9 ticks in 100 us");
    u64::try_from(ns).map_or(0, |ns| ns / 100_000 * 9 + ns % 100_000 * 9 / 100_000)
}

/// Returns the capture time. If it is in the future or older than [`CAPTURE_AGE_MAX_NS`], returns the time of arrival,
/// `now_ns`, instead.
pub(crate) fn plausible(captured_ns: i64, now_ns: i64) -> i64 {
    let age_ns = now_ns.saturating_sub(captured_ns);
    if (0..=CAPTURE_AGE_MAX_NS).contains(&age_ns) { captured_ns } else { now_ns }
}

#[cfg(test)]
mod tests {
    use super::super::track::{Fragment, UnitKind};
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000_000;
    const INTERVAL: i64 = SECOND / 25;

    fn sent_in_order(captured_ns: i64) -> UnitTime {
        UnitTime { captured_ns, interval_ns: Some(INTERVAL), ..UnitTime::default() }
    }

    /// Writes these units. Returns the decoding times of the fragments, and the final decoding and presentation times.
    fn written(units: &[UnitTime]) -> (Vec<u64>, Vec<(u64, i64)>) {
        let (mut timeline, mut index, mut planned_90k) = (Timeline::default(), Index::default(), Vec::new());
        for unit in units {
            let planned = timeline.plan(unit);
            let PlannedTime { time_90k, composition_90k, duration_90k, .. } = planned;
            planned_90k.push(time_90k);
            let kind = UnitKind::Reference;
            index.push(&Fragment {
                sequence: 1,
                time_90k,
                composition_90k,
                duration_90k,
                unit_bytes: 1,
                kind,
            });
            timeline.commit(unit, &planned);
        }
        timeline.finish(&mut index);
        let mut decoded: u64 = 0;
        let compositions = index.compositions_90k();
        let times = index.durations_90k().zip(compositions).map(|(duration, composition)| {
            let times = (decoded, decoded.cast_signed() + i64::from(composition));
            decoded += u64::from(duration);
            times
        });
        (planned_90k, times.collect())
    }

    /// Returns the units of `groups` groups I0 P3 B1 B2 P6 B4 B5 ..., with an IDR every `gop` groups.
    fn with_b_frames(groups: i64, gop: i64, is_stamped_as_shown: bool, known: bool) -> Vec<UnitTime> {
        let mut units = Vec::new();
        let (mut has_b_frames, mut sent) = (known, 0);
        for group in 0..groups {
            let in_gop = group % gop;
            for place in if in_gop == 0 { vec![0] } else { vec![3 * in_gop, 3 * in_gop - 2, 3 * in_gop - 1] }
            {
                let shown = group / gop * (3 * gop - 2) + place;
                let stamp = if is_stamped_as_shown { shown } else { sent };
                has_b_frames |= place % 3 == 1;
                units.push(UnitTime {
                    captured_ns: 5 * SECOND + stamp * INTERVAL,
                    order: Some(place),
                    order_step: 1,
                    is_idr: place == 0,
                    interval_ns: Some(INTERVAL),
                    has_b_frames,
                    is_stamped_as_shown: is_stamped_as_shown && has_b_frames,
                });
                sent += 1;
            }
        }
        units
    }

    #[test]
    fn gaps_keep_their_length() {
        let stamps = [5 * SECOND, 5 * SECOND + SECOND / 30, 12 * SECOND];
        assert_eq!(written(&stamps.map(sent_in_order)).0, [0, 2_999, 630_000]);
    }

    #[test]
    fn b_frames_are_shown_in_order_at_even_intervals() {
        for is_stamped_as_shown in [false, true] {
            for known in [true, false] {
                let units = with_b_frames(40, 10, is_stamped_as_shown, known);
                let (planned, times) = written(&units);
                assert!(planned.is_sorted_by(|a, b| a < b));
                let case = format!("as shown: {is_stamped_as_shown}, known before: {known}");
                assert!(times.windows(2).all(|pair| pair[1].0 - pair[0].0 == 3_600), "{case}: {times:?}");
                let mut shown: Vec<_> = times.iter().map(|(_, shown)| *shown).collect();
                shown.sort_unstable();
                let even: Vec<_> = (0..).map(|number| 3_600 * number).take(units.len()).collect();
                assert_eq!(shown, even, "{case}");
                let mut places = units.iter().zip(&times).collect::<Vec<_>>();
                places.sort_by_key(|(_, (_, shown))| *shown);
                let in_order = places.iter().map(|(unit, _)| unit.order.unwrap());
                assert!(in_order.zip((0..28).cycle()).all(|(place, expected)| place == expected), "{case}");
            }
        }
    }

    #[test]
    fn stream_with_known_b_frames_has_exact_times_in_its_fragments() {
        for is_stamped_as_shown in [false, true] {
            let units = with_b_frames(40, 10, is_stamped_as_shown, true);
            let mut timeline = Timeline::default();
            for (unit, (decoded, shown)) in units.iter().zip(written(&units).1) {
                let planned = timeline.plan(unit);
                assert_eq!(
                    (planned.time_90k, decoded.cast_signed() + i64::from(planned.composition_90k)),
                    (decoded, shown)
                );
                timeline.commit(unit, &planned);
            }
        }
    }

    #[test]
    fn fragments_are_shown_in_order_even_if_the_interval_varies() {
        for is_stamped_as_shown in [false, true] {
            let mut units = with_b_frames(40, 10, is_stamped_as_shown, true);
            let mut late_ns = 0;
            for (number, unit) in (0_i64..).zip(&mut units) {
                late_ns += number * 7_919 % 13 * INTERVAL / 5;
                unit.captured_ns +=
                    if is_stamped_as_shown { number * 7_919 % 13 * INTERVAL / 20 } else { late_ns };
            }
            let (mut timeline, mut shown) = (Timeline::default(), Vec::new());
            let mut gop = 0;
            for unit in &units {
                let planned = timeline.plan(unit);
                timeline.commit(unit, &planned);
                gop += i64::from(unit.is_idr);
                let shown_90k = planned.time_90k.cast_signed() + i64::from(planned.composition_90k);
                shown.push((gop, unit.order.unwrap(), shown_90k));
            }
            shown.sort_unstable();
            assert!(shown.is_sorted_by(|a, b| a.2 < b.2), "as shown: {is_stamped_as_shown}, {shown:?}");
        }
    }

    #[test]
    fn endless_timeline_has_the_same_times_and_remembers_few_units() {
        for is_stamped_as_shown in [false, true] {
            let (mut endless, mut timeline) = (Timeline::endless(), Timeline::default());
            for unit in with_b_frames(100, 10, is_stamped_as_shown, false) {
                let planned = endless.plan(&unit);
                assert_eq!(planned, timeline.plan(&unit));
                endless.commit(&unit, &planned);
                timeline.commit(&unit, &planned);
                assert!(endless.remembered.len() <= REMEMBERED_UNITS);
            }
        }
    }

    #[test]
    fn b_frames_that_begin_late_are_in_order() {
        let mut units: Vec<_> = (0..100)
            .map(|number| UnitTime {
                order: Some(number),
                order_step: 1,
                is_idr: number == 0,
                ..sent_in_order(5 * SECOND + number * INTERVAL)
            })
            .collect();
        for (number, place) in (100..).zip([102, 100, 101, 105, 103, 104]) {
            let stamp = 5 * SECOND + number * INTERVAL;
            units.push(UnitTime {
                order: Some(place),
                order_step: 1,
                has_b_frames: number > 100,
                ..sent_in_order(stamp)
            });
        }
        let (_, times) = written(&units);
        let mut shown: Vec<_> = units.iter().zip(&times).collect();
        shown.sort_by_key(|(_, (_, shown))| *shown);
        assert!(shown.iter().map(|(unit, _)| unit.order.unwrap()).eq(0..106));
    }

    #[test]
    fn clock_that_is_set_back_does_not_stop_the_time() {
        let mut units: Vec<_> =
            (0..50).map(|number| sent_in_order(60 * SECOND + number * INTERVAL)).collect();
        units.extend((0..50).map(|number| sent_in_order(20 * SECOND + number * INTERVAL)));
        let (planned, _) = written(&units);
        assert!(planned.windows(2).all(|pair| pair[1] - pair[0] == 3_600), "{planned:?}");
    }

    #[test]
    fn small_steps_back_do_not_move_later_units() {
        let late =
            [0, 1, 3, 2, 4, 4, 5, 7, 6, 8, 9].map(|number| sent_in_order(60 * SECOND + number * INTERVAL));
        let (planned, _) = written(&late);
        assert_eq!(
            planned,
            [0, 3_600, 10_800, 10_801, 14_400, 14_401, 18_000, 25_200, 25_201, 28_800, 32_400]
        );
    }

    #[test]
    fn implausible_capture_times_fall_back_to_the_arrival_time() {
        let now = 1_000 * SECOND;
        for captured in [0, i64::MIN, i64::MAX, now + 1, now - CAPTURE_AGE_MAX_NS - 1] {
            assert_eq!(plausible(captured, now), now);
        }
        assert_eq!(plausible(now - 5, now), now - 5);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn times_increase_for_any_stamps_and_places(
            units in prop::collection::vec(
                (any::<i64>(), prop::option::of(any::<i64>()), any::<[bool; 3]>(), prop::option::of(any::<i64>())), 1..50
            ),
        ) {
            let units: Vec<_> = units.into_iter().map(|(captured_ns, place, flags, interval_ns)| UnitTime {
                captured_ns: captured_ns >> 20,
                order: place.map(|place| place >> 20),
                order_step: place.unwrap_or(0) % 4,
                is_idr: flags[0],
                interval_ns: interval_ns.map(|ns| ns >> 28),
                has_b_frames: flags[1],
                is_stamped_as_shown: flags[2],
            }).collect();
            let (planned, times) = written(&units);
            prop_assert!(planned.is_sorted_by(|a, b| a < b));
            prop_assert!(times.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
