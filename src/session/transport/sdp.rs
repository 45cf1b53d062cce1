//! SDP: reads a browser's offer (RFC 8866, JSEP RFC 9429), picks the video m-line to send on, and writes the answer.
//! The module works only on text; [`Negotiated`] holds everything that the session needs.
//!
//! str0m's SDP layer is not used, for these reasons. It answers every m-line that it knows, and keeps codecs that the
//! stream does not use. It remembers every remote candidate, although an ICE-lite agent learns the viewer's address
//! from the viewer's connectivity checks. Clashing payload types can make it panic. This module ignores unknown parts
//! of an offer.

use std::cmp::Reverse;
use std::net::SocketAddr;

use str0m::IceCreds;

use crate::base::limits;
use crate::session::media::{Extensions, StreamParameters};

/// Why an offer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// The text is not a usable offer; the value says why.
    #[error("the offer is malformed: {0}")]
    Malformed(String),
    /// The offer has no video m-line that receives H.264 in packetization mode 1.
    #[error("the offer has no video that receives H.264 with packetization-mode=1")]
    NoCommonCodec,
    /// The server failed to set the session up.
    #[error("the session could not be set up: {0}")]
    Internal(String),
}

impl OfferError {
    /// Returns the HTTP status code for this error.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::NoCommonCodec => 422,
            Self::Internal(_) => 500,
        }
    }

    /// Returns the value of `code` in the JSON error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "invalid_offer",
            Self::NoCommonCodec => "no_common_codec",
            Self::Internal(_) => "internal",
        }
    }
}

fn malformed<T>(what: impl Into<String>) -> Result<T, OfferError> {
    Err(OfferError::Malformed(what.into()))
}

/// One m-line with its attributes (the `a=` lines without that prefix). The session part of an offer has only
/// attributes.
#[derive(Debug, Default)]
struct Section<'a> {
    kind: &'a str,
    port: &'a str,
    protocol: &'a str,
    formats: Vec<&'a str>,
    attributes: Vec<&'a str>,
}

impl<'a> Section<'a> {
    fn parse_media(line: &'a str) -> Result<Self, OfferError> {
        let mut words = line.split_ascii_whitespace();
        let (Some(kind), Some(port), Some(protocol)) = (words.next(), words.next(), words.next()) else {
            return malformed("an m-line lacks kind, port or protocol");
        };
        Ok(Self { kind, port, protocol, formats: words.collect(), attributes: Vec::new() })
    }

    fn has(&self, attribute: &str) -> bool {
        self.attributes.contains(&attribute)
    }

    /// Returns the values of all `a=name:value` lines.
    fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.attributes.iter().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(':'))
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.values(name).next().map(str::trim)
    }

    /// Returns the value in the line `a=name:<payload type> value`.
    fn payload_value(&self, name: &str, payload_type: u8) -> Option<&'a str> {
        self.values(name).find_map(|value| {
            let (number, rest) = value.trim_start().split_once(' ')?;
            (number.parse() == Ok(payload_type)).then_some(rest.trim())
        })
    }

    /// Returns the payload types that cannot be confused with RTCP on the same port (RFC 5761 section 4).
    fn payload_types(&self) -> impl Iterator<Item = u8> {
        let numbers = self.formats.iter().filter_map(|text| text.parse().ok());
        numbers.filter(|number| matches!(number, 35..=63 | 96..=127))
    }

    /// Returns true if the `rtpmap` of a payload type begins with `codec`. Upper and lower case are equal.
    fn is_codec(&self, payload_type: u8, codec: &str) -> bool {
        let map = self.payload_value("rtpmap", payload_type).unwrap_or_default();
        map.get(..codec.len()).is_some_and(|name| name.eq_ignore_ascii_case(codec))
    }

    /// Returns the value of the parameter `name` in the `fmtp` of a payload type.
    fn parameter(&self, payload_type: u8, name: &str) -> Option<&'a str> {
        self.payload_value("fmtp", payload_type)?.split(';').find_map(|one| {
            let (key, value) = one.trim().split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn is_receiving(&self) -> bool {
        let disabled = self.port == "0" && !self.has("bundle-only");
        !disabled && !self.has("sendonly") && !self.has("inactive")
    }
}

/// An offer, split into its session part and its m-lines.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    session: Section<'a>,
    media: Vec<Section<'a>>,
}

