//! The UDP socket: opening it, and the routes that take no GSO send. May not submit anything.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
    set_socket_send_buffer_size, set_socket_send_buffer_size_force,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with};

use super::message::Family;
use super::ring::report_local_address;
use crate::base::limits::{PLAIN_ROUTES_MAX, SOCKET_BUFFER_BYTES};

/// Why there is no UDP socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The system gives no socket.
    #[error("cannot open a UDP socket for {address}: {source}")]
    Open {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The address is in use or not ours.
    #[error(
        "cannot bind UDP {address}: {source}; is another server running, or is the address not this machine's?"
    )]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The socket does not do what it must.
    #[error("cannot set up the UDP socket on {address} ({option}): {source}")]
    Option {
        /// The address asked for.
        address: SocketAddr,
        /// What was to be set.
        option: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Opens the UDP socket of the workers and binds it; returns it with its real address and port.
///
/// The unspecified IPv4 address opens a dual-stack `[::]` socket where the machine has IPv6, so that one port
/// serves both; the unspecified IPv6 address does too. The socket reports each datagram's local address and
/// has buffers for several IDR bursts, as large as the system permits. It is not shared by address
/// (`SO_REUSEPORT`): a second server on the port is an error.
///
/// # Errors
/// [`SocketError`], naming the address.
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
    let option = |option| move |source: Errno| SocketError::Option { address, option, source: source.into() };
    let socket = socket_with(raw_family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::UDP))
        .map_err(|source| SocketError::Open { address, source: source.into() })?;
    if family == Family::V6 {
        set_ipv6_v6only(&socket, false).map_err(option("dual stack"))?;
    }
    report_local_address(socket.as_fd(), family).map_err(|source| SocketError::Option {
        address,
        option: "local address of datagrams",
        source,
    })?;
    grow_buffers(&socket).map_err(option("buffer size"))?;
    bind(&socket, &address).map_err(|source| SocketError::Bind { address, source: source.into() })?;
    let bound = local_address(socket.as_fd()).map_err(option("own address"))?;
    Ok((socket, bound))
}

/// As much buffer as permitted: beyond the system's bound with `CAP_NET_ADMIN`, else up to it.
fn grow_buffers(socket: &OwnedFd) -> Result<(), Errno> {
    set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES))
}

fn local_address(socket: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(getsockname(socket)?)
}

/// The family of a bound socket.
pub(super) fn family_of(socket: BorrowedFd<'_>) -> io::Result<Family> {
    match local_address(socket)? {
        SocketAddr::V4(_) => Ok(Family::V4),
        SocketAddr::V6(_) => Ok(Family::V6),
    }
}

/// Clears `O_NONBLOCK`: io_uring would hand `EAGAIN` to us instead of waiting for the descriptor itself.
pub(super) fn let_ring_wait(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(descriptor)?;
    if flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(descriptor, flags - OFlags::NONBLOCK)?;
    }
    Ok(())
}

/// Destinations that refused a GSO send: their datagrams go out one by one. Bounded; the oldest makes room.
#[derive(Debug, Default)]
pub(super) struct PlainRoutes {
    remotes: VecDeque<IpAddr>,
}

impl PlainRoutes {
    /// Whether `remote` takes no GSO send.
    pub(super) fn contains(&self, remote: SocketAddr) -> bool {
        !self.remotes.is_empty() && self.remotes.contains(&remote.ip().to_canonical())
    }

    /// Remembers `remote`; false where it was known.
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
    fn plain_routes_are_by_address_and_bounded() {
        let mut routes = PlainRoutes::default();
        let remote = |n: usize| SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap()], 5000));
        assert!(!routes.contains(remote(0)));
        assert!(routes.insert(remote(0)));
        assert!(!routes.insert(SocketAddr::new(remote(0).ip(), 6000)), "another port is the same route");
        assert!(routes.contains("[::ffff:10.0.0.0]:1".parse().unwrap()), "mapped is the same address");
        for n in 1..=PLAIN_ROUTES_MAX {
            routes.insert(remote(n));
        }
        assert!(!routes.contains(remote(0)), "the oldest made room");
        assert!(routes.contains(remote(PLAIN_ROUTES_MAX)));
    }

    #[test]
    fn a_port_in_use_is_an_error_that_names_it() {
        let (_first, bound) = open_socket("0.0.0.0:0".parse().unwrap()).unwrap();
        let again = SocketAddr::from(([0, 0, 0, 0], bound.port()));
        let error = open_socket(again).unwrap_err();
        assert!(matches!(error, SocketError::Bind { .. }), "{error}");
        assert!(error.to_string().contains(&bound.port().to_string()), "{error}");
    }

    #[test]
    fn the_buffers_are_as_large_as_permitted() {
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let before = rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap();
        assert!(before >= 200_000, "{before}");
    }
}
