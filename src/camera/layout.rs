//! PURE: the ring layouts of the camera daemon, with their offsets, sizes and slot metadata. Each of the five legacy
//! layouts is identified by its size. The lease ring is identified by its header (`lease_header.rs`).
//!
//! ```text
//!  v0   0 write_index                                          8  slots (48 + data, stride 3110448)  x 30
//!  v1   0 write_index  4 frame_interval_ms  8 sem_t           40  slots (48 + data, stride 3110448)  x 30
//!  v2   0 write_index  4 frame_interval_ms  8 sem_t           40  slots (60 + data, stride 3110464)  x 30
//!  v3   0 write_index 64 frame_interval_ms 128 sem_t         192  slots (60 + data, stride 3110464)  x 30
//!  v3-6 as v3                                                                                        x 6
//!
//!  slot  0 frame_number u64   8 tv_sec i64   16 tv_nsec i64   24 camera_id i32   28 width i32
//!       32 height i32        36 format i32   40 data_size u64   (v2, v3: 48 brightness, lux, zone ...)   data
//! ```

use std::fmt;
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::lease_header::{Geometry, HeaderError};
use crate::base::limits::{LEASE_SLOT_BYTES, LEASE_SLOTS, PICTURE_SIDE_MAX, SLOT_DATA_BYTES_MAX};

/// Offset of a legacy ring's `u32 write_index`. It counts the units begun or published, and wraps.
pub(super) const WRITE_INDEX_OFFSET: usize = 0;

/// Value of the field `format` for H.264 (JPEG is 0, NV12 is 1, RGB is 2).
pub const FORMAT_H264: i32 = 3;

/// A released layout of the camera daemon's segment, for 64-bit Linux with glibc, where a `sem_t` has 32 bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The ring has no semaphore. The camera raises the index before it copies the unit into the slot.
    V0,
    /// The ring has a semaphore. The camera raises the index before it copies the unit into the slot.
    V1,
    /// Like v1, with brightness fields. Daemons up to January 2026 raise the index before they copy the unit.
    V2,
    /// Each control word has its own cache line. The camera copies the unit into the slot before it raises the index.
    V3,
    /// Like v3, but with six slots.
    V3Ring6,
    /// The ring's readers lease the slots (see [`crate::camera::lease`]). The magic in its header identifies the ring.
    Lease(Geometry),
}

impl Layout {
    /// The default lease ring. It has as many slots, and slots of the same size, as v0 to v3.
    pub const LEASE: Layout = match Geometry::new(LEASE_SLOTS, LEASE_SLOT_BYTES) {
        Ok(geometry) => Layout::Lease(geometry),
        Err(_) => panic!("the default is within the bounds"),
    };

    /// Every legacy layout, oldest first.
    pub const LEGACY: [Layout; 5] = [Layout::V0, Layout::V1, Layout::V2, Layout::V3, Layout::V3Ring6];

    /// Returns the legacy layout of a segment with `segment_bytes` bytes.
    ///
    /// # Errors
    /// [`LayoutError::UnknownSize`] if no legacy layout has this size. Its text lists every known layout.
    pub fn detect(segment_bytes: u64) -> Result<Layout, LayoutError> {
        Layout::LEGACY
            .into_iter()
            .find(|layout| layout.segment_bytes() as u64 == segment_bytes)
            .ok_or(LayoutError::UnknownSize(segment_bytes))
    }

    /// Returns the bytes of the whole segment.
    #[must_use]
    pub const fn segment_bytes(self) -> usize {
        match self {
            Layout::Lease(ring) => ring.segment_bytes(),
            _ => self.first_slot_offset() + self.slot_count() as usize * self.slot_stride(),
        }
    }

    /// Returns the number of slots. Unit `f` of a legacy ring is in slot `f mod slot_count`.
    #[must_use]
    pub const fn slot_count(self) -> u32 {
        match self {
            Layout::V0 | Layout::V1 | Layout::V2 | Layout::V3 => 30,
            Layout::V3Ring6 => 6,
            Layout::Lease(ring) => ring.slot_count(),
        }
    }

    /// Returns the offset of slot `index` in the segment. The index wraps at `slot_count`.
    #[must_use]
    pub const fn slot_offset(self, index: u32) -> usize {
        self.first_slot_offset() + (index % self.slot_count()) as usize * self.slot_stride()
    }

