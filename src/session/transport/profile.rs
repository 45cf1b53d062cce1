//! Chooses the SRTP profile that needs less CPU time on this machine, and the DTLS version with which it is negotiated.
//! For the choice it measures the speed of the ciphers in `media/srtp.rs` on packets of usual size.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use str0m::config::DtlsVersion;
use str0m::crypto::dtls::SrtpProfile;

use crate::session::media::srtp::{self, RtpPacket};

/// SRTP profile to prefer, as given with `--srtp`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum SrtpChoice {
    /// The profile that encrypts a packet faster on this machine, measured at start.
    #[default]
    Auto,
    /// AES-256-GCM: faster on CPUs with AES instructions.
    Gcm,
    /// AES-128-CM with HMAC-SHA1: faster on CPUs without AES instructions.
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

/// The preferred SRTP profile. The handshake may select another profile: see [`TargetProfile::dtls_version`].
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

    /// Returns the DTLS version to use. dimpl 0.9 lets us choose the SRTP profile only through this version. A DTLS 1.2
    /// server prefers AES-256-GCM, then AES-128-GCM, then AES-128-CM. A DTLS 1.3 server takes the client's first
    /// profile: AES-128-CM in Chromium, AES-128-GCM in Firefox. A viewer without DTLS 1.3 gets AES-256-GCM in either
    /// case, unless it offers only AES-128-CM.
    ///
    /// On a CPU without AES instructions DTLS 1.3 is therefore right for every viewer: each gets the fastest profile that
    /// the server can reach. For Firefox that is AES-128-GCM, which needs 10 instead of 14 rounds of AES; AES-128-CM
    /// cannot be selected for it.
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
/// Length of the key material for the measurement, enough for any profile. These keys protect nothing.
const KEY_BYTES: usize = 96;

/// Returns the shortest measured time to encrypt one packet with AES-256-GCM and with AES-128-CM. The two ciphers
/// alternate; all rounds together take a few milliseconds.
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
