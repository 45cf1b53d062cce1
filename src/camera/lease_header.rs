//! PURE: how the lease ring lies in its segment, and whether a header may be believed. The C side of the same
//! numbers is `pet_camera_ring.h`; tests/promises/c_camera.rs compiles it and compares them.
//!
//! ```text
//!  0     header: 88 bytes of what the ring is, written once
//!        `latest`, `futex`, `keyframe_request`, `dropped` and `state`: each on a 64-byte line of its own
//!  4096  control blocks, 128 bytes each: word, captured_ns, frame_number, bytes, flags, NAL units, picture size
//!        data, on a page: the slots, slot_bytes each
//! ```

use crate::base::limits::{LEASE_SLOT_BYTES_MAX, LEASE_SLOTS_MIN, PICTURE_SIDE_MAX};
use crate::camera::lease::{READERS_MAX, SLOTS_MAX};

/// The first eight bytes of a lease ring: "PCAMRING" as a little-endian machine reads it.
pub const MAGIC: u64 = u64::from_le_bytes(*b"PCAMRING");
/// The version that is read and written.
pub const VERSION: u32 = 1;
/// `header_size`: bytes of the header page.
pub const HEADER_SIZE: u32 = 4096;
/// The same as an offset.
pub const HEADER_BYTES: usize = HEADER_SIZE as usize;
/// Bytes of one slot's control block.
pub const CONTROL_BYTES: usize = 128;
/// "H264" as a little-endian machine reads it.
pub const FOURCC_H264: u32 = u32::from_le_bytes(*b"H264");
/// `state` of a ring whose writer has said that it is done.
pub const STATE_CLOSED: u32 = 2;
/// `state` of a ring that is written.
pub const STATE_OPEN: u32 = 1;
/// `flags` of a slot whose unit is an IDR.
pub const FLAG_IDR: u32 = 1;
/// NAL unit offsets a control block has room for.
pub const NAL_OFFSETS_MAX: usize = 15;
/// The byte of the segment that a living writer locks (open file description lock).
pub const WRITER_LOCK: i64 = 0x7ffe_0000;
/// The byte that the reader with number 0 locks; the others follow.
pub const READER_LOCKS: i64 = 0x7fff_0000;

/// Where the fields of the header lie.
pub mod header {
    /// `u64`, written last.
    pub const MAGIC: usize = 0;
    /// `u32`
    pub const VERSION: usize = 8;
    /// `u32`
    pub const HEADER_SIZE: usize = 12;
    /// `u32`
    pub const SLOT_COUNT: usize = 16;
    /// `u32`
    pub const MAX_READERS: usize = 20;
    /// `u64`
    pub const SLOT_SIZE: usize = 24;
    /// `u64`
    pub const CTL_OFFSET: usize = 32;
    /// `u64`
    pub const DATA_OFFSET: usize = 40;
    /// `u64`
    pub const TOTAL_SIZE: usize = 48;
    /// `u32`
    pub const FOURCC: usize = 56;
    /// `u32`, 0
    pub const FLAGS: usize = 60;
    /// `u32`, pixels
    pub const WIDTH: usize = 64;
    /// `u32`, pixels
    pub const HEIGHT: usize = 68;
    /// `u32`
    pub const FPS_NUM: usize = 72;
    /// `u32`
    pub const FPS_DEN: usize = 76;
    /// `u64`: one more for every writer that took the segment over.
    pub const EPOCH: usize = 80;
    /// `u64`: the first sequence of that writer.
    pub const EPOCH_SEQUENCE: usize = 88;
    /// `u64`: sequence << 8 | slot of the newest unit.
    pub const LATEST: usize = 128;
    /// `u32`: changes with every unit; readers wait on it.
    pub const FUTEX: usize = 192;
    /// `u32`: not 0 when a reader wants an IDR.
    pub const KEYFRAME_REQUEST: usize = 256;
    /// `u64`: units the camera had no slot for.
    pub const DROPPED: usize = 320;
    /// `u32`
    pub const STATE: usize = 328;
}

