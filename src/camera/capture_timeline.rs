//! PURE: turns the camera's capture times into a timeline that never runs backwards, and learns the interval between
//! units. A camera may stamp its units in presentation order, send them unevenly or rarely, or set its clock while it
//! runs. Every place that needs the pace or the interval of the stream uses these types.

use crate::base::limits::{
    CAMERA_STALLED_NS_MIN, CAPTURE_STEP_NS_MAX, REORDERED_UNITS_MAX, UNIT_INTERVAL_NS_MAX,
    UNIT_INTERVALS_STALLED,
};

/// The timeline of one stream. It advances as much as the capture time does. A unit that was captured before an earlier
/// unit does not advance it. A step of the camera's clock advances it by one interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct CaptureTimeline {
    /// Latest capture time since the last step of the clock; `None` before the first unit.
    latest_ns: Option<i64>,
    /// Capture time of the first unit.
    origin_ns: i64,
    /// When the latest unit was read from the ring.
    arrived_ns: i64,
    elapsed_ns: i64,
    /// Number of consecutive units that were captured before `latest_ns`.
    units_behind: u32,
    interval: UnitInterval,
}

impl CaptureTimeline {
    /// Adds a unit that was captured at `captured_ns` and read from the ring at `arrived_ns`. Returns the nanoseconds on
    /// the timeline since the first unit. The result never decreases.
    pub fn advance(&mut self, captured_ns: i64, arrived_ns: i64) -> i64 {
        let gap_ns = arrived_ns.saturating_sub(std::mem::replace(&mut self.arrived_ns, arrived_ns));
        let Some(latest_ns) = self.latest_ns else {
            (self.latest_ns, self.origin_ns) = (Some(captured_ns), captured_ns);
            return self.elapsed_ns;
        };
        let step_ns = captured_ns.saturating_sub(latest_ns);
        if step_ns < 0 && self.is_reordered(step_ns) {
            self.units_behind += 1;
            self.interval.on_step(0);
            return self.elapsed_ns;
        }
        self.units_behind = 0;
        self.latest_ns = Some(captured_ns);
        let is_clock_set = !(0..=self.step_ns_max(gap_ns)).contains(&step_ns);
        if !is_clock_set {
            self.interval.on_step(step_ns);
        }
        self.elapsed_ns += if is_clock_set { self.interval.mean_ns } else { step_ns };
        self.elapsed_ns
    }

    /// Returns true if a unit `step_ns` before the latest one is out of order. Returns false if the camera's clock was
    /// set back, because no decoder reorders that many units.
    fn is_reordered(&self, step_ns: i64) -> bool {
        let reach_ns = i64::from(REORDERED_UNITS_MAX) * self.interval.longest_ns;
        self.units_behind < REORDERED_UNITS_MAX && step_ns.saturating_neg() <= reach_ns
    }

    /// Returns the largest step of the capture time that is believed, if the last two units arrived `gap_ns` apart. Units
    /// that waited in the ring arrive together, but no further apart in capture time than the camera usually sends them.
    fn step_ns_max(&self, gap_ns: i64) -> i64 {
        if self.interval.longest_ns == 0 {
            return CAPTURE_STEP_NS_MAX;
        }
        gap_ns.max(0).saturating_add(self.interval.stalled_after_ns()).min(CAPTURE_STEP_NS_MAX)
    }

    /// Returns the position on the timeline as a capture time: that of the latest unit, as long as the camera's clock is
    /// never set. Readers that began with different units then agree on it.
    #[must_use]
    pub fn position_ns(&self) -> i64 {
        self.origin_ns.saturating_add(self.elapsed_ns)
    }

    /// Returns the interval between units.
    #[must_use]
    pub fn interval(&self) -> &UnitInterval {
        &self.interval
    }

    /// Learns the interval from a unit that the ring already held when its reader began. `step_ns` is the time between
    /// its capture and that of the unit after it.
    pub fn learn_interval(&mut self, step_ns: i64) {
        if (1..=CAPTURE_STEP_NS_MAX).contains(&step_ns) {
            self.interval.on_step(step_ns);
        }
    }
}

