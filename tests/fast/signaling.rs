//! Tests of SDP offers, both of real browsers and malformed ones, and of the answers to them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use streaming_server::base::limits;
use streaming_server::session::{
    ContextError, OfferError, SessionConfig, SessionContext, SrtpChoice, Viewer,
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn context() -> Arc<SessionContext> {
    SessionContext::new(SessionConfig {
        candidates: vec![address("192.0.2.1:8189"), address("[2001:db8::1]:8189")],
        advertise: vec![address("198.51.100.200:9000")],
        srtp: SrtpChoice::Gcm,
    })
    .unwrap()
}

pub(crate) fn accept(offer: &str) -> Result<String, OfferError> {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let now = Instant::now();
    Viewer::accept(&context(), 7, offer, now).map(|(_, answer)| answer)
}

pub(crate) const FINGERPRINT: &str = "a=fingerprint:sha-256 \
    0A:1B:2C:3D:4E:5F:60:71:82:93:A4:B5:C6:D7:E8:F9:0A:1B:2C:3D:4E:5F:60:71:82:93:A4:B5:C6:D7:E8:F9";

pub(crate) fn transport() -> String {
    format!("a=ice-ufrag:Zt9k\r\na=ice-pwd:nTAa8gyYvJLQDPJTHF2Xp9Nv\r\n{FINGERPRINT}\r\na=setup:actpass\r\n")
}

pub(crate) fn session(bundle: &str) -> String {
    format!(
        "v=0\r\no=- 4611731400430051336 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n{bundle}\
         a=extmap-allow-mixed\r\na=msid-semantic: WMS\r\n"
    )
}

/// Builds Chromium's video m-line for a `recvonly` transceiver. Each codec is given by its payload type, packetization
/// mode and profile-level-id. The next higher payload type is its RTX.
pub(crate) fn chromium_video(mid: &str, codecs: &[(u8, u8, &str)]) -> String {
    let numbers: String = codecs.iter().map(|(pt, ..)| format!(" {pt} {}", pt + 1)).collect();
    let mut text = format!(
        "m=video 9 UDP/TLS/RTP/SAVPF 96 97{numbers} 39\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n\
         a=candidate:1 1 udp 2113937151 0b6ce2bb-7ad4-4a4f-9c7c-3cbd1cd0d1f5.local 51472 typ host\r\n\
         {}a=ice-options:trickle\r\na=mid:{mid}\r\n\
         a=extmap:1 urn:ietf:params:rtp-hdrext:toffset\r\n\
         a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time\r\n\
         a=extmap:4 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
         a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n\
         a=extmap:9 urn:ietf:params:rtp-hdrext:sdes:mid\r\n\
         a=extmap:12 http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time\r\n\
         a=recvonly\r\na=rtcp-mux\r\na=rtcp-rsize\r\na=rtcp-xr:rcvr-rtt=all\r\n\
         a=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack pli\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n",
        transport()
    );
    for (pt, mode, profile) in codecs {
        text += &format!(
            "a=rtpmap:{pt} H264/90000\r\na=rtcp-fb:{pt} goog-remb\r\na=rtcp-fb:{pt} transport-cc\r\n\
             a=rtcp-fb:{pt} ccm fir\r\na=rtcp-fb:{pt} nack\r\na=rtcp-fb:{pt} nack pli\r\n\
             a=fmtp:{pt} level-asymmetry-allowed=1;packetization-mode={mode};profile-level-id={profile}\r\n\
             a=rtpmap:{0} rtx/90000\r\na=fmtp:{0} apt={pt}\r\n",
            pt + 1
        );
    }
    text
}

/// H.264 codecs that Chromium offers without hardware decoding: payload type, packetization mode, profile-level-id.
pub(crate) const CHROMIUM: &[(u8, u8, &str)] = &[
    (103, 1, "42001f"),
    (107, 0, "42001f"),
    (109, 1, "42e01f"),
    (115, 0, "42e01f"),
    (117, 1, "4d001f"),
    (119, 0, "4d001f"),
    (121, 1, "f4001f"),
];

pub(crate) fn chromium() -> String {
    session("a=group:BUNDLE 0\r\n") + &chromium_video("0", CHROMIUM)
}

pub(crate) fn has(answer: &str, line: &str) -> bool {
    answer.split("\r\n").any(|one| one == line)
}

#[track_caller]
pub(crate) fn assert_lines(answer: &str, lines: &[&str]) {
    for line in lines {
        assert!(has(answer, line), "`{line}` is missing in\n{answer}");
    }
}

fn payload_types(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("m=video 9 UDP/TLS/RTP/SAVPF ")).unwrap();
    line.to_owned()
}

