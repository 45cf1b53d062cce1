//! What a session sends and is told about it: gate, RTP sender, retransmission, RTCP, SRTP, GOP catch-up. No I/O, no clock.

pub(super) mod catch_up;
pub mod gate;
pub mod rtcp;
pub(super) mod rtx;
pub(super) mod sender;
pub mod srtp;
pub(super) mod wallclock;
