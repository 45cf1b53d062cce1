//! One access unit on its way into the ring: its bytes, the ranges of its slices, and its stamp. The same memory is
//! used for all units.

use std::ops::Range;

use super::bits::START_CODE_LONG;
use crate::h264::{Stamp, crc32_of_slices};

/// An access unit in byte-stream format that contains a stamp.
#[derive(Default)]
pub struct Unit {
    pub(super) bytes: Vec<u8>,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) is_idr: bool,
    stamp: Stamp,
    stamp_at: Option<usize>,
    /// The ranges of the slices, without their start codes.
    pub(super) slices: Vec<Range<usize>>,
}

impl Unit {
    /// Returns the bytes of the whole unit, as they are written into a slot.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns true if the unit is an IDR.
    #[must_use]
    pub fn is_idr(&self) -> bool {
        self.is_idr
    }

    pub(super) fn begin(&mut self, is_idr: bool, width: u32, height: u32) {
        (self.width, self.height, self.is_idr) = (width, height, is_idr);
        self.bytes.clear();
        self.slices.clear();
        self.stamp_at = None;
    }

    /// Appends an empty stamp, which is filled later. The caller must have written all NAL units that come before the
    /// first slice.
    pub(super) fn place_stamp(&mut self) {
        self.bytes.extend_from_slice(START_CODE_LONG);
        self.stamp_at = Some(self.bytes.len());
        Stamp::default().write(&mut self.bytes);
    }

    /// Completes the unit: writes the unit number and the checksum of the slices into the stamp.
    pub(super) fn seal(&mut self, unit_number: u64) {
        let slices = self.slices.iter().filter_map(|range| self.bytes.get(range.clone()));
        self.stamp = Stamp { unit_number, published_monotonic_ns: 0, slices_crc32: crc32_of_slices(slices) };
        self.write_stamp();
    }

    /// Writes the publish time into the stamp.
    pub(super) fn set_published(&mut self, monotonic_ns: i64) {
        self.stamp.published_monotonic_ns = monotonic_ns;
        self.write_stamp();
    }

    fn write_stamp(&mut self) {
        let place = self.stamp_at.and_then(|at| self.bytes.get_mut(at..at + Stamp::NAL_BYTES));
        if let Some(place) = place {
            place.copy_from_slice(&self.stamp.encode());
        }
    }
}
