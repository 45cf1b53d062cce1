//! Shares the places for connections among the callers. Does no I/O.
//!
//! ```text
//!  new connection ─► few places free, and its caller holds half of them? ─► its own idle one gives way, else refused
//!                 └► no place free? ─► an idle one gives way, else an unfinished request, else a caller above its half
//! ```
//!
//! A caller is an address until a request on the connection carries a login; then it is the login. Exempt addresses
//! have no share, because many users share them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::activity::Activity;
use super::address::{Exempt, group};
use super::lock;
use crate::base::limits;

/// Who holds a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// An address that has no share.
    Exempt,
    /// An address, or a /64 of IPv6.
    Address(IpAddr),
    /// A login, by its id.
    Login([u8; 16]),
}

/// Why a connection or a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// All places are in use.
    Full,
    /// Few places are free, and the caller holds its share.
    Share,
}

/// The places of one endpoint.
pub(super) struct Places {
    exempt: Exempt,
    held: Mutex<Vec<Held>>,
}

struct Held {
    holder: Holder,
    place: Arc<PlaceState>,
}

/// The part of a place that its connection and the table share.
pub(super) struct PlaceState {
    pub(super) activity: Arc<Activity>,
    /// Notified when the connection must give way.
    pub(super) gives_way: Arc<Notify>,
}

/// A place that a connection holds until this value is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    pub(super) state: Arc<PlaceState>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.held).retain(|held| !Arc::ptr_eq(&held.place, &self.state));
    }
}

impl Places {
    pub(super) fn new(exempt: Exempt) -> Places {
        Places { exempt, held: Mutex::new(Vec::new()) }
    }

    /// Gives a place to a new connection of this address. Another connection may have to give way.
    ///
    /// # Errors
    /// Returns the reason if the connection must be refused.
    pub(super) fn admit(self: &Arc<Places>, peer: IpAddr) -> Result<Place, Refusal> {
        let holder = if self.exempt.contains(peer) { Holder::Exempt } else { Holder::Address(group(peer)) };
        let mut held = lock(&self.held);
        make_room(&mut held, holder)?;
        let state = Arc::new(PlaceState { activity: Arc::new(Activity::new()), gives_way: Arc::default() });
        held.push(Held { holder, place: Arc::clone(&state) });
        Ok(Place { places: Arc::clone(self), state })
    }

    /// Counts the connection for this login from now on.
    ///
    /// # Errors
    /// Returns the reason if the login holds its share already.
    pub(super) fn assign(&self, place: &Arc<PlaceState>, login: [u8; 16]) -> Result<(), Refusal> {
        let holder = Holder::Login(login);
        let mut held = lock(&self.held);
        let is_mine = |other: &Held| Arc::ptr_eq(&other.place, place);
        if held.iter().any(|other| is_mine(other) && other.holder == holder) {
            return Ok(());
        }
        if is_at_share(&held, holder) && !give_way(&mut held, |other| other == holder) {
            return Err(Refusal::Share);
        }
        if let Some(mine) = held.iter_mut().find(|other| is_mine(other)) {
            mine.holder = holder;
        }
        Ok(())
    }
}

/// Makes room for one more connection of this holder.
fn make_room(held: &mut Vec<Held>, holder: Holder) -> Result<(), Refusal> {
    if is_at_share(held, holder) {
        return if give_way(held, |other| other == holder) { Ok(()) } else { Err(Refusal::Share) };
    }
    if held.len() < limits::CONNECTIONS_MAX || give_way(held, |_| true) {
        return Ok(());
    }
    // Every connection is being answered. A holder that took more than its share while places were free gives back.
    let above = held.iter().rposition(|other| count(held, other.holder) > limits::CONNECTIONS_SHARE);
    let above = above.map(|index| held.remove(index)).ok_or(Refusal::Full)?;
    above.place.gives_way.notify_one();
    Ok(())
}

