//! SDP: reads a viewer's offer (RFC 8866, JSEP RFC 9429) and picks the video m-line to send on. `answer.rs` writes the
//! answer. The module works only on text; [`Negotiated`] holds everything that the session needs.
//!
//! The offer is read in one pass, and its work is linear in its bytes. The counts of m-lines, formats and attributes
//! are bounded. Unknown parts of an offer are ignored.
//!
//! str0m's SDP layer is not used, for these reasons. It answers every m-line that it knows, and keeps codecs that the
//! stream does not use. It remembers every remote candidate, although an ICE-lite agent learns the viewer's address
//! from the viewer's connectivity checks. Clashing payload types can make it panic.

use std::cmp::Reverse;

use str0m::IceCreds;

use crate::base::limits;
use crate::session::transport::offer_error::{OfferError, malformed};
use crate::session::transport::section::{Codec, Extmaps, Payload, ProfileLevel, Section};

/// Why an m-line is not served. A later variant came closer to being served than an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    NoVideo,
    Protocol,
    Disabled,
    NotReceiving,
    NoH264,
    ReservedPayloadType,
    PacketizationMode,
    ProfileLevelId,
}

impl Refusal {
    fn error(self) -> OfferError {
        use OfferError::{NoCommonCodec, Unsupported};
        match self {
            Self::NoVideo => Unsupported("it has no video m-line"),
            Self::Protocol => Unsupported("the transport protocol of its video m-line is unknown"),
            Self::Disabled => Unsupported("its video m-line is disabled (port 0)"),
            Self::NotReceiving => {
                Unsupported("its video m-line does not receive: it is sendonly or inactive")
            }
            Self::NoH264 => NoCommonCodec("none of its payload types is H264/90000"),
            Self::ReservedPayloadType => NoCommonCodec(
                "its H264 has a payload type from 64 to 95 or above 127, which cannot share a port with RTCP",
            ),
            Self::PacketizationMode => NoCommonCodec(
                "its H264 has only packetization-mode=0 or 2, but pictures are sent in fragments (packetization-mode=1)",
            ),
            Self::ProfileLevelId => {
                NoCommonCodec("the profile-level-id of its H264 is not a hexadecimal number of 24 bits")
            }
        }
    }
}

/// An offer, split into its session part and its m-lines.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    pub(super) session: Section<'a>,
    pub(super) media: Vec<Section<'a>>,
}

/// Result of the negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// Index of the m-line we send on.
    pub(super) index: usize,
    /// The m-line's `mid`; empty if it has none.
    pub(super) mid: String,
    /// True if the m-line belongs to a BUNDLE group.
    pub(super) is_bundled: bool,
    pub(super) remote: IceCreds,
    /// SHA-256 fingerprint of the viewer's certificate.
    pub(super) fingerprint: [u8; 32],
    /// True if we are the DTLS client, because the offer has `a=setup:passive`.
    pub(super) dtls_client: bool,
    pub(super) video: Video,
    pub(super) extmaps: Extmaps,
}

/// The chosen H.264 payload type. The parameters are those that the offer states, because the answer must match them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Video {
    pub(super) payload_type: u8,
    pub(super) rtx: Option<u8>,
    /// True if the offer states packetization mode 1. Otherwise it states no mode.
    pub(super) has_mode: bool,
    pub(super) profile_level_id: Option<u32>,
}

impl<'a> Offer<'a> {
    /// Parses an offer. Refuses more than [`limits::OFFER_BYTES_MAX`] bytes, [`limits::OFFER_MEDIA_MAX`] m-lines or
    /// [`limits::OFFER_ATTRIBUTES_MAX`] attributes.
    pub(super) fn parse(text: &'a str) -> Result<Self, OfferError> {
        if text.len() > limits::OFFER_BYTES_MAX {
            return malformed(format!("it is longer than {} bytes", limits::OFFER_BYTES_MAX));
        }
        let text = text.trim_ascii_start();
        if !text.starts_with("v=0") {
            return malformed("it is not SDP: the first line is not v=0");
        }
        let offer = Self::split(text)?;
        if offer.media.is_empty() { malformed("it has no m-line") } else { Ok(offer) }
    }

