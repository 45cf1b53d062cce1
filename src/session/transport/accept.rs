//! Turns an SDP offer into the transport and the stream parameters of a session, and the answer. Only this file
//! configures str0m. It does no I/O.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use str0m::config::Fingerprint;
use str0m::{IceCreds, RtcConfig};

use super::paths::Paths;
use super::{IceKeys, Transport};
use crate::session::context::SessionContext;
use crate::session::media::StreamParameters;
use crate::session::transport::answer::{self, LocalDescription};
use crate::session::transport::dtls;
use crate::session::transport::offer_error::OfferError;
use crate::session::transport::sdp::{Negotiated, Offer};

/// Reads the offer and prepares ICE and DTLS. Returns the transport, the stream parameters and the SDP answer.
pub(in crate::session) fn accept_offer(
    context: &Arc<SessionContext>,
    id: u32,
    offer_sdp: &str,
    now: Instant,
) -> Result<(Transport, StreamParameters, String), OfferError> {
    let offer = Offer::parse(offer_sdp)?;
    let negotiated = offer.negotiate()?;
    let stream = stream_parameters(&negotiated)?;
    let credentials = local_credentials(id)?;
    let config = configure(context, &credentials)?;
    let (mut rtc, dtls) = dtls::with_link(|| config.build(now));
    for candidate in &context.candidates {
        rtc.add_local_candidate(candidate.clone());
    }
    let mut api = rtc.direct_api();
    api.set_ice_controlling(false);
    api.set_remote_ice_credentials(negotiated.remote.clone());
    api.set_remote_fingerprint(Fingerprint {
        hash_func: "sha-256".into(),
        bytes: negotiated.fingerprint.to_vec(),
    });
    api.start_dtls(negotiated.dtls_client).map_err(internal)?;
    let local = LocalDescription {
        session_id: u64::from_be_bytes(random()?) >> 2,
        credentials: &credentials,
        fingerprint: &api.local_dtls_fingerprint().bytes,
        candidates: &context.announced,
        stream: &stream,
    };
    let answer = answer::write(&offer, &negotiated, &local);
    let transport = Transport {
        id,
        context: Arc::clone(context),
        rtc,
        ice: IceKeys::new(&credentials, &negotiated.remote, random()?),
        previous_ice: None,
        earlier_ufrags: Vec::new(),
        first_ufrag: credentials.ufrag.clone(),
        dtls,
        paths: Paths::default(),
        constant_path: None,
        stun_output: VecDeque::new(),
        destination: None,
        heard_at: now,
        is_paused: false,
        alert: None,
        has_sent_alert: false,
        checked_from: None,
        deadline: now,
    };
    Ok((transport, stream, answer))
}

/// Returns new ICE credentials for the session `id`.
pub(super) fn local_credentials(id: u32) -> Result<IceCreds, OfferError> {
    Ok(IceCreds {
        // The id makes the ufrag unique. 48 random bits make it hard to guess (RFC 8445 requires 24).
        ufrag: format!("{id:x}/{}", random_text::<8>()?),
        // The password has 192 random bits (RFC 8445 requires 128).
        pass: random_text::<32>()?,
    })
}

/// Returns a str0m configuration for ICE and DTLS only. It has no codecs, because the sender in `media` builds the RTP
/// stream, not str0m.
fn configure(context: &SessionContext, credentials: &IceCreds) -> Result<RtcConfig, OfferError> {
    let certificate = context.certificate().ok_or_else(|| internal("no DTLS certificate"))?;
    Ok(RtcConfig::new()
        .set_crypto_provider(Arc::clone(&context.provider))
        .set_dtls_cert(certificate.clone())
        .set_dtls_version(context.target_profile().dtls_version())
        .set_local_ice_credentials(credentials.clone())
        .set_ice_lite(true)
        .clear_codecs()
        .clear_extension_map())
}

fn internal(error: impl std::fmt::Display) -> OfferError {
    OfferError::Internal(error.to_string())
}

fn stream_parameters(negotiated: &Negotiated) -> Result<StreamParameters, OfferError> {
    let sequence = || Ok(u16::from_be_bytes(random()?) & 0x7fff);
    // The RTX stream uses the next higher SSRC, so `u32::MAX` cannot be used here. 0 is not used either.
    let ssrc = u32::from_be_bytes(random()?).clamp(1, u32::MAX - 1);
    Ok(StreamParameters {
        ssrc,
        payload_type: negotiated.video.payload_type,
        rtx: negotiated.video.rtx.map(|payload_type| (ssrc + 1, payload_type)),
        extensions: negotiated.extmaps.ids(),
        mid: negotiated.mid.clone(),
        cname: random_text::<16>()?,
        first_sequence: sequence()?,
        first_rtx_sequence: sequence()?,
        rtp_offset: u32::from_be_bytes(random()?),
    })
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
