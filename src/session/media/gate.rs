//! Which access units one viewer gets: starts at an IDR, drops to the next one when units are missing.
//! A pure state machine: no packets, no time, no I/O.
//!
//! ```text
//!                 IDR                       gap, congestion
//!  WaitingForIdr ─────► Live ◄──────────────────────────────► DroppedToIdr
//!                            IDR (not congested)
//! ```
//!
//! Promise: a unit is sent only if every reference unit since the last sent IDR was sent.

use crate::base::limits;

/// Where a viewer stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Nothing was sent yet; the first unit will be an IDR.
    WaitingForIdr,
    /// Everything since the last IDR was sent.
    Live,
    /// Something was not sent; everything is held back until the next IDR.
    DroppedToIdr,
}

/// What the gate has to know of an access unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GateUnit {
    /// The unit is an IDR: it needs no other unit.
    pub is_idr: bool,
    /// Other units may need this one.
    pub is_reference: bool,
    /// Units before this one were lost before they reached the gate.
    pub gap_before: bool,
}

/// How full the way to the viewer is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Congestion {
    None,
    /// Units that nothing refers to are left out.
    Some,
    /// Nothing is sent; the viewer drops to the next IDR.
    Full,
}

/// The state machine of one viewer.
#[derive(Debug)]
pub struct Gate {
    state: GateState,
    congestion: Congestion,
    drops_to_idr: u64,
    units_dropped: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A gate that waits for its first IDR.
    pub fn new() -> Self {
        Self {
            state: GateState::WaitingForIdr,
            congestion: Congestion::None,
            drops_to_idr: 0,
            units_dropped: 0,
        }
    }

    /// Whether `unit` goes to the viewer. Every unit must be shown to the gate, in order.
    pub fn admit(&mut self, unit: GateUnit) -> bool {
        let lost = unit.gap_before && !unit.is_idr;
        if self.state == GateState::Live && (lost || self.congestion == Congestion::Full) {
            self.drop_to_idr();
        }
        let admitted = match self.state {
            _ if self.congestion == Congestion::Full => false,
            GateState::Live => unit.is_reference || unit.is_idr || self.congestion == Congestion::None,
            GateState::WaitingForIdr | GateState::DroppedToIdr => unit.is_idr,
        };
        if admitted && unit.is_idr {
            self.state = GateState::Live;
        }
        if !admitted && self.state != GateState::WaitingForIdr {
            self.units_dropped += 1;
        }
        admitted
    }

    /// Tells how many datagrams of this viewer the kernel still holds. Above half of
    /// [`limits::VIEWER_IN_FLIGHT_MAX`] non-reference units are left out; above it the viewer drops to
    /// the next IDR.
    pub fn note_in_flight(&mut self, datagrams: u32) {
        self.congestion = if datagrams > limits::VIEWER_IN_FLIGHT_MAX {
            Congestion::Full
        } else if datagrams > limits::VIEWER_IN_FLIGHT_MAX / 2 {
            Congestion::Some
        } else {
            Congestion::None
        };
        if self.congestion == Congestion::Full && self.state == GateState::Live {
            self.drop_to_idr();
        }
    }

    /// A unit that was admitted could not be sent after all: as if it had been lost before the gate.
    pub fn retract(&mut self) {
        self.units_dropped += 1;
        self.drop_to_idr();
    }

    /// Where the viewer stands.
    pub fn state(&self) -> GateState {
        self.state
    }

    /// How often the viewer dropped to the next IDR.
    pub fn drops_to_idr(&self) -> u64 {
        self.drops_to_idr
    }

    /// Units held back since the first one was sent.
    pub fn units_dropped(&self) -> u64 {
        self.units_dropped
    }