    /// Splits an offer, or a fragment of one, into its session part and its m-lines. Bounds the counts as
    /// [`Offer::parse`] does.
    pub(super) fn split(text: &'a str) -> Result<Self, OfferError> {
        let is_forbidden = |byte: u8| byte.is_ascii_control() && !matches!(byte, b'\r' | b'\n' | b'\t');
        if text.bytes().any(is_forbidden) {
            return malformed("it contains control characters");
        }
        let mut offer = Self { session: Section::default(), media: Vec::new() };
        let mut attributes = 0;
        for line in lines(text) {
            if let Some(media) = line.strip_prefix("m=") {
                if offer.media.len() == limits::OFFER_MEDIA_MAX {
                    return malformed(format!("it has more than {} m-lines", limits::OFFER_MEDIA_MAX));
                }
                offer.media.push(Section::parse_media(media)?);
            } else if let Some(attribute) = line.strip_prefix("a=") {
                attributes += 1;
                if attributes > limits::OFFER_ATTRIBUTES_MAX {
                    return malformed(format!(
                        "it has more than {} attributes",
                        limits::OFFER_ATTRIBUTES_MAX
                    ));
                }
                offer.media.last_mut().unwrap_or(&mut offer.session).note(attribute);
            }
        }
        Ok(offer)
    }

    /// Picks the first m-line we can send on, and its best payload type.
    pub(super) fn negotiate(&self) -> Result<Negotiated, OfferError> {
        let mut refusal = Refusal::NoVideo;
        let mut served = None;
        for (index, section) in self.media.iter().enumerate() {
            match self.choose(section) {
                Ok(video) => {
                    served = Some((index, section, video));
                    break;
                }
                Err(reason) => refusal = refusal.max(reason),
            }
        }
        let (index, section, video) = served.ok_or_else(|| refusal.error())?;
        if self.session.is_ice_lite || section.is_ice_lite {
            return Err(OfferError::Unsupported(
                "it is ICE-lite, as this server is, so neither side would send connectivity checks",
            ));
        }
        let mid = section.mid.unwrap_or_default();
        let is_valid = (1..=limits::OFFER_MID_BYTES_MAX).contains(&mid.len())
            && mid.bytes().all(|byte| byte.is_ascii_graphic());
        if section.mid.is_some() && !is_valid {
            return malformed(format!(
                "the video's a=mid does not have 1 to {} printable ASCII characters",
                limits::OFFER_MID_BYTES_MAX
            ));
        }
        let tagged = self.first_of_bundle(section);
        let parts = Parts { section, session: &self.session, first: tagged.flatten() };
        let dtls_client = match parts.find(|part| part.setup) {
            None => false,
            Some(setup) if ["actpass", "active"].iter().any(|role| setup.eq_ignore_ascii_case(role)) => false,
            Some(setup) if setup.eq_ignore_ascii_case("passive") => true,
            Some(_) => return malformed("a=setup is none of actpass, active, passive"),
        };
        Ok(Negotiated {
            index,
            mid: mid.to_owned(),
            is_bundled: tagged.is_some(),
            remote: parts.ice_credentials()?,
            fingerprint: parts.fingerprint()?,
            dtls_client,
            extmaps: section.extmaps.or(self.session.extmaps).for_stream(mid, video.rtx.is_some()),
            video,
        })
    }

