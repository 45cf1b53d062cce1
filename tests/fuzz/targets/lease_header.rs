//! Takes any bytes as the header of a lease ring. If the header is accepted, every slot must be inside the segment.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming_server::camera::Geometry;
use streaming_server::camera::lease_header::{CONTROL_BYTES, HEADER_BYTES, HEADER_COPY_BYTES, MAGIC, header};

fuzz_target!(|input: (u64, bool, Vec<u8>)| {
    let (told, right_size, bytes) = input;
    let mut copy = [0; HEADER_COPY_BYTES];
    for (target, byte) in copy.iter_mut().zip(bytes) {
        *target = byte;
    }
    // The magic is always right, because otherwise the first check would reject nearly every input.
    copy[..8].copy_from_slice(&MAGIC.to_ne_bytes());
    let total = u64::from_ne_bytes(copy[header::TOTAL_SIZE..header::TOTAL_SIZE + 8].try_into().unwrap());
    let segment_bytes = if right_size { total } else { told };
    let Ok(ring) = Geometry::read(&copy, segment_bytes) else { return };
    for slot in [0, ring.slot_count() - 1, ring.slot_count(), u32::MAX] {
        assert!(ring.control_of(slot) >= HEADER_BYTES);
        assert!(ring.control_of(slot) + CONTROL_BYTES <= ring.data_offset());
        assert!((ring.data_offset() + ring.data_of(slot) + ring.slot_bytes()) as u64 <= segment_bytes);
    }
});
