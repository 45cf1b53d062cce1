//! SDP: reads a browser's offer (RFC 8866, JSEP RFC 9429), picks the video m-line to send on, writes the answer.
//! Pure text; [`Negotiated`] has everything the session needs.
//!
//! str0m's SDP layer is not used. It answers every m-line it knows, keeps codecs the stream does not use and remembers
//! every remote candidate; an ICE-lite agent learns the viewer's address from its checks. Clashing payload types can make
//! it panic. Unknown parts of an offer are ignored.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::base::limits;
use crate::session::media::stream::Extensions;

/// Why an offer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// The text is not a usable offer; the message says why.
    #[error("the offer is malformed: {0}")]
    Malformed(String),
    /// No video m-line that receives H.264 in packetization mode 1.
    #[error("the offer has no video that receives H.264 with packetization-mode=1")]
    NoCommonCodec,
    /// The server failed to set the session up.
    #[error("the session could not be set up: {0}")]
    Internal(String),
}

impl OfferError {
    /// Returns the HTTP status of the response.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::NoCommonCodec => 422,
            Self::Internal(_) => 500,
        }
    }

    /// Returns the `code` of the JSON error.
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

/// One m-line with its attributes (`a=` lines without the prefix).
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
        match (words.next(), words.next(), words.next()) {
            (Some(kind), Some(port), Some(protocol)) => {
                Ok(Self { kind, port, protocol, formats: words.collect(), attributes: Vec::new() })
            }
            _ => malformed("an m-line lacks kind, port or protocol"),
        }
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

    /// Returns the value of `a=name:<payload type> value`.
    fn payload_value(&self, name: &str, payload_type: u8) -> Option<&'a str> {
        self.values(name).find_map(|value| {
            let (number, rest) = value.trim_start().split_once(' ')?;
            (number.parse() == Ok(payload_type)).then_some(rest.trim())
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
    pub(super) remote_ufrag: String,
    pub(super) remote_password: String,
    /// SHA-256 of the viewer's certificate.
    pub(super) fingerprint: [u8; 32],
    /// We are the DTLS client: the offer has `a=setup:passive`.
    pub(super) dtls_client: bool,
    pub(super) video: Video,
    pub(super) extensions: Extensions,
}

/// The chosen codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Video {
    pub(super) payload_type: u8,
    pub(super) rtx: Option<u8>,
    pub(super) profile_level_id: u32,
}

const URI_MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
const URI_PLAYOUT_DELAY: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
const URI_CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";

/// Baseline at level 1: the default of `profile-level-id` (RFC 6184 section 8.1).
const PROFILE_LEVEL_ID_DEFAULT: u32 = 0x42_000a;

impl<'a> Offer<'a> {
    /// Parses an offer. Bounded by [`limits::OFFER_BYTES_MAX`] and [`limits::OFFER_MEDIA_MAX`].
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
        // Transport attributes are checked first: an offer without them is malformed, whatever codecs it has.
        let any = served.as_ref().map(|(_, section, _)| *section).or(self.media.first());
        let any = any.ok_or(OfferError::NoCommonCodec)?;
        let (remote_ufrag, remote_password) = self.ice_credentials(any)?;
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
            remote_ufrag,
            remote_password,
            fingerprint,
            dtls_client,
            video,
            extensions: extensions(section),
        })
    }

    /// Returns a transport attribute of the m-line, of the session, or of the first m-line of the BUNDLE group, which
    /// may be the only one that has it (RFC 9143 section 7.1.3).
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

    fn ice_credentials(&self, section: &Section<'a>) -> Result<(String, String), OfferError> {
        let is_ice = |text: &&str, bytes: std::ops::RangeInclusive<usize>| {
            bytes.contains(&text.len())
                && text.bytes().all(|byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
                })
        };
        let ufrag = self.transport(section, "ice-ufrag").filter(|text| is_ice(text, 4..=256));
        let password = self.transport(section, "ice-pwd").filter(|text| is_ice(text, 22..=256));
        match (ufrag, password) {
            (Some(ufrag), Some(password)) => Ok((ufrag.to_owned(), password.to_owned())),
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
        let mut sdp = String::with_capacity(2_048);
        let _ = write!(sdp, "v=0\r\no=- {} 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n", local.session_id);
        if self.bundle().is_some_and(|mids| mids.split_ascii_whitespace().any(|mid| mid == negotiated.mid)) {
            let _ = write!(sdp, "a=group:BUNDLE {}\r\n", negotiated.mid);
        }
        let _ = write!(sdp, "a=msid-semantic: WMS {STREAM_ID}\r\na=ice-lite\r\n");
        for (index, section) in self.media.iter().enumerate() {
            if index == negotiated.index {
                write_served(&mut sdp, section, negotiated, local);
            } else {
                write_rejected(&mut sdp, section);
            }
        }
        sdp
    }
}

