//! DTLS endpoints (dimpl) behind str0m's provider traits. All endpoints share one configuration.
//!
//! The keys of a handshake go to the session through a [`DtlsLink`], and never to str0m. SRTP is done in
//! `media/srtp.rs`, so each key has only one owner.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use dimpl::{CryptoError as CryptoFailure, SecurityError};
use str0m::RtcError;
use str0m::config::KeyingMaterial;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, ProtocolVersion,
    SrtpProfile,
};
use str0m::crypto::{CryptoError, CryptoProvider};
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;

use crate::base::limits;
use crate::session::close::{CloseReason, alert};

/// Returns the crypto provider of every session: DTLS is from this file, everything else is from str0m.
pub(in crate::session) fn provider() -> CryptoProvider {
    CryptoProvider { dtls_provider: &SharedDtls, ..str0m::crypto::from_feature_flags() }
}

// ---- the link between a session and its endpoint -----------------------------------------------------

/// Result of a finished handshake.
pub(in crate::session) struct NegotiatedKeys {
    pub(in crate::session) profile: SrtpProfile,
    pub(in crate::session) material: KeyingMaterial,
    /// True if we are the DTLS client.
    pub(in crate::session) is_client: bool,
}

/// Passes the time to the endpoint and the keys back to the session, because str0m passes neither. Both sides hold a
/// clone.
#[derive(Clone, Default)]
pub(in crate::session) struct DtlsLink(Arc<Mutex<LinkState>>);

#[derive(Default)]
struct LinkState {
    now: Option<Instant>,
    keys: Option<NegotiatedKeys>,
    /// True if the handshake has finished.
    is_connected: bool,
    /// True if the viewer has sent a certificate.
    has_certificate: bool,
    failure: Option<Failure>,
}

/// Why DTLS has failed.
struct Failure {
    reason: CloseReason,
    /// When the session must end.
    at: Instant,
    /// The error, for the log.
    error: String,
}

impl DtlsLink {
    /// Sets the arrival time of the next datagram, because str0m passes datagrams to DTLS without a time. Without this
    /// call the answering flight would count as sent at the last timeout, and would be retransmitted within
    /// milliseconds.
    pub(super) fn set_now(&self, now: Instant) {
        self.state().now = Some(now);
    }

    /// Takes the keys. Returns `None` until the handshake has negotiated SRTP.
    pub(in crate::session) fn take_keys(&self) -> Option<NegotiatedKeys> {
        self.state().keys.take()
    }

    /// Returns the reason if DTLS has failed at `now`.
    pub(in crate::session) fn failure(&self, now: Instant) -> Option<CloseReason> {
        self.state().failure.as_ref().filter(|failure| failure.at <= now).map(|failure| failure.reason)
    }

    /// Returns the time at which [`DtlsLink::failure`] begins to return a reason.
    pub(in crate::session) fn failed_at(&self) -> Option<Instant> {
        self.state().failure.as_ref().map(|failure| failure.at)
    }

    /// Returns the error that was noted first, if there was one.
    pub(in crate::session) fn error(&self) -> Option<String> {
        self.state().failure.as_ref().map(|failure| failure.error.clone())
    }

    /// Notes an error of str0m, which ends the session. Returns the reason of the first error.
    pub(in crate::session) fn note_error(&self, now: Instant, error: &RtcError) -> CloseReason {
        let reason = match error {
            // str0m has no error of its own for a certificate with another fingerprint than that of the offer.
            RtcError::RemoteSdp(text) if text.contains("fingerprint") => CloseReason::FingerprintMismatch,
            _ => CloseReason::Failed,
        };
        let mut state = self.state();
        let noted =
            state.failure.get_or_insert_with(|| Failure { reason, at: now, error: error.to_string() });
        noted.reason
    }

    /// Notes an error of the endpoint if the session must end because of it.
    fn note(&self, error: &DtlsImplError, now: Option<Instant>) {
        let mut state = self.state();
        let Some(now) = now.or(state.now).filter(|_| state.failure.is_none()) else { return };
        let is_alert = matches!(error, DtlsImplError::SecurityError(SecurityError::FatalAlert { .. }));
        // After the handshake an alert is authentic. Until then anyone who knows the addresses can forge it.
        let at = if is_alert && !state.is_connected { now + limits::ALERT_GRACE } else { now };
        if let Some(reason) =
            reason_of(error, state.has_certificate).filter(|_| is_alert || !state.is_connected)
        {
            state.failure = Some(Failure { reason, at, error: error.to_string() });
        }
    }

