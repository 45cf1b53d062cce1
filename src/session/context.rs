//! State that all sessions of the process share: addresses, DTLS certificate, SRTP profile and wall clock.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use str0m::Candidate;
use str0m::config::DtlsCert;
use str0m::crypto::CryptoProvider;
use str0m::net::Protocol;

use crate::base::limits;
use crate::session::media::wallclock::Wallclock;
use crate::session::transport::dtls;
use crate::session::transport::profile::{SrtpChoice, TargetProfile};

/// Configuration of all sessions, fixed at start.
#[derive(Clone, Debug, Default)]
pub struct SessionConfig {
    /// Local addresses that we receive on. str0m uses them as host candidates.
    pub candidates: Vec<SocketAddr>,
    /// Further addresses at which viewers can reach us, for example through a 1:1 NAT. The SDP answer lists them first,
    /// but str0m does not get them.
    pub advertise: Vec<SocketAddr>,
    /// SRTP profile to prefer.
    pub srtp: SrtpChoice,
}

/// Reason why no viewer could connect with a [`SessionConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The configuration has no address to receive on.
    #[error("no usable address to announce to viewers; give one with --udp or --advertise")]
    NoCandidates,
    /// The configuration has more than [`limits::CANDIDATES_MAX`] addresses.
    #[error("{0} addresses to announce to viewers, but at most {max} are possible", max = limits::CANDIDATES_MAX)]
    TooManyCandidates(usize),
    /// Viewers cannot send to this address.
    #[error("{0} cannot be announced to viewers")]
    Unusable(SocketAddr),
}

/// Shared state of all sessions of the process. Contexts made by [`SessionContext::with_candidates`] differ only in
/// their addresses.
#[derive(Clone, Debug)]
pub struct SessionContext {
    /// Local candidates that every session adds to str0m.
    pub(super) candidates: Vec<Candidate>,
    /// Addresses that the SDP answer lists, `advertise` first.
    pub(super) announced: Vec<SocketAddr>,
    advertise: Vec<SocketAddr>,
    /// True if viewers can also connect over TCP, at the same addresses and ports.
    pub(super) has_tcp: bool,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) wallclock: Wallclock,
    srtp: SrtpChoice,
    target_profile: Arc<OnceLock<TargetProfile>>,
    certificate: Arc<OnceLock<Option<DtlsCert>>>,
}

impl SessionContext {
    /// Checks the configuration and creates the context. A background thread generates the certificate and measures the
    /// speed of the ciphers, so start-up does not wait for either. An offer that arrives before they are ready waits
    /// for that thread.
    ///
    /// # Errors
    /// Returns an error if the configuration has no address to receive on, too many addresses, or an unusable address.
    pub fn new(config: SessionConfig) -> Result<Arc<Self>, ContextError> {
        let SessionConfig { candidates, advertise, srtp } = config;
        let context = Self {
            candidates: Vec::new(),
            announced: Vec::new(),
            advertise,
            has_tcp: false,
            provider: Arc::new(dtls::provider()),
            wallclock: Wallclock::read(),
            srtp,
            target_profile: Arc::default(),
            certificate: Arc::default(),
        };
        let context = context.with_candidates(&candidates)?;
        let prepared = Arc::clone(&context);
        // The result is ignored: if the thread cannot start, the first offer does the preparation instead.
        let _ = std::thread::Builder::new()
            .name("session-prepare".into())
            .spawn(move || prepared.join_preparation());
        Ok(context)
    }

    /// Returns a context for the sessions of the next offers, because the addresses of this machine have changed.
    ///
    /// # Errors
    /// Returns an error if there is no address, if there are too many, or if one is unusable.
    pub fn with_candidates(&self, candidates: &[SocketAddr]) -> Result<Arc<Self>, ContextError> {
        let announced: Vec<_> = self.advertise.iter().chain(candidates).copied().collect();
        if candidates.is_empty() {
            return Err(ContextError::NoCandidates);
        }
        if announced.len() > limits::CANDIDATES_MAX {
            return Err(ContextError::TooManyCandidates(announced.len()));
        }
        let usable = |address: &SocketAddr| {
            Candidate::host(*address, Protocol::Udp).map_err(|_| ContextError::Unusable(*address))
        };
        announced.iter().try_for_each(|address| usable(address).map(drop))?;
        let candidates = candidates.iter().map(usable).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { candidates, announced, ..self.clone() }))
    }

    /// Returns a context for sessions whose answers also list TCP candidates (RFC 6544).
    #[must_use]
    pub fn with_tcp(&self) -> Arc<Self> {
        Arc::new(Self { has_tcp: true, ..self.clone() })
    }

    /// Prepares the SRTP profile and the certificate, or waits until the background thread has done so. Must be called
    /// before exit, because aws-lc aborts if the process exits while the certificate is being generated.
    pub fn join_preparation(&self) {
        self.target_profile();
        self.certificate();
    }

    /// Returns the addresses that SDP answers list.
    #[must_use]
    pub fn announced(&self) -> &[SocketAddr] {
        &self.announced
    }

    /// Returns the name of the preferred SRTP profile. The profile that a viewer has negotiated is in its
    /// [`ViewerStatus`](crate::metrics::status::ViewerStatus).
    pub fn chosen_profile(&self) -> &'static str {
        self.target_profile().name()
    }

    pub(super) fn target_profile(&self) -> TargetProfile {
        *self.target_profile.get_or_init(|| TargetProfile::choose(self.srtp))
    }

    pub(super) fn certificate(&self) -> Option<&DtlsCert> {
        self.certificate.get_or_init(|| self.provider.dtls_provider.generate_certificate()).as_ref()
    }
}