/// Parses `sha-256 AB:CD:...`.
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

/// Returns the best H.264 payload type of an m-line: packetization mode 1, then the highest profile, then the order of
/// the offer. No profile is refused: every decoder plays its own profile, and browsers play High under any of them.
fn choose_video(section: &Section<'_>) -> Option<Video> {
    let mut best: Option<(u8, Video)> = None;
    for payload_type in section.formats.iter().filter_map(|text| text.parse().ok()).filter(is_dynamic) {
        let is_h264 = section
            .payload_value("rtpmap", payload_type)
            .is_some_and(|map| map.to_ascii_uppercase().starts_with("H264/90000"));
        let parameters = section.payload_value("fmtp", payload_type).unwrap_or_default();
        if !is_h264 || parameter(parameters, "packetization-mode") != Some("1") {
            continue;
        }
        let Ok(profile_level_id) = parameter(parameters, "profile-level-id")
            .map_or(Ok(PROFILE_LEVEL_ID_DEFAULT), |text| u32::from_str_radix(text, 16))
        else {
            continue;
        };
        let rank = profile_rank(profile_level_id);
        if profile_level_id <= 0xff_ffff && best.as_ref().is_none_or(|(best_rank, _)| rank > *best_rank) {
            let rtx = find_rtx(section, payload_type);
            best = Some((rank, Video { payload_type, rtx, profile_level_id }));
        }
    }
    best.map(|(_, video)| video)
}

fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters.split(';').find_map(|one| {
        let (key, value) = one.trim().split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// Returns true for payload types that cannot be confused with RTCP on the same port (RFC 5761 section 4).
fn is_dynamic(payload_type: &u8) -> bool {
    matches!(payload_type, 35..=63 | 96..=127)
}

/// Ranks High over Main, Constrained Baseline, Baseline and anything else.
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
    section.formats.iter().filter_map(|text| text.parse().ok()).filter(is_dynamic).find(|candidate| {
        let is_rtx = section
            .payload_value("rtpmap", *candidate)
            .is_some_and(|map| map.to_ascii_lowercase().starts_with("rtx/90000"));
        let apt = section.payload_value("fmtp", *candidate).and_then(|text| parameter(text, "apt"));
        *candidate != payload_type && is_rtx && apt.and_then(|text| text.parse().ok()) == Some(payload_type)
    })
}

fn extensions(section: &Section<'_>) -> Extensions {
    let mut found = Extensions::default();
    let mut used = [false; 15];
    for value in section.values("extmap") {
        let mut words = value.split_ascii_whitespace();
        let (Some(id), Some(uri)) = (words.next(), words.next()) else { continue };
        let id = id.split('/').next().and_then(|id| id.parse::<u8>().ok());
        let Some((id, used)) =
            id.filter(|id| *id > 0).and_then(|id| Some((id, used.get_mut(usize::from(id))?)))
        else {
            continue;
        };
        let slot = match uri {
            URI_MID => &mut found.mid,
            URI_PLAYOUT_DELAY => &mut found.playout_delay,
            URI_CAPTURE_TIME => &mut found.capture_time,
            _ => continue,
        };
        if slot.is_none() && !std::mem::replace(used, true) {
            *slot = Some(id);
        }
    }
    found
}

// ---- the answer ------------------------------------------------------------------------------------

/// Id of the media stream in the page.
const STREAM_ID: &str = "pet-camera";
/// Id of the track in the page.
const TRACK_ID: &str = "video";

/// Our values for the answer.
#[derive(Debug)]
pub(super) struct LocalDescription<'a> {
    pub(super) session_id: u64,
    pub(super) ufrag: &'a str,
    pub(super) password: &'a str,
    pub(super) fingerprint: &'a [u8],
    pub(super) candidates: &'a [SocketAddr],
    pub(super) cname: &'a str,
    pub(super) ssrc: u32,
    pub(super) rtx_ssrc: Option<u32>,
}