    /// Returns the payload type to send on an m-line, or why the m-line is not served.
    fn choose(&self, section: &Section<'a>) -> Result<Video, Refusal> {
        if section.kind != "video" {
            return Err(Refusal::NoVideo);
        }
        if !is_known_profile(section.protocol) {
            return Err(Refusal::Protocol);
        }
        if section.port == "0" && !section.is_bundle_only {
            return Err(Refusal::Disabled);
        }
        // Without a direction anywhere an m-line sends and receives (RFC 8866 section 6.7).
        if section.receives.or(self.session.receives) == Some(false) {
            return Err(Refusal::NotReceiving);
        }
        choose_video(section)
    }

    /// Returns `None` if the m-line is in no BUNDLE group, otherwise the first m-line of its group if there is one.
    /// That m-line may be the only one that has the transport attributes (RFC 9143 section 7.1.3).
    fn first_of_bundle(&self, section: &Section<'a>) -> Option<Option<&Section<'a>>> {
        let mid = section.mid?;
        let mut bundles = self.session.groups.iter().filter_map(|group| group.strip_prefix("BUNDLE "));
        let mut mids = bundles.find_map(|mids| {
            let mut words = mids.split_ascii_whitespace();
            words.clone().any(|bundled| bundled == mid).then(|| words.next()).flatten()
        });
        let first = mids.take()?;
        Some(self.media.iter().find(|section| section.mid == Some(first)))
    }
}

/// Returns the lines of a text, without their ends: CR, LF or both. The last line may lack its end.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    let ends = memchr::memchr2_iter(b'\r', b'\n', text.as_bytes()).chain([text.len()]);
    ends.map(move |end| text.get(std::mem::replace(&mut start, end + 1)..end).unwrap_or_default())
}

/// Returns true for the profiles that RFC 9429 section 5.1.2 lists. An answerer accepts all of them, and uses DTLS-SRTP
/// with feedback whatever the profile says. UDP or TCP is not part of the choice: candidates decide.
fn is_known_profile(protocol: &str) -> bool {
    let rtp = ["UDP/TLS/", "TCP/DTLS/"].iter().find_map(|transport| protocol.strip_prefix(transport));
    match rtp {
        Some(rtp) => matches!(rtp, "RTP/SAVPF" | "RTP/SAVP"),
        None => matches!(protocol, "RTP/SAVPF" | "RTP/SAVP" | "RTP/AVPF" | "RTP/AVP"),
    }
}

/// The parts of an offer that may hold the transport attributes of an m-line, nearest first.
pub(super) struct Parts<'s, 'a> {
    pub(super) section: &'s Section<'a>,
    pub(super) session: &'s Section<'a>,
    /// First m-line of the BUNDLE group.
    pub(super) first: Option<&'s Section<'a>>,
}

impl<'a> Parts<'_, 'a> {
    pub(super) fn find<T>(&self, get: impl Fn(&Section<'a>) -> Option<T>) -> Option<T> {
        get(self.section).or_else(|| get(self.session)).or_else(|| get(self.first?))
    }

    pub(super) fn ice_credentials(&self) -> Result<IceCreds, OfferError> {
        ice_credentials(self.find(|part| part.ice_ufrag), self.find(|part| part.ice_password))
    }

    pub(super) fn fingerprint(&self) -> Result<[u8; 32], OfferError> {
        if let Some(sha256) = self.find(|part| part.sha256) {
            return Ok(sha256);
        }
        if self.find(|part| part.has_damaged_sha256.then_some(())).is_some() {
            return malformed("a=fingerprint with sha-256 does not have 32 hexadecimal octets");
        }
        if self.find(|part| part.has_other_fingerprint.then_some(())).is_some() {
            return Err(OfferError::Unsupported(
                "none of its a=fingerprint lines uses sha-256, the hash that the server verifies",
            ));
        }
        if self.find(|part| part.has_crypto.then_some(())).is_some() {
            return Err(OfferError::Unsupported(
                "it has SRTP keys in a=crypto (SDES), but the server needs DTLS and a=fingerprint",
            ));
        }
        malformed("a=fingerprint is missing")
    }
}

