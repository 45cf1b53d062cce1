//! Limits how often viewers make the camera produce an IDR. Each such IDR is sent to all viewers and recorded, so a viewer
//! that requests IDRs all the time, or joins again and again, would make the stream larger for everyone.

use std::net::{IpAddr, Ipv6Addr};

use crate::base::limits;
use crate::base::token_bucket::TokenBucket;

/// Returns the full budget of a new viewer.
pub(super) fn of_viewer() -> TokenBucket {
    TokenBucket::new(limits::VIEWER_IDR_INTERVAL_NS, limits::VIEWER_IDRS_BURST)
}

/// The budgets of the addresses whose viewers recently made the camera produce an IDR. They outlive the sessions.
#[derive(Default)]
pub(super) struct AddressBudgets {
    addresses: Vec<(IpAddr, TokenBucket)>,
}

impl AddressBudgets {
    /// Takes a token from the budget of a viewer and from the budget of its address. Returns false, and takes nothing,
    /// if one of them is used up.
    pub(super) fn take(&mut self, viewer: &mut TokenBucket, address: Option<IpAddr>, now_ns: i64) -> bool {
        if !viewer.has_token(now_ns) {
            return false;
        }
        let is_taken = address.is_none_or(|address| self.of(group(address), now_ns).take(now_ns));
        is_taken && viewer.take(now_ns)
    }

    fn of(&mut self, address: IpAddr, now_ns: i64) -> &mut TokenBucket {
        let known = self.addresses.iter().position(|(known, _)| *known == address);
        let index = known.unwrap_or_else(|| {
            self.addresses.retain(|(_, budget)| budget.full_at_ns() > now_ns);
            if self.addresses.len() >= limits::IDR_ADDRESSES_MAX {
                let fullest =
                    self.addresses.iter().zip(0..).min_by_key(|((_, budget), _)| budget.full_at_ns());
                fullest.map(|(_, index)| index).into_iter().for_each(|index| {
                    self.addresses.swap_remove(index);
                });
            }
            let budget = TokenBucket::new(limits::ADDRESS_IDR_INTERVAL_NS, limits::ADDRESS_IDRS_BURST);
            self.addresses.push((address, budget));
            self.addresses.len() - 1
        });
        let Some((_, budget)) = self.addresses.get_mut(index) else {
            unreachable!("the index was just found")
        };
        budget
    }
}

/// Returns the key under which an address is counted. For IPv6 this is the /64 prefix, because one subscriber owns all
/// addresses in it.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// Returns how many of the requests pass that arrive twice a second for a minute. `viewer` returns the budget of the
    /// viewer that sends the request with this number, and its address.
    fn passed(mut viewer: impl FnMut(i64) -> (Option<TokenBucket>, IpAddr)) -> usize {
        let (mut budgets, mut current) = (AddressBudgets::default(), of_viewer());
        let requests = (0..120).filter(|number| {
            let (new, address) = viewer(*number);
            current = new.unwrap_or(current);
            budgets.take(&mut current, Some(address), number * SECOND / 2)
        });
        requests.count()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn viewer_that_requests_idrs_all_the_time_gets_few() {
        let count = passed(|_| (None, ip("192.0.2.1")));
        assert!((15..=18).contains(&count), "{count} in a minute");
    }

    #[test]
    fn viewer_that_joins_again_and_again_gets_no_new_budget() {
        for addresses in [["192.0.2.1", "192.0.2.1"], ["2001:db8::1", "2001:db8::ffff:2"]] {
            let count = passed(|number| (Some(of_viewer()), ip(addresses[usize::from(number % 2 == 1)])));
            assert!((20..=26).contains(&count), "{count} in a minute");
        }
    }

    #[test]
    fn table_of_addresses_is_bounded_and_keeps_the_used_up_budgets() {
        let mut budgets = AddressBudgets::default();
        let attacker = ip("192.0.2.1");
        let taken = (0..100).filter(|_| budgets.take(&mut of_viewer(), Some(attacker), 0)).count();
        assert!(taken < 100, "the budget is used up");
        for number in 0..1_000_u32 {
            budgets.take(&mut of_viewer(), Some(IpAddr::V4((0x0a00_0000 + number).into())), SECOND);
        }
        assert_eq!(budgets.addresses.len(), limits::IDR_ADDRESSES_MAX);
        assert!(!budgets.take(&mut of_viewer(), Some(attacker), SECOND));
        budgets.take(&mut of_viewer(), Some(ip("192.0.2.2")), 100 * SECOND);
        assert_eq!(budgets.addresses.len(), 1, "full budgets are forgotten");
    }
}