fn write_rejected(sdp: &mut String, section: &Section<'_>) {
    let Section { kind, protocol, .. } = section;
    let format = section.formats.first().unwrap_or(&"0");
    let _ = write!(sdp, "m={kind} 0 {protocol} {format}\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\n");
    if let Some(mid) = section.value("mid") {
        let _ = write!(sdp, "a=mid:{mid}\r\n");
    }
}

fn write_served(
    sdp: &mut String,
    section: &Section<'_>,
    negotiated: &Negotiated,
    local: &LocalDescription<'_>,
) {
    let Video { payload_type, rtx, .. } = negotiated.video;
    let _ = write!(sdp, "m=video 9 {} {payload_type}", section.protocol);
    if let Some(rtx) = rtx {
        let _ = write!(sdp, " {rtx}");
    }
    sdp.push_str("\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n");
    write_transport(sdp, negotiated, local);
    let _ = write!(sdp, "a=mid:{}\r\n", negotiated.mid);
    let Extensions { mid, playout_delay, capture_time } = negotiated.extensions;
    for (id, uri) in [(mid, URI_MID), (playout_delay, URI_PLAYOUT_DELAY), (capture_time, URI_CAPTURE_TIME)] {
        if let Some(id) = id {
            let _ = write!(sdp, "a=extmap:{id} {uri}\r\n");
        }
    }
    let _ = write!(sdp, "a=sendonly\r\na=msid:{STREAM_ID} {TRACK_ID}\r\na=rtcp-mux\r\n");
    // Reduced-size RTCP (RFC 5506), and round trips for receivers (RFC 3611 section 4.4). Without the latter a browser
    // cannot relate our clock to its own and reports no capture time.
    for line in ["rtcp-rsize", "rtcp-xr:rcvr-rtt=all"].into_iter().filter(|line| section.has(line)) {
        let _ = write!(sdp, "a={line}\r\n");
    }
    write_codec(sdp, section, &negotiated.video);
    write_sources(sdp, local);
}

fn write_transport(sdp: &mut String, negotiated: &Negotiated, local: &LocalDescription<'_>) {
    for (index, address) in local.candidates.iter().enumerate() {
        // RFC 8445 section 5.1.2: type preference of a host 126, earlier candidates first.
        let local_preference = 65_535_usize.saturating_sub(index);
        let priority = (126 << 24) | (local_preference << 8) | 255;
        let (ip, port) = (address.ip(), address.port());
        let _ = write!(sdp, "a=candidate:{} 1 udp {priority} {ip} {port} typ host\r\n", index + 1);
    }
    sdp.push_str("a=end-of-candidates\r\n");
    let _ =
        write!(sdp, "a=ice-ufrag:{}\r\na=ice-pwd:{}\r\na=fingerprint:sha-256 ", local.ufrag, local.password);
    for (index, byte) in local.fingerprint.iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        let _ = write!(sdp, "{separator}{byte:02X}");
    }
    let setup = if negotiated.dtls_client { "active" } else { "passive" };
    let _ = write!(sdp, "\r\na=setup:{setup}\r\n");
}

fn write_codec(sdp: &mut String, section: &Section<'_>, video: &Video) {
    let Video { payload_type, rtx, profile_level_id } = video;
    let _ = write!(sdp, "a=rtpmap:{payload_type} H264/90000\r\n");
    for feedback in ["ccm fir", "nack", "nack pli"] {
        let offered = section.values("rtcp-fb").any(|value| {
            let (number, rest) = value.split_once(' ').unwrap_or_default();
            (number == "*" || number.parse() == Ok(*payload_type)) && rest.trim() == feedback
        });
        if offered {
            let _ = write!(sdp, "a=rtcp-fb:{payload_type} {feedback}\r\n");
        }
    }
    let _ = write!(
        sdp,
        "a=fmtp:{payload_type} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile_level_id:06x}\r\n"
    );
    if let Some(rtx) = rtx {
        let _ = write!(sdp, "a=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={payload_type}\r\n");
    }
}

fn write_sources(sdp: &mut String, local: &LocalDescription<'_>) {
    let LocalDescription { ssrc, cname, .. } = local;
    if let Some(rtx) = local.rtx_ssrc {
        let _ = write!(sdp, "a=ssrc-group:FID {ssrc} {rtx}\r\n");
    }
    for ssrc in [Some(*ssrc), local.rtx_ssrc].into_iter().flatten() {
        let _ = write!(sdp, "a=ssrc:{ssrc} cname:{cname}\r\na=ssrc:{ssrc} msid:{STREAM_ID} {TRACK_ID}\r\n");
    }
}
