//! Where a worker's time goes: takes the timestamps of a turn and hands them to the stage histograms and the
//! flight recorder. May not change what the worker does.

use std::collections::VecDeque;

use crate::base::clock;
use crate::base::limits;
use crate::metrics::WorkerCounters;
use crate::metrics::stages::{Stage, StageRecorder};
use crate::metrics::trace::{UnitTimes, WriteTimes};

/// Nanoseconds between two publications of the histograms.
const PUBLISH_NS: i64 = 500_000_000;

/// The unit a turn works on.
#[derive(Clone, Copy, Default)]
pub(super) struct TimedUnit {
    /// Its number in the ring.
    pub(super) number: u32,
    /// When it was captured, where the camera says so usably.
    pub(super) captured_ns: Option<i64>,
}

/// One worker's histograms and what it is timing.
#[derive(Default)]
pub(super) struct Timing {
    stages: StageRecorder,
    unit: Option<(TimedUnit, UnitTimes)>,
    /// When the last viewer of this unit was done: when the next one begins.
    last_ns: i64,
    /// Something was encrypted that the kernel has not been given yet.
    is_unsubmitted: bool,
    published_ns: i64,
}

impl Timing {
    /// The source left `unit`, found in the turn that began at `seen_ns`. Without viewers it was only looked at.
    pub(super) fn packetised(
        &mut self,
        unit: TimedUnit,
        seen_ns: i64,
        wanted: bool,
        counters: &WorkerCounters,
    ) {
        let packetised_ns = clock::monotonic_ns();
        if let Some(captured_ns) = unit.captured_ns {
            self.stages.record(Stage::CapturedToSeen, seen_ns - captured_ns);
            counters.stages.latest_read_ns.set(positive(seen_ns - captured_ns));
        }
        if wanted {
            self.stages.record(Stage::SeenToPacketised, packetised_ns - seen_ns);
            counters.stages.latest_process_ns.set(positive(packetised_ns - seen_ns));
        }
        let captured_ns = unit.captured_ns.unwrap_or(seen_ns);
        let times = UnitTimes { number: unit.number, captured_ns, seen_ns, packetised_ns };
        counters.trace.note_unit(&times);
        self.unit = Some((unit, times));
        self.last_ns = packetised_ns;
    }

    /// A viewer was given the unit and drained; `sends` knows how many datagrams that made.
    pub(super) fn encrypted(&mut self, viewer: u32, sends: &mut Sends) {
        let (begun_ns, encrypted_ns) = (self.last_ns, clock::monotonic_ns());
        self.last_ns = encrypted_ns;
        let Some((unit, times)) = self.unit else { return };
        if !sends.take_any_handed() {
            return;
        }
        self.stages.record(Stage::PacketisedToEncrypted, encrypted_ns - times.packetised_ns);
        self.is_unsubmitted = true;
        let write =
            WriteTimes { number: unit.number, viewer, begun_ns, encrypted_ns, submitted_ns: 0, sent_ns: 0 };
        sends.push(Sending {
            write,
            captured_ns: unit.captured_ns,
            packetised_ns: times.packetised_ns,
            until: sends.handed,
        });
    }

    /// The turn ends: what it encrypted goes to the kernel now.
    pub(super) fn submitted<'a>(&mut self, all: impl Iterator<Item = &'a mut Sends>) {
        if !std::mem::take(&mut self.is_unsubmitted) {
            return;
        }
        let submitted_ns = clock::monotonic_ns();
        for sends in all {
            for sending in sends.unsubmitted() {
                sending.write.submitted_ns = submitted_ns;
                self.stages.record(Stage::EncryptedToSubmitted, submitted_ns - sending.write.encrypted_ns);
            }
        }
    }

    /// Sends ended; `in_flight` of this viewer's datagrams have not.
    pub(super) fn sent(
        &mut self,
        sends: &mut Sends,
        in_flight: u32,
        sent_ns: i64,
        counters: &WorkerCounters,
    ) {
        while let Some(sending) = sends.take_sent(in_flight) {
            let mut write = sending.write;
            write.sent_ns = sent_ns;
            self.stages.record(Stage::SubmittedToSent, sent_ns - write.submitted_ns);
            counters.stages.latest_send_ns.set(positive(sent_ns - sending.packetised_ns));
            if let Some(captured_ns) = sending.captured_ns {
                self.stages.record(Stage::CapturedToSent, sent_ns - captured_ns);
            }
            counters.trace.note_write(&write);
        }
    }

    /// Lets a scrape see the histograms, now and then.
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

/// A viewer's datagrams on their way, as far as they are timed.
#[derive(Default)]
pub(super) struct Sends {
    /// Datagrams handed to the driver so far.
    handed: u64,
    /// Of them, those whose unit has been noted, or that belonged to none.
    noted: u64,
    sendings: VecDeque<Sending>,
}

#[derive(Clone, Copy)]
struct Sending {
    write: WriteTimes,
    captured_ns: Option<i64>,
    packetised_ns: i64,
    /// Sent when so many datagrams of the viewer have been.
    until: u64,
}

impl Sends {
    /// The driver was given a datagram.
    pub(super) fn hand(&mut self) {
        self.handed += 1;
    }

