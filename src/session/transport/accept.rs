//! Turns an SDP offer into the transport and the stream parameters of a session, and the answer. Only this file and
//! `publish.rs`, which uses its parts, configure str0m. It does no I/O.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use str0m::config::{DtlsVersion, Fingerprint};
use str0m::{IceCreds, Rtc, RtcConfig};

use super::paths::Paths;
use super::{IceKeys, Transport};
use crate::session::context::SessionContext;
use crate::session::media::{Extensions, StreamParameters};
use crate::session::transport::answer::{self, Candidates, LocalDescription};
use crate::session::transport::dtls::{self, DtlsLink};
use crate::session::transport::offer_error::OfferError;
use crate::session::transport::sdp::{Negotiated, Offer, Video};

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
    let credentials = new_credentials(id)?;
    let config = configure(context, &credentials, context.target_profile().dtls_version())?;
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
        candidates: Candidates { addresses: &context.announced, has_tcp: context.has_tcp },
        stream: &stream,
    };
    let answer = answer::write(&offer, &negotiated, &local);
    let ice = IceKeys::new(&credentials, &negotiated.remote, random()?, false);
    let transport = new_transport((id, context), (rtc, dtls), ice, Paths::default(), now);
    Ok((transport, stream, answer))
}

pub(super) fn new_transport(
    (id, context): (u32, &Arc<SessionContext>),
    (rtc, dtls): (Rtc, DtlsLink),
    ice: IceKeys,
    paths: Paths,
    now: Instant,
) -> Transport {
    Transport {
        id,
        context: Arc::clone(context),
        rtc,
        first_ufrag: ice.ufrag.clone(),
        ice,
        previous_ice: None,
        earlier_ufrags: Vec::new(),
        restarted_at: None,
        dtls,
        paths,
        agent: None,
        constant_path: None,
        stun_output: VecDeque::new(),
        destination: None,
        heard_at: now,
        is_paused: false,
        alert: None,
        has_sent_alert: false,
        checked_from: None,
        deadline: now,
    }
}

/// Returns new ICE credentials for the session `id`.
pub(super) fn new_credentials(id: u32) -> Result<IceCreds, OfferError> {
    Ok(IceCreds {
        // The id makes the ufrag unique. 48 random bits make it hard to guess (RFC 8445 requires 24).
        ufrag: format!("{id:x}/{}", random_text::<8>()?),
        // The password has 192 random bits (RFC 8445 requires 128).
        pass: random_text::<32>()?,
    })
}

/// Returns a str0m configuration for ICE and DTLS only. It has no codecs, because the sender in `media` builds the RTP
/// stream, not str0m.
pub(super) fn configure(
    context: &SessionContext,
    credentials: &IceCreds,
    dtls_version: DtlsVersion,
) -> Result<RtcConfig, OfferError> {
    let certificate = context.certificate().ok_or_else(|| internal("no DTLS certificate"))?;
    Ok(RtcConfig::new()
        .set_crypto_provider(Arc::clone(&context.provider))
        .set_dtls_cert(certificate.clone())
        .set_dtls_version(dtls_version)
        .set_local_ice_credentials(credentials.clone())
        .set_ice_lite(true)
        .clear_codecs()
        .clear_extension_map())
}

pub(super) fn internal(error: impl std::fmt::Display) -> OfferError {
    OfferError::Internal(error.to_string())
}

fn stream_parameters(negotiated: &Negotiated) -> Result<StreamParameters, OfferError> {
    let stream = new_stream(negotiated.mid.clone())?;
    let Video { payload_type, rtx, .. } = negotiated.video;
    Ok(stream.with_formats(payload_type, rtx, negotiated.extmaps.ids()))
}

/// Returns the parameters of a new stream without its formats.
pub(super) fn new_stream(mid: String) -> Result<StreamParameters, OfferError> {
    let sequence = || Ok(u16::from_be_bytes(random()?) & 0x7fff);
    // The RTX stream uses the next higher SSRC, so `u32::MAX` cannot be used here. 0 is not used either.
    let ssrc = u32::from_be_bytes(random()?).clamp(1, u32::MAX - 1);
    Ok(StreamParameters {
        ssrc,
        payload_type: 0,
        rtx: None,
        extensions: Extensions::default(),
        mid,
        cname: random_text::<16>()?,
        first_sequence: sequence()?,
        first_rtx_sequence: sequence()?,
        rtp_offset: rtp_offset()?,
        playout_delay: [0; 3],
    })
}

/// Returns the random offset that this process adds to every RTP time (RFC 3550 section 5.1). All sessions have the
/// same one, so that a picture has the same RTP timestamp for every viewer.
///
/// # Errors
/// Returns an error if the system gives no random numbers.
pub fn rtp_offset() -> Result<u32, OfferError> {
    static OFFSET: OnceLock<u32> = OnceLock::new();
    let random = u32::from_be_bytes(random()?);
    Ok(*OFFSET.get_or_init(|| random))
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], OfferError> {
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