#[test]
fn chromium_gets_only_its_best_h264_with_rtx() {
    let answer = accept(&chromium()).unwrap();
    assert_eq!(payload_types(&answer), "117 118");
    assert_lines(
        &answer,
        &[
            "a=group:BUNDLE 0",
            "a=ice-lite",
            "a=mid:0",
            "a=sendonly",
            "a=setup:passive",
            "a=msid:pet-camera video",
            "a=rtcp-mux",
            "a=rtcp-xr:rcvr-rtt=all",
            "a=rtpmap:117 H264/90000",
            "a=fmtp:117 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=4d001f",
            "a=rtcp-fb:117 nack",
            "a=rtcp-fb:117 nack pli",
            "a=rtcp-fb:117 ccm fir",
            "a=fmtp:118 apt=117",
            "a=rtcp-fb:117 transport-cc",
            "a=extmap:4 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
            "a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
            "a=extmap:9 urn:ietf:params:rtp-hdrext:sdes:mid",
            "a=extmap:12 http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time",
            "a=candidate:1 1 udp 2130706431 198.51.100.200 9000 typ host",
            "a=candidate:2 1 udp 2130706175 192.0.2.1 8189 typ host",
            "a=candidate:3 1 udp 2130705919 2001:db8::1 8189 typ host",
            "a=end-of-candidates",
        ],
    );
    for absent in ["VP8", "goog-remb", "abs-send-time", ".local"] {
        assert!(!answer.contains(absent), "{absent}");
    }
    assert!(answer.ends_with("\r\n") && answer.lines().all(|line| !line.is_empty()));
}

#[test]
fn ice_credentials_are_long_enough_and_unique() {
    let values = |name: &str| {
        let answers = [accept(&chromium()).unwrap(), accept(&chromium()).unwrap()];
        answers.map(|answer| answer.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned())
    };
    let [ufrag, other] = values("a=ice-ufrag:");
    assert!(
        ufrag.len() >= 8 && ufrag != other && ufrag.starts_with("7/"),
        "{ufrag} must be long and unique and begin with the viewer's id"
    );
    let [password, other] = values("a=ice-pwd:");
    assert!(password.len() >= 22 && password != other);
}

#[test]
fn highest_profile_is_chosen_independent_of_order() {
    let best = |codecs: &[(u8, u8, &str)]| {
        payload_types(&accept(&(session("") + &chromium_video("0", codecs))).unwrap())
    };
    assert_eq!(best(&[(103, 1, "42e01f"), (105, 1, "64001f"), (107, 1, "4d001f")]), "105 106");
    assert_eq!(best(&[(103, 1, "42001f"), (105, 1, "42e01f")]), "105 106");
    assert_eq!(best(&[(103, 1, "f4001f")]), "103 104");
    assert_eq!(best(&[(103, 0, "64001f"), (105, 1, "42e01f")]), "105 106");
    assert_eq!(best(&[(35, 1, "64001f"), (105, 1, "640c1f")]), "35 36");
}