    /// Notes the viewer's certificate. dimpl verifies only ECDSA signatures.
    fn note_certificate(&self, der: &[u8]) {
        let mut state = self.state();
        state.has_certificate = true;
        if let (false, Some(at)) = (is_ecdsa(der), state.now) {
            let error = "the public key of the certificate is not an ECDSA key".to_owned();
            state.failure = Some(Failure { reason: CloseReason::UnsupportedCertificate, at, error });
        }
    }

    fn note_connected(&self) {
        let mut state = self.state();
        state.is_connected = true;
        // The handshake succeeded, so an earlier alert was forged.
        state.failure = None;
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the reason that an error of the handshake gives for the end of the session. Returns `None` if the handshake
/// may go on.
fn reason_of(error: &DtlsImplError, has_certificate: bool) -> Option<CloseReason> {
    use SecurityError as S;
    Some(match error {
        // A viewer whose certificate has an RSA key finds no signature algorithm in our request for a certificate, or
        // no cipher suite in our ClientHello. It answers with one of these alerts instead of a certificate.
        DtlsImplError::SecurityError(S::FatalAlert { description })
            if !has_certificate
                && matches!(*description, alert::HANDSHAKE_FAILURE | alert::UNSUPPORTED_CERTIFICATE) =>
        {
            CloseReason::UnsupportedCertificate
        }
        DtlsImplError::SecurityError(S::FatalAlert { description }) => CloseReason::PeerAlert(*description),
        DtlsImplError::CertificateError(_)
        | DtlsImplError::SecurityError(
            S::UnsupportedSignatureScheme(_)
            | S::SignatureAlgorithmMismatch { .. }
            | S::SignatureSchemeCertificateCurveMismatch { .. },
        )
        | DtlsImplError::CryptoError(
            CryptoFailure::UnsupportedSignatureAlgorithm(_)
            | CryptoFailure::UnsupportedSignaturePair { .. }
            | CryptoFailure::UnsupportedSignatureVerification { .. }
            | CryptoFailure::UnsupportedPublicKeyAlgorithm
            | CryptoFailure::UnsupportedEcCurve
            | CryptoFailure::MissingEcCurveParameter
            | CryptoFailure::InvalidEcCurveParameter
            | CryptoFailure::SignatureAlgorithmMismatch { .. },
        ) => CloseReason::UnsupportedCertificate,
        DtlsImplError::SecurityError(
            S::ServerFinishedVerificationFailed | S::ClientFinishedVerificationFailed,
        ) => CloseReason::Failed,
        DtlsImplError::SecurityError(_) => CloseReason::IncompatibleDtls,
        DtlsImplError::Timeout(_) => CloseReason::HandshakeTimeout,
        // Too many datagrams for the queues: the retransmissions may still complete the handshake.
        DtlsImplError::ReceiveQueueFull
        | DtlsImplError::TransmitQueueFull
        | DtlsImplError::TransmitHistoryFull
        | DtlsImplError::TooManyClientHelloFragments
        | DtlsImplError::ConnectionClosed => return None,
        _ => CloseReason::Failed,
    })
}

/// Returns true if a certificate has an elliptic-curve key, or if it cannot be parsed: then DTLS reports the error.
fn is_ecdsa(der: &[u8]) -> bool {
    const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    x509_cert::Certificate::from_der(der).map_or(true, |certificate| {
        certificate.tbs_certificate().subject_public_key_info().algorithm.oid == EC_PUBLIC_KEY
    })
}

thread_local! {
    /// Link for the next endpoint that is created on this thread. str0m itself calls [`DtlsProvider::new_dtls`] and
    /// passes no context to it. It takes the provider as `&'static`, so a separate provider for each session would leak
    /// memory.
    static NEXT_LINK: Cell<Option<DtlsLink>> = const { Cell::new(None) };
}

/// Runs `build`, which creates one DTLS endpoint on this thread. Returns the result of `build` and the endpoint's link.
pub(super) fn with_link<T>(build: impl FnOnce() -> T) -> (T, DtlsLink) {
    let link = DtlsLink::default();
    NEXT_LINK.set(Some(link.clone()));
    let built = build();
    NEXT_LINK.set(None);
    (built, link)
}

// ---- provider ----------------------------------------------------------------------------------------

/// Creates DTLS endpoints that share one configuration. Building a configuration for each session would take most of
/// the session's set-up time.
#[derive(Debug)]
struct SharedDtls;

impl SharedDtls {
    /// Returns the shared configuration. The first call sets the MTU, which is the same for all sessions.
    fn config(mtu: usize) -> Result<Arc<dimpl::Config>, CryptoError> {
        static SHARED: OnceLock<Arc<dimpl::Config>> = OnceLock::new();
        if let Some(config) = SHARED.get() {
            return Ok(Arc::clone(config));
        }
        let config = dimpl::Config::builder()
            .mtu(mtu)
            .use_server_cookie(false) // ICE has already proved that the peer receives at its address
            .flight_start_rto(limits::DTLS_FLIGHT_RETRANSMIT)
            .flight_retries(limits::DTLS_FLIGHT_RETRIES)
            .handshake_timeout(limits::HANDSHAKE_TIMEOUT)
            .build()
            .map_err(|error| CryptoError::Other(format!("DTLS configuration: {error}")))?;
        Ok(Arc::clone(SHARED.get_or_init(|| Arc::new(config))))
    }
}

impl DtlsProvider for SharedDtls {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        dimpl::certificate::generate_self_signed_certificate().ok()
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let config = Self::config(mtu.unwrap_or(str0m::DATAGRAM_MTU_TARGET))?;
        let inner = match version {
            DtlsVersion::Dtls12 => dimpl::Dtls::new_12(config, certificate.clone(), now),
            DtlsVersion::Dtls13 => dimpl::Dtls::new_13(config, certificate.clone(), now),
            DtlsVersion::Auto => dimpl::Dtls::new_auto(config, certificate.clone(), now),
            _ => return Err(CryptoError::Other(format!("{version} is not supported"))),
        };
        Ok(Box::new(Endpoint { inner, idle_until: None, link: NEXT_LINK.take().unwrap_or_default() }))
    }
}

// ---- endpoint ----------------------------------------------------------------------------------------

/// One DTLS endpoint. str0m polls it before every datagram that it sends, so the answer of an idle endpoint is cached:
/// polling dimpl each time took 2 to 3 % of the CPU.
struct Endpoint {
    inner: dimpl::Dtls,
    /// Deadline that the last poll returned because the endpoint was idle; `None` after any input.
    idle_until: Option<Instant>,
    link: DtlsLink,
}

impl Endpoint {
    /// Drops the cached idle answer, because an input follows, and returns dimpl's endpoint.
    fn for_input(&mut self) -> &mut dimpl::Dtls {
        self.idle_until = None;
        &mut self.inner
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endpoint")
    }
}

impl DtlsInstance for Endpoint {
    fn set_active(&mut self, active: bool) {
        self.for_input().set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        let now = self.link.state().now;
        let dtls = self.for_input();
        let result = match now {
            Some(now) => dtls.handle_timeout(now).and_then(|()| dtls.handle_packet(packet)),
            None => dtls.handle_packet(packet),
        };
        result.inspect_err(|error| self.link.note(error, now))
    }

