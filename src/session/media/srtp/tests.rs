//! Tests of `srtp.rs`: the test vectors of the RFCs, round trips, and packets that must be refused.

use super::*;
use proptest::prelude::*;

const PROFILES: [SrtpProfile; 3] =
    [SrtpProfile::AES128_CM_SHA1_80, SrtpProfile::AEAD_AES_128_GCM, SrtpProfile::AEAD_AES_256_GCM];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).map(char::from).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

fn material(profile: SrtpProfile) -> Vec<u8> {
    let lengths = lengths(profile).unwrap();
    (0..2 * (lengths.key + lengths.salt)).map(|byte| u8::try_from(byte).unwrap()).collect()
}

/// Returns the contexts of our side, which is the DTLS server, and those of the browser.
fn both(profile: SrtpProfile) -> ((Sealer, Opener), (Sealer, Opener)) {
    let material = material(profile);
    (contexts(profile, &material, false).unwrap(), contexts(profile, &material, true).unwrap())
}

/// Decrypts an RTP packet, or returns `None` if it is not authentic. Only the tests need this, because a viewer sends
/// no media.
fn open_rtp(sender: &Sealer, datagram: &[u8], header_bytes: usize, ssrc: u32, index: u64) -> Option<Vec<u8>> {
    let (sealed, tag) = datagram.split_at_checked(datagram.len().checked_sub(sender.tag_bytes)?)?;
    let (header, body) = sealed.split_at_checked(header_bytes)?;
    let mut plain = vec![0; body.len()];
    match &sender.rtp {
        Cipher::Gcm(gcm) => {
            let nonce = gcm.nonce(ssrc, index);
            gcm.key.open_separate_gather(nonce, Aad::from(header), body, tag, &mut plain).ok()?;
        }
        Cipher::Cm(cm) => {
            let rollovers = u32::try_from(index >> 16).unwrap().to_be_bytes();
            if &cm.tag([sealed, &rollovers]).as_ref()[..CM_TAG_BYTES] != tag {
                return None;
            }
            plain.copy_from_slice(body);
            cm.apply(ssrc, index, &mut plain)?;
        }
    }
    Some(plain)
}

fn seal(sealer: &Sealer, packet: &RtpPacket<'_>) -> Vec<u8> {
    let bytes = packet.header.len() + packet.prefix.len() + packet.payload.len() + sealer.tag_bytes();
    let mut out = vec![0xEE; bytes];
    assert!(sealer.seal_rtp(packet, &mut out));
    out
}

fn seal_rtcp(sealer: &mut Sealer, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![0xEE; packet.len() + sealer.rtcp_overhead_bytes()];
    assert!(sealer.seal_rtcp(packet, &mut out));
    out
}

/// The expected keys are from RFC 3711 appendix B.3.
#[test]
fn session_keys_match_rfc_3711() {
    let (key, salt) = (hex("E1F97A0D3E018BE0D64FA32C06DE4139"), hex("0EC675AD498AFEEBB6960B3AABE6"));
    let master = Master { key: &key, salt: &salt };
    assert_eq!(master.derive(0, 16).unwrap().to_vec(), hex("C61E7A93744F39EE10734AFE3FF7A087"));
    assert_eq!(master.derive(2, 14).unwrap().to_vec(), hex("30CBBC08863D8C85D49DB34A9AE1"));
    assert_eq!(master.derive(1, 20).unwrap().to_vec(), hex("CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"));
}

/// The expected key stream is from RFC 3711 appendix B.2.
#[test]
fn aes_cm_key_stream_matches_rfc_3711() {
    let (key, salt) = (hex("2B7E151628AED2A6ABF7158809CF4F3C"), hex("F0F1F2F3F4F5F6F7F8F9FAFBFCFD"));
    let cm = CounterMode::new(&key, &salt, &[]).unwrap();
    let mut stream = [0; 48];
    cm.apply(0, 0, &mut stream).unwrap();
    let expected =
        "E03EAD0935C95E80E166B16DD92B4EB4 D23513162B02D0F72A43A2FE4A5F97AB 41E95B3BB0A2E8DD477901E4FCA894C0";
    assert_eq!(stream.to_vec(), hex(expected));
}

