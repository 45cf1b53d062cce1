//! Shares the viewer places among the senders of offers, and finds sessions by the keys of their URLs. Does no I/O.
//!
//! ```text
//!  offer ─► few places free, and its holder has half of them? ─► its own session without STUN gives way, else refused
//!        └► no place free? ─► a session without STUN gives way, else refused
//! ```
//!
//! A session without STUN has not shown that a viewer exists. Sessions of the holder with the most places go first, and
//! older sessions before newer ones.

use std::cmp::Reverse;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::limits;
use crate::metrics::status::{GlassReport, GlassStatus};
use crate::worker::commands::SessionPlace;

/// Key of a session in its URL: 128 random bits, so that it cannot be guessed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionKey([u8; SessionKey::BYTES]);

impl SessionKey {
    const BYTES: usize = 16;

    /// Returns a new key, or `None` if the system gives no random numbers.
    pub(super) fn random() -> Option<SessionKey> {
        let mut bytes = [0; SessionKey::BYTES];
        aws_lc_rs::rand::fill(&mut bytes).ok().map(|()| SessionKey(bytes))
    }

    /// Parses the text that `Display` writes.
    pub(super) fn parse(text: &str) -> Option<SessionKey> {
        let digits: &[u8; 2 * SessionKey::BYTES] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; SessionKey::BYTES];
        for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        Some(SessionKey(bytes))
    }

    /// Compares in constant time, so that the time reveals nothing about a key.
    fn is(&self, other: &SessionKey) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A session that gives way to a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivesWay {
    pub(super) viewer: u32,
    /// Index of the worker that has the session.
    pub(super) worker: usize,
}

/// Why an offer gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All places are in use.
    Full,
    /// Few places are free, and the holder has its share of them.
    Share,
}

struct Held<H> {
    viewer: u32,
    /// Key of the session's URL; `None` after the viewer has deleted the session, and for a viewer over HTTP.
    key: Option<SessionKey>,
    worker: usize,
    holder: Option<H>,
    place: SessionPlace,
    /// The viewer's latest report of its latency, and its time in nanoseconds of CLOCK_MONOTONIC.
    report: Option<(GlassReport, i64)>,
}

/// All places for viewers. `H` identifies a holder. Holder `None` has no share.
pub(super) struct ViewerPlaces<H> {
    max: usize,
    held: Mutex<Vec<Held<H>>>,
}

impl<H: Copy + Eq> ViewerPlaces<H> {
    pub(super) fn new(max: usize) -> ViewerPlaces<H> {
        ViewerPlaces { max, held: Mutex::new(Vec::new()) }
    }

    /// Checks whether [`ViewerPlaces::make_room`] would find room for a session of `holder`.
    ///
    /// # Errors
    /// Returns the reason if there is no room.
    pub(super) fn check_room(&self, holder: Option<H>) -> Result<(), NoPlace> {
        self.find_room(&mut self.held(), holder).map(drop)
    }

    /// Makes room for a session of `holder`. Returns the session that has to give way, if there is one.
    ///
    /// # Errors
    /// Returns the reason if there is no room.
    pub(super) fn make_room(&self, holder: Option<H>) -> Result<Option<GivesWay>, NoPlace> {
        let mut held = self.held();
        let index = self.find_room(&mut held, holder)?;
        Ok(index.map(|index| {
            let Held { viewer, worker, .. } = held.remove(index);
            GivesWay { viewer, worker }
        }))
    }

    /// Returns the index of the session that has to give way to a session of `holder`, or `None` if a place is free.
    fn find_room(&self, held: &mut Vec<Held<H>>, holder: Option<H>) -> Result<Option<usize>, NoPlace> {
        held.retain(|other| !other.place.is_over());
        let free = self.max.saturating_sub(held.len());
        let own = count(held, &holder);
        // A quarter and a half of the places. With less than four places there are no shares.
        let is_at_share = free < self.max / 4 && own >= self.max / 2 && own > 0;
        if is_at_share {
            return first_to_go(held, |other| other.holder == holder).map(Some).ok_or(NoPlace::Share);
        }
        if free > 0 {
            return Ok(None);
        }
        first_to_go(held, |_| true).map(Some).ok_or(NoPlace::Full)
    }

    /// Records that `holder` has a place for this session, or for a viewer over HTTP, which has no key.
    pub(super) fn hold(
        &self,
        holder: Option<H>,
        viewer: u32,
        worker: usize,
        key: Option<SessionKey>,
        place: SessionPlace,
    ) {
        self.held().push(Held { viewer, key, worker, holder, place, report: None });
    }

    /// Returns the number of the viewer and the index of the worker that have the session with this key. Returns `None`
    /// if the session is over or was deleted.
    pub(super) fn find(&self, key: &SessionKey) -> Option<(u32, usize)> {
        let mut held = self.held();
        held.retain(|other| !other.place.is_over());
        let found = held.iter().find(|other| other.key.as_ref().is_some_and(|own| own.is(key)));
        found.map(|found| (found.viewer, found.worker))
    }

