//! Takes the timestamps of a worker's turn for the stage histograms and the flight recorder. Does not influence the
//! worker.

use std::collections::VecDeque;
use std::ops::Range;

use crate::base::clock;
use crate::base::limits;
use crate::metrics::WorkerCounters;
use crate::metrics::stages::{Stage, StageRecorder};
use crate::metrics::trace::{UnitTimes, WriteTimes};

/// Nanoseconds between two publications of the histograms.
const PUBLISH_NS: i64 = 500_000_000;

/// The access unit that the current turn sends.
#[derive(Clone, Copy, Default)]
pub(super) struct TimedUnit {
    /// Sequence number in the ring.
    pub(super) number: u32,
    /// Capture time, CLOCK_MONOTONIC; `None` when the camera's timestamp is not usable.
    pub(super) captured_ns: Option<i64>,
}

/// One worker's histograms and the unit being timed.
#[derive(Default)]
pub(super) struct Timing {
    stages: StageRecorder,
    /// The unit that is being sent, and the time at which it was packetised.
    unit: Option<(TimedUnit, i64)>,
    /// Time at which the unit was encrypted for the previous viewer.
    last_ns: i64,
    /// True if some datagrams are encrypted but not yet submitted to the kernel.
    is_unsubmitted: bool,
    published_ns: i64,
}

impl Timing {
    /// Records that `unit` was packetised now, in a turn that began at `seen_ns`. Without viewers the packetising stage
    /// is not recorded, because the unit may not have been packetised.
    pub(super) fn on_packetised(
        &mut self,
        unit: TimedUnit,
        seen_ns: i64,
        has_viewers: bool,
        counters: &WorkerCounters,
    ) {
        let packetised_ns = clock::monotonic_ns();
        if let Some(captured_ns) = unit.captured_ns {
            self.stages.record(Stage::CapturedToSeen, seen_ns - captured_ns);
            counters.stages.latest_read_ns.set(positive(seen_ns - captured_ns));
        }
        if has_viewers {
            self.stages.record(Stage::SeenToPacketised, packetised_ns - seen_ns);
            counters.stages.latest_process_ns.set(positive(packetised_ns - seen_ns));
        }
        let captured_ns = unit.captured_ns.unwrap_or(seen_ns);
        counters.trace.note_unit(&UnitTimes { number: unit.number, captured_ns, seen_ns, packetised_ns });
        self.unit = Some((unit, packetised_ns));
        self.last_ns = packetised_ns;
    }

    /// Records that the unit was encrypted for `viewer` now. `datagrams` is the range of datagrams that carry the unit,
    /// counted from the start of the session.
    pub(super) fn on_encrypted(&mut self, viewer: u32, datagrams: Range<u64>, sends: &mut VecDeque<Sending>) {
        let (begun_ns, encrypted_ns) = (self.last_ns, clock::monotonic_ns());
        self.last_ns = encrypted_ns;
        let Some((TimedUnit { number, captured_ns }, packetised_ns)) = self.unit else { return };
        if datagrams.is_empty() {
            return;
        }
        self.stages.record(Stage::PacketisedToEncrypted, encrypted_ns - packetised_ns);
        self.is_unsubmitted = true;
        if sends.len() < limits::TIMED_UNITS_MAX {
            sends.reserve_exact(limits::TIMED_UNITS_MAX - sends.len());
            let write = WriteTimes { number, viewer, begun_ns, encrypted_ns, submitted_ns: 0, sent_ns: 0 };
            sends.push_back(Sending { write, captured_ns, packetised_ns, until: datagrams.end });
        }
    }

    /// Records that everything encrypted in this turn is submitted to the kernel now. Called at the end of a turn, just
    /// before the submission.
    pub(super) fn on_submitted<'a>(&mut self, all: impl Iterator<Item = &'a mut VecDeque<Sending>>) {
        if !std::mem::take(&mut self.is_unsubmitted) {
            return;
        }
        let submitted_ns = clock::monotonic_ns();
        for sends in all {
            for sending in sends.iter_mut().rev().take_while(|sending| sending.write.submitted_ns == 0) {
                sending.write.submitted_ns = submitted_ns;
                self.stages.record(Stage::EncryptedToSubmitted, submitted_ns - sending.write.encrypted_ns);
            }
        }
    }

    /// Records that the first `ended` datagrams of this viewer were sent or lost. Sends complete in order, so the
    /// datagrams still in flight are the newest.
    pub(super) fn on_sent(
        &mut self,
        sends: &mut VecDeque<Sending>,
        ended: u64,
        sent_ns: i64,
        counters: &WorkerCounters,
    ) {
        while let Some(Sending { mut write, captured_ns, packetised_ns, .. }) =
            sends.pop_front_if(|first| first.write.submitted_ns != 0 && first.until <= ended)
        {
            write.sent_ns = sent_ns;
            self.stages.record(Stage::SubmittedToSent, sent_ns - write.submitted_ns);
            counters.stages.latest_send_ns.set(positive(sent_ns - packetised_ns));
            if let Some(captured_ns) = captured_ns {
                self.stages.record(Stage::CapturedToSent, sent_ns - captured_ns);
            }
            counters.trace.note_write(&write);
        }
    }

    /// Copies the histograms to `counters`, where a scrape reads them, once every [`PUBLISH_NS`].
    pub(super) fn publish(&mut self, now_ns: i64, counters: &WorkerCounters) {
        if now_ns - self.published_ns >= PUBLISH_NS {
            self.published_ns = now_ns;
            self.stages.publish(&counters.stages);
        }
    }
}

