//! Tests of path validation: a viewer whose address changes, and attackers who forge source addresses.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use str0m::config::DtlsVersion;
use streaming_server::base::limits;
use streaming_server::session::{CloseReason, Destination, SrtpChoice};
use support::session_peer::{
    Outbox, Pair, USUAL_PRIORITY, client_address, context, payloads, server_address, signed_request, unit,
    watch,
};

const USE_CANDIDATE: u16 = 0x0025;

fn connected() -> Pair {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    pair
}

fn victim() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], 7_000))
}

fn is_media(bytes: &[u8]) -> bool {
    bytes[0] >= 128
}

/// Returns the browser's datagrams from now on. They still arrive.
fn recorded(pair: &mut Pair) -> Rc<RefCell<Vec<Vec<u8>>>> {
    let all = Rc::new(RefCell::new(Vec::new()));
    let sent = Rc::clone(&all);
    pair.to_viewer = Box::new(move |bytes| {
        sent.borrow_mut().push(bytes.to_vec());
        true
    });
    all
}

/// Passes a datagram with the source address of the victim. Returns the bytes that the server sends there.
fn spoof(pair: &mut Pair, from: SocketAddr, bytes: &[u8]) -> usize {
    pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), from, bytes);
    let mut outbox = Outbox::default();
    pair.viewer.drain(pair.now, &mut outbox);
    let (there, here): (Vec<_>, Vec<_>) = outbox.0.into_iter().partition(|(to, _)| to.remote == from);
    assert!(!there.iter().any(|(_, bytes)| is_media(bytes)), "media or SRTCP to an unproven address");
    pair.deliver(Outbox(here));
    there.iter().map(|(_, bytes)| bytes.len()).sum()
}

#[test]
fn rebound_viewer_gets_media_one_round_trip_after_its_first_check() {
    for port in [40_001, 40_002] {
        let mut pair = connected();
        watch(&mut pair, 0, 10);
        // The network loses the answers to the old address, as a NAT does that has forgotten it.
        pair.seen_as.set_port(port);
        let sent = recorded(&mut pair);
        let checks = || sent.borrow().iter().filter(|bytes| bytes[0] == 0 && bytes[1] == 1).count();
        for number in 10..200 {
            let payloads = payloads(number, 2, 500);
            pair.push(&unit(&payloads, u64::from(number), number.is_multiple_of(10)));
            pair.run(Duration::from_millis(100));
            if checks() > 0 {
                break;
            }
        }
        assert!(checks() > 0);
        // The test network has no delay: the first check, our request and its answer take no time.
        pair.astray.clear();
        watch(&mut pair, 200, 20);
        assert!(!pair.astray.iter().any(|(_, bytes)| is_media(bytes)), "media still goes to the old address");
        assert!(watch(&mut pair, 220, 20) == 40 && pair.closed.is_none());
        assert_eq!(pair.viewer.status(pair.now).remote.map(|remote| remote.port()), Some(port));
    }
}

#[test]
fn viewer_that_moves_to_another_host_is_followed() {
    let mut pair = connected();
    watch(&mut pair, 0, 10);
    pair.seen_as = SocketAddr::from(([192, 0, 2, 77], 5_000));
    watch(&mut pair, 10, 200);
    pair.astray.clear();
    assert_eq!(watch(&mut pair, 210, 30), 60);
    assert!(!pair.astray.iter().any(|(_, bytes)| is_media(bytes)));
}

#[test]
fn forged_nominating_checks_draw_at_most_three_times_their_bytes() {
    let mut pair = connected();
    watch(&mut pair, 0, 10);
    let sent = recorded(&mut pair);
    watch(&mut pair, 10, 30);
    let rtcp: Vec<_> = sent.borrow().iter().filter(|bytes| is_media(bytes)).cloned().collect();
    assert!(!rtcp.is_empty());
    // The attacker is the viewer: it has all keys, is silent itself and forges the victim's address.
    let withheld = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&withheld);
    pair.to_viewer = Box::new(move |bytes| {
        kept.borrow_mut().push(bytes.to_vec());
        false
    });
    let (mut received, mut drawn) = (0, 0);
    for second in 0..40 {
        let request = signed_request(&pair, [127, 255, 255, 255], &[(USE_CANDIDATE, Vec::new())]);
        received += request.len();
        drawn += spoof(&mut pair, victim(), &request);
        // Its newest SRTCP is authentic and was never received before.
        let authentic = withheld.borrow_mut().drain(..).rfind(|bytes| is_media(bytes));
        if let Some(bytes) = authentic {
            received += bytes.len();
            drawn += spoof(&mut pair, victim(), &bytes);
        }
        watch(&mut pair, 40 + second * 10, 10);
    }
    let astray: usize = pair.astray.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(!pair.astray.iter().any(|(to, bytes)| *to == victim() && is_media(bytes)));
    assert!(drawn + astray <= 3 * received, "{} bytes for {received}", drawn + astray);
    assert_eq!(pair.closed, Some(CloseReason::ConsentExpired), "forged checks renew no consent");
}