#[test]
fn firefox_offer_with_session_level_fingerprint_is_accepted() {
    let offer = format!(
        "v=0\r\no=mozilla...THIS_IS_SDPARTA-99.0 7323741323 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n\
         {FINGERPRINT}\r\na=group:BUNDLE 0\r\na=ice-options:trickle\r\na=msid-semantic:WMS *\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF 120 124 126 127 97 98\r\nc=IN IP4 0.0.0.0\r\n\
         a=recvonly\r\na=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=extmap:7 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n\
         a=fmtp:126 profile-level-id=42e01f;level-asymmetry-allowed=1;packetization-mode=1\r\n\
         a=fmtp:97 profile-level-id=42e01f;level-asymmetry-allowed=1\r\n\
         a=fmtp:127 apt=126\r\na=fmtp:98 apt=97\r\na=fmtp:124 apt=120\r\n\
         a=ice-pwd:5be9c47f1cbd8a8ef5d5c4e48a8a6c8e\r\na=ice-ufrag:8d4f1b3c\r\na=mid:0\r\n\
         a=rtcp-fb:126 nack\r\na=rtcp-fb:126 nack pli\r\na=rtcp-fb:126 ccm fir\r\na=rtcp-mux\r\na=rtcp-rsize\r\n\
         a=rtpmap:120 VP8/90000\r\na=rtpmap:124 rtx/90000\r\na=rtpmap:126 H264/90000\r\na=rtpmap:127 rtx/90000\r\n\
         a=rtpmap:97 H264/90000\r\na=rtpmap:98 rtx/90000\r\na=setup:actpass\r\na=ssrc:1 cname:{{x}}\r\n"
    );
    let answer = accept(&offer).unwrap();
    assert_eq!(payload_types(&answer), "126 127");
    assert_lines(&answer, &["a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid"]);
}

#[test]
fn sendrecv_offer_without_rtx_is_answered_sendonly() {
    let offer = chromium().replace("a=recvonly", "a=sendrecv").replace("rtx/90000", "red/90000");
    let answer = accept(&offer).unwrap();
    assert_eq!(payload_types(&answer), "117");
    assert!(has(&answer, "a=sendonly") && !answer.contains("FID"));
    assert!(
        !answer.contains("transport"),
        "packets without RTX are repeated unchanged, so they have no such number"
    );
}

#[test]
fn audio_data_and_second_video_are_rejected_in_order() {
    let audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111 63\r\nc=IN IP4 0.0.0.0\r\na=mid:a0\r\na=recvonly\r\na=rtpmap:111 opus/48000/2\r\n";
    let data = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:d\r\na=sctp-port:5000\r\n";
    let offer = session("a=group:BUNDLE a0 v0 v1 d\r\n")
        + audio
        + &chromium_video("v0", CHROMIUM)
        + &chromium_video("v1", CHROMIUM)
        + data;
    let answer = accept(&offer).unwrap();
    let media: Vec<_> = answer.lines().filter(|line| line.starts_with("m=")).collect();
    assert_eq!(
        media,
        [
            "m=audio 0 UDP/TLS/RTP/SAVPF 0",
            "m=video 9 UDP/TLS/RTP/SAVPF 117 118",
            "m=video 0 UDP/TLS/RTP/SAVPF 0",
            "m=application 0 UDP/DTLS/SCTP webrtc-datachannel",
        ]
    );
    assert_lines(&answer, &["a=group:BUNDLE v0", "a=mid:a0", "a=mid:v0", "a=mid:v1", "a=mid:d"]);
    assert_eq!(answer.matches("a=sendonly").count(), 1);
}

#[test]
fn first_acceptable_video_is_chosen() {
    let sendonly = chromium_video("v0", CHROMIUM).replace("a=recvonly", "a=sendonly");
    let disabled = chromium_video("v1", CHROMIUM).replace("m=video 9", "m=video 0");
    let no_h264 = chromium_video("v2", &[]);
    let bundled = chromium_video("v3", CHROMIUM)
        .replace("m=video 9", "m=video 0")
        .replace("a=recvonly", "a=recvonly\r\na=bundle-only");
    let offer = session("a=group:BUNDLE v0 v1 v2 v3\r\n") + &sendonly + &disabled + &no_h264 + &bundled;
    assert_lines(&accept(&offer).unwrap(), &["a=group:BUNDLE v3"]);
}

