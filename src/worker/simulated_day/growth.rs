//! The rule of a simulated day for what the server holds: pools may fill, nothing may grow.

/// What full pools hold, whatever the day: 2.1 to 2.5 MB at the end of days of 18 rounds, flat from the fifth on. A small
/// day ends before they are full.
const POOLS_BYTES: i64 = 2_500_000;

/// Bytes the server may hold more than at the same place of an earlier round: pools reach their high-water marks.
const GROWTH_BYTES_MAX: i64 = 512 * 1024;

/// The second half of a day may not hold more than its first half, at the same states.
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
fn growth_is_seen_and_the_filling_of_pools_is_none() {
    assert!(check_growth(&[]).is_ok() && check_growth(&[5_000_000]).is_ok());
    assert!(check_growth(&[1_000_000, 2_000_000, 2_100_000]).is_ok());
    assert!(check_growth(&[2_000_000, 2_000_000, 2_000_000, 1_000_000]).is_ok());
    assert!(check_growth(&[1_000_000, 2_000_000, 3_100_000]).is_err());
    let leak: Vec<i64> = (0..24).map(|round| 2_000_000 + round * 50_000).collect();
    assert!(check_growth(&leak).is_err());
}
