//! SINK: one viewer as a state machine without I/O. This module must not touch a socket or read a clock.
//!
//! ```text
//!  offer ─► transport::accept ─► answer
//!
//!  units ─► Viewer ─► media: gate ─► sender (RTP headers, RTX cache, SRTP, RTCP) ─► DatagramSink
//!             ▲         ▲ SRTP keys, selected path                                     ▲
//!  datagrams ─┴─► transport: STUN, ICE, DTLS (str0m, dimpl) ───────────────────────────┘
//! ```
//!
//! The caller feeds a [`Viewer`] with datagrams and timeouts, and [drains](Viewer::drain) it after each such call.
//! Access units are sent at once.

mod context;
pub mod media;
mod sink;
mod status;
mod transport;
mod viewer;

pub use context::{ContextError, SessionConfig, SessionContext};
pub use media::catch_up::{CatchUpDecision, GopAvailability, GopSize, IdrReason};
pub use media::{PacketizedUnit, UnitInfo};
pub use sink::{DatagramSink, Destination};
pub use transport::profile::SrtpChoice;
pub use transport::sdp::OfferError;
pub use transport::stun::stun_ufrag;
pub use viewer::{CloseReason, Output, Viewer};
