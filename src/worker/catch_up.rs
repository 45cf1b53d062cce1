//! Sends the current GOP to viewers who need it, spread over turns: a joining viewer must not delay the live units of
//! the others, nor overflow a socket. `session` decides which viewer needs it.

use crate::base::clock::Now;
use crate::base::limits;
use crate::metrics::WorkerCounters;
use crate::session::{CatchUpDecision, CatchUpTime, GopAvailability, IdrReason, PacketizedUnit};
use crate::uring::Driver;
use crate::worker::catch_up_pace::CatchUpProgress;
use crate::worker::gop::GopUnit;
use crate::worker::registry::{Registry, SessionSlot};
use crate::worker::source::{NewestUnit, Source};

/// One turn's share of all catch-ups.
pub(super) struct CatchUpTurn<'a, D> {
    pub(super) source: &'a mut Source,
    pub(super) driver: &'a mut D,
    pub(super) counters: &'a WorkerCounters,
    pub(super) now: Now,
    /// True if the camera should be asked for an IDR, because a viewer waits for one or would catch up faster with one.
    pub(super) is_idr_wanted: bool,
}

impl<D: Driver> CatchUpTurn<'_, D> {
    /// Starts catch-ups that viewers need and sends one turn's share, beginning with the viewer at index `first`.
    /// Returns true if a viewer has not caught up yet.
    pub(super) fn run(&mut self, sessions: &mut Registry, first: usize) -> bool {
        let count = sessions.len();
        let mut share = limits::REPLAY_BYTES_PER_TURN;
        let mut is_any_left = false;
        for place in 0..count {
            let Some(slot) = sessions.at((first + place) % count) else { continue };
            self.start(slot);
            if slot.viewer.is_catching_up() {
                self.go_on(slot, &mut share);
                is_any_left |= slot.viewer.is_catching_up();
            } else {
                // The camera's next IDR ended the catch-up early.
                self.counters.replays_cut.add(u64::from(slot.catch_up.take().is_some()));
            }
        }
        is_any_left
    }

    fn start(&mut self, slot: &mut SessionSlot) {
        let Some(reason) = slot.viewer.poll_idr_reason() else { return };
        let now = self.now.instant;
        let next_idr_in = self.source.next_idr_in(self.counters);
        let gop = self.source.current_gop(self.now.monotonic_ns, self.counters).filter(|gop| gop.len() > 0);
        let size = gop.map(|gop| (gop.bytes(), gop.packets(), gop.len()));
        let availability = GopAvailability { has_gop: size.is_some(), next_idr_in };
        match slot.viewer.decide_catch_up(now, reason, availability) {
            CatchUpDecision::Replay => {
                let (bytes, packets, units) = size.unwrap_or_default();
                self.is_idr_wanted |= is_new_idr_better(reason, units);
                slot.viewer.begin_catch_up(now, reason, packets);
                slot.catch_up = Some(CatchUpProgress::new(bytes, now));
                match reason {
                    IdrReason::Join => self.counters.replays_of_joins.add(1),
                    IdrReason::Request => self.counters.replays_of_requests.add(1),
                }
            }
            CatchUpDecision::WaitForIdr => {
                self.counters.idr_waits.add(1);
                self.is_idr_wanted = true;
            }
            CatchUpDecision::AlreadySent => {}
        }
    }

    /// Sends units of one viewer until its token bucket, the turn's share or its in-flight limit is used up.
    fn go_on(&mut self, slot: &mut SessionSlot, share: &mut usize) {
        let (now, counters) = (self.now, self.counters);
        while *share > 0 && self.driver.in_flight(slot.viewer.id()) <= limits::REPLAY_IN_FLIGHT_MAX {
            let Some(progress) = slot.catch_up.as_mut() else { return };
            if !progress.bucket.may_send(now.instant) {
                return;
            }
            let newest = self.source.newest(now);
            let Some(gop) = self.source.current_gop(now.monotonic_ns, counters) else {
                return end(slot, false);
            };
            let Some(unit) = gop.at(progress.next) else { return end(slot, true) };
            let is_newest = progress.next + 1 == gop.len();
            progress.next += 1;
            progress.bucket.take(unit.bytes());
            *share = share.saturating_sub(unit.bytes());
            let time = catch_up_time(&newest, &unit);
            slot.viewer.note_congestion(self.driver.in_flight(slot.viewer.id()));
            let (viewer, mut sink) = slot.with_sink(&mut *self.driver);
            let is_sent =
                viewer.push_catch_up_unit(now.instant, &packetized(&unit), time, is_newest, &mut sink);
            counters.units_replayed.add(u64::from(is_sent));
            slot.deadline = slot.viewer.next_deadline();
            self.driver.flush();
            if is_newest {
                return end(slot, true);
            }
        }
    }
}

/// Returns true if the camera should be asked for an IDR although a GOP of `units` can be replayed. The new IDR ends
/// the replay early. A viewer that requests an IDR may have lost more packets than it knows. For a viewer that joins
/// late in a long GOP, the replay would take too long.
fn is_new_idr_better(reason: IdrReason, units: usize) -> bool {
    reason == IdrReason::Request || units > limits::REPLAY_UNITS_SHORT
}

fn end(slot: &mut SessionSlot, is_complete: bool) {
    slot.catch_up = None;
    slot.viewer.end_catch_up(is_complete);
}

/// Returns the RTP time of a replayed unit: one tick before the next unit's, so that the last one ends at the newest
/// live unit. The browser treats all replayed units as late and shows them at once. The live units that follow are on
/// time.
fn catch_up_time(newest: &NewestUnit, unit: &GopUnit<'_>) -> CatchUpTime {
    let units_before = newest.number.wrapping_sub(unit.info.number);
    let rtp_time_90k = newest.rtp_time_90k.saturating_sub(u64::from(units_before) * limits::REPLAY_STEP_90K);
    CatchUpTime { rtp_time_90k, at: newest.at }
}

fn packetized<'a>(unit: &GopUnit<'a>) -> PacketizedUnit<'a> {
    PacketizedUnit {
        payloads: unit.payloads,
        is_idr: unit.info.is_idr,
        is_reference: unit.info.is_reference,
        rtp_time_90k: 0,
        captured_at_ns: unit.info.captured_at_ns,
        gap_before: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::worker::gop::UnitInfo;

    #[test]
    fn units_sent_again_come_just_before_the_newest_across_the_wrap_of_numbers() {
        let newest = NewestUnit { number: 5, rtp_time_90k: 90_000, at: clock::now().instant };
        let time = |number| {
            let info = UnitInfo { number, is_idr: false, is_reference: true, captured_at_ns: None };
            catch_up_time(&newest, &GopUnit { info, payloads: &[] }).rtp_time_90k
        };
        assert_eq!((time(5), time(4), time(u32::MAX)), (90_000, 89_999, 89_994));
    }
}
