//! Unencrypted RTCP: parses the viewers' reports and feedback, and writes our reports. All functions are pure, and the
//! size of the datagram bounds their work. Encryption, time and session state are handled elsewhere.
//!
//! Implements RFC 3550 section 6 (reports, SDES, BYE), RFC 4585 section 6 (NACK, PLI) and RFC 5104 section 4.3.1 (FIR).
//! Of RFC 3611 it implements sections 4.4 and 4.5: receiver reference times, from which receivers compute the round
//! trip. Transport-wide feedback is read by `arrivals`. Other packets (REMB, APP) are skipped by their length.

use crate::session::media::arrivals::Arrivals;

const VERSION: u8 = 2 << 6;
const HEADER_BYTES: usize = 4;
const REPORT_BLOCK_BYTES: usize = 24;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SOURCE_DESCRIPTION: u8 = 202;
const GOODBYE: u8 = 203;
const TRANSPORT_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;
const EXTENDED_REPORT: u8 = 207;

/// Block types of an extended report.
const REFERENCE_TIME: u8 = 4;
const DELAY_SINCE_REFERENCE: u8 = 5;

/// Feedback message types.
const NACK: u8 = 1;
const PLI: u8 = 1;
const FIR: u8 = 4;
const ARRIVALS: u8 = 15;

const SDES_CNAME: u8 = 1;

/// One packet of a compound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Report blocks of a sender or receiver report.
    Report(ReportBlocks<'a>),
    /// Generic NACK: some packets of a stream did not reach the viewer.
    Nack {
        /// SSRC of the stream.
        media: u32,
        /// Sequence numbers of the missing packets.
        lost: LostPackets<'a>,
    },
    /// Transport-wide feedback: when marked packets arrived.
    Arrivals(Arrivals<'a>),
    /// Picture loss indication: the viewer needs an IDR of the stream `media`.
    Pli {
        /// SSRC of the stream.
        media: u32,
    },
    /// Full intra request: the viewer needs an IDR.
    Fir(FirEntries<'a>),
    /// The viewer's clock, which our next report returns to the viewer.
    ReferenceTime(ReferenceTime),
    /// BYE: the viewer leaves the session.
    Bye,
    /// Packet that is irrelevant to a sender.
    Other,
}

/// Returns the packets of a compound packet, up to the end or up to the first malformed packet.
pub fn packets(compound: &[u8]) -> impl Iterator<Item = Packet<'_>> {
    let mut rest = compound;
    std::iter::from_fn(move || {
        let (packet, behind) = split(rest)?;
        rest = behind;
        Some(packet)
    })
}

/// Splits off the first packet, and returns it with the bytes behind it. Returns `None` if the packet is malformed.
fn split(bytes: &[u8]) -> Option<(Packet<'_>, &[u8])> {
    let &[first, kind, high, low] = bytes.first_chunk::<HEADER_BYTES>()?;
    if first & 0xC0 != VERSION {
        return None;
    }
    let body_bytes = 4 * usize::from(u16::from_be_bytes([high, low]));
    let (packet, behind) = bytes.split_at_checked(HEADER_BYTES + body_bytes)?;
    let mut body = packet.get(HEADER_BYTES..)?;
    if first & 0x20 != 0 {
        // The last byte of the padding holds the number of padding bytes, including itself.
        let padding = usize::from(*body.last()?);
        body = body.get(..body.len().checked_sub(padding).filter(|_| padding > 0)?)?;
    }
    Some((read(kind, first & 0x1F, body)?, behind))
}

/// Parses the body of a packet. Returns `None` if the body is shorter than its type requires.
fn read(kind: u8, count: u8, body: &[u8]) -> Option<Packet<'_>> {
    let blocks = |skipped: usize| {
        let bytes = body.get(skipped..)?.get(..usize::from(count) * REPORT_BLOCK_BYTES)?;
        Some(Packet::Report(ReportBlocks(bytes)))
    };
    // A feedback body begins with the SSRC of its sender, followed by the SSRC of the stream that it concerns.
    let feedback = || {
        let (head, rest) = body.split_first_chunk::<8>()?;
        Some((u32::from_be_bytes(*head.last_chunk()?), rest))
    };
    match (kind, count) {
        (SENDER_REPORT, _) => blocks(24),
        (RECEIVER_REPORT, _) => blocks(4),
        (TRANSPORT_FEEDBACK, NACK) => {
            feedback().map(|(media, rest)| Packet::Nack { media, lost: LostPackets(rest) })
        }
        (TRANSPORT_FEEDBACK, ARRIVALS) => {
            feedback().map(|(_, rest)| Arrivals::read(rest).map_or(Packet::Other, Packet::Arrivals))
        }
        (PAYLOAD_FEEDBACK, PLI) => feedback().map(|(media, _)| Packet::Pli { media }),
        (PAYLOAD_FEEDBACK, FIR) => feedback().map(|(_, rest)| Packet::Fir(FirEntries(rest))),
        (EXTENDED_REPORT, _) => Some(reference_time(body).map_or(Packet::Other, Packet::ReferenceTime)),
        (GOODBYE, _) => Some(Packet::Bye),
        _ => Some(Packet::Other),
    }
}

