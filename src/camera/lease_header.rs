//! PURE: layout of the lease ring in its segment, and validation of its header. `pet_camera_ring.h` defines the same
//! numbers in C. tests/promises/c_camera.rs compiles that file and compares the numbers.
//!
//! ```text
//!  0     header: 96 bytes that describe the ring, changed only when a new writer begins
//!        `latest`, `futex`, `keyframe_request`, `dropped` with `state`, `bitrate_request`: each on its own 64-byte line
//!  4096  control blocks, 128 bytes each: word, captured_ns, frame_number, bytes, flags, NAL units, picture size
//!        data, page-aligned: the slots, slot_bytes each
//! ```

use crate::base::limits::{LEASE_SLOT_BYTES_MAX, LEASE_SLOTS_MIN, PICTURE_SIDE_MAX};
use crate::camera::lease::{READERS_MAX, SLOTS_MAX};

/// The first eight bytes of a lease ring, "PCAMRING", as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"PCAMRING");
/// The version of the ring's layout that this program reads and writes.
pub const VERSION: u32 = 1;
/// Value of the field `header_size`: the bytes before the first control block.
pub const HEADER_SIZE: u32 = 4096;
/// [`HEADER_SIZE`] as an offset: where the first control block starts.
pub const HEADER_BYTES: usize = HEADER_SIZE as usize;
/// Bytes of one slot's control block.
pub const CONTROL_BYTES: usize = 128;
/// Value of the field `fourcc`: "H264" as a little-endian number.
pub const FOURCC_H264: u32 = u32::from_le_bytes(*b"H264");
/// Value of the field `state` after the writer has closed the ring.
pub const STATE_CLOSED: u32 = 2;
/// Value of the field `state` while the writer uses the ring.
pub const STATE_OPEN: u32 = 1;
/// Bit of a slot's `flags` that is set if the unit is an IDR.
pub const FLAG_IDR: u32 = 1;
/// Bit of the header's `flags` that is set if the camera obeys `bitrate_request`.
pub const FLAG_OBEYS_BITRATE: u32 = 1;
/// Seconds after which the camera ignores a `bitrate_request` that was not renewed.
pub const BITRATE_REQUEST_S: u32 = 5; // local bound: it is part of the layout
/// Maximum number of NAL unit offsets in a control block. This local bound is part of the layout.
pub const NAL_OFFSETS_MAX: usize = 15;
/// Offset of the byte that the writer keeps locked as long as it lives, with an open file description lock.
pub const WRITER_LOCK: i64 = 0x7ffe_0000;
/// Offset of the byte that reader 0 keeps locked. The bytes of the other readers follow.
pub const READER_LOCKS: i64 = 0x7fff_0000;

/// Returns a time of CLOCK_MONOTONIC as the field `bitrate_requested_s` has it.
#[expect(clippy::cast_possible_truncation, reason = "the field wraps around")]
pub(super) const fn seconds(now_ns: i64) -> u32 {
    (now_ns / 1_000_000_000) as u32
}

