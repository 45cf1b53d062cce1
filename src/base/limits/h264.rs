//! Bounds of NAL units, payloads and their buffers.

use super::RTP_OVERHEAD_BYTES_MAX;

/// Maximum UDP payload bytes of a datagram. With its UDP and IPv6 headers, such a datagram fits the minimum MTU of IPv6
/// (1280 bytes, RFC 8200 section 5) and most tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1_280 - 40 - 8;

/// Maximum RTP payload bytes of one datagram.
pub const RTP_PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - RTP_OVERHEAD_BYTES_MAX;

/// Maximum number of NAL units of one access unit. An access unit with more NAL units is malformed.
pub const NAL_UNITS_MAX: usize = 256;

/// Maximum bytes of one parameter set. Typical sets have 10 to 100 bytes. With all scaling lists and HRD parameters, a
/// set stays below 700 bytes. A consumer keeps one set per valid id: at most 32 SPS and 256 PPS.
pub const PARAMETER_SET_BYTES_MAX: usize = 1_024;

/// Maximum macroblocks of one side of a picture: sqrt(8 x `MaxFS`) of level 6.2 (H.264 A.3.1).
pub const PICTURE_SIDE_MACROBLOCKS_MAX: u32 = 1_055;

/// Maximum macroblocks of a picture: `MaxFS` of level 6.2 (H.264 table A-1).
pub const PICTURE_MACROBLOCKS_MAX: u32 = 139_264;

/// Maximum bytes of all RTP payload buffers of one packetiser: those in use and those kept for reuse.
pub const PAYLOAD_POOL_BYTES_MAX: usize = 5 << 20;

/// Number of full-size payloads that fit in one buffer. The number is small so that a P picture fills several buffers
/// and leaves only a small part of its last buffer unused.
pub const FULL_PAYLOADS_OF_BUFFER: usize = 8;

/// Maximum number of payloads, of any size, in one buffer.
pub const PAYLOADS_OF_BUFFER_MAX: usize = 2 * FULL_PAYLOADS_OF_BUFFER;

/// Bytes that a payload buffer takes in addition to its payloads: counters, table, handle and the allocator's overhead.
pub const PAYLOAD_BUFFER_OVERHEAD_BYTES: usize = 1_024;

/// Maximum number of buffers still in use that a packetiser skips per access unit in its search for free buffers. If it
/// finds none, it allocates a new buffer.
pub const PAYLOAD_POOL_CHECKS_MAX: usize = 64;

/// Number of bytes from the start of a slice NAL unit that always contain the first three numbers of the slice header
/// (H.264 7.3.3).
pub const SLICE_HEAD_BYTES: usize = 64;
