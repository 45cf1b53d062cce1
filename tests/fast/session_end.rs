//! Tests of the end of a session: failed handshakes, expired consent, the goodbye, and the reason that is reported.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use str0m::config::DtlsVersion;
use str0m::crypto::dtls::{DtlsCert, DtlsInstance, DtlsProvider};
use str0m::crypto::{CryptoError, CryptoProvider};
use streaming_server::metrics::status::EndReason;
use streaming_server::session::{CloseReason, SrtpChoice};
use support::session_peer::{Pair, client_address, context, payloads, server_address, unit};

fn connected() -> Pair {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    pair
}

fn is_dtls(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(20..=63))
}

/// A fatal alert that is not encrypted.
fn alert(description: u8) -> Vec<u8> {
    vec![21, 254, 253, 0, 0, 0, 0, 0, 0, 0, 99, 0, 2, 2, description]
}

/// Lets the handshake run for one second, which is far below the handshake timeout of ten. Returns the reported reason
/// and its explanation.
fn end_within_a_second(pair: &mut Pair) -> (EndReason, String) {
    let start = pair.now;
    while pair.closed.is_none() && pair.now < start + Duration::from_secs(1) {
        pair.run(Duration::from_millis(10));
    }
    assert!(pair.closed.is_some(), "the session goes on");
    let ended = pair.viewer.status(pair.now).ended.unwrap();
    (ended.reason, ended.detail)
}

// ---- failed handshakes -----------------------------------------------------------------------------

/// DTLS of a viewer whose certificate has an RSA key. dimpl signs only with ECDSA, so the private key is another one.
#[derive(Debug)]
struct RsaViewer;

impl DtlsProvider for RsaViewer {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let rsa = CertificateParams::new(Vec::<String>::new()).unwrap().self_signed(&key).unwrap();
        let ecdsa = str0m::crypto::from_feature_flags().dtls_provider.generate_certificate()?;
        Some(DtlsCert { certificate: rsa.der().to_vec(), ..ecdsa })
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        str0m::crypto::from_feature_flags().dtls_provider.new_dtls(certificate, now, version, mtu)
    }
}

#[test]
fn rsa_certificate_ends_the_session_at_once_and_names_the_cure() {
    for (choice, version) in [(SrtpChoice::Gcm, DtlsVersion::Dtls12), (SrtpChoice::Cm, DtlsVersion::Dtls13)] {
        let provider = CryptoProvider { dtls_provider: &RsaViewer, ..str0m::crypto::from_feature_flags() };
        let mut pair = Pair::with_provider(&context(choice), version, Some(provider));
        let (reason, detail) = end_within_a_second(&mut pair);
        assert_eq!(reason, EndReason::UnsupportedCertificate, "{version:?}");
        if version == DtlsVersion::Dtls12 {
            assert!(pair.client_error.unwrap().contains("alert: description=43"), "unsupported_certificate");
        }
        assert!(detail.contains("ECDSA certificate") && detail.contains("webrtcbin"), "{detail}");
    }
}

/// Replaces everything after the ClientHello by a fatal alert, as a viewer does that refuses our flight.
fn refuse_with(pair: &mut Pair, description: u8) {
    let mut has_said_hello = false;
    pair.to_viewer = Box::new(move |bytes| {
        if is_dtls(bytes) && std::mem::replace(&mut has_said_hello, true) {
            *bytes = alert(description);
        }
        true
    });
}

#[test]
fn alert_of_a_viewer_ends_the_session_with_its_own_reason() {
    let new = || Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    // BoringSSL and OpenSSL send this alert if they cannot sign with their certificate.
    let mut pair = new();
    refuse_with(&mut pair, 40);
    assert_eq!(end_within_a_second(&mut pair).0, EndReason::UnsupportedCertificate);
    let mut pair = new();
    refuse_with(&mut pair, 46);
    let (reason, detail) = end_within_a_second(&mut pair);
    assert_eq!((reason, pair.closed), (EndReason::ViewerAlert, Some(CloseReason::PeerAlert(46))));
    assert!(detail.contains("certificate_unknown"), "{detail}");
}

#[test]
fn forged_alert_does_not_end_a_handshake_that_goes_on() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    // The ClientHello arrives, and the answer to it is lost once. The alerts arrive in between.
    let lost = Rc::new(Cell::new(false));
    let first = Rc::clone(&lost);
    pair.to_client = Box::new(move |bytes| !is_dtls(bytes) || first.replace(true));
    while !lost.get() {
        pair.run(Duration::from_millis(1));
    }
    for description in [40, 46, 80] {
        pair.viewer.handle_datagram(
            pair.now,
            Some(server_address().ip()),
            client_address(),
            &alert(description),
        );
    }
    pair.connect();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.closed, None);
}

#[test]
fn wrong_fingerprint_ends_the_session_at_once_with_an_alert() {
    let lie = |offer: String| {
        let at = offer.find("a=fingerprint:sha-256 ").unwrap() + "a=fingerprint:sha-256 ".len();
        let other = if offer[at..].starts_with("00") { "01" } else { "00" };
        format!("{}{other}{}", &offer[..at], &offer[at + 2..])
    };
    let mut pair = Pair::with_offer(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12, None, lie);
    let alerts = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&alerts);
    pair.to_client = Box::new(move |bytes| {
        if bytes[0] == 21 {
            seen.borrow_mut().push(bytes[13..].to_vec());
            return false;
        }
        true
    });
    let (reason, _) = end_within_a_second(&mut pair);
    assert_eq!(reason, EndReason::FingerprintMismatch);
    assert_eq!(*alerts.borrow(), [[2, 42]], "bad_certificate");
}

