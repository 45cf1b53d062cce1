//! The memory rule of a simulated day: memory pools may fill up, and nothing else may grow.

/// Bytes that the server holds when its pools are full. At the end of days of 18 rounds 2.1 to 2.5 MB were measured,
/// constant from the fifth round on. A small day ends before the pools are full.
const POOLS_BYTES: i64 = 2_500_000;

/// Allowed growth in bytes from the first half of a day to the second, because pools may still reach new high-water
/// marks.
const GROWTH_BYTES_MAX: i64 = 512 * 1024;

/// Returns an error if the server holds more bytes in the second half of a day than in the first half, by more than
/// [`GROWTH_BYTES_MAX`]. The bytes are measured at the end of each round, in the same state.
pub(super) fn check_growth(held_bytes: &[i64]) -> Result<(), String> {
    let (first, rest) = held_bytes.split_at(held_bytes.len().div_ceil(2));
    let most = |bytes: &[i64]| bytes.iter().copied().max();
    match (most(first), most(rest)) {
        (Some(before), Some(after)) if after > before.max(POOLS_BYTES) + GROWTH_BYTES_MAX => {
            Err(format!("the server grows: {held_bytes:?} bytes at the end of each round"))
        }
        _ => Ok(()),
    }
}

#[test]
fn growth_is_an_error_and_filling_pools_is_not() {
    assert!(check_growth(&[]).is_ok() && check_growth(&[5_000_000]).is_ok());
    assert!(check_growth(&[1_000_000, 2_000_000, 2_100_000]).is_ok());
    assert!(check_growth(&[2_000_000, 2_000_000, 2_000_000, 1_000_000]).is_ok());
    assert!(check_growth(&[1_000_000, 2_000_000, 3_100_000]).is_err());
    let leak: Vec<i64> = (0..24).map(|round| 2_000_000 + round * 50_000).collect();
    assert!(check_growth(&leak).is_err());
}