/// Where the fields of a control block lie.
pub mod control {
    /// `u64`, see `lease.rs`.
    pub const WORD: usize = 0;
    /// `u64`: CLOCK_MONOTONIC or CLOCK_REALTIME.
    pub const CAPTURED_NS: usize = 8;
    /// `u64`
    pub const FRAME_NUMBER: usize = 16;
    /// `u32`: bytes of the unit.
    pub const LEN: usize = 24;
    /// `u32`
    pub const FLAGS: usize = 28;
    /// `u32`: offsets told, 0 where the camera does not tell any.
    pub const NAL_COUNT: usize = 32;
    /// `u32[15]`: where NAL units start, start code included.
    pub const NAL_OFFSET: usize = 36;
    /// `u32`: pixels; 0 is the header's.
    pub const WIDTH: usize = 96;
    /// `u32`: pixels; 0 is the header's.
    pub const HEIGHT: usize = 100;
}

/// How large a lease ring is and where its parts lie; only [`Geometry::new`] and [`Geometry::read`] make one, so
/// that every slot lies inside the segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    slot_count: u32,
    slot_bytes: u32,
    control_offset: u32,
    data_offset: u32,
    segment_bytes: usize,
}

impl Geometry {
    /// A ring of `slot_count` slots for units of up to `slot_bytes` bytes, which is rounded up to a line of 64.
    ///
    /// # Errors
    /// [`HeaderError`] if one of the numbers cannot be.
    pub const fn new(slot_count: u32, slot_bytes: u32) -> Result<Geometry, HeaderError> {
        if slot_count < LEASE_SLOTS_MIN || slot_count > SLOTS_MAX {
            return Err(HeaderError::SlotCount { slot_count });
        }
        if slot_bytes == 0 || slot_bytes > LEASE_SLOT_BYTES_MAX {
            return Err(HeaderError::SlotSize { slot_bytes: slot_bytes as u64 });
        }
        let slot_bytes = slot_bytes.next_multiple_of(64);
        let data = HEADER_BYTES + slot_count as usize * CONTROL_BYTES;
        let data_offset = data.next_multiple_of(PAGE_BYTES);
        #[expect(clippy::cast_possible_truncation, reason = "4096 + 256 * 128 is below one page")]
        Ok(Geometry {
            slot_count,
            slot_bytes,
            control_offset: HEADER_SIZE,
            data_offset: data_offset as u32,
            segment_bytes: data_offset + slot_count as usize * slot_bytes as usize,
        })
    }

    /// What the header of a segment of `segment_bytes` bytes says, if it may be believed. `header` is a copy of
    /// its first bytes: foreign, any value may come.
    ///
    /// # Errors
    /// [`HeaderError`] names the first field that cannot be.
    pub fn read(header: &[u8; HEADER_COPY_BYTES], segment_bytes: u64) -> Result<Geometry, HeaderError> {
        let word = |offset: usize| u32::from_ne_bytes(field(header, offset));
        let long = |offset: usize| u64::from_ne_bytes(field(header, offset));
        if long(header::MAGIC) != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = word(header::VERSION);
        if version != VERSION {
            return Err(HeaderError::Version { version });
        }
        if word(header::HEADER_SIZE) != HEADER_SIZE || word(header::MAX_READERS) != READERS_MAX {
            return Err(HeaderError::Version { version });
        }
        let fourcc = word(header::FOURCC);
        if fourcc != FOURCC_H264 {
            return Err(HeaderError::NotH264 { fourcc });
        }
        let slot_bytes = long(header::SLOT_SIZE);
        let told = u32::try_from(slot_bytes).unwrap_or(0);
        let geometry = Geometry::new(word(header::SLOT_COUNT), told)
            .map_err(|error| if told == 0 { HeaderError::SlotSize { slot_bytes } } else { error })?;
        geometry.check_places(&long, slot_bytes, segment_bytes)?;
        let (width, height) = (word(header::WIDTH), word(header::HEIGHT));
        let side_max = PICTURE_SIDE_MAX.unsigned_abs();
        if width > side_max || height > side_max {
            return Err(HeaderError::Dimensions { width, height });
        }
        Ok(geometry)
    }

