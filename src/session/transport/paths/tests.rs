//! Tests of proof, selection and limits of paths.

#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn to(port: u16) -> Destination {
    Destination::udp(None, SocketAddr::from(([198, 51, 100, 7], port)))
}

fn victim() -> Destination {
    Destination::udp(None, SocketAddr::from(([203, 0, 113, 9], 9)))
}

fn now() -> Instant {
    crate::base::clock::now().instant
}

struct Session {
    paths: Paths,
    now: Instant,
    next: u8,
}

impl Session {
    /// A session that is connected over port 1000.
    fn connected() -> Session {
        let mut session = Session { paths: Paths::default(), now: now(), next: 0 };
        session.request(to(1000), true);
        assert!(session.paths.on_dtls(to(1000)));
        session.paths.on_connected(session.now);
        assert_eq!(session.paths.proven(), Some(to(1000)));
        session
    }

    /// Sends a request and returns the transaction id of the check that may follow.
    fn request(&mut self, from: Destination, is_nominating: bool) -> TransactionId {
        self.request_with(from, is_nominating, 1)
    }

    fn request_with(&mut self, from: Destination, is_nominating: bool, priority: u32) -> TransactionId {
        self.next += 1;
        let request = Request { id: [self.next; 12], from, priority, is_nominating };
        let check = [200 - self.next; 12];
        assert_eq!(self.paths.on_request(self.now, &request, 100, check), Verdict::New);
        check
    }
}

#[test]
fn moved_viewer_gets_media_when_it_has_answered() {
    let mut session = Session::connected();
    session.now += SECOND;
    let check = session.request(to(2000), true);
    assert_eq!(session.paths.proven(), Some(to(1000)), "the new address is not proven");
    assert_eq!(session.paths.poll_check(session.now), Some((to(2000), check)));
    assert!(!session.paths.on_response(session.now, to(2001), check), "from another address");
    assert!(!session.paths.on_response(session.now, to(2000), [0; 12]), "to another request");
    assert!(session.paths.on_response(session.now, to(2000), check));
    assert_eq!(session.paths.proven(), Some(to(2000)));
}

#[test]
fn rebound_viewer_moves_without_a_nomination_if_the_priority_is_the_same() {
    let mut session = Session::connected();
    session.now += SECOND;
    let backup = session.request_with(to(2000), false, 2);
    session.paths.on_response(session.now, to(2000), backup);
    assert_eq!(session.paths.proven(), Some(to(1000)), "another candidate of the viewer");
    let rebound = session.request_with(to(3000), false, 1);
    session.paths.on_response(session.now, to(3000), rebound);
    assert_eq!(session.paths.proven(), Some(to(3000)));
}

#[test]
fn victim_gets_at_most_three_times_the_bytes_received() {
    let mut session = Session::connected();
    let mut sent = 0;
    for _ in 0..9 {
        session.now += SECOND;
        session.request(victim(), true);
        while session.paths.may_send(victim(), 60) {
            sent += 60;
        }
        session.paths.on_rtcp(session.now, victim());
        assert_eq!(session.paths.proven(), Some(to(1000)));
    }
    assert!(sent <= 3 * 100, "only the first request was counted by this test: {sent}");
    session.paths.on_bytes(victim(), 100);
    assert!(session.paths.may_send(victim(), 300) && !session.paths.may_send(victim(), 1));
}

#[test]
fn handshake_over_two_addresses_proves_neither() {
    let mut session = Session { paths: Paths::default(), now: now(), next: 0 };
    session.request(to(1000), true);
    session.request(victim(), true);
    assert!(session.paths.on_dtls(to(1000)) && session.paths.on_dtls(victim()));
    session.paths.on_connected(session.now);
    assert_eq!(session.paths.proven(), None);
}