/// Offsets of the header's fields. The doc of each offset names the field's type and meaning.
pub mod header {
    /// `u64`: the magic number, which the writer stores last.
    pub const MAGIC: usize = 0;
    /// `u32`: version of the layout.
    pub const VERSION: usize = 8;
    /// `u32`: bytes of the header, 4096.
    pub const HEADER_SIZE: usize = 12;
    /// `u32`: number of slots.
    pub const SLOT_COUNT: usize = 16;
    /// `u32`: maximum number of readers, 16.
    pub const MAX_READERS: usize = 20;
    /// `u64`: bytes of one slot.
    pub const SLOT_SIZE: usize = 24;
    /// `u64`: offset of the first control block.
    pub const CTL_OFFSET: usize = 32;
    /// `u64`: offset of the first slot's data.
    pub const DATA_OFFSET: usize = 40;
    /// `u64`: bytes of the segment.
    pub const TOTAL_SIZE: usize = 48;
    /// `u32`: format of the units, "H264".
    pub const FOURCC: usize = 56;
    /// `u32`: properties of the camera, see [`FLAG_OBEYS_BITRATE`](super::FLAG_OBEYS_BITRATE). The other bits are 0.
    pub const FLAGS: usize = 60;
    /// `u32`: picture width in pixels.
    pub const WIDTH: usize = 64;
    /// `u32`: picture height in pixels.
    pub const HEIGHT: usize = 68;
    /// `u32`: numerator of the picture rate per second.
    pub const FPS_NUM: usize = 72;
    /// `u32`: denominator of the picture rate per second.
    pub const FPS_DEN: usize = 76;
    /// `u64`: number of the current writer. Every writer that takes over the segment raises it by one.
    pub const EPOCH: usize = 80;
    /// `u64`: the first sequence of the current writer.
    pub const EPOCH_SEQUENCE: usize = 88;
    /// `u64`: `sequence << 8 | slot` of the newest unit.
    pub const LATEST: usize = 128;
    /// `u32`: futex word on which readers wait. It changes with every unit.
    pub const FUTEX: usize = 192;
    /// `u32`: not 0 if a reader has requested an IDR and the camera has not yet taken the request.
    pub const KEYFRAME_REQUEST: usize = 256;
    /// `u64`: number of units that the camera dropped because no slot could take them.
    pub const DROPPED: usize = 320;
    /// `u32`: open or closed.
    pub const STATE: usize = 328;
    /// `u32`: highest bit rate in kbit/s that the camera may use; 0 if there is no request. Only readers write it.
    /// Cameras and readers that do not know it leave it 0.
    pub const BITRATE_REQUEST: usize = 384;
    /// `u32`: when `bitrate_request` was last renewed, in seconds of CLOCK_MONOTONIC, with wrap-around.
    pub const BITRATE_REQUESTED_S: usize = 388;
}

/// Offsets of a control block's fields. The doc of each offset names the field's type and meaning.
pub mod control {
    /// `u64`: the slot's atomic word, see `lease.rs`.
    pub const WORD: usize = 0;
    /// `u64`: capture time in nanoseconds of CLOCK_MONOTONIC or CLOCK_REALTIME.
    pub const CAPTURED_NS: usize = 8;
    /// `u64`: the camera's own picture count.
    pub const FRAME_NUMBER: usize = 16;
    /// `u32`: bytes of the unit.
    pub const LEN: usize = 24;
    /// `u32`: flags of the unit.
    pub const FLAGS: usize = 28;
    /// `u32`: number of NAL unit offsets. It is 0 if the camera stores none.
    pub const NAL_COUNT: usize = 32;
    /// `u32[15]`: offsets of the NAL units' start codes.
    pub const NAL_OFFSET: usize = 36;
    /// `u32`: picture width in pixels. 0 means the width in the header.
    pub const WIDTH: usize = 96;
    /// `u32`: picture height in pixels. 0 means the height in the header.
    pub const HEIGHT: usize = 100;
}

/// Size and offsets of a lease ring. Only [`Geometry::new`] and [`Geometry::read`] create a value of this type, and
/// both check the numbers. So every slot of a `Geometry` is inside the segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    slot_count: u32,
    slot_bytes: usize,
    data_offset: usize,
    segment_bytes: usize,
}

impl Geometry {
    /// Returns the geometry of a ring with `slot_count` slots. `slot_bytes`, the size of a slot, is rounded up to a
    /// multiple of 64.
    ///
    /// # Errors
    /// [`HeaderError`] if a number is out of range.
    pub const fn new(slot_count: u32, slot_bytes: u32) -> Result<Geometry, HeaderError> {
        if slot_count < LEASE_SLOTS_MIN || slot_count > SLOTS_MAX {
            return Err(HeaderError::SlotCount(slot_count));
        }
        if slot_bytes == 0 || slot_bytes > LEASE_SLOT_BYTES_MAX {
            return Err(HeaderError::SlotSize(slot_bytes as u64));
        }
        let slot_bytes = slot_bytes.next_multiple_of(64) as usize;
        let data = HEADER_BYTES + slot_count as usize * CONTROL_BYTES;
        let data_offset = data.next_multiple_of(PAGE_BYTES);
        let segment_bytes = data_offset + slot_count as usize * slot_bytes;
        Ok(Geometry { slot_count, slot_bytes, data_offset, segment_bytes })
    }

