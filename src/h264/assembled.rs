//! The output of the [`Assembler`](super::Assembler): the NAL units of one access unit, in order and without a copy.

use std::sync::Arc;

use super::nal::NalUnit;
use super::parameter_sets::ParameterSets;

/// The NAL units to send or record for one access unit, in order. Their bytes are borrowed from the slot or from the
/// assembler's cache.
#[derive(Copy, Clone, Debug)]
pub struct AssembledUnit<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) items: &'a [Item],
    pub(super) sets: &'a ParameterSets,
    pub(super) picture: Picture,
}

impl<'a> AssembledUnit<'a> {
    /// Returns true if the unit has an IDR slice, so that decoding can start with this unit.
    #[must_use]
    pub fn is_idr(&self) -> bool {
        self.picture.is_idr
    }

    /// Returns the `recovery_frame_cnt` of the unit's recovery point: decoding can start with this unit, and the
    /// pictures are correct after so many pictures. Returns `None` if the unit is an IDR, has no recovery point, or
    /// needs parameter sets that are not known.
    #[must_use]
    pub fn recovery_point(&self) -> Option<u16> {
        self.picture.recovery_point
    }

    /// Returns true if other pictures may refer to this one (`nal_ref_idc` is not 0). If false, the unit can be dropped
    /// without damage to other pictures.
    #[must_use]
    pub fn is_reference(&self) -> bool {
        self.picture.is_reference
    }

    /// Returns true if the unit has a B slice. Such a picture may be shown before a picture that was sent earlier.
    #[must_use]
    pub fn has_b_slice(&self) -> bool {
        self.picture.has_b_slice
    }

    /// Returns the cached parameter sets, including those of this unit.
    #[must_use]
    pub fn parameter_sets(&self) -> &'a ParameterSets {
        self.sets
    }

    /// Returns the number of NAL units, which is at least 1.
    #[must_use]
    pub fn nal_count(&self) -> usize {
        self.items.len()
    }

    /// Returns the NAL unit with this index.
    ///
    /// # Panics
    /// Panics if `index` is not below [`AssembledUnit::nal_count`].
    #[must_use]
    pub fn nal(&self, index: usize) -> Nal<'a> {
        let Some(item) = self.items.get(index) else { panic!("NAL unit {index} of {}", self.items.len()) };
        item.nal(self.bytes)
    }

    /// Iterates over all NAL units in order.
    pub fn nals(&self) -> impl Iterator<Item = Nal<'a>> + use<'a> {
        let bytes = self.bytes;
        self.items.iter().map(move |item| item.nal(bytes))
    }
}

/// One NAL unit of an assembled access unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Nal<'a> {
    /// Bytes of the NAL unit without its start code. Never empty.
    pub bytes: &'a [u8],
    /// `nal_unit_type` of the NAL unit, 1 to 23.
    pub kind: u8,
    /// Offset in the bytes that were passed to [`Assembler::assemble`](super::Assembler::assemble). `None` if the NAL
    /// unit was inserted from the cache.
    pub slot_offset: Option<u32>,
}

/// A NAL unit of the output. Its bytes are in the slot or in the parameter set cache.
#[derive(Debug)]
pub(super) enum Item {
    Slot(NalUnit),
    Cached { kind: u8, bytes: Arc<[u8]> },
}

/// Properties of a unit's picture, read from its slices.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) is_idr: bool,
    pub(super) is_reference: bool,
    pub(super) has_b_slice: bool,
    /// Number of slices that begin with the first macroblock of a picture or field.
    pub(super) first_slices: u8,
    /// `recovery_frame_cnt` of a recovery point from which decoding can start. `None` for an IDR.
    pub(super) recovery_point: Option<u16>,
}

impl Picture {
    /// Returns true if decoding can start with this picture.
    pub(super) fn is_start(self) -> bool {
        self.is_idr || self.recovery_point.is_some()
    }
}

impl Item {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Slot(nal) => nal.kind,
            Self::Cached { kind, .. } => *kind,
        }
    }

    fn nal<'a>(&'a self, unit: &'a [u8]) -> Nal<'a> {
        match self {
            Self::Slot(nal) => Nal { bytes: nal.slice(unit), kind: nal.kind, slot_offset: Some(nal.start) },
            Self::Cached { kind, bytes } => Nal { bytes, kind: *kind, slot_offset: None },
        }
    }
}