    fn drop_to_idr(&mut self) {
        self.state = GateState::DroppedToIdr;
        self.drops_to_idr += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDR: GateUnit = GateUnit { is_idr: true, is_reference: true, gap_before: false };
    const REFERENCE: GateUnit = GateUnit { is_idr: false, is_reference: true, gap_before: false };
    const DISPOSABLE: GateUnit = GateUnit { is_idr: false, is_reference: false, gap_before: false };

    fn after_gap(unit: GateUnit) -> GateUnit {
        GateUnit { gap_before: true, ..unit }
    }

    #[test]
    fn starts_at_an_idr_and_does_not_count_what_came_before() {
        let mut gate = Gate::new();
        assert!(!gate.admit(REFERENCE));
        assert!(!gate.admit(DISPOSABLE));
        assert!(gate.admit(IDR));
        assert!(gate.admit(REFERENCE));
        assert!(gate.admit(DISPOSABLE));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr()), (0, 0));
    }

    #[test]
    fn a_gap_holds_everything_back_until_the_next_idr() {
        let mut gate = Gate::new();
        assert!(gate.admit(IDR));
        assert!(!gate.admit(after_gap(REFERENCE)));
        assert_eq!(gate.state(), GateState::DroppedToIdr);
        assert!(!gate.admit(REFERENCE));
        assert!(gate.admit(after_gap(IDR)));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr()), (2, 1));
    }

    #[test]
    fn a_gap_before_an_idr_costs_nothing() {
        let mut gate = Gate::new();
        assert!(gate.admit(after_gap(IDR)));
        assert!(gate.admit(after_gap(IDR)));
        assert_eq!(gate.drops_to_idr(), 0);
    }

    #[test]
    fn congestion_first_leaves_out_what_nobody_refers_to() {
        let mut gate = Gate::new();
        gate.admit(IDR);
        gate.note_in_flight(limits::VIEWER_IN_FLIGHT_MAX / 2 + 1);
        assert!(!gate.admit(DISPOSABLE));
        assert!(gate.admit(REFERENCE));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr()), (1, 0));
    }

    #[test]
    fn congestion_drops_to_the_first_idr_after_it_is_over() {
        let mut gate = Gate::new();
        gate.admit(IDR);
        gate.note_in_flight(limits::VIEWER_IN_FLIGHT_MAX + 1);
        gate.note_in_flight(limits::VIEWER_IN_FLIGHT_MAX + 1);
        assert!(!gate.admit(REFERENCE));
        assert!(!gate.admit(IDR), "still congested");
        gate.note_in_flight(0);
        assert!(!gate.admit(REFERENCE), "its IDR was not sent");
        assert!(gate.admit(IDR));
        assert_eq!(gate.drops_to_idr(), 1);
    }

    #[test]
    fn a_retracted_unit_counts_as_lost() {
        let mut gate = Gate::new();
        assert!(gate.admit(IDR));
        gate.retract();
        assert!(!gate.admit(REFERENCE));
        assert!(gate.admit(IDR));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Unit(GateUnit),
        InFlight(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let unit = (0..6_u8, any::<bool>(), 0..6_u8).prop_map(|(idr, reference, gap)| {
            let is_idr = idr == 0;
            Step::Unit(GateUnit { is_idr, is_reference: is_idr || reference, gap_before: gap == 0 })
        });
        let full = limits::VIEWER_IN_FLIGHT_MAX;
        let in_flight = prop_oneof![Just(0), Just(full / 2 + 1), Just(full + 1)].prop_map(Step::InFlight);
        proptest::collection::vec(prop_oneof![6 => unit, 1 => in_flight], 0..200)
    }

    proptest! {
        #![proptest_config(support::properties())]

        /// The naive twin is a decoder: it knows what it got, and refuses what it cannot decode.
        #[test]
        fn never_sends_a_unit_whose_reference_was_not_sent(steps in steps()) {
            let mut gate = Gate::new();
            let mut decodable = false;
            for step in steps {
                match step {
                    Step::InFlight(datagrams) => gate.note_in_flight(datagrams),
                    Step::Unit(unit) => {
                        if unit.is_idr { decodable = true } else if unit.gap_before { decodable = false }
                        let sent = gate.admit(unit);
                        prop_assert!(!sent || decodable, "sent {unit:?} after a loss");
                        if !sent && unit.is_reference { decodable = false }
                    }
                }
            }
        }

        /// Without gaps and congestion everything from the first IDR on is sent.
        #[test]
        fn sends_everything_when_nothing_is_wrong(kinds in proptest::collection::vec(0..3_u8, 0..100)) {
            let mut gate = Gate::new();
            let mut started = false;
            for kind in kinds {
                let unit = match kind { 0 => IDR, 1 => REFERENCE, _ => DISPOSABLE };
                started |= unit.is_idr;
                prop_assert_eq!(gate.admit(unit), started);
            }
            prop_assert_eq!(gate.units_dropped(), 0);
        }
    }
}
