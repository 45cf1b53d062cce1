//! Makes units malformed, as a broken camera may publish them. This module only corrupts a unit; the caller publishes
//! it.

use crate::base::limits::SLOT_DATA_BYTES_MAX;
use crate::camera::{FORMAT_H264, SlotMetadata};

/// Number of kinds of corruption. Callers use all of them in turn.
pub(super) const KINDS: u64 = 11;

/// Applies the corruption `number` (modulo [`KINDS`]) to a unit. Most kinds make the unit unusable. A unit with a wrong
/// frame number or an absurd timestamp stays usable.
pub(super) fn corrupt(number: u64, metadata: &mut SlotMetadata, bytes: &mut [u8]) {
    match number % KINDS {
        0 => metadata.data_bytes = u64::MAX,
        1 => metadata.data_bytes = 0,
        2 => metadata.data_bytes = SLOT_DATA_BYTES_MAX as u64 + 1,
        3 => (metadata.width, metadata.height) = (-1280, i32::MIN),
        4 => (metadata.width, metadata.height) = (0, i32::MAX),
        5 => metadata.format = 1,
        6 => metadata.format = FORMAT_H264 | i32::MIN,
        7 => noise(number, bytes),
        8 => start_codes(bytes),
        9 => metadata.frame_number = metadata.frame_number.wrapping_sub(1_000_000),
        _ => (metadata.timestamp_s, metadata.timestamp_ns) = (i64::MAX, i64::MIN),
    }
}

/// Replaces all bytes by pseudo-random bytes (xorshift64).
fn noise(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        [*byte, ..] = state.to_le_bytes();
    }
}

/// Replaces all bytes by NAL units of one byte each.
fn start_codes(bytes: &mut [u8]) {
    for (byte, pattern) in bytes.iter_mut().zip([0, 0, 1, 0x65].into_iter().cycle()) {
        *byte = pattern;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_corruption_changes_the_unit_but_not_its_length() {
        let original = SlotMetadata {
            width: 640,
            height: 480,
            format: FORMAT_H264,
            data_bytes: 100,
            ..Default::default()
        };
        for number in 0..KINDS {
            let (mut metadata, mut bytes) = (original, vec![0x42; 100]);
            corrupt(number, &mut metadata, &mut bytes);
            assert!(metadata != original || bytes != [0x42; 100], "corruption {number}");
            assert_eq!(bytes.len(), 100);
        }
    }
}
