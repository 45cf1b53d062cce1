//! Tests of offers by native WebRTC clients, which leave out or spell differently what browsers always write.

use streaming_server::session::OfferError;

use super::signaling::{
    CHROMIUM, FINGERPRINT, accept, assert_lines, chromium, chromium_video, has, session, transport,
};

const AUDIO: &str = "m=audio 9 UDP/TLS/RTP/SAVPF 111 63\r\nc=IN IP4 0.0.0.0\r\na=mid:a0\r\na=recvonly\r\n\
    a=rtpmap:111 opus/48000/2\r\n";
const DATA: &str = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:d\r\n\
    a=sctp-port:5000\r\n";

fn m_lines(answer: &str) -> Vec<&str> {
    answer.lines().filter(|line| line.starts_with("m=")).collect()
}

/// A short offer as a native library writes it: one H.264 payload type, here without `fmtp`.
fn native(protocol: &str, more: &str) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 9 {protocol} 96\r\nc=IN IP4 0.0.0.0\r\n\
         a=recvonly\r\na=rtcp-mux\r\na=rtpmap:96 H264/90000\r\n{more}{}",
        transport()
    )
}

/// pion looks the payload type of each m-line up, and refuses the answer if it is a dynamic one without `rtpmap`.
/// Payload type 0 is known to all of them. A data channel has a format instead of a payload type.
#[test]
fn rejected_m_lines_have_a_payload_type_that_needs_no_rtpmap() {
    let old_data = "m=application 9 DTLS/SCTP 5000\r\na=mid:e\r\na=sctpmap:5000 webrtc-datachannel 256\r\n";
    let no_format = "m=audio 9 RTP/AVPF\r\na=mid:f\r\n";
    let offer = session("a=group:BUNDLE a0 v0 v1 d e f\r\n")
        + AUDIO
        + &chromium_video("v0", CHROMIUM)
        + &chromium_video("v1", CHROMIUM)
        + DATA
        + old_data
        + no_format;
    let answer = accept(&offer).unwrap();
    assert_eq!(
        m_lines(&answer),
        [
            "m=audio 0 UDP/TLS/RTP/SAVPF 0",
            "m=video 9 UDP/TLS/RTP/SAVPF 117 118",
            "m=video 0 UDP/TLS/RTP/SAVPF 0",
            "m=application 0 UDP/DTLS/SCTP webrtc-datachannel",
            "m=application 0 DTLS/SCTP 5000",
            "m=audio 0 RTP/AVPF 0",
        ]
    );
    assert_lines(&answer, &["a=group:BUNDLE v0", "a=mid:a0", "a=mid:v1", "a=mid:d", "a=mid:e", "a=mid:f"]);
}

/// RFC 9429 section 5.1.2 lists the profiles that an answerer must accept. The answer repeats the profile.
#[test]
fn every_profile_that_jsep_lists_is_accepted_and_repeated() {
    for protocol in [
        "UDP/TLS/RTP/SAVPF",
        "UDP/TLS/RTP/SAVP",
        "TCP/DTLS/RTP/SAVPF",
        "TCP/DTLS/RTP/SAVP",
        "RTP/SAVPF",
        "RTP/SAVP",
        "RTP/AVPF",
        "RTP/AVP",
    ] {
        let answer = accept(&chromium().replace("UDP/TLS/RTP/SAVPF", protocol)).unwrap();
        assert_eq!(m_lines(&answer), [format!("m=video 9 {protocol} 117 118")]);
    }
}

#[test]
fn offer_without_mid_is_answered_without_mid() {
    let offer = chromium().replace("a=mid:0\r\n", "").replace("a=group:BUNDLE 0\r\n", "");
    let answer = accept(&offer).unwrap();
    assert!(
        !answer.contains("a=mid") && !answer.contains("BUNDLE") && !answer.contains("sdes:mid"),
        "{answer}"
    );
    let many = session("") + AUDIO + &chromium_video("v", CHROMIUM);
    let answer = accept(&many.replace("a=mid:a0\r\n", "").replace("a=mid:v\r\n", "")).unwrap();
    assert_eq!(m_lines(&answer).len(), 2);
}

/// The one-byte form of a header extension has room for 16 bytes. A longer mid is only used in the SDP.
#[test]
fn long_mid_is_answered_and_not_sent_in_packets() {
    for bytes in [16, 17, 36, 64, 255] {
        let mid = "9f0c7a1e-5b64-4d3a-8e21-0c1d2e3f4a5b".repeat(8)[..bytes].to_owned();
        let offer = session(&format!("a=group:BUNDLE {mid}\r\n")) + &chromium_video(&mid, CHROMIUM);
        let answer = accept(&offer).unwrap();
        assert_lines(&answer, &[&format!("a=mid:{mid}"), &format!("a=group:BUNDLE {mid}")]);
        assert_eq!(answer.contains("sdes:mid"), bytes <= 16, "{bytes}");
    }
    let error = accept(&chromium().replace("a=mid:0", &format!("a=mid:{}", "m".repeat(256)))).unwrap_err();
    assert!(error.status() == 400 && error.to_string().contains("a=mid"), "{error}");
}

