//! Bounds of the UDP driver.

/// Segments of one GSO send. The kernel's limit is 64 (`UDP_MAX_SEGMENTS`).
pub const GSO_SEGMENTS_MAX: usize = 52;

/// Bytes of one GSO send without headers (the limit of an IPv4 datagram).
pub const GSO_BYTES_MAX: usize = 65_000;

/// Send operations of one UDP driver. With the receive side it limits the number of completions, so that the
/// completion queue cannot overflow.
pub const SENDS_MAX: usize = 4_096;

/// Idle send operations that keep their batch buffer, about 64 kB each.
pub const SEND_BUFFERS_KEPT: usize = 32;

/// Eventfds that one UDP driver waits for.
pub const EVENTFDS_MAX: usize = 64;

/// Receive buffers of one UDP driver. The kernel's buffer ring requires a power of two.
pub const RECEIVE_BUFFERS: u16 = 256;

/// Bytes of one receive buffer: the kernel's header, the sender's address, control data and a datagram.
pub const RECEIVE_BUFFER_BYTES: usize = 2_048;

/// Receive operations on kernels without multishot receive (before 6.0).
pub const RECEIVE_OPERATIONS: u16 = 32;

/// Failed receives in a row after which a UDP driver stops receiving, to avoid a busy loop.
pub const RECEIVE_ERRORS_MAX: u32 = 1_000;

/// Remote addresses remembered as unable to take GSO sends. The oldest is replaced.
pub const PLAIN_ROUTES_MAX: usize = 64;

/// Datagrams of refused GSO sends that wait to be sent one by one. Further ones are dropped and counted.
pub const RESENDS_MAX: usize = 8 * GSO_SEGMENTS_MAX;

/// Queued datagrams after which the worker enters the kernel before the turn ends: about one GSO batch, still in the
/// CPU's cache. Small units of several viewers are submitted together.
pub const SUBMIT_DATAGRAMS: u32 = 24;

/// Bytes of the UDP socket's send buffer and receive buffer: several IDR bursts of all viewers.
pub const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
