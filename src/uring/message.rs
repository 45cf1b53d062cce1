//! Encodes and decodes socket addresses, control messages and the header of a multishot receive as bytes for the
//! kernel. This module is pure: it uses no system call and no pointer. Bytes that the kernel wrote are checked before
//! use.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use io_uring::types::RecvMsgOut;
use rustix::net::AddressFamily;

/// Number of bytes that a socket address of either family needs.
pub(super) const ADDRESS_BYTES: usize = size_of::<libc::sockaddr_in6>();

/// Number of bytes that the control messages of one send need: a segment size and the larger pktinfo.
pub(super) const CONTROL_BYTES: usize = control_space(2) + control_space(PKTINFO_V6_BYTES);

/// Bytes of `struct io_uring_recvmsg_out`, which has four numbers of 32 bits.
const RECEIVE_HEADER_BYTES: usize = 16;

/// Bytes of `struct in_pktinfo`: i32 interface, local address, destination address of the IP header.
const PKTINFO_V4_BYTES: usize = size_of::<libc::in_pktinfo>();

/// Bytes of `struct in6_pktinfo`: local address, u32 interface.
const PKTINFO_V6_BYTES: usize = size_of::<libc::in6_pktinfo>();

/// Address family of a socket. A V6 socket is dual-stack and uses IPv4-mapped addresses for IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

/// Returns the space that a control message with `data_bytes` bytes takes (`CMSG_SPACE` of cmsg(3)).
const fn control_space(data_bytes: usize) -> usize {
    align(size_of::<libc::cmsghdr>()) + align(data_bytes)
}

/// Returns `bytes` rounded up to the alignment of control messages (`CMSG_ALIGN` of cmsg(3)).
const fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(size_of::<usize>())
}

/// Returns `remote` as a `sockaddr_in` or `sockaddr_in6`, with the length of that structure. Returns `None` if a socket
/// of `family` cannot reach the address.
pub(super) fn encode_address(remote: SocketAddr, family: Family) -> Option<([u8; ADDRESS_BYTES], u32)> {
    match (family, unmapped(remote)) {
        (Family::V4, SocketAddr::V4(v4)) => Some(encode_v4(v4)),
        (Family::V6, SocketAddr::V4(v4)) => {
            Some(encode_v6(&SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0)))
        }
        (Family::V6, SocketAddr::V6(v6)) => Some(encode_v6(&v6)),
        (Family::V4, SocketAddr::V6(_)) => None,
    }
}

fn encode_v4(address: SocketAddrV4) -> ([u8; ADDRESS_BYTES], u32) {
    let mut bytes = [0; ADDRESS_BYTES];
    let mut length = put(&mut bytes, 0, &AddressFamily::INET.as_raw().to_ne_bytes());
    length += put(&mut bytes, length, &address.port().to_be_bytes());
    length += put(&mut bytes, length, &address.ip().octets());
    length += put(&mut bytes, length, &[0; 8]);
    (bytes, u32::try_from(length).unwrap_or_default())
}

fn encode_v6(address: &SocketAddrV6) -> ([u8; ADDRESS_BYTES], u32) {
    let mut bytes = [0; ADDRESS_BYTES];
    let mut length = put(&mut bytes, 0, &AddressFamily::INET6.as_raw().to_ne_bytes());
    length += put(&mut bytes, length, &address.port().to_be_bytes());
    length += put(&mut bytes, length, &address.flowinfo().to_ne_bytes());
    length += put(&mut bytes, length, &address.ip().octets());
    length += put(&mut bytes, length, &address.scope_id().to_ne_bytes());
    (bytes, u32::try_from(length).unwrap_or_default())
}

/// Returns the address in a `sockaddr_in` or `sockaddr_in6`. An IPv4-mapped address is returned as IPv4.
pub(super) fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(field(bytes, 0)?);
    let port = u16::from_be_bytes(field(bytes, 2)?);
    if family == AddressFamily::INET.as_raw() {
        let ip = Ipv4Addr::from(field::<4>(bytes, 4)?);
        Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
    } else if family == AddressFamily::INET6.as_raw() {
        let flowinfo = u32::from_ne_bytes(field(bytes, 4)?);
        let ip = Ipv6Addr::from(field::<16>(bytes, 8)?);
        let scope_id = u32::from_ne_bytes(field(bytes, 24)?);
        Some(unmapped(SocketAddr::V6(SocketAddrV6::new(ip, port, flowinfo, scope_id))))
    } else {
        None
    }
}

