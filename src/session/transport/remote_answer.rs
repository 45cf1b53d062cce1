//! Reads the SDP answer of a WHIP server. The answer is untrusted: it passes the same bounded parser as a viewer's
//! offer.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};

use str0m::IceCreds;

use super::answer_error::AnswerError;
use super::offer::OFFERED;
use super::sdp::{Offer, Parts, Video, usable_video};
use super::section::{Extmap, Extmaps, Section};
use crate::base::limits;
use crate::session::media::Extensions;

/// What the answer says about our m-line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) remote: IceCreds,
    /// SHA-256 fingerprint of the server's certificate.
    pub(super) fingerprint: [u8; 32],
    /// True if we are the DTLS client, because the answer has `a=setup:passive`.
    pub(super) dtls_client: bool,
    pub(super) video: Video,
    pub(super) extensions: Extensions,
    /// Addresses of the server, the one with the highest priority first.
    pub(super) candidates: Vec<SocketAddr>,
}

/// Reads an answer to our offer of the `profiles`. `has_family` returns true if this machine can send to an address of
/// that family.
pub(super) fn read(
    text: &str,
    profiles: &[u32],
    has_family: impl Fn(IpAddr) -> bool,
) -> Result<Accepted, AnswerError> {
    let answer = Offer::parse(text)?;
    let [section] = answer.media.as_slice() else {
        return Err(AnswerError::Malformed(format!(
            "it has {} m-lines, but the offer has one",
            answer.media.len()
        )));
    };
    if section.kind != "video" {
        return Err(AnswerError::Malformed("its m-line is not for video".into()));
    }
    if section.port == "0" {
        return Err(AnswerError::Unusable("the server rejects the video (port 0): does it support H.264?"));
    }
    if section.receives.or(answer.session.receives) == Some(false) {
        return Err(AnswerError::Unusable(
            "the server does not receive: the answer is sendonly or inactive instead of recvonly",
        ));
    }
    let video = choose_video(section, profiles)?;
    let parts = Parts { section, session: &answer.session, first: None };
    let dtls_client = match parts.find(|part| part.setup) {
        None => false,
        Some(setup) if setup.eq_ignore_ascii_case("active") => false,
        Some(setup) if setup.eq_ignore_ascii_case("passive") => true,
        Some(_) => return Err(AnswerError::Malformed("a=setup is neither active nor passive".into())),
    };
    Ok(Accepted {
        remote: parts.ice_credentials()?,
        fingerprint: parts.fingerprint()?,
        dtls_client,
        video,
        extensions: accepted_extensions(section.extmaps.or(answer.session.extmaps)),
        candidates: candidates(&answer, section, has_family)?,
    })
}

/// Returns the payload type to send: the one whose profile comes first in `profiles`, else the first H.264 of the
/// answer.
fn choose_video(section: &Section<'_>, profiles: &[u32]) -> Result<Video, AnswerError> {
    let rank = |video: &Video| {
        let id = video.profile_level_id;
        profiles
            .iter()
            .position(|profile| id.is_some_and(|id| id >> 8 == profile >> 8))
            .unwrap_or(profiles.len())
    };
    let usable = section.listed().filter_map(|(number, payload)| usable_video(section, number, payload).ok());
    usable.min_by_key(rank).ok_or(AnswerError::Unusable(
        "it has no H264/90000 with packetization-mode=1, the only codec of the camera",
    ))
}

/// Returns the header extensions of the answer that have the ids of our offer.
fn accepted_extensions(extmaps: Extmaps) -> Extensions {
    let accepted = |offered: Option<u8>, answered: Option<Extmap>| {
        offered.filter(|offered| answered.is_some_and(|answered| answered.id() == *offered))
    };
    Extensions {
        mid: accepted(OFFERED.mid, extmaps.mid),
        playout_delay: None,
        capture_time: accepted(OFFERED.capture_time, extmaps.capture_time),
        transport: accepted(OFFERED.transport, extmaps.transport),
    }
}

/// Why a candidate cannot be used. A later variant is the better explanation of why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Skipped {
    Nothing,
    Unreadable,
    Name,
    Tcp,
    Family,
    Relay,
}

impl Skipped {
    fn error(self) -> AnswerError {
        AnswerError::NoCandidate(match self {
            Self::Nothing => {
                "it has no a=candidate line. This program does not trickle: the server must gather first"
            }
            Self::Unreadable => "its a=candidate lines cannot be read",
            Self::Name => {
                "it has only host names as candidates, such as .local names, which are not resolved"
            }
            Self::Tcp => "it has only TCP candidates, but video is sent over UDP",
            Self::Family => {
                "its addresses have a family (IPv4 or IPv6) that the UDP port does not have: see --udp"
            }
            Self::Relay => {
                "it has only relay (TURN) candidates, which are not supported. Give the server an address that this \
                 machine can reach over UDP"
            }
        })
    }
}

/// Returns the usable candidates, at most [`limits::VIEWER_PATHS_MAX`], the highest priority first.
fn candidates(
    answer: &Offer<'_>,
    section: &Section<'_>,
    has_family: impl Fn(IpAddr) -> bool,
) -> Result<Vec<SocketAddr>, AnswerError> {
    let mut found: Vec<(Reverse<u32>, usize, SocketAddr)> = Vec::new();
    let mut skipped = Skipped::Nothing;
    for value in section.candidates.iter().chain(&answer.session.candidates) {
        match read_candidate(value) {
            Ok((_, address)) if !has_family(address.ip()) => skipped = skipped.max(Skipped::Family),
            Ok((priority, address)) => found.push((Reverse(priority), found.len(), address)),
            Err(reason) => skipped = skipped.max(reason),
        }
    }
    if found.is_empty() {
        return Err(skipped.error());
    }
    found.sort_unstable();
    found.truncate(limits::VIEWER_PATHS_MAX);
    Ok(found.into_iter().map(|(_, _, address)| address).collect())
}

/// Reads `<foundation> <component> <transport> <priority> <address> <port> typ <type> ...` (RFC 8839 section 5.1).
fn read_candidate(value: &str) -> Result<(u32, SocketAddr), Skipped> {
    let words: Vec<&str> = value.split_ascii_whitespace().take(8).collect();
    let [_, component, transport, priority, address, port, "typ", kind] = words[..] else {
        return Err(Skipped::Unreadable);
    };
    let priority = priority.parse().map_err(|_| Skipped::Unreadable)?;
    let port =
        port.parse().ok().filter(|port: &u16| *port != 0 && component == "1").ok_or(Skipped::Unreadable)?;
    if kind == "relay" {
        return Err(Skipped::Relay);
    }
    if !transport.eq_ignore_ascii_case("udp") {
        return Err(Skipped::Tcp);
    }
    let ip: IpAddr = address.parse().map_err(|_| Skipped::Name)?;
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err(Skipped::Unreadable);
    }
    Ok((priority, SocketAddr::new(ip, port)))
}
