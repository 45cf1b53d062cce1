//! Sets a session up: from an offer to a [`Viewer`] and the answer. The only place that knows how str0m
//! is configured; no I/O.

use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::config::Fingerprint;
use str0m::{IceCreds, Rtc, RtcConfig};

use crate::session::SessionContext;
use crate::session::media::sender::Stream;
use crate::session::transport::crypto::{self, Handshake};
use crate::session::transport::signaling::{Local, Offer, OfferError};
use crate::session::viewer::Viewer;

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
struct Seeds {
    ufrag: String,
    password: String,
    session_id: u64,
    first_sequence: u16,
    first_rtx_sequence: u16,
    rtp_offset: u32,
    cname: String,
    ssrc: u32,
}

impl Seeds {
    fn new(id: u32) -> Result<Self, OfferError> {
        let sequence = || Ok(u16::from_be_bytes(random()?) & 0x7fff);
        Ok(Self {
            // The id makes it unique, 48 random bits make it hard to guess (RFC 8445 wants 24 and 128).
            ufrag: format!("{id:x}/{}", random_text::<8>()?),
            password: random_text::<32>()?,
            session_id: u64::from_be_bytes(random()?) >> 2,
            first_sequence: sequence()?,
            first_rtx_sequence: sequence()?,
            rtp_offset: u32::from_be_bytes(random()?),
            cname: random_text::<16>()?,
            // Neither 0 nor the last: that of packets sent again is the next one.
            ssrc: u32::from_be_bytes(random()?).clamp(1, u32::MAX - 1),
        })
    }
}

/// What a viewer is made from.
pub(in crate::session) struct SessionParts {
    pub(in crate::session) rtc: Rtc,
    pub(in crate::session) ufrag: String,
    pub(in crate::session) password: String,
    pub(in crate::session) rtp_offset: u32,
    pub(in crate::session) stream: Stream,
    /// Where DTLS leaves the keys.
    pub(in crate::session) handshake: Handshake,
}

/// str0m does ICE and DTLS and knows of no media: the stream is ours.
fn configure(context: &SessionContext, seeds: &Seeds) -> Result<RtcConfig, OfferError> {
    let certificate = context.certificate().ok_or_else(|| internal("no DTLS certificate"))?;
    Ok(RtcConfig::new()
        .set_crypto_provider(Arc::clone(&context.provider))
        .set_dtls_cert(certificate.clone())
        .set_dtls_version(context.aim().dtls_version())
        .set_local_ice_credentials(IceCreds { ufrag: seeds.ufrag.clone(), pass: seeds.password.clone() })
        .set_ice_lite(true)
        .set_stats_interval(Some(Duration::from_secs(1))) // tells which path is selected
        .clear_codecs()
        .clear_extension_map())
}

impl Viewer {
    /// Reads the offer, sets the session up and writes the answer. Connecting is up to the viewer: it
    /// has [`HANDSHAKE_TIMEOUT`](crate::base::limits::HANDSHAKE_TIMEOUT) from `now`.
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
        let config = configure(context, &seeds)?;
        let (mut rtc, handshake) = crypto::with_handshake(|| config.build(now));
        for candidate in &context.candidates {
            rtc.add_local_candidate(candidate.clone());
        }
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
        api.start_dtls(agreed.dtls_client).map_err(internal)?;
        let rtx_ssrc = agreed.video.rtx.map(|_| seeds.ssrc + 1);
        let answer = offer.answer(
            &agreed,
            &Local {
                session_id: seeds.session_id,
                ufrag: &seeds.ufrag,
                password: &seeds.password,
                fingerprint: &api.local_dtls_fingerprint().bytes,
                candidates: &context.announced,
                cname: &seeds.cname,
                ssrc: seeds.ssrc,
                rtx_ssrc,
            },
        );
        let Seeds { ufrag, password, rtp_offset, cname, ssrc, .. } = seeds;
        let stream = Stream {
            ssrc,
            payload_type: agreed.video.payload_type,
            rtx: rtx_ssrc.zip(agreed.video.rtx),
            extensions: agreed.extensions,
            mid: agreed.mid,
            cname,
            first_sequence: seeds.first_sequence,
            first_rtx_sequence: seeds.first_rtx_sequence,
        };
        let parts = SessionParts { rtc, ufrag, password, rtp_offset, stream, handshake };
        Ok((Self::new(context, id, parts, now), answer))
    }
}
