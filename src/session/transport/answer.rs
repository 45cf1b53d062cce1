//! Writes the SDP answer: the served m-line, and every other m-line of the offer as rejected. Also writes the fragment
//! that answers an ICE restart.

use std::net::SocketAddr;

use str0m::IceCreds;

use crate::session::media::StreamParameters;
use crate::session::transport::sdp::{Negotiated, Offer};
use crate::session::transport::section::Section;

/// Id of the media stream in the page.
pub(super) const STREAM_ID: &str = "pet-camera";
/// Id of the track in the page.
pub(super) const TRACK_ID: &str = "video";
/// Type preference of TCP host candidates. Browsers use the same number for theirs.
const TCP_TYPE_PREFERENCE: usize = 90;

/// Where the other side can reach us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates<'a> {
    pub(super) addresses: &'a [SocketAddr],
    /// True if we accept TCP connections at these addresses, too.
    pub(super) has_tcp: bool,
}

/// Our own values for the answer.
#[derive(Debug)]
pub(super) struct LocalDescription<'a> {
    pub(super) session_id: u64,
    pub(super) credentials: &'a IceCreds,
    pub(super) fingerprint: &'a [u8],
    pub(super) candidates: Candidates<'a>,
    pub(super) stream: &'a StreamParameters,
}

/// Writes the answer. Every m-line except the served one is rejected with port 0.
pub(super) fn write(offer: &Offer<'_>, negotiated: &Negotiated, local: &LocalDescription<'_>) -> String {
    let mut lines = vec![format!("v=0\r\no=- {} 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0", local.session_id)];
    if negotiated.is_bundled {
        lines.push(format!("a=group:BUNDLE {}", negotiated.mid));
    }
    lines.push(format!("a=msid-semantic: WMS {STREAM_ID}\r\na=ice-lite"));
    for (index, section) in offer.media.iter().enumerate() {
        if index == negotiated.index {
            push_served(&mut lines, section, negotiated, local);
        } else {
            push_rejected(&mut lines, section);
        }
    }
    lines.join("\r\n") + "\r\n"
}

/// Rejects an m-line. Payload type 0 has a meaning without `rtpmap`, so that clients which look the payload types of a
/// rejected m-line up find it. Other protocols repeat the first format of the offer.
fn push_rejected(lines: &mut Vec<String>, section: &Section<'_>) {
    let Section { kind, protocol, .. } = section;
    let format = section.first_format.filter(|_| !protocol.contains("RTP/")).unwrap_or("0");
    lines.push(format!("m={kind} 0 {protocol} {format}\r\nc=IN IP4 0.0.0.0\r\na=inactive"));
    lines.extend(section.mid.map(|mid| format!("a=mid:{mid}")));
}

fn push_served(
    lines: &mut Vec<String>,
    section: &Section<'_>,
    negotiated: &Negotiated,
    local: &LocalDescription<'_>,
) {
    let StreamParameters { ssrc, payload_type, rtx, cname, .. } = local.stream;
    let rtx_format = rtx.map_or_else(String::new, |(_, rtx)| format!(" {rtx}"));
    lines.push(format!("m=video 9 {} {payload_type}{rtx_format}", section.protocol));
    lines.push("c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0".to_owned());
    push_transport(lines, if negotiated.dtls_client { "active" } else { "passive" }, local);
    lines.extend(section.mid.map(|mid| format!("a=mid:{mid}")));
    for (extmap, uri) in negotiated.extmaps.all() {
        lines.extend(extmap.map(|extmap| extmap.answer(uri)));
    }
    lines.push(format!("a=sendonly\r\na=msid:{STREAM_ID} {TRACK_ID}\r\na=rtcp-mux"));
    // We accept reduced-size RTCP and round trips for receivers if they are offered. Without these round trips a
    // browser cannot relate our clock to its own and reports no capture time.
    lines.extend(section.has_reduced_size_rtcp.then(|| "a=rtcp-rsize".to_owned()));
    lines.extend(section.has_receiver_round_trip.then(|| "a=rtcp-xr:rcvr-rtt=all".to_owned()));
    lines.push(format!("a=rtpmap:{payload_type} H264/90000"));
    let feedback = section.feedback(*payload_type);
    let messages = [
        (feedback.fir, "ccm fir"),
        (feedback.nack, "nack"),
        (feedback.pli, "nack pli"),
        (feedback.transport && negotiated.extmaps.transport.is_some(), "transport-cc"),
    ];
    for (is_offered, name) in messages {
        lines.extend(is_offered.then(|| format!("a=rtcp-fb:{payload_type} {name}")));
    }
    // Clients compare the parameters with those of their offer, so one that is missing there is not added.
    let mut parameters = vec!["level-asymmetry-allowed=1".to_owned()];
    parameters.extend(negotiated.video.has_mode.then(|| "packetization-mode=1".to_owned()));
    parameters.extend(negotiated.video.profile_level_id.map(|id| format!("profile-level-id={id:06x}")));
    lines.push(format!("a=fmtp:{payload_type} {}", parameters.join(";")));
    if let Some((_, rtx)) = rtx {
        lines.push(format!("a=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={payload_type}"));
    }
    push_sources(lines, *ssrc, rtx.map(|(rtx_ssrc, _)| rtx_ssrc), cname);
}

