//! Transport-wide feedback of a load viewer (draft-holmer-rmcat-transport-wide-cc-extensions-01): when the packets with
//! a transport-wide sequence number arrived. Chromium sends it about 16 times a second to a server that marks its
//! packets.

use std::time::{Duration, Instant};

/// URI of the header extension in an SDP.
const URI: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// Interval between two messages.
pub(crate) const INTERVAL: Duration = Duration::from_micros(62_500);

/// Nanoseconds of one tick of the arrival times, and ticks of the reference time.
const TICK_NS: i64 = 250_000;
const TICKS_OF_REFERENCE: i64 = 256;

/// Most packets of a message.
const PACKETS_MAX: usize = 100;

/// The packets that arrived since the latest message.
pub(crate) struct Feedback {
    /// Id of the header extension.
    id: u8,
    /// Numbers and times of arrival in ticks, in the order of their arrival.
    arrived: Vec<(u16, i64)>,
    messages: u8,
    pub(crate) due: Instant,
}

/// Removes the extension and its feedback from an offer.
pub(crate) fn without_feedback(offer: &str) -> String {
    let kept = offer.lines().filter(|line| !line.contains(URI) && !line.ends_with(" transport-cc"));
    kept.flat_map(|line| [line, "\r\n"]).collect()
}

impl Feedback {
    /// Returns `None` if the answer has no such extension.
    pub(crate) fn new(answer: &str, now: Instant) -> Option<Feedback> {
        let extmap = answer.lines().find(|line| line.starts_with("a=extmap:") && line.contains(URI))?;
        let id: String = extmap["a=extmap:".len()..].chars().take_while(char::is_ascii_digit).collect();
        Some(Feedback { id: id.parse().ok()?, arrived: Vec::new(), messages: 0, due: now + INTERVAL })
    }

    /// Notes a packet with its header extensions, which are those of the one-byte form (RFC 8285 section 4.2).
    pub(crate) fn note(&mut self, mut extensions: &[u8], at_ns: i64) {
        while let Some((first, rest)) = extensions.split_first() {
            if *first == 0 {
                extensions = rest;
                continue;
            }
            let Some((value, behind)) = rest.split_at_checked(usize::from(first & 15) + 1) else { return };
            if let (true, &[high, low]) = (first >> 4 == self.id, value)
                && self.arrived.len() < PACKETS_MAX
            {
                self.arrived.push((u16::from_be_bytes([high, low]), at_ns / TICK_NS));
            }
            extensions = behind;
        }
    }

    /// Returns a message about the packets since the one before, or `None` if there are none.
    pub(crate) fn take(&mut self, own_ssrc: u32, ssrc: u32) -> Option<Vec<u8>> {
        let (first, at) = *self.arrived.first()?;
        let reference = at / TICKS_OF_REFERENCE;
        let mut before = reference * TICKS_OF_REFERENCE;
        let count = u16::try_from(self.arrived.len()).ok()?;
        let mut packet = vec![0x8F, 205, 0, 0];
        packet.extend_from_slice(&own_ssrc.to_be_bytes());
        packet.extend_from_slice(&ssrc.to_be_bytes());
        packet.extend_from_slice(&first.to_be_bytes());
        packet.extend_from_slice(&count.to_be_bytes());
        packet.extend_from_slice(&(reference as u32).to_be_bytes()[1..]);
        packet.push(self.messages);
        // One run: all packets have arrived, with a difference of two bytes. Loopback loses and reorders nothing.
        packet.extend_from_slice(&(0x4000 | count).to_be_bytes());
        for (_, ticks) in self.arrived.drain(..) {
            packet.extend_from_slice(&((ticks - before) as i16).to_be_bytes());
            before = ticks;
        }
        packet.resize(packet.len().next_multiple_of(4), 0);
        let words = u16::try_from(packet.len() / 4 - 1).ok()?;
        packet[2..4].copy_from_slice(&words.to_be_bytes());
        self.messages = self.messages.wrapping_add(1);
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use streaming_server::session::media::rtcp::{Packet, packets};

    fn feedback() -> Feedback {
        Feedback::new(&format!("a=mid:0\r\na=extmap:3/sendonly {URI}\r\n"), Instant::now()).unwrap()
    }

    #[test]
    fn message_tells_the_server_when_marked_packets_arrived() {
        let mut feedback = feedback();
        feedback.note(&[0x40, 7, 0x31, 0, 9, 0], 1_000_000_000);
        feedback.note(&[0x40, 7, 0], 1_000_400_000);
        feedback.note(&[0x31, 0, 10, 0], 1_090_000_000);
        let message = feedback.take(1, 2).unwrap();
        let Some(Packet::Arrivals(arrivals)) = packets(&message).next() else { panic!("{message:?}") };
        let read: Vec<_> = arrivals.iter().map(|arrival| (arrival.sequence, arrival.ticks)).collect();
        assert_eq!(read, [(9, 4_000), (10, 4_360)]);
        assert_eq!(feedback.take(1, 2), None, "each packet is reported once");
    }

    #[test]
    fn offer_without_feedback_has_neither_extension_nor_message() {
        let offer = format!("v=0\r\na=extmap:3 {URI}\r\na=rtcp-fb:96 nack\r\na=rtcp-fb:96 transport-cc\r\n");
        assert_eq!(without_feedback(&offer), "v=0\r\na=rtcp-fb:96 nack\r\n");
        assert!(Feedback::new(&without_feedback(&offer), Instant::now()).is_none());
    }
}
