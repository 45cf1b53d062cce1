//! Units of a viewer whose link is slow: they wait in the pacer's queue, or are left out if they would be late.

use std::time::{Duration, Instant};

use super::Viewer;
use crate::session::DatagramSink;
use crate::session::media::PacketizedUnit;
use crate::session::media::catch_up::GopAvailability;

/// A camera that sends its next IDR within this time is not asked for one.
const IDR_SOON: Duration = Duration::from_secs(1);

impl Viewer {
    /// Tells the pacer about a live unit. If the unit is an IDR, units that are still waiting may give way to it.
    #[cold]
    pub(super) fn note_paced_unit(&mut self, unit: &PacketizedUnit<'_>) {
        let Some(pacer) = &mut self.sender.pacer else { return };
        let dropped = pacer.on_unit(self.now, unit.bytes(), unit.info.is_idr);
        self.units_sent = self.units_sent.saturating_sub(dropped);
        self.units_thinned += dropped;
        self.gate.withdraw(dropped);
        self.is_thinning &= !unit.info.is_idr;
    }

    /// Returns true if a unit that the gate has admitted reaches the viewer in time. If not, the gate refuses it.
    #[cold]
    pub(super) fn fits_link(&mut self, unit: &PacketizedUnit<'_>) -> bool {
        let Some(pacer) = &self.sender.pacer else { return true };
        // The units of a replay follow each other when the queue is empty.
        let is_live = !self.is_catching_up();
        let is_fitting = if unit.info.is_idr {
            !is_live || pacer.fits_idr(self.now)
        } else {
            let fits = !is_live || pacer.fits(self.now, unit.bytes(), unit.info.is_reference);
            fits && pacer.has_room(unit.payloads.len())
        };
        if is_fitting {
            return true;
        }
        // Without IDRs at intervals, the camera must be asked for the next one.
        let is_soon = pacer.to_next_idr(self.now).is_some_and(|to_idr| to_idr <= IDR_SOON);
        let needs_request = !unit.info.is_idr && !is_soon;
        self.is_thinning |= unit.info.is_reference;
        self.units_thinned += 1;
        self.sender.is_idr_wanted |= unit.info.is_reference && needs_request;
        self.gate.refuse(unit.info.is_reference);
        false
    }

    /// Puts a unit into the queue of a paced viewer and sends the packets that are due. Returns false if the unit must
    /// leave at once, because the viewer is not paced, or because the unit exceeds the bound of what may wait.
    pub(super) fn queue_unit(
        &mut self,
        unit: &PacketizedUnit<'_>,
        at: Instant,
        sink: &mut impl DatagramSink,
    ) -> bool {
        let is_replayed = self.is_catching_up();
        if self.sender.queue_unit(self.now, unit, at, is_replayed) {
            self.send_paced(sink);
            return true;
        }
        if let Some(pacer) = &mut self.sender.pacer {
            // What waits cannot be sent after a newer unit.
            pacer.clear();
        }
        false
    }

    /// Sends the packets that are due to a paced viewer.
    pub(super) fn send_paced(&mut self, sink: &mut impl DatagramSink) {
        let Some(to) = self.transport.destination() else {
            if let Some(pacer) = &mut self.sender.pacer
                && !pacer.is_idle()
            {
                pacer.clear();
                self.gate.retract();
            }
            return;
        };
        if !self.sender.send_paced(self.now, &to, sink) {
            self.gate.retract();
        }
    }

    /// Returns what a paced viewer's link can carry of the GOP: nothing of a GOP that takes longer than live units may
    /// wait.
    pub(super) fn replayable(&self, available: GopAvailability) -> GopAvailability {
        let Some(pacer) = &self.sender.pacer else { return available };
        let gop = available.gop.filter(|gop| pacer.is_idle() && pacer.fits(self.now, gop.bytes, true));
        GopAvailability { gop, ..available }
    }
}
