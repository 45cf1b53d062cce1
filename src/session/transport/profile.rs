//! Chooses the SRTP profile that is cheaper on this machine, and the DTLS version that leads to it.
//! Measures the ciphers of `media/srtp.rs` on packets of usual size.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use str0m::config::DtlsVersion;
use str0m::crypto::dtls::SrtpProfile;

use crate::session::media::srtp::{self, RtpPacket};

/// `--srtp`: which SRTP profile to prefer.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum SrtpChoice {
    /// The one that encrypts a packet faster on this machine, measured at start.
    #[default]
    Auto,
    /// AES-256-GCM: faster on CPUs with AES instructions.
    Gcm,
    /// AES-128-CM with HMAC-SHA1: faster on CPUs without.
    Cm,
}

impl fmt::Display for SrtpChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Gcm => "gcm",
            Self::Cm => "cm",
        })
    }
}

/// The preferred profile. The handshake may end with another one: see [`TargetProfile::dtls_version`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(in crate::session) enum TargetProfile {
    Gcm,
    Cm,
}

impl TargetProfile {
    pub(in crate::session) fn choose(choice: SrtpChoice) -> Self {
        match choice {
            SrtpChoice::Gcm => Self::Gcm,
            SrtpChoice::Cm => Self::Cm,
            SrtpChoice::Auto => {
                let (gcm, cm) = measure();
                log::info!(
                    "SRTP of one packet takes {} ns with AES-256-GCM, {} ns with AES-128-CM",
                    gcm.as_nanos(),
                    cm.as_nanos()
                );
                if gcm <= cm { Self::Gcm } else { Self::Cm }
            }
        }
    }

    pub(in crate::session) fn name(self) -> &'static str {
        match self {
            Self::Gcm => "AEAD_AES_256_GCM",
            Self::Cm => "AES128_CM_SHA1_80",
        }
    }

    /// Returns the DTLS version to offer. dimpl 0.9 has a fixed order of profiles, but it depends on the version.
    /// A DTLS 1.2 server takes AES-256-GCM, AES-128-GCM, AES-128-CM in this order. A DTLS 1.3 server takes the client's
    /// first profile, in browsers AES-128-CM. A browser without DTLS 1.3 gets AES-256-GCM in either case.
    pub(in crate::session) fn dtls_version(self) -> DtlsVersion {
        match self {
            Self::Gcm => DtlsVersion::Dtls12,
            Self::Cm => DtlsVersion::Auto,
        }
    }
}

const PACKET_BYTES: usize = 1_160;
const HEADER_BYTES: usize = 24;
const PACKETS: u32 = 64;
const ROUNDS: usize = 12;
/// Key material long enough for any profile. It protects nothing.
const KEY_BYTES: usize = 96;

/// Returns the best time of one packet with AES-256-GCM and with AES-128-CM. The ciphers take turns; all rounds take a
/// few milliseconds.
fn measure() -> (Duration, Duration) {
    let packet = [0x5a_u8; PACKET_BYTES];
    let mut output = [0_u8; PACKET_BYTES + srtp::TAG_BYTES_MAX];
    let (header, payload) = packet.split_at(HEADER_BYTES);
    let mut best = [Duration::MAX; 2];
    let profiles = [SrtpProfile::AEAD_AES_256_GCM, SrtpProfile::AES128_CM_SHA1_80];
    let sealers = profiles.map(|profile| srtp::contexts(profile, &[7; KEY_BYTES], false));
    for _ in 0..ROUNDS {
        for (best, keys) in best.iter_mut().zip(&sealers) {
            let Some((sealer, _)) = keys else { continue };
            let out = output.get_mut(..PACKET_BYTES + sealer.tag_bytes()).unwrap_or_default();
            *best = (*best).min(timed(|index| {
                let packet = RtpPacket { ssrc: 1, index, header, prefix: &[], payload: black_box(payload) };
                sealer.seal_rtp(&packet, out);
            }));
        }
    }
    black_box(&output);
    best.into()
}

#[expect(clippy::disallowed_methods, reason = "a measurement at start; no session depends on it")]
fn timed(packet: impl FnMut(u64)) -> Duration {
    let start = Instant::now();
    (0..u64::from(PACKETS)).for_each(packet);
    start.elapsed() / PACKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_are_measured_and_an_explicit_choice_is_kept() {
        let (gcm, cm) = measure();
        assert!(!gcm.is_zero() && !cm.is_zero());
        assert_eq!(TargetProfile::choose(SrtpChoice::Cm), TargetProfile::Cm);
    }
}