/// Formally a missing packetization-mode is mode 0. Clients that leave it out depacketise every mode, so it is
/// answered without one: what the client did not write it may not know.
#[test]
fn h264_without_packetization_mode_is_accepted_as_it_was_offered() {
    for (fmtp, answered) in [
        ("", None),
        ("a=fmtp:96 profile-level-id=42e01f\r\n", Some("profile-level-id=42e01f")),
        ("a=fmtp:96 level-asymmetry-allowed=1\r\n", None),
        ("a=fmtp:96 packetization-mode=1\r\n", Some("packetization-mode=1")),
        ("a=fmtp:96 Packetization-Mode = 1; PROFILE-LEVEL-ID=4D001F\r\n", Some("profile-level-id=4d001f")),
    ] {
        let answer = accept(&native("UDP/TLS/RTP/SAVPF", fmtp)).unwrap();
        assert_eq!(m_lines(&answer), ["m=video 9 UDP/TLS/RTP/SAVPF 96"]);
        let line = answer.lines().find_map(|line| line.strip_prefix("a=fmtp:96 ")).unwrap_or_default();
        for name in ["packetization-mode", "profile-level-id"] {
            assert_eq!(line.contains(name), fmtp.to_lowercase().contains(name), "{fmtp} -> {line}");
        }
        assert!(answered.is_none_or(|answered| line.contains(answered)), "{fmtp} -> {line}");
    }
    let both = native("UDP/TLS/RTP/SAVPF", "a=rtpmap:98 H264/90000\r\na=fmtp:98 packetization-mode=1\r\n");
    let answer = accept(&both.replace("SAVPF 96", "SAVPF 96 98")).unwrap();
    assert_eq!(m_lines(&answer), ["m=video 9 UDP/TLS/RTP/SAVPF 98"], "a stated mode 1 is preferred");
}

#[test]
fn attributes_of_the_session_part_apply_to_every_m_line() {
    let offer = native("UDP/TLS/RTP/SAVPF", "").replace(&transport(), "").replace("a=recvonly\r\n", "");
    let extmap = "a=extmap:7 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n";
    let with = |attributes: &str| accept(&offer.replace("t=0 0\r\n", &format!("t=0 0\r\n{attributes}")));
    let answer = with(&(transport() + extmap)).unwrap();
    assert_lines(&answer, &["a=sendonly", extmap.trim()]);
    assert!(with(&(transport() + "a=recvonly\r\n")).is_ok());
    let error = with(&(transport() + "a=sendonly\r\n")).unwrap_err();
    assert!(error.to_string().contains("sendonly"), "{error}");
    for (setup, answered) in
        [("actpass", "passive"), ("active", "passive"), ("ACTPASS", "passive"), ("passive", "active")]
    {
        let answer = with(&transport().replace("actpass", setup)).unwrap();
        assert_lines(&answer, &[&format!("a=setup:{answered}")]);
    }
    let answer = with(&transport().replace("a=setup:actpass\r\n", "")).unwrap();
    assert_lines(&answer, &["a=setup:passive"]);
}

#[test]
fn video_takes_transport_from_its_own_bundle_group() {
    let video = chromium_video("v", CHROMIUM).replace(&transport(), "");
    let audio = |mid: &str, ufrag: &str| {
        format!("m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:{mid}\r\n{}", transport().replace("Zt9k", ufrag))
    };
    let groups = session("a=group:LS a v\r\na=group:BUNDLE x\r\na=group:BUNDLE a v\r\n");
    let answer = accept(&(groups + &audio("x", "Zt 9") + &audio("a", "Zt9k") + &video)).unwrap();
    assert_lines(&answer, &["a=group:BUNDLE v"]);
    let foreign = session("a=group:BUNDLE a x\r\n") + &audio("a", "Zt9k") + &audio("x", "Zt9k") + &video;
    assert_eq!(accept(&foreign).unwrap_err().status(), 400, "the video is in no group");
    let alone = session("a=group:BUNDLE a x\r\n") + &audio("a", "Zt9k") + &chromium_video("v", CHROMIUM);
    assert!(!accept(&alone).unwrap().contains("BUNDLE"), "the video is not bundled");
}

#[test]
fn extension_directions_and_ids_are_respected() {
    let uri = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
    let answered = |extmap: &str| {
        let line = format!("a=extmap:{extmap}");
        let answer = accept(&native("UDP/TLS/RTP/SAVPF", &format!("{line}\r\n"))).unwrap();
        answer.lines().find_map(|line| line.strip_prefix("a=extmap:")).map(str::to_owned)
    };
    assert_eq!(answered(&format!("5 {uri} with=attributes")), Some(format!("5 {uri}")));
    assert_eq!(answered(&format!("5/recvonly {uri}")), Some(format!("5/sendonly {uri}")));
    assert_eq!(answered(&format!("5/sendrecv {uri}")), Some(format!("5/sendonly {uri}")));
    for other in ["5/sendonly", "5/inactive", "0", "15", "16", "4096", "-1", "x", ""] {
        assert_eq!(answered(&format!("{other} {uri}")), None, "{other}");
    }
}