    /// Validates the header of a segment of `segment_bytes` bytes, and returns the geometry. `header` is a copy of the
    /// segment's first bytes, which are untrusted.
    ///
    /// # Errors
    /// [`HeaderError`] with the first invalid field.
    pub fn read(header: &[u8; HEADER_COPY_BYTES], segment_bytes: u64) -> Result<Geometry, HeaderError> {
        let word = |offset: usize| u32::from_ne_bytes(field(header, offset));
        let long = |offset: usize| u64::from_ne_bytes(field(header, offset));
        if long(header::MAGIC) != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = word(header::VERSION);
        let sizes = (word(header::HEADER_SIZE), word(header::MAX_READERS));
        if version != VERSION || sizes != (HEADER_SIZE, READERS_MAX) {
            return Err(HeaderError::Version(version));
        }
        let fourcc = word(header::FOURCC);
        if fourcc != FOURCC_H264 {
            return Err(HeaderError::NotH264(fourcc));
        }
        let slot_bytes = long(header::SLOT_SIZE);
        let narrow = u32::try_from(slot_bytes).unwrap_or(0);
        let geometry = Geometry::new(word(header::SLOT_COUNT), narrow)
            .map_err(|error| if narrow == 0 { HeaderError::SlotSize(slot_bytes) } else { error })?;
        // For this number and size of slots only one layout is valid, so a header with any other offset is rejected.
        let places = [
            ("slot_size", slot_bytes, geometry.slot_bytes),
            ("ctl_offset", long(header::CTL_OFFSET), HEADER_BYTES),
            ("data_offset", long(header::DATA_OFFSET), geometry.data_offset),
            ("total_size", long(header::TOTAL_SIZE), geometry.segment_bytes),
            ("the segment's size", segment_bytes, geometry.segment_bytes),
        ];
        for (what, found, expected) in places {
            if found != expected as u64 {
                return Err(HeaderError::Place { what, found, expected });
            }
        }
        let (width, height) = (word(header::WIDTH), word(header::HEIGHT));
        let side_max = PICTURE_SIDE_MAX.unsigned_abs();
        if width > side_max || height > side_max {
            return Err(HeaderError::Dimensions { width, height });
        }
        Ok(geometry)
    }

    /// Returns the number of slots.
    #[must_use]
    pub const fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Returns the bytes of a slot, which is the size of the largest unit that it can hold.
    #[must_use]
    pub const fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Returns the bytes of the whole segment.
    #[must_use]
    pub const fn segment_bytes(&self) -> usize {
        self.segment_bytes
    }

    /// Returns the offset of the first slot's data, which follows the header and the control blocks.
    #[must_use]
    pub const fn data_offset(&self) -> usize {
        self.data_offset
    }

    /// Returns the offset of the control block of `slot`. `slot` wraps at the number of slots.
    #[must_use]
    pub const fn control_of(&self, slot: u32) -> usize {
        HEADER_BYTES + (slot % self.slot_count) as usize * CONTROL_BYTES
    }

    /// Returns the offset of the data of `slot`, counted from the first slot's data. `slot` wraps at the number of
    /// slots.
    #[must_use]
    pub const fn data_of(&self, slot: u32) -> usize {
        (slot % self.slot_count) as usize * self.slot_bytes
    }

    /// Returns the number of slots that one reader may lease at the same time. It is a quarter of all slots, so that no
    /// single reader makes the camera drop units.
    #[must_use]
    pub const fn leases_max(&self) -> u32 {
        self.slot_count / 4
    }
}