    /// Forgets the key of a session that is being deleted. The session holds its place until it is over.
    pub(super) fn forget_key(&self, viewer: u32) {
        for other in self.held().iter_mut().filter(|other| other.viewer == viewer) {
            other.key = None;
        }
    }

    /// Keeps the viewer's report of its latency until the session is over. Returns false if the viewer's last report was
    /// less than [`limits::GLASS_REPORT_INTERVAL`] ago.
    pub(super) fn report(&self, viewer: u32, report: GlassReport, now_ns: i64) -> bool {
        let mut held = self.held();
        let Some(own) = held.iter_mut().find(|other| other.viewer == viewer) else { return true };
        let is_due =
            own.report.is_none_or(|(_, at_ns)| since(at_ns, now_ns) >= limits::GLASS_REPORT_INTERVAL);
        if is_due {
            own.report = Some((report, now_ns));
        }
        is_due
    }

    /// Returns the numbers of all viewers that have reported their latency, with their latest reports.
    pub(super) fn reports(&self, now_ns: i64) -> Vec<(u32, GlassStatus)> {
        let held = self.held();
        let living = held.iter().filter(|other| !other.place.is_over());
        let reports = living.filter_map(|other| other.report.map(|(report, at_ns)| (other, report, at_ns)));
        reports.map(|(other, report, at_ns)| (other.viewer, status(&report, since(at_ns, now_ns)))).collect()
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held<H>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn since(at_ns: i64, now_ns: i64) -> Duration {
    Duration::from_nanos(now_ns.saturating_sub(at_ns).max(0).unsigned_abs())
}

fn status(report: &GlassReport, age: Duration) -> GlassStatus {
    let ms = |latency: Duration| latency.as_secs_f32() * 1e3;
    GlassStatus { p50: ms(report.p50), p95: ms(report.p95), samples: report.samples, age_s: age.as_secs() }
}

/// Returns the number of places that count for the holder.
fn count<H: Eq>(held: &[Held<H>], holder: &Option<H>) -> usize {
    if holder.is_none() { 0 } else { held.iter().filter(|other| other.holder == *holder).count() }
}

/// Returns the index of the session that must end first to free a place. Considers only sessions from which no STUN has
/// arrived and for which `may` returns true.
fn first_to_go<H: Eq>(held: &[Held<H>], may: impl Fn(&Held<H>) -> bool) -> Option<usize> {
    let waiting = held.iter().enumerate().filter(|(_, other)| !other.place.has_stun() && may(other));
    // The list is in order of age, and `min_by_key` takes the first of equals.
    waiting.min_by_key(|(_, other)| Reverse(count(held, &other.holder))).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
    use super::*;
    use crate::worker::commands::{SessionGuard, session_guard};

    /// Sessions by viewer number, and the guards that the workers would hold.
    struct Rig {
        places: ViewerPlaces<&'static str>,
        guards: Vec<(u32, SessionGuard)>,
        next: u32,
    }

    impl Rig {
        fn new(max: usize) -> Rig {
            Rig { places: ViewerPlaces::new(max), guards: Vec::new(), next: 0 }
        }

        /// Makes an offer. Returns the number of the session that had to give way.
        fn offer(&mut self, holder: Option<&'static str>) -> Result<Option<u32>, NoPlace> {
            let gives_way = self.places.make_room(holder)?.map(|other| other.viewer);
            self.guards.retain(|(viewer, _)| Some(*viewer) != gives_way);
            self.next += 1;
            let (guard, _) = session_guard();
            self.places.hold(holder, self.next, 0, Some(key(self.next)), guard.place());
            self.guards.push((self.next, guard));
            Ok(gives_way)
        }

        /// Makes an offer whose viewer sends STUN.
        fn connect(&mut self, holder: Option<&'static str>) -> Result<Option<u32>, NoPlace> {
            let gives_way = self.offer(holder)?;
            self.guards.last().iter().for_each(|(_, guard)| guard.note_stun());
            Ok(gives_way)
        }
    }

    fn key(number: u32) -> SessionKey {
        SessionKey::parse(&format!("{number:032x}")).unwrap()
    }

    #[test]
    fn keys_are_random_and_round_trip() {
        let keys: Vec<String> = (0..100).map(|_| SessionKey::random().unwrap().to_string()).collect();
        for text in &keys {
            assert_eq!(text.len(), 32);
            assert_eq!(SessionKey::parse(text).unwrap().to_string(), *text);
            let equal = keys.iter().filter(|other| *other == text).count();
            assert_eq!(equal, 1);
        }
        let good = &keys[0];
        for bad in
            ["", "+f", &good[1..], &format!("{good}0"), &good.to_uppercase().replace(char::is_numeric, "A")]
        {
            assert!(SessionKey::parse(bad).is_none(), "{bad}");
        }
    }

    /// Viewers that never delete their sessions leave no keys behind.
    #[test]
    fn a_session_is_found_by_its_key_until_it_ends_or_is_deleted() {
        let mut rig = Rig::new(8);
        for _ in 0..1_000 {
            if rig.guards.len() == 8 {
                rig.guards.remove(0);
            }
            rig.connect(Some("a")).or_else(|_| rig.connect(Some("b"))).unwrap();
            assert!(rig.places.held().len() <= 8);
            assert_eq!(rig.places.find(&key(rig.next)), Some((rig.next, 0)));
        }
        assert_eq!(rig.places.find(&key(1)), None, "it has ended");
        let (last, before) = (rig.next, rig.next - 1);
        rig.places.forget_key(last);
        assert_eq!((rig.places.find(&key(last)), rig.places.find(&key(before))), (None, Some((before, 0))));
        assert_eq!(rig.places.held().len(), 8, "a deleted session has its place until it is over");
        rig.guards.clear();
        assert_eq!(rig.places.find(&key(before)), None);
        assert_eq!(rig.places.held().len(), 0);
    }

    #[test]
    fn reports_are_limited_per_session_and_end_with_it() {
        let mut rig = Rig::new(8);
        assert_eq!((rig.connect(Some("a")), rig.connect(Some("a"))), (Ok(None), Ok(None)));
        let report = |ms| GlassReport {
            p50: Duration::from_millis(ms),
            p95: Duration::from_millis(2 * ms),
            samples: 300,
        };
        assert_eq!(rig.places.reports(0), []);
        assert!(rig.places.report(1, report(30), 0));
        assert!(!rig.places.report(1, report(40), 999_999_999), "too soon");
        assert!(rig.places.report(2, report(50), 999_999_999), "each session has its own limit");
        let statuses = rig.places.reports(2_500_000_000);
        let shown: Vec<_> =
            statuses.iter().map(|(id, glass)| (*id, glass.p50, glass.p95, glass.age_s)).collect();
        assert_eq!(shown, [(1, 30.0, 60.0, 2), (2, 50.0, 100.0, 1)]);
        assert!(rig.places.report(1, report(40), 1_000_000_000));
        assert_eq!(rig.places.reports(1_000_000_000)[0].1.p50, 40.0);
        rig.guards.clear();
        assert_eq!(rig.places.reports(1_000_000_000), []);
    }

    #[test]
    fn offers_that_never_connect_cannot_keep_the_places() {
        let mut rig = Rig::new(32);
        for _ in 0..500 {
            rig.offer(Some("attacker")).ok();
        }
        assert!(rig.guards.len() <= 25, "a quarter of the places stays free: {}", rig.guards.len());
        // All others get in while the attacker goes on.
        for viewer in 0..32 {
            assert!(rig.connect(Some(["a", "b", "c", "d"][viewer % 4])).is_ok(), "viewer {viewer}");
            rig.offer(Some("attacker")).ok();
        }
        assert_eq!(rig.guards.len(), 32);
        assert_eq!(rig.offer(Some("attacker")), Err(NoPlace::Full));
        assert_eq!(rig.connect(Some("e")), Err(NoPlace::Full));
    }

    #[test]
    fn connected_viewers_of_one_address_hold_at_most_half_when_places_are_short() {
        let mut rig = Rig::new(32);
        let got = (0..40).filter(|_| rig.connect(Some("hoarder")).is_ok()).count();
        assert_eq!(got, 25, "until fewer than a quarter of the places are free");
        assert_eq!(rig.connect(Some("hoarder")), Err(NoPlace::Share));
        assert_eq!((0..7).filter(|_| rig.connect(Some("other")).is_ok()).count(), 7);
    }

    #[test]
    fn exempt_holders_have_no_share_but_give_way() {
        let mut rig = Rig::new(8);
        for _ in 0..8 {
            assert_eq!(rig.offer(None), Ok(None));
        }
        assert_eq!(rig.offer(None), Ok(Some(1)), "the oldest without STUN");
        let mut rig = Rig::new(8);
        for _ in 0..8 {
            assert_eq!(rig.connect(None), Ok(None));
        }
        assert_eq!(rig.offer(None), Err(NoPlace::Full));
    }

    #[test]
    fn ended_sessions_free_their_places() {
        let mut rig = Rig::new(2);
        for _ in 0..10 {
            assert_eq!(rig.connect(Some("a")), Ok(None));
            assert_eq!(rig.connect(Some("a")), Ok(None));
            assert_eq!(rig.connect(Some("b")), Err(NoPlace::Full));
            rig.guards.clear();
        }
    }
}
