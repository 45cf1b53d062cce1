//! SINK: one viewer as a state machine without I/O. This module must not touch a socket. A session never reads a clock;
//! only the context reads clocks, once at start.
//!
//! ```text
//!  offer ─► transport::accept ─► answer
//!
//!  units ─► Viewer ─► media: gate ─► sender (RTP headers, RTX cache, SRTP, RTCP) ─► DatagramSink
//!             ▲         ▲ SRTP keys, selected path                                     ▲
//!  datagrams ─┴─► transport: STUN, ICE, DTLS (str0m, dimpl) ───────────────────────────┘
//! ```
//!
//! The caller passes datagrams and timeouts to a [`Viewer`], and [drains](Viewer::drain) it after each such call.
//! Access units need no drain: their datagrams go to the sink at once.

mod close;
mod context;
pub mod media;
mod status;
mod transport;
mod viewer;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

pub use close::CloseReason;
pub use context::{ContextError, SessionConfig, SessionContext};
pub use media::catch_up::{CatchUpDecision, GopAvailability, GopSize, IdrReason};
pub use media::{PacketizedUnit, UnitInfo};
pub use transport::accept::rtp_offset;
pub use transport::answer_error::AnswerError;
pub use transport::fragment::{FragmentError, IceFragment};
pub use transport::offer_error::OfferError;
pub use transport::profile::SrtpChoice;
pub use transport::publish::PublishOffer;
pub use transport::restart::IceRestart;
pub use transport::stun::stun_ufrag;
pub use viewer::{Output, Viewer};

/// Local source address and remote target of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Local address to send from; `None` leaves the choice to the routing table.
    pub local: Option<IpAddr>,
    /// Address and port of the viewer.
    pub remote: SocketAddr,
    /// Id of the TCP connection; `None` for UDP.
    pub connection: Option<NonZeroU32>,
}

impl Destination {
    /// Returns a destination over UDP.
    #[must_use]
    pub fn udp(local: Option<IpAddr>, remote: SocketAddr) -> Destination {
        Destination { local, remote, connection: None }
    }
}

/// A change of the addresses of a viewer, for the table that finds a session by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// An authentic datagram came from this address. Reported for a new address, when it is proven, and every 2 s.
    InUse {
        /// Address of the viewer.
        remote: SocketAddr,
        /// True if the viewer is known to receive at this address.
        is_proven: bool,
    },
    /// The session has forgotten this address.
    Gone {
        /// Address of the viewer.
        remote: SocketAddr,
    },
}

/// Takes the datagrams of one session, in order. The session encrypts each datagram directly into the sink's send
/// buffer, so no bytes are copied afterwards. The worker's sink is its io_uring driver; the sink of tests is a list.
pub trait DatagramSink {
    /// Reserves a datagram of `bytes` bytes and calls `write`, which must fill all of them. If there is no room, the
    /// datagram is lost as if on the network: `write` is not called, and the sink counts the loss.
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8]));
}
