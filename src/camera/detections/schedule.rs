//! PURE: learns how often results arrive. From that it decides when the segment is polled, how many results pass, and
//! for how long boxes are shown.

use crate::base::limits::{
    DETECTIONS_BURST, DETECTIONS_EXPIRE_NS_MAX, DETECTIONS_EXPIRE_NS_MIN, DETECTIONS_IDLE_POLL_NS,
    DETECTIONS_PER_S_MAX, DETECTIONS_POLL_NS_MAX, DETECTIONS_POLL_NS_MIN,
};
use crate::base::token_bucket::TokenBucket;
use crate::camera::UnitInterval;

/// The learned interval between results, and the limit of results per second.
#[derive(Clone, Debug)]
pub struct Schedule {
    interval: UnitInterval,
    latest_ns: Option<i64>,
    passed: TokenBucket,
}

impl Default for Schedule {
    /// Returns a schedule that knows no interval yet.
    fn default() -> Schedule {
        let interval_ns = 1_000_000_000 / i64::from(DETECTIONS_PER_S_MAX);
        let passed = TokenBucket::new(interval_ns, DETECTIONS_BURST);
        Schedule { interval: UnitInterval::default(), latest_ns: None, passed }
    }
}

impl Schedule {
    /// Returns true if a result may pass now. If not, the result is not read yet, or refused.
    #[must_use]
    pub fn may_pass(&self, now_ns: i64) -> bool {
        self.passed.has_token(now_ns)
    }

    /// Records a result that arrived at `now_ns`. `is_prompt` must be false if the result may have waited for a slow
    /// poll: its time of arrival then tells nothing about the interval.
    pub fn on_result(&mut self, now_ns: i64, is_prompt: bool) {
        self.passed.take(now_ns);
        let step_ns = self.latest_ns.replace(now_ns).map(|latest_ns| now_ns - latest_ns);
        // Detectors write nothing while they see nothing. A longer pause is such a time, not an interval.
        if let Some(step_ns) = step_ns.filter(|step_ns| (1..DETECTIONS_EXPIRE_NS_MAX).contains(step_ns))
            && is_prompt
        {
            self.interval.on_step(step_ns);
        }
    }

    /// Returns the learned interval between results in nanoseconds, or 0 while it is unknown.
    #[must_use]
    pub fn interval_ns(&self) -> i64 {
        self.interval.mean_ns()
    }

    /// Returns the nanoseconds from one poll to the next. While results are needed, this is a quarter of the interval,
    /// or the longest time if no result has arrived lately.
    #[must_use]
    pub fn poll_after_ns(&self, now_ns: i64, is_needed: bool) -> i64 {
        if !is_needed {
            return DETECTIONS_IDLE_POLL_NS;
        }
        let is_silent = self.latest_ns.is_none_or(|latest_ns| now_ns - latest_ns > DETECTIONS_EXPIRE_NS_MAX);
        if is_silent || self.interval_ns() == 0 {
            return DETECTIONS_POLL_NS_MAX;
        }
        (self.interval_ns() / 4).clamp(DETECTIONS_POLL_NS_MIN, DETECTIONS_POLL_NS_MAX)
    }

    /// Returns the nanoseconds for which the boxes of a result are shown: two intervals.
    #[must_use]
    pub fn expires_ns(&self) -> i64 {
        match self.interval_ns() {
            0 => DETECTIONS_EXPIRE_NS_MAX,
            interval_ns => (2 * interval_ns).clamp(DETECTIONS_EXPIRE_NS_MIN, DETECTIONS_EXPIRE_NS_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn after(arrivals_ns: impl IntoIterator<Item = i64>) -> Schedule {
        let mut schedule = Schedule::default();
        arrivals_ns.into_iter().for_each(|at_ns| schedule.on_result(at_ns, true));
        schedule
    }

    #[test]
    fn polls_and_expiry_follow_the_interval() {
        for (interval_ms, poll_ms, expires_ms) in
            [(1, 4, 200), (33, 8, 200), (120, 30, 240), (400, 50, 800), (1_000, 50, 1_500)]
        {
            let schedule = after((0..100).map(|result| result * interval_ms * MS));
            let now_ns = 99 * interval_ms * MS;
            assert_eq!(schedule.poll_after_ns(now_ns, true) / MS, poll_ms, "{interval_ms}");
            assert_eq!(schedule.expires_ns() / MS, expires_ms, "{interval_ms}");
            assert_eq!(schedule.poll_after_ns(now_ns, false), DETECTIONS_IDLE_POLL_NS);
        }
        assert_eq!(Schedule::default().expires_ns(), DETECTIONS_EXPIRE_NS_MAX);
    }

    #[test]
    fn times_without_anything_to_detect_are_no_interval() {
        let seen = |minute: i64| (0..60).map(move |result| minute * 60_000 * MS + result * 33 * MS);
        let schedule = after((0..20).flat_map(seen));
        assert_eq!(schedule.interval_ns() / MS, 33);
        assert_eq!(schedule.poll_after_ns(20 * 60_000 * MS, true), DETECTIONS_POLL_NS_MAX, "silent");
    }

    #[test]
    fn results_found_by_a_slow_poll_do_not_change_the_interval() {
        let mut schedule = after((0..100).map(|result| result * 33 * MS));
        (0..20).for_each(|poll| schedule.on_result(4_000 * MS + poll * 500 * MS, false));
        assert_eq!(schedule.interval_ns() / MS, 33);
    }

    #[test]
    fn a_thousand_results_a_second_pass_at_the_limit() {
        let mut schedule = Schedule::default();
        let mut passed = 0;
        for ms in 0..10_000 {
            if schedule.may_pass(ms * MS) {
                schedule.on_result(ms * MS, true);
                passed += 1;
            }
        }
        assert!((1_190..=1_210).contains(&passed), "{passed} in ten seconds");
    }
}
