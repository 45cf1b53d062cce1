//! One part of an SDP offer: an m-line with the attributes that this server uses. Each attribute is read once, when its
//! line is met. The first of several equal attributes counts.

use crate::base::limits;
use crate::session::media::Extensions;
use crate::session::transport::offer_error::{OfferError, malformed};

/// An m-line with its attributes, or the session part of an offer, which has only attributes.
#[derive(Debug, Default)]
pub(super) struct Section<'a> {
    pub(super) kind: &'a str,
    pub(super) port: &'a str,
    pub(super) protocol: &'a str,
    /// First format of the m-line, a payload type unless the protocol is not RTP.
    pub(super) first_format: Option<&'a str>,
    /// Numbers of the m-line's payload types in their order, without repetitions.
    order: Vec<u8>,
    /// Attributes of the payload types, by number. Empty except for video.
    payloads: Vec<Payload>,
    feedback_of_all: Feedback,
    pub(super) mid: Option<&'a str>,
    /// True for `sendrecv` and `recvonly`; `None` if the direction is not stated.
    pub(super) receives: Option<bool>,
    pub(super) is_bundle_only: bool,
    pub(super) is_ice_lite: bool,
    pub(super) ice_ufrag: Option<&'a str>,
    pub(super) ice_password: Option<&'a str>,
    pub(super) setup: Option<&'a str>,
    pub(super) sha256: Option<[u8; 32]>,
    pub(super) has_damaged_sha256: bool,
    pub(super) has_other_fingerprint: bool,
    /// True if the section has SRTP keys in the SDP (SDES, RFC 4568).
    pub(super) has_crypto: bool,
    /// True if the viewer sends and accepts reduced-size RTCP (RFC 5506).
    pub(super) has_reduced_size_rtcp: bool,
    /// True if the viewer asks for round trips as seen by receivers (RFC 3611 section 4.4).
    pub(super) has_receiver_round_trip: bool,
    pub(super) extmaps: Extmaps,
    /// Values of `a=group`.
    pub(super) groups: Vec<&'a str>,
    /// Values of the first [`limits::CANDIDATES_MAX`] `a=candidate` lines.
    pub(super) candidates: Vec<&'a str>,
}

/// What the offer says about one payload type.
#[derive(Clone, Debug, Default)]
pub(super) struct Payload {
    is_listed: bool,
    pub(super) codec: Option<Codec>,
    has_parameters: bool,
    /// `packetization-mode` of H.264; 255 if it is not a number.
    pub(super) mode: Option<u8>,
    pub(super) profile: ProfileLevel,
    /// Payload type that this RTX payload type repairs.
    pub(super) apt: Option<u8>,
    feedback: Feedback,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    H264,
    Rtx,
    Other,
}

/// `profile-level-id` of a payload type.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum ProfileLevel {
    #[default]
    Missing,
    Id(u32),
    Invalid,
}

/// Feedback messages that the viewer sends.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Feedback {
    pub(super) fir: bool,
    pub(super) nack: bool,
    pub(super) pli: bool,
    /// Transport-wide feedback.
    pub(super) transport: bool,
}

impl Feedback {
    fn note(&mut self, value: &str) {
        let mut words = value.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("ccm"), Some("fir"), None) => self.fir = true,
            (Some("nack"), None, None) => self.nack = true,
            (Some("nack"), Some("pli"), None) => self.pli = true,
            (Some("transport-cc"), None, None) => self.transport = true,
            _ => {}
        }
    }
}

impl<'a> Section<'a> {
    /// Parses an m-line. Refuses more than [`limits::OFFER_FORMATS_MAX`] formats.
    pub(super) fn parse_media(line: &'a str) -> Result<Self, OfferError> {
        let mut words = line.split_ascii_whitespace();
        let (Some(kind), Some(port), Some(protocol)) = (words.next(), words.next(), words.next()) else {
            return malformed("an m-line lacks kind, port or protocol");
        };
        let mut section = Self { kind, port, protocol, ..Self::default() };
        for (index, format) in words.enumerate() {
            if index == limits::OFFER_FORMATS_MAX {
                return malformed(format!("an m-line has more than {} formats", limits::OFFER_FORMATS_MAX));
            }
            section.first_format.get_or_insert(format);
            let Some(number) = format.parse().ok().filter(|_| section.is_video()) else { continue };
            let payload = section.payload(number);
            if payload.is_some_and(|payload| !std::mem::replace(&mut payload.is_listed, true)) {
                section.order.push(number);
            }
        }
        Ok(section)
    }

    fn is_video(&self) -> bool {
        self.kind == "video"
    }

