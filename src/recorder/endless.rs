//! PURE: turns access units into the fragments of an MP4 without an end. Unlike the file of a recording, it is never
//! finished, has no index, and may begin at any IDR. What is kept does not grow with its length.

use std::mem;

use bytes::{BufMut, Bytes};

use super::capture_clock::CaptureClock;
use super::format::timeline::{PlannedTime, Timeline};
use super::format::{Fragment, Track, fmp4};
use super::operation::{IncomingUnit, stamp_s};
use super::pending_unit::{PendingUnit, Skipped};
use super::recording::StartPoint;
use crate::camera::UnitView;
use crate::h264::{Assembler, up_to_first_slice};

/// One access unit as a fragment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FragmentedUnit {
    /// The fragment: the `moof` box, the header of the `mdat` box, then each NAL unit after its length in 4 bytes.
    pub bytes: Vec<u8>,
    /// Number of bytes before the first NAL unit with its length.
    pub header_bytes: usize,
    /// Decoding time in ticks of 1/90000 s.
    pub time_90k: u64,
    /// True if the unit is an IDR.
    pub is_idr: bool,
    /// True if decoding can start with the unit: it is an IDR or a recovery point.
    pub is_start: bool,
    /// The bytes before the first fragment, if the unit is the first one, or has other parameter sets than the units
    /// before.
    pub file_header: Option<Vec<u8>>,
}

/// Makes fragments of the units of a stream. After a gap, it makes none until decoding can start again.
pub struct EndlessMuxer {
    assembler: Assembler,
    clock: CaptureClock,
    timeline: Timeline,
    track: Option<Track>,
    /// Number of the last fragment. It wraps after 4 years at 30 units/s.
    sequence: u32,
    waits_for_start: bool,
}

impl EndlessMuxer {
    /// Returns a muxer for a stream whose parameter sets this assembler may know.
    #[must_use]
    pub fn new(assembler: Assembler) -> EndlessMuxer {
        EndlessMuxer {
            assembler,
            clock: CaptureClock::default(),
            timeline: Timeline::endless(),
            track: None,
            sequence: 0,
            waits_for_start: true,
        }
    }

    /// Returns the next unit of the stream as a fragment. Returns `None` if the unit has no picture, if it must be
    /// skipped, or if the camera overwrote it.
    pub fn push(&mut self, view: &UnitView, now_ns: i64) -> Option<FragmentedUnit> {
        self.push_unit(&IncomingUnit::from(view), now_ns, || view.is_intact())
    }

    /// Learns from a unit that is not sent: caches its parameter sets. Returns how decoding can start with it, or
    /// `None` if it cannot.
    pub(crate) fn remember(&mut self, view: &UnitView, now_ns: i64) -> Option<StartPoint> {
        let unit = self.assembler.assemble(up_to_first_slice(&view.bytes)).ok();
        let start = unit.and_then(|unit| {
            self.clock.on_unit(&unit, view.captured_monotonic_ns, now_ns);
            StartPoint::of(unit.is_idr(), unit.recovery_point())
        });
        if view.is_intact() {
            return start;
        }
        self.assembler.forget_last_unit();
        None
    }

    /// Must be called if units are missing before the next one.
    pub fn handle_gap(&mut self) {
        self.assembler.handle_gap();
        self.clock.restart();
        self.waits_for_start = true;
    }

    pub(super) fn push_unit(
        &mut self,
        unit: &IncomingUnit,
        now_ns: i64,
        is_intact: impl FnOnce() -> bool,
    ) -> Option<FragmentedUnit> {
        let pending = PendingUnit::new(&mut self.assembler, &mut self.clock, unit, now_ns);
        let fragment = match &pending {
            Ok(pending) if pending.is_start() || !self.waits_for_start => Some(self.fragment(pending)),
            _ => None,
        };
        // The bytes of the slot were read for the last time.
        if !is_intact() {
            self.assembler.forget_last_unit();
            self.handle_gap();
            return None;
        }
        if matches!(pending, Err(Skipped::Invalid)) {
            self.handle_gap();
        }
        let (pending, (planned, fragment, bytes)) = (pending.ok()?, fragment?);
        self.timeline.commit(&pending.time, &planned);
        self.sequence = fragment.sequence;
        self.waits_for_start = false;
        let is_start = pending.is_start();
        let is_idr = pending.is_idr();
        let track = pending.track.filter(|track| self.track.as_ref() != Some(track));
        let file_header = track.map(|track| {
            let started_at_s = stamp_s(unit.captured_at_ns).unwrap_or_default();
            let header = fmp4::file_header(&Track { started_at_s, ..track.clone() });
            self.track = Some(track);
            header
        });
        let (header_bytes, time_90k) = (fragment.header_bytes(), fragment.time_90k);
        Some(FragmentedUnit { bytes, header_bytes, time_90k, is_idr, is_start, file_header })
    }

    /// Copies a unit out of its slot, as a fragment.
    fn fragment(&self, unit: &PendingUnit) -> (PlannedTime, Fragment, Vec<u8>) {
        let planned = self.timeline.plan(&unit.time);
        let fragment = Fragment {
            sequence: self.sequence.wrapping_add(1),
            time_90k: planned.time_90k,
            composition_90k: planned.composition_90k,
            duration_90k: planned.duration_90k,
            unit_bytes: u32::try_from(unit.prefixed_bytes()).unwrap_or(u32::MAX), // a slot holds 3 MB
            kind: unit.kind,
        };
        let prefixes = unit.nal_units.len() * mem::size_of::<u32>();
        let content: usize = unit.nal_units.iter().map(Bytes::len).sum();
        let mut bytes = Vec::with_capacity(fragment.header_bytes() + prefixes + content);
        fragment.write_header(&mut bytes);
        for nal in &unit.nal_units {
            bytes.put_u32(u32::try_from(nal.len()).unwrap_or(u32::MAX));
            bytes.put_slice(nal);
        }
        (planned, fragment, bytes)
    }
}