/// The expected packet is from libsrtp's `srtp_validate`, the keys are from RFC 3711.
#[test]
fn aes_cm_packets_match_libsrtp() {
    let (key, salt) = (hex("e1f97a0d3e018be0d64fa32c06de4139"), hex("0ec675ad498afeebb6960b3aabe6"));
    let sealer = Sealer::new(SrtpProfile::AES128_CM_SHA1_80, &Master { key: &key, salt: &salt }).unwrap();
    let header = hex("800f1234decafbadcafebabe");
    let packet =
        RtpPacket { ssrc: 0xcafe_babe, index: 0x1234, header: &header, prefix: &[], payload: &[0xab; 16] };
    let expected = hex("800f1234decafbadcafebabe4e55dc4ce79978d88ca4d215949d2402b78d6acc99ea179b8dbb");
    assert_eq!(seal(&sealer, &packet), expected);
    let (prefix, payload) = packet.payload.split_at(2);
    assert_eq!(
        seal(&sealer, &RtpPacket { prefix, payload, ..packet }),
        expected,
        "the prefix is encrypted like payload"
    );
}

/// The packets are from RFC 7714 sections 16.1.1 and 16.2.1. These give session keys, so the test derives none.
#[test]
fn aes_gcm_packets_match_rfc_7714() {
    let payload = hex("47616c6c696120657374206f6d6e69732064697669736120696e207061727465732074726573");
    let header = hex("8040f17b8041f8d35501a0b2");
    let salt = hex("517569642070726f2071756f");
    for (key_bytes, sealed) in [
        (
            16_u8,
            "f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b36de3adf8833899d7f27beb16a9152cf765ee4390cce",
        ),
        (
            32,
            "32b1de78a822fe12ef9f78fa332e33aab18012389a58e2f3b50b2a0276ffae0f1ba63799b87b7aa3db36dfffd6b0f9bb7878d7a76c13",
        ),
    ] {
        let key: Vec<u8> = (0..key_bytes).collect();
        let gcm = || Cipher::Gcm(Box::new(Gcm::new(&key, &salt).unwrap()));
        let sealer = Sealer { rtp: gcm(), rtcp: gcm(), tag_bytes: GCM_TAG_BYTES, rtcp_index: 0 };
        let packet =
            RtpPacket { ssrc: 0x5501_a0b2, index: 0xf17b, header: &header, prefix: &[], payload: &payload };
        let expected = [header.clone(), hex(sealed)].concat();
        assert_eq!(seal(&sealer, &packet), expected);
        let (prefix, payload) = payload.split_at(2);
        assert_eq!(
            seal(&sealer, &RtpPacket { prefix, payload, ..packet }),
            expected,
            "the prefix is encrypted like payload"
        );
    }
}

/// Encrypts and decrypts the SRTCP packet of RFC 7714 section 17.1, which has the index 0x5d4.
#[test]
fn aes_gcm_reports_match_rfc_7714() {
    let plain = hex(
        "81c8000d4d6172734e5450314e545032525450200000042a0000e9304c756e61deadbeefdeadbeefdeadbeefdeadbeefdeadbeef",
    );
    let sealed = hex(
        "81c8000d4d61727363e94885dcdab67ca727d7662f6b7e997ff5c0f76c06f32dc676a5f1730d6fda4ce09b4686303ded0bb9275bc84aa45896cf4d2fc5abf87245d9eade800005d4",
    );
    let key: Vec<u8> = (0..16).collect();
    let salt = hex("517569642070726f2071756f");
    let gcm = || Cipher::Gcm(Box::new(Gcm::new(&key, &salt).unwrap()));
    let mut sealer = Sealer { rtp: gcm(), rtcp: gcm(), tag_bytes: GCM_TAG_BYTES, rtcp_index: 0x5d4 };
    assert_eq!(seal_rtcp(&mut sealer, &plain), sealed);
    let mut opener = Opener { rtcp: gcm(), windows: SmallVec::new() };
    let mut out = Vec::new();
    assert!(opener.open_rtcp(&sealed, &mut out));
    assert_eq!(out, plain);
}

