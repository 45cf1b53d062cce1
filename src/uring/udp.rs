//! Opens the UDP socket, and remembers the destinations to which GSO sends fail.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_keepalive, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
    set_socket_reuseaddr, set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_tcp_nodelay,
    set_tcp_user_timeout,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with};

use super::message::Family;
use super::ring::report_local_address;
use crate::base::limits::{
    PLAIN_ROUTES_MAX, SOCKET_BUFFER_BYTES, TCP_BACKLOG, TCP_SMALL_BUFFER_BYTES, TCP_USER_TIMEOUT_MS,
};

/// Reason why the UDP socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel refused to create a socket.
    #[error("cannot open a UDP socket for {address}: {source}")]
    Open {
        /// Address to bind.
        address: SocketAddr,
        /// Error of the system call.
        source: io::Error,
    },
    /// The address is in use, or it is not an address of this machine.
    #[error(
        "cannot bind UDP {address}: {source}; is another server running, or is the address not this machine's?"
    )]
    Bind {
        /// Address to bind.
        address: SocketAddr,
        /// Error of the system call.
        source: io::Error,
    },
    /// The kernel refused a socket option.
    #[error("cannot set up the UDP socket on {address} ({option}): {source}")]
    Option {
        /// Address to bind.
        address: SocketAddr,
        /// Name of the option, for the log.
        option: &'static str,
        /// Error of the system call.
        source: io::Error,
    },
}

/// Opens and binds the workers' UDP socket. Returns the socket with the address and port that it is bound to.
///
/// An unspecified address opens a dual-stack `[::]` socket, so that one port serves IPv4 and IPv6. On a machine without
/// IPv6, `0.0.0.0` opens an IPv4 socket. The socket reports the local address of each datagram. Its buffers hold
/// several IDR bursts, as far as the system permits. `SO_REUSEPORT` is not set, so a second server on the same port
/// gets an error.
///
/// # Errors
/// [`SocketError`], which names the address.
pub fn open_socket(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), SocketError> {
    if address.ip().is_unspecified() && address.is_ipv4() {
        let dual_stack = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match open(dual_stack) {
            Err(SocketError::Bind { ref source, .. }) if source.kind() != io::ErrorKind::AddrInUse => {}
            Err(SocketError::Open { .. } | SocketError::Option { .. }) => {}
            other => return other,
        }
    }
    open(address)
}

fn open(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), SocketError> {
    let (family, raw_family) = match address {
        SocketAddr::V4(_) => (Family::V4, AddressFamily::INET),
        SocketAddr::V6(_) => (Family::V6, AddressFamily::INET6),
    };
    let refused = |option, source| SocketError::Option { address, option, source };
    let socket = socket_with(raw_family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))
        .map_err(|source| SocketError::Open { address, source: source.into() })?;
    if family == Family::V6 {
        set_ipv6_v6only(&socket, false).map_err(|source| refused("dual stack", source.into()))?;
    }
    report_local_address(socket.as_fd(), family)
        .map_err(|source| refused("local address of datagrams", source))?;
    grow_buffers(&socket).map_err(|source| refused("buffer size", source.into()))?;
    bind(&socket, &address).map_err(|source| SocketError::Bind { address, source: source.into() })?;
    let bound = local_address(socket.as_fd()).map_err(|source| refused("own address", source.into()))?;
    Ok((socket, bound))
}

/// Opens a TCP socket that listens on `address`, for [`UdpDriver::listen`](super::UdpDriver::listen). The address is that
/// of a bound UDP socket. Accepted connections inherit the options: small buffers, no delay of small frames, and an end
/// of connections whose other side does not acknowledge.
///
/// # Errors
/// The error of the system call that failed, usually because another program uses the port.
pub fn open_listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, false)?;
    }
    set_socket_reuseaddr(&socket, true)?;
    set_socket_send_buffer_size(&socket, TCP_SMALL_BUFFER_BYTES)?;
    set_socket_recv_buffer_size(&socket, TCP_SMALL_BUFFER_BYTES)?;
    set_tcp_nodelay(&socket, true)?;
    set_socket_keepalive(&socket, true)?;
    set_tcp_user_timeout(&socket, TCP_USER_TIMEOUT_MS)?;
    bind(&socket, &address)?;
    listen(&socket, TCP_BACKLOG)?;
    Ok(socket)
}

/// Sets the sizes of the socket's buffers. With `CAP_NET_ADMIN`, the sizes may exceed the system's limit. Otherwise the
/// kernel reduces them to that limit.
fn grow_buffers(socket: &OwnedFd) -> Result<(), Errno> {
    set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES))
}

fn local_address(socket: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(getsockname(socket)?)
}

/// Returns the address family of a bound socket.
pub(super) fn family_of(socket: BorrowedFd<'_>) -> io::Result<Family> {
    match local_address(socket)? {
        SocketAddr::V4(_) => Ok(Family::V4),
        SocketAddr::V6(_) => Ok(Family::V6),
    }
}

/// Clears `O_NONBLOCK`. With this flag, io_uring would return `EAGAIN` instead of waiting for the descriptor.
pub(super) fn make_blocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(descriptor)?;
    if flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(descriptor, flags - OFlags::NONBLOCK)?;
    }
    Ok(())
}

/// Destination addresses to which a GSO send was refused. Datagrams to these addresses are sent one by one. At most
/// [`PLAIN_ROUTES_MAX`] addresses are remembered; then a new address replaces the oldest.
#[derive(Debug, Default)]
pub(super) struct PlainRoutes {
    remotes: VecDeque<IpAddr>,
}

impl PlainRoutes {
    /// Returns true if a GSO send to the address of `remote` was refused.
    pub(super) fn contains(&self, remote: SocketAddr) -> bool {
        !self.remotes.is_empty() && self.remotes.contains(&remote.ip().to_canonical())
    }

    /// Adds the address of `remote`. Returns false if the address was already known.
    pub(super) fn insert(&mut self, remote: SocketAddr) -> bool {
        if self.contains(remote) {
            return false;
        }
        if self.remotes.len() >= PLAIN_ROUTES_MAX {
            self.remotes.pop_front();
        }
        self.remotes.push_back(remote.ip().to_canonical());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_routes_ignore_the_port_and_are_bounded() {
        let mut routes = PlainRoutes::default();
        let remote = |n: usize| SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap()], 5000));
        assert!(!routes.contains(remote(0)));
        assert!(routes.insert(remote(0)));
        assert!(!routes.insert(SocketAddr::new(remote(0).ip(), 6000)), "the same address with another port");
        assert!(routes.contains("[::ffff:10.0.0.0]:1".parse().unwrap()), "the same address, IPv4-mapped");
        for n in 1..=PLAIN_ROUTES_MAX {
            routes.insert(remote(n));
        }
        assert!(!routes.contains(remote(0)), "the oldest is removed");
        assert!(routes.contains(remote(PLAIN_ROUTES_MAX)));
    }

    #[test]
    fn port_in_use_is_an_error_with_its_number() {
        let (_first, bound) = open_socket("0.0.0.0:0".parse().unwrap()).unwrap();
        let again = SocketAddr::from(([0, 0, 0, 0], bound.port()));
        let error = open_socket(again).unwrap_err();
        assert!(matches!(error, SocketError::Bind { .. }), "{error}");
        assert!(error.to_string().contains(&bound.port().to_string()), "{error}");
    }

    #[test]
    fn send_buffer_has_the_largest_permitted_size() {
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let before = rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap();
        assert!(before >= 200_000, "{before}");
    }
}
