//! Turns the bytes of a slot into the list of NAL units to send or record. The [`Assembler`] caches parameter sets,
//! inserts those that an IDR lacks, and removes repeated ones. It copies nothing but new parameter sets.

use std::sync::Arc;

use smallvec::SmallVec;

use super::assembled::{AssembledUnit, Item, Picture};
use super::bits::{BitReader, SyntaxError};
use super::nal::{self, NalUnit, ScanError, kind};
use super::parameter_sets::{self, ParameterSetError, ParameterSets};
use super::sei::recovery_point;
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
    /// The unit has no slice. Its parameter sets are cached for later units.
    #[error("no slice in the unit")]
    NoSlice,
    /// The parameter sets of an IDR are neither in the unit nor in the cache.
    #[error("an IDR refers to picture parameter set {pps_id}, which (or whose SPS) was never seen")]
    MissingParameterSets {
        /// The `pic_parameter_set_id` to which the slice refers.
        pps_id: u8,
    },
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
}

impl Assembler {
    /// Returns the cached parameter sets.
    #[must_use]
    pub fn parameter_sets(&self) -> &ParameterSets {
        &self.sets
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
    ///   mean aggregates and fragments. Everything else is kept unchanged, including filler data.
    /// - If a unit contains two pictures, both are kept unchanged.
    ///
    /// # Errors
    /// A [`UnitError`] means that the caller must skip the unit.
    pub fn assemble<'a>(&'a mut self, bytes: &'a [u8]) -> Result<AssembledUnit<'a>, UnitError> {
        self.sets.begin();
        self.items.clear();
        self.carried.clear();
        let picture = self.arrange(bytes)?;
        Ok(AssembledUnit { bytes, items: &self.items, picture })
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
        self.recovery_before = None;
    }

    fn arrange(&mut self, bytes: &[u8]) -> Result<Picture, UnitError> {
        nal::scan(bytes, &mut self.scanned)?;
        let is_slice = |nal: &NalUnit| (kind::SLICE..=kind::IDR_SLICE).contains(&nal.kind);
        let head_count = self.scanned.iter().position(is_slice).unwrap_or(self.scanned.len());
        self.store_head(bytes, head_count)?;
        let head = self.scanned.iter().take(head_count).filter(|nal| nal.kind == kind::SEI);
        let recovery = recovery_point(head.map(|nal| nal.slice(bytes))).or(self.recovery_before.take());
        if head_count == self.scanned.len() {
            self.recovery_before = recovery;
        }
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
    fn store_head(&mut self, bytes: &[u8], head_count: usize) -> Result<(), UnitError> {
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
        Ok(result?)
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
            let pps_id = slice_pps_id(slice).map_err(UnitError::Slice)?;
            if !self.needed.contains(&pps_id) {
                self.needed.push(pps_id);
            }
            picture.is_idr |= nal.kind == kind::IDR_SLICE;
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
            if is_specified(nal.kind) {
                self.items.push(Item::Slot(*nal));
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
            if is_specified(nal.kind) {
                self.items.push(Item::Slot(*nal));
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

fn is_specified(kind: u8) -> bool {
    (kind::SLICE..=23).contains(&kind)
}

/// Returns the key by which NAL units before the first slice are sorted (H.264 7.4.1.2.3). Smaller keys come first.
fn rank(kind: u8) -> u8 {
    match kind {
        kind::AUD => 0,
        kind::SPS | kind::SPS_EXTENSION | kind::SUBSET_SPS => 1,
        kind::PPS => 2,
        _ => 3,
    }
}

/// Returns `pic_parameter_set_id` of a slice header (H.264 7.3.3).
fn slice_pps_id(slice: &[u8]) -> Result<u8, SyntaxError> {
    let mut bits = BitReader::new(slice.get(1..).unwrap_or_default());
    bits.unsigned("first_mb_in_slice", limits::PICTURE_MACROBLOCKS_MAX)?;
    bits.unsigned("slice_type", 9)?;
    bits.unsigned_u8("pic_parameter_set_id", u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::assembled::Nal;
    use super::super::testing::{
        AUD, SEI, annex_b, hostile_bytes, idr, non_idr, pps, recovery_point_sei, slice, sps,
    };
    use super::*;
    use proptest::prelude::*;

    fn assembled(assembler: &mut Assembler, nals: &[&[u8]]) -> Result<Vec<Vec<u8>>, UnitError> {
        let unit = annex_b(nals);
        assembler.assemble(&unit).map(|unit| unit.nals().map(|nal| nal.bytes.to_vec()).collect())
    }

    fn assembled_kinds(assembler: &mut Assembler, nals: &[&[u8]]) -> Vec<u8> {
        assembled(assembler, nals).unwrap().iter().map(|nal| nal[0] & 0x1F).collect()
    }

    /// Returns an assembler that has already assembled one complete IDR with SPS 0 and PPS 0.
    fn started() -> Assembler {
        let mut assembler = Assembler::default();
        assembled(&mut assembler, &[&sps(0, 31, 80, 45), &pps(0, 0, 0), &idr(0)]).unwrap();
        assembler
    }

    #[test]
    fn complete_idr_passes_unchanged() {
        let (sps, pps, idr) = (sps(0, 31, 80, 45), pps(0, 0, 0), idr(0));
        let unit = annex_b(&[AUD, &sps, &pps, SEI, &idr]);
        let mut assembler = Assembler::default();
        let assembled = assembler.assemble(&unit).unwrap();
        assert!(assembled.is_idr() && assembled.is_reference());
        assert_eq!(assembled.nals().map(|nal| nal.kind).collect::<Vec<_>>(), [9, 7, 8, 6, 5]);
        assert_eq!(assembled.nal_count(), 5);
        for index in 0..5 {
            let nal = assembled.nal(index);
            let offset = nal.slot_offset.unwrap() as usize;
            assert_eq!(nal.bytes, &unit[offset..offset + nal.bytes.len()]);
        }
        let info = assembler.parameter_sets().stream_info().unwrap();
        assert_eq!((info.profile_level_id, info.width, info.height), ([66, 0xC0, 31], 1280, 720));
    }

    #[test]
    fn idr_gets_exactly_the_parameter_sets_it_lacks() {
        let (sps, pps, idr) = (sps(0, 31, 80, 45), pps(0, 0, 0), idr(0));
        let whole: Vec<&[u8]> = vec![AUD, &sps, &pps, SEI, &idr];
        for lacking in [vec![], vec![1], vec![2], vec![1, 2]] {
            let nals: Vec<&[u8]> = whole
                .iter()
                .enumerate()
                .filter(|(index, _)| !lacking.contains(index))
                .map(|(_, nal)| *nal)
                .collect();
            let mut assembler = started();
            let unit = annex_b(&nals);
            let assembled = assembler.assemble(&unit).unwrap();
            assert_eq!(
                assembled.nals().map(|nal| nal.bytes).collect::<Vec<_>>(),
                whole,
                "lacking {lacking:?}"
            );
            let inserted = assembled.nals().filter(|nal| nal.slot_offset.is_none()).count();
            assert_eq!(inserted, lacking.len());
        }
    }

    #[test]
    fn parameter_sets_go_first_without_a_delimiter() {
        let mut assembler = started();
        let nals = assembled(&mut assembler, &[&idr(0)]).unwrap();
        assert_eq!(nals, [sps(0, 31, 80, 45), pps(0, 0, 0), idr(0)]);
    }

    #[test]
    fn only_parameter_sets_used_by_slices_are_inserted() {
        let mut assembler = started();
        let others: [&[u8]; 4] = [&sps(1, 40, 120, 68), &pps(1, 1, 0), &pps(2, 0, 3), &pps(9, 31, 0)];
        assert_eq!(assembled(&mut assembler, &others), Err(UnitError::NoSlice));
        assert_eq!(
            assembled(&mut assembler, &[&idr(1)]).unwrap(),
            [sps(1, 40, 120, 68), pps(1, 1, 0), idr(1)]
        );
        assert_eq!(assembler.parameter_sets().stream_info().unwrap().width, 1920);
        let both = assembled(&mut assembler, &[&idr(2), &idr(0)]).unwrap();
        assert_eq!(both, [sps(0, 31, 80, 45), pps(2, 0, 3), pps(0, 0, 0), idr(2), idr(0)]);
    }

    #[test]
    fn idr_with_unknown_parameter_sets_is_rejected_until_they_arrive() {
        let mut assembler = Assembler::default();
        let missing = Err(UnitError::MissingParameterSets { pps_id: 0 });
        assert_eq!(assembled(&mut assembler, &[&idr(0)]), missing);
        assert_eq!(assembled(&mut assembler, &[&pps(0, 0, 0), &idr(0)]), missing, "its SPS is unknown");
        assert_eq!(assembled(&mut assembler, &[&sps(0, 31, 80, 45)]), Err(UnitError::NoSlice));
        assert_eq!(assembled(&mut assembler, &[&idr(0)]).unwrap().len(), 3);
    }

    #[test]
    fn parameter_sets_sent_alone_are_used_by_the_next_unit() {
        let mut assembler = started();
        assert_eq!(assembled(&mut assembler, &[&sps(0, 31, 40, 30)]), Err(UnitError::NoSlice));
        let unit = annex_b(&[&idr(0)]);
        let assembled = assembler.assemble(&unit).unwrap();
        assert_eq!(assembled.nal(0).bytes, sps(0, 31, 40, 30));
        assert_eq!(assembler.parameter_sets().stream_info().unwrap().width, 640);
    }

    #[test]
    fn pps_before_its_sps_is_moved_after_it() {
        let mut assembler = Assembler::default();
        let (sps, pps, idr) = (sps(0, 31, 80, 45), pps(0, 0, 0), idr(0));
        let nals = assembled(&mut assembler, &[AUD, &pps, &sps, SEI, &idr]).unwrap();
        assert_eq!(nals, [AUD, &sps, &pps, SEI, &idr]);
    }

    #[test]
    fn late_delimiter_is_moved_to_the_front() {
        let mut assembler = Assembler::default();
        let (sps, pps, idr) = (sps(0, 31, 80, 45), pps(0, 0, 0), idr(0));
        let nals = assembled(&mut assembler, &[SEI, &sps, AUD, &pps, &idr]).unwrap();
        assert_eq!(nals, [AUD, &sps, &pps, SEI, &idr]);
    }

    #[test]
    fn sei_before_parameter_sets_keeps_its_position() {
        let mut assembler = Assembler::default();
        let unit: [&[u8]; 5] = [AUD, SEI, &sps(0, 31, 80, 45), &pps(0, 0, 0), &idr(0)];
        assert_eq!(assembled(&mut assembler, &unit).unwrap(), unit);
    }

    #[test]
    fn repeated_parameter_sets_are_sent_once_with_their_last_content() {
        let mut assembler = Assembler::default();
        let (sps, old, new, idr) = (sps(0, 31, 80, 45), pps(0, 0, 1), pps(0, 0, 2), idr(0));
        let nals = assembled(&mut assembler, &[&sps, &old, &sps, &new, &idr, &sps, &new, &idr]).unwrap();
        assert_eq!(nals, [sps.clone(), new.clone(), idr.clone(), idr.clone()]);
    }

    #[test]
    fn two_pictures_in_one_unit_pass_unchanged() {
        let mut assembler = started();
        let (new, idr, other) = (pps(0, 0, 7), idr(0), non_idr(0));
        let nals = assembled(&mut assembler, &[AUD, &idr, AUD, &new, &other]).unwrap();
        assert_eq!(nals, [AUD, &sps(0, 31, 80, 45), &pps(0, 0, 0), &idr, AUD, &new, &other]);
        let next = assembled(&mut assembler, &[&other]).unwrap();
        assert_eq!(next, [non_idr(0)], "the new content was carried");
        let unit = annex_b(&[&other, &idr]);
        assert!(assembler.assemble(&unit).unwrap().is_idr());
    }

    #[test]
    fn later_unit_gets_a_parameter_set_its_gop_has_not_carried() {
        let mut assembler = started();
        assert_eq!(assembled(&mut assembler, &[&pps(1, 0, 0)]), Err(UnitError::NoSlice));
        assert_eq!(assembled(&mut assembler, &[&non_idr(1)]).unwrap(), [pps(1, 0, 0), non_idr(1)]);
        for _ in 0..2 {
            assert_eq!(assembled(&mut assembler, &[&idr(0)]).unwrap().len(), 3);
            assert_eq!(assembled(&mut assembler, &[&non_idr(0)]).unwrap(), [non_idr(0)]);
            assert_eq!(
                assembled(&mut assembler, &[AUD, &non_idr(1)]).unwrap(),
                [AUD, &pps(1, 0, 0), &non_idr(1)]
            );
            assert_eq!(assembled(&mut assembler, &[&non_idr(1)]).unwrap(), [non_idr(1)]);
        }
        assert_eq!(assembled(&mut assembler, &[&pps(1, 0, 4)]), Err(UnitError::NoSlice));
        assert_eq!(assembled(&mut assembler, &[&non_idr(1)]).unwrap(), [pps(1, 0, 4), non_idr(1)]);
    }

    #[test]
    fn units_before_the_first_idr_pass_unchanged() {
        let mut assembler = Assembler::default();
        assert_eq!(assembled(&mut assembler, &[AUD, &non_idr(3)]).unwrap(), [AUD, &non_idr(3)]);
    }

    #[test]
    fn reference_and_idr_flags_come_from_the_slices() {
        let mut assembler = started();
        for (header, is_reference) in [(0x01, false), (0x21, true), (0x41, true), (0x61, true)] {
            let unit = annex_b(&[AUD, &slice(header, 0, 20)]);
            let assembled = assembler.assemble(&unit).unwrap();
            assert_eq!((assembled.is_idr(), assembled.is_reference()), (false, is_reference));
        }
    }

    #[test]
    fn unspecified_kinds_are_removed_and_filler_is_kept() {
        let mut assembler = started();
        let filler: &[u8] = &[0x0C, 0xFF, 0x80];
        let unit: [&[u8]; 7] = [&[0x00, 1], &[0x18, 1], filler, &non_idr(0), &[0x7C, 9], filler, &[0x1F, 1]];
        assert_eq!(assembled(&mut assembler, &unit).unwrap(), [filler, &non_idr(0), filler]);
    }

    #[test]
    fn broken_units_are_rejected_and_do_not_change_the_cache() {
        let mut assembler = started();
        let broken_sps = [0x67, 66, 0, 31, 0x80];
        let result = assembled(&mut assembler, &[&broken_sps, &pps(0, 0, 0), &idr(0)]);
        assert!(matches!(result, Err(UnitError::ParameterSet(_))), "{result:?}");
        let result = assembled(&mut assembler, &[&[0x65]]);
        assert_eq!(result, Err(UnitError::Slice(SyntaxError::Truncated)));
        let result = assembled(&mut assembler, &[&[0x41, 0, 0, 0, 0, 1]]);
        assert!(matches!(result, Err(UnitError::Slice(_))), "{result:?}");
        assert_eq!(assembled(&mut assembler, &[AUD, SEI]), Err(UnitError::NoSlice));
        assert_eq!(assembler.assemble(&[]).err(), Some(UnitError::Scan(ScanError::NoStartCode)));
        let cached = [sps(0, 31, 80, 45), pps(0, 0, 0), idr(0)];
        assert_eq!(assembled(&mut assembler, &[&idr(0)]).unwrap(), cached);
    }

    #[test]
    fn recovery_point_carries_its_parameter_sets_as_an_idr_does() {
        let mut assembler = started();
        let unit = annex_b(&[AUD, &recovery_point_sei(12), &non_idr(0)]);
        for _ in 0..2 {
            let assembled = assembler.assemble(&unit).unwrap();
            assert_eq!((assembled.is_idr(), assembled.recovery_point()), (false, Some(12)));
            assert_eq!(assembled.nals().map(|nal| nal.kind).collect::<Vec<_>>(), [9, 7, 8, 6, 1]);
            assert_eq!(assembled_kinds(&mut assembler, &[&non_idr(0)]), [1]);
        }
        let unit = annex_b(&[&sps(0, 31, 80, 45), &pps(0, 0, 0), &recovery_point_sei(0), &non_idr(0)]);
        let mut fresh = Assembler::default();
        let assembled = fresh.assemble(&unit).unwrap();
        assert_eq!(
            (assembled.recovery_point(), assembled.nal_count()),
            (Some(0), 4),
            "without an IDR before"
        );
    }

    #[test]
    fn recovery_point_without_its_parameter_sets_is_not_a_start() {
        let unit = annex_b(&[&recovery_point_sei(0), &non_idr(3)]);
        let mut assembler = started();
        let assembled = assembler.assemble(&unit).unwrap();
        assert_eq!((assembled.recovery_point(), assembled.nal_count()), (None, 2));
    }

    #[test]
    fn recovery_point_in_a_unit_of_its_own_belongs_to_the_next_picture() {
        let mut assembler = started();
        for lone in [&[AUD, &recovery_point_sei(7)][..], &[SEI], &[AUD]] {
            assert_eq!(assembled(&mut assembler, lone), Err(UnitError::NoSlice));
        }
        for expected in [Some(7), None] {
            let unit = annex_b(&[non_idr(0)]);
            assert_eq!(assembler.assemble(&unit).unwrap().recovery_point(), expected);
        }
        let idr = annex_b(&[recovery_point_sei(7), idr(0)]);
        assert_eq!(assembler.assemble(&idr).unwrap().recovery_point(), None, "an IDR needs no recovery");
    }

    #[test]
    fn forgetting_a_unit_restores_the_parameter_sets_before_it() {
        let mut assembler = started();
        let torn = annex_b(&[&sps(0, 31, 2, 2), &pps(0, 0, 9), &idr(0)]);
        assembler.assemble(&torn).unwrap();
        assembler.forget_last_unit();
        let unit = annex_b(&[&idr(0)]);
        let assembled = assembler.assemble(&unit).unwrap();
        assert_eq!(assembled.nal(0).bytes, sps(0, 31, 80, 45));
        assert_eq!(assembled.nal(1).bytes, pps(0, 0, 0));
    }

    #[test]
    fn forgetting_a_unit_keeps_parameter_sets_of_earlier_units() {
        let mut assembler = started();
        assert_eq!(assembled(&mut assembler, &[&pps(0, 0, 8)]), Err(UnitError::NoSlice));
        assembled(&mut assembler, &[&sps(0, 31, 2, 2), &idr(0)]).unwrap();
        assembler.forget_last_unit();
        let nals = assembled(&mut assembler, &[&idr(0)]).unwrap();
        assert_eq!(nals, [sps(0, 31, 80, 45), pps(0, 0, 8), idr(0)]);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn every_assembled_idr_has_each_needed_parameter_set_once(
            units in prop::collection::vec(hostile_bytes(80), 1..12)
        ) {
            let mut assembler = Assembler::default();
            for unit in &units {
                let Ok(assembled) = assembler.assemble(unit) else { continue };
                let nals: Vec<_> = assembled.nals().collect();
                prop_assert!(nals.iter().all(|nal| !nal.bytes.is_empty() && is_specified(nal.kind)));
                for nal in nals.iter().filter(|nal| nal.slot_offset.is_some()) {
                    let start = nal.slot_offset.unwrap() as usize;
                    prop_assert_eq!(nal.bytes, &unit[start..start + nal.bytes.len()]);
                }
                if !assembled.is_idr() { continue }
                let first_slice = nals.iter().position(|nal| nal.kind == 5 || nal.kind == 1).unwrap();
                for slice in nals.iter().filter(|nal| matches!(nal.kind, 1 | 5)) {
                    let pps_id = slice_pps_id(slice.bytes).unwrap();
                    let is_it = |nal: &&Nal<'_>| nal.kind == 8 && parameter_sets::read_id(nal.bytes, 8) == Ok(pps_id);
                    prop_assert_eq!(nals[..first_slice].iter().filter(is_it).count(), 1);
                }
                prop_assert!(nals[..first_slice].iter().any(|nal| nal.kind == 7));
            }
        }
    }
}
