//! PURE: arithmetic on unit numbers, which wrap at 32 bits.

/// Returns how far unit `a` is ahead of unit `b`; negative if it is behind.
pub(super) fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// Returns true if a legacy ring of `slots` slots certainly holds `unit` when its write index is `index`.
///
/// The margin is one slot more than it seems to need: a reader that sees a byte of the unit that reuses the slot
/// is only sure of an index one below that unit's own.
///
/// The next unit in the same slot is `unit + slots`, except where the index wraps. The slot is the unit's number
/// modulo the ring's size, and 2^32 is no multiple of that size. At the wrap the numbering restarts with slot 0.
pub(super) fn is_in_ring(unit: u32, index: u32, slots: u32) -> bool {
    let next_in_slot = unit.checked_add(slots).unwrap_or(unit % slots);
    let age = index.wrapping_sub(unit);
    // Age 0: not published, or the index was reset. A huge age: the index jumped back.
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
            // Naive: the unit is published, and no later unit shares its slot, up to the one after the unit that
            // is being written.
            let index = unit.wrapping_add(age);
            let naive = age >= 1 && (1..=age + 1).all(|i| unit.wrapping_add(i) % slots != unit % slots);
            prop_assert_eq!(is_in_ring(unit, index, slots), naive);
        }
    }
}
