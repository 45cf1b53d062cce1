//! DTLS endpoints (dimpl) behind str0m's provider traits. All of them share one configuration.
//!
//! The keys of a handshake go to the session through a [`DtlsLink`], never to str0m: SRTP is `media/srtp.rs`, and
//! each key has one owner.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use str0m::config::KeyingMaterial;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, ProtocolVersion,
    SrtpProfile,
};
use str0m::crypto::{CryptoError, CryptoProvider};

use crate::base::limits;

/// Returns the provider of every session: our DTLS, the rest from str0m.
pub(in crate::session) fn provider() -> CryptoProvider {
    CryptoProvider { dtls_provider: &SharedDtls, ..str0m::crypto::from_feature_flags() }
}

// ---- the link between a session and its endpoint -----------------------------------------------------

/// Result of a finished handshake.
pub(in crate::session) struct NegotiatedKeys {
    pub(in crate::session) profile: SrtpProfile,
    pub(in crate::session) material: KeyingMaterial,
    /// We are the DTLS client.
    pub(in crate::session) is_client: bool,
}

/// Carries what str0m does not pass through: the time to the endpoint, the keys back. Owned by both sides.
#[derive(Clone, Default)]
pub(in crate::session) struct DtlsLink(Arc<Mutex<LinkState>>);

#[derive(Default)]
struct LinkState {
    now: Option<Instant>,
    keys: Option<NegotiatedKeys>,
}

impl DtlsLink {
    /// Sets the arrival time of the next datagram, because str0m passes a datagram to DTLS without it. Otherwise the
    /// flight that answers would count as sent at the last timeout, and would be retransmitted within milliseconds.
    pub(super) fn set_now(&self, now: Instant) {
        self.state().now = Some(now);
    }

    /// Takes the keys; `None` until the handshake has negotiated SRTP.
    pub(in crate::session) fn take_keys(&self) -> Option<NegotiatedKeys> {
        self.state().keys.take()
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// Link of the next endpoint made on this thread. str0m calls [`DtlsProvider::new_dtls`] itself, passes no
    /// context through, and takes the provider as `&'static`, so a provider for each session would leak.
    static NEXT_LINK: Cell<Option<DtlsLink>> = const { Cell::new(None) };
}

/// Runs `build`, which makes one DTLS endpoint on this thread, and returns that endpoint's link.
pub(super) fn with_link<T>(build: impl FnOnce() -> T) -> (T, DtlsLink) {
    let link = DtlsLink::default();
    NEXT_LINK.set(Some(link.clone()));
    let built = build();
    NEXT_LINK.set(None);
    (built, link)
}

// ---- provider ----------------------------------------------------------------------------------------

/// Makes DTLS endpoints that share one configuration: building one takes most of a session's set-up time.
#[derive(Debug)]
struct SharedDtls;

impl SharedDtls {
    /// Returns the shared configuration; the first call decides the MTU, which is the same for all sessions.
    fn config(mtu: usize) -> Result<Arc<dimpl::Config>, CryptoError> {
        static SHARED: OnceLock<Arc<dimpl::Config>> = OnceLock::new();
        if let Some(config) = SHARED.get() {
            return Ok(Arc::clone(config));
        }
        let config = dimpl::Config::builder()
            .mtu(mtu)
            .use_server_cookie(false) // ICE has proved that the peer receives at its address
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

/// One DTLS endpoint. str0m polls it before every datagram it sends, so the last idle answer is cached: polling dimpl
/// each time took 2 to 3 % of the CPU.
struct Endpoint {
    inner: dimpl::Dtls,
    /// Deadline that ended the last poll; `None` after any input.
    idle_until: Option<Instant>,
    link: DtlsLink,
}

impl Endpoint {
    /// Returns dimpl's endpoint for an input, and drops the cached idle answer.
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
        if let Some(now) = now {
            dtls.handle_timeout(now)?;
        }
        dtls.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buffer: &'a mut [u8]) -> DtlsOutput<'a> {
        if let Some(deadline) = self.idle_until {
            return DtlsOutput::Timeout(deadline);
        }
        // An output is kept as its range in `buffer`: a reference would borrow `buffer` beyond the next poll.
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
                DtlsOutput::PeerCert(bytes) => break (DtlsOutput::PeerCert, range_of(bytes)),
                DtlsOutput::ApplicationData(bytes) => break (DtlsOutput::ApplicationData, range_of(bytes)),
                DtlsOutput::Timeout(deadline) => {
                    self.idle_until = Some(deadline);
                    return DtlsOutput::Timeout(deadline);
                }
                DtlsOutput::Connected => return DtlsOutput::Connected,
                DtlsOutput::CloseNotify => return DtlsOutput::CloseNotify,
                DtlsOutput::BufferTooSmall { needed } => return DtlsOutput::BufferTooSmall { needed },
                // Outputs that a later dimpl may add are not needed.
                _ => {}
            }
        };
        let buffer: &'a [u8] = buffer;
        wrap(buffer.get(range).unwrap_or_default())
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.for_input().handle_timeout(now)
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