    /// What was handed so far belongs to no unit.
    pub(super) fn skip(&mut self) {
        self.noted = self.handed;
    }

    fn take_any_handed(&mut self) -> bool {
        std::mem::replace(&mut self.noted, self.handed) < self.handed
    }

    fn push(&mut self, sending: Sending) {
        if self.sendings.len() < limits::TIMED_UNITS_MAX {
            self.sendings.reserve_exact(limits::TIMED_UNITS_MAX - self.sendings.len());
            self.sendings.push_back(sending);
        }
    }

    fn unsubmitted(&mut self) -> impl Iterator<Item = &mut Sending> {
        self.sendings.iter_mut().rev().take_while(|sending| sending.write.submitted_ns == 0)
    }

    /// The oldest unit all of whose datagrams are sent or lost: sends end in order, so what is in flight is the
    /// newest.
    fn take_sent(&mut self, in_flight: u32) -> Option<Sending> {
        let ended = self.handed.saturating_sub(u64::from(in_flight));
        let first = self.sendings.front()?;
        if first.write.submitted_ns == 0 || first.until > ended {
            return None;
        }
        self.sendings.pop_front()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
    use super::*;
    use crate::metrics::stages::{StageSummary, summarise};

    struct Bench {
        timing: Timing,
        counters: WorkerCounters,
        sends: Sends,
    }

    impl Bench {
        fn new() -> Self {
            Bench { timing: Timing::default(), counters: WorkerCounters::default(), sends: Sends::default() }
        }

        fn unit(&mut self, number: u32, captured_ns: Option<i64>, datagrams: u32) {
            let seen_ns = clock::monotonic_ns();
            self.timing.packetised(TimedUnit { number, captured_ns }, seen_ns, true, &self.counters);
            self.sends.skip();
            (0..datagrams).for_each(|_| self.sends.hand());
            self.timing.encrypted(4, &mut self.sends);
        }

        fn sent(&mut self, in_flight: u32) {
            let now_ns = clock::monotonic_ns();
            self.timing.sent(&mut self.sends, in_flight, now_ns, &self.counters);
        }

        fn submitted(&mut self) {
            self.timing.submitted(std::iter::once(&mut self.sends));
        }

        fn summary(&mut self, stage: Stage) -> StageSummary {
            self.timing.publish(i64::MAX, &self.counters);
            self.timing.published_ns = 0;
            summarise(std::iter::once(&self.counters.stages)).swap_remove(stage as usize)
        }
    }

    #[test]
    fn the_stages_add_up_to_the_whole_way() {
        let mut bench = Bench::new();
        for number in 0..50 {
            bench.unit(number, Some(clock::monotonic_ns() - 3_000_000), 10);
            bench.submitted();
            bench.sent(0);
        }
        let sums: Vec<u64> =
            Stage::ALL.into_iter().map(|stage| bench.summary(stage).latencies.sum_ns()).collect();
        assert_eq!(sums[..5].iter().sum::<u64>(), sums[5], "{sums:?}");
        assert!(Stage::ALL.into_iter().all(|stage| bench.summary(stage).latencies.count() == 50));
        let (units, writes) = (bench.counters.trace.units(0), bench.counters.trace.writes(0));
        assert_eq!((units.len(), writes.len()), (50, 50));
        assert!(writes.iter().all(|write| {
            write.begun_ns <= write.encrypted_ns
                && write.encrypted_ns <= write.submitted_ns
                && write.submitted_ns <= write.sent_ns
        }));
    }

    #[test]
    fn a_unit_is_sent_when_its_own_last_datagram_is() {
        let mut bench = Bench::new();
        bench.unit(1, None, 10);
        bench.submitted();
        bench.unit(2, None, 10);
        bench.sent(15);
        assert_eq!(bench.summary(Stage::SubmittedToSent).latencies.count(), 0);
        bench.sent(10);
        assert_eq!(bench.summary(Stage::SubmittedToSent).latencies.count(), 1);
        bench.sent(0);
        assert_eq!(
            bench.summary(Stage::SubmittedToSent).latencies.count(),
            1,
            "the second is not submitted yet"
        );
        bench.submitted();
        bench.sent(0);
        assert_eq!(bench.summary(Stage::SubmittedToSent).latencies.count(), 2);
        assert_eq!(bench.summary(Stage::CapturedToSent).latencies.count(), 0, "no usable capture time");
    }

    #[test]
    fn a_viewer_that_got_nothing_and_datagrams_of_no_unit_are_not_timed() {
        let mut bench = Bench::new();
        bench.sends.hand();
        bench.unit(1, None, 0);
        bench.submitted();
        bench.sent(0);
        assert_eq!(bench.summary(Stage::PacketisedToEncrypted).latencies.count(), 0);
        assert!(bench.counters.trace.writes(0).is_empty());
    }

    #[test]
    fn a_viewer_that_stalls_is_timed_within_bounds() {
        let mut bench = Bench::new();
        for number in 0..100 {
            bench.unit(number, None, 1);
            bench.submitted();
        }
        bench.sent(0);
        assert_eq!(bench.summary(Stage::SubmittedToSent).latencies.count(), limits::TIMED_UNITS_MAX as u64);
    }
}
