//! PURE: estimates when the next unit arrives. There are two estimators, because the two callers need opposite
//! trade-offs:
//!
//! - [`PollSchedule`] always has an estimate. It copes with irregular cameras, stalls and missed units, and estimates
//!   rather too early than too late. The camera wait uses it to choose how long to sleep.
//! - [`ArrivalPredictor`] has a prediction only while units arrive evenly, but that prediction is exact to
//!   microseconds. The predictor restarts at the first gap. A worker uses it to wake up just before the unit arrives.

use std::ops::RangeInclusive;

use crate::base::limits::{
    CAMERA_SILENT_NS, CAMERA_WAIT_MAX_NS, POLL_STEP_NS, PREDICTED_INTERVALS_NS, PREDICTION_JITTER_NS_MAX,
    PREDICTION_UNITS_MIN,
};

/// Decides when to poll a ring. Polling begins just before the expected arrival. While the camera is late, polls become
/// rarer, so that a silent camera costs almost no CPU time.
#[derive(Debug, Default)]
pub(super) struct PollSchedule {
    /// Estimated nanoseconds between units. 0 before the first unit.
    interval_ns: i64,
    arrived_at_ns: i64,
}

/// Range of the estimated interval in nanoseconds: 1 ms to 1 s.
const INTERVALS_NS: RangeInclusive<i64> = 1_000_000..=1_000_000_000; // local bound: clamps the estimate
/// Longest first estimate of the interval in nanoseconds, as for 30 units a second.
const FIRST_INTERVAL_NS_MAX: i64 = *INTERVALS_NS.end() / 30; // local bound: start value

impl PollSchedule {
    /// Records that a poll at `now_ns` found `units` new units.
    pub(super) fn on_units(&mut self, units: u32, now_ns: i64) {
        let seen_ns = (now_ns - self.arrived_at_ns) / i64::from(units.max(1));
        self.arrived_at_ns = now_ns;
        let estimate_ns = match self.interval_ns {
            0 => seen_ns.min(FIRST_INTERVAL_NS_MAX),
            // Several units arrived during one sleep, so the interval is at most their average distance.
            known_ns if units > 1 => seen_ns.min(known_ns),
            // A gap of more than the longest interval is a stall of the camera and does not change the estimate.
            known_ns if seen_ns > *INTERVALS_NS.end() => known_ns,
            known_ns if seen_ns > known_ns => known_ns + (seen_ns - known_ns) / 8,
            known_ns => known_ns - (known_ns - seen_ns) / 4,
        };
        self.interval_ns = estimate_ns.clamp(*INTERVALS_NS.start(), *INTERVALS_NS.end());
    }

    /// Returns the nanoseconds to sleep before the next poll of a ring without wake-ups.
    pub(super) fn sleep_ns(&self, now_ns: i64) -> i64 {
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

    /// Returns the nanoseconds to wait for a wake-up. After this time, the ring is polled even without a wake-up.
    pub(super) fn wakeup_timeout_ns(&self, now_ns: i64) -> i64 {
        if self.is_silent(now_ns) {
            return CAMERA_WAIT_MAX_NS;
        }
        (self.interval_ns + self.interval_ns / 2 + 10 * POLL_STEP_NS).min(CAMERA_WAIT_MAX_NS)
    }

    /// Returns true if no unit has arrived yet, or if none has arrived for [`CAMERA_SILENT_NS`].
    pub(super) fn is_silent(&self, now_ns: i64) -> bool {
        self.interval_ns == 0 || now_ns - self.arrived_at_ns >= CAMERA_SILENT_NS
    }
}

/// Predicts the arrival of the next unit with a phase-locked loop. The loop restarts if a unit differs from its
/// prediction by more than a quarter of the interval.
#[derive(Debug, Default)]
pub struct ArrivalPredictor {
    /// Predicted arrival of the next unit in CLOCK_MONOTONIC nanoseconds.
    next_ns: i64,
    /// Estimated nanoseconds between units. 0 before the interval is known.
    interval_ns: i64,
    /// Mean absolute error of recent predictions in nanoseconds.
    jitter_ns: i64,
    /// Number of units since the last restart of the loop.
    units: u32,
}

/// A predicted arrival of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictedArrival {
    /// The predicted time in CLOCK_MONOTONIC nanoseconds.
    pub at_ns: i64,
    /// Mean absolute error of recent predictions in nanoseconds.
    pub jitter_ns: i64,
}

impl ArrivalPredictor {
    /// Records that a unit arrived at `now_ns`.
    pub fn on_unit(&mut self, now_ns: i64) {
        let error_ns = now_ns.saturating_sub(self.next_ns);
        if error_ns.saturating_abs() > self.interval_ns / 4 {
            self.restart(now_ns, error_ns.saturating_add(self.interval_ns));
            return;
        }
        self.interval_ns += error_ns / 16;
        self.next_ns += self.interval_ns + error_ns / 4;
        self.jitter_ns += (error_ns.abs() - self.jitter_ns) / 8;
        self.units = self.units.saturating_add(1);
    }