#[test]
fn replayed_checks_are_ignored_and_do_not_fill_the_table() {
    let mut pair = connected();
    let sent = recorded(&mut pair);
    watch(&mut pair, 0, 200);
    let checks: Vec<_> = sent.borrow().iter().filter(|bytes| bytes[..2] == [0, 1]).cloned().collect();
    assert!(!checks.is_empty());
    for port in 1_000..1_300 {
        let from = SocketAddr::from(([203, 0, 113, 9], port));
        let check = &checks[usize::from(port) % checks.len()];
        assert_eq!(spoof(&mut pair, from, check), 0, "an answer to a replay");
        assert!(!pair.viewer.accepts_address(from));
    }
    pair.seen_as.set_port(40_001);
    watch(&mut pair, 200, 200);
    assert_eq!(watch(&mut pair, 400, 10), 20, "roaming still works");
}

#[test]
fn replay_from_the_viewers_own_address_renews_no_consent() {
    let mut pair = connected();
    let sent = recorded(&mut pair);
    watch(&mut pair, 0, 200);
    let checks: Vec<_> = sent.borrow().iter().filter(|bytes| bytes[..2] == [0, 1]).cloned().collect();
    assert!(!checks.is_empty());
    pair.to_viewer = Box::new(|_| false);
    for _ in 0..31 {
        for check in &checks {
            pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), check);
        }
        pair.run(Duration::from_secs(1));
    }
    assert_eq!(pair.closed, Some(CloseReason::ConsentExpired));
}

/// Lets the browser send so many checks that the server has forgotten the first ones. Returns all of them.
fn checks_of_a_long_session(pair: &mut Pair) -> Vec<Vec<u8>> {
    let sent = recorded(pair);
    let checks =
        || -> Vec<Vec<u8>> { sent.borrow().iter().filter(|bytes| bytes[..2] == [0, 1]).cloned().collect() };
    while checks().len() < limits::SEEN_REQUESTS_MAX + 10 {
        pair.run(Duration::from_secs(60));
    }
    checks()
}

/// The attacker sees all datagrams and can send its own, but cannot stop any.
#[test]
fn old_check_that_an_attacker_on_the_path_replays_moves_no_media() {
    let mut pair = connected();
    watch(&mut pair, 0, 10);
    let checks = checks_of_a_long_session(&mut pair);
    let old = &checks[0];
    watch(&mut pair, 10, 20);
    let attacker = victim();
    pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), attacker, old);
    // Our check of the attacker's address is passed on to the browser.
    let answers = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&answers);
    pair.to_viewer = Box::new(move |bytes| {
        let is_answer = bytes[..2] == [1, 1];
        is_answer.then(|| seen.borrow_mut().push(bytes.clone()));
        true
    });
    pair.settle();
    let is_check = |(to, bytes): &(SocketAddr, Vec<u8>)| *to == attacker && bytes[..2] == [0, 1];
    let (_, check) = pair.astray.iter().find(|sent| is_check(sent)).cloned().expect("a check of the address");
    let to = Destination::udp(Some(server_address().ip()), client_address());
    pair.deliver(Outbox(vec![(to, check)]));
    pair.settle();
    let answer = answers.borrow().last().cloned().expect("the browser has answered the check");
    pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), attacker, &answer);
    assert_eq!(watch(&mut pair, 30, 100), 200);
    assert!(
        !pair.astray.iter().any(|(to, bytes)| *to == attacker && is_media(bytes)),
        "media for the attacker"
    );
    // The browser itself is still followed.
    pair.seen_as.set_port(40_001);
    watch(&mut pair, 130, 100);
    assert_eq!(watch(&mut pair, 230, 10), 20);
}

#[test]
fn old_checks_that_are_replayed_from_the_viewers_own_address_keep_no_session() {
    let mut pair = connected();
    let checks = checks_of_a_long_session(&mut pair);
    pair.to_viewer = Box::new(|_| false);
    let mut old = checks.iter().cycle();
    for _ in 0..60 {
        let check = old.next().unwrap();
        pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), check);
        pair.run(Duration::from_secs(1));
    }
    assert_eq!(pair.closed, Some(CloseReason::ConsentExpired));
}

/// Only the answers to our own checks then show that the viewer is still there.
#[test]
fn long_session_of_a_viewer_that_sends_no_srtcp_goes_on() {
    let mut pair = connected();
    pair.to_viewer = Box::new(|bytes| !is_media(bytes));
    pair.run(Duration::from_secs(3_600));
    assert_eq!(pair.closed, None);
    assert_eq!(watch(&mut pair, 0, 10), 20);
}

#[test]
fn number_of_addresses_of_a_viewer_is_bounded() {
    let mut pair = connected();
    let addresses: Vec<_> = (1_000..3_000).map(|port| SocketAddr::from(([203, 0, 113, 9], port))).collect();
    for &remote in &addresses {
        let request = signed_request(&pair, USUAL_PRIORITY, &[]);
        assert!(spoof(&mut pair, remote, &request) <= 3 * request.len());
    }
    let known = addresses.iter().filter(|remote| pair.viewer.accepts_address(**remote)).count();
    assert!(known < limits::VIEWER_PATHS_MAX, "{known}");
    assert!(pair.viewer.accepts_address(client_address()));
    assert_eq!(watch(&mut pair, 0, 20), 40);
}

/// A viewer that ignores our STUN requests connects too: DTLS proves its address.
#[test]
fn viewer_that_answers_no_stun_gets_media() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.to_viewer = Box::new(|bytes| bytes[..2] != [1, 1]);
    pair.connect();
    assert_eq!(watch(&mut pair, 0, 20), 40);
}