/// Returns an IPv4-mapped address as IPv4, and any other address unchanged.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Writes the control messages of a send: the segment size and the source address, if they are given. Returns the
/// length of the messages in bytes.
///
/// A source address of another family than `remote` is left out, so that the kernel chooses the source address.
pub(super) fn encode_control(
    control: &mut [u8; CONTROL_BYTES],
    family: Family,
    gso_segment: Option<u16>,
    local: Option<IpAddr>,
    remote: SocketAddr,
) -> usize {
    let mut length = 0;
    if let Some(segment) = gso_segment {
        length += put_message(control, length, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    match (family, local.map(|ip| ip.to_canonical()), unmapped(remote)) {
        (Family::V4, Some(IpAddr::V4(ip)), SocketAddr::V4(_)) => {
            let mut info = [0; PKTINFO_V4_BYTES];
            put(&mut info, offset_of!(libc::in_pktinfo, ipi_spec_dst), &ip.octets());
            length += put_message(control, length, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        (Family::V6, Some(IpAddr::V4(ip)), SocketAddr::V4(_)) => {
            length += put_pktinfo_v6(control, length, ip.to_ipv6_mapped(), 0);
        }
        (Family::V6, Some(IpAddr::V6(ip)), SocketAddr::V6(remote)) => {
            length += put_pktinfo_v6(control, length, ip, remote.scope_id());
        }
        _ => {}
    }
    length
}

fn put_pktinfo_v6(control: &mut [u8], at: usize, local: Ipv6Addr, interface: u32) -> usize {
    let mut info = [0; PKTINFO_V6_BYTES];
    put(&mut info, offset_of!(libc::in6_pktinfo, ipi6_addr), &local.octets());
    put(&mut info, offset_of!(libc::in6_pktinfo, ipi6_ifindex), &interface.to_ne_bytes());
    put_message(control, at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
}

/// Writes one control message at offset `at`. Returns the bytes that the message takes, with padding.
fn put_message(control: &mut [u8], at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    let header = align(size_of::<libc::cmsghdr>());
    let length = header + data.len();
    put(control, at + offset_of!(libc::cmsghdr, cmsg_len), &length.to_ne_bytes());
    put(control, at + offset_of!(libc::cmsghdr, cmsg_level), &level.to_ne_bytes());
    put(control, at + offset_of!(libc::cmsghdr, cmsg_type), &kind.to_ne_bytes());
    put(control, at + header, data);
    control_space(data.len())
}

/// Returns the local address to which a received datagram was sent, from the datagram's control messages.
pub(super) fn decode_local(mut control: &[u8]) -> Option<IpAddr> {
    let header = align(size_of::<libc::cmsghdr>());
    loop {
        let length = usize::from_ne_bytes(field(control, offset_of!(libc::cmsghdr, cmsg_len))?);
        let level = i32::from_ne_bytes(field(control, offset_of!(libc::cmsghdr, cmsg_level))?);
        let kind = i32::from_ne_bytes(field(control, offset_of!(libc::cmsghdr, cmsg_type))?);
        let data = control.get(header..length)?;
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            let ip = field::<4>(data, offset_of!(libc::in_pktinfo, ipi_spec_dst))?;
            return Some(IpAddr::V4(Ipv4Addr::from(ip)));
        }
        if (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
            let ip = field::<16>(data, offset_of!(libc::in6_pktinfo, ipi6_addr))?;
            return Some(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical());
        }
        control = control.get(align(length)..)?;
    }
}

/// Addresses and position of a received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceivedParts {
    /// Address of the sender.
    pub(super) remote: SocketAddr,
    /// Local address to which the datagram was sent.
    pub(super) local: Option<IpAddr>,
    /// Offset of the payload in the buffer.
    pub(super) start: usize,
    /// Bytes of the payload.
    pub(super) length: usize,
}

/// Reason why a receive has no usable datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiveFault {
    /// The datagram was larger than the buffer.
    Truncated,
    /// The sender's address is missing, or a length exceeds the buffer.
    Malformed,
}

/// Returns the addresses and the position of the datagram in the buffer of a multishot receive
/// (io_uring_prep_recvmsg_multishot(3)) that was submitted with `header`. The buffer has this layout:
/// `io_uring_recvmsg_out 16 | address | control | datagram`. Address and control are padded to their full size.
pub(super) fn parse_multishot(buffer: &[u8], header: &libc::msghdr) -> Result<ReceivedParts, ReceiveFault> {
    let received = RecvMsgOut::parse(buffer, header).map_err(|()| ReceiveFault::Malformed)?;
    if received.is_payload_truncated() {
        return Err(ReceiveFault::Truncated);
    }
    let length = received.payload_data().len();
    // The crate cuts a length that exceeds the buffer. A cut datagram must not pass as a whole one.
    if usize::try_from(received.incoming_payload_len()) != Ok(length) {
        return Err(ReceiveFault::Malformed);
    }
    let remote = decode_address(received.name_data()).ok_or(ReceiveFault::Malformed)?;
    let local = decode_local(received.control_data());
    let start = RECEIVE_HEADER_BYTES + ADDRESS_BYTES + CONTROL_BYTES;
    Ok(ReceivedParts { remote, local, start, length })
}

/// Copies `source` to `target[at..]` and returns the length of `source`. All callers write constant layouts that fit.
fn put(target: &mut [u8], at: usize, source: &[u8]) -> usize {
    match target.get_mut(at..at + source.len()) {
        Some(room) => room.copy_from_slice(source),
        None => debug_assert!(false, "no room for {} bytes at {at}", source.len()),
    }
    source.len()
}

/// Returns the `N` bytes at offset `at`, or `None` if `bytes` is too short.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::buffers::receive_header;
    use proptest::prelude::*;

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        let v6 = (any::<[u8; 16]>(), any::<u16>(), any::<u32>(), any::<u32>())
            .prop_map(|(ip, port, flow, scope)| SocketAddrV6::new(ip.into(), port, flow, scope).into());
        prop_oneof![v4, v6]
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn address_survives_encoding(address in addresses()) {
            let (bytes, length) = encode_address(address, Family::V6).unwrap();
            prop_assert_eq!(decode_address(&bytes[..length as usize]), Some(unmapped(address)));
            if let Some((bytes, length)) = encode_address(address, Family::V4) {
                prop_assert_eq!(length as usize, size_of::<libc::sockaddr_in>());
                prop_assert_eq!(decode_address(&bytes[..length as usize]), Some(unmapped(address)));
            }
        }

        #[test]
        fn local_address_is_found_behind_a_segment_size(ip in any::<[u8; 4]>(), segment in any::<Option<u16>>()) {
            let remote = "192.0.2.1:9".parse().unwrap();
            for family in [Family::V4, Family::V6] {
                let mut control = [0; CONTROL_BYTES];
                let length = encode_control(&mut control, family, segment, Some(ip.into()), remote);
                prop_assert_eq!(decode_local(&control[..length]), Some(IpAddr::from(ip)));
            }
        }

        #[test]
        fn any_bytes_are_rejected_or_stay_within_the_buffer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(parts) = parse_multishot(&bytes, &receive_header()) {
                prop_assert!(parts.start + parts.length <= bytes.len());
            }
            let _ = decode_local(&bytes);
            let _ = decode_address(&bytes);
        }

        #[test]
        fn datagram_is_found_in_the_kernels_layout(address in addresses(), datagram in prop::collection::vec(any::<u8>(), 0..100)) {
            let (name, name_bytes) = encode_address(address, Family::V6).unwrap();
            let mut control = [0; CONTROL_BYTES];
            let control_bytes = encode_control(&mut control, Family::V6, None, Some("::5".parse().unwrap()), "[::9]:1".parse().unwrap());
            let mut buffer = Vec::new();
            let lengths = [control_bytes, datagram.len(), 0].map(|length| u32::try_from(length).unwrap());
            for word in [name_bytes].iter().chain(&lengths) {
                buffer.extend_from_slice(&word.to_ne_bytes());
            }
            buffer.extend_from_slice(&name);
            buffer.extend_from_slice(&control);
            buffer.extend_from_slice(&datagram);
            let parts = parse_multishot(&buffer, &receive_header()).unwrap();
            prop_assert_eq!(parts.remote, unmapped(address));
            prop_assert_eq!(parts.local, Some("::5".parse().unwrap()));
            prop_assert_eq!(&buffer[parts.start..parts.start + parts.length], &datagram[..]);
        }
    }

    #[test]
    fn truncated_datagram_is_reported() {
        let mut buffer = vec![0; 400];
        buffer[12..16].copy_from_slice(&(libc::MSG_TRUNC as u32).to_ne_bytes());
        assert_eq!(parse_multishot(&buffer, &receive_header()), Err(ReceiveFault::Truncated));
    }

    #[test]
    fn length_that_exceeds_the_buffer_is_malformed() {
        let mut buffer = vec![0; 400];
        buffer[8..12].copy_from_slice(&1_000_u32.to_ne_bytes());
        let (name, name_bytes) = encode_address("[::5]:7".parse().unwrap(), Family::V6).unwrap();
        buffer[0..4].copy_from_slice(&name_bytes.to_ne_bytes());
        buffer[RECEIVE_HEADER_BYTES..RECEIVE_HEADER_BYTES + name.len()].copy_from_slice(&name);
        assert_eq!(parse_multishot(&buffer, &receive_header()), Err(ReceiveFault::Malformed));
    }

    #[test]
    fn v4_socket_cannot_reach_v6() {
        assert_eq!(encode_address("[2001:db8::1]:5".parse().unwrap(), Family::V4), None);
    }
}