#[test]
fn viewer_without_a_common_dtls_feature_is_refused_at_once() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    // Changes the type of the extension extended_master_secret, which the server requires, into an unknown one.
    pair.to_viewer = Box::new(|bytes| {
        let extension = [0, 23, 0, 0];
        if is_dtls(bytes)
            && let Some(at) = bytes.windows(4).rposition(|window| window == extension)
        {
            bytes[at] = 0xEE;
        }
        true
    });
    let (reason, detail) = end_within_a_second(&mut pair);
    assert_eq!(reason, EndReason::IncompatibleDtls);
    assert!(detail.to_lowercase().contains("extended master secret"), "{detail}");
}

#[test]
fn session_without_stun_names_the_port() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.to_viewer = Box::new(|_| false);
    pair.run(Duration::from_secs(11));
    let ended = pair.viewer.status(pair.now).ended.unwrap();
    assert_eq!(ended.reason, EndReason::NoStun);
    assert!(ended.detail.contains("no STUN arrived from the viewer on UDP port 8189"), "{}", ended.detail);
}

// ---- consent ---------------------------------------------------------------------------------------

/// Sends a unit every 100 ms and lets `seconds` pass. Returns the number of packets that arrived.
fn watch(pair: &mut Pair, from: u32, seconds: u32) -> usize {
    let before = pair.packets.len();
    for number in from..from + 10 * seconds {
        let payloads = payloads(number, 2, 500);
        pair.push(&unit(&payloads, u64::from(number), number.is_multiple_of(10)));
        pair.run(Duration::from_millis(100));
    }
    pair.packets.len() - before
}

#[test]
fn srtcp_alone_renews_consent() {
    let mut pair = connected();
    pair.to_viewer = Box::new(|bytes| bytes[0] >= 4);
    assert_eq!(watch(&mut pair, 0, 60), 1_200, "no unit is missing");
    assert_eq!(pair.closed, None);
}

#[test]
fn silent_viewer_gets_no_media_after_ten_seconds_and_a_goodbye_after_thirty() {
    let mut pair = connected();
    watch(&mut pair, 0, 2);
    pair.to_viewer = Box::new(|_| false);
    assert!(watch(&mut pair, 20, 9) >= 170, "a short silence changes nothing");
    watch(&mut pair, 110, 2);
    assert_eq!(watch(&mut pair, 130, 17), 0, "media pauses");
    assert_eq!((pair.closed, pair.client_closed), (None, false));
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.closed, Some(CloseReason::ConsentExpired));
    assert!(pair.client_closed, "the close_notify arrived");
}

#[test]
fn viewer_that_is_heard_again_gets_media_again_from_an_idr() {
    let mut pair = connected();
    watch(&mut pair, 0, 2);
    pair.to_viewer = Box::new(|_| false);
    pair.run(Duration::from_secs(20));
    pair.to_viewer = Box::new(|_| true);
    pair.run(Duration::from_secs(5));
    assert!(pair.viewer.poll_idr_reason().is_some(), "an IDR is requested");
    assert!(watch(&mut pair, 220, 2) >= 38);
}

#[test]
fn only_authentic_datagrams_renew_consent() {
    let mut pair = connected();
    let recorded = Rc::new(RefCell::new(Vec::new()));
    let sent = Rc::clone(&recorded);
    pair.to_viewer = Box::new(move |bytes| {
        sent.borrow_mut().push(bytes.to_vec());
        true
    });
    watch(&mut pair, 0, 5);
    pair.to_viewer = Box::new(|_| false);
    let recorded = recorded.take();
    assert!(recorded.iter().any(|bytes| bytes[0] >= 128) && recorded.iter().any(|bytes| bytes[0] < 2));
    for _ in 0..31 {
        for bytes in recorded.iter().filter(|bytes| bytes[0] >= 128) {
            // The same SRTCP again, and the same with a damaged tag.
            for damage in [0, 1] {
                let mut bytes = bytes.clone();
                *bytes.last_mut().unwrap() ^= damage;
                pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), &bytes);
            }
        }
        pair.run(Duration::from_secs(1));
    }
    assert_eq!(pair.closed, Some(CloseReason::ConsentExpired));
}

// ---- goodbye ---------------------------------------------------------------------------------------

#[test]
fn every_end_of_a_connected_session_says_goodbye() {
    for reason in [CloseReason::Local, CloseReason::LoggedOut, CloseReason::ConsentExpired] {
        let mut pair = connected();
        let goodbyes = Rc::new(Cell::new(0));
        let seen = Rc::clone(&goodbyes);
        pair.to_client = Box::new(move |bytes| {
            seen.set(seen.get() + u32::from(matches!(bytes[..2], [128..=191, 200])));
            true
        });
        pair.viewer.close(pair.now, reason);
        pair.settle();
        assert_eq!(pair.closed, Some(reason));
        assert!(pair.client_closed && goodbyes.get() == 1, "{reason:?}: close_notify and BYE");
    }
}

#[test]
fn unfinished_handshake_ends_with_an_alert() {
    let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    let flights = Rc::new(Cell::new(0));
    let seen = Rc::clone(&flights);
    let alerts = Rc::new(Cell::new(0));
    let told = Rc::clone(&alerts);
    pair.to_client = Box::new(move |bytes| {
        seen.set(seen.get() + u32::from(bytes[0] == 22));
        told.set(told.get() + u32::from(bytes[0] == 21));
        !is_dtls(bytes)
    });
    while flights.get() == 0 {
        pair.run(Duration::from_millis(1));
    }
    pair.viewer.close(pair.now, CloseReason::Local);
    pair.settle();
    assert_eq!((pair.closed, alerts.get()), (Some(CloseReason::Local), 1));
}