/// Result of the negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// Index of the m-line we send on.
    index: usize,
    pub(super) mid: String,
    pub(super) remote: IceCreds,
    /// SHA-256 fingerprint of the viewer's certificate.
    pub(super) fingerprint: [u8; 32],
    /// True if we are the DTLS client, because the offer has `a=setup:passive`.
    pub(super) dtls_client: bool,
    pub(super) video: Video,
    pub(super) extensions: Extensions,
}

/// The chosen H.264 payload type and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Video {
    pub(super) payload_type: u8,
    pub(super) rtx: Option<u8>,
    pub(super) profile_level_id: u32,
}

const URI_MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
const URI_PLAYOUT_DELAY: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
const URI_CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";

/// Value of `profile-level-id` if the offer has none: Baseline at level 1 (RFC 6184 section 8.1).
const PROFILE_LEVEL_ID_DEFAULT: u32 = 0x42_000a;

impl<'a> Offer<'a> {
    /// Parses an offer. Refuses more than [`limits::OFFER_BYTES_MAX`] bytes or [`limits::OFFER_MEDIA_MAX`] m-lines.
    pub(super) fn parse(text: &'a str) -> Result<Self, OfferError> {
        if text.len() > limits::OFFER_BYTES_MAX {
            return malformed(format!("it is longer than {} bytes", limits::OFFER_BYTES_MAX));
        }
        if !text.starts_with("v=0") {
            return malformed("it is not SDP: the first line is not v=0");
        }
        if text.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n' | '\t')) {
            return malformed("it contains control characters");
        }
        let mut offer = Self { session: Section::default(), media: Vec::new() };
        for line in text.split(['\r', '\n']).filter(|line| !line.is_empty()) {
            if let Some(media) = line.strip_prefix("m=") {
                if offer.media.len() == limits::OFFER_MEDIA_MAX {
                    return malformed(format!("it has more than {} m-lines", limits::OFFER_MEDIA_MAX));
                }
                offer.media.push(Section::parse_media(media)?);
            } else if let Some(attribute) = line.strip_prefix("a=") {
                offer.media.last_mut().unwrap_or(&mut offer.session).attributes.push(attribute.trim_end());
            }
        }
        if offer.media.is_empty() { malformed("it has no m-line") } else { Ok(offer) }
    }

    /// Picks the first m-line we can send on, and its best payload type.
    pub(super) fn negotiate(&self) -> Result<Negotiated, OfferError> {
        let served = self.media.iter().enumerate().find_map(|(index, section)| {
            let receives = section.kind == "video"
                && matches!(section.protocol, "UDP/TLS/RTP/SAVPF" | "RTP/SAVPF")
                && section.is_receiving();
            receives.then(|| choose_video(section)).flatten().map(|video| (index, section, video))
        });
        // The transport attributes are checked before the codec: an offer without them is malformed, regardless of its
        // codecs.
        let any = served.as_ref().map(|(_, section, _)| *section).or(self.media.first());
        let any = any.ok_or(OfferError::NoCommonCodec)?;
        let remote = self.ice_credentials(any)?;
        let fingerprint = self.fingerprint(any)?;
        if self.session.has("ice-lite") {
            return malformed("it is ICE-lite, as this server is");
        }
        let dtls_client = match self.transport(any, "setup") {
            None | Some("actpass" | "active") => false,
            Some("passive") => true,
            Some(_) => return malformed("a=setup is none of actpass, active, passive"),
        };
        let (index, section, video) = served.ok_or(OfferError::NoCommonCodec)?;
        let mid = section.value("mid").unwrap_or_default();
        if mid.is_empty() || mid.len() > 16 || !mid.bytes().all(|byte| byte.is_ascii_graphic()) {
            return malformed("the video's a=mid is missing or not 1 to 16 printable characters");
        }
        Ok(Negotiated {
            index,
            mid: mid.to_owned(),
            remote,
            fingerprint,
            dtls_client,
            video,
            extensions: extensions(section),
        })
    }

    /// Returns a transport attribute of the m-line, else of the session part, else of the first m-line of the BUNDLE
    /// group. That m-line may be the only part of the offer that has the attribute (RFC 9143 section 7.1.3).
    fn transport(&self, section: &Section<'a>, name: &str) -> Option<&'a str> {
        section.value(name).or_else(|| self.session.value(name)).or_else(|| self.tagged()?.value(name))
    }

    fn bundle(&self) -> Option<&'a str> {
        self.session.values("group").find_map(|group| group.strip_prefix("BUNDLE"))
    }

    fn tagged(&self) -> Option<&Section<'a>> {
        let mid = self.bundle()?.split_ascii_whitespace().next()?;
        self.media.iter().find(|section| section.value("mid") == Some(mid))
    }

    fn ice_credentials(&self, section: &Section<'a>) -> Result<IceCreds, OfferError> {
        let is_ice = |text: &&str, bytes: std::ops::RangeInclusive<usize>| {
            bytes.contains(&text.len())
                && text.bytes().all(|byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
                })
        };
        let ufrag = self.transport(section, "ice-ufrag").filter(|text| is_ice(text, 4..=256));
        let password = self.transport(section, "ice-pwd").filter(|text| is_ice(text, 22..=256));
        match (ufrag, password) {
            (Some(ufrag), Some(pass)) => Ok(IceCreds { ufrag: ufrag.to_owned(), pass: pass.to_owned() }),
            _ => {
                malformed("a=ice-ufrag (4 to 256 characters) or a=ice-pwd (22 to 256) is missing or invalid")
            }
        }
    }

    fn fingerprint(&self, section: &Section<'a>) -> Result<[u8; 32], OfferError> {
        let tagged = self.tagged();
        let sections = [Some(section), Some(&self.session), tagged];
        let mut found = sections.into_iter().flatten().flat_map(|section| section.values("fingerprint"));
        match found.find_map(parse_sha256) {
            Some(bytes) => Ok(bytes),
            None => malformed("no a=fingerprint with sha-256"),
        }
    }

    /// Writes the answer. Every m-line except the served one is rejected with port 0.
    pub(super) fn answer(&self, negotiated: &Negotiated, local: &LocalDescription<'_>) -> String {
        let mut lines = vec![format!("v=0\r\no=- {} 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0", local.session_id)];
        let mid = &negotiated.mid;
        if self.bundle().is_some_and(|mids| mids.split_ascii_whitespace().any(|bundled| bundled == mid)) {
            lines.push(format!("a=group:BUNDLE {mid}"));
        }
        lines.push(format!("a=msid-semantic: WMS {STREAM_ID}\r\na=ice-lite"));
        for (index, section) in self.media.iter().enumerate() {
            if index == negotiated.index {
                push_served(&mut lines, section, negotiated, local);
            } else {
                push_rejected(&mut lines, section);
            }
        }
        lines.join("\r\n") + "\r\n"
    }
}