#[test]
fn transport_attributes_may_be_on_the_first_bundled_m_line_only() {
    let video = chromium_video("v", CHROMIUM).replace(&transport(), "");
    let audio = format!("m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:a\r\na=inactive\r\n{}", transport());
    assert!(accept(&(session("a=group:BUNDLE a v\r\n") + &audio + &video)).is_ok());
    assert!(matches!(accept(&(session("") + &audio + &video)), Err(OfferError::Malformed(_))));
}

#[test]
fn passive_offer_makes_us_the_dtls_client() {
    let answer = accept(&chromium().replace("actpass", "passive")).unwrap();
    assert_lines(&answer, &["a=setup:active"]);
}

#[test]
fn missing_codec_and_malformed_offer_have_different_errors() {
    let good = chromium();
    for (from, to) in [
        ("a=recvonly", "a=sendonly"),
        ("a=recvonly", "a=inactive"),
        ("H264/90000", "H265/90000"),
        ("packetization-mode=1", "packetization-mode=0"),
        ("m=video", "m=audio"),
        ("UDP/TLS/RTP/SAVPF", "TCP/TLS/RTP/X"),
        ("a=fingerprint:sha-256", "a=fingerprint:sha-1"),
        ("a=extmap-allow-mixed", "a=ice-lite"),
    ] {
        let error = accept(&good.replace(from, to)).unwrap_err();
        assert_eq!(error.status(), 422, "{from} -> {to}: {error}");
    }
    for (from, to) in [
        ("v=0", "v=1"),
        (":F9\r\n", "\r\n"),
        ("0A:1B", "0A:XX"),
        ("0A:1B", "0A:+B"),
        ("a=ice-ufrag:Zt9k", "a=ice-ufrag:Zt9"),
        ("a=ice-ufrag:Zt9k", "a=ice-ufrag:Zt 9k"),
        ("a=ice-pwd:nTAa8gyYvJLQDPJTHF2Xp9Nv", "a=ice-pwd:short"),
        ("a=ice-pwd", "a=ice-password"),
        ("a=setup:actpass", "a=setup:holdconn"),
        ("a=mid:0", "a=mid:"),
        ("a=mid:0", "a=mid:ä"),
        ("a=extmap-allow-mixed", "a=\u{0}"),
        ("m=video 9 UDP", "m=video\r\na=UDP"),
    ] {
        let error = accept(&good.replace(from, to)).unwrap_err();
        assert!(
            matches!(error, OfferError::Malformed(_)) && error.status() == 400,
            "{from} -> {to}: {error}"
        );
    }
}

#[test]
fn empty_and_oversized_offers_are_refused() {
    let big = chromium() + &"a=x:y\r\n".repeat(limits::OFFER_BYTES_MAX / 6);
    let many = session("") + &"m=video 0 UDP/TLS/RTP/SAVPF 96\r\n".repeat(limits::OFFER_MEDIA_MAX + 1);
    for offer in ["", "\r\n", "hello", "{}", "v=0", "v=0\r\n", "v=0\r\nm=", "v=0\r\nm=video", &big, &many] {
        assert!(matches!(accept(offer), Err(OfferError::Malformed(_))));
    }
}

#[test]
fn clashing_payload_types_and_extension_ids_are_ignored() {
    let clash = chromium()
        .replace("a=rtpmap:118 rtx", "a=rtpmap:117 rtx")
        .replace("a=fmtp:118 apt=117", "a=fmtp:117 apt=117")
        .replace("a=extmap:9 ", "a=extmap:5 ")
        .replace("a=extmap:12 ", "a=extmap:15 ");
    let answer = accept(&clash).unwrap();
    assert_eq!(payload_types(&answer), "117");
    assert_eq!(answer.matches("a=extmap:").count(), 1);
    let reserved = session("") + &chromium_video("0", &[(72, 1, "42e01f"), (200, 1, "42e01f")]);
    assert!(matches!(accept(&reserved), Err(OfferError::NoCommonCodec(_))));
}