#[test]
fn srtcp_proves_another_port_but_not_another_host() {
    let mut session = Session::connected();
    session.now += SECOND;
    session.request_with(to(2000), false, 2);
    session.paths.on_rtcp(session.now, to(2000));
    assert_eq!(session.paths.proven(), Some(to(2000)));
    session.now += 2 * SECOND;
    session.request_with(victim(), false, 2);
    session.paths.on_rtcp(session.now, victim());
    assert_eq!(session.paths.proven(), Some(to(2000)));
}

#[test]
fn nominations_in_turn_do_not_make_media_alternate() {
    let mut session = Session::connected();
    session.now += SECOND;
    let check = session.request_with(to(2000), true, 2);
    session.paths.on_response(session.now, to(2000), check);
    for _ in 0..20 {
        session.now += SECOND;
        session.request(to(1000), true);
        session.now += SECOND;
        session.request_with(to(2000), true, 2);
        assert_eq!(session.paths.proven(), Some(to(2000)));
    }
    // The viewer returns to its first address.
    session.now += 4 * SECOND;
    session.request(to(1000), true);
    assert_eq!(session.paths.proven(), Some(to(1000)));
}

#[test]
fn replayed_request_is_ignored_and_a_repeated_one_only_answered() {
    let mut session = Session::connected();
    let old = Request { id: [1; 12], from: to(1000), priority: 1, is_nominating: true };
    let at = session.now + SECOND;
    assert_eq!(session.paths.on_request(at, &old, 100, [9; 12]), Verdict::Repeated);
    assert_eq!(session.paths.path(to(1000)).unwrap().heard_at, session.now);
    let replay = Request { from: victim(), ..old };
    assert_eq!(session.paths.on_request(at, &replay, 100, [9; 12]), Verdict::Replayed);
    assert!(!session.paths.contains(victim().remote));
}

/// Lets the viewer send so many requests over port 1000 that the first ones are forgotten. Returns the session after that.
fn after_many_requests() -> Session {
    let mut session = Session::connected();
    for number in 0..limits::SEEN_REQUESTS_MAX as u64 {
        session.now += 2 * SECOND;
        let mut id = [255; 12];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let request = Request { id, from: to(1000), priority: 1, is_nominating: true };
        assert_eq!(session.paths.on_request(session.now, &request, 100, [254; 12]), Verdict::New);
        session.paths.on_rtcp(session.now, to(1000));
    }
    session
}

#[test]
fn old_request_that_is_replayed_from_another_address_does_not_move_media() {
    let mut session = after_many_requests();
    session.now += SECOND;
    let old = Request { id: [1; 12], from: victim(), priority: 1, is_nominating: true };
    let check = [9; 12];
    assert_eq!(session.paths.on_request(session.now, &old, 100, check), Verdict::New, "it is forgotten");
    // The attacker passes our request on to the viewer, and the answer back to us.
    assert!(session.paths.on_response(session.now, victim(), check));
    assert_eq!(session.paths.proven(), Some(to(1000)));
    // The viewer itself moves media with its next SRTCP, or when its old address is silent.
    let check = session.request_with(to(2000), true, 2);
    session.paths.on_response(session.now, to(2000), check);
    assert_eq!(session.paths.proven(), Some(to(1000)));
    session.paths.on_rtcp(session.now, to(2000));
    assert_eq!(session.paths.proven(), Some(to(2000)));
    session.now += 6 * SECOND;
    let check = session.request_with(to(3000), true, 3);
    session.paths.on_response(session.now, to(3000), check);
    assert_eq!(session.paths.proven(), Some(to(3000)));
}