/// The report and the keys of both directions are from a real session, recorded by str0m (`test_aes128_cm_sha1_80`).
#[test]
fn aes_cm_reports_match_a_recorded_session() {
    let material = hex(
        "2CB02346B42276A672CFD143AEC2D5EEDDDE55F0AD7BCAC22666F1C6386173ED6EB25CB7D26A61A1EE2C210ADAE760AAA2FD67B672C41AED105F9D36",
    );
    let plain = hex(
        "80c800063cd7cc13e2ee35c8604e618c26f32734000000430000140781ca00063cd7cc130110386e4675326857 66724d4472476634 6f0000",
    );
    let sealed = hex(
        "80C800063CD7CC13B7C831DCB776CD8DC26FDA1D9BFC8EE6589A1A8A49289CAEB264200C37D2D0A4AFAC6385FFC60DEC7D06D4873DD3A8CC80000001B7BB526521D1E73C0FC0",
    );
    let (mut client, _) = contexts(SrtpProfile::AES128_CM_SHA1_80, &material, true).unwrap();
    client.rtcp_index = 1;
    assert_eq!(seal_rtcp(&mut client, &plain), sealed);
    let (_, mut server) = contexts(SrtpProfile::AES128_CM_SHA1_80, &material, false).unwrap();
    let mut out = Vec::new();
    assert!(server.open_rtcp(&sealed, &mut out));
    assert_eq!(out, plain);
}

#[test]
fn packet_is_accepted_once_and_old_packets_never() {
    for profile in PROFILES {
        let ((_, mut opener), (mut browser, _)) = both(profile);
        let mut out = Vec::new();
        let sealed: Vec<_> =
            (0..200).map(|_| seal_rtcp(&mut browser, &[0x80, 201, 0, 1, 0, 0, 0, 1])).collect();
        for at in [0, 2, 1, 100, 99, 37] {
            assert!(opener.open_rtcp(&sealed[at], &mut out), "{profile:?}: {at}");
            assert!(!opener.open_rtcp(&sealed[at], &mut out), "{profile:?}: {at} again");
        }
        assert!(!opener.open_rtcp(&sealed[36], &mut out), "{profile:?}: 64 before the newest");
        assert!(opener.open_rtcp(&sealed[199], &mut out));
    }
}

#[test]
fn each_sender_has_a_replay_window_and_senders_are_bounded() {
    let ((_, mut opener), (mut browser, _)) = both(SrtpProfile::AEAD_AES_256_GCM);
    let mut out = Vec::new();
    for ssrc in 0..limits::RTCP_SENDERS_MAX + 3 {
        browser.rtcp_index = 5;
        let packet = [[0x80, 201, 0, 1], u32::try_from(ssrc).unwrap().to_be_bytes()].concat();
        let sealed = seal_rtcp(&mut browser, &packet);
        assert_eq!(opener.open_rtcp(&sealed, &mut out), ssrc < limits::RTCP_SENDERS_MAX, "sender {ssrc}");
        assert!(!opener.open_rtcp(&sealed, &mut out));
    }
}

#[test]
fn unencrypted_reports_are_refused() {
    for profile in PROFILES {
        let ((_, mut opener), (mut browser, _)) = both(profile);
        let mut sealed = seal_rtcp(&mut browser, &[0x80, 201, 0, 1, 0, 0, 0, 1]);
        let at = sealed.len() - if profile == SrtpProfile::AES128_CM_SHA1_80 { 14 } else { 4 };
        sealed[at] &= 0x7F;
        assert!(!opener.open_rtcp(&sealed, &mut Vec::new()), "{profile:?}");
    }
}

#[test]
fn exhausted_rtcp_index_encrypts_nothing() {
    let ((mut sealer, _), _) = both(SrtpProfile::AEAD_AES_256_GCM);
    sealer.rtcp_index = ENCRYPTED - 1;
    seal_rtcp(&mut sealer, &[0x80, 201, 0, 1, 0, 0, 0, 1]);
    let mut out = [0xEE; 28];
    assert!(!sealer.seal_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 1], &mut out));
    assert_eq!(out, [0; 28]);
}