/// Alignment of the first slot's data. A reader maps the data separately, so it must start on a page. 64 KiB is the
/// largest page size of Linux.
const PAGE_BYTES: usize = 65_536;

/// Number of bytes at the start of the header that [`Geometry::read`] receives.
pub const HEADER_COPY_BYTES: usize = 96;

/// Reason why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The segment is not a lease ring.
    #[error("the magic of a lease ring is missing")]
    Magic,
    /// The ring has another version or header size than this program reads.
    #[error("the lease ring has version {0}; known: {VERSION}, with a header of {HEADER_BYTES} bytes")]
    Version(u32),
    /// The units in the ring have another format than H.264.
    #[error("the lease ring holds {}, not H264", .0.to_le_bytes().escape_ascii())]
    NotH264(u32),
    /// The ring has too few or too many slots.
    #[error("the lease ring has {0} slots, not within {LEASE_SLOTS_MIN}..={SLOTS_MAX}")]
    SlotCount(u32),
    /// The slots have 0 bytes or are too large.
    #[error("the slots of the lease ring have {0} bytes, not within 1..={LEASE_SLOT_BYTES_MAX}")]
    SlotSize(u64),
    /// An offset or size does not match the number and size of the slots.
    #[error("{what} is {found} but must be {expected}")]
    Place {
        /// Name of the field.
        what: &'static str,
        /// The number found in the header.
        found: u64,
        /// The number that matches the number and size of the slots.
        expected: usize,
    },
    /// The width or height is too large for a picture.
    #[error("a picture of {width}x{height} is larger than {PICTURE_SIDE_MAX} pixels a side")]
    Dimensions {
        /// The width found, in pixels.
        width: u32,
        /// The height found, in pixels.
        height: u32,
    },
}

/// Returns the bytes at `offset`. Returns zeros if they end after the copy of the header, which is not the case for any
/// offset that [`Geometry::read`] uses.
fn field<const BYTES: usize>(header: &[u8; HEADER_COPY_BYTES], offset: usize) -> [u8; BYTES] {
    header.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; BYTES])
}

