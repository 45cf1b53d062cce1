//! Computes the order in which pictures are shown (H.264 8.2.1). With B-frames it differs from the order in which they
//! are sent. `memory_management_control_operation` 5, which no known camera uses, is not followed.

use super::access_unit::read_slice_start;
use super::assembled::AssembledUnit;
use super::bits::{BitReader, SyntaxError};
use super::nal::kind;
use super::parameter_sets::{OrderCycle, OrderFields, PpsFields, SpsFields};

/// Place of a picture in the order in which pictures are shown.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PicturePlace {
    /// Picture order count: a picture with a smaller value is shown earlier, if no IDR lies between the two.
    pub order: i64,
    /// True if the picture is an IDR, with which the counting starts again.
    pub is_idr: bool,
    /// True if the picture is shown before the previous picture, because it is a B-frame.
    pub goes_back: bool,
}

/// State from which the place of the next picture is computed. It follows one stream from unit to unit.
#[derive(Clone, Debug, Default)]
pub struct PictureOrder {
    /// `prevPicOrderCntMsb` and `prevPicOrderCntLsb`, of the last reference picture.
    msb: i64,
    lsb: i64,
    /// `prevFrameNum` and `prevFrameNumOffset`, of the last picture.
    frame_num: i64,
    frame_num_offset: i64,
    last: Option<i64>,
}

/// The fields of a slice header that state the order.
#[derive(Clone, Debug, Default, PartialEq)]
struct SliceOrder {
    is_idr: bool,
    idr_pic_id: u32,
    is_reference: bool,
    is_field: bool,
    is_bottom: bool,
    frame_num: i64,
    lsb: i64,
    /// `delta_pic_order_cnt_bottom` of type 0.
    bottom_delta: i64,
    /// `delta_pic_order_cnt` of type 1.
    deltas: [i64; 2],
}

impl PictureOrder {
    /// Returns the place of the unit's picture. Must be called for every unit. Returns `None` if a parameter set is not
    /// known or the slice header is broken.
    pub fn place(&mut self, unit: &AssembledUnit<'_>) -> Option<PicturePlace> {
        let slice = unit.nals().find(|nal| is_slice(nal.kind))?.bytes;
        let (_, slice, sps) = SliceOrder::of(unit, slice)?;
        let order = self.count(&slice, sps);
        let last = self.last.replace(order).filter(|_| !slice.is_idr);
        Some(PicturePlace { order, is_idr: slice.is_idr, goes_back: last.is_some_and(|last| order < last) })
    }

    /// Forgets the last picture, because the next unit does not follow it.
    pub fn restart(&mut self) {
        *self = PictureOrder::default();
    }

    fn count(&mut self, slice: &SliceOrder, sps: &SpsFields) -> i64 {
        match &sps.order {
            OrderFields::Lsb { bits } => self.count_by_lsb(slice, 1 << bits),
            OrderFields::Cycle(cycle) => {
                let frame_num = self.follow_frame_num(slice, sps);
                count_by_cycle(slice, frame_num, cycle)
            }
            OrderFields::Sent => 2 * self.follow_frame_num(slice, sps) - i64::from(!slice.is_reference),
        }
    }

    /// Computes the count of type 0 (8.2.1.1).
    fn count_by_lsb(&mut self, slice: &SliceOrder, max: i64) -> i64 {
        let (msb, lsb) = if slice.is_idr { (0, 0) } else { (self.msb, self.lsb) };
        let msb = match slice.lsb - lsb {
            back if -back >= max / 2 => msb + max,
            ahead if ahead > max / 2 => msb - max,
            _ => msb,
        };
        if slice.is_reference {
            (self.msb, self.lsb) = (msb, slice.lsb);
        }
        let top = msb + slice.lsb;
        if slice.is_field { top } else { top.min(top + slice.bottom_delta) }
    }

    /// Returns `FrameNumOffset + frame_num` (8.2.1.2, 8.2.1.3).
    fn follow_frame_num(&mut self, slice: &SliceOrder, sps: &SpsFields) -> i64 {
        if slice.is_idr {
            self.frame_num_offset = 0;
        } else if self.frame_num > slice.frame_num {
            self.frame_num_offset += 1 << sps.frame_num_bits;
        }
        self.frame_num = slice.frame_num;
        self.frame_num_offset + slice.frame_num
    }
}

/// Computes the count of type 1 (8.2.1.2).
fn count_by_cycle(slice: &SliceOrder, frame_num: i64, cycle: &OrderCycle) -> i64 {
    let length = i64::try_from(cycle.offsets.len()).unwrap_or(0);
    let number = if length == 0 { 0 } else { frame_num - i64::from(!slice.is_reference && frame_num > 0) };
    let mut expected = 0;
    if number > 0 {
        let offsets = || cycle.offsets.iter().map(|offset| i64::from(*offset));
        let (cycles, in_cycle) = ((number - 1) / length, (number - 1) % length);
        let in_cycle = usize::try_from(in_cycle).unwrap_or(0);
        expected = cycles * offsets().sum::<i64>() + offsets().take(in_cycle + 1).sum::<i64>();
    }
    if !slice.is_reference {
        expected += i64::from(cycle.offset_for_non_ref_pic);
    }
    let [first, second] = slice.deltas;
    let bottom_offset = i64::from(cycle.offset_for_top_to_bottom_field);
    let top = expected + first;
    match (slice.is_field, slice.is_bottom) {
        (false, _) => top.min(top + bottom_offset + second),
        (true, false) => top,
        (true, true) => top + bottom_offset,
    }
}

