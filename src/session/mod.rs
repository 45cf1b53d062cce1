//! SINK: one viewer, sans-I/O. May not touch a socket or read a clock.
//!
//! ```text
//!  offer ─► signaling ─► answer
//!                │
//!  units ─► gate ─► sender (RTP, RTX, reports; srtp, rtcp) ─► sink
//!                      ▲ keys, path                             ▲
//!  datagrams ─► viewer ┴─ str0m (ICE-lite, DTLS; crypto) ───────┘
//! ```
//!
//! The caller feeds a [`Viewer`] with datagrams and timeouts, and after every such call
//! [drains](Viewer::drain) it; access units leave at once.

pub mod media;
mod sink;
mod status;
mod transport;
mod viewer;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use str0m::Candidate;
use str0m::config::DtlsCert;
use str0m::crypto::CryptoProvider;
use str0m::net::Protocol;

use crate::base::limits;
use media::wallclock::Wallclock;
use transport::crypto;
use transport::profile::Aim;

pub use media::catch_up::{CatchUpDecision, CatchUpTime, GopAvailability, IdrReason};
pub use sink::{DatagramSink, Destination};
pub use status::{ViewerState, ViewerStatus};
pub use transport::profile::SrtpChoice;
pub use transport::signaling::OfferError;
pub use transport::stun::stun_ufrag;
pub use viewer::{CloseReason, Output, PacketizedUnit, Viewer};

/// What sessions are told at start.
#[derive(Clone, Debug, Default)]
pub struct SessionConfig {
    /// Local host candidates: the addresses we receive on.
    pub candidates: Vec<SocketAddr>,
    /// Further addresses under which a viewer reaches us (NAT 1:1): announced first, otherwise unknown.
    pub advertise: Vec<SocketAddr>,
    /// Which SRTP profile to aim for.
    pub srtp: SrtpChoice,
}

/// The configuration cannot serve any viewer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// No address to receive on.
    #[error("no usable address to announce to viewers; give one with --udp or --advertise")]
    NoCandidates,
    /// More than [`limits::CANDIDATES_MAX`] addresses.
    #[error("{0} candidates; at most {max} can be announced", max = limits::CANDIDATES_MAX)]
    TooManyCandidates(usize),
    /// An address no viewer could send to.
    #[error("{0} cannot be announced to viewers")]
    Unusable(SocketAddr),
}

/// What all sessions of the process share.
#[derive(Debug)]
pub struct SessionContext {
    candidates: Vec<Candidate>,
    /// Candidates as announced: `advertise` first.
    announced: Vec<SocketAddr>,
    srtp: SrtpChoice,
    provider: Arc<CryptoProvider>,
    aim: OnceLock<Aim>,
    certificate: OnceLock<Option<DtlsCert>>,
    wallclock: Wallclock,
}

impl SessionContext {
    /// Checks the configuration. The certificate is made and the ciphers are measured on a thread of
    /// their own, off the start-up path; the first offer waits for them if it has to.
    ///
    /// # Errors
    /// Without a usable candidate, or with too many.
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
            srtp,
            provider: Arc::new(crypto::provider()),
            aim: OnceLock::new(),
            certificate: OnceLock::new(),
            wallclock: Wallclock::read(),
        });
        let prepared = Arc::clone(&context);
        let prepare = move || {
            prepared.aim();
            prepared.certificate();
        };
        // Without the thread the first offer does it.
        let _ = std::thread::Builder::new().name("session-prepare".into()).spawn(prepare);
        Ok(context)
    }

    /// Joins the background certificate generation before exit; aws-lc aborts otherwise.
    pub fn join_preparation(&self) {
        self.aim();
        self.certificate();
    }

    /// The SRTP profile aimed for. What a viewer got is in its [`ViewerStatus`].
    pub fn chosen_profile(&self) -> &'static str {
        self.aim().name()
    }

    fn aim(&self) -> Aim {
        *self.aim.get_or_init(|| Aim::decide(self.srtp))
    }

    fn certificate(&self) -> Option<&DtlsCert> {
        self.certificate.get_or_init(|| self.provider.dtls_provider.generate_certificate()).as_ref()
    }
}
