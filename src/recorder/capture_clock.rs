//! PURE: learns from the order of the pictures how a camera stamps B-frames. From the stamps in this order, the shared
//! [`UnitInterval`] learns how fast the camera is.

use super::format::timeline::{UnitTime, plausible};
use crate::base::limits::UNIT_INTERVAL_NS_MAX;
use crate::camera::UnitInterval;
use crate::h264::{AssembledUnit, PictureOrder, PicturePlace};

/// Largest difference of picture order counts between two units without a gap: 16 pictures of two fields.
const ORDER_STEP_MAX: i64 = 32; // local bound: set by the standard

/// What was learned from the units so far. It lives as long as the recorder, so it is known when a recording starts.
#[derive(Debug, Default)]
pub(super) struct CaptureClock {
    order: PictureOrder,
    last: Option<Last>,
    interval: UnitInterval,
    /// Smallest difference of the picture order counts of two units: 2 for most encoders. 0 if it is unknown.
    order_step: i64,
    has_b_frames: bool,
    is_stamped_as_shown: bool,
}

#[derive(Copy, Clone, Debug)]
struct Last {
    captured_ns: i64,
    order: Option<i64>,
}

impl CaptureClock {
    /// Learns from the next unit of the stream, captured at `captured_ns` and read at `now_ns`. Returns its time.
    pub(super) fn on_unit(&mut self, unit: &AssembledUnit<'_>, captured_ns: i64, now_ns: i64) -> UnitTime {
        let place = self.order.place(unit);
        self.learn(place, plausible(captured_ns, now_ns))
    }

    /// Forgets the last unit, because the next unit does not follow it. What was learned stays.
    pub(super) fn restart(&mut self) {
        self.order.restart();
        self.last = None;
    }

    fn learn(&mut self, place: Option<PicturePlace>, captured_ns: i64) -> UnitTime {
        let order = place.map(|place| place.order);
        if let Some(last) = self.last.replace(Last { captured_ns, order }) {
            let since_ns = captured_ns.saturating_sub(last.captured_ns);
            let follows = place.is_some_and(|place| !place.is_idr);
            match order.zip(last.order).map(|(order, last)| order.saturating_sub(last)).filter(|_| follows) {
                Some(step) => self.learn_step(step, since_ns),
                None if !self.is_stamped_as_shown => self.learn_interval(since_ns),
                None => {}
            }
        }
        UnitTime {
            captured_ns,
            order,
            order_step: self.order_step,
            is_idr: place.is_some_and(|place| place.is_idr),
            interval_ns: Some(self.interval.mean_ns()).filter(|ns| *ns > 0),
            has_b_frames: self.has_b_frames,
            is_stamped_as_shown: self.is_stamped_as_shown,
        }
    }

    /// Updates the estimate from a unit whose picture order count is larger by `step` than that of the unit before.
    fn learn_step(&mut self, step: i64, since_ns: i64) {
        if step == 0 || step.saturating_abs() > ORDER_STEP_MAX {
            return self.learn_interval(since_ns);
        }
        if self.order_step == 0 || step.abs() < self.order_step {
            self.order_step = step.abs();
            // The intervals learned with a larger step were those of several pictures.
            self.interval = UnitInterval::default();
        }
        if step < 0 {
            self.has_b_frames = true;
            self.is_stamped_as_shown = since_ns < 0;
        }
        let places = if self.is_stamped_as_shown { step / self.order_step } else { 1 };
        self.learn_interval(since_ns / places);
    }

    fn learn_interval(&mut self, interval_ns: i64) {
        if (1..=UNIT_INTERVAL_NS_MAX).contains(&interval_ns) {
            self.interval.on_step(interval_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn place(order: i64, last: i64) -> Option<PicturePlace> {
        Some(PicturePlace { order, is_idr: order == 0, goes_back: order < last && order > 0 })
    }

    /// Learns from units with these orders and stamps in milliseconds. Returns the time of the last one.
    fn learned(units: &[(i64, i64)]) -> UnitTime {
        let (mut clock, mut last, mut time) = (CaptureClock::default(), 0, UnitTime::default());
        for (order, stamp_ms) in units {
            time = clock.learn(place(*order, last), stamp_ms * MS);
            last = *order;
        }
        time
    }

    #[test]
    fn interval_of_a_slow_camera_is_learned_and_gaps_are_ignored() {
        for interval_ms in [8, 33, 500, 2_000, 20_000] {
            let mut stamps: Vec<_> = (0..9).map(|unit| (2 * unit, unit * interval_ms)).collect();
            stamps.push((18, 8 * interval_ms + 45_000.max(3 * interval_ms)));
            let time = learned(&stamps);
            assert_eq!(
                (time.interval_ns, time.order, time.order_step),
                (Some(interval_ms * MS), Some(18), 2)
            );
        }
        assert_eq!(learned(&[(0, 0)]).interval_ns, None);
        assert_eq!(learned(&[(0, 0), (2, 2_000)]).interval_ns, Some(2_000 * MS), "one interval is enough");
    }

    #[test]
    fn both_ways_to_stamp_b_frames_are_recognized() {
        let orders = [0, 6, 2, 4, 12, 8, 10, 18, 14, 16];
        let as_sent: Vec<_> = orders.iter().zip(0..).map(|(order, sent)| (*order, 40 * sent)).collect();
        let as_shown: Vec<_> = orders.iter().map(|order| (*order, 20 * order)).collect();
        for (units, is_stamped_as_shown) in [(as_sent, false), (as_shown, true)] {
            let time = learned(&units);
            assert_eq!((time.has_b_frames, time.is_stamped_as_shown), (true, is_stamped_as_shown));
            assert_eq!((time.interval_ns, time.order_step), (Some(40 * MS), 2));
        }
        let no_b_frames = learned(&[(0, 0), (2, 40), (4, 79), (6, 78), (8, 160), (0, 200), (2, 240)]);
        assert!(!no_b_frames.has_b_frames, "a stamp that goes back is no B-frame");
    }

    #[test]
    fn restart_keeps_what_was_learned() {
        let mut clock = CaptureClock::default();
        for unit in 0..5 {
            clock.learn(place(2 * unit, 2 * unit - 2), unit * 100 * MS);
        }
        clock.restart();
        assert_eq!(clock.learn(place(2, 0), 0).interval_ns, Some(100 * MS));
    }
}
