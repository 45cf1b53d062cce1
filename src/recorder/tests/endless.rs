//! Tests of the MP4 without an end, with hand-made units.

use std::sync::Arc;

use super::harness::{SECOND, UNIT_INTERVAL, delta, idr, parameter_sets, slice, unit_number_of};
use crate::base::limits;
use crate::h264::{Assembler, testing};
use crate::recorder::endless::{EndlessMuxer, FragmentedUnit};
use crate::recorder::format::{Fragment, UnitKind, fmp4};
use crate::recorder::operation::IncomingUnit;
use crate::recorder::recording::Recording;

/// A muxer with the number of its next unit.
struct Stream {
    muxer: EndlessMuxer,
    number: u32,
}

impl Default for Stream {
    fn default() -> Stream {
        Stream { muxer: EndlessMuxer::new(Assembler::default()), number: 0 }
    }
}

impl Stream {
    fn push(&mut self, bytes: Vec<u8>) -> Option<FragmentedUnit> {
        self.push_if(bytes, true)
    }

    fn push_if(&mut self, bytes: Vec<u8>, is_intact: bool) -> Option<FragmentedUnit> {
        let captured_ns = 100 * SECOND + i64::from(self.number) * UNIT_INTERVAL;
        self.number += 1;
        let unit =
            IncomingUnit { bytes: bytes.into(), captured_ns, captured_at_ns: Some(1_700_000_000 * SECOND) };
        self.muxer.push_unit(&unit, captured_ns + 1_000_000, || is_intact)
    }

    fn idr(&mut self, width: u32) -> Option<FragmentedUnit> {
        self.push(idr(self.number, width))
    }

    fn delta(&mut self) -> Option<FragmentedUnit> {
        self.push(delta(self.number))
    }
}

/// Returns the NAL units of a fragment.
fn nal_units(unit: &FragmentedUnit) -> Vec<&[u8]> {
    let (mut nal_units, mut rest) = (Vec::new(), &unit.bytes[unit.header_bytes..]);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (nal, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        nal_units.push(nal);
        rest = after;
    }
    nal_units
}

#[test]
fn fragments_have_increasing_times_and_the_units_without_a_change() {
    let mut stream = Stream::default();
    assert_eq!(stream.delta(), None, "nothing before the first IDR");
    let first = stream.idr(80).unwrap();
    assert!(first.is_idr && first.is_start);
    let header = first.file_header.clone().unwrap();
    assert!(header.starts_with(&fmp4::START_UNFINISHED));
    assert_eq!(nal_units(&first).iter().map(|nal| nal[0] & 31).collect::<Vec<_>>(), [7, 8, 5]);
    let mut units = vec![first];
    units.extend((0..50).map(|_| stream.delta().unwrap()));
    for (place, unit) in (0..).zip(&units) {
        let fragment = Fragment::parse(&unit.bytes).unwrap();
        assert_eq!((fragment.sequence, fragment.header_bytes()), (place + 1, unit.header_bytes));
        assert_eq!(unit.bytes.len(), unit.header_bytes + fragment.unit_bytes as usize);
        assert!(fragment.time_90k.abs_diff(u64::from(place) * 3_000) <= 1, "{fragment:?}");
        assert_eq!((fragment.time_90k, unit.file_header.is_some()), (unit.time_90k, place == 0));
        let kind = if place == 0 { UnitKind::Idr } else { UnitKind::Reference };
        assert_eq!((fragment.kind, unit.is_start), (kind, place == 0));
        assert_eq!(unit_number_of(nal_units(unit).last().unwrap()), place + 1);
        assert_eq!(unit.bytes.capacity(), unit.bytes.len(), "held memory is counted by its length");
    }
}

#[test]
fn after_a_gap_nothing_is_sent_until_an_idr_and_time_jumps_forward() {
    let mut stream = Stream::default();
    let before = stream.idr(80).unwrap();
    stream.number += 30;
    stream.muxer.handle_gap();
    assert_eq!(stream.delta(), None);
    let after = stream.idr(80).unwrap();
    assert!((after.time_90k - before.time_90k).abs_diff(32 * 3_000) <= 1);
    assert_eq!(after.file_header, None, "the parameter sets are the same");
    assert!(stream.delta().is_some());
}

#[test]
fn units_that_the_camera_overwrote_or_broke_are_gaps() {
    let mut stream = Stream::default();
    stream.idr(80).unwrap();
    let torn = delta(stream.number);
    assert_eq!(stream.push_if(torn, false), None);
    assert_eq!(stream.delta(), None);
    stream.idr(80).unwrap();
    let torn = idr(stream.number, 40);
    assert_eq!(stream.push_if(torn, false), None);
    assert!(stream.idr(80).unwrap().file_header.is_none(), "parameter sets of a torn unit are forgotten");
    assert_eq!(stream.push(vec![1, 2, 3]), None);
    assert_eq!(stream.delta(), None);
    let many = vec![testing::SEI; limits::NAL_UNITS_MAX + 1];
    stream.idr(80).unwrap();
    assert_eq!(stream.push([testing::annex_b(&many), delta(1)].concat()), None);
    assert_eq!(stream.delta(), None);
}

#[test]
fn parameter_sets_in_slots_of_their_own_are_no_gap_and_new_ones_make_a_new_header() {
    let mut stream = Stream::default();
    stream.idr(80).unwrap();
    assert_eq!(stream.push(parameter_sets(80)), None);
    assert!(stream.delta().is_some());
    assert_eq!(stream.push(parameter_sets(40)), None);
    let bare = [vec![0, 0, 0, 1], slice(0x65, stream.number)].concat();
    let changed = stream.push(bare).unwrap();
    assert!(changed.file_header.is_some());
    assert_eq!(nal_units(&changed).len(), 3, "the IDR carries its parameter sets");
    assert!(stream.idr(40).unwrap().file_header.is_none());
}

#[test]
fn parameter_sets_that_the_camera_sent_earlier_are_used() {
    let mut recording = Recording::new(Arc::default(), String::new());
    recording.remember(SECOND, &idr(0, 80), SECOND);
    let mut stream = Stream { muxer: EndlessMuxer::new(recording.known_sets()), number: 1 };
    let bare = [vec![0, 0, 0, 1], slice(0x65, 1)].concat();
    let first = stream.push(bare.clone()).unwrap();
    assert_eq!(nal_units(&first).iter().map(|nal| nal[0] & 31).collect::<Vec<_>>(), [7, 8, 5]);
    assert_eq!(Stream::default().push(bare), None);
}

#[test]
fn stream_without_an_idr_starts_at_a_recovery_point() {
    let mut stream = Stream::default();
    let recovery = |number| {
        let sei = [&[0, 0, 0, 1], testing::recovery_point_sei(0).as_slice()].concat();
        [parameter_sets(80), sei, delta(number)].concat()
    };
    let unit = stream.push(recovery(0)).unwrap();
    assert!(unit.is_start && !unit.is_idr && unit.file_header.is_some());
    assert!(stream.delta().is_some());
}