    /// The one way to lay the ring out is the one both sides know.
    fn check_places(
        &self,
        told: &impl Fn(usize) -> u64,
        slot_bytes: u64,
        segment_bytes: u64,
    ) -> Result<(), HeaderError> {
        let known = [
            ("slot_size", slot_bytes, u64::from(self.slot_bytes)),
            ("ctl_offset", told(header::CTL_OFFSET), u64::from(self.control_offset)),
            ("data_offset", told(header::DATA_OFFSET), u64::from(self.data_offset)),
            ("total_size", told(header::TOTAL_SIZE), self.segment_bytes as u64),
            ("the segment's size", segment_bytes, self.segment_bytes as u64),
        ];
        match known.into_iter().find(|(_, found, expected)| found != expected) {
            Some((what, found, expected)) => Err(HeaderError::Place { what, found, expected }),
            None => Ok(()),
        }
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Bytes of the largest unit a slot can hold.
    #[must_use]
    pub const fn slot_bytes(&self) -> usize {
        self.slot_bytes as usize
    }

    /// Bytes of the whole segment.
    #[must_use]
    pub const fn segment_bytes(&self) -> usize {
        self.segment_bytes
    }

    /// Offset of the first slot's data: header and control blocks lie before it.
    #[must_use]
    pub const fn data_offset(&self) -> usize {
        self.data_offset as usize
    }

    /// Offset of the control block of slot `slot`, which wraps at the ring's size.
    #[must_use]
    pub const fn control_of(&self, slot: u32) -> usize {
        self.control_offset as usize + (slot % self.slot_count) as usize * CONTROL_BYTES
    }

    /// Offset of the data of slot `slot`, which wraps at the ring's size, from the first one's.
    #[must_use]
    pub const fn data_of(&self, slot: u32) -> usize {
        (slot % self.slot_count) as usize * self.slot_bytes()
    }

    /// Slots one reader may lease at once: a quarter, so that no reader alone brings the camera to dropping.
    #[must_use]
    pub const fn leases_max(&self) -> u32 {
        self.slot_count / 4
    }
}

/// The data is mapped by itself, so it starts on a page: of 64 KiB, the largest that Linux has.
const PAGE_BYTES: usize = 65_536;

/// Bytes of the header that say what the ring is.
pub const HEADER_COPY_BYTES: usize = 96;

/// Why a header is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is no lease ring.
    #[error("the magic of a lease ring is not there")]
    Magic,
    /// Another version.
    #[error("version {version} of the lease ring; known: {VERSION}, with a header of {HEADER_BYTES} bytes")]
    Version {
        /// The version found.
        version: u32,
    },
    /// The ring holds something else.
    #[error("a lease ring of {}, not of H.264", fourcc.to_le_bytes().escape_ascii())]
    NotH264 {
        /// The code found.
        fourcc: u32,
    },
    /// Too few slots or too many.
    #[error("a lease ring of {slot_count} slots is not within {LEASE_SLOTS_MIN}..={SLOTS_MAX}")]
    SlotCount {
        /// The number found.
        slot_count: u32,
    },
    /// Slots that are empty or too large.
    #[error("slots of {slot_bytes} bytes are not within 1..={LEASE_SLOT_BYTES_MAX}")]
    SlotSize {
        /// The number found.
        slot_bytes: u64,
    },
    /// A part does not lie where it has to.
    #[error("{what} is {found} and has to be {expected}")]
    Place {
        /// Which number.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The number that belongs to the ring's slots.
        expected: u64,
    },
    /// No picture has these dimensions.
    #[error("a picture of {width}x{height} is larger than {PICTURE_SIDE_MAX} a side")]
    Dimensions {
        /// The width found, in pixels.
        width: u32,
        /// The height found, in pixels.
        height: u32,
    },
}

/// The bytes at `offset`; zeros past the end, which no constant of this file reaches.
fn field<const BYTES: usize>(header: &[u8; HEADER_COPY_BYTES], offset: usize) -> [u8; BYTES] {
    header.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; BYTES])
}

