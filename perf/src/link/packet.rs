//! Reads the headers of an IP packet: which kind of traffic it is, and the fields of RTP that are not encrypted.

use std::net::Ipv4Addr;

const IPV4_BYTES_MIN: usize = 20;
const UDP_BYTES: usize = 8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// The header fields of one RTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rtp {
    pub(crate) payload_type: u8,
    pub(crate) marker: bool,
    /// True if the packet has padding. Senders use packets of padding only to measure a link.
    pub(crate) is_padded: bool,
    pub(crate) sequence: u16,
    pub(crate) time: u32,
    pub(crate) ssrc: u32,
}

/// Kind of a packet. The first byte of a UDP payload identifies its protocol (RFC 7983), the second one RTCP (RFC
/// 5761).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rtp(Rtp),
    /// RTCP with the type of its first report.
    Rtcp(u8),
    Stun,
    Dtls,
    OtherUdp,
    /// TCP with the ports of source and destination.
    Tcp([u16; 2]),
    Other,
}

impl Kind {
    pub(crate) fn is_udp(self) -> bool {
        !matches!(self, Kind::Tcp(_) | Kind::Other)
    }

    /// Returns the name of the kind in traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Rtp(_) => "rtp",
            Kind::Rtcp(_) => "rtcp",
            Kind::Stun => "stun",
            Kind::Dtls => "dtls",
            Kind::OtherUdp => "udp",
            Kind::Tcp(_) => "tcp",
            Kind::Other => "other",
        }
    }
}

/// Returns the destination and the kind of an IPv4 packet. Returns `None` for other bytes.
pub(crate) fn parse(packet: &[u8]) -> Option<(Ipv4Addr, Kind)> {
    let first = *packet.first()?;
    let header_bytes = usize::from(first & 0x0F) * 4;
    if first >> 4 != 4 || header_bytes < IPV4_BYTES_MIN {
        return None;
    }
    let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    let body = packet.get(header_bytes..)?;
    let kind = match *packet.get(9)? {
        PROTOCOL_TCP => match body {
            [s1, s2, d1, d2, ..] => {
                Kind::Tcp([u16::from_be_bytes([*s1, *s2]), u16::from_be_bytes([*d1, *d2])])
            }
            _ => Kind::Other,
        },
        PROTOCOL_UDP => udp(body.get(UDP_BYTES..).unwrap_or_default()),
        _ => Kind::Other,
    };
    Some((to.into(), kind))
}

fn udp(payload: &[u8]) -> Kind {
    match payload {
        [0..=3, ..] => Kind::Stun,
        [20..=63, ..] => Kind::Dtls,
        [128..=191, report @ 192..=223, ..] => Kind::Rtcp(*report),
        [first @ 128..=191, second, s1, s2, t1, t2, t3, t4, r1, r2, r3, r4, ..] => Kind::Rtp(Rtp {
            payload_type: second & 0x7F,
            marker: second & 0x80 != 0,
            is_padded: first & 0x20 != 0,
            sequence: u16::from_be_bytes([*s1, *s2]),
            time: u32::from_be_bytes([*t1, *t2, *t3, *t4]),
            ssrc: u32::from_be_bytes([*r1, *r2, *r3, *r4]),
        }),
        _ => Kind::OtherUdp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4_BYTES_MIN];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[16..20].copy_from_slice(&[10, 99, 0, 2]);
        packet.extend_from_slice(body);
        packet
    }

    fn kind_of_udp(payload: &[u8]) -> Kind {
        let (to, kind) = parse(&packet(PROTOCOL_UDP, &[&[0; UDP_BYTES], payload].concat())).unwrap();
        assert_eq!(to, Ipv4Addr::new(10, 99, 0, 2));
        kind
    }

    #[test]
    fn each_kind_of_traffic_is_recognised() {
        let rtp = kind_of_udp(&[0xB0, 0xE0, 1, 2, 0, 0, 0, 9, 0, 0, 1, 0, 77]);
        let expected =
            Rtp { payload_type: 96, marker: true, is_padded: true, sequence: 0x0102, time: 9, ssrc: 256 };
        assert_eq!(rtp, Kind::Rtp(expected));
        assert_eq!(kind_of_udp(&[0x81, 205, 0, 3]), Kind::Rtcp(205));
        assert_eq!(kind_of_udp(&[0, 1, 0, 0]), Kind::Stun);
        assert_eq!(kind_of_udp(&[22, 254, 253]), Kind::Dtls);
        assert_eq!(kind_of_udp(&[]), Kind::OtherUdp);
        let tcp = parse(&packet(PROTOCOL_TCP, &[0, 80, 1, 0, 0]));
        assert_eq!(tcp.map(|(_, kind)| kind), Some(Kind::Tcp([80, 256])));
        assert_eq!(parse(&packet(1, &[])).map(|(_, kind)| kind), Some(Kind::Other));
        assert_eq!(parse(&[0x60; 40]), None);
        assert_eq!(parse(&[]), None);
    }
}
