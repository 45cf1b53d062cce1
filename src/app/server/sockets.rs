//! Opens the sockets of the workers: UDP, and TCP on the same port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::ServerError;
use crate::base::limits;
use crate::config::Config;
use crate::uring::{self, SocketError};

/// Time between two attempts to open a port that is in use.
const PAUSE: Duration = Duration::from_millis(20);

/// The sockets of the workers.
pub(super) struct Sockets {
    pub(super) udp: OwnedFd,
    /// `None` without ICE-TCP.
    pub(super) tcp: Option<OwnedFd>,
    /// Address of both.
    pub(super) address: SocketAddr,
}

/// Opens the UDP socket of `--udp`, and the TCP socket on the same address and port unless `--ice-tcp` is off. If the
/// TCP port is in use, the server goes on without ICE-TCP. `http` is the address of the HTTP endpoint.
///
/// # Errors
/// Returns an error if the UDP socket cannot be opened.
pub(super) fn open(config: &Config, http: SocketAddr) -> Result<Sockets, ServerError> {
    let mut tries = if config.udp.port() == 0 { limits::PORT_TRIES_MAX } else { 1 };
    loop {
        let (udp, address) = open_udp(config.udp)?;
        if !config.ice_tcp {
            return Ok(Sockets { udp, tcp: None, address });
        }
        tries -= 1;
        let patience = if tries > 0 || http.port() == address.port() {
            Duration::ZERO
        } else {
            limits::TCP_PORT_PATIENCE
        };
        match open_tcp(address, patience) {
            Ok(tcp) => return Ok(Sockets { udp, tcp: Some(tcp), address }),
            // The kernel has chosen a UDP port whose TCP port is in use.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => {
                log::warn!("{}", without_tcp(address, http, &error));
                return Ok(Sockets { udp, tcp: None, address });
            }
        }
    }
}

/// Returns the text that says that there is no ICE-TCP.
pub(crate) fn without_tcp(address: SocketAddr, http: SocketAddr, error: &io::Error) -> String {
    let advice = if http.port() == address.port() {
        "--http uses the same port: choose another one for --http or --udp, or --ice-tcp off"
    } else {
        "does another program use the port? Choose another one with --udp, or --ice-tcp off"
    };
    format!(
        "cannot listen on tcp {address}: {error}; viewers whose network blocks UDP watch over HTTP instead of ICE-TCP; \
         {advice}"
    )
}

/// Opens the TCP socket. If the port is in use, tries again for up to `patience`, for the same reason as [`open_udp`].
fn open_tcp(address: SocketAddr, mut patience: Duration) -> io::Result<OwnedFd> {
    loop {
        match uring::open_listener(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !patience.is_zero() => {
                std::thread::sleep(PAUSE);
                patience = patience.saturating_sub(PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Opens the UDP socket. If the port is in use, tries again for up to `limits::UDP_PORT_PATIENCE`. This helps after a
/// server was killed: the kernel frees its io_uring, which holds the socket, only shortly after the process has ended.
fn open_udp(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), ServerError> {
    let mut left = limits::UDP_PORT_PATIENCE;
    loop {
        match uring::open_socket(address) {
            Err(SocketError::Bind { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && !left.is_zero() =>
            {
                if left == limits::UDP_PORT_PATIENCE {
                    log::info!("udp {address} is in use: waiting for it to become free");
                }
                std::thread::sleep(PAUSE);
                left = left.saturating_sub(PAUSE);
            }
            opened => return opened.map_err(|source| ServerError::Udp { address, source }),
        }
    }
}
