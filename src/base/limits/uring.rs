//! Bounds of the UDP driver.

use std::time::Duration;

/// Maximum number of segments of one GSO send. The kernel's limit is 64 (`UDP_MAX_SEGMENTS`).
pub const GSO_SEGMENTS_MAX: usize = 52;

/// Maximum bytes of one GSO send without headers. The limit comes from the maximum size of an IPv4 datagram.
pub const GSO_BYTES_MAX: usize = 65_000;

/// Maximum number of send operations of one UDP driver. Together with the bounds of the receive side, it limits the
/// number of completions, so that the completion queue cannot overflow.
pub const SENDS_MAX: usize = 4_096;

/// Maximum number of idle send operations that keep their batch buffer of about 64 kB.
pub const SEND_BUFFERS_KEPT: usize = 32;

/// Maximum number of eventfds that one UDP driver waits for.
pub const EVENTFDS_MAX: usize = 64;

/// Number of receive buffers of one UDP driver. The kernel's buffer ring requires a power of two.
pub const RECEIVE_BUFFERS: u16 = 256;

/// Bytes of one receive buffer: the kernel's header, the sender's address, control data and a datagram.
pub const RECEIVE_BUFFER_BYTES: usize = 2_048;

/// Number of receive operations on kernels without multishot receive (before 6.0).
pub const RECEIVE_OPERATIONS: u16 = 32;

/// Number of consecutive failed receives after which a UDP driver stops receiving, to avoid a busy loop.
pub const RECEIVE_ERRORS_MAX: u32 = 1_000;

/// Maximum number of remembered remote addresses to which GSO sends fail. At the limit, a new address replaces the
/// oldest.
pub const PLAIN_ROUTES_MAX: usize = 64;

/// Maximum number of datagrams that wait to be sent one by one because the kernel refused their GSO send. Further
/// datagrams are dropped and counted.
pub const RESENDS_MAX: usize = 8 * GSO_SEGMENTS_MAX;

/// Number of queued datagrams after which the worker submits them before its turn ends. This is about one GSO batch,
/// whose bytes are still in the CPU's cache. Small units of several viewers are submitted together.
pub const SUBMIT_DATAGRAMS: u32 = 24;

/// Maximum number of TCP connections of one driver.
pub const TCP_CONNECTIONS_MAX: usize = 512;

/// Maximum number of TCP connections that belong to no session yet. At the limit, a new connection replaces the oldest.
pub const TCP_UNCLAIMED_MAX: usize = 64;

/// Maximum number of those from one address (one /64 of IPv6).
pub const TCP_UNCLAIMED_PER_ADDRESS_MAX: usize = 16;

/// Maximum number of TCP connections of one viewer. A browser opens one to each candidate of the answer that it reaches.
pub const TCP_PER_VIEWER_MAX: usize = 8;

/// Time from the accept of a TCP connection until its first frame has named a session.
pub const TCP_FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after the end of a session in which its TCP connection may send what is queued.
pub const TCP_FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum bytes of a frame that a viewer sends over TCP. STUN, DTLS and RTCP have less.
pub const TCP_FRAME_BYTES_MAX: usize = RECEIVE_BUFFER_BYTES - 2;

/// Bytes that wait on a TCP connection above which it carries media, not only STUN and DTLS.
pub const TCP_MEDIA_BYTES_MIN: usize = 4_096;

/// Bytes of the socket buffers of a TCP connection that carries no media. The receive buffer stays as small.
pub const TCP_SMALL_BUFFER_BYTES: usize = 8 * 1024;

/// Bytes of the socket's send buffer of a TCP connection that carries media: 100 ms at 8 Mbit/s.
pub const TCP_SEND_BYTES: usize = 96 * 1024;

/// Bytes of a send buffer of a TCP connection that are kept for the next units.
pub const TCP_KEPT_BYTES: usize = 256 * 1024;

/// Milliseconds after which the kernel ends a TCP connection whose other side acknowledges nothing or reads nothing.
pub const TCP_USER_TIMEOUT_MS: u32 = 20_000;

/// Maximum number of TCP connections that wait to be accepted.
pub const TCP_BACKLOG: i32 = 64;

/// Bytes of the UDP socket's send buffer, and of its receive buffer. Several IDR bursts of all viewers fit.
pub const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