/// Parses the value of a fingerprint attribute, `sha-256 AB:CD:...`.
fn parse_sha256(value: &str) -> Option<[u8; 32]> {
    let (hash, digits) = value.trim().split_once(' ')?;
    let mut bytes = [0; 32];
    let mut octets = digits.trim().split(':');
    for byte in &mut bytes {
        let octet = octets.next().filter(|octet| octet.len() == 2 && !octet.starts_with('+'))?;
        *byte = u8::from_str_radix(octet, 16).ok()?;
    }
    (hash.eq_ignore_ascii_case("sha-256") && octets.next().is_none()).then_some(bytes)
}

/// Returns the best H.264 payload type of an m-line, or `None` if there is none with packetization mode 1. The highest
/// profile is best; among equal profiles the order of the offer decides. No profile is refused: every decoder plays the
/// profile that it offers, and browsers play High even if another profile was negotiated.
fn choose_video(section: &Section<'_>) -> Option<Video> {
    let usable = section.payload_types().filter_map(|payload_type| {
        let parameter = |name| section.parameter(payload_type, name);
        if !section.is_codec(payload_type, "H264/90000") || parameter("packetization-mode") != Some("1") {
            return None;
        }
        let profile_level_id = match parameter("profile-level-id") {
            Some(text) => u32::from_str_radix(text, 16).ok().filter(|id| *id <= 0xff_ffff)?,
            None => PROFILE_LEVEL_ID_DEFAULT,
        };
        Some(Video { payload_type, rtx: find_rtx(section, payload_type), profile_level_id })
    });
    // If several payload types have the same rank, the first one in the offer is chosen.
    usable.min_by_key(|video| Reverse(profile_rank(video.profile_level_id)))
}