#[test]
fn short_key_material_is_refused() {
    for profile in PROFILES {
        let material = material(profile);
        assert!(contexts(profile, &material[..material.len() - 1], true).is_none());
    }
}

proptest! {
    #![proptest_config(support::properties())]

    #[test]
    fn encrypted_packet_decrypts_and_a_flipped_bit_is_refused(
        payload in prop::collection::vec(any::<u8>(), 0..1_300),
        prefix in prop::collection::vec(any::<u8>(), 0..3),
        header in prop::collection::vec(any::<u8>(), 12..60),
        ssrc: u32,
        index in 0..1_u64 << 48,
        flip in any::<prop::sample::Index>(),
    ) {
        for profile in PROFILES {
            let ((sealer, _), _) = both(profile);
            let packet = RtpPacket { ssrc, index, header: &header, prefix: &prefix, payload: &payload };
            let mut sealed = seal(&sealer, &packet);
            let opened = open_rtp(&sealer, &sealed, header.len(), ssrc, index).unwrap();
            prop_assert_eq!(opened, [prefix.clone(), payload.clone()].concat());
            prop_assert!(open_rtp(&sealer, &sealed, header.len(), ssrc, index ^ 1 << 20).is_none());
            let at = flip.index(sealed.len());
            sealed[at] ^= 1;
            prop_assert!(open_rtp(&sealer, &sealed, header.len(), ssrc, index).is_none());
        }
    }

    #[test]
    fn wrong_lengths_are_refused_and_zero_the_buffer(room in 0..200_usize) {
        for profile in PROFILES {
            let ((mut sealer, _), _) = both(profile);
            let mut out = vec![0xEE; room];
            let packet = RtpPacket { ssrc: 1, index: 1, header: &[1; 12], prefix: &[], payload: &[7; 100] };
            let fits = room == 112 + sealer.tag_bytes();
            prop_assert_eq!(sealer.seal_rtp(&packet, &mut out), fits);
            prop_assert!(fits || out.iter().all(|byte| *byte == 0));
            let mut out = vec![0xEE; room];
            let fits = room == 100 + sealer.rtcp_overhead_bytes();
            prop_assert_eq!(sealer.seal_rtcp(&[7; 100], &mut out), fits);
            prop_assert!(fits || out.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn reports_decrypt_and_damaged_reports_are_refused(
        packet in prop::collection::vec(any::<u8>(), 8..300),
        flip in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
    ) {
        for profile in PROFILES {
            let ((_, mut opener), (mut browser, _)) = both(profile);
            let sealed = seal_rtcp(&mut browser, &packet);
            let mut damaged = sealed.clone();
            damaged[flip.index(sealed.len())] ^= 0x40;
            let mut out = Vec::new();
            prop_assert!(!opener.open_rtcp(&damaged, &mut out));
            prop_assert!(!opener.open_rtcp(&sealed[..cut.index(sealed.len())], &mut out));
            prop_assert!(opener.open_rtcp(&sealed, &mut out));
            prop_assert_eq!(&out, &packet);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for profile in PROFILES {
            let ((_, mut opener), _) = both(profile);
            prop_assert!(!opener.open_rtcp(&bytes, &mut Vec::new()));
        }
    }

    #[test]
    fn replay_window_accepts_each_recent_index_once(indices in prop::collection::vec(0..300_u32, 1..200)) {
        let mut window: Option<ReplayWindow> = None;
        let mut taken: Vec<u32> = Vec::new();
        for index in indices {
            let newest = taken.iter().max().copied();
            let expected = !taken.contains(&index) && newest.is_none_or(|newest| newest < index || newest - index < 64);
            prop_assert_eq!(window.is_none_or(|window| window.is_fresh(index)), expected);
            if expected {
                window.get_or_insert(ReplayWindow { newest: index, seen: 1 }).note(index);
                taken.push(index);
            }
        }
    }
}