    fn poll_output<'a>(&mut self, buffer: &'a mut [u8]) -> DtlsOutput<'a> {
        if let Some(deadline) = self.idle_until {
            return DtlsOutput::Timeout(deadline);
        }
        // An output is stored as its range in `buffer`: a reference would keep `buffer` borrowed during the next poll.
        let start = buffer.as_ptr().addr();
        let range_of = |bytes: &[u8]| {
            let at = bytes.as_ptr().addr().saturating_sub(start);
            at..at + bytes.len()
        };
        let (wrap, range): (fn(&'a [u8]) -> DtlsOutput<'a>, _) = loop {
            match self.inner.poll_output(&mut *buffer) {
                DtlsOutput::KeyingMaterial(material, profile) => {
                    let is_client = self.inner.is_active();
                    self.link.state().keys = Some(NegotiatedKeys { profile, material, is_client });
                }
                DtlsOutput::Packet(bytes) => break (DtlsOutput::Packet, range_of(bytes)),
                DtlsOutput::PeerCert(bytes) => {
                    self.link.note_certificate(bytes);
                    break (DtlsOutput::PeerCert, range_of(bytes));
                }
                DtlsOutput::ApplicationData(bytes) => break (DtlsOutput::ApplicationData, range_of(bytes)),
                DtlsOutput::Timeout(deadline) => {
                    self.idle_until = Some(deadline);
                    return DtlsOutput::Timeout(deadline);
                }
                DtlsOutput::Connected => {
                    self.link.note_connected();
                    return DtlsOutput::Connected;
                }
                DtlsOutput::CloseNotify => return DtlsOutput::CloseNotify,
                DtlsOutput::BufferTooSmall { needed } => return DtlsOutput::BufferTooSmall { needed },
                // A later version of dimpl may add outputs. They are ignored.
                _ => {}
            }
        };
        let buffer: &'a [u8] = buffer;
        wrap(buffer.get(range).unwrap_or_default())
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.for_input().handle_timeout(now).inspect_err(|error| self.link.note(error, Some(now)))
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.for_input().send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.inner.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.inner.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.inner.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.for_input().close()
    }
}
