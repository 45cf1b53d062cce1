//! The current GOP from its IDR on, as RTP payloads: the part that is kept so far. Pure bookkeeping.
//!
//! ```text
//!   IDR ──────────────────────────────► newest unit
//!   [ kept here, packetised ][ still safe in the ring ]
//!                            ▲ next()
//! ```

use std::ops::Range;
use std::sync::Arc;

use crate::base::limits;
use crate::h264::Payloads;

/// A kept unit without its payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnitInfo {
    /// Sequence number in the ring, wrapping.
    pub(super) number: u32,
    pub(super) is_idr: bool,
    pub(super) is_reference: bool,
    /// Capture time, CLOCK_REALTIME.
    pub(super) captured_at_ns: Option<i64>,
}

/// A kept unit with its payloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct GopUnit<'a> {
    pub(super) info: UnitInfo,
    pub(super) payloads: &'a [Arc<Payloads>],
}

impl GopUnit<'_> {
    /// Returns the bytes of all payloads.
    pub(super) fn bytes(&self) -> usize {
        bytes_of(self.payloads)
    }
}

fn bytes_of(payloads: &[Arc<Payloads>]) -> usize {
    payloads.iter().map(|payloads| payloads.bytes()).sum()
}

/// State of the current GOP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No IDR came yet, or a unit after the last one is missing.
    #[default]
    Broken,
    /// Every unit from the IDR up to the one before `next` is kept; the rest is in the ring.
    Whole { next: u32 },
    /// The GOP exceeds [`limits::GOP_BYTES_MAX`] or [`limits::GOP_UNITS_MAX`].
    TooLarge,
}

/// The current GOP.
#[derive(Default)]
pub(super) struct Gop {
    state: State,
    units: Vec<(UnitInfo, Range<usize>)>,
    payloads: Vec<Arc<Payloads>>,
    bytes: usize,
    /// Number of the last IDR, and the length in units of the GOP before it.
    begun_at: Option<u32>,
    length_before: Option<u32>,
}

impl Gop {
    /// Starts a new GOP with the IDR at `number` and drops the one before.
    pub(super) fn begin(&mut self, number: u32) {
        let is_whole = self.state != State::Broken;
        self.clear();
        self.length_before = self.begun_at.filter(|_| is_whole).map(|before| number.wrapping_sub(before));
        self.begun_at = Some(number);
        self.state = State::Whole { next: number };
    }

    /// A unit after the IDR is missing: the GOP is dropped until the next IDR.
    pub(super) fn handle_loss(&mut self) {
        self.clear();
        self.begun_at = None;
        self.state = State::Broken;
    }

    /// Returns true when no complete GOP can be sent.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Returns the number of the unit to keep next; `None` when the GOP cannot be sent.
    pub(super) fn next(&self) -> Option<u32> {
        match self.state {
            State::Whole { next } => Some(next),
            State::Broken | State::TooLarge => None,
        }
    }

    /// Keeps the unit with the number [`Gop::next`]. Returns false when the GOP got too large; all of it is dropped.
    pub(super) fn keep(&mut self, info: UnitInfo, payloads: &[Arc<Payloads>]) -> bool {
        let bytes = bytes_of(payloads);
        if self.bytes + bytes > limits::GOP_BYTES_MAX || self.units.len() >= limits::GOP_UNITS_MAX {
            self.clear();
            self.state = State::TooLarge;
            return false;
        }
        let begin = self.payloads.len();
        self.payloads.extend_from_slice(payloads);
        self.units.push((info, begin..self.payloads.len()));
        self.bytes += bytes;
        self.skip();
        true
    }

    /// Skips the unit with the number [`Gop::next`], which is no picture (parameter sets alone).
    pub(super) fn skip(&mut self) {
        if let State::Whole { next } = &mut self.state {
            *next = next.wrapping_add(1);
        }
    }

    /// Returns the kept unit at `index`, the IDR being 0.
    pub(super) fn at(&self, index: usize) -> Option<GopUnit<'_>> {
        let (info, range) = self.units.get(index)?;
        Some(GopUnit { info: *info, payloads: self.payloads.get(range.clone())? })
    }

    /// Returns the number of kept units.
    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    /// Returns the payload bytes of all kept units.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of RTP packets of all kept units.
    pub(super) fn packets(&self) -> usize {
        self.payloads.iter().map(|payloads| payloads.len()).sum()
    }

    /// Returns true if this GOP is longer than a ring of `slots`, or is expected to be because the one before was.
    /// `position`: number of the unit to come.
    pub(super) fn is_longer_than(&self, slots: u32, position: u32) -> bool {
        let length = self.begun_at.map(|begun_at| position.wrapping_sub(begun_at));
        length.max(self.length_before).is_some_and(|length| length > slots)
    }

    /// Returns the units from `newest` to the next IDR, assuming a GOP as long as the one before.
    pub(super) fn units_to_idr(&self, newest: u32) -> Option<u32> {
        self.length_before?.checked_sub(newest.wrapping_sub(self.begun_at?))
    }

    fn clear(&mut self) {
        self.units.clear();
        self.payloads.clear();
        self.bytes = 0;
        // The lists keep their capacity: they are small compared with the payloads.
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
    fn units_are_kept_in_order_until_the_next_idr() {
        let mut gop = Gop::default();
        assert_eq!((gop.next(), gop.len()), (None, 0), "no IDR yet");
        gop.begin(u32::MAX - 1);
        for (index, number) in [u32::MAX - 1, u32::MAX, 0, 1].into_iter().enumerate() {
            assert_eq!(gop.next(), Some(number));
            assert!(gop.keep(unit(number), &payloads(index + 1, 100)));
        }
        assert_eq!((gop.len(), gop.bytes(), gop.packets()), (4, 1_000, 10));
        let third = gop.at(2).unwrap();
        assert_eq!((third.info.number, third.payloads.len(), third.bytes()), (0, 3, 300));
        assert!(gop.at(4).is_none());
        gop.begin(2);
        assert_eq!((gop.next(), gop.len(), gop.bytes(), gop.packets()), (Some(2), 0, 0, 0));
    }

    #[test]
    fn loss_drops_the_gop_until_the_next_idr() {
        let mut gop = Gop::default();
        gop.begin(5);
        gop.keep(unit(5), &payloads(1, 10));
        gop.handle_loss();
        assert_eq!((gop.next(), gop.len(), gop.bytes()), (None, 0, 0));
        gop.skip();
        assert_eq!(gop.next(), None);
        gop.begin(9);
        assert_eq!(gop.next(), Some(9));
    }

    #[test]
    fn slot_without_a_picture_is_skipped() {
        let mut gop = Gop::default();
        gop.begin(5);
        gop.skip();
        assert_eq!((gop.next(), gop.len()), (Some(6), 0));
    }

    #[test]
    fn gop_that_is_too_large_is_dropped_until_the_next_idr() {
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
    fn next_idr_is_expected_after_the_length_of_the_last_gop() {
        let mut gop = Gop::default();
        gop.begin(100);
        assert_eq!(gop.units_to_idr(110), None, "no earlier GOP to measure");
        gop.begin(130);
        assert_eq!((gop.units_to_idr(130), gop.units_to_idr(158)), (Some(30), Some(2)));
        assert_eq!(gop.units_to_idr(161), None, "already longer than the one before");
        gop.handle_loss();
        gop.begin(190);
        assert_eq!(gop.units_to_idr(191), None, "the GOP before was not complete");
    }
}