fn positive(span_ns: i64) -> u64 {
    u64::try_from(span_ns).unwrap_or(0)
}

/// A unit that is being sent to one viewer. At most [`limits::TIMED_UNITS_MAX`] units per viewer are timed at once.
#[derive(Clone, Copy)]
pub(super) struct Sending {
    write: WriteTimes,
    captured_ns: Option<i64>,
    packetised_ns: i64,
    /// The unit is completely sent when this many datagrams of the viewer were sent, counted from the start of the
    /// session.
    until: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
    use super::*;
    use crate::base::histogram::LatencySummary;
    use crate::metrics::stages::summarise;

    struct Bench {
        timing: Timing,
        counters: WorkerCounters,
        sends: VecDeque<Sending>,
        /// Number of datagrams handed to the driver so far.
        datagrams: u64,
    }

    impl Bench {
        fn new() -> Self {
            Bench {
                timing: Timing::default(),
                counters: WorkerCounters::default(),
                sends: VecDeque::new(),
                datagrams: 0,
            }
        }

        fn unit(&mut self, number: u32, captured_ns: Option<i64>, datagrams: u64) {
            let seen_ns = clock::monotonic_ns();
            self.timing.on_packetised(TimedUnit { number, captured_ns }, seen_ns, true, &self.counters);
            let before = self.datagrams;
            self.datagrams += datagrams;
            self.timing.on_encrypted(4, before..self.datagrams, &mut self.sends);
        }

        fn sent(&mut self, in_flight: u64) {
            let now_ns = clock::monotonic_ns();
            self.timing.on_sent(&mut self.sends, self.datagrams - in_flight, now_ns, &self.counters);
        }

        fn submitted(&mut self) {
            self.timing.on_submitted(std::iter::once(&mut self.sends));
        }

        fn summary(&mut self, stage: Stage) -> LatencySummary {
            self.timing.publish(i64::MAX, &self.counters);
            self.timing.published_ns = 0;
            summarise(std::iter::once(&self.counters.stages)).swap_remove(stage as usize).1
        }
    }

    #[test]
    fn stage_times_add_up_to_the_total() {
        let mut bench = Bench::new();
        for number in 0..50 {
            bench.unit(number, Some(clock::monotonic_ns() - 3_000_000), 10);
            bench.submitted();
            bench.sent(0);
        }
        let sums: Vec<u64> = Stage::ALL.into_iter().map(|stage| bench.summary(stage).sum_ns()).collect();
        assert_eq!(sums[..5].iter().sum::<u64>(), sums[5], "{sums:?}");
        assert!(Stage::ALL.into_iter().all(|stage| bench.summary(stage).count() == 50));
        let (units, writes) = (bench.counters.trace.units(0), bench.counters.trace.writes(0));
        assert_eq!((units.len(), writes.len()), (50, 50));
        assert!(writes.iter().all(|write| {
            write.begun_ns <= write.encrypted_ns
                && write.encrypted_ns <= write.submitted_ns
                && write.submitted_ns <= write.sent_ns
        }));
    }

    #[test]
    fn unit_is_sent_when_its_last_datagram_is_sent() {
        let mut bench = Bench::new();
        bench.unit(1, None, 10);
        bench.submitted();
        bench.unit(2, None, 10);
        bench.sent(15);
        assert_eq!(bench.summary(Stage::SubmittedToSent).count(), 0);
        bench.sent(10);
        assert_eq!(bench.summary(Stage::SubmittedToSent).count(), 1);
        bench.sent(0);
        assert_eq!(bench.summary(Stage::SubmittedToSent).count(), 1, "the second is not submitted yet");
        bench.submitted();
        bench.sent(0);
        assert_eq!(bench.summary(Stage::SubmittedToSent).count(), 2);
        assert_eq!(bench.summary(Stage::CapturedToSent).count(), 0, "no usable capture time");
    }

    #[test]
    fn viewers_without_datagrams_and_datagrams_without_a_unit_are_not_timed() {
        let mut bench = Bench::new();
        bench.datagrams += 1;
        bench.unit(1, None, 0);
        bench.submitted();
        bench.sent(0);
        assert_eq!(bench.summary(Stage::PacketisedToEncrypted).count(), 0);
        assert!(bench.counters.trace.writes(0).is_empty());
    }

    #[test]
    fn stalled_viewer_has_a_bounded_number_of_timed_units() {
        let mut bench = Bench::new();
        for number in 0..100 {
            bench.unit(number, None, 1);
            bench.submitted();
        }
        bench.sent(0);
        assert_eq!(bench.summary(Stage::SubmittedToSent).count(), limits::TIMED_UNITS_MAX as u64);
    }
}