/// Returns the rank of a profile. From best to worst: High, Main, Constrained Baseline, Baseline, any other.
fn profile_rank(profile_level_id: u32) -> u8 {
    let [_, profile_idc, constraints, _] = profile_level_id.to_be_bytes();
    match profile_idc {
        0x64 => 4,
        0x4d => 3,
        0x42 if constraints & 0x40 != 0 => 2,
        0x42 => 1,
        _ => 0,
    }
}

fn find_rtx(section: &Section<'_>, payload_type: u8) -> Option<u8> {
    section.payload_types().find(|&candidate| {
        let apt = section.parameter(candidate, "apt").and_then(|text| text.parse().ok());
        candidate != payload_type && section.is_codec(candidate, "rtx/90000") && apt == Some(payload_type)
    })
}

fn extensions(section: &Section<'_>) -> Extensions {
    let mut found = Extensions::default();
    for value in section.values("extmap") {
        let mut words = value.split_ascii_whitespace();
        let (Some(id), Some(uri)) = (words.next(), words.next()) else { continue };
        let id = id.split('/').next().and_then(|id| id.parse().ok()).filter(|id| (1..=14).contains(id));
        let is_used = [found.mid, found.playout_delay, found.capture_time].contains(&id);
        let slot = match uri {
            URI_MID => &mut found.mid,
            URI_PLAYOUT_DELAY => &mut found.playout_delay,
            URI_CAPTURE_TIME => &mut found.capture_time,
            _ => continue,
        };
        if slot.is_none() && !is_used {
            *slot = id;
        }
    }
    found
}

// ---- the answer ------------------------------------------------------------------------------------

/// Id of the media stream in the page.
const STREAM_ID: &str = "pet-camera";
/// Id of the track in the page.
const TRACK_ID: &str = "video";

/// Our own values for the answer.
#[derive(Debug)]
pub(super) struct LocalDescription<'a> {
    pub(super) session_id: u64,
    pub(super) credentials: &'a IceCreds,
    pub(super) fingerprint: &'a [u8],
    pub(super) candidates: &'a [SocketAddr],
    pub(super) stream: &'a StreamParameters,
}

fn push_rejected(lines: &mut Vec<String>, section: &Section<'_>) {
    let Section { kind, protocol, .. } = section;
    let format = section.formats.first().unwrap_or(&"0");
    lines.push(format!("m={kind} 0 {protocol} {format}\r\nc=IN IP4 0.0.0.0\r\na=inactive"));
    lines.extend(section.value("mid").map(|mid| format!("a=mid:{mid}")));
}