    /// Returns the offset of the access unit within its slot.
    #[must_use]
    pub const fn data_offset(self) -> usize {
        match self {
            Layout::V0 | Layout::V1 => 48,
            Layout::V2 | Layout::V3 | Layout::V3Ring6 => 60,
            Layout::Lease(_) => 0,
        }
    }

    /// Returns the bytes from one slot to the next.
    #[must_use]
    const fn slot_stride(self) -> usize {
        match self {
            Layout::Lease(ring) => ring.slot_bytes(),
            _ => (self.data_offset() + SLOT_DATA_BYTES_MAX).next_multiple_of(8),
        }
    }

    /// Returns the offsets of the daemon's `u32 frame_interval_ms` and of the `sem_t` that the daemon posts after each
    /// unit. Returns `None` for layouts without a semaphore.
    #[must_use]
    pub const fn control_offsets(self) -> Option<(usize, usize)> {
        match self {
            Layout::V0 | Layout::Lease(_) => None,
            Layout::V1 | Layout::V2 => Some((4, 8)),
            Layout::V3 | Layout::V3Ring6 => Some((64, 128)),
        }
    }

    /// Returns true if the index may be raised before the slot is complete. v2 is included because daemons before
    /// February 2026 raise the index first.
    #[must_use]
    pub const fn publishes_index_first(self) -> bool {
        matches!(self, Layout::V0 | Layout::V1 | Layout::V2)
    }

    /// Returns the offset of the first slot. All bytes before this offset are control words.
    #[must_use]
    pub const fn first_slot_offset(self) -> usize {
        match self {
            Layout::V0 => 8,
            Layout::V1 | Layout::V2 => 40,
            Layout::V3 | Layout::V3Ring6 => 192,
            Layout::Lease(ring) => ring.data_offset(),
        }
    }
}

/// Writes the layout's name as used on the command line and in logs.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::V0 => "v0",
            Layout::V1 => "v1",
            Layout::V2 => "v2",
            Layout::V3 => "v3",
            Layout::V3Ring6 => "v3-6",
            Layout::Lease(_) => "lease",
        })
    }
}

impl FromStr for Layout {
    type Err = LayoutError;

    fn from_str(name: &str) -> Result<Layout, LayoutError> {
        Layout::LEGACY
            .into_iter()
            .chain([Layout::LEASE])
            .find(|layout| layout.to_string() == name)
            .ok_or_else(|| LayoutError::UnknownName(name.to_owned()))
    }
}

/// Reason why no layout matches a segment or a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No known layout has this size in bytes, and the segment is not a lease ring.
    #[error("a segment of {0} bytes is not a known camera ring; known: {known}", known = known_layouts())]
    UnknownSize(u64),
    /// No layout has this name.
    #[error("there is no camera layout {0:?}; known: v0, v1, v2, v3, v3-6, lease")]
    UnknownName(String),
    /// The lease ring's header is invalid.
    #[error("the lease ring cannot be read: {0}")]
    Lease(#[from] HeaderError),
}

/// Returns the names of all legacy layouts, each with its size in bytes, as one line.
fn known_layouts() -> String {
    Layout::LEGACY.map(|layout| format!("{layout} {}", layout.segment_bytes())).join(", ")
}

/// Metadata of the unit in a slot, copied from the ring. The metadata is untrusted until [`SlotMetadata::validate`]
/// accepts it. The fields are laid out as in the C struct that the daemon writes at the start of each slot. This struct
/// is the same on all legacy rings.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct SlotMetadata {
    /// The camera's own picture count.
    pub frame_number: u64,
    /// Seconds of the capture time, on CLOCK_REALTIME or CLOCK_MONOTONIC.
    pub timestamp_s: i64,
    /// Nanoseconds of the capture time.
    pub timestamp_ns: i64,
    /// Number of the camera that took the picture.
    pub camera_id: i32,
    /// Width in pixels.
    pub width: i32,
    /// Height in pixels.
    pub height: i32,
    /// [`FORMAT_H264`], or another format, whose units this program skips.
    pub format: i32,
    /// Bytes of the access unit.
    pub data_bytes: u64,
}

