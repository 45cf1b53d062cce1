//! Sends the current GOP to viewers that need it. The work is spread over several turns: a joining viewer must neither
//! delay the live units of the others nor overflow a socket. `session` decides which viewer needs the GOP.

use crate::base::clock::Now;
use crate::base::limits;
use crate::metrics::WorkerCounters;
use crate::session::{CatchUpDecision, GopAvailability, IdrReason, PacketizedUnit, UnitInfo};
use crate::uring::Driver;
use crate::worker::gop::Gop;
use crate::worker::registry::{Registry, SessionSlot, ViewerSink};
use crate::worker::source::Source;

/// Everything that the catch-ups of all viewers need in one turn.
pub(super) struct CatchUpTurn<'a, D> {
    pub(super) source: &'a mut Source,
    pub(super) driver: &'a mut D,
    pub(super) counters: &'a WorkerCounters,
    pub(super) now: Now,
    /// True if the camera should be asked for an IDR, because a viewer waits for one or would catch up faster with one.
    pub(super) is_idr_wanted: bool,
}

impl<D: Driver> CatchUpTurn<'_, D> {
    /// Starts the catch-ups that viewers need, and sends about [`limits::REPLAY_BYTES_PER_TURN`] bytes, beginning with
    /// the viewer at index `first`. Returns true if a viewer has not caught up yet.
    pub(super) fn run(&mut self, sessions: &mut Registry, first: usize) -> bool {
        let mut share = limits::REPLAY_BYTES_PER_TURN;
        let mut is_any_left = false;
        let count = sessions.slots.len();
        for place in 0..count {
            let Some(slot) = sessions.slots.get_mut((first + place) % count) else { continue };
            self.start(slot);
            if slot.needs_idr {
                let address = slot.viewer.remote_ip();
                let budgets = &mut sessions.idr_budgets;
                let is_allowed = budgets.take(&mut slot.idr_budget, address, self.now.monotonic_ns);
                slot.needs_idr = !is_allowed;
                self.is_idr_wanted |= is_allowed;
            }
            if slot.viewer.is_catching_up() {
                self.go_on(slot, &mut share);
                is_any_left |= slot.viewer.is_catching_up();
            }
        }
        is_any_left
    }

    fn start(&mut self, slot: &mut SessionSlot) {
        let Some(reason) = slot.viewer.poll_idr_reason() else { return };
        let now = self.now.instant;
        let next_idr_in = self.source.next_idr_in(self.counters);
        let gop = self.source.current_gop(self.now.monotonic_ns, self.counters);
        let begins_at_recovery_point = gop.is_some_and(|gop| gop.begins_at_recovery_point);
        let gop = gop.map(Gop::size).filter(|gop| gop.units > 0);
        let available = GopAvailability { gop, begins_at_recovery_point, next_idr_in };
        match slot.viewer.decide_catch_up(now, reason, available) {
            CatchUpDecision::Replay => {
                slot.needs_idr |= is_new_idr_better(reason, gop.map_or(0, |gop| gop.units));
                match reason {
                    IdrReason::Join => self.counters.replays_of_joins.add(1),
                    IdrReason::Request => self.counters.replays_of_requests.add(1),
                }
            }
            CatchUpDecision::WaitForIdr => {
                self.counters.idr_waits.add(1);
                slot.needs_idr = true;
                if reason == IdrReason::Join {
                    self.log_wait(slot.viewer.id());
                }
            }
            CatchUpDecision::AlreadySent | CatchUpDecision::StillWaiting => {}
        }
    }

    fn log_wait(&self, viewer: u32) {
        let last_ns = i64::try_from(self.counters.last_idr_at_ns.get()).unwrap_or(0);
        let age_s = (self.now.monotonic_ns - last_ns) / 1_000_000_000;
        match last_ns {
            0 => log::info!("viewer {viewer}: waiting for the camera's next IDR; none has arrived yet"),
            _ => log::info!("viewer {viewer}: waiting for the camera's next IDR, last one {age_s} s ago"),
        }
    }

    /// Sends units to one viewer until its token bucket is empty, the turn's `share` is used up, or its in-flight limit
    /// is reached.
    fn go_on(&mut self, slot: &mut SessionSlot, share: &mut usize) {
        let (now, counters) = (self.now, self.counters);
        while *share > 0 && self.driver.in_flight(slot.viewer.id()) <= limits::REPLAY_IN_FLIGHT_MAX {
            let Some(next) = slot.viewer.poll_catch_up_unit(now.instant) else { return };
            let (newest, taken_at) = self.source.newest(now);
            let Some(gop) = self.source.current_gop(now.monotonic_ns, counters) else {
                return slot.viewer.end_catch_up(false);
            };
            let Some(unit) = gop.at(next) else { return slot.viewer.end_catch_up(true) };
            let is_newest = next + 1 == gop.len();
            let unit = PacketizedUnit { info: replayed(unit.info, &newest), ..unit };
            *share = share.saturating_sub(unit.bytes());
            slot.viewer.note_congestion(self.driver.in_flight(slot.viewer.id()));
            let sink = &mut ViewerSink { driver: &mut *self.driver, viewer: slot.viewer.id() };
            let is_sent = slot.viewer.push_catch_up_unit(now.instant, &unit, taken_at, is_newest, sink);
            counters.units_replayed.add(u64::from(is_sent));
            slot.deadline = slot.viewer.next_deadline();
            self.driver.flush();
            if is_newest {
                return slot.viewer.end_catch_up(true);
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

/// Returns the properties of a kept unit for its replay. Its RTP time is one tick before that of the next unit, so that
/// the newest unit keeps its own time. The browser treats all replayed units as late and shows them at once. The live
/// units that follow are on time.
fn replayed(info: UnitInfo, newest: &UnitInfo) -> UnitInfo {
    let units_before = newest.number.wrapping_sub(info.number);
    let rtp_time_90k = newest.rtp_time_90k.saturating_sub(u64::from(units_before) * limits::REPLAY_STEP_90K);
    UnitInfo { rtp_time_90k, gap_before: false, ..info }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_sent_again_come_just_before_the_newest_across_the_wrap_of_numbers() {
        let newest = UnitInfo { number: 5, rtp_time_90k: 90_000, ..UnitInfo::default() };
        let time = |number| replayed(UnitInfo { number, ..newest }, &newest).rtp_time_90k;
        assert_eq!((time(5), time(4), time(u32::MAX)), (90_000, 89_999, 89_994));
    }
}