#[test]
fn surrounding_white_space_and_any_line_end_are_accepted() {
    let offer = chromium();
    for text in [
        format!("\r\n \n{offer}\r\n\r\n"),
        offer.replace("\r\n", "\n"),
        offer.replace("\r\n", "\r"),
        offer.replace("\r\n", " \r\n"),
        offer.replace("\r\n", "\r\n\r\n"),
    ] {
        assert_eq!(m_lines(&accept(&text).unwrap()), ["m=video 9 UDP/TLS/RTP/SAVPF 117 118"]);
    }
}

#[test]
fn static_payload_types_below_64_may_be_mapped_to_h264() {
    let offer = native("UDP/TLS/RTP/SAVPF", "").replace("96", "33");
    assert_eq!(m_lines(&accept(&offer).unwrap()), ["m=video 9 UDP/TLS/RTP/SAVPF 33"]);
}

#[test]
fn refusal_names_its_reason() {
    let video = |from: &str, to: &str| chromium().replace(from, to);
    let no_fingerprint =
        video(&format!("{FINGERPRINT}\r\n"), "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:abc\r\n");
    for (offer, status, code, reason) in [
        (session("") + AUDIO + DATA, 422, "unsupported_offer", "no video m-line"),
        (video("a=recvonly", "a=sendonly"), 422, "unsupported_offer", "sendonly"),
        (video("a=recvonly", "a=inactive"), 422, "unsupported_offer", "inactive"),
        (video("m=video 9", "m=video 0"), 422, "unsupported_offer", "port 0"),
        (video("UDP/TLS/RTP/SAVPF", "TCP/TLS/RTP/X"), 422, "unsupported_offer", "protocol"),
        (video("a=extmap-allow-mixed", "a=ice-lite"), 422, "unsupported_offer", "ICE-lite"),
        (video("sha-256", "sha-512"), 422, "unsupported_offer", "sha-256"),
        (no_fingerprint, 422, "unsupported_offer", "a=crypto"),
        (video("H264/90000", "H265/90000"), 422, "no_common_codec", "H264"),
        (video("H264/90000", "H264/900000"), 422, "no_common_codec", "H264"),
        (video("packetization-mode=1", "packetization-mode=0"), 422, "no_common_codec", "packetization-mode"),
        (video("packetization-mode=1", "packetization-mode=2"), 422, "no_common_codec", "packetization-mode"),
        (session("") + &chromium_video("0", &[(72, 1, "42e01f")]), 422, "no_common_codec", "payload type"),
        (
            session("") + &chromium_video("0", &[(100, 1, "wrong!")]),
            422,
            "no_common_codec",
            "profile-level-id",
        ),
        (video(":F9\r\n", "\r\n"), 400, "invalid_offer", "sha-256"),
        (video(&format!("{FINGERPRINT}\r\n"), ""), 400, "invalid_offer", "a=fingerprint is missing"),
        (video("a=ice-ufrag:Zt9k\r\n", ""), 400, "invalid_offer", "a=ice-ufrag is missing"),
        (video("a=ice-ufrag:Zt9k", "a=ice-ufrag:Zt9"), 400, "invalid_offer", "a=ice-ufrag"),
        (video("a=ice-pwd:nTAa8gyYvJLQDPJTHF2Xp9Nv\r\n", ""), 400, "invalid_offer", "a=ice-pwd is missing"),
        (video("a=setup:actpass", "a=setup:holdconn"), 400, "invalid_offer", "a=setup"),
    ] {
        let error = accept(&offer).unwrap_err();
        assert_eq!((error.status(), error.code()), (status, code), "{reason}: {error}");
        assert!(error.to_string().contains(reason), "{reason} is not in: {error}");
    }
}

/// The reason is that of the m-line that came closest, whatever the order of the m-lines.
#[test]
fn refusal_of_several_m_lines_is_that_of_the_closest_one() {
    let unusable =
        chromium_video("v0", CHROMIUM).replace("a=recvonly", "a=inactive").replace(&transport(), "");
    let vp8 = chromium_video("v1", &[]);
    for offer in [session("") + AUDIO + &unusable + &vp8, session("") + &vp8 + &unusable + DATA] {
        assert_eq!(accept(&offer).unwrap_err().code(), "no_common_codec");
    }
}

#[test]
fn counts_of_formats_and_attributes_are_bounded() {
    let many_formats: String = (0..10_000).map(|number| format!(" {}", number % 128)).collect();
    let formats = chromium().replace("SAVPF 96", &format!("SAVPF{many_formats}"));
    let attributes = chromium() + &"a=\r\n".repeat(12_000);
    for (offer, reason) in [(formats, "formats"), (attributes, "attributes")] {
        let Err(OfferError::Malformed(why)) = accept(&offer) else { panic!("{reason} are not bounded") };
        assert!(why.contains(reason), "{why}");
    }
    assert!(has(&accept(&chromium()).unwrap(), "a=sendonly"));
}
