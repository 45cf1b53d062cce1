//! Decides which access units one viewer gets. The first unit is an IDR or a recovery point; after a missing unit the
//! viewer gets nothing until the next one. This is a pure state machine without packets, time or I/O.
//!
//! ```text
//!                 IDR                       gap, congestion
//!  WaitingForIdr ─────► Live ◄──────────────────────────────► DroppedToIdr
//!                            IDR (not congested)
//! ```
//!
//! Where the table says IDR, a recovery point counts too: a decoder that starts there shows correct pictures soon.
//!
//! Invariant: a unit is sent only if every reference unit since the last sent IDR or recovery point was sent.

use crate::base::limits;
use crate::metrics::status::GateState;

/// The properties of an access unit that the gate needs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GateUnit {
    /// True if the unit is an IDR, which can be decoded without any other unit.
    pub is_idr: bool,
    /// True if decoding can start at the unit although it is not an IDR.
    pub is_recovery_point: bool,
    /// True if other units may refer to this unit.
    pub is_reference: bool,
    /// True if units before this unit were lost before they reached the gate.
    pub gap_before: bool,
}

/// Congestion of the viewer's link, judged by how many of the viewer's datagrams wait in the kernel.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Congestion {
    None,
    /// Non-reference units are skipped.
    Some,
    /// Nothing is sent; the viewer drops to the next IDR.
    Full,
}

