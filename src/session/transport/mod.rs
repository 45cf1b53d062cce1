//! How a session is set up and kept: SDP, ICE, DTLS and the keys it yields. No I/O, no clock.

pub(super) mod accept;
pub(super) mod crypto;
pub(super) mod profile;
pub(super) mod signaling;
pub(super) mod stun;
