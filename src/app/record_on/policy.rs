//! PURE: decides when an event begins and ends. An event is a time in which the detector sees something that
//! `--record-on` names. Time is an argument.
//!
//! ```text
//!   results      . c . c c c . . c . . . . . . . . . . . .      c: a result with a cat
//!                    └──────────┘
//!                  k of n: begins    last sight   └─ post-roll ─┘ ends      then no new event during the cool-down
//! ```

use std::collections::VecDeque;

use crate::base::limits;
use crate::camera::detections::{DetectedBox, Detections};
use crate::config::Trigger;
use crate::recorder::Event;

/// When events begin and end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EventRules {
    /// What begins an event and keeps it going.
    pub(super) triggers: Vec<Trigger>,
    /// An event begins if so many of the last `results.1` results show the same trigger.
    pub(super) results: (u8, u8),
    /// An event ends when its triggers were not seen for so many nanoseconds.
    pub(super) post_roll_ns: i64,
    /// An event ends after so many nanoseconds even if its triggers are still seen.
    pub(super) longest_ns: i64,
    /// No event begins for so many nanoseconds after the end of the last one.
    pub(super) cooldown_ns: i64,
}

/// An event that goes on.
#[derive(Clone, Debug, PartialEq)]
struct Running {
    event: Event,
    /// When the first sight was read, in nanoseconds of `CLOCK_MONOTONIC`.
    began_ns: i64,
    /// When the last sight was read.
    seen_ns: i64,
}

/// What to do after a result, or as time passes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// An event has begun, whose first sight was read at `began_ns`.
    Begin { event: Event, began_ns: i64 },
    /// The event has ended.
    End(Event),
}

/// Finds events in the results of the detector.
#[derive(Debug)]
pub(super) struct EventPolicy {
    rules: EventRules,
    /// The newest results, at most `rules.results.1`: when each was read, and its best sight per trigger.
    newest: VecDeque<Seen>,
    running: Option<Running>,
    ended_ns: Option<i64>,
}

#[derive(Debug)]
struct Seen {
    at_ns: i64,
    stamp_ns: Option<i64>,
    sights: Vec<DetectedBox>,
}

impl EventPolicy {
    /// Returns a policy that has seen nothing yet.
    #[must_use]
    pub(super) fn new(rules: EventRules) -> EventPolicy {
        EventPolicy { rules, newest: VecDeque::new(), running: None, ended_ns: None }
    }

    /// Adds a result of the detector that was read at `now_ns`. `may_begin` is false during quiet hours: a running event
    /// goes on, but none begins.
    pub(super) fn on_result(&mut self, now_ns: i64, result: &Detections, may_begin: bool) -> Option<Change> {
        let sights = self.sights(result);
        if let Some(running) = &mut self.running {
            for sight in sights {
                running.add(now_ns, result.captured_at_ns, sight);
            }
            return None;
        }
        let (needed, window) = self.rules.results;
        // Results that are far apart do not confirm each other. Many detectors write only when they see something.
        self.newest.retain(|seen| now_ns.saturating_sub(seen.at_ns) <= limits::EVENT_RESULTS_NS_MAX);
        while self.newest.len() >= usize::from(window.max(1)) {
            self.newest.pop_front();
        }
        self.newest.push_back(Seen { at_ns: now_ns, stamp_ns: result.captured_at_ns, sights });
        let is_cooling =
            self.ended_ns.is_some_and(|ended| now_ns.saturating_sub(ended) < self.rules.cooldown_ns);
        if !may_begin || is_cooling {
            return None;
        }
        let is_confirmed = |label: &str| {
            let shows = |seen: &&Seen| seen.sights.iter().any(|sight| sight.label == label);
            self.newest.iter().filter(shows).count() >= usize::from(needed.max(1))
        };
        let label =
            self.rules.triggers.iter().map(|trigger| &trigger.label).find(|label| is_confirmed(label))?;
        let mut running: Option<Running> = None;
        for seen in &self.newest {
            for sight in &seen.sights {
                match &mut running {
                    None if sight.label == *label => {
                        running = Some(Running::new(seen.at_ns, seen.stamp_ns, sight.clone()));
                    }
                    None => {}
                    Some(running) => running.add(seen.at_ns, seen.stamp_ns, sight.clone()),
                }
            }
        }
        self.newest.clear();
        self.running.clone_from(&running);
        running.map(|Running { event, began_ns, .. }| Change::Begin { event, began_ns })
    }

