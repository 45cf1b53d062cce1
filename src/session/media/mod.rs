//! The media stream of one viewer: gate, GOP catch-up, RTP sender, RTX, RTCP, SRTP. The stream does no I/O and gets the
//! time as an argument. ICE and DTLS are handled in `transport`.

pub mod arrivals;
pub(super) mod catch_up;
pub mod gate;
mod link;
mod pacer;
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
    /// Returns the total size of all payloads in bytes.
    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(|payloads| payloads.bytes()).sum()
    }
}

/// An access unit without its payloads.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitInfo {
    /// Sequence number in the ring; it wraps around.
    pub number: u32,
    /// True if the unit is an IDR; it then carries its parameter sets.
    pub is_idr: bool,
    /// True if decoding can start at this unit although it is not an IDR. Browsers start only at an IDR.
    pub is_recovery_point: bool,
    /// True if other units may refer to this unit.
    pub is_reference: bool,
    /// True if units were lost before this unit. Unless this unit is an IDR, the viewer then drops to the next IDR.
    pub gap_before: bool,
    /// Capture time on CLOCK_MONOTONIC in 90 kHz ticks. It increases from unit to unit and does not wrap at 32 bits. A replayed unit gets
    /// a time just before that of the newest live unit, so that the viewer plays it at once.
    pub rtp_time_90k: u64,
    /// Capture time on CLOCK_REALTIME in ns; `None` if the camera's timestamp is not usable.
    pub captured_at_ns: Option<i64>,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC in ns, with which `captured_at_ns` was converted. Sender reports use the
    /// same offset, so that both follow when the system clock is set. `None` keeps the offset of the unit before.
    pub realtime_offset_ns: Option<i64>,
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
    /// Sequence number of the first RTP packet. It is below 2^15, so that no receiver misjudges the rollover counter
    /// (RFC 3711 section 3.3.1).
    pub(super) first_sequence: u16,
    pub(super) first_rtx_sequence: u16,
    /// Offset that is added to every RTP time, the same for all sessions of this process.
    pub(super) rtp_offset: u32,
    /// Value of the playout-delay extension: shortest and longest delay, 12 bits each, in units of 10 ms. Both are 0
    /// unless the viewer wants to hold pictures back.
    pub(super) playout_delay: [u8; 3],
}

impl StreamParameters {
    /// Sets what offer and answer have agreed on. `rtx` is the payload type of retransmissions.
    pub(super) fn with_formats(self, payload_type: u8, rtx: Option<u8>, extensions: Extensions) -> Self {
        let rtx = rtx.map(|payload_type| (self.ssrc + 1, payload_type));
        Self { payload_type, rtx, extensions, ..self }
    }
}

/// Ids (1 to 14, RFC 8285 one-byte form) of the header extensions we can send; `None` if not negotiated.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) mid: Option<u8>,
    pub(super) playout_delay: Option<u8>,
    pub(super) capture_time: Option<u8>,
    /// Transport-wide sequence number.
    pub(super) transport: Option<u8>,
}
