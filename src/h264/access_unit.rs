//! Turns the bytes of a slot into the list of NAL units to send or record. The [`Assembler`] caches parameter sets,
//! inserts those that an IDR lacks, and removes repeated ones. It copies nothing but new parameter sets.

use std::sync::Arc;

use smallvec::SmallVec;

use super::assembled::{AssembledUnit, Item, Picture};
use super::bits::{BitReader, SyntaxError};
use super::nal::{self, NalUnit, ScanError, kind};
use super::parameter_sets::{self, ParameterSetError, ParameterSets};
use super::sei;
use crate::base::limits;

/// Why a unit must be skipped. Decoding can always start again at the next IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The bytes are not an Annex-B access unit.
    #[error("not an access unit: {0}")]
    Scan(#[from] ScanError),
    /// A parameter set of the unit is broken. An older set cannot replace it, because the slices were encoded with the
    /// new one.
    #[error("broken parameter set: {0}")]
    ParameterSet(#[from] ParameterSetError),
    /// A slice header is broken.
    #[error("broken slice header: {0}")]
    Slice(SyntaxError),
    /// The unit has no slice. Its parameter sets are cached for later units. This is not a fault of the camera.
    #[error("no slice in the unit")]
    NoSlice,
    /// The unit has no slice, and one of its parameter sets is broken.
    #[error("no slice in the unit, and a broken parameter set: {0}")]
    LoneParameterSet(ParameterSetError),
    /// The parameter sets of an IDR are neither in the unit nor in the cache.
    #[error("an IDR refers to picture parameter set {pps_id}, which (or whose SPS) was never seen")]
    MissingParameterSets {
        /// The `pic_parameter_set_id` to which the slice refers.
        pps_id: u8,
    },
}

impl UnitError {
    /// Returns true if a picture is lost with the unit. Later units may refer to it, so they cannot be decoded.
    #[must_use]
    pub fn loses_picture(&self) -> bool {
        !matches!(self, Self::NoSlice | Self::LoneParameterSet(_))
    }
}

/// Identifies a parameter set that the current unit contains.
#[derive(Copy, Clone, PartialEq, Eq)]
struct Carried {
    kind: u8,
    id: u8,
}

/// Scans access units, caches parameter sets and lists the NAL units to send. Each consumer of the ring has its own
/// assembler.
///
/// The assembler allocates only for new parameter sets, and for a unit that has more NAL units than all units before.
#[derive(Default)]
pub struct Assembler {
    sets: ParameterSets,
    scanned: SmallVec<[NalUnit; 16]>,
    items: SmallVec<[Item; 16]>,
    carried: SmallVec<[Carried; 8]>,
    /// Ids of the picture parameter sets that the slices of the current unit use. Each id is listed once, in the order
    /// of the slices.
    needed: SmallVec<[u8; 8]>,
    /// Number of the current GOP, from 1. With each cached parameter set, the number of the last GOP that carried it is
    /// stored.
    gop: u32,
    /// True if the IDR or recovery point of the current GOP was assembled without an error. If false, nothing is
    /// inserted into later units.
    idr_assembled: bool,
    /// The recovery point of a unit without a slice. It belongs to the picture of the next unit.
    recovery_before: Option<u16>,
    filler_bytes: u64,
}

impl Assembler {
    /// Returns the cached parameter sets.
    #[must_use]
    pub fn parameter_sets(&self) -> &ParameterSets {
        &self.sets
    }

    /// Returns the number of bytes of filler that were removed from all units so far.
    #[must_use]
    pub fn filler_bytes(&self) -> u64 {
        self.filler_bytes
    }

    /// Scans one access unit and returns its NAL units in sending order: first the access unit delimiter, then inserted
    /// parameter sets, then everything else in its original order. In detail:
    ///
    /// - The result for an IDR has every parameter set to which the slices refer, exactly once. Missing sets are
    ///   inserted before everything except the delimiter, because SEI may refer to the SPS. A missing PPS is inserted
    ///   after the SPS of the unit, if the unit has one. If a later unit of the GOP refers to a set that no unit of the
    ///   GOP has carried yet, that set is inserted too. A unit with a recovery point is treated like an IDR, if its
    ///   parameter sets are known.
    /// - A repeated parameter set is sent once, with its last content. If the encoder wrote another order, the
    ///   delimiter is moved to the front, and each SPS is moved before the PPS that refers to it.
    /// - NAL units of unspecified kinds (0 and 24 to 31) are removed. Decoders ignore them, and in RTP these numbers
    ///   mean aggregates and fragments. Filler is removed too: filler data, SEI with only filler messages, and zero
    ///   bytes at the end of the unit. Everything else is kept unchanged.
    /// - If a unit contains two pictures, both are kept unchanged.
    ///
    /// # Errors
    /// A [`UnitError`] means that the caller must skip the unit.
    pub fn assemble<'a>(&'a mut self, bytes: &'a [u8]) -> Result<AssembledUnit<'a>, UnitError> {
        self.sets.begin();
        self.items.clear();
        self.carried.clear();
        let picture = self.arrange(bytes)?;
        Ok(AssembledUnit { bytes, items: &self.items, sets: &self.sets, picture })
    }

    /// Copies the state of `other`, so that this assembler returns the same output for the same units. Must be called
    /// when `other` has just assembled an IDR. The first unit that this assembler then processes must be that IDR.
    pub fn copy_from(&mut self, other: &Assembler) {
        self.sets.copy_from(&other.sets);
        self.gop = other.gop;
        self.idr_assembled = false;
    }

    /// Restores the parameter sets that were cached before the last unit. Must be called if the camera overwrote the
    /// bytes of that unit while they were read. Units after it must be dropped until the next IDR.
    pub fn forget_last_unit(&mut self) {
        self.sets.roll_back();
        self.idr_assembled = false;
        self.handle_gap();
    }

    /// Must be called if units are missing before the next one. A recovery point that was read in a unit of its own then
    /// belongs to a missing picture.
    pub fn handle_gap(&mut self) {
        self.recovery_before = None;
    }

    fn arrange(&mut self, bytes: &[u8]) -> Result<Picture, UnitError> {
        let recovery_before = self.recovery_before.take();
        nal::scan(bytes, &mut self.scanned)?;
        let is_slice = |nal: &NalUnit| (kind::SLICE..=kind::IDR_SLICE).contains(&nal.kind);
        let head_count = self.scanned.iter().position(is_slice).unwrap_or(self.scanned.len());
        let end = self.scanned.last().map_or(0, |nal| nal.end as usize);
        self.filler_bytes += (bytes.len() - end) as u64;
        let stored = self.store_head(bytes, head_count);
        let recovery = self.read_sei(bytes, head_count).or(recovery_before);
        if head_count == self.scanned.len() {
            self.recovery_before = recovery;
            self.append_head(head_count);
            return Err(stored.err().map_or(UnitError::NoSlice, UnitError::LoneParameterSet));
        }
        stored?;
        let mut picture = self.read_slices(bytes)?;
        if !picture.is_idr && recovery.is_some() && self.knows_needed_sets() {
            picture.recovery_point = recovery;
        }
        if picture.is_start() {
            self.gop = self.gop.wrapping_add(1).max(1);
            self.idr_assembled = true;
        }
        for set in &self.carried {
            self.sets.mark_carried(set.kind, set.id, self.gop);
        }
        self.insert_missing(picture)?;
        self.append_head(head_count);
        self.append_rest(bytes, head_count)?;
        Ok(picture)
    }

    /// Stores the parameter sets before the first slice, from the last to the first. If two sets have the same id, only
    /// the last of them is stored, and the other is removed from the output.
    fn store_head(&mut self, bytes: &[u8], head_count: usize) -> Result<(), ParameterSetError> {
        let mut result = Ok(());
        for nal in self.scanned.iter_mut().take(head_count).rev() {
            if !matches!(nal.kind, kind::SPS | kind::PPS) {
                continue;
            }
            let set = nal.slice(bytes);
            match parameter_sets::read_id(set, nal.kind) {
                Ok(id) if self.carried.contains(&Carried { kind: nal.kind, id }) => nal.kind = REMOVED,
                Ok(id) => {
                    self.carried.push(Carried { kind: nal.kind, id });
                    result = self.sets.store(set, nal.kind).map(drop).and(result);
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Returns the recovery point of the SEI before the first slice. Marks SEI that is only filler as filler data.
    fn read_sei(&mut self, bytes: &[u8], head_count: usize) -> Option<u16> {
        let mut recovery = None;
        for nal in self.scanned.iter_mut().take(head_count).filter(|nal| nal.kind == kind::SEI) {
            let sei = nal.slice(bytes);
            if sei::is_filler(sei) {
                nal.kind = kind::FILLER;
            } else {
                recovery = recovery.or(sei::recovery_point([sei]));
            }
        }
        recovery
    }

    /// Reads the slice headers. Returns the properties of the picture, and stores in `needed` which picture parameter
    /// sets the slices use.
    fn read_slices(&mut self, bytes: &[u8]) -> Result<Picture, UnitError> {
        self.needed.clear();
        let mut picture = Picture::default();
        for nal in &self.scanned {
            if !matches!(nal.kind, kind::SLICE | kind::PARTITION_A | kind::IDR_SLICE) {
                continue;
            }
            let slice = nal.slice(bytes);
            let SliceStart { is_first, slice_type, pps_id } = slice_start(slice).map_err(UnitError::Slice)?;
            if !self.needed.contains(&pps_id) {
                self.needed.push(pps_id);
            }
            picture.first_slices = picture.first_slices.saturating_add(u8::from(is_first));
            picture.is_idr |= nal.kind == kind::IDR_SLICE;
            picture.has_b_slice |= slice_type % 5 == B_SLICE;
            picture.is_reference |= slice.first().is_some_and(|header| header & NAL_REF_IDC != 0);
        }
        if self.needed.is_empty() { Err(UnitError::NoSlice) } else { Ok(picture) }
    }

    /// Returns true if all parameter sets that the slices use are cached.
    fn knows_needed_sets(&self) -> bool {
        let is_known = |pps_id: &u8| {
            self.sets.pps_by_id(*pps_id).is_some_and(|pps| self.sets.sps_by_id(pps.fields.sps_id).is_some())
        };
        self.needed.iter().all(is_known)
    }

    /// Inserts each parameter set that the slices use and that no unit of this GOP has carried yet.
    fn insert_missing(&mut self, picture: Picture) -> Result<(), UnitError> {
        let Self { sets, items, carried, needed, gop, idr_assembled, .. } = self;
        for (index, &pps_id) in needed.iter().enumerate() {
            let known =
                sets.pps_by_id(pps_id).and_then(|pps| Some((pps, sets.sps_by_id(pps.fields.sps_id)?)));
            let Some((pps, sps)) = known else {
                if picture.is_idr {
                    *idr_assembled = false;
                    return Err(UnitError::MissingParameterSets { pps_id });
                }
                continue;
            };
            let wanted =
                [(kind::SPS, sps.id, Arc::clone(&sps.bytes)), (kind::PPS, pps_id, Arc::clone(&pps.bytes))];
            if picture.is_start() && index == 0 {
                sets.active_sps_id = Some(sps.id);
            }
            for (kind, id, bytes) in wanted {
                if *idr_assembled && sets.mark_carried(kind, id, *gop) {
                    carried.push(Carried { kind, id });
                    items.push(Item::Cached { kind, bytes });
                }
            }
        }
        Ok(())
    }

    /// Appends the NAL units before the first slice to the inserted ones. Sorts all of them if their order is not the
    /// sending order.
    fn append_head(&mut self, head_count: usize) {
        let mut in_order = self.items.is_empty();
        let mut rank_before = 0;
        for (index, nal) in self.scanned.iter().take(head_count).enumerate() {
            if is_sent(nal.kind) {
                self.items.push(Item::Slot(*nal));
            } else {
                self.filler_bytes += filler_bytes(*nal);
            }
            match rank(nal.kind) {
                0 => in_order &= index == 0,
                3 => {}
                rank => {
                    in_order &= rank >= rank_before;
                    rank_before = rank;
                }
            }
        }
        if !in_order {
            self.items.sort_by_key(|item| rank(item.kind()));
        }
    }

    /// Appends the slices and the NAL units between and after them, but not repeated parameter sets.
    fn append_rest(&mut self, bytes: &[u8], head_count: usize) -> Result<(), UnitError> {
        for nal in self.scanned.iter().skip(head_count) {
            if matches!(nal.kind, kind::SPS | kind::PPS) {
                let (id, changed) = self.sets.store(nal.slice(bytes), nal.kind)?;
                self.sets.mark_carried(nal.kind, id, self.gop);
                let set = Carried { kind: nal.kind, id };
                if !changed && self.carried.contains(&set) {
                    continue;
                }
                self.carried.push(set);
            }
            if is_sent(nal.kind) {
                self.items.push(Item::Slot(*nal));
            } else {
                self.filler_bytes += filler_bytes(*nal);
            }
        }
        Ok(())
    }
}

/// The bits of `nal_ref_idc` in a NAL header.
const NAL_REF_IDC: u8 = 0x60;

/// Kind that marks a scanned NAL unit as removed. NAL units of this kind are not sent, because H.264 does not specify
/// it.
const REMOVED: u8 = 0;

/// Returns true if NAL units of this kind are sent and recorded: the kinds that H.264 specifies, but not filler data.
fn is_sent(kind: u8) -> bool {
    (kind::SLICE..=23).contains(&kind) && kind != kind::FILLER
}

/// Returns the size in bytes of filler data with its start code. Returns 0 for other kinds.
fn filler_bytes(nal: NalUnit) -> u64 {
    if nal.kind == kind::FILLER { u64::from(nal.end - nal.start) + START_CODE_BYTES } else { 0 }
}

const START_CODE_BYTES: u64 = 3;

/// Returns the key by which NAL units before the first slice are sorted (H.264 7.4.1.2.3). Smaller keys come first.
fn rank(kind: u8) -> u8 {
    match kind {
        kind::AUD => 0,
        kind::SPS | kind::SPS_EXTENSION | kind::SUBSET_SPS => 1,
        kind::PPS => 2,
        _ => 3,
    }
}

/// `slice_type` of a B slice, modulo 5 (H.264 table 7-6).
const B_SLICE: u8 = 1;

/// The fields of a slice header up to `pic_parameter_set_id`, which are the same in every stream (H.264 7.3.3).
pub(super) struct SliceStart {
    /// True if the slice begins with the first macroblock of its picture: `first_mb_in_slice` is 0.
    pub(super) is_first: bool,
    slice_type: u8,
    pub(super) pps_id: u8,
}

fn slice_start(slice: &[u8]) -> Result<SliceStart, SyntaxError> {
    read_slice_start(&mut BitReader::new(slice.get(1..).unwrap_or_default()))
}

/// Reads the start of a slice header.
pub(super) fn read_slice_start(bits: &mut BitReader<'_>) -> Result<SliceStart, SyntaxError> {
    Ok(SliceStart {
        is_first: bits.unsigned("first_mb_in_slice", limits::PICTURE_MACROBLOCKS_MAX)? == 0,
        slice_type: bits.unsigned_u8("slice_type", 9)?,
        pps_id: bits.unsigned_u8("pic_parameter_set_id", u8::MAX)?,
    })
}

#[cfg(test)]
mod tests;