    /// Returns the payload types of the m-line in their order.
    pub(super) fn listed(&self) -> impl Iterator<Item = (u8, &Payload)> {
        self.order.iter().filter_map(|number| Some((*number, self.payloads.get(usize::from(*number))?)))
    }

    /// Returns the feedback that the viewer sends about a payload type.
    pub(super) fn feedback(&self, payload_type: u8) -> Feedback {
        let own = self.payloads.get(usize::from(payload_type)).map(|payload| payload.feedback);
        let (own, all) = (own.unwrap_or_default(), self.feedback_of_all);
        Feedback {
            fir: own.fir || all.fir,
            nack: own.nack || all.nack,
            pli: own.pli || all.pli,
            transport: own.transport || all.transport,
        }
    }

    /// Returns the attributes of a payload type, and makes the list long enough for it. Never returns `None`.
    fn payload(&mut self, number: u8) -> Option<&mut Payload> {
        let at = usize::from(number);
        if self.payloads.len() <= at {
            self.payloads.resize_with(at + 1, Payload::default);
        }
        self.payloads.get_mut(at)
    }

    /// Reads an attribute line without its `a=`.
    pub(super) fn note(&mut self, attribute: &'a str) {
        let (name, value) = attribute.split_once(':').unwrap_or((attribute, ""));
        let value = value.trim_ascii();
        match name.trim_ascii_end() {
            "sendrecv" | "recvonly" => self.receives = self.receives.or(Some(true)),
            "sendonly" | "inactive" => self.receives = self.receives.or(Some(false)),
            "mid" => self.mid = self.mid.or(Some(value)),
            "group" => self.groups.push(value),
            "candidate" if self.candidates.len() < limits::CANDIDATES_MAX => self.candidates.push(value),
            "bundle-only" => self.is_bundle_only = true,
            "ice-lite" => self.is_ice_lite = true,
            "ice-ufrag" => self.ice_ufrag = self.ice_ufrag.or(Some(value)),
            "ice-pwd" => self.ice_password = self.ice_password.or(Some(value)),
            "setup" => self.setup = self.setup.or(Some(value)),
            "fingerprint" => self.note_fingerprint(value),
            "crypto" => self.has_crypto = true,
            "rtcp-rsize" => self.has_reduced_size_rtcp = true,
            "rtcp-xr" => self.has_receiver_round_trip |= value == "rcvr-rtt=all",
            "extmap" => self.extmaps.note(value),
            "rtpmap" | "fmtp" | "rtcp-fb" if self.is_video() => self.note_payload(name, value),
            _ => {}
        }
    }

    /// Reads the value `sha-256 AB:CD:...` of a fingerprint.
    fn note_fingerprint(&mut self, value: &str) {
        let (hash, digits) = value.split_once(' ').unwrap_or((value, ""));
        if !hash.eq_ignore_ascii_case("sha-256") {
            self.has_other_fingerprint = true;
        } else if self.sha256.is_none() {
            self.sha256 = parse_octets(digits.trim_ascii());
            self.has_damaged_sha256 |= self.sha256.is_none();
        }
    }

    /// Reads the value `<payload type> ...` of an attribute of one payload type.
    fn note_payload(&mut self, name: &str, value: &str) {
        let (number, value) = value.split_once(' ').unwrap_or((value, ""));
        let value = value.trim_ascii();
        if name == "rtcp-fb" && number == "*" {
            return self.feedback_of_all.note(value);
        }
        let Some(payload) = number.parse().ok().and_then(|number| self.payload(number)) else { return };
        match name {
            "rtpmap" if payload.codec.is_none() => payload.codec = Some(parse_codec(value)),
            "fmtp" if !payload.has_parameters => payload.note_parameters(value),
            "rtcp-fb" => payload.feedback.note(value),
            _ => {}
        }
    }
}

impl Payload {
    fn note_parameters(&mut self, value: &str) {
        self.has_parameters = true;
        for (key, value) in value.split(';').filter_map(|parameter| parameter.split_once('=')) {
            let (key, value) = (key.trim_ascii(), value.trim_ascii());
            if key.eq_ignore_ascii_case("packetization-mode") {
                self.mode = self.mode.or(Some(value.parse().unwrap_or(u8::MAX)));
            } else if key.eq_ignore_ascii_case("apt") {
                self.apt = self.apt.or(value.parse().ok());
            } else if key.eq_ignore_ascii_case("profile-level-id") && self.profile == ProfileLevel::Missing {
                let id = u32::from_str_radix(value, 16).ok().filter(|id| *id <= 0xff_ffff);
                self.profile = id.map_or(ProfileLevel::Invalid, ProfileLevel::Id);
            }
        }
    }
}

