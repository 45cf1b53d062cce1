//! The media stream of one viewer: gate, GOP catch-up, RTP sender, RTX, RTCP, SRTP. No I/O, no clock; ICE and DTLS are
//! not handled here.

pub(super) mod catch_up;
pub mod gate;
pub mod rtcp;
mod rtx;
pub(super) mod sender;
pub mod srtp;
pub(super) mod wallclock;

use std::sync::Arc;

use crate::h264::Payloads;

/// One access unit as RTP payloads, shared by all viewers of a worker.
#[derive(Copy, Clone, Debug)]
pub struct PacketizedUnit<'a> {
    /// Everything about the unit except its payloads.
    pub info: UnitInfo,
    /// RTP payloads in order, each at most [`RTP_PAYLOAD_BYTES_MAX`] bytes.
    ///
    /// [`RTP_PAYLOAD_BYTES_MAX`]: crate::base::limits::RTP_PAYLOAD_BYTES_MAX
    pub payloads: &'a [Arc<Payloads>],
}

impl PacketizedUnit<'_> {
    /// Returns the bytes of all payloads.
    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(|payloads| payloads.bytes()).sum()
    }
}

/// An access unit without its payloads.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitInfo {
    /// Sequence number in the ring, wrapping.
    pub number: u32,
    /// The unit is an IDR and carries its parameter sets.
    pub is_idr: bool,
    /// Other units may need this one.
    pub is_reference: bool,
    /// Units were lost before this one: unless it is an IDR, the viewer drops to the next IDR.
    pub gap_before: bool,
    /// Capture time in 90 kHz, extended beyond 32 bits, monotonic. A replayed unit has a time just before the newest live
    /// unit, so that the viewer plays it at once.
    pub rtp_time_90k: u64,
    /// Capture time, CLOCK_REALTIME in ns.
    pub captured_at_ns: Option<i64>,
}

/// Properties of one media stream, fixed by the offer and answer.
#[derive(Clone, Debug)]
pub(super) struct StreamParameters {
    pub(super) ssrc: u32,
    pub(super) payload_type: u8,
    /// SSRC and payload type of retransmissions, if negotiated.
    pub(super) rtx: Option<(u32, u8)>,
    pub(super) extensions: Extensions,
    pub(super) mid: String,
    pub(super) cname: String,
    /// Below 2^15, so that no receiver misjudges the rollover counter (RFC 3711 section 3.3.1).
    pub(super) first_sequence: u16,
    pub(super) first_rtx_sequence: u16,
    /// Random offset of RTP times.
    pub(super) rtp_offset: u32,
}

/// Ids (1 to 14, RFC 8285 one-byte form) of the header extensions we can send; `None` if not negotiated.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) mid: Option<u8>,
    pub(super) playout_delay: Option<u8>,
    pub(super) capture_time: Option<u8>,
}
