//! Looks at the newest GOP a second time: keeps what the ring is about to lose, and fetches the rest when a viewer
//! needs it. While the ring holds the whole GOP nothing is kept. May not touch a session.

use std::sync::Arc;

use crate::camera::{Camera, CameraStatus, Cursor, Next, UnitView};
use crate::h264::{Assembler, Packetizer, UnitError};
use crate::limits;
use crate::metrics::WorkerCounters;
use crate::worker::gop::{Gop, KeptUnit};

/// The second look. Its packetiser is its own, so that what is kept does not cost the live one its buffers.
pub(super) struct Lookback {
    camera: Camera,
    gop: Gop,
    assembler: Assembler,
    packetizer: Packetizer,
    payloads: Vec<Arc<[u8]>>,
    /// Units behind the live cursor that the ring is trusted to hold.
    reach: u32,
}

/// Where the live cursor stands.
#[derive(Clone, Copy)]
pub(super) struct Live<'a> {
    pub(super) cursor: &'a Cursor,
    /// The unit it reads next.
    pub(super) position: u32,
    pub(super) now_ns: i64,
}

impl Lookback {
    pub(super) fn new(camera: Camera) -> Self {
        Lookback {
            camera,
            gop: Gop::default(),
            assembler: Assembler::new(),
            packetizer: Packetizer::new(limits::RTP_PAYLOAD_BYTES_MAX),
            payloads: Vec::new(),
            reach: 0,
        }
    }

    /// The live side took an IDR as unit `number`; `assembler` has just assembled it.
    pub(super) fn begin(&mut self, number: u32, assembler: &Assembler) {
        self.gop.begin(number);
        self.assembler.take_over(assembler);
        self.reach = match self.camera.status() {
            CameraStatus::Attached { layout, .. } => reach(layout.slot_count()),
            CameraStatus::Away { .. } => 0,
        };
    }

    /// The live side lost a unit.
    pub(super) fn lose(&mut self) {
        self.gop.lose();
    }

    /// Keeps what the ring is about to lose. Called after every unit of the live side.
    pub(super) fn keep_up(&mut self, live: Live<'_>, counters: &WorkerCounters) {
        while let Some(next) = self.gop.next()
            && live.position.wrapping_sub(next) > self.reach
        {
            self.look_at(next, live, counters);
        }
        counters.gop_bytes.set(self.gop.bytes() as u64);
    }

    /// The GOP, everything up to the live side's newest unit fetched; `None` where it cannot be given.
    pub(super) fn fetch(&mut self, live: Live<'_>, counters: &WorkerCounters) -> Option<&Gop> {
        while let Some(next) = self.gop.next()
            && next != live.position
        {
            self.look_at(next, live, counters);
        }
        counters.gop_bytes.set(self.gop.bytes() as u64);
        self.gop.next().map(|_| &self.gop)
    }

    /// What is kept now.
    pub(super) fn gop(&self) -> &Gop {
        &self.gop
    }

    /// Moves on by exactly one unit, or gives the GOP up.
    fn look_at(&mut self, number: u32, live: Live<'_>, counters: &WorkerCounters) {
        let back = live.position.wrapping_sub(number);
        let found = live.cursor.units_back(back).map(|mut cursor| cursor.next(live.now_ns));
        match found {
            Some(Next::Unit(view)) if view.sequence == number => self.look(&view, counters),
            _ => self.gop.lose(),
        }
    }

    fn look(&mut self, view: &UnitView, counters: &WorkerCounters) {
        self.payloads.clear();
        let kind = match self.assembler.assemble(&view.bytes) {
            Ok(unit) => {
                self.packetizer.packetize(&unit, &mut self.payloads);
                Some((unit.is_idr(), unit.is_reference()))
            }
            Err(UnitError::NoSlice) => None,
            Err(_) => return self.gop.lose(),
        };
        if !view.is_intact() {
            return self.gop.lose();
        }
        match kind {
            None => self.gop.pass(),
            Some((is_idr, is_reference)) => {
                let (number, captured_at_ns) = (view.sequence, view.captured_at_ns);
                let unit = KeptUnit { number, is_idr, is_reference, captured_at_ns };
                if !self.gop.keep(unit, &self.payloads) {
                    counters.gops_too_large.add(1);
                }
            }
        }
        self.payloads.clear();
    }
}

/// Units behind the newest that a ring of `slots` is trusted to hold while the worker may be held up; 0 where the
/// ring is too short for that.
fn reach(slots: u32) -> u32 {
    slots.saturating_sub(2 + limits::GOP_MARGIN_UNITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_ring_is_trusted_with_nothing() {
        assert_eq!((reach(30), reach(6), reach(1)), (24, 0, 0));
    }
}
