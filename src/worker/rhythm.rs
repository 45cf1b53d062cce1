//! When the next unit comes, as far as those before it tell. Pure: knows nothing but times.

use crate::base::limits;

/// A camera's rhythm: learned while units come evenly, lost when they don't.
#[derive(Debug, Default)]
pub(super) struct Rhythm {
    /// When the next unit is expected, CLOCK_MONOTONIC.
    next_ns: i64,
    /// From one unit to the next; 0 before it is known.
    interval_ns: i64,
    /// How far units come from when they were expected, on average.
    jitter_ns: i64,
    /// Units since it was found.
    units: u32,
}

/// A unit that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// When, CLOCK_MONOTONIC.
    pub(super) at_ns: i64,
    /// How far off that is, on average.
    pub(super) jitter_ns: i64,
}

impl Rhythm {
    /// A unit came at `now_ns`.
    pub(super) fn learn(&mut self, now_ns: i64) {
        let error_ns = now_ns.saturating_sub(self.next_ns);
        if error_ns.saturating_abs() > self.interval_ns / 4 {
            self.begin(now_ns, error_ns.saturating_add(self.interval_ns));
            return;
        }
        self.interval_ns += error_ns / 16;
        self.next_ns += self.interval_ns + error_ns / 4;
        self.jitter_ns += (error_ns.abs() - self.jitter_ns) / 8;
        self.units = self.units.saturating_add(1);
    }

    /// Begins anew with the time since the last unit.
    fn begin(&mut self, now_ns: i64, since_last_ns: i64) {
        let interval_ns =
            if limits::PREDICTED_INTERVALS_NS.contains(&since_last_ns) { since_last_ns } else { 0 };
        *self = Rhythm { next_ns: now_ns.saturating_add(interval_ns), interval_ns, jitter_ns: 0, units: 0 };
    }

    /// The next unit, where there is a rhythm and it is even enough to rely on.
    pub(super) fn expected(&self) -> Option<Expected> {
        let is_even =
            self.units >= limits::PREDICTION_UNITS_MIN && self.jitter_ns <= limits::PREDICTION_JITTER_NS_MAX;
        is_even.then_some(Expected { at_ns: self.next_ns, jitter_ns: self.jitter_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: i64 = 33_333_333;

    fn taught(times: impl IntoIterator<Item = i64>) -> Rhythm {
        let mut rhythm = Rhythm::default();
        times.into_iter().for_each(|at| rhythm.learn(at));
        rhythm
    }

    fn evenly(units: i64) -> impl Iterator<Item = i64> {
        (0..units).map(|unit| 5_000_000_000 + unit * INTERVAL)
    }

    /// Off by up to `span`, differently each time.
    fn unevenly(units: i64, span: i64) -> impl Iterator<Item = i64> {
        evenly(units).zip(0..).map(move |(at, unit)| at + (unit * 7_919 % 101 - 50) * span / 50)
    }

    #[test]
    fn an_even_camera_is_expected_to_the_microsecond() {
        let expected = taught(evenly(60)).expected().unwrap();
        assert!((expected.at_ns - (5_000_000_000 + 60 * INTERVAL)).abs() < 1_000, "{expected:?}");
        assert!(expected.jitter_ns < 1_000);
    }

    #[test]
    fn a_little_jitter_is_told_and_much_is_no_rhythm() {
        let expected = taught(unevenly(300, 40_000)).expected().unwrap();
        assert!((10_000..60_000).contains(&expected.jitter_ns), "{expected:?}");
        assert_eq!(taught(unevenly(300, 2_000_000)).expected(), None);
    }

    #[test]
    fn few_units_a_gap_or_another_rate_are_no_rhythm_yet() {
        assert_eq!(taught(evenly(5)).expected(), None);
        let mut rhythm = taught(evenly(60));
        rhythm.learn(5_000_000_000 + 100 * INTERVAL);
        assert_eq!(rhythm.expected(), None);
        for unit in 1..40 {
            rhythm.learn(5_000_000_000 + 100 * INTERVAL + unit * 2 * INTERVAL);
        }
        assert!(rhythm.expected().is_some(), "and is learned anew");
        assert_eq!(taught((0..100).map(|unit| unit * 1_000)).expected(), None, "a flat-out camera has none");
        assert_eq!(taught([i64::MIN, i64::MAX, 0, i64::MIN]).expected(), None);
    }
}