/// Appends the SSRC of the stream and that of its retransmissions.
pub(super) fn push_sources(lines: &mut Vec<String>, ssrc: u32, rtx_ssrc: Option<u32>, cname: &str) {
    let sources = |ssrc| format!("a=ssrc:{ssrc} cname:{cname}\r\na=ssrc:{ssrc} msid:{STREAM_ID} {TRACK_ID}");
    lines.extend(rtx_ssrc.map(|rtx_ssrc| format!("a=ssrc-group:FID {ssrc} {rtx_ssrc}")));
    lines.push(sources(ssrc));
    lines.extend(rtx_ssrc.map(sources));
}

/// Appends candidates, ICE credentials and fingerprint. `setup` is our DTLS role.
pub(super) fn push_transport(lines: &mut Vec<String>, setup: &str, local: &LocalDescription<'_>) {
    push_ice(lines, local.credentials, local.candidates);
    let octets: Vec<String> = local.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect();
    lines.push(format!("a=fingerprint:sha-256 {}\r\na=setup:{setup}", octets.join(":")));
}

/// Writes the fragment that answers an ICE restart (RFC 9725 section 4.3.2). It has the m-line of the video only.
pub(super) fn write_fragment(mid: &str, credentials: &IceCreds, candidates: Candidates<'_>) -> String {
    let mut lines = vec!["a=ice-lite\r\nm=video 9 UDP/TLS/RTP/SAVPF 0".to_owned()];
    lines.extend((!mid.is_empty()).then(|| format!("a=mid:{mid}")));
    push_ice(&mut lines, credentials, candidates);
    lines.join("\r\n") + "\r\n"
}

fn push_ice(lines: &mut Vec<String>, credentials: &IceCreds, candidates: Candidates<'_>) {
    let Candidates { addresses, has_tcp } = candidates;
    for (index, address) in addresses.iter().enumerate() {
        // The priority is computed as in RFC 8445 section 5.1.2. A host candidate has the type preference 126, and
        // earlier candidates have a higher local preference.
        let local_preference = 65_535_usize.saturating_sub(index);
        let priority = (126 << 24) | (local_preference << 8) | 255;
        let (ip, port) = (address.ip(), address.port());
        lines.push(format!("a=candidate:{} 1 udp {priority} {ip} {port} typ host", index + 1));
    }
    for (index, address) in addresses.iter().enumerate().filter(|_| has_tcp) {
        // The priority is computed as in RFC 6544 section 4.2: the type preference is lower than that of UDP, and the
        // upper three bits of the local preference have the value 4 for passive host candidates.
        let local_preference = (4 << 13) | 8_191_usize.saturating_sub(index);
        let priority = (TCP_TYPE_PREFERENCE << 24) | (local_preference << 8) | 255;
        let (ip, port, foundation) = (address.ip(), address.port(), addresses.len() + index + 1);
        lines.push(format!("a=candidate:{foundation} 1 tcp {priority} {ip} {port} typ host tcptype passive"));
    }
    let IceCreds { ufrag, pass } = credentials;
    lines.push(format!("a=end-of-candidates\r\na=ice-ufrag:{ufrag}\r\na=ice-pwd:{pass}"));
}