const _: () = {
    assert!(header::EPOCH_SEQUENCE + 8 == HEADER_COPY_BYTES, "what is copied is what is checked");
    assert!(control::HEIGHT + 4 <= CONTROL_BYTES, "a control block holds its fields");
    assert!(control::NAL_OFFSET + 4 * NAL_OFFSETS_MAX == control::WIDTH, "the offsets fill their place");
    assert!(SLOTS_MAX as usize * LEASE_SLOT_BYTES_MAX as usize <= usize::MAX / 2, "no sum overflows");
    assert!(LEASE_SLOTS_MIN / 4 >= 2, "a reader writes one unit to disk while it sends the next");
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as a writer makes it.
    fn good(geometry: &Geometry) -> [u8; HEADER_COPY_BYTES] {
        let mut header = [0; HEADER_COPY_BYTES];
        let mut put =
            |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(header::MAGIC, &MAGIC.to_ne_bytes());
        put(header::VERSION, &VERSION.to_ne_bytes());
        put(header::HEADER_SIZE, &4096_u32.to_ne_bytes());
        put(header::SLOT_COUNT, &geometry.slot_count.to_ne_bytes());
        put(header::MAX_READERS, &16_u32.to_ne_bytes());
        put(header::SLOT_SIZE, &u64::from(geometry.slot_bytes).to_ne_bytes());
        put(header::CTL_OFFSET, &4096_u64.to_ne_bytes());
        put(header::DATA_OFFSET, &u64::from(geometry.data_offset).to_ne_bytes());
        put(header::TOTAL_SIZE, &(geometry.segment_bytes as u64).to_ne_bytes());
        put(header::FOURCC, b"H264");
        header
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        let ring = Geometry::new(30, 1_000_000).unwrap();
        assert_eq!((ring.slot_bytes(), ring.data_offset()), (1_000_000, 65_536));
        assert_eq!((ring.control_of(0), ring.control_of(29), ring.control_of(30)), (4096, 7808, 4096));
        assert_eq!(ring.data_of(29) + ring.slot_bytes() + ring.data_offset(), ring.segment_bytes());
        assert_eq!((ring.leases_max(), Geometry::new(8, 1).unwrap().leases_max()), (7, 2));
    }

    #[test]
    fn a_header_is_believed_when_all_its_numbers_agree() {
        let ring = Geometry::new(8, 4096).unwrap();
        assert_eq!(Geometry::read(&good(&ring), ring.segment_bytes as u64), Ok(ring));
    }

    #[test]
    fn each_lie_is_told_apart() {
        let ring = Geometry::new(8, 4096).unwrap();
        let told = |offset: usize, value: &[u8]| {
            let mut header = good(&ring);
            header[offset..offset + value.len()].copy_from_slice(value);
            Geometry::read(&header, ring.segment_bytes as u64).unwrap_err().to_string()
        };
        let lies: [(usize, &[u8], &str); 10] = [
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
        for (offset, value, expected) in lies {
            assert!(told(offset, value).contains(expected), "{}", told(offset, value));
        }
        assert!(Geometry::read(&good(&ring), ring.segment_bytes as u64 - 1).is_err(), "a shorter segment");
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_bytes_are_believed_only_if_every_slot_lies_inside(
            noise in prop::collection::vec(any::<u8>(), HEADER_COPY_BYTES),
            keep in prop::collection::vec(any::<bool>(), HEADER_COPY_BYTES / 4),
            slots in 0..300_u32,
            slot_bytes in prop_oneof![0..10_000_u32, any::<u32>()],
            segment_bytes in prop_oneof![any::<u64>(), 0..10_000_000_u64],
            is_right_size in any::<bool>(),
        ) {
            let geometry = Geometry::new(slots, slot_bytes);
            let base = geometry.clone().map_or([0; HEADER_COPY_BYTES], |geometry| good(&geometry));
            let mut header = base;
            for (i, byte) in header.iter_mut().enumerate() {
                // Mostly the truth, or nothing but the first check would ever be tried.
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