fn parse_codec(rtpmap: &str) -> Codec {
    let mut parts = rtpmap.split('/');
    let (name, clock) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match clock.trim_ascii() {
        "90000" if name.eq_ignore_ascii_case("H264") => Codec::H264,
        "90000" if name.eq_ignore_ascii_case("rtx") => Codec::Rtx,
        _ => Codec::Other,
    }
}

/// Parses 32 octets `AB:CD:...`.
fn parse_octets(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let mut octets = digits.split(':');
    for byte in &mut bytes {
        let octet = octets.next().filter(|octet| octet.len() == 2 && !octet.starts_with('+'))?;
        *byte = u8::from_str_radix(octet, 16).ok()?;
    }
    octets.next().is_none().then_some(bytes)
}

// ---- header extensions -----------------------------------------------------------------------------

pub(super) const URI_MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
pub(super) const URI_PLAYOUT_DELAY: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
pub(super) const URI_TRANSPORT: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
pub(super) const URI_CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";

/// Longest mid that fits into a packet: the one-byte form of a header extension holds 16 bytes (RFC 8285).
const MID_EXTENSION_BYTES_MAX: usize = 16; // local bound

/// Id of a header extension in the offer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Extmap {
    /// From 1 to 14, for the one-byte form (RFC 8285).
    id: u8,
    /// True if the offer states a direction, so that the answer must state one too.
    is_directed: bool,
}

impl Extmap {
    pub(super) fn id(self) -> u8 {
        self.id
    }

    /// Returns the line of the answer.
    pub(super) fn answer(self, uri: &str) -> String {
        format!("a=extmap:{}{} {uri}", self.id, if self.is_directed { "/sendonly" } else { "" })
    }
}

/// The header extensions that we can send.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extmaps {
    pub(super) mid: Option<Extmap>,
    pub(super) playout_delay: Option<Extmap>,
    pub(super) capture_time: Option<Extmap>,
    /// Transport-wide sequence number.
    pub(super) transport: Option<Extmap>,
}

impl Extmaps {
    /// Reads the value `<id>[/<direction>] <URI> ...` of an extmap. Ids outside the one-byte form, ids in use, and
    /// extensions that the viewer only sends are ignored.
    fn note(&mut self, value: &str) {
        let mut words = value.split_ascii_whitespace();
        let (Some(id), Some(uri)) = (words.next(), words.next()) else { return };
        let (id, direction) = id.split_once('/').map_or((id, None), |(id, direction)| (id, Some(direction)));
        if !matches!(direction, None | Some("recvonly" | "sendrecv")) {
            return;
        }
        let Some(id) = id.parse().ok().filter(|id| (1..=14).contains(id)) else { return };
        self.add(uri, Extmap { id, is_directed: direction.is_some() });
    }

    fn add(&mut self, uri: &str, extmap: Extmap) {
        let is_used =
            self.all().into_iter().any(|(known, _)| known.is_some_and(|known| known.id == extmap.id));
        let slot = match uri {
            URI_MID => &mut self.mid,
            URI_PLAYOUT_DELAY => &mut self.playout_delay,
            URI_CAPTURE_TIME => &mut self.capture_time,
            URI_TRANSPORT => &mut self.transport,
            _ => return,
        };
        if slot.is_none() && !is_used {
            *slot = Some(extmap);
        }
    }

    /// Returns all extensions with their URIs.
    pub(super) fn all(&self) -> [(Option<Extmap>, &'static str); 4] {
        [
            (self.mid, URI_MID),
            (self.playout_delay, URI_PLAYOUT_DELAY),
            (self.capture_time, URI_CAPTURE_TIME),
            (self.transport, URI_TRANSPORT),
        ]
    }

    /// Adds the extensions of the session part, which apply to every m-line.
    pub(super) fn or(mut self, session: Self) -> Self {
        for (extmap, uri) in session.all() {
            if let Some(extmap) = extmap {
                self.add(uri, extmap);
            }
        }
        self
    }

    /// Removes the mid extension if packets cannot carry this mid, and transport-wide sequence numbers if there is no
    /// RTX: a packet is then repeated without any change.
    pub(super) fn for_stream(mut self, mid: &str, has_rtx: bool) -> Self {
        self.transport = self.transport.filter(|_| has_rtx);
        if !(1..=MID_EXTENSION_BYTES_MAX).contains(&mid.len()) {
            self.mid = None;
        }
        self
    }

    pub(super) fn ids(&self) -> Extensions {
        let id = |extmap: Option<Extmap>| extmap.map(|extmap| extmap.id);
        Extensions {
            mid: id(self.mid),
            playout_delay: id(self.playout_delay),
            capture_time: id(self.capture_time),
            transport: id(self.transport),
        }
    }
}
