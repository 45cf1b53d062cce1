//! Properties of one media stream, fixed by the offer and answer.

/// Negotiated and random properties of the stream.
#[derive(Clone, Debug)]
pub(in crate::session) struct StreamParameters {
    pub(in crate::session) ssrc: u32,
    pub(in crate::session) payload_type: u8,
    /// SSRC and payload type of retransmissions, if negotiated.
    pub(in crate::session) rtx: Option<(u32, u8)>,
    pub(in crate::session) extensions: Extensions,
    pub(in crate::session) mid: String,
    pub(in crate::session) cname: String,
    /// Below 2^15, so that no receiver misjudges the rollover counter (RFC 3711 section 3.3.1).
    pub(in crate::session) first_sequence: u16,
    pub(in crate::session) first_rtx_sequence: u16,
    /// Random offset of RTP times.
    pub(in crate::session) rtp_offset: u32,
}

/// Ids (1 to 14, RFC 8285 one-byte form) of the header extensions we can send; `None` if not negotiated.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::session) struct Extensions {
    pub(in crate::session) mid: Option<u8>,
    pub(in crate::session) playout_delay: Option<u8>,
    pub(in crate::session) capture_time: Option<u8>,
}

#[cfg(test)]
impl StreamParameters {
    pub(super) fn for_tests() -> StreamParameters {
        StreamParameters {
            ssrc: 0x0102_0304,
            payload_type: 96,
            rtx: Some((0x0102_0305, 97)),
            extensions: Extensions::default(),
            mid: "0".to_owned(),
            cname: "camera".to_owned(),
            first_sequence: 7,
            first_rtx_sequence: 9,
            rtp_offset: 0,
        }
    }
}