/// A receiver's reference time (RFC 3611 section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceTime {
    /// SSRC of the receiver.
    pub receiver: u32,
    /// Middle 32 bits of the receiver's NTP time.
    pub middle: u32,
}

/// Returns the first reference time of an extended report, or `None` if the report has none.
fn reference_time(body: &[u8]) -> Option<ReferenceTime> {
    let (receiver, mut blocks) = body.split_first_chunk::<4>()?;
    loop {
        let (&[kind, _, high, low], rest) = blocks.split_first_chunk::<4>()?;
        let (content, behind) = rest.split_at_checked(4 * usize::from(u16::from_be_bytes([high, low])))?;
        if kind == REFERENCE_TIME {
            let &[_, _, a, b, c, d, _, _] = content.first_chunk::<8>()?;
            return Some(ReferenceTime {
                receiver: u32::from_be_bytes(*receiver),
                middle: u32::from_be_bytes([a, b, c, d]),
            });
        }
        blocks = behind;
    }
}

/// Appends an extended report from which a receiver computes its round trip (RFC 3611 section 4.5). The report returns
/// the receiver's own reference time, and the `delay` since that reference time arrived here, in 65536ths of a second.
pub fn write_delay_since(ssrc: u32, reference: ReferenceTime, delay: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[VERSION, EXTENDED_REPORT, 0, 5]);
    out.extend_from_slice(&ssrc.to_be_bytes());
    out.extend_from_slice(&[DELAY_SINCE_REFERENCE, 0, 0, 3]);
    for word in [reference.receiver, reference.middle, delay] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Report blocks of one report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportBlocks<'a>(&'a [u8]);

impl<'a> ReportBlocks<'a> {
    /// Returns an iterator over the blocks.
    pub fn iter(&self) -> impl Iterator<Item = ReportBlock> + use<'a> {
        self.0.chunks_exact(REPORT_BLOCK_BYTES).filter_map(ReportBlock::read)
    }
}

/// A viewer's reception of one stream (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportBlock {
    /// SSRC of the stream.
    pub ssrc: u32,
    /// Fraction of packets lost since the viewer's previous report, in 256ths.
    pub fraction_lost: u8,
    /// Interarrival jitter in units of RTP time.
    pub jitter: u32,
    /// Middle 32 bits of the NTP time in our latest report that the viewer received; 0 if it has received none.
    pub last_report: u32,
    /// Time from the arrival of our latest report to the sending of this block, in 65536ths of a second.
    pub delay: u32,
}

impl ReportBlock {
    fn read(bytes: &[u8]) -> Option<ReportBlock> {
        let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes);
        Some(ReportBlock {
            ssrc: word(0)?,
            fraction_lost: *bytes.get(4)?,
            jitter: word(12)?,
            last_report: word(16)?,
            delay: word(20)?,
        })
    }

    /// Returns the round-trip time in 65536ths of a second, if the block arrived at the NTP time `now`. Returns `None`
    /// if the viewer had not received any of our reports. Coarse clocks may cause a slightly negative result, which
    /// counts as 0.
    pub fn round_trip_65536ths(&self, now: u64) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the format takes the middle 32 bits")]
        let now = (now >> 16) as u32;
        let span = now.wrapping_sub(self.last_report).wrapping_sub(self.delay);
        (self.last_report != 0).then_some(if span > i32::MAX.unsigned_abs() { 0 } else { span })
    }
}

/// Sequence numbers of a generic NACK (RFC 4585 section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostPackets<'a>(&'a [u8]);

impl<'a> LostPackets<'a> {
    /// Returns an iterator over the sequence numbers. Each entry of four bytes holds up to 17 of them.
    pub fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.0.chunks_exact(4).filter_map(|entry| entry.first_chunk::<4>()).flat_map(|&[a, b, c, d]| {
            let (first, following) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let is_lost = move |offset: &u16| *offset == 0 || following >> (offset - 1) & 1 == 1;
            (0..=16).filter(is_lost).map(move |offset| first.wrapping_add(offset))
        })
    }
}

