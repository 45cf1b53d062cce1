//! The newest GOP from its IDR on, as payloads: as much of it as was looked at again so far. Pure bookkeeping; may
//! not touch the ring or a session.
//!
//! ```text
//!   IDR ──────────────────────────────► newest unit
//!   [ kept here, packetised ][ still safely in the ring ]
//!                            ▲ next()
//! ```

use std::ops::Range;
use std::sync::Arc;

use crate::base::limits;
use crate::h264::Payloads;

/// What is known of one kept unit, beside its payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnitInfo {
    /// Its number in the ring, wrapping.
    pub(super) number: u32,
    pub(super) is_idr: bool,
    pub(super) is_reference: bool,
    /// Capture time, CLOCK_REALTIME in ns.
    pub(super) captured_at_ns: Option<i64>,
}

/// One kept unit with its payloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct GopUnit<'a> {
    pub(super) unit: UnitInfo,
    pub(super) payloads: &'a [Arc<Payloads>],
}

impl GopUnit<'_> {
    /// Bytes of all payloads.
    pub(super) fn bytes(&self) -> usize {
        bytes_of(self.payloads)
    }
}

fn bytes_of(payloads: &[Arc<Payloads>]) -> usize {
    payloads.iter().map(|payloads| payloads.bytes()).sum()
}

/// Whether the newest GOP can be given from its IDR on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No IDR came yet, or something is missing after the last one.
    #[default]
    Broken,
    /// From the IDR up to the unit before `next` everything is kept; what follows is in the ring.
    Whole { next: u32 },
    /// It is larger than what may be kept.
    TooLarge,
}

/// The newest GOP.
#[derive(Default)]
pub(super) struct Gop {
    state: State,
    units: Vec<(UnitInfo, Range<usize>)>,
    payloads: Vec<Arc<Payloads>>,
    bytes: usize,
    /// Number of the last IDR, and how many units the GOP before it had.
    begun_at: Option<u32>,
    length_before: Option<u32>,
}

impl Gop {
    /// The camera wrote an IDR as unit `number`: what was kept is of no use any more.
    pub(super) fn begin(&mut self, number: u32) {
        let is_whole = self.state != State::Broken;
        self.clear();
        self.length_before = self.begun_at.filter(|_| is_whole).map(|before| number.wrapping_sub(before));
        self.begun_at = Some(number);
        self.state = State::Whole { next: number };
    }

    /// A unit after the IDR is missing: nothing can follow it until the next IDR.
    pub(super) fn lose(&mut self) {
        self.clear();
        self.begun_at = None;
        self.state = State::Broken;
    }

    /// Whether no IDR is known of that everything since is to be had.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// The unit to be kept next; `None` while the GOP cannot be given.
    pub(super) fn next(&self) -> Option<u32> {
        match self.state {
            State::Whole { next } => Some(next),
            State::Broken | State::TooLarge => None,
        }
    }

    /// Keeps the unit that [`Gop::next`] asked for. `false`: with it the GOP is larger than may be kept, and all of
    /// it was let go.
    pub(super) fn keep(&mut self, unit: UnitInfo, payloads: &[Arc<Payloads>]) -> bool {
        let bytes = bytes_of(payloads);
        if self.bytes + bytes > limits::GOP_BYTES_MAX || self.units.len() >= limits::GOP_UNITS_MAX {
            self.clear();
            self.state = State::TooLarge;
            return false;
        }
        let begin = self.payloads.len();
        self.payloads.extend_from_slice(payloads);
        self.units.push((unit, begin..self.payloads.len()));
        self.bytes += bytes;
        self.pass();
        true
    }

    /// The unit that [`Gop::next`] asked for is no picture: parameter sets alone.
    pub(super) fn pass(&mut self) {
        if let State::Whole { next } = &mut self.state {
            *next = next.wrapping_add(1);
        }
    }