/// Decides for each access unit if one viewer gets it. The top of this file shows the states.
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
    /// Creates a gate that waits for its first IDR.
    pub fn new() -> Self {
        Self {
            state: GateState::WaitingForIdr,
            congestion: Congestion::None,
            drops_to_idr: 0,
            units_dropped: 0,
        }
    }

    /// Returns true if `unit` must be sent. Must be called for every unit, in order.
    pub fn admit(&mut self, unit: GateUnit) -> bool {
        let is_start = unit.is_idr || unit.is_recovery_point;
        let lost = unit.gap_before && !is_start;
        if self.state == GateState::Live && (lost || self.congestion == Congestion::Full) {
            self.drop_to_idr();
        }
        let admitted = match self.state {
            _ if self.congestion == Congestion::Full => false,
            GateState::Live => unit.is_reference || unit.is_idr || self.congestion == Congestion::None,
            GateState::WaitingForIdr | GateState::DroppedToIdr => is_start,
        };
        if admitted && is_start {
            self.state = GateState::Live;
        }
        if !admitted && self.state != GateState::WaitingForIdr {
            self.units_dropped += 1;
        }
        admitted
    }

    /// Sets the number of this viewer's datagrams that the kernel still holds. Above half of
    /// [`limits::VIEWER_IN_FLIGHT_MAX`] the gate skips non-reference units. Above the full limit the viewer drops to
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

    /// Reports that an admitted unit is not sent, because it would be late on the viewer's link. If other units may
    /// refer to it (`is_reference`), the viewer drops to the next IDR.
    pub fn refuse(&mut self, is_reference: bool) {
        self.units_dropped += 1;
        if is_reference {
            self.drop_to_idr();
        }
    }

    /// Reports that admitted units are not sent after all. No unit that is sent later refers to them.
    pub fn withdraw(&mut self, units: u64) {
        self.units_dropped += units;
    }

    /// Reports that an admitted unit could not be sent. The unit counts as lost, so the viewer drops to the next IDR.
    pub fn retract(&mut self) {
        self.units_dropped += 1;
        self.drop_to_idr();
    }

    /// Returns the current state of the gate.
    pub fn state(&self) -> GateState {
        self.state
    }

    /// Returns how often the viewer dropped to the next IDR.
    pub fn drops_to_idr(&self) -> u64 {
        self.drops_to_idr
    }

    /// Returns how many units were not sent, counted from the first sent unit on.
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

    const IDR: GateUnit =
        GateUnit { is_idr: true, is_recovery_point: false, is_reference: true, gap_before: false };
    const REFERENCE: GateUnit =
        GateUnit { is_idr: false, is_recovery_point: false, is_reference: true, gap_before: false };
    const DISPOSABLE: GateUnit =
        GateUnit { is_idr: false, is_recovery_point: false, is_reference: false, gap_before: false };

    fn after_gap(unit: GateUnit) -> GateUnit {
        GateUnit { gap_before: true, ..unit }
    }

    #[test]
    fn first_unit_is_an_idr_and_earlier_units_do_not_count_as_dropped() {
        let mut gate = Gate::new();
        assert!(!gate.admit(REFERENCE));
        assert!(!gate.admit(DISPOSABLE));
        assert!(gate.admit(IDR));
        assert!(gate.admit(REFERENCE));
        assert!(gate.admit(DISPOSABLE));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr()), (0, 0));
    }

    #[test]
    fn gap_holds_all_units_back_until_the_next_idr() {
        let mut gate = Gate::new();
        assert!(gate.admit(IDR));
        assert!(!gate.admit(after_gap(REFERENCE)));
        assert_eq!(gate.state(), GateState::DroppedToIdr);
        assert!(!gate.admit(REFERENCE));
        assert!(gate.admit(after_gap(IDR)));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr()), (2, 1));
    }

    #[test]
    fn recovery_point_starts_the_stream_and_ends_a_gap() {
        let recovery = GateUnit { is_recovery_point: true, ..REFERENCE };
        let mut gate = Gate::new();
        assert!(!gate.admit(REFERENCE));
        assert!(gate.admit(recovery));
        assert!(gate.admit(REFERENCE));
        assert!(!gate.admit(after_gap(REFERENCE)));
        assert!(gate.admit(recovery));
        assert!(gate.admit(after_gap(recovery)));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr(), gate.state()), (1, 1, GateState::Live));
    }

    #[test]
    fn gap_before_an_idr_drops_nothing() {
        let mut gate = Gate::new();
        assert!(gate.admit(after_gap(IDR)));
        assert!(gate.admit(after_gap(IDR)));
        assert_eq!(gate.drops_to_idr(), 0);
    }

    #[test]
    fn mild_congestion_skips_only_non_reference_units() {
        let mut gate = Gate::new();
        gate.admit(IDR);
        gate.note_in_flight(limits::VIEWER_IN_FLIGHT_MAX / 2 + 1);
        assert!(!gate.admit(DISPOSABLE));
        assert!(gate.admit(REFERENCE));
        assert_eq!((gate.units_dropped(), gate.drops_to_idr()), (1, 0));
    }

    #[test]
    fn full_congestion_drops_to_the_first_idr_after_it() {
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
    fn retracted_unit_counts_as_lost() {
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
        let unit = (0..8_u8, any::<bool>(), 0..6_u8).prop_map(|(kind, reference, gap)| {
            let (is_idr, is_recovery_point) = (kind == 0, kind == 1);
            let is_reference = is_idr || reference;
            Step::Unit(GateUnit { is_idr, is_recovery_point, is_reference, gap_before: gap == 0 })
        });
        let full = limits::VIEWER_IN_FLIGHT_MAX;
        let in_flight = prop_oneof![Just(0), Just(full / 2 + 1), Just(full + 1)].prop_map(Step::InFlight);
        proptest::collection::vec(prop_oneof![6 => unit, 1 => in_flight], 0..200)
    }

    proptest! {
        #![proptest_config(support::properties())]

        /// Compares the gate with a naive decoder, which cannot decode a unit whose references it did not get.
        #[test]
        fn every_sent_unit_can_be_decoded(steps in steps()) {
            let mut gate = Gate::new();
            let mut decodable = false;
            for step in steps {
                match step {
                    Step::InFlight(datagrams) => gate.note_in_flight(datagrams),
                    Step::Unit(unit) => {
                        if unit.is_idr || unit.is_recovery_point { decodable = true } else if unit.gap_before { decodable = false }
                        let sent = gate.admit(unit);
                        prop_assert!(!sent || decodable, "sent {unit:?} after a loss");
                        if !sent && unit.is_reference { decodable = false }
                    }
                }
            }
        }

        /// Without gaps and congestion, every unit from the first IDR on is sent.
        #[test]
        fn every_unit_is_sent_without_gaps_and_congestion(kinds in proptest::collection::vec(0..3_u8, 0..100)) {
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