    /// Must be called at [`EventPolicy::deadline_ns`].
    pub(super) fn on_time(&mut self, now_ns: i64) -> Option<Change> {
        if self.deadline_ns()? > now_ns {
            return None;
        }
        self.ended_ns = Some(now_ns);
        self.end().map(Change::End)
    }

    /// Ends the event, because the server stops.
    pub(super) fn end(&mut self) -> Option<Event> {
        self.running.take().map(|running| running.event)
    }

    /// Returns when the event ends if nothing more is seen, in nanoseconds of `CLOCK_MONOTONIC`. Returns `None` if there
    /// is no event.
    #[must_use]
    pub(super) fn deadline_ns(&self) -> Option<i64> {
        let running = self.running.as_ref()?;
        let unseen = running.seen_ns.saturating_add(self.rules.post_roll_ns);
        Some(unseen.min(running.began_ns.saturating_add(self.rules.longest_ns)))
    }

    /// Returns the boxes that match a trigger, the best one of each trigger.
    fn sights(&self, result: &Detections) -> Vec<DetectedBox> {
        let best = |trigger: &Trigger| {
            let matching = result
                .boxes
                .iter()
                .filter(|found| found.label == trigger.label && found.confidence >= trigger.confidence());
            matching.max_by(|a, b| a.confidence.total_cmp(&b.confidence)).cloned()
        };
        self.rules.triggers.iter().filter_map(best).collect()
    }
}

impl Running {
    fn new(now_ns: i64, stamp_ns: Option<i64>, sight: DetectedBox) -> Running {
        let event = Event {
            label: sight.label.clone(),
            labels: vec![sight.label.clone()],
            first_stamp_ns: stamp_ns,
            last_stamp_ns: stamp_ns,
            best: sight,
            best_stamp_ns: stamp_ns,
        };
        Running { event, began_ns: now_ns, seen_ns: now_ns }
    }

