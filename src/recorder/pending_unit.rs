//! PURE: an access unit that was read from the ring and is being written to the file.

use bytes::Bytes;
use smallvec::SmallVec;

use super::capture_clock::CaptureClock;
use super::format::timeline::UnitTime;
use super::format::{Track, UnitKind};
use super::operation::IncomingUnit;
use crate::base::limits;
use crate::h264::{Assembler, ParameterSets, UnitError, avcc};

/// An access unit that is being written. Its NAL units are slices of the camera's slot, not copies.
#[derive(Debug)]
pub(super) struct PendingUnit {
    pub(super) nal_units: SmallVec<[Bytes; 8]>,
    pub(super) kind: UnitKind,
    pub(super) time: UnitTime,
    /// The camera's stamp in nanoseconds, usually since 1970. `None` if the camera's clock is not usable.
    pub(super) captured_at_ns: Option<i64>,
    /// `recovery_frame_cnt`, if decoding can start with this unit although it is not an IDR.
    pub(super) recovery_point: Option<u16>,
    /// Track properties for an MP4 that begins with this unit. `None` if decoding cannot start with this unit.
    pub(super) track: Option<Track>,
}

/// Why a unit of the ring is not written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Skipped {
    /// The unit has no picture, so nothing is lost.
    NoPicture,
    /// The unit has no picture, and a broken parameter set. No picture is lost.
    BrokenParameterSet,
    /// The unit is not valid, or its picture size or parameter sets do not fit an MP4.
    Invalid,
}

impl PendingUnit {
    /// Parses a unit.
    pub(super) fn new(
        assembler: &mut Assembler,
        clock: &mut CaptureClock,
        unit: &IncomingUnit,
        now_ns: i64,
    ) -> Result<PendingUnit, Skipped> {
        let assembled = assembler.assemble(&unit.bytes).map_err(|error| match error {
            UnitError::NoSlice => Skipped::NoPicture,
            error if !error.loses_picture() => Skipped::BrokenParameterSet,
            _ => Skipped::Invalid,
        })?;
        if assembled.nal_count() > limits::NAL_UNITS_MAX {
            return Err(Skipped::Invalid);
        }
        let time = clock.on_unit(&assembled, unit.captured_ns, now_ns);
        let recovery_point = assembled.recovery_point();
        let kind = match (assembled.is_idr(), assembled.is_reference()) {
            (true, _) => UnitKind::Idr,
            (false, true) => UnitKind::Reference,
            (false, false) => UnitKind::Disposable,
        };
        let nal_units = assembled.nals().map(|nal| slice(&unit.bytes, nal.slot_offset, nal.bytes)).collect();
        let track = if kind == UnitKind::Idr || recovery_point.is_some() {
            Some(track(assembled.parameter_sets()).ok_or(Skipped::Invalid)?)
        } else {
            None
        };
        Ok(PendingUnit { nal_units, kind, time, captured_at_ns: unit.captured_at_ns, recovery_point, track })
    }

    /// Returns true if decoding can start with this unit.
    pub(super) fn is_start(&self) -> bool {
        self.is_idr() || self.recovery_point.is_some()
    }

    pub(super) fn is_idr(&self) -> bool {
        self.kind == UnitKind::Idr
    }

    /// Returns the number of bytes that the unit takes in a file, where each NAL unit has a 4-byte length or start
    /// code.
    pub(super) fn prefixed_bytes(&self) -> u64 {
        self.nal_units.iter().map(|nal| nal.len() as u64 + 4).sum()
    }
}

fn track(sets: &ParameterSets) -> Option<Track> {
    let info = sets.stream_info()?;
    let (width, height) = (u16::try_from(info.width).ok()?, u16::try_from(info.height).ok()?);
    Some(Track { configuration: avcc::configuration_record(sets)?, width, height, started_at_s: 0 })
}

/// Returns a NAL unit as a slice of the slot. A parameter set that the assembler inserted is not in the slot, so it is
/// copied.
fn slice(slot: &Bytes, offset: Option<u32>, nal: &[u8]) -> Bytes {
    let start = offset.and_then(|offset| usize::try_from(offset).ok());
    let range = start.and_then(|start| Some(start..start.checked_add(nal.len())?));
    match range.filter(|range| range.end <= slot.len()) {
        Some(range) => slot.slice(range),
        None => Bytes::copy_from_slice(nal),
    }
}
