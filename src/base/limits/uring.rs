//! Bounds of the UDP driver.

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

/// Bytes of the UDP socket's send buffer, and of its receive buffer. Several IDR bursts of all viewers fit.
pub const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
