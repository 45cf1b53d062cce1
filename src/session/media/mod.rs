//! What a session sends and is told about it: gate, RTP sender, retransmission, RTCP, SRTP, GOP catch-up. No I/O, no clock.

pub mod gate;
pub(super) mod replay;
pub mod rtcp;
pub(super) mod rtx;
pub(super) mod sender;
pub mod srtp;
pub(super) mod wallclock;
