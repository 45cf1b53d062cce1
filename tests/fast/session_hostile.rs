//! Tests with input from a hostile network and from a hostile viewer. Such input may end the sender's own session, but
//! must have no other effect.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use support::session_peer as peer;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use peer::{
    Outbox, Pair, USUAL_PRIORITY, client_address, context, payloads, server_address, signed_request, unit,
};
use proptest::prelude::*;
use str0m::config::DtlsVersion;
use str0m::crypto::{
    AeadAes128GcmCipher, AeadAes256GcmCipher, Aes128CmSha1_80Cipher, CryptoError, CryptoProvider,
    SrtpProvider, SupportedAeadAes128Gcm, SupportedAeadAes256Gcm, SupportedAes128CmSha1_80,
};
use streaming_server::base::limits;
use streaming_server::session::SrtpChoice;

/// Sends `count` units of `packets` payloads each, with numbers from `from` on. The first unit is an IDR.
fn send_units(pair: &mut Pair, from: u32, count: u32, packets: usize) {
    for number in from..from + count {
        let payloads = payloads(number, packets, 1_100);
        pair.push(&unit(&payloads, u64::from(number), number == from));
        pair.run(Duration::from_millis(33));
    }
}

// ---- tests: a viewer with valid keys sends forged RTCP ---------------------------------------------

thread_local! {
    /// Bytes that replace the contents of the browser's next RTCP packet after its first 8 bytes.
    static FORGED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The first four bytes of an empty receiver report.
const EMPTY_REPORT: [u8; 4] = [0x80, 201, 0, 1];

/// RTCP packet type of the application feedback packet whose contents are replaced by the forged bytes.
const CARRIER: u8 = 206;

/// SRTP provider of a viewer that forges RTCP. It recognises RTCP by the 12 bytes of associated data in str0m's calls.
/// It replaces the header of the feedback packet by that of an empty receiver report, so that the server parses the
/// bytes after the report as further RTCP packets. [`evil_pair`] puts the same header into the datagram.
#[derive(Debug)]
struct EvilSrtp;

#[derive(Debug)]
struct EvilCipher(Box<dyn AeadAes256GcmCipher>);

impl AeadAes256GcmCipher for EvilCipher {
    fn encrypt(
        &mut self,
        iv: &[u8; 12],
        aad: &[u8],
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), CryptoError> {
        let mut body = input.to_vec();
        let mut aad = aad.to_vec();
        if aad.len() == 12
            && aad[1] == CARRIER
            && let Some(forged) = FORGED.take()
        {
            body[..forged.len()].copy_from_slice(&forged);
            aad[..4].copy_from_slice(&EMPTY_REPORT);
        }
        self.0.encrypt(iv, &aad, &body, output)
    }

    fn decrypt(
        &mut self,
        iv: &[u8; 12],
        aads: &[&[u8]],
        input: &[u8],
        output: &mut [u8],
    ) -> Result<usize, CryptoError> {
        self.0.decrypt(iv, aads, input, output)
    }
}

impl SupportedAeadAes256Gcm for EvilSrtp {
    fn create_cipher(&self, key: [u8; 32], encrypt: bool) -> Box<dyn AeadAes256GcmCipher> {
        Box::new(EvilCipher(stock().srtp_provider.aead_aes_256_gcm().create_cipher(key, encrypt)))
    }
}

impl SupportedAeadAes128Gcm for EvilSrtp {
    fn create_cipher(&self, key: [u8; 16], encrypt: bool) -> Box<dyn AeadAes128GcmCipher> {
        stock().srtp_provider.aead_aes_128_gcm().create_cipher(key, encrypt)
    }
}

impl SupportedAes128CmSha1_80 for EvilSrtp {
    fn create_cipher(&self, key: [u8; 16], encrypt: bool) -> Box<dyn Aes128CmSha1_80Cipher> {
        stock().srtp_provider.aes_128_cm_sha1_80().create_cipher(key, encrypt)
    }
}

impl SrtpProvider for EvilSrtp {
    fn aes_128_cm_sha1_80(&self) -> &'static dyn SupportedAes128CmSha1_80 {
        &EvilSrtp
    }

    fn aead_aes_128_gcm(&self) -> &'static dyn SupportedAeadAes128Gcm {
        &EvilSrtp
    }

    fn aead_aes_256_gcm(&self) -> &'static dyn SupportedAeadAes256Gcm {
        &EvilSrtp
    }

    fn srtp_aes_128_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        stock().srtp_provider.srtp_aes_128_ecb_round(key, input, output);
    }

    fn srtp_aes_256_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        stock().srtp_provider.srtp_aes_256_ecb_round(key, input, output);
    }
}

