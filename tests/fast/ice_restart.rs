//! Tests of the fragments that a viewer sends during a session: candidates, and ICE restarts.

use std::net::SocketAddr;
use std::time::Duration;
use str0m::IceCreds;
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::config::DtlsVersion;
use streaming_server::base::limits;
use streaming_server::session::{CloseReason, FragmentError, IceFragment, IceRestart, SrtpChoice};
use support::session_peer::{
    Pair, USUAL_PRIORITY, client_address, context, server_address, signed_request, watch,
};

fn start() -> Pair {
    Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12)
}

fn connected() -> Pair {
    let mut pair = start();
    pair.connect();
    pair
}

fn value(sdp: &str, name: &str) -> String {
    let line = sdp.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {sdp}")).trim().to_owned()
}

fn any() -> Vec<String> {
    vec!["*".to_owned()]
}

fn credentials(ufrag: &str) -> String {
    format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{}\r\n", "p".repeat(24))
}

fn patch(
    pair: &mut Pair,
    text: &str,
    if_match: Option<&[String]>,
) -> Result<Option<IceRestart>, FragmentError> {
    pair.viewer.handle_fragment(pair.now, &IceFragment::parse(text)?, if_match)
}

/// Lets the browser begin an ICE restart. Returns its fragment and the state that waits for the answer.
fn begin_restart(pair: &mut Pair) -> (String, SdpPendingOffer) {
    let mut api = pair.client.sdp_api();
    let IceCreds { ufrag, pass } = api.ice_restart(true);
    let (offer, pending) = api.apply().unwrap();
    pair.offer = offer.to_sdp_string();
    (format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pass}\r\n"), pending)
}

/// Returns the answer with the credentials of the restart.
fn with_credentials(answer: &str, restart: &IceRestart) -> String {
    let replace =
        |answer: String, name| answer.replace(&value(&answer, name), &value(&restart.fragment, name));
    ["a=ice-ufrag:", "a=ice-pwd:"].into_iter().fold(answer.to_owned(), replace)
}

/// Lets the browser use the server's new credentials.
fn finish_restart(pair: &mut Pair, pending: SdpPendingOffer, restart: &IceRestart) {
    let answer = with_credentials(&pair.answer, restart);
    let parsed = SdpAnswer::from_sdp_string(&answer).unwrap();
    pair.client.sdp_api().accept_answer(pending, parsed).unwrap();
    pair.answer = answer;
}

#[test]
fn video_follows_a_viewer_that_restarts_ice_from_another_address() {
    let mut pair = connected();
    assert_eq!(watch(&mut pair, 0, 10), 20);
    let before = pair.viewer.ice_tag().to_owned();
    let (fragment, pending) = begin_restart(&mut pair);
    let restart = patch(&mut pair, &fragment, Some(&any())).unwrap().unwrap();
    assert_eq!(restart.tag, pair.viewer.ice_tag());
    assert_ne!(restart.tag, before);
    assert_eq!(value(&restart.fragment, "a=ice-ufrag:"), restart.tag);
    assert!(restart.fragment.starts_with("a=ice-lite\r\nm=video 9 "), "{}", restart.fragment);
    assert!(
        restart.fragment.contains(&format!(" {} typ host", server_address().to_string().replace(':', " ")))
    );
    assert_eq!(watch(&mut pair, 10, 10), 20, "the old path serves until the viewer uses the new one");
    finish_restart(&mut pair, pending, &restart);
    pair.seen_as = SocketAddr::from(([203, 0, 113, 50], 4_242));
    pair.run(Duration::from_secs(3));
    assert_eq!(watch(&mut pair, 30, 20), 40);
    assert_eq!(pair.viewer.remote_ip(), Some(pair.seen_as.ip()));
    assert_eq!(pair.viewer.local_ufrags().collect::<Vec<_>>(), [restart.tag.as_str()]);
    // The session goes on for as long as the viewer consents, with the new credentials.
    pair.run(2 * limits::CONSENT_TIMEOUT);
    assert_eq!(pair.closed, None);
}

#[test]
fn old_credentials_are_valid_until_the_new_ones_are_used() {
    let mut pair = connected();
    let is_accepted = |pair: &mut Pair, request: &[u8]| {
        let before = pair.viewer.status(pair.now).datagrams_rejected;
        pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), request);
        pair.viewer.status(pair.now).datagrams_rejected == before
    };
    let old: Vec<Vec<u8>> = (0..3).map(|_| signed_request(&pair, USUAL_PRIORITY, &[])).collect();
    // The viewer never uses the credentials of the first restart.
    for (ufrag, request) in ["newA", "newB"].into_iter().zip(&old) {
        let restart = patch(&mut pair, &credentials(ufrag), Some(&any())).unwrap().unwrap();
        pair.now += limits::ICE_RESTART_INTERVAL;
        assert!(is_accepted(&mut pair, request), "{ufrag}");
        pair.offer = pair.offer.replace(&value(&pair.offer, "a=ice-ufrag:"), ufrag);
        pair.answer = with_credentials(&pair.answer, &restart);
    }
    assert_eq!(pair.viewer.local_ufrags().count(), 2);
    let new = signed_request(&pair, USUAL_PRIORITY, &[]);
    assert!(is_accepted(&mut pair, &new));
    assert_eq!(pair.viewer.local_ufrags().count(), 1);
    assert!(!is_accepted(&mut pair, &old[2]));
}