impl SlotMetadata {
    /// Returns an error unless the slot can be read as an access unit.
    ///
    /// # Errors
    /// [`MetadataError`] with the first invalid field.
    pub fn validate(&self) -> Result<(), MetadataError> {
        if self.format != FORMAT_H264 {
            return Err(MetadataError::NotH264 { format: self.format });
        }
        if self.data_bytes == 0 || self.data_bytes > SLOT_DATA_BYTES_MAX as u64 {
            return Err(MetadataError::DataBytes { data_bytes: self.data_bytes });
        }
        let side = 1..=PICTURE_SIDE_MAX;
        if !side.contains(&self.width) || !side.contains(&self.height) {
            return Err(MetadataError::Dimensions { width: self.width, height: self.height });
        }
        Ok(())
    }
}

/// Reason why a slot is skipped.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The unit has another format than H.264.
    #[error(
        "format {format} is not H.264 (3; JPEG is 0, NV12 1, RGB 2): set the camera daemon to write H.264"
    )]
    NotH264 {
        /// The value of the field `format` in the slot.
        format: i32,
    },
    /// The unit is empty or larger than a slot.
    #[error("data_size {data_bytes} is not within 1..={SLOT_DATA_BYTES_MAX}")]
    DataBytes {
        /// The value of the field `data_size` in the slot.
        data_bytes: u64,
    },
    /// The width or height is not positive, or too large for a picture.
    #[error("a picture of {width}x{height} is not within 1..={PICTURE_SIDE_MAX} pixels a side")]
    Dimensions {
        /// The width found, in pixels.
        width: i32,
        /// The height found, in pixels.
        height: i32,
    },
}