/// The learned interval between units: the mean, and the longest usual one.
///
/// A single long gap is a stall of the camera and is not learned. A second one soon after it shows that the camera is
/// slow or uneven, and is learned at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnitInterval {
    /// Moving average, to which each interval contributes an eighth. 0 before the second unit.
    mean_ns: i64,
    /// Longest recent interval. Shorter intervals lower it slowly. 0 before the second unit.
    longest_ns: i64,
    /// Number of units after which the latest long gap is forgotten.
    gap_units_left: u32,
}

/// Number of units after which a long gap is forgotten.
const GAP_UNITS: u32 = 64;

impl UnitInterval {
    /// Learns from a unit that was captured `step_ns` after the unit before it.
    pub(crate) fn on_step(&mut self, step_ns: i64) {
        let step_ns = step_ns.min(UNIT_INTERVAL_NS_MAX);
        if self.longest_ns == 0 {
            (self.mean_ns, self.longest_ns) = (step_ns, step_ns);
            return;
        }
        let is_gap = step_ns >= self.stalled_after_ns();
        let is_second_gap = is_gap && self.gap_units_left > 0;
        self.gap_units_left = if is_gap { GAP_UNITS } else { self.gap_units_left.saturating_sub(1) };
        match (is_gap, is_second_gap) {
            (true, false) => return,
            (_, true) => self.mean_ns = step_ns,
            (false, _) => self.mean_ns += (step_ns - self.mean_ns) / 8,
        }
        let lowered_ns = self.longest_ns - (self.longest_ns - step_ns) / 16;
        self.longest_ns = lowered_ns.max(step_ns).max(1);
    }

    /// Returns the mean interval in nanoseconds, or 0 while it is unknown.
    #[must_use]
    pub fn mean_ns(&self) -> i64 {
        self.mean_ns
    }