fn stock() -> CryptoProvider {
    str0m::crypto::from_feature_flags()
}

fn evil_pair() -> Pair {
    let provider = CryptoProvider { srtp_provider: &EvilSrtp, ..stock() };
    let mut pair = Pair::with_provider(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12, Some(provider));
    pair.connect();
    pair.to_viewer = Box::new(|bytes| {
        if bytes[1] == CARRIER {
            bytes[..4].copy_from_slice(&EMPTY_REPORT);
        }
        true
    });
    pair
}

/// Returns the SSRC of the server's video stream, read from the answer.
fn stream_ssrc(pair: &Pair) -> u32 {
    let group = pair.answer.lines().find_map(|line| line.strip_prefix("a=ssrc-group:FID ")).unwrap();
    group.split(' ').next().unwrap().parse().unwrap()
}

/// Makes the browser send an RTCP packet that is an empty receiver report followed by `forged`.
fn send_forged(pair: &mut Pair, mut forged: Vec<u8>) {
    forged.resize(forged.len().next_multiple_of(4).max(4), 0);
    let filler = vec![0_u8; forged.len() - 4];
    FORGED.set(Some(forged));
    let ssrc = stream_ssrc(pair);
    pair.client.direct_api().send_app_specific_feedback(1.into(), ssrc.into(), filler);
    pair.settle();
    assert!(FORGED.take().is_none(), "the forged packet was sent");
    pair.run(Duration::from_millis(2));
}

/// Builds an RTCP packet of type `kind`. `count` is the count or the feedback format in its header.
fn rtcp(kind: u8, count: u8, body: &[u8]) -> Vec<u8> {
    let words = body.len().div_ceil(4);
    let mut bytes = vec![0x80 | (count & 31), kind];
    bytes.extend((words as u16).to_be_bytes());
    bytes.extend(body);
    bytes.resize(4 + words * 4, 0);
    bytes
}

#[test]
fn nack_flood_is_answered_within_bounds() {
    let mut pair = evil_pair();
    send_units(&mut pair, 0, 10, 29);
    let sequence = pair.packets.last().unwrap().header.sequence_number.wrapping_sub(100);
    let mut body = [1_u32.to_be_bytes(), stream_ssrc(&pair).to_be_bytes()].concat();
    for _ in 0..200 {
        body.extend(sequence.to_be_bytes());
        body.extend([0xff, 0xff]);
    }
    let before = pair.viewer.status(pair.now).datagrams;
    (0..20).for_each(|_| send_forged(&mut pair, rtcp(205, 1, &body)));
    let status = pair.viewer.status(pair.now);
    let bound = u64::from(limits::RETRANSMITS_PER_SECOND_MAX);
    assert!(status.retransmits > 0 && status.retransmits <= bound, "{status:?}");
    assert!(status.retransmits_refused > 0, "{status:?}");
    assert!(status.datagrams - before < bound + 100, "{status:?}");
    pair.packets.clear();
    pair.run(Duration::from_secs(2));
    send_units(&mut pair, 10, 3, 3);
    assert!(pair.packets.len() >= 9, "the session continues");
}

/// Generates the parts of packets that resemble RTCP: real types, unusual counts, and bodies about our stream or about
/// another stream. [`assemble`] gives some of the packets a wrong length or wrong padding.
fn rtcp_like() -> impl Strategy<Value = Vec<(u8, u8, bool, Vec<u8>, u8)>> {
    let kind = prop_oneof![8 => 200..=207_u8, 1 => any::<u8>()];
    let count = prop_oneof![Just(0_u8), Just(1), Just(2), Just(4), Just(11), Just(15), Just(31)];
    let part = (kind, count, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..90), any::<u8>());
    proptest::collection::vec(part, 1..6)
}

fn assemble(parts: &[(u8, u8, bool, Vec<u8>, u8)], ssrc: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, count, ours, body, lie) in parts {
        let mut body = body.clone();
        if *ours && body.len() >= 8 {
            body[..4].copy_from_slice(&ssrc.to_be_bytes());
            body[4..8].copy_from_slice(&ssrc.to_be_bytes());
        }
        let mut packet = rtcp(*kind, *count, &body);
        match lie % 8 {
            0 => packet[3] = packet[3].wrapping_add(lie / 8),
            1 => packet[3] = packet[3].saturating_sub(lie / 32),
            2 => packet[0] |= 0x20,
            _ => {}
        }
        bytes.extend(packet);
    }
    bytes.truncate(1_000);
    bytes
}

