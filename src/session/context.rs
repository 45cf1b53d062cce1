//! What all sessions of the process share: addresses, DTLS certificate, SRTP profile, the pairing of both clocks.

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
    /// Local host candidates: the addresses we receive on.
    pub candidates: Vec<SocketAddr>,
    /// Further addresses under which a viewer reaches us (NAT 1:1). The answer lists them first; str0m never sees them.
    pub advertise: Vec<SocketAddr>,
    /// Which SRTP profile to prefer.
    pub srtp: SrtpChoice,
}

/// The configuration cannot serve any viewer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// No address to receive on.
    #[error("no usable address to announce to viewers; give one with --udp or --advertise")]
    NoCandidates,
    /// More than [`limits::CANDIDATES_MAX`] addresses.
    #[error("{0} addresses to announce to viewers, but at most {max} are possible", max = limits::CANDIDATES_MAX)]
    TooManyCandidates(usize),
    /// Viewers cannot send to this address.
    #[error("{0} cannot be announced to viewers")]
    Unusable(SocketAddr),
}

/// Shared state of all sessions of the process.
#[derive(Debug)]
pub struct SessionContext {
    /// Local candidates, as str0m knows them.
    pub(super) candidates: Vec<Candidate>,
    /// Addresses as announced in the answer: `advertise` first.
    pub(super) announced: Vec<SocketAddr>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) wallclock: Wallclock,
    srtp: SrtpChoice,
    target_profile: OnceLock<TargetProfile>,
    certificate: OnceLock<Option<DtlsCert>>,
}

impl SessionContext {
    /// Checks the configuration. A background thread generates the certificate and measures the ciphers, so that
    /// start-up does not wait. The first offer waits for that thread if it has to.
    ///
    /// # Errors
    /// No usable candidate, or too many.
    pub fn new(config: SessionConfig) -> Result<Arc<Self>, ContextError> {
        let SessionConfig { candidates, advertise, srtp } = config;
        let announced: Vec<_> = advertise.into_iter().chain(candidates.iter().copied()).collect();
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
        let context = Arc::new(Self {
            candidates,
            announced,
            provider: Arc::new(dtls::provider()),
            wallclock: Wallclock::read(),
            srtp,
            target_profile: OnceLock::new(),
            certificate: OnceLock::new(),
        });
        let prepared = Arc::clone(&context);
        // If the thread cannot start, the first offer does the preparation.
        let _ = std::thread::Builder::new()
            .name("session-prepare".into())
            .spawn(move || prepared.join_preparation());
        Ok(context)
    }

    /// Joins the background certificate generation before exit; aws-lc aborts otherwise.
    pub fn join_preparation(&self) {
        self.target_profile();
        self.certificate();
    }

    /// Returns the name of the preferred SRTP profile. [`ViewerStatus`](crate::metrics::status::ViewerStatus) has the negotiated one.
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