/// Entries of a full intra request, one for each stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirEntries<'a>(&'a [u8]);

impl FirEntries<'_> {
    /// Returns true if one of the entries requests an IDR of the stream `ssrc`.
    pub fn contains(&self, ssrc: u32) -> bool {
        self.0.chunks_exact(8).any(|entry| entry.starts_with(&ssrc.to_be_bytes()))
    }
}

/// Contents of a sender report (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderReport {
    /// SSRC of the stream.
    pub ssrc: u32,
    /// Time of the report as an NTP timestamp.
    pub ntp: u64,
    /// RTP time of the stream at the same instant as `ntp`.
    pub rtp_time: u32,
    /// Number of packets sent so far.
    pub packets: u32,
    /// Number of payload bytes sent so far.
    pub octets: u32,
}

/// Appends a sender report and a source description with the CNAME, cut to 255 bytes. Every compound packet must begin
/// with these two packets.
pub fn write_report(report: &SenderReport, cname: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&[VERSION, SENDER_REPORT, 0, 6]);
    out.extend_from_slice(&report.ssrc.to_be_bytes());
    out.extend_from_slice(&report.ntp.to_be_bytes());
    for word in [report.rtp_time, report.packets, report.octets] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    let name = cname.as_bytes();
    let (name, name_bytes) = match u8::try_from(name.len()) {
        Ok(bytes) => (name, bytes),
        Err(_) => (name.get(..255).unwrap_or_default(), u8::MAX),
    };
    // The item list ends with at least one zero byte and is padded to a multiple of four bytes.
    let items_bytes = (2 + name.len() + 1).next_multiple_of(4);
    let words = u8::try_from(1 + items_bytes / 4).unwrap_or(u8::MAX);
    out.extend_from_slice(&[VERSION | 1, SOURCE_DESCRIPTION, 0, words]);
    out.extend_from_slice(&report.ssrc.to_be_bytes());
    let end = out.len() + items_bytes;
    out.extend_from_slice(&[SDES_CNAME, name_bytes]);
    out.extend_from_slice(name);
    out.resize(end, 0);
}