    fn add(&mut self, now_ns: i64, stamp_ns: Option<i64>, sight: DetectedBox) {
        let event = &mut self.event;
        self.seen_ns = now_ns;
        event.last_stamp_ns = stamp_ns.or(event.last_stamp_ns);
        if !event.labels.contains(&sight.label) {
            event.labels.push(sight.label.clone());
        }
        if sight.confidence > event.best.confidence {
            (event.best, event.best_stamp_ns) = (sight, stamp_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn policy() -> EventPolicy {
        let trigger =
            |label: &str, permille| Trigger { label: label.to_owned(), confidence_permille: permille };
        EventPolicy::new(EventRules {
            triggers: vec![trigger("cat", 500), trigger("dog", 800)],
            results: (2, 3),
            post_roll_ns: 5 * SECOND,
            longest_ns: 60 * SECOND,
            cooldown_ns: 10 * SECOND,
        })
    }

    /// Returns a result with these classes and confidences, whose picture was taken 30 ms before.
    fn result(now_ns: i64, found: &[(&str, f32)]) -> Detections {
        let boxes = found.iter().map(|(label, confidence)| DetectedBox {
            label: (*label).to_owned(),
            confidence: *confidence,
            x: 0,
            y: 0,
            width: 10,
            height: 10,
        });
        Detections {
            captured_at_ns: Some(now_ns - 30_000_000),
            boxes: boxes.collect(),
            ..Detections::default()
        }
    }

    fn see(policy: &mut EventPolicy, now_ns: i64, found: &[(&str, f32)]) -> Option<Change> {
        policy.on_result(now_ns, &result(now_ns, found), true)
    }

    #[test]
    fn event_begins_when_enough_of_the_last_results_show_the_same_trigger() {
        let mut policy = policy();
        let cat = [("cat", 0.6)];
        let sights: [(&[(&str, f32)], bool); 7] = [
            (&cat, false),
            (&[("dog", 0.9)], false),
            (&[], false),
            (&[("cat", 0.4), ("chair", 1.0)], false),
            (&cat, false),
            (&[("dog", 0.9)], false),
            (&cat, true),
        ];
        for (index, (found, begins)) in sights.into_iter().enumerate() {
            let now_ns = (10 + index as i64) * SECOND / 10;
            let change = see(&mut policy, now_ns, found);
            assert_eq!(change.is_some(), begins, "result {index}");
            let Some(Change::Begin { event, .. }) = change else { continue };
            assert_eq!((event.label.as_str(), event.labels.len()), ("cat", 2));
            assert_eq!(event.first_stamp_ns, Some(now_ns - 2 * SECOND / 10 - 30_000_000));
            assert_eq!(event.best.label, "dog");
        }
    }

    #[test]
    fn results_that_are_far_apart_do_not_confirm_each_other() {
        let mut policy = policy();
        for minute in 1..20 {
            assert_eq!(see(&mut policy, 60 * minute * SECOND, &[("cat", 0.9)]), None);
        }
    }

    #[test]
    fn event_lasts_until_its_triggers_are_gone_for_the_post_roll() {
        let mut policy = policy();
        assert_eq!(policy.deadline_ns(), None);
        for tenth in 1..=100 {
            // After the event has begun, any trigger keeps it going, and other classes do not.
            let label = if tenth < 50 { "cat" } else { "dog" };
            see(&mut policy, tenth * SECOND / 10, &[(label, 0.9), ("chair", 0.9)]);
        }
        see(&mut policy, 14 * SECOND, &[("chair", 0.9)]);
        assert_eq!(policy.deadline_ns(), Some(15 * SECOND));
        assert_eq!(policy.on_time(15 * SECOND - 1), None);
        let Some(Change::End(event)) = policy.on_time(15 * SECOND) else { panic!("the event goes on") };
        assert_eq!(event.labels, ["cat", "dog"]);
        assert_eq!(event.last_stamp_ns, Some(10 * SECOND - 30_000_000));
        // Then nothing begins during the cool-down.
        for tenth in 151..250 {
            assert_eq!(see(&mut policy, tenth * SECOND / 10, &[("cat", 0.9)]), None);
        }
        assert!(see(&mut policy, 25 * SECOND, &[("cat", 0.9)]).is_some());
    }

    #[test]
    fn event_without_an_end_is_cut() {
        let mut policy = policy();
        let mut lengths = Vec::new();
        let mut start_ns = 0;
        for tenth in 1..3_000 {
            let now_ns = tenth * SECOND / 10;
            if let Some(Change::End(event)) = policy.on_time(now_ns) {
                assert_eq!(event.first_stamp_ns, Some(start_ns - 30_000_000));
                lengths.push((now_ns - start_ns) / SECOND);
            }
            if let Some(Change::Begin { began_ns, .. }) = see(&mut policy, now_ns, &[("cat", 0.9)]) {
                start_ns = began_ns;
            }
        }
        assert_eq!(lengths, [60, 60, 60, 60]);
    }

    #[test]
    fn nothing_begins_in_quiet_hours_but_an_event_goes_on() {
        let mut policy = policy();
        let cat = |now_ns| result(now_ns, &[("cat", 0.9)]);
        for tenth in 1..20 {
            assert_eq!(policy.on_result(tenth * SECOND / 10, &cat(tenth * SECOND / 10), false), None);
        }
        assert!(see(&mut policy, 2 * SECOND, &[("cat", 0.9)]).is_some());
        policy.on_result(6 * SECOND, &cat(6 * SECOND), false);
        assert_eq!(policy.deadline_ns(), Some(11 * SECOND));
    }

    proptest! {
        #[test]
        fn sights_of_an_event_never_leave_it_longer_than_allowed(
            steps in prop::collection::vec((0_i64..4 * SECOND, prop::option::of(0.0_f32..1.0)), 1..200),
        ) {
            let (mut policy, mut now_ns, mut running) = (policy(), 0, None);
            for (step_ns, confidence) in steps {
                now_ns += step_ns;
                let found: Vec<(&str, f32)> = confidence.map(|confidence| ("cat", confidence)).into_iter().collect();
                if let Some(Change::End(event)) = policy.on_time(now_ns) {
                    prop_assert_eq!(running.take(), event.first_stamp_ns);
                    prop_assert!(event.best.confidence >= 0.5);
                    let lasted_ns = event.last_stamp_ns.zip(event.first_stamp_ns).map(|(last, first)| last - first);
                    prop_assert!(lasted_ns.is_some_and(|ns| (0..=60 * SECOND).contains(&ns)));
                }
                if let Some(Change::Begin { event, .. }) = see(&mut policy, now_ns, &found) {
                    prop_assert!(running.is_none());
                    running = event.first_stamp_ns;
                }
                prop_assert_eq!(policy.deadline_ns().is_some(), running.is_some());
            }
        }
    }
}