/// Returns true if few places are free and the holder has its share of them.
fn is_at_share(held: &[Held], holder: Holder) -> bool {
    let free = limits::CONNECTIONS_MAX.saturating_sub(held.len());
    free < limits::CONNECTIONS_FREE_LOW && count(held, holder) >= limits::CONNECTIONS_SHARE
}

/// Returns the number of connections that count for the holder.
fn count(held: &[Held], holder: Holder) -> usize {
    if holder == Holder::Exempt { 0 } else { held.iter().filter(|other| other.holder == holder).count() }
}

/// Closes one connection that is not being answered and whose holder `may` give way. Idle connections go before
/// unfinished requests, those of the holder with the most connections before others, and older ones before newer ones.
/// Returns false if there is none.
fn give_way(held: &mut Vec<Held>, may: impl Fn(Holder) -> bool) -> bool {
    let mut counts = HashMap::new();
    for other in held.iter().filter(|other| other.holder != Holder::Exempt) {
        *counts.entry(other.holder).or_insert(0_usize) += 1;
    }
    let candidates = held.iter().enumerate().filter(|(_, other)| may(other.holder));
    let ranked = candidates.filter_map(|(index, other)| {
        let (rank, since) = other.place.activity.rank()?;
        let held_count = counts.get(&other.holder).copied().unwrap_or_default();
        Some(((rank, std::cmp::Reverse(held_count), since), index))
    });
    let Some((_, index)) = ranked.min() else { return false };
    held.remove(index).place.gives_way.notify_one();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = limits::CONNECTIONS_MAX;
    const HALF: usize = limits::CONNECTIONS_SHARE;

    fn places() -> Arc<Places> {
        Arc::new(Places::new(Exempt::loopback_and([])))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Returns the address of a stranger, which differs for each number.
    fn stranger(number: usize) -> IpAddr {
        IpAddr::from(u32::try_from(0x0a00_0000 + number).unwrap().to_be_bytes())
    }

    /// Admits `count` connections that are being answered.
    fn busy(places: &Arc<Places>, peer: IpAddr, count: usize) -> Vec<Place> {
        let admit = || {
            let place = places.admit(peer).unwrap();
            place.state.activity.begin_answer();
            place
        };
        (0..count).map(|_| admit()).collect()
    }

    fn idle(places: &Arc<Places>, peer: IpAddr) -> Place {
        let place = places.admit(peer).unwrap();
        place.state.activity.opened();
        place
    }

    fn holds(places: &Places, place: &Place) -> bool {
        lock(&places.held).iter().any(|held| Arc::ptr_eq(&held.place, &place.state))
    }

    #[test]
    fn one_address_leaves_a_quarter_of_the_places_to_others() {
        let places = places();
        let attacker = ip("192.0.2.1");
        let mut held = Vec::new();
        while let Ok(place) = places.admit(attacker) {
            place.state.activity.begin_answer();
            held.push(place);
            assert!(held.len() < MAX, "one address has all places");
        }
        assert!(held.len() >= HALF && held.len() <= MAX - limits::CONNECTIONS_FREE_LOW + 1, "{}", held.len());
        assert_eq!(places.admit(attacker).err(), Some(Refusal::Share));
        // Others get all the rest, and what the address holds above its half.
        let others: Vec<Place> = (0..HALF).flat_map(|number| busy(&places, stranger(number), 1)).collect();
        assert_eq!(others.len(), MAX - HALF);
        assert_eq!(held.iter().filter(|place| holds(&places, place)).count(), HALF);
        assert_eq!(places.admit(ip("198.51.100.1")).err(), Some(Refusal::Full));
        assert!(others.iter().all(|place| holds(&places, place)));
    }

    #[test]
    fn all_addresses_of_an_ipv6_subscriber_share_one_half() {
        let places = places();
        let mut held = Vec::new();
        for host in 0..MAX {
            let Ok(place) = places.admit(ip(&format!("2001:db8::{host:x}"))) else { break };
            place.state.activity.begin_answer();
            held.push(place);
        }
        assert!(held.len() < MAX);
        assert!(places.admit(ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn idle_connections_give_way_and_the_largest_holder_first() {
        let places = places();
        let first_guest = idle(&places, ip("198.51.100.1"));
        let attacker: Vec<Place> = (0..HALF).map(|_| idle(&places, ip("192.0.2.1"))).collect();
        let others: Vec<Place> = (0..MAX - HALF - 1).map(|number| idle(&places, stranger(number))).collect();
        let newcomer = idle(&places, ip("198.51.100.2"));
        assert!(holds(&places, &newcomer) && holds(&places, &first_guest));
        assert!(others.iter().all(|place| holds(&places, place)));
        assert!(!holds(&places, &attacker[0]), "the oldest of the largest holder");
        assert_eq!(attacker.iter().filter(|place| holds(&places, place)).count(), HALF - 1);
    }

    #[test]
    fn unfinished_requests_give_way_after_idle_connections_and_answers_never() {
        let places = places();
        let unfinished = places.admit(stranger(1)).unwrap();
        let idle_one = idle(&places, stranger(2));
        let answered: Vec<Place> = (3..=MAX).flat_map(|number| busy(&places, stranger(number), 1)).collect();
        let newcomers = busy(&places, stranger(1000), 1);
        assert!(!holds(&places, &idle_one) && holds(&places, &unfinished));
        let more = busy(&places, stranger(1001), 1);
        assert!(!holds(&places, &unfinished));
        assert_eq!(places.admit(stranger(1002)).err(), Some(Refusal::Full));
        assert!(answered.iter().chain(&newcomers).chain(&more).all(|place| holds(&places, place)));
    }

    #[test]
    fn at_its_share_an_address_replaces_its_own_idle_connection() {
        let places = places();
        let _others: Vec<Place> =
            (0..MAX - HALF).flat_map(|number| busy(&places, stranger(number), 1)).collect();
        let mut mine = busy(&places, ip("192.0.2.1"), HALF - 1);
        let old = idle(&places, ip("192.0.2.1"));
        mine.extend(busy(&places, ip("192.0.2.1"), 1));
        assert!(!holds(&places, &old) && mine.iter().all(|place| holds(&places, place)));
        assert_eq!(places.admit(ip("192.0.2.1")).err(), Some(Refusal::Share));
    }

    #[test]
    fn exempt_addresses_have_no_share() {
        let places = places();
        let held = busy(&places, ip("127.0.0.1"), MAX);
        assert!(held.iter().all(|place| holds(&places, place)));
        assert_eq!(places.admit(ip("127.0.0.1")).err(), Some(Refusal::Full));
    }

    #[test]
    fn with_logins_the_share_is_per_login() {
        let places = places();
        let proxy = ip("127.0.0.1");
        let (one, other) = ([1; 16], [2; 16]);
        let mine = busy(&places, proxy, HALF);
        for place in &mine {
            assert_eq!(places.assign(&place.state, one), Ok(()));
        }
        let rest = busy(&places, proxy, MAX - HALF);
        assert_eq!(places.assign(&rest[0].state, one), Err(Refusal::Share));
        assert_eq!(places.assign(&rest[0].state, other), Ok(()));
        assert_eq!(places.assign(&mine[0].state, one), Ok(()), "its own connections continue");
        mine[1].state.activity.opened();
        assert_eq!(places.assign(&rest[1].state, one), Ok(()), "its own idle connection gives way");
        assert!(!holds(&places, &mine[1]));
    }

    #[test]
    fn a_closed_connection_frees_its_place() {
        let places = places();
        for _ in 0..3 * MAX {
            drop(busy(&places, ip("192.0.2.1"), 1));
        }
        assert!(lock(&places.held).is_empty());
    }
}
