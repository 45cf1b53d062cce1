//! Output of the [`Assembler`](super::Assembler): the NAL units of one access unit, borrowed and in order.

use std::sync::Arc;

use super::nal::NalUnit;

/// The NAL units to send or record for one access unit, in order. Borrows from the slot and the assembler.
#[derive(Copy, Clone, Debug)]
pub struct AssembledUnit<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) items: &'a [Item],
    pub(super) picture: Picture,
}

impl<'a> AssembledUnit<'a> {
    /// Returns true if the unit has an IDR slice: decoding can start here.
    #[must_use]
    pub fn is_idr(&self) -> bool {
        self.picture.is_idr
    }

    /// Returns true if other pictures may refer to this one (`nal_ref_idc`). Other units can be dropped safely.
    #[must_use]
    pub fn is_reference(&self) -> bool {
        self.picture.is_reference
    }

    /// Returns the number of NAL units, at least 1.
    #[must_use]
    pub fn nal_count(&self) -> usize {
        self.items.len()
    }

    /// Returns NAL unit `index`.
    ///
    /// # Panics
    /// If `index` is not below [`AssembledUnit::nal_count`].
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

/// A NAL unit of an assembled unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Nal<'a> {
    /// Bytes without start code; never empty.
    pub bytes: &'a [u8],
    /// `nal_unit_type`.
    pub kind: u8,
    /// Offset in the bytes given to [`Assembler::assemble`](super::Assembler::assemble). `None` if the NAL unit was
    /// inserted from the cache.
    pub slot_offset: Option<u32>,
}

/// A NAL unit of the output, located in the slot or in the parameter set cache.
#[derive(Debug)]
pub(super) enum Item {
    Slot(NalUnit),
    Cached { kind: u8, bytes: Arc<[u8]> },
}

/// Properties read from the slices of a unit.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) is_idr: bool,
    pub(super) is_reference: bool,
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