/// Checks the values of `a=ice-ufrag` and `a=ice-pwd` (RFC 8839 section 5.4). The characters `-`, `_` and `=` are not
/// allowed there, but some clients use them.
pub(super) fn ice_credentials(ufrag: Option<&str>, password: Option<&str>) -> Result<IceCreds, OfferError> {
    let read = |name: &str, text: Option<&str>, shortest: usize| {
        let Some(text) = text else { return malformed(format!("a={name} is missing")) };
        let is_ice_char = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
        if (shortest..=256).contains(&text.len()) && text.bytes().all(is_ice_char) {
            return Ok(text.to_owned());
        }
        malformed(format!("a={name} does not have {shortest} to 256 letters, digits, + or /"))
    };
    Ok(IceCreds { ufrag: read("ice-ufrag", ufrag, 4)?, pass: read("ice-pwd", password, 22)? })
}

/// Returns the best H.264 payload type of an m-line, or why it has none. A stated packetization mode 1 is better than
/// none: formally, a missing mode is mode 0, but clients that leave it out read fragments all the same. Then the
/// highest profile is best; among equal profiles the order of the offer decides. No profile is refused: every decoder
/// plays the profile that it offers, and browsers play High even if another profile was negotiated.
fn choose_video(section: &Section<'_>) -> Result<Video, Refusal> {
    let mut refusal = Refusal::NoH264;
    let mut usable = Vec::new();
    for (payload_type, payload) in section.listed() {
        match usable_video(section, payload_type, payload) {
            Ok(video) => usable.push(video),
            Err(reason) => refusal = refusal.max(reason),
        }
    }
    // If several payload types have the same rank, the first one in the offer is chosen.
    let best = usable.into_iter().min_by_key(|video| Reverse((video.has_mode, profile_rank(video))));
    best.ok_or(refusal)
}

/// Returns the payload type with its parameters if video can be sent with it.
pub(super) fn usable_video(
    section: &Section<'_>,
    payload_type: u8,
    payload: &Payload,
) -> Result<Video, Refusal> {
    if payload.codec != Some(Codec::H264) {
        return Err(Refusal::NoH264);
    }
    if !is_usable_type(payload_type) {
        return Err(Refusal::ReservedPayloadType);
    }
    if payload.mode.is_some_and(|mode| mode != 1) {
        return Err(Refusal::PacketizationMode);
    }
    let profile_level_id = match payload.profile {
        ProfileLevel::Missing => None,
        ProfileLevel::Id(id) => Some(id),
        ProfileLevel::Invalid => return Err(Refusal::ProfileLevelId),
    };
    let mut others = section.listed();
    let rtx = others.find_map(|(number, other)| {
        let is_rtx = other.codec == Some(Codec::Rtx) && other.apt == Some(payload_type);
        (is_rtx && number != payload_type && is_usable_type(number)).then_some(number)
    });
    Ok(Video { payload_type, rtx, has_mode: payload.mode.is_some(), profile_level_id })
}

/// Returns true for payload types that cannot be confused with RTCP on the same port (RFC 5761 section 4).
fn is_usable_type(number: u8) -> bool {
    matches!(number, 0..=63 | 96..=127)
}

/// Value of `profile-level-id` if the offer has none: Baseline at level 1 (RFC 6184 section 8.1).
const PROFILE_LEVEL_ID_DEFAULT: u32 = 0x42_000a;

/// Returns the rank of a profile. From best to worst: High, Main, Constrained Baseline, Baseline, any other.
fn profile_rank(video: &Video) -> u8 {
    let id = video.profile_level_id.unwrap_or(PROFILE_LEVEL_ID_DEFAULT);
    let [_, profile_idc, constraints, _] = id.to_be_bytes();
    match profile_idc {
        0x64 => 4,
        0x4d => 3,
        0x42 if constraints & 0x40 != 0 => 2,
        0x42 => 1,
        _ => 0,
    }
}