const _: () = {
    assert!(header::EPOCH_SEQUENCE + 8 == HEADER_COPY_BYTES, "the copy ends with the last checked field");
    assert!(control::HEIGHT + 4 <= CONTROL_BYTES, "a control block holds its fields");
    assert!(control::NAL_OFFSET + 4 * NAL_OFFSETS_MAX == control::WIDTH, "the offsets fill their place");
    assert!(SLOTS_MAX as usize * LEASE_SLOT_BYTES_MAX as usize <= usize::MAX / 2, "no sum overflows");
    assert!(LEASE_SLOTS_MIN / 4 >= 2, "a reader writes one unit to disk while it sends the next");
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a valid header for `geometry`.
    fn valid_header(geometry: &Geometry) -> [u8; HEADER_COPY_BYTES] {
        let mut header = [0; HEADER_COPY_BYTES];
        let mut put =
            |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(header::MAGIC, &MAGIC.to_ne_bytes());
        put(header::VERSION, &VERSION.to_ne_bytes());
        put(header::HEADER_SIZE, &4096_u32.to_ne_bytes());
        put(header::SLOT_COUNT, &geometry.slot_count.to_ne_bytes());
        put(header::MAX_READERS, &16_u32.to_ne_bytes());
        put(header::SLOT_SIZE, &(geometry.slot_bytes as u64).to_ne_bytes());
        put(header::CTL_OFFSET, &4096_u64.to_ne_bytes());
        put(header::DATA_OFFSET, &(geometry.data_offset as u64).to_ne_bytes());
        put(header::TOTAL_SIZE, &(geometry.segment_bytes as u64).to_ne_bytes());
        put(header::FOURCC, b"H264");
        header
    }

    #[test]
    fn parts_follow_each_other() {
        let ring = Geometry::new(30, 1_000_000).unwrap();
        assert_eq!((ring.slot_bytes(), ring.data_offset()), (1_000_000, 65_536));
        assert_eq!((ring.control_of(0), ring.control_of(29), ring.control_of(30)), (4096, 7808, 4096));
        assert_eq!(ring.data_of(29) + ring.slot_bytes() + ring.data_offset(), ring.segment_bytes());
        assert_eq!((ring.leases_max(), Geometry::new(8, 1).unwrap().leases_max()), (7, 2));
    }

    #[test]
    fn header_with_matching_numbers_is_accepted() {
        let ring = Geometry::new(8, 4096).unwrap();
        assert_eq!(Geometry::read(&valid_header(&ring), ring.segment_bytes as u64), Ok(ring));
    }

    #[test]
    fn each_invalid_field_has_its_own_error() {
        let ring = Geometry::new(8, 4096).unwrap();
        let error_of = |offset: usize, value: &[u8]| {
            let mut header = valid_header(&ring);
            header[offset..offset + value.len()].copy_from_slice(value);
            Geometry::read(&header, ring.segment_bytes as u64).unwrap_err().to_string()
        };
        let invalid: [(usize, &[u8], &str); 10] = [
            (header::MAGIC, b"X", "magic"),
            (header::VERSION, &2_u32.to_ne_bytes(), "version 2"),
            (header::FOURCC, b"MJPG", "MJPG"),
            (header::SLOT_COUNT, &7_u32.to_ne_bytes(), "7 slots"),
            (header::SLOT_COUNT, &257_u32.to_ne_bytes(), "257 slots"),
            (header::SLOT_SIZE, &u64::MAX.to_ne_bytes(), "18446744073709551615 bytes"),
            (header::DATA_OFFSET, &4096_u64.to_ne_bytes(), "data_offset is 4096"),
            (header::TOTAL_SIZE, &0_u64.to_ne_bytes(), "total_size is 0"),
            (header::SLOT_COUNT, &9_u32.to_ne_bytes(), "total_size"),
            (header::WIDTH, &u32::MAX.to_ne_bytes(), "4294967295x0"),
        ];
        for (offset, value, expected) in invalid {
            let error = error_of(offset, value);
            assert!(error.contains(expected), "{error}");
        }
        assert!(
            Geometry::read(&valid_header(&ring), ring.segment_bytes as u64 - 1).is_err(),
            "a shorter segment"
        );
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_accepted_header_has_every_slot_inside_the_segment(
            noise in prop::collection::vec(any::<u8>(), HEADER_COPY_BYTES),
            keep in prop::collection::vec(any::<bool>(), HEADER_COPY_BYTES / 4),
            slots in 0..300_u32,
            slot_bytes in prop_oneof![0..10_000_u32, any::<u32>()],
            segment_bytes in prop_oneof![any::<u64>(), 0..10_000_000_u64],
            is_right_size in any::<bool>(),
        ) {
            let geometry = Geometry::new(slots, slot_bytes);
            let base = geometry.clone().map_or([0; HEADER_COPY_BYTES], |geometry| valid_header(&geometry));
            let mut header = base;
            for (i, byte) in header.iter_mut().enumerate() {
                // Most bytes stay valid. Otherwise only the first check in `Geometry::read` would ever run.
                if i >= 64 || !keep[i / 4] && noise[i] < 16 {
                    *byte = noise[i];
                }
            }
            let true_bytes = geometry.map_or(segment_bytes, |geometry| geometry.segment_bytes() as u64);
            let segment_bytes = if is_right_size { true_bytes } else { segment_bytes };
            if let Ok(ring) = Geometry::read(&header, segment_bytes) {
                for slot in [0, ring.slot_count() - 1, ring.slot_count(), u32::MAX] {
                    prop_assert!(ring.control_of(slot) >= HEADER_BYTES);
                    prop_assert!(ring.control_of(slot) + CONTROL_BYTES <= ring.data_offset());
                    let end = ring.data_offset() + ring.data_of(slot) + ring.slot_bytes();
                    prop_assert!(end as u64 <= segment_bytes);
                }
                prop_assert!(ring.data_offset().is_multiple_of(PAGE_BYTES));
            }
        }
    }
}