    /// The kept unit at `index`, the IDR being 0.
    pub(super) fn at(&self, index: usize) -> Option<GopUnit<'_>> {
        let (unit, range) = self.units.get(index)?;
        Some(GopUnit { unit: *unit, payloads: self.payloads.get(range.clone())? })
    }

    /// Units kept.
    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    /// Bytes of their payloads.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// RTP packets they make.
    pub(super) fn packets(&self) -> usize {
        self.payloads.iter().map(|payloads| payloads.len()).sum()
    }

    /// Whether a ring of `slots` can't hold this GOP: it doesn't already, with `position` the unit to come, or the
    /// GOP before this one was too long for it.
    pub(super) fn is_longer_than(&self, slots: u32, position: u32) -> bool {
        let length = self.begun_at.map(|begun_at| position.wrapping_sub(begun_at));
        length.max(self.length_before).is_some_and(|length| length > slots)
    }

    /// Units until the next IDR when the newest unit is `newest`, should this GOP be as long as the one before.
    pub(super) fn units_to_idr(&self, newest: u32) -> Option<u32> {
        self.length_before?.checked_sub(newest.wrapping_sub(self.begun_at?))
    }

    fn clear(&mut self) {
        self.units.clear();
        self.payloads.clear();
        self.bytes = 0;
        // A large GOP was an exception or will be back: the lists themselves are small beside the payloads.
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn unit(number: u32) -> UnitInfo {
        UnitInfo { number, is_idr: false, is_reference: true, captured_at_ns: None }
    }

    fn payloads(count: usize, bytes: usize) -> Vec<Arc<Payloads>> {
        (0..count).map(|_| Arc::new(std::iter::once(vec![7; bytes]).collect())).collect()
    }

    #[test]
    fn keeps_in_order_from_the_idr_and_begins_anew_with_the_next() {
        let mut gop = Gop::default();
        assert_eq!((gop.next(), gop.len()), (None, 0), "no IDR yet");
        gop.begin(u32::MAX - 1);
        for (index, number) in [u32::MAX - 1, u32::MAX, 0, 1].into_iter().enumerate() {
            assert_eq!(gop.next(), Some(number));
            assert!(gop.keep(unit(number), &payloads(index + 1, 100)));
        }
        assert_eq!((gop.len(), gop.bytes(), gop.packets()), (4, 1_000, 10));
        let third = gop.at(2).unwrap();
        assert_eq!((third.unit.number, third.payloads.len(), third.bytes()), (0, 3, 300));
        assert!(gop.at(4).is_none());
        gop.begin(2);
        assert_eq!((gop.next(), gop.len(), gop.bytes(), gop.packets()), (Some(2), 0, 0, 0));
    }

    #[test]
    fn after_a_loss_nothing_is_given_until_the_next_idr() {
        let mut gop = Gop::default();
        gop.begin(5);
        gop.keep(unit(5), &payloads(1, 10));
        gop.lose();
        assert_eq!((gop.next(), gop.len(), gop.bytes()), (None, 0, 0));
        gop.pass();
        assert_eq!(gop.next(), None);
        gop.begin(9);
        assert_eq!(gop.next(), Some(9));
    }

    #[test]
    fn a_slot_without_a_picture_is_passed_over() {
        let mut gop = Gop::default();
        gop.begin(5);
        gop.pass();
        assert_eq!((gop.next(), gop.len()), (Some(6), 0));
    }

    #[test]
    fn what_is_too_large_is_let_go_and_not_begun_again_before_the_next_idr() {
        let mut gop = Gop::default();
        gop.begin(0);
        let large = payloads(256, limits::GOP_BYTES_MAX / 1_024);
        let kept = (0..10).take_while(|number| gop.keep(unit(*number), &large)).count();
        assert_eq!((kept, gop.len(), gop.bytes(), gop.next()), (4, 0, 0, None));
        gop.begin(10);
        let small = payloads(1, 1);
        let kept = (0..2_000).take_while(|number| gop.keep(unit(*number), &small)).count();
        assert_eq!((kept, gop.next()), (limits::GOP_UNITS_MAX, None));
    }

    #[test]
    fn the_next_idr_is_expected_where_the_last_gop_says() {
        let mut gop = Gop::default();
        gop.begin(100);
        assert_eq!(gop.units_to_idr(110), None, "the first GOP tells nothing");
        gop.begin(130);
        assert_eq!((gop.units_to_idr(130), gop.units_to_idr(158)), (Some(30), Some(2)));
        assert_eq!(gop.units_to_idr(161), None, "longer than the one before");
        gop.lose();
        gop.begin(190);
        assert_eq!(gop.units_to_idr(191), None, "it was not whole");
    }
}