fn is_slice(kind: u8) -> bool {
    matches!(kind, kind::SLICE | kind::PARTITION_A | kind::IDR_SLICE)
}

/// Returns true if the unit holds more than one picture (H.264 7.4.1.2.4). The two fields of a frame count as one. Returns
/// false if the parameter sets are not known.
pub(super) fn has_several_pictures(unit: &AssembledUnit<'_>) -> bool {
    let slices = unit.nals().filter(|nal| is_slice(nal.kind));
    let mut first_slices =
        slices.filter_map(|nal| SliceOrder::of(unit, nal.bytes)).filter(|(is_first, ..)| *is_first);
    let Some((_, first, _)) = first_slices.next() else { return false };
    first_slices.any(|(_, slice, _)| slice != first && !slice.is_other_field_of(&first))
}

impl SliceOrder {
    /// Reads the header of a slice of the unit. Returns true with it if it is the first slice of its picture, and the SPS.
    /// Returns `None` if a parameter set is not known or the header is broken.
    fn of<'a>(unit: &AssembledUnit<'a>, slice: &[u8]) -> Option<(bool, SliceOrder, &'a SpsFields)> {
        let mut bits = BitReader::new(slice.get(1..).unwrap_or_default());
        let start = read_slice_start(&mut bits).ok()?;
        let pps = &unit.sets.pps_by_id(start.pps_id)?.fields;
        let sps = &unit.sets.sps_by_id(pps.sps_id)?.fields;
        let header = slice.first().copied().unwrap_or_default();
        Some((start.is_first, SliceOrder::read(header, &mut bits, sps, pps).ok()?, sps))
    }

    fn is_other_field_of(&self, other: &SliceOrder) -> bool {
        let are_fields = self.is_field && other.is_field;
        are_fields && self.is_bottom != other.is_bottom && self.frame_num == other.frame_num
    }

    /// Reads the fields after `pic_parameter_set_id` (H.264 7.3.3). `header` is the NAL header byte.
    fn read(
        header: u8,
        bits: &mut BitReader<'_>,
        sps: &SpsFields,
        pps: &PpsFields,
    ) -> Result<SliceOrder, SyntaxError> {
        let mut slice = SliceOrder {
            is_idr: header & 0x1F == kind::IDR_SLICE,
            is_reference: header & 0x60 != 0,
            ..SliceOrder::default()
        };
        if sps.has_colour_planes {
            bits.number(2)?; // colour_plane_id
        }
        slice.frame_num = i64::from(bits.number(sps.frame_num_bits)?);
        if !sps.has_only_frames {
            slice.is_field = bits.bit()?;
            slice.is_bottom = slice.is_field && bits.bit()?;
        }
        if slice.is_idr {
            slice.idr_pic_id = bits.unsigned("idr_pic_id", u32::from(u16::MAX))?;
        }
        let has_bottom_order = pps.has_bottom_order && !slice.is_field;
        match &sps.order {
            OrderFields::Lsb { bits: count } => {
                slice.lsb = i64::from(bits.number(*count)?);
                if has_bottom_order {
                    slice.bottom_delta = i64::from(bits.signed("delta_pic_order_cnt_bottom")?);
                }
            }
            OrderFields::Cycle(cycle) if !cycle.has_no_deltas => {
                let [first, second] = &mut slice.deltas;
                *first = i64::from(bits.signed("delta_pic_order_cnt")?);
                if has_bottom_order {
                    *second = i64::from(bits.signed("delta_pic_order_cnt")?);
                }
            }
            OrderFields::Cycle(_) | OrderFields::Sent => {}
        }
        Ok(slice)
    }
}

/// Finds out if a stream has B-frames: pictures that are shown before a picture that was sent earlier. Does almost
/// nothing until the first B slice.
#[derive(Debug, Default)]
pub struct BFrameDetector {
    order: Option<PictureOrder>,
    has_b_frames: bool,
}

impl BFrameDetector {
    /// Handles a unit of the stream. Returns true if B-frames were found just now.
    pub fn find(&mut self, unit: &AssembledUnit<'_>) -> bool {
        if self.has_b_frames || (self.order.is_none() && !unit.has_b_slice()) {
            return false;
        }
        let place = self.order.get_or_insert_default().place(unit);
        self.has_b_frames = place.is_some_and(|place| place.goes_back);
        self.has_b_frames
    }
}

#[cfg(test)]
mod tests {
    use super::super::Assembler;
    use super::super::testing::{BitWriter, annex_b, b_frame_unit, pps, sps};
    use super::*;
    use proptest::prelude::*;

