//! PURE: arithmetic on unit numbers, which wrap at 32 bits.

/// Returns by how many units `a` is ahead of `b`. The result is negative if `a` is behind `b`.
pub(super) fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// Returns true if a legacy ring of `slots` slots certainly holds `unit` when its write index is `index`.
///
/// The check keeps a margin of one slot, for this reason: a reader may already see a byte of the unit that reuses the
/// slot. At that moment the reader is sure to see only an index that is one below that unit's own index.
///
/// A unit is in slot `unit` modulo `slots`, so the next unit in the same slot is normally `unit + slots`. This is not
/// so where the 32-bit index wraps, because 2^32 is no multiple of `slots`. At the wrap, unit 0 is in slot 0 again.
pub(super) fn is_in_ring(unit: u32, index: u32, slots: u32) -> bool {
    let next_in_slot = unit.checked_add(slots).unwrap_or(unit % slots);
    let age = index.wrapping_sub(unit);
    // At age 0 the unit is not published, or the index was reset. A huge age means that the index jumped back.
    age >= 1 && age < next_in_slot.wrapping_sub(unit).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unit_is_in_ring_if_no_unit_near_the_index_uses_its_slot(
            unit in prop_oneof![0..100_u32, (u32::MAX - 100)..=u32::MAX, any::<u32>()],
            age in 0..100_u32,
            slots in prop_oneof![Just(6_u32), Just(30_u32)],
        ) {
            // The naive check: the unit is published, and none of the later units shares its slot. The last unit
            // checked is the one after the unit that is being written.
            let index = unit.wrapping_add(age);
            let naive = age >= 1 && (1..=age + 1).all(|i| unit.wrapping_add(i) % slots != unit % slots);
            prop_assert_eq!(is_in_ring(unit, index, slots), naive);
        }
    }
}