/// Appends a BYE packet for the first 31 of `ssrcs` at most.
pub fn write_goodbye(ssrcs: &[u32], out: &mut Vec<u8>) {
    let ssrcs = ssrcs.get(..31).unwrap_or(ssrcs);
    let count = u8::try_from(ssrcs.len()).unwrap_or_default();
    out.extend_from_slice(&[VERSION | count, GOODBYE, 0, count]);
    ssrcs.iter().for_each(|ssrc| out.extend_from_slice(&ssrc.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(kind: u8, count: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![VERSION | count, kind];
        bytes.extend(u16::try_from(body.len() / 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn compound_packet_of_a_browser_is_parsed_in_order() {
        let report = [7, 5, 0x40_00_00_01, 99, 45, 0xb705_2000, 0x0005_4000];
        let mut compound = packet(RECEIVER_REPORT, 1, &words(&report));
        compound.extend(packet(207, 0, &words(&[7, 0x0100_0002, 2, 3]))); // extended report (XR)
        compound.extend(packet(TRANSPORT_FEEDBACK, NACK, &words(&[7, 5, (100 << 16) | 0x8001])));
        compound.extend(packet(PAYLOAD_FEEDBACK, PLI, &words(&[7, 5])));
        compound.extend(packet(PAYLOAD_FEEDBACK, FIR, &words(&[7, 0, 5, 1 << 24])));
        compound.extend(packet(PAYLOAD_FEEDBACK, 15, &words(&[7, 0, 0, 0])));
        compound.extend(packet(GOODBYE, 1, &words(&[7])));
        let read: Vec<_> = packets(&compound).collect();
        let [Packet::Report(blocks), Packet::Other, Packet::Nack { media, lost }, pli, fir, other, bye] =
            read[..]
        else {
            panic!("{read:?}")
        };
        let block = blocks.iter().next().unwrap();
        assert_eq!((block.ssrc, block.fraction_lost, block.jitter), (5, 64, 45));
        assert_eq!((media, lost.iter().collect::<Vec<_>>()), (5, vec![100, 101, 116]));
        assert_eq!((pli, other, bye), (Packet::Pli { media: 5 }, Packet::Other, Packet::Bye));
        let Packet::Fir(requests) = fir else { panic!("{fir:?}") };
        assert!(requests.contains(5) && !requests.contains(7));
    }

    /// The values are the example of RFC 3550 section 6.4.1, figure 2.
    #[test]
    fn round_trip_matches_the_rfc_example() {
        let block = ReportBlock {
            ssrc: 1,
            fraction_lost: 0,
            jitter: 0,
            last_report: 0xb705_2000,
            delay: 0x0005_4000,
        };
        let now = 0xb44d_b710_8000_0000;
        assert_eq!(block.round_trip_65536ths(now), Some(0x0006_2000));
        assert_eq!(ReportBlock { last_report: 0, ..block }.round_trip_65536ths(now), None);
        assert_eq!(
            ReportBlock { delay: 0x000b_6001, ..block }.round_trip_65536ths(now),
            Some(0),
            "a negative span counts as 0"
        );
    }

    #[test]
    fn reference_time_is_found_after_other_blocks_and_returned() {
        let blocks = [7, 0x0100_0001, 9, 0x0400_0002, 0x0102_0304, 0x0506_0708];
        let report = packet(EXTENDED_REPORT, 0, &words(&blocks));
        let Some(Packet::ReferenceTime(reference)) = packets(&report).next() else { panic!() };
        assert_eq!(reference, ReferenceTime { receiver: 7, middle: 0x0304_0506 });
        let short = packet(EXTENDED_REPORT, 0, &words(&blocks[..5]));
        assert_eq!(packets(&short).next(), Some(Packet::Other));
        let mut out = Vec::new();
        write_delay_since(5, reference, 65_536, &mut out);
        assert_eq!(out, packet(EXTENDED_REPORT, 0, &words(&[5, 0x0500_0003, 7, 0x0304_0506, 65_536])));
        assert_eq!(packets(&out).collect::<Vec<_>>(), [Packet::Other]);
    }

    #[test]
    fn sequence_numbers_wrap_in_a_nack() {
        let lost = LostPackets(&[0xff, 0xff, 0x00, 0x03]);
        assert_eq!(lost.iter().collect::<Vec<_>>(), [65_535, 0, 1]);
    }

    #[test]
    fn padding_is_removed_and_impossible_padding_ends_the_compound() {
        let mut padded = packet(TRANSPORT_FEEDBACK, NACK, &words(&[7, 5, 100 << 16, 4]));
        padded[0] |= 0x20;
        let Some(Packet::Nack { lost, .. }) = packets(&padded).next() else { panic!() };
        assert_eq!(lost.iter().count(), 1);
        for wrong in [0, 17] {
            *padded.last_mut().unwrap() = wrong;
            assert_eq!(packets(&padded).count(), 0, "padding of {wrong}");
        }
    }

    #[test]
    fn report_cname_and_goodbye_are_written() {
        for name in ["", "a", "ab", "abcdefghijklmnop", &"x".repeat(300)] {
            let report =
                SenderReport { ssrc: 5, ntp: 0x0102_0304_0506_0708, rtp_time: 9, packets: 10, octets: 11 };
            let mut out = Vec::new();
            write_report(&report, name, &mut out);
            write_goodbye(&[5, 6], &mut out);
            let read: Vec<_> = packets(&out).collect();
            assert!(matches!(read[..], [Packet::Report(_), Packet::Other, Packet::Bye]), "{read:?}");
            let written = words(&[5, 0x0102_0304, 0x0506_0708, 9, 10, 11]);
            assert_eq!(&out[4..28], &written[..]);
            assert_eq!(usize::from(out[37]), name.len().min(255));
            assert_eq!(&out[out.len() - 12..], &[0x82, GOODBYE, 0, 2, 0, 0, 0, 5, 0, 0, 0, 6]);
        }
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn any_bytes_are_parsed_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for packet in packets(&bytes) {
                match packet {
                    Packet::Report(blocks) => prop_assert!(blocks.iter().count() <= 31),
                    Packet::Nack { lost, .. } => prop_assert!(lost.iter().count() <= bytes.len() / 4 * 17),
                    _ => {}
                }
            }
        }

        #[test]
        fn every_wellformed_packet_is_found(
            bodies in prop::collection::vec((192..=223_u8, 0..32_u8, 0..20_usize), 1..10),
        ) {
            let mut compound = Vec::new();
            let mut expected = 0;
            for (kind, count, words) in bodies {
                let needed = match kind {
                    SENDER_REPORT => 6 + 6 * usize::from(count),
                    RECEIVER_REPORT => 1 + 6 * usize::from(count),
                    _ => 2,
                };
                compound.extend(packet(kind, count, &vec![0; 4 * (needed + words)]));
                expected += 1;
            }
            prop_assert_eq!(packets(&compound).count(), expected);
        }
    }
}