#[test]
fn lf_and_missing_line_ends_are_accepted() {
    assert!(accept(&chromium().replace("\r\n", "\n")).is_ok());
    assert!(accept(chromium().trim_end()).is_ok());
}

#[test]
fn configuration_without_a_usable_address_is_refused() {
    let with = |candidates: Vec<SocketAddr>| {
        SessionContext::new(SessionConfig { candidates, ..SessionConfig::default() }).map(drop)
    };
    assert_eq!(with(vec![]), Err(ContextError::NoCandidates));
    assert_eq!(with(vec![address("0.0.0.0:1")]), Err(ContextError::Unusable(address("0.0.0.0:1"))));
    let many: Vec<_> = (1..=40).map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect();
    assert_eq!(with(many), Err(ContextError::TooManyCandidates(40)));
}

#[test]
fn chosen_profile_follows_the_configuration() {
    let chosen = |srtp| {
        let candidates = vec![address("192.0.2.1:8189")];
        SessionContext::new(SessionConfig { candidates, srtp, ..SessionConfig::default() })
            .unwrap()
            .chosen_profile()
    };
    assert_eq!(chosen(SrtpChoice::Gcm), "AEAD_AES_256_GCM");
    assert_eq!(chosen(SrtpChoice::Cm), "AES128_CM_SHA1_80");
    assert!(["AEAD_AES_256_GCM", "AES128_CM_SHA1_80"].contains(&chosen(SrtpChoice::Auto)));
}

proptest! {
    #![proptest_config(support::properties_of(64))]

    #[test]
    fn any_text_is_accepted_or_refused(text in "(v=0\r\n)?(\\PC|[\r\n=:a-z0-9 ]){0,400}") {
        let _ = accept(&text);
    }

    /// Removes, repeats, swaps or damages some lines of a real offer.
    #[test]
    fn damaged_offers_are_accepted_or_refused(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4_u8, any::<char>()), 0..12),
    ) {
        let offer = chromium();
        let mut lines: Vec<String> = offer.lines().map(str::to_owned).collect();
        for (from, to, how, letter) in edits {
            let (from, to) = (from.index(lines.len()), to.index(lines.len()));
            match how {
                0 => { lines.remove(from); }
                1 => { let line = lines[from].clone(); lines.insert(to, line); }
                2 => lines.swap(from, to),
                _ => {
                    let at = lines[from].char_indices().map(|(at, _)| at).nth(to % 20).unwrap_or(0);
                    lines[from].insert(at, letter);
                }
            }
        }
        if let Ok(answer) = accept(&lines.join("\r\n")) {
            prop_assert!(answer.starts_with("v=0\r\n") && answer.contains("a=sendonly\r\n"));
            prop_assert_eq!(answer.matches("\nm=").count(), lines.iter().filter(|line| line.starts_with("m=")).count());
        }
    }
}

#[test]
fn tcp_candidates_follow_the_udp_ones_with_a_lower_priority() {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    let now = Instant::now();
    let offer = include_str!("../fuzz/seeds/sdp/chromium");
    let (_, answer) = Viewer::accept(&context().with_tcp(), 1, offer, now).unwrap();
    let candidates: Vec<&str> = answer.lines().filter(|line| line.starts_with("a=candidate:")).collect();
    let (udp, tcp) = candidates.split_at(candidates.len() / 2);
    assert!(udp.iter().all(|line| line.contains(" udp ")) && tcp.iter().all(|line| line.contains(" tcp ")));
    let priority = |line: &&str| line.split(' ').nth(3).unwrap().parse::<u32>().unwrap();
    assert!(candidates.is_sorted_by(|a, b| priority(a) > priority(b)), "{candidates:#?}");
    // 90 << 24 | (4 << 13 | 8191) << 8 | 255
    assert_eq!(priority(&tcp[0]), 1_520_435_199);
    assert!(tcp[0].ends_with(" typ host tcptype passive"));
    let foundations: HashSet<&str> = candidates.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(foundations.len(), candidates.len());
}