#[test]
fn requests_alone_are_trusted_for_a_while_and_then_checked() {
    let mut session = after_many_requests();
    let mut id = 0;
    let mut request = |session: &mut Session, check| {
        id += 1;
        let request = Request { id: [100 + id; 12], from: to(1000), priority: 1, is_nominating: true };
        session.paths.on_request(session.now, &request, 100, check);
        session.paths.trusts_requests(session.now)
    };
    assert!(request(&mut session, [8; 12]) && session.paths.check_due().is_none());
    session.now += 6 * SECOND;
    assert!(request(&mut session, [9; 12]), "the latest SRTCP is not old enough");
    assert_eq!(session.paths.poll_check(session.now), Some((to(1000), [9; 12])));
    session.now += 15 * SECOND;
    assert!(!request(&mut session, [10; 12]), "replays can keep no session alive");
    assert!(session.paths.on_response(session.now, to(1000), [9; 12]));
    assert!(request(&mut session, [11; 12]) && session.paths.check_due().is_none());
    session.now += 6 * SECOND;
    session.paths.on_new_keys();
    assert!(request(&mut session, [12; 12]) && session.paths.check_due().is_none(), "old requests are void");
}

#[test]
fn oldest_unused_path_goes_when_the_table_is_full() {
    let mut session = Session::connected();
    let check = session.request(to(2000), true);
    session.paths.on_response(session.now, to(2000), check);
    let most = u16::try_from(limits::VIEWER_PATHS_MAX).unwrap();
    for port in 3000..3000 + most {
        session.now += SECOND;
        session.request_with(to(port), false, 2);
    }
    assert!(session.paths.contains(to(1000).remote) && session.paths.contains(to(2000).remote));
    assert!(!session.paths.contains(to(3000).remote), "the oldest");
    let gone = std::iter::from_fn(|| session.paths.poll_change());
    let gone = gone.filter(|change| matches!(change, PathChange::Gone { .. })).count();
    assert_eq!((gone, session.paths.paths.len()), (2, limits::VIEWER_PATHS_MAX));
    // Roaming still works.
    let check = session.request(to(9000), true);
    session.paths.on_response(session.now, to(9000), check);
    assert_eq!(session.paths.proven(), Some(to(9000)));
}

#[test]
fn unanswered_check_is_sent_a_few_times() {
    let mut session = Session::connected();
    session.request(victim(), true);
    let mut sent = 0;
    while let Some(due) = session.paths.check_due() {
        session.now = due;
        sent += u32::from(session.paths.poll_check(due).is_some());
    }
    assert_eq!(sent, limits::PATH_CHECKS_MAX);
}

fn over_tcp(id: u32, port: u16) -> Destination {
    Destination { connection: NonZeroU32::new(id), ..to(port) }
}

#[test]
fn end_of_a_connection_moves_media_to_a_path_in_use_or_stops_it() {
    let mut session = Session::connected();
    session.now += SECOND;
    let (first, second) = (over_tcp(1, 2000), over_tcp(2, 3000));
    while session.paths.poll_change().is_some() {}
    let check = session.request(first, true);
    assert!(session.paths.on_response(session.now, first, check));
    assert_eq!(session.paths.proven(), Some(first));
    assert!(session.paths.has_connection(first.connection.unwrap()));
    assert_eq!(session.paths.poll_change(), None, "connections are not found by address");
    session.paths.remove_connection(session.now, first.connection.unwrap());
    assert_eq!(session.paths.proven(), Some(to(1000)), "heard a second ago");
    session.now += 2 * SELECTED_SILENT;
    let check = session.request(second, true);
    session.paths.on_response(session.now, second, check);
    assert_eq!(session.paths.proven(), Some(second));
    session.paths.remove_connection(session.now, second.connection.unwrap());
    assert_eq!(session.paths.proven(), None, "the UDP path is silent");
    session.request(to(1000), true);
    assert_eq!(session.paths.proven(), Some(to(1000)));
}

#[test]
fn check_on_a_second_connection_does_not_move_media_there() {
    let mut session = Session::connected();
    for (id, is_nominating) in [(1, true), (2, false)] {
        session.now += SECOND;
        let check = session.request_with(over_tcp(id, 2000), is_nominating, 5);
        session.paths.on_response(session.now, over_tcp(id, 2000), check);
    }
    assert_eq!(session.paths.proven(), Some(over_tcp(1, 2000)));
}
