//! Sets a session up: from an offer to a [`Viewer`] and the answer. The only place that knows how str0m
//! is configured; no I/O.

use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::config::Fingerprint;
use str0m::media::{MediaKind, Mid, Pt};
use str0m::rtp::{Extension, Ssrc};
use str0m::{IceCreds, RtcConfig};

use super::SessionContext;
use super::signaling::{Local, Negotiated, Offer, OfferError};
use super::viewer::Viewer;
use crate::limits;

/// Random bytes for identifiers and secrets.
fn random<const N: usize>() -> Result<[u8; N], OfferError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| OfferError::Internal("no random numbers".into()))?;
    Ok(bytes)
}

/// `N` characters of 6 random bits each (ice-char, RFC 8839 section 5.4).
fn random_text<const N: usize>() -> Result<String, OfferError> {
    const ICE_CHARS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = random::<N>()?.map(|byte| ICE_CHARS.get(usize::from(byte & 63)).copied().unwrap_or(b'A'));
    Ok(text.iter().map(|byte| char::from(*byte)).collect())
}

fn internal(error: impl std::fmt::Display) -> OfferError {
    OfferError::Internal(error.to_string())
}

/// Secrets and random starting points of one session.
pub(super) struct Seeds {
    pub(super) ufrag: String,
    pub(super) password: String,
    pub(super) session_id: u64,
    pub(super) sequence: u16,
    pub(super) rtp_offset: u32,
}

impl Seeds {
    fn new(id: u32) -> Result<Self, OfferError> {
        Ok(Self {
            // The id makes it unique, 48 random bits make it hard to guess (RFC 8445 wants 24 and 128).
            ufrag: format!("{id:x}/{}", random_text::<8>()?),
            password: random_text::<32>()?,
            session_id: u64::from_be_bytes(random()?) >> 2,
            sequence: u16::from_be_bytes(random()?) & 0x7fff,
            rtp_offset: u32::from_be_bytes(random()?),
        })
    }
}

fn configure(context: &SessionContext, agreed: &Negotiated, seeds: &Seeds) -> Result<RtcConfig, OfferError> {
    let certificate = context.certificate().ok_or_else(|| internal("no DTLS certificate"))?;
    let mut config = RtcConfig::new()
        .set_crypto_provider(Arc::clone(&context.provider))
        .set_dtls_cert(certificate.clone())
        .set_dtls_version(context.aim().dtls_version())
        .set_local_ice_credentials(IceCreds { ufrag: seeds.ufrag.clone(), pass: seeds.password.clone() })
        .set_ice_lite(true)
        .set_rtp_mode(true)
        .set_stats_interval(Some(Duration::from_secs(1)))
        .set_send_buffer_video(limits::RTX_CACHE_PACKETS)
        .clear_codecs()
        .clear_extension_map();
    let ids = agreed.extensions;
    for (id, extension) in [
        (ids.mid, Extension::RtpMid),
        (ids.playout_delay, Extension::PlayoutDelay),
        (ids.capture_time, Extension::AbsoluteCaptureTime),
    ] {
        if let Some(id) = id {
            config = config.set_extension(id, extension);
        }
    }
    let video = &agreed.video;
    let rtx = video.rtx.map(Pt::from);
    config.codec_config().add_h264(video.payload_type.into(), rtx, true, video.profile_level_id);
    Ok(config)
}

/// `a=mid` as str0m's identifier: padded with spaces (it is at most 16 bytes, checked before).
pub(super) fn mid_of(text: &str) -> Mid {
    let mut bytes = [b' '; 16];
    bytes.iter_mut().zip(text.bytes()).for_each(|(slot, byte)| *slot = byte);
    Mid::from_array(bytes)
}

impl Viewer {
    /// Reads the offer, sets the session up and writes the answer. Connecting is up to the viewer: it
    /// has [`limits::HANDSHAKE_TIMEOUT`] from `now`.
    ///
    /// # Errors
    /// See [`OfferError`]; nothing is left behind.
    pub fn accept(
        context: &Arc<SessionContext>,
        id: u32,
        offer_sdp: &str,
        now: Instant,
    ) -> Result<(Self, String), OfferError> {
        let offer = Offer::parse(offer_sdp)?;
        let agreed = offer.negotiate()?;
        let seeds = Seeds::new(id)?;
        let mut rtc = configure(context, &agreed, &seeds)?.build(now);
        for candidate in &context.candidates {
            rtc.add_local_candidate(candidate.clone());
        }
        let mid = mid_of(&agreed.mid);
        let mut api = rtc.direct_api();
        api.set_ice_controlling(false);
        api.set_remote_ice_credentials(IceCreds {
            ufrag: agreed.remote_ufrag.clone(),
            pass: agreed.remote_password.clone(),
        });
        api.set_remote_fingerprint(Fingerprint {
            hash_func: "sha-256".into(),
            bytes: agreed.fingerprint.to_vec(),
        });
        let cname = api.declare_media(mid, MediaKind::Video).cname().to_owned();
        let ssrc = api.new_ssrc();
        let rtx_ssrc = agreed.video.rtx.map(|_| Ssrc::from(ssrc.wrapping_add(1).max(1)));
        api.declare_stream_tx(ssrc, rtx_ssrc, mid, None).set_rtx_cache(
            limits::RTX_CACHE_PACKETS,
            limits::RTX_CACHE_AGE,
            None,
        );
        api.start_dtls(agreed.dtls_client).map_err(internal)?;
        let answer = offer.answer(
            &agreed,
            &Local {
                session_id: seeds.session_id,
                ufrag: &seeds.ufrag,
                password: &seeds.password,
                fingerprint: &api.local_dtls_fingerprint().bytes,
                candidates: &context.announced,
                cname: &cname,
                ssrc: *ssrc,
                rtx_ssrc: rtx_ssrc.map(|ssrc| *ssrc),
            },
        );
        Ok((Self::new(context, id, rtc, &agreed, seeds, rtx_ssrc, now), answer))
    }
}
