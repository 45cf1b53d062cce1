//! Finds out if a camera writes something else than one picture to each slot.

use super::assembled::AssembledUnit;
use super::picture_order::has_several_pictures;

/// What a camera writes to its slots instead of one picture.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SlotFault {
    /// Several pictures.
    SeveralPictures = 1,
    /// A part of a picture, for example one of its slices.
    PartOfPicture = 2,
}

impl SlotFault {
    /// Returns the fault with this number, or `None` for 0.
    #[must_use]
    pub fn of_number(number: u64) -> Option<SlotFault> {
        [Self::SeveralPictures, Self::PartOfPicture].into_iter().find(|fault| *fault as u64 == number)
    }

    /// Returns what is wrong and what to do, as a text for the user.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::SeveralPictures => {
                "the camera writes several pictures into one slot. They have one capture time, so viewers may not see \
                 each of them, and an MP4 counts them as one. Let the camera write each picture into a slot of its own"
            }
            Self::PartOfPicture => {
                "the camera writes parts of a picture into slots of their own. They are sent and recorded as if each was \
                 a picture, so players may show broken pictures. Let the camera write all slices of a picture into one \
                 slot"
            }
        }
    }
}

/// Number of units with a fault after which it is reported. Fewer can come from a damaged stream.
const UNITS: u8 = 3;

/// Watches the units of a stream. Does almost nothing for a unit of one picture.
#[derive(Debug, Default)]
pub struct SlotFaultDetector {
    with_several: u8,
    with_part: u8,
    is_found: bool,
}

impl SlotFaultDetector {
    /// Handles a unit of the stream. Returns the fault if it was found just now. `is_intact` returns false if the camera
    /// has overwritten the unit meanwhile; it is called only for a doubtful unit.
    pub fn find(&mut self, unit: &AssembledUnit<'_>, is_intact: impl FnOnce() -> bool) -> Option<SlotFault> {
        if unit.picture.first_slices == 1 || self.is_found || !is_intact() {
            return None;
        }
        if unit.picture.first_slices == 0 {
            self.with_part += 1;
        } else if has_several_pictures(unit) {
            self.with_several += 1;
        }
        self.is_found = self.with_part.max(self.with_several) >= UNITS;
        let fault =
            if self.with_part >= UNITS { SlotFault::PartOfPicture } else { SlotFault::SeveralPictures };
        self.is_found.then_some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Assembler;
    use super::super::testing::{BitWriter, annex_b, b_frame_unit, idr, pps, sps};
    use super::*;

    /// Returns what is found in these units, which are repeated.
    fn found(units: &[Vec<u8>]) -> Vec<SlotFault> {
        let (mut assembler, mut detector) = (Assembler::default(), SlotFaultDetector::default());
        let repeated = (0..2 * usize::from(UNITS)).flat_map(|_| units);
        repeated.filter_map(|unit| detector.find(&assembler.assemble(unit).unwrap(), || true)).collect()
    }

    /// Returns a slice that begins with this macroblock.
    fn slice_from(macroblock: u32) -> Vec<u8> {
        BitWriter::default().ue(macroblock).ue(7).ue(0).bits(0xFFFF, 16).nal(0x41)
    }

    #[test]
    fn one_picture_in_each_slot_is_right() {
        let start = annex_b(&[sps(0, 31, 80, 45), pps(0, 0, 0), idr(0)]);
        assert_eq!(found(&[start.clone(), annex_b(&[slice_from(0)])]), []);
        let many_slices: Vec<Vec<u8>> = (0..75).map(slice_from).collect();
        assert_eq!(found(&[start.clone(), annex_b(&many_slices)]), []);
        let redundant = annex_b(&[slice_from(0), slice_from(9), slice_from(0), slice_from(9)]);
        assert_eq!(found(&[start, redundant]), [], "a redundant coded picture (7.4.1.2.5)");
    }

    #[test]
    fn several_pictures_in_a_slot_are_found_once() {
        let two =
            |first, second| [b_frame_unit(first, false, &[]), b_frame_unit(second, false, &[])].concat();
        assert_eq!(found(&[two(0, 1), two(2, 3)]), [SlotFault::SeveralPictures]);
        assert_eq!(found(&[b_frame_unit(0, false, &[]), two(1, 2)]), [SlotFault::SeveralPictures]);
    }

    #[test]
    fn parts_of_a_picture_are_found_once() {
        let start = annex_b(&[sps(0, 31, 80, 45), pps(0, 0, 0), idr(0)]);
        let parts: Vec<_> = [0, 20, 40].map(|macroblock| annex_b(&[slice_from(macroblock)])).into();
        assert_eq!(found(&[vec![start], parts].concat()), [SlotFault::PartOfPicture]);
    }

    #[test]
    fn numbers_are_those_of_the_faults() {
        for fault in [SlotFault::SeveralPictures, SlotFault::PartOfPicture] {
            assert_eq!(SlotFault::of_number(fault as u64), Some(fault));
        }
        assert_eq!(SlotFault::of_number(0), None);
    }
}