const _: () = {
    assert!(size_of::<SlotMetadata>() == 48, "the metadata of the released daemons");
    assert!(Layout::V0.segment_bytes() == 93_313_448, "v0 as released");
    assert!(Layout::V1.segment_bytes() == 93_313_480, "v1 as released");
    assert!(Layout::V2.segment_bytes() == 93_313_960, "v2 as released");
    assert!(Layout::V3.segment_bytes() == 93_314_112, "v3 as released");
    assert!(Layout::V3Ring6.segment_bytes() == 18_662_976, "v3-6 as released");
    assert!(Layout::V0.slot_stride() == 3_110_448 && Layout::V1.slot_stride() == 3_110_448, "v0, v1 slots");
    assert!(Layout::V2.slot_stride() == 3_110_464 && Layout::V3.slot_stride() == 3_110_464, "v2, v3 slots");
    let mut i = 0;
    while i < Layout::LEGACY.len() {
        #[expect(clippy::indexing_slicing, reason = "const evaluation; out of bounds fails to compile")]
        let layout = Layout::LEGACY[i];
        // mapping.rs reads the metadata as eight-byte words, so every slot must start at a multiple of 8.
        assert!(layout.first_slot_offset().is_multiple_of(8), "slots are 8-aligned");
        assert!(layout.slot_stride().is_multiple_of(8), "every slot is 8-aligned");
        assert!(layout.data_offset() >= size_of::<SlotMetadata>(), "metadata comes before the data");
        if let Some((_, offset)) = layout.control_offsets() {
            assert!(offset.is_multiple_of(8), "sem_t is 8-aligned");
            assert!(offset + 32 <= layout.first_slot_offset(), "sem_t lies before the slots");
        }
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn h264(data_bytes: u64) -> SlotMetadata {
        SlotMetadata { width: 1280, height: 720, format: FORMAT_H264, data_bytes, ..SlotMetadata::default() }
    }

    #[test]
    fn slot_offsets_match_the_daemon() {
        let golden = [
            (Layout::V0, 8, 3_110_456, 48, None),
            (Layout::V1, 40, 3_110_488, 48, Some((4, 8))),
            (Layout::V2, 40, 3_110_504, 60, Some((4, 8))),
            (Layout::V3, 192, 3_110_656, 60, Some((64, 128))),
            (Layout::V3Ring6, 192, 3_110_656, 60, Some((64, 128))),
        ];
        for (layout, first, second, data, interval_and_semaphore) in golden {
            assert_eq!(layout.slot_offset(0), first, "{layout}");
            assert_eq!(layout.slot_offset(1), second, "{layout}");
            assert_eq!(layout.slot_offset(layout.slot_count()), first, "{layout}");
            assert_eq!(layout.data_offset(), data, "{layout}");
            assert_eq!(layout.control_offsets(), interval_and_semaphore, "{layout}");
            let last = layout.slot_offset(layout.slot_count() - 1);
            assert_eq!(last + layout.slot_stride(), layout.segment_bytes(), "{layout}");
        }
    }

    #[test]
    fn every_layout_is_found_by_size_and_by_name() {
        for layout in Layout::LEGACY {
            assert_eq!(Layout::detect(layout.segment_bytes() as u64), Ok(layout));
            assert_eq!(layout.to_string().parse(), Ok(layout));
        }
        assert_eq!(Layout::LEASE.to_string().parse(), Ok(Layout::LEASE));
        assert!(
            Layout::detect(Layout::LEASE.segment_bytes() as u64).is_err(),
            "a lease ring is identified by its header, not its size"
        );
    }

    #[test]
    fn unknown_size_error_lists_the_known_layouts() {
        let message = Layout::detect(4096).unwrap_err().to_string();
        for part in ["4096", "v0 93313448", "v1 93313480", "v2 93313960", "v3 93314112", "v3-6 18662976"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn invalid_metadata_is_refused_with_its_reason() {
        assert_eq!(h264(1).validate(), Ok(()));
        assert_eq!(h264(3_110_400).validate(), Ok(()));
        for data_bytes in [0, 3_110_401, u64::MAX] {
            assert_eq!(h264(data_bytes).validate(), Err(MetadataError::DataBytes { data_bytes }));
        }
        for format in [0, 1, 2, 4, -1, i32::MIN] {
            let invalid = SlotMetadata { format, ..h264(1) };
            assert_eq!(invalid.validate(), Err(MetadataError::NotH264 { format }));
        }
        for (width, height) in [(0, 720), (1280, 0), (-1, 1), (i32::MAX, 1), (1, i32::MIN)] {
            let invalid = SlotMetadata { width, height, ..h264(1) };
            assert_eq!(invalid.validate(), Err(MetadataError::Dimensions { width, height }));
        }
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn metadata_has_its_fields_where_the_daemon_has_them(bytes in prop::collection::vec(any::<u8>(), 48)) {
            let metadata = SlotMetadata::read_from_bytes(&bytes).unwrap();
            let (long, word) = (|at: usize| bytes[at..at + 8].try_into(), |at: usize| bytes[at..at + 4].try_into());
            prop_assert_eq!(metadata.frame_number, u64::from_ne_bytes(long(0).unwrap()));
            prop_assert_eq!(metadata.timestamp_s, i64::from_ne_bytes(long(8).unwrap()));
            prop_assert_eq!(metadata.timestamp_ns, i64::from_ne_bytes(long(16).unwrap()));
            prop_assert_eq!(metadata.camera_id, i32::from_ne_bytes(word(24).unwrap()));
            prop_assert_eq!(metadata.width, i32::from_ne_bytes(word(28).unwrap()));
            prop_assert_eq!(metadata.height, i32::from_ne_bytes(word(32).unwrap()));
            prop_assert_eq!(metadata.format, i32::from_ne_bytes(word(36).unwrap()));
            prop_assert_eq!(metadata.data_bytes, u64::from_ne_bytes(long(40).unwrap()));
            prop_assert_eq!(metadata.as_bytes(), bytes);
        }

        #[test]
        fn valid_metadata_fits_its_slot(
            format in 2..5_i32,
            width in any::<i32>(),
            height in any::<i32>(),
            data_bytes in prop_oneof![any::<u64>(), 0..4_000_000_u64],
        ) {
            let metadata = SlotMetadata { format, width, height, data_bytes, ..SlotMetadata::default() };
            let is_outside = |side: i32| side.clamp(1, PICTURE_SIDE_MAX) != side;
            let naive = format == 3 && data_bytes != 0 && data_bytes < 3_110_401
                && !is_outside(width) && !is_outside(height);
            prop_assert_eq!(metadata.validate().is_ok(), naive);
            for layout in Layout::LEGACY {
                if metadata.validate().is_ok() {
                    let end = layout.data_offset() as u64 + data_bytes;
                    prop_assert!(end <= layout.slot_stride() as u64);
                }
            }
        }
    }
}
