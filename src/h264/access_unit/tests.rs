//! Tests of the assembler.

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
        assert_eq!(assembled.nals().map(|nal| nal.bytes).collect::<Vec<_>>(), whole, "lacking {lacking:?}");
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
    assert_eq!(assembled(&mut assembler, &[&idr(1)]).unwrap(), [sps(1, 40, 120, 68), pps(1, 1, 0), idr(1)]);
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
fn unspecified_kinds_are_removed() {
    let mut assembler = started();
    let unit: [&[u8]; 5] = [&[0x00, 1], &[0x18, 1], &non_idr(0), &[0x7C, 9], &[0x1F, 1]];
    assert_eq!(assembled(&mut assembler, &unit).unwrap(), [non_idr(0)]);
    assert_eq!(assembler.filler_bytes(), 0);
}

#[test]
fn filler_of_any_form_is_removed_and_counted() {
    let mut assembler = started();
    let filler = [&[0x0C][..], &[0xFF; 500], &[0x80]].concat();
    let sei_filler: &[u8] = &[0x06, 3, 2, 0xFF, 0xFF, 0x80];
    let picture = non_idr(0);
    let unit: [&[u8]; 6] = [AUD, sei_filler, SEI, &filler, &picture, &filler];
    assert_eq!(assembled(&mut assembler, &unit).unwrap(), [AUD, SEI, &picture]);
    assert_eq!(assembler.filler_bytes(), 2 * (502 + 3) + 6 + 3);
    let padded = [annex_b(&[&picture]), vec![0; 900]].concat();
    assert_eq!(assembler.assemble(&padded).unwrap().nal(0).bytes, picture);
    assert_eq!(assembler.filler_bytes(), 2 * (502 + 3) + 6 + 3 + 900);
    assert_eq!(assembled(&mut assembler, &[&filler]), Err(UnitError::NoSlice), "filler alone is no picture");
    assert_eq!(assembler.filler_bytes(), 3 * (502 + 3) + 6 + 3 + 900);
}

#[test]
fn only_a_unit_with_a_slice_can_lose_a_picture() {
    let mut assembler = started();
    let broken_sps: &[u8] = &[0x67, 66, 0, 31, 0x80];
    for kind in (6..24).filter(|kind| !matches!(kind, 7 | 8)) {
        let error = assembled(&mut assembler, &[&[kind, 0x55, 0x80]]).unwrap_err();
        assert_eq!((error, error.loses_picture()), (UnitError::NoSlice, false), "kind {kind}");
    }
    let error = assembled(&mut assembler, &[broken_sps]).unwrap_err();
    assert!(matches!(error, UnitError::LoneParameterSet(_)) && !error.loses_picture());
    assert_eq!(assembled(&mut assembler, &[&pps(0, 0, 3)]), Err(UnitError::NoSlice));
    assert_eq!(assembled(&mut assembler, &[&idr(0)]).unwrap(), [sps(0, 31, 80, 45), pps(0, 0, 3), idr(0)]);
    for lost in [&[broken_sps, &idr(0)][..], &[&[0x41]], &[&[0x25]]] {
        assert!(assembled(&mut assembler, lost).unwrap_err().loses_picture(), "{lost:?}");
    }
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
    assert_eq!((assembled.recovery_point(), assembled.nal_count()), (Some(0), 4), "without an IDR before");
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
fn recovery_point_of_a_lost_picture_is_not_that_of_the_next_one() {
    let lone = annex_b(&[AUD, &recovery_point_sei(7)]);
    let loses: [fn(&mut Assembler); 3] = [Assembler::handle_gap, Assembler::forget_last_unit, |assembler| {
        assert!(assembler.assemble(b"damaged").unwrap_err().loses_picture())
    }];
    for lose in loses {
        let mut assembler = started();
        assert_eq!(assembler.assemble(&lone).err(), Some(UnitError::NoSlice));
        lose(&mut assembler);
        let unit = annex_b(&[non_idr(0)]);
        assert_eq!(assembler.assemble(&unit).unwrap().recovery_point(), None);
    }
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
            prop_assert!(nals.iter().all(|nal| !nal.bytes.is_empty() && is_sent(nal.kind)));
            for nal in nals.iter().filter(|nal| nal.slot_offset.is_some()) {
                let start = nal.slot_offset.unwrap() as usize;
                prop_assert_eq!(nal.bytes, &unit[start..start + nal.bytes.len()]);
            }
            if !assembled.is_idr() { continue }
            let first_slice = nals.iter().position(|nal| nal.kind == 5 || nal.kind == 1).unwrap();
            for slice in nals.iter().filter(|nal| matches!(nal.kind, 1 | 5)) {
                let pps_id = slice_start(slice.bytes).unwrap().pps_id;
                let is_it = |nal: &&Nal<'_>| nal.kind == 8 && parameter_sets::read_id(nal.bytes, 8) == Ok(pps_id);
                prop_assert_eq!(nals[..first_slice].iter().filter(is_it).count(), 1);
            }
            prop_assert!(nals[..first_slice].iter().any(|nal| nal.kind == 7));
        }
    }
}