fn push_served(
    lines: &mut Vec<String>,
    section: &Section<'_>,
    negotiated: &Negotiated,
    local: &LocalDescription<'_>,
) {
    let StreamParameters { ssrc, payload_type, rtx, extensions, mid, cname, .. } = local.stream;
    let rtx_format = rtx.map_or_else(String::new, |(_, rtx)| format!(" {rtx}"));
    lines.push(format!("m=video 9 {} {payload_type}{rtx_format}", section.protocol));
    lines.push("c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0".to_owned());
    push_transport(lines, negotiated.dtls_client, local);
    lines.push(format!("a=mid:{mid}"));
    let Extensions { mid, playout_delay, capture_time } = extensions;
    for (id, uri) in [(mid, URI_MID), (playout_delay, URI_PLAYOUT_DELAY), (capture_time, URI_CAPTURE_TIME)] {
        lines.extend(id.map(|id| format!("a=extmap:{id} {uri}")));
    }
    lines.push(format!("a=sendonly\r\na=msid:{STREAM_ID} {TRACK_ID}\r\na=rtcp-mux"));
    // We accept reduced-size RTCP (RFC 5506) and round trips for receivers (RFC 3611 section 4.4) if they are offered.
    // Without these round trips a browser cannot relate our clock to its own and reports no capture time.
    let offered = ["rtcp-rsize", "rtcp-xr:rcvr-rtt=all"].into_iter().filter(|line| section.has(line));
    lines.extend(offered.map(|line| format!("a={line}")));
    lines.push(format!("a=rtpmap:{payload_type} H264/90000"));
    for feedback in ["ccm fir", "nack", "nack pli"] {
        let is_offered = section.values("rtcp-fb").any(|value| {
            let (number, rest) = value.split_once(' ').unwrap_or_default();
            (number == "*" || number.parse() == Ok(*payload_type)) && rest.trim() == feedback
        });
        lines.extend(is_offered.then(|| format!("a=rtcp-fb:{payload_type} {feedback}")));
    }
    let profile = format!("profile-level-id={:06x}", negotiated.video.profile_level_id);
    lines.push(format!("a=fmtp:{payload_type} level-asymmetry-allowed=1;packetization-mode=1;{profile}"));
    let sources = |ssrc| format!("a=ssrc:{ssrc} cname:{cname}\r\na=ssrc:{ssrc} msid:{STREAM_ID} {TRACK_ID}");
    if let Some((rtx_ssrc, rtx)) = rtx {
        lines.push(format!("a=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={payload_type}"));
        lines.push(format!("a=ssrc-group:FID {ssrc} {rtx_ssrc}"));
    }
    lines.push(sources(ssrc));
    lines.extend(rtx.as_ref().map(|(rtx_ssrc, _)| sources(rtx_ssrc)));
}

fn push_transport(lines: &mut Vec<String>, dtls_client: bool, local: &LocalDescription<'_>) {
    for (index, address) in local.candidates.iter().enumerate() {
        // The priority is computed as in RFC 8445 section 5.1.2. A host candidate has the type preference 126, and
        // earlier candidates have a higher local preference.
        let local_preference = 65_535_usize.saturating_sub(index);
        let priority = (126 << 24) | (local_preference << 8) | 255;
        let (ip, port) = (address.ip(), address.port());
        lines.push(format!("a=candidate:{} 1 udp {priority} {ip} {port} typ host", index + 1));
    }
    let IceCreds { ufrag, pass } = local.credentials;
    lines.push(format!("a=end-of-candidates\r\na=ice-ufrag:{ufrag}\r\na=ice-pwd:{pass}"));
    let octets: Vec<String> = local.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect();
    let setup = if dtls_client { "active" } else { "passive" };
    lines.push(format!("a=fingerprint:sha-256 {}\r\na=setup:{setup}", octets.join(":")));
}