    /// Returns an SPS of the Main profile with 4 bits of `frame_num`, whose order fields `order` writes.
    fn sps_with(order: impl FnOnce(BitWriter) -> BitWriter) -> Vec<u8> {
        let writer = BitWriter::default().bits(77, 8).bits(0, 8).bits(31, 8).ue(0).ue(0);
        order(writer).ue(2).bits(0, 1).ue(79).ue(44).bits(0b1_1_0_0, 4).nal(0x67)
    }

    /// Returns the counts of these slices: their header byte, `frame_num`, and the order fields.
    fn counts(sps: &[u8], slices: &[(u8, u32, BitWriter)]) -> Vec<Option<i64>> {
        let (mut assembler, mut order) = (Assembler::default(), PictureOrder::default());
        let place = |(header, frame_num, fields): &(u8, u32, BitWriter)| {
            let mut writer = BitWriter::default().ue(0).ue(7).ue(0).bits(*frame_num, 4);
            if header & 0x1F == 5 {
                writer = writer.ue(0);
            }
            let slice = writer.then(fields).bits(0xFFFF, 16).nal(*header);
            let unit = annex_b(&[sps.to_vec(), pps(0, 0, 0), slice]);
            order.place(&assembler.assemble(&unit).unwrap()).map(|place| place.order)
        };
        slices.iter().map(place).collect()
    }

    #[test]
    fn last_bits_of_the_count_wrap_around() {
        let sps = sps_with(|writer| writer.ue(0).ue(0)); // type 0 with 4 bits
        let lsb = |lsb: u32| BitWriter::default().bits(lsb, 4);
        let slices = [
            (0x65, 0, lsb(0)),
            (0x41, 1, lsb(6)),
            (0x01, 2, lsb(2)),
            (0x01, 2, lsb(4)),
            (0x41, 2, lsb(12)),
            (0x01, 3, lsb(8)),
            (0x41, 3, lsb(2)),
            (0x01, 4, lsb(14)),
            (0x65, 0, lsb(0)),
        ];
        let expected = [0, 6, 2, 4, 12, 8, 18, 14, 0];
        assert_eq!(counts(&sps, &slices), expected.map(Some));
    }

    #[test]
    fn cycle_of_offsets_gives_the_count_of_type_1() {
        // Reference pictures are 6 apart, and the two pictures between them come 4 and 2 before the reference.
        let cycle = |writer: BitWriter| writer.ue(1).bits(0, 1).se(-4).se(0).ue(1).se(6);
        let delta = |delta: i32| BitWriter::default().se(delta);
        let slices = [
            (0x65, 0, delta(0)),
            (0x41, 1, delta(0)),
            (0x01, 2, delta(0)),
            (0x01, 2, delta(2)),
            (0x41, 2, delta(0)),
        ];
        assert_eq!(counts(&sps_with(cycle), &slices), [0, 6, 2, 4, 12].map(Some));
    }

    #[test]
    fn pictures_of_type_2_are_shown_as_sent() {
        let sps = sps_with(|writer| writer.ue(2));
        let none = BitWriter::default;
        let slices: Vec<_> =
            (0..40).map(|number| (if number == 0 { 0x65 } else { 0x41 }, number % 16, none())).collect();
        let expected: Vec<_> = (0..40).map(|number| Some(2 * number)).collect();
        assert_eq!(counts(&sps, &slices), expected);
    }

    #[test]
    fn b_frames_are_found_by_type_and_order() {
        let found = |orders: &[(u32, bool)]| {
            let (mut assembler, mut detector) = (Assembler::default(), BFrameDetector::default());
            let found = orders.iter().filter(|(order, is_b)| {
                let unit = b_frame_unit(*order, *is_b, &[]);
                detector.find(&assembler.assemble(&unit).unwrap())
            });
            found.count()
        };
        assert_eq!(
            found(&[(0, false), (3, false), (1, true), (2, true), (6, false), (4, true)]),
            1,
            "said once"
        );
        assert_eq!(
            found(&[(0, false), (1, true), (2, true), (3, false)]),
            0,
            "B slices that are shown as sent"
        );
        assert_eq!(found(&[(0, false), (1, false), (2, false), (0, false), (1, false)]), 0);
    }

    #[test]
    fn unknown_sets_and_broken_headers_have_no_place() {
        let mut assembler = Assembler::default();
        let unknown = annex_b(&[vec![0x41, 0b1110_0000, 0x80]]);
        assert_eq!(PictureOrder::default().place(&assembler.assemble(&unknown).unwrap()), None);
        let short = annex_b(&[sps(0, 31, 80, 45), pps(0, 0, 0), vec![0x41, 0b1001_1111]]);
        assert_eq!(PictureOrder::default().place(&assembler.assemble(&short).unwrap()), None);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn hostile_units_never_panic(units in prop::collection::vec(super::super::testing::hostile_bytes(80), 1..12)) {
            let (mut assembler, mut order) = (Assembler::default(), PictureOrder::default());
            for unit in &units {
                let _any = assembler.assemble(unit).map(|assembled| {
                    (order.place(&assembled), has_several_pictures(&assembled))
                });
            }
        }
    }
}