    /// Returns the nanoseconds without a unit after which the camera counts as stalled: three of the longest usual
    /// intervals, and at least [`CAMERA_STALLED_NS_MIN`].
    #[must_use]
    pub fn stalled_after_ns(&self) -> i64 {
        (UNIT_INTERVALS_STALLED * self.longest_ns).max(CAMERA_STALLED_NS_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const INTERVAL: i64 = 33 * MS;

    /// Returns the timeline after units that were captured at these times and arrived at the usual interval, with the
    /// elapsed time after each.
    fn after(captured: impl IntoIterator<Item = i64>) -> (CaptureTimeline, Vec<i64>) {
        after_arrivals(captured.into_iter().zip((0..).map(|unit| unit * INTERVAL)))
    }

    /// The same for pairs of capture time and arrival time.
    fn after_arrivals(units: impl IntoIterator<Item = (i64, i64)>) -> (CaptureTimeline, Vec<i64>) {
        let mut timeline = CaptureTimeline::default();
        let advance = |(captured_ns, arrived_ns)| timeline.advance(captured_ns, arrived_ns);
        let elapsed = units.into_iter().map(advance).collect();
        (timeline, elapsed)
    }

    /// Returns how often a camera with these intervals would be reported as stalled.
    fn stalls(intervals_ns: impl IntoIterator<Item = i64>) -> usize {
        let (mut timeline, mut at_ns) = (CaptureTimeline::default(), 0);
        timeline.advance(at_ns, at_ns);
        let stalls = intervals_ns.into_iter().filter(|interval_ns| {
            let is_stalled = *interval_ns >= timeline.interval().stalled_after_ns();
            at_ns += interval_ns;
            timeline.advance(at_ns, at_ns);
            is_stalled
        });
        stalls.count()
    }

    #[test]
    fn presentation_order_does_not_speed_the_timeline_up() {
        // Three B-pictures follow each reference: 0 4 2 1 3 8 6 5 7 ...
        let order = (0..100).flat_map(|gop| [4, 2, 1, 3].map(|picture| 4 * gop + picture));
        let (timeline, elapsed) = after(std::iter::once(0).chain(order).map(|picture| picture * INTERVAL));
        assert_eq!(elapsed.last(), Some(&(400 * INTERVAL)));
        assert!(elapsed.is_sorted());
        let mean = timeline.interval().mean_ns();
        assert!((INTERVAL / 2..INTERVAL * 2).contains(&mean), "{mean}");
    }

    #[test]
    fn clock_that_is_set_advances_the_timeline_by_one_interval() {
        for step_ns in [-5_000 * MS, -3_600_000 * MS, 7_200_000 * MS] {
            let set = (0..300).map(|unit| unit * INTERVAL + if unit < 100 { 0 } else { step_ns });
            let (_, elapsed) = after(set);
            assert_eq!(elapsed[299], 299 * INTERVAL, "{step_ns}");
        }
    }

    #[test]
    fn clock_that_is_set_back_and_forwards_again_does_not_speed_the_timeline_up() {
        let step_ns = |unit: i64| if (100..200).contains(&unit) { -4_000 * MS } else { 0 };
        let (_, elapsed) = after((0..300).map(|unit| unit * INTERVAL + step_ns(unit)));
        assert_eq!(elapsed[299], 299 * INTERVAL);
    }

    #[test]
    fn units_of_a_slow_camera_that_waited_in_the_ring_keep_their_distance() {
        let arrived_ns = |unit: i64| unit.min(10).max(unit - 10) * 2_000 * MS;
        let (_, elapsed) = after_arrivals((0..30).map(|unit| (unit * 2_000 * MS, arrived_ns(unit))));
        assert_eq!(elapsed[29], 29 * 2_000 * MS);
    }

    #[test]
    fn small_step_back_costs_no_more_than_the_reordered_units() {
        let set = (0..300).map(|unit| unit * INTERVAL - if unit < 100 { 0 } else { 10 * INTERVAL });
        let (_, elapsed) = after(set);
        let lost_ns = 299 * INTERVAL - elapsed[299];
        assert!((0..=i64::from(REORDERED_UNITS_MAX) * INTERVAL).contains(&lost_ns), "{lost_ns}");
    }

    #[test]
    fn slow_and_uneven_cameras_do_not_flap() {
        assert_eq!(stalls([2_000 * MS; 40]), 1, "only before the interval is known");
        let bursts = (0..200).map(|unit| if unit % 10 == 0 { 4_000 * MS } else { 100 * MS });
        assert!(stalls(bursts) <= 2);
        let night = (0..300).map(|unit| if unit < 200 { INTERVAL } else { 2_000 * MS });
        assert!(stalls(night) <= 2, "the rate changed");
        let varying = (0..200).map(|unit| 500 * MS + unit * 7_919 % 2_500 * MS);
        assert!(stalls(varying) <= 2);
    }

    #[test]
    fn single_stall_is_noticed_and_does_not_change_the_threshold() {
        let day = |unit: i64| if unit % 1_000 == 999 { 10_000 * MS } else { INTERVAL };
        assert_eq!(stalls((0..10_000).map(day)), 10);
    }

    #[test]
    fn fast_camera_is_stalled_after_the_minimum_soon_after_it_was_slow() {
        let (mut timeline, _) = after_arrivals((0..20).map(|unit| (unit * 5_000 * MS, unit * 5_000 * MS)));
        assert_eq!(timeline.interval().stalled_after_ns(), 15_000 * MS);
        for unit in 0..120 {
            let at_ns = 95_000 * MS + unit * INTERVAL;
            timeline.advance(at_ns, at_ns);
        }
        assert_eq!(timeline.interval().stalled_after_ns(), CAMERA_STALLED_NS_MIN);
    }

    #[test]
    fn any_sequence_of_capture_times_keeps_the_timeline_sorted() {
        let (_, elapsed) = after([5, 4, 0, -7, i64::MAX, i64::MIN, 1, 1, 33_333_334, i64::MAX, i64::MIN]);
        assert!(elapsed.is_sorted(), "{elapsed:?}");
    }
}
