//! From an SDP offer to a session's parts and the answer. The only place that configures str0m. No I/O.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use smallvec::SmallVec;
use str0m::config::Fingerprint;
use str0m::{IceCreds, RtcConfig};

use super::Transport;
use crate::session::context::SessionContext;
use crate::session::media::stream::StreamParameters;
use crate::session::transport::dtls;
use crate::session::transport::sdp::{LocalDescription, Offer, OfferError};

/// Parts of a session and the answer to its offer.
pub(in crate::session) struct AcceptedOffer {
    pub(in crate::session) transport: Transport,
    pub(in crate::session) stream: StreamParameters,
    pub(in crate::session) answer: String,
}

/// Reads the offer, prepares ICE and DTLS, writes the answer.
pub(in crate::session) fn accept_offer(
    context: &Arc<SessionContext>,
    id: u32,
    offer_sdp: &str,
    now: Instant,
) -> Result<AcceptedOffer, OfferError> {
    let offer = Offer::parse(offer_sdp)?;
    let negotiated = offer.negotiate()?;
    let seeds = Seeds::new(id)?;
    let config = configure(context, &seeds)?;
    let (mut rtc, dtls) = dtls::with_link(|| config.build(now));
    for candidate in &context.candidates {
        rtc.add_local_candidate(candidate.clone());
    }
    let mut api = rtc.direct_api();
    api.set_ice_controlling(false);
    api.set_remote_ice_credentials(IceCreds {
        ufrag: negotiated.remote_ufrag.clone(),
        pass: negotiated.remote_password.clone(),
    });
    api.set_remote_fingerprint(Fingerprint {
        hash_func: "sha-256".into(),
        bytes: negotiated.fingerprint.to_vec(),
    });
    api.start_dtls(negotiated.dtls_client).map_err(internal)?;
    let rtx_ssrc = negotiated.video.rtx.map(|_| seeds.ssrc + 1);
    let answer = offer.answer(
        &negotiated,
        &LocalDescription {
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
    let transport = Transport {
        id,
        context: Arc::clone(context),
        rtc,
        ufrag: seeds.ufrag,
        stun_key: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, seeds.password.as_bytes()),
        dtls,
        paths: SmallVec::new(),
        selected: None,
        checked_at: now,
        checked_from: None,
        str0m_deadline: now,
    };
    let stream = StreamParameters {
        ssrc: seeds.ssrc,
        payload_type: negotiated.video.payload_type,
        rtx: rtx_ssrc.zip(negotiated.video.rtx),
        extensions: negotiated.extensions,
        mid: negotiated.mid,
        cname: seeds.cname,
        first_sequence: seeds.first_sequence,
        first_rtx_sequence: seeds.first_rtx_sequence,
        rtp_offset: seeds.rtp_offset,
    };
    Ok(AcceptedOffer { transport, stream, answer })
}

/// Configures str0m for ICE and DTLS only: it has no codecs, the media stream is ours.
fn configure(context: &SessionContext, seeds: &Seeds) -> Result<RtcConfig, OfferError> {
    let certificate = context.certificate().ok_or_else(|| internal("no DTLS certificate"))?;
    Ok(RtcConfig::new()
        .set_crypto_provider(Arc::clone(&context.provider))
        .set_dtls_cert(certificate.clone())
        .set_dtls_version(context.target_profile().dtls_version())
        .set_local_ice_credentials(IceCreds { ufrag: seeds.ufrag.clone(), pass: seeds.password.clone() })
        .set_ice_lite(true)
        .set_stats_interval(Some(Duration::from_secs(1))) // reports which path is selected
        .clear_codecs()
        .clear_extension_map())
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
            // The id makes it unique; 48 random bits make it hard to guess (RFC 8445 requires 24).
            ufrag: format!("{id:x}/{}", random_text::<8>()?),
            // 192 random bits (RFC 8445 requires 128).
            password: random_text::<32>()?,
            session_id: u64::from_be_bytes(random()?) >> 2,
            first_sequence: sequence()?,
            first_rtx_sequence: sequence()?,
            rtp_offset: u32::from_be_bytes(random()?),
            cname: random_text::<16>()?,
            // The RTX stream takes the next number, so the last one is left out; 0 is left out too.
            ssrc: u32::from_be_bytes(random()?).clamp(1, u32::MAX - 1),
        })
    }
}

fn random<const N: usize>() -> Result<[u8; N], OfferError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| OfferError::Internal("no random numbers".into()))?;
    Ok(bytes)
}

/// Returns `N` characters of 6 random bits each (ice-char, RFC 8839 section 5.4).
fn random_text<const N: usize>() -> Result<String, OfferError> {
    const ICE_CHARS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = random::<N>()?.map(|byte| ICE_CHARS.get(usize::from(byte & 63)).copied().unwrap_or(b'A'));
    Ok(text.iter().map(|byte| char::from(*byte)).collect())
}