    /// Restarts the loop. The time since the last unit becomes the new interval if it is within the predictable range.
    fn restart(&mut self, now_ns: i64, since_last_ns: i64) {
        let interval_ns = if PREDICTED_INTERVALS_NS.contains(&since_last_ns) { since_last_ns } else { 0 };
        let next_ns = now_ns.saturating_add(interval_ns);
        *self = ArrivalPredictor { next_ns, interval_ns, jitter_ns: 0, units: 0 };
    }

    /// Returns the predicted arrival of the next unit, or `None` while units do not arrive evenly.
    #[must_use]
    pub fn next_arrival(&self) -> Option<PredictedArrival> {
        let is_even = self.units >= PREDICTION_UNITS_MIN && self.jitter_ns <= PREDICTION_JITTER_NS_MAX;
        is_even.then_some(PredictedArrival { at_ns: self.next_ns, jitter_ns: self.jitter_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: i64 = 33_333_333;

    const MS: i64 = 1_000_000;

    fn predictor_after(arrivals: impl IntoIterator<Item = i64>) -> ArrivalPredictor {
        let mut predictor = ArrivalPredictor::default();
        arrivals.into_iter().for_each(|at_ns| predictor.on_unit(at_ns));
        predictor
    }

    fn evenly(units: i64) -> impl Iterator<Item = i64> {
        (0..units).map(|unit| 5_000_000_000 + unit * INTERVAL)
    }

    /// Returns the arrivals of units that differ from even arrivals by different amounts, up to `span` nanoseconds.
    fn unevenly(units: i64, span: i64) -> impl Iterator<Item = i64> {
        evenly(units).zip(0..).map(move |(at, unit)| at + (unit * 7_919 % 101 - 50) * span / 50)
    }

    #[test]
    fn even_camera_is_predicted_to_the_microsecond() {
        let predicted = predictor_after(evenly(60)).next_arrival().unwrap();
        assert!((predicted.at_ns - (5_000_000_000 + 60 * INTERVAL)).abs() < 1_000, "{predicted:?}");
        assert!(predicted.jitter_ns < 1_000);
    }

    #[test]
    fn small_jitter_is_reported_and_large_jitter_ends_the_prediction() {
        let predicted = predictor_after(unevenly(300, 40_000)).next_arrival().unwrap();
        assert!((10_000..60_000).contains(&predicted.jitter_ns), "{predicted:?}");
        assert_eq!(predictor_after(unevenly(300, 2_000_000)).next_arrival(), None);
    }

    #[test]
    fn few_units_a_gap_or_a_new_rate_end_the_prediction() {
        assert_eq!(predictor_after(evenly(5)).next_arrival(), None);
        let mut predictor = predictor_after(evenly(60));
        predictor.on_unit(5_000_000_000 + 100 * INTERVAL);
        assert_eq!(predictor.next_arrival(), None);
        for unit in 1..40 {
            predictor.on_unit(5_000_000_000 + 100 * INTERVAL + unit * 2 * INTERVAL);
        }
        assert!(predictor.next_arrival().is_some(), "the new rate is learned");
        assert_eq!(
            predictor_after((0..100).map(|unit| unit * 1_000)).next_arrival(),
            None,
            "a camera at full speed is not predicted"
        );
        assert_eq!(predictor_after([i64::MIN, i64::MAX, 0, i64::MIN]).next_arrival(), None);
    }

    #[test]
    fn polling_finds_units_soon_and_a_silent_camera_costs_few_polls() {
        let mut schedule = PollSchedule::default();
        let (mut now_ns, mut polls, mut late_ns) = (0, 0_u32, Vec::new());
        for unit in 1..=3000_i64 {
            let jitter_ns = unit * 7_919 % 1000 * MS / 1000 - MS / 2;
            let published_ns = unit * 100 * MS / 3 + jitter_ns;
            while now_ns < published_ns {
                now_ns += schedule.sleep_ns(now_ns);
                polls += 1;
            }
            schedule.on_units(1, now_ns);
            late_ns.push(now_ns - published_ns);
        }
        assert!(polls < 3000 * 6, "{polls} polls for 3000 units");
        let late = late_ns.iter().skip(50).filter(|ns| **ns > POLL_STEP_NS).count();
        assert!(late < 30, "{late} of 3000 units found later than one poll step");
        let silent_from_ns = now_ns + 20_000 * MS;
        polls = 0;
        while now_ns < silent_from_ns {
            now_ns += schedule.sleep_ns(now_ns);
            polls += 1;
        }
        assert!(polls < 2000, "{polls} polls in 20 s of silence");
    }

    #[test]
    fn polling_adapts_to_usual_frame_rates() {
        for fps in [5, 10, 25, 60, 120] {
            let mut schedule = PollSchedule::default();
            let (mut now_ns, mut seen) = (0, 0_i64);
            while seen < 400 {
                now_ns += schedule.sleep_ns(now_ns);
                let published = now_ns * fps / (1000 * MS);
                if published > seen {
                    schedule.on_units(u32::try_from(published - seen).unwrap(), now_ns);
                    seen = published;
                }
            }
            let interval_ns = 1000 * MS / fps;
            assert!((schedule.interval_ns - interval_ns).abs() < interval_ns / 8, "{fps} fps: {schedule:?}");
        }
    }
}