#[test]
fn ice_can_be_restarted_before_the_first_check() {
    let mut pair = start();
    let (fragment, pending) = begin_restart(&mut pair);
    let restart = patch(&mut pair, &fragment, Some(&any())).unwrap().unwrap();
    finish_restart(&mut pair, pending, &restart);
    pair.connect();
    assert_eq!(watch(&mut pair, 0, 10), 20);
}

#[test]
fn the_ufrag_tells_candidates_from_a_restart() {
    let mut pair = connected();
    let tag = pair.viewer.ice_tag().to_owned();
    let own = value(&pair.offer, "a=ice-ufrag:");
    let candidates = |ufrag: &str| {
        credentials(ufrag)
            + "m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 2 192.0.2.7 5000 typ host\r\na=end-of-candidates\r\n"
    };
    let stated = [tag.clone()];
    for if_match in [None, Some(&any()[..]), Some(&stated[..])] {
        assert_eq!(patch(&mut pair, &candidates(&own), if_match), Ok(None), "{if_match:?}");
        assert_eq!(patch(&mut pair, "a=end-of-candidates\r\n", if_match), Ok(None), "{if_match:?}");
    }
    assert_eq!(pair.viewer.ice_tag(), tag);
    // A new ufrag restarts ICE, with the current tag or with `*`.
    for ufrag in ["newA", "newB"] {
        let stated = vec![pair.viewer.ice_tag().to_owned()];
        let if_match = if ufrag == "newA" { any() } else { stated };
        assert!(patch(&mut pair, &candidates(ufrag), Some(&if_match)).unwrap().is_some());
        pair.now += limits::ICE_RESTART_INTERVAL;
    }
    // Late candidates from before a restart do not restart it back.
    let tag = pair.viewer.ice_tag().to_owned();
    for late in [own.as_str(), "newA"] {
        assert_eq!(patch(&mut pair, &candidates(late), Some(&any())), Ok(None));
        assert_eq!(patch(&mut pair, &candidates(late), None), Ok(None));
    }
    assert_eq!(pair.viewer.ice_tag(), tag);
}

#[test]
fn refused_fragments_change_nothing() {
    let mut pair = connected();
    let tag = pair.viewer.ice_tag().to_owned();
    let own = value(&pair.offer, "a=ice-ufrag:");
    let other = [vec!["another".to_owned()], vec![String::new()], Vec::new(), vec![format!("{tag}x")]];
    for if_match in &other {
        for ufrag in [own.as_str(), "newA"] {
            assert_eq!(patch(&mut pair, &credentials(ufrag), Some(if_match)), Err(FragmentError::OtherTag));
        }
    }
    assert_eq!(patch(&mut pair, &credentials("newA"), None), Err(FragmentError::TagRequired));
    let lite = "a=ice-lite\r\n".to_owned() + &credentials("newA");
    let unsupported = patch(&mut pair, &lite, Some(&any())).unwrap_err();
    assert_eq!(unsupported.status_and_code(), (422, "unsupported_fragment"));
    for text in [
        "a=ice-ufrag:newA\r\n",
        "a=ice-ufrag:newA\r\na=ice-pwd:short\r\n",
        &credentials("abc"),
        &credentials("with space"),
        &credentials(&"a".repeat(60_000)),
        "hello",
    ] {
        let error = patch(&mut pair, text, Some(&any())).unwrap_err();
        assert_eq!(error.status_and_code().0, 400, "{text}: {error}");
    }
    assert_eq!(pair.viewer.ice_tag(), tag);
    assert_eq!(watch(&mut pair, 0, 10), 20);
}

#[test]
fn a_thousand_restarts_keep_nothing_but_the_last_few() {
    let mut pair = connected();
    for number in 0..1_000 {
        assert!(patch(&mut pair, &credentials(&format!("new{number}")), Some(&any())).unwrap().is_some());
        assert_eq!(pair.viewer.local_ufrags().count(), 2);
        pair.now += limits::ICE_RESTART_INTERVAL;
    }
    // A ufrag that is forgotten by now counts as a new one.
    assert!(patch(&mut pair, &credentials("new3"), Some(&any())).unwrap().is_some());
}

#[test]
fn a_second_restart_within_a_second_changes_nothing() {
    let mut pair = connected();
    let restart = |pair: &mut Pair, ufrag| patch(pair, &credentials(ufrag), Some(&any()));
    assert!(restart(&mut pair, "newA").unwrap().is_some(), "the first one needs no wait");
    let tag = pair.viewer.ice_tag().to_owned();
    pair.now += limits::ICE_RESTART_INTERVAL - Duration::from_millis(1);
    let error = restart(&mut pair, "newB").unwrap_err();
    assert_eq!((error.status_and_code(), &error), ((503, "busy"), &FragmentError::TooSoon));
    assert_eq!(pair.viewer.ice_tag(), tag);
    // Candidates are taken meanwhile, and other faults are still told as such.
    assert_eq!(patch(&mut pair, &credentials("newA"), Some(&any())), Ok(None));
    assert_eq!(patch(&mut pair, &credentials("newB"), None), Err(FragmentError::TagRequired));
    // The refused restart does not postpone the next one.
    pair.now += Duration::from_millis(1);
    assert!(restart(&mut pair, "newB").unwrap().is_some());
}

#[test]
fn a_closed_session_takes_no_fragments() {
    let mut pair = connected();
    pair.viewer.close(pair.now, CloseReason::PeerClosed);
    assert_eq!(patch(&mut pair, &credentials("newA"), Some(&any())), Err(FragmentError::Gone));
    pair.run(Duration::from_secs(1));
    assert_eq!(patch(&mut pair, "a=end-of-candidates\r\n", None), Err(FragmentError::Gone));
}
