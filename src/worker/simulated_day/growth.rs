//! The memory rule of a simulated day: pools may fill, nothing else may grow.

/// Bytes in full pools: 2.1 to 2.5 MB measured at the end of days of 18 rounds, constant from the fifth round on. A small
/// day ends before they are full.
const POOLS_BYTES: i64 = 2_500_000;

/// Bytes that the server may hold more than at the same point of an earlier round: pools reach their high-water marks.
const GROWTH_BYTES_MAX: i64 = 512 * 1024;

/// The second half of a day must not hold more than the first half in the same state.
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
