//! RTP headers (RFC 3550 section 5.1) with header extensions (RFC 8285) of one stream.

use crate::base::limits;
use crate::session::media::stream::{Extensions, StreamParameters};

/// Header without extensions.
pub(super) const FIXED_BYTES: usize = 12;

/// Header with all extensions.
const HEADER_BYTES_MAX: usize = FIXED_BYTES + limits::RTP_EXTENSIONS_BYTES_MAX; // local bound

/// The two headers of a unit's packets. Only the last packet carries the extensions, which saves bytes in all others.
/// Receivers keep the last playout delay and mid until they change. They extrapolate the capture time along the RTP
/// time (abs-capture-time section 4).
pub(super) struct UnitHeaders {
    plain: Header,
    extended: Header,
}

impl UnitHeaders {
    pub(super) fn new(stream: &StreamParameters, rtp_time: u32, captured_ntp: u64) -> UnitHeaders {
        let extended = Header::new(stream, rtp_time, captured_ntp);
        let mut plain = Header { bytes: extended.bytes, length: FIXED_BYTES };
        plain.set(0, &[0x80]);
        UnitHeaders { plain, extended }
    }

    /// Returns the header for a packet. The extensions are left out if the last packet has no room for them; the
    /// packetizer leaves that room when it fragments a slice.
    pub(super) fn for_packet(&mut self, payload: &[u8], is_last: bool) -> &mut Header {
        let extended_bytes = self.extended.length - FIXED_BYTES + payload.len();
        if is_last && extended_bytes <= limits::RTP_PAYLOAD_BYTES_MAX {
            &mut self.extended
        } else {
            &mut self.plain
        }
    }
}

/// One RTP header; marker, payload type and sequence number are set for each packet.
pub(super) struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    length: usize,
}

impl Header {
    /// Writes the negotiated extensions in the one-byte form (RFC 8285 section 4.2): mid, a playout delay of 0, and the
    /// capture time unless it is 0.
    fn new(stream: &StreamParameters, rtp_time: u32, captured_ntp: u64) -> Header {
        let mut header = Header { bytes: [0; HEADER_BYTES_MAX], length: 0 };
        header.put(&[0x80, 0, 0, 0]);
        header.put(&rtp_time.to_be_bytes());
        header.put(&stream.ssrc.to_be_bytes());
        header.put(&[0xBE, 0xDE, 0, 0]);
        let Extensions { mid, playout_delay, capture_time } = stream.extensions;
        header.put_extension(mid, stream.mid.as_bytes());
        header.put_extension(playout_delay, &[0; 3]);
        if captured_ntp != 0 {
            let mut value = [0; 16]; // the second half is the clock offset: 0, our clock is the camera's
            let (time, _) = value.split_at_mut(8);
            time.copy_from_slice(&captured_ntp.to_be_bytes());
            header.put_extension(capture_time, &value);
        }
        let words = header.length.saturating_sub(FIXED_BYTES + 4).div_ceil(4);
        if words == 0 {
            header.length = FIXED_BYTES;
        } else {
            header.length = FIXED_BYTES + 4 + 4 * words; // zeros are padding
            header.set(0, &[0x90]);
            header.set(FIXED_BYTES + 3, &[u8::try_from(words).unwrap_or_default()]);
        }
        header
    }

    fn put_extension(&mut self, id: Option<u8>, value: &[u8]) {
        let Some(id) = id.filter(|id| (1..=14).contains(id)) else { return };
        let Some(length) = value.len().checked_sub(1).and_then(|length| u8::try_from(length).ok()) else {
            return;
        };
        if length < 16 {
            self.put(&[id << 4 | length]);
            self.put(value);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.set(self.length, bytes);
        self.length += bytes.len();
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        match self.bytes.get_mut(at..at + bytes.len()) {
            Some(room) => room.copy_from_slice(bytes),
            None => debug_assert!(false, "HEADER_BYTES_MAX is the sum of all parts"),
        }
    }

    pub(super) fn set_packet(&mut self, payload_type: u8, is_last: bool, sequence: u16) {
        let [high, low] = sequence.to_be_bytes();
        self.set(1, &[payload_type & 0x7F | if is_last { 0x80 } else { 0 }, high, low]);
    }

    pub(super) fn set_ssrc(&mut self, ssrc: u32) {
        self.set(8, &ssrc.to_be_bytes());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(extensions: Extensions) -> StreamParameters {
        StreamParameters { extensions, ..StreamParameters::for_tests() }
    }

    #[test]
    fn header_without_extensions_is_the_fixed_part() {
        let mut header = Header::new(&stream(Extensions::default()), 0x0a0b_0c0d, 5);
        header.set_packet(96, true, 0xfffe);
        assert_eq!(header.bytes(), [0x80, 0xe0, 0xff, 0xfe, 0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4]);
    }

    #[test]
    fn extensions_have_the_one_byte_form_and_are_padded_to_a_word() {
        let all = Extensions { mid: Some(4), playout_delay: Some(5), capture_time: Some(14) };
        let mut header = Header::new(&stream(all), 0, 0);
        header.set_packet(96, false, 1);
        assert_eq!(header.bytes()[..4], [0x90, 0x60, 0, 1]);
        assert_eq!(header.bytes()[12..], [0xbe, 0xde, 0, 2, 0x40, b'0', 0x52, 0, 0, 0, 0, 0]);
        let long = StreamParameters { mid: "m".repeat(16), ..stream(all) };
        let header = Header::new(&long, 0, 0x1122_3344_5566_7788);
        assert_eq!(header.bytes().len(), HEADER_BYTES_MAX);
        assert_eq!(header.bytes()[37..47], [0xef, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0]);
    }
}