proptest! {
    #![proptest_config(support::properties_of(24))]

    #[test]
    fn authenticated_invalid_rtcp_does_not_end_the_session(
        packets in proptest::collection::vec(rtcp_like(), 100..200),
    ) {
        let mut pair = evil_pair();
        send_units(&mut pair, 0, 2, 5);
        let ssrc = stream_ssrc(&pair);
        for (index, parts) in packets.iter().enumerate() {
            send_forged(&mut pair, assemble(parts, ssrc));
            if index % 20 == 0 {
                send_units(&mut pair, index as u32, 1, 5);
            }
        }
        pair.run(Duration::from_secs(3));
        prop_assert_eq!(pair.closed, None);
    }
}

// ---- tests: STUN with the right password -----------------------------------------------------------

proptest! {
    #![proptest_config(support::properties_of(24))]

    #[test]
    fn authenticated_invalid_stun_is_handled(
        requests in proptest::collection::vec(
            (
                proptest::collection::vec(
                    (
                        prop_oneof![
                            Just(0x0025_u16), Just(0x802a), Just(0x8029), Just(0x0020), Just(0x0001), Just(0x0006),
                            Just(0x0009), Just(0x0024), Just(0x8022), Just(0x0014), Just(0x0015), any::<u16>()
                        ],
                        proptest::collection::vec(any::<u8>(), 0..24),
                    ),
                    0..5,
                ),
                any::<[u8; 16]>(),
                any::<bool>(),
            ),
            1..40,
        ),
    ) {
        let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
        pair.connect();
        for (attributes, ip, v6) in requests {
            let remote = if v6 { SocketAddr::from((ip, 7)) } else { SocketAddr::from(([10, 0, 0, ip[0] % 8], 7)) };
            let request = signed_request(&pair, USUAL_PRIORITY, &attributes);
            pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), remote, &request);
            pair.viewer.drain(pair.now, &mut Outbox::default());
            pair.viewer.handle_timeout(pair.now);
            pair.viewer.drain(pair.now, &mut Outbox::default());
        }
    }
}

// ---- tests: attackers on the network path ----------------------------------------------------------

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let first =
        prop_oneof![Just(0_u8), Just(22), Just(23), Just(21), Just(20), Just(128), Just(144), any::<u8>()];
    let second = prop_oneof![Just(1_u8), Just(254), Just(200), Just(201), Just(205), Just(206), any::<u8>()];
    (first, second, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(|(first, second, rest)| {
        let mut bytes = vec![first, second];
        bytes.extend(rest);
        bytes
    })
}

proptest! {
    #![proptest_config(support::properties_of(24))]

    #[test]
    fn arbitrary_datagrams_do_not_disturb_a_session(
        before in proptest::collection::vec(hostile(), 0..20),
        after in proptest::collection::vec(hostile(), 0..60),
    ) {
        let mut pair = Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
        for bytes in &before {
            pair.viewer.handle_datagram(pair.now, None, client_address(), bytes);
            pair.settle();
        }
        pair.connect();
        for bytes in &after {
            pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), bytes);
            pair.settle();
        }
        send_units(&mut pair, 0, 2, 3);
        prop_assert_eq!(pair.packets.len(), 6);
    }

    #[test]
    fn damaged_datagrams_of_a_browser_are_handled(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..6_u8), 1..40),
    ) {
        let mut pair = Pair::new(&context(SrtpChoice::Cm), DtlsVersion::Auto);
        let mut damage = damage.into_iter().cycle();
        let twins = Rc::new(RefCell::new(Vec::new()));
        let damaged = Rc::clone(&twins);
        pair.to_viewer = Box::new(move |bytes| {
            let (at, value, how) = damage.next().unwrap();
            let mut twin = bytes.to_vec();
            let at = at.index(twin.len());
            if how == 0 { twin.truncate(at) } else { twin[at] ^= value }
            damaged.borrow_mut().push(twin);
            true
        });
        for _ in 0..400 {
            if pair.closed.is_some() || pair.connected { break }
            pair.run(Duration::from_millis(20));
            let damaged: Vec<_> = twins.borrow_mut().drain(..).collect();
            for twin in damaged {
                pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), &twin);
                pair.settle();
            }
        }
    }
}
