//! Bounds of NAL units, payloads and their buffers.

use super::RTP_OVERHEAD_BYTES_MAX;

/// Bytes of a datagram. With UDP and IPv6 headers it fits every IPv6 path (1280 bytes, RFC 8200 section 5) and most
/// tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1_280 - 40 - 8;

/// RTP payload bytes of one datagram.
pub const RTP_PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - RTP_OVERHEAD_BYTES_MAX;

/// NAL units of one access unit. A unit with more is malformed.
pub const NAL_UNITS_MAX: usize = 256;

/// Bytes of one parameter set. Typical ones have 10 to 100; with all scaling lists and HRD they stay below 700. Ids
/// limit their number: a consumer keeps at most 32 + 256.
pub const PARAMETER_SET_BYTES_MAX: usize = 1_024;

/// Macroblocks of one side of a picture: sqrt(8 x `MaxFS`) of level 6.2 (H.264 A.3.1).
pub const PICTURE_SIDE_MACROBLOCKS_MAX: u32 = 1_055;

/// Macroblocks of a picture: `MaxFS` of level 6.2 (H.264 table A-1).
pub const PICTURE_MACROBLOCKS_MAX: u32 = 139_264;

/// Bytes of RTP payload buffers that one packetiser keeps for reuse, in use or free.
pub const PAYLOAD_POOL_BYTES_MAX: usize = 5 << 20;

/// Full-size payloads that fit one buffer. A P picture takes a few buffers, so little of the last one is wasted.
pub const FULL_PAYLOADS_OF_BUFFER: usize = 8;

/// Payloads of any size in one buffer.
pub const PAYLOADS_OF_BUFFER_MAX: usize = 2 * FULL_PAYLOADS_OF_BUFFER;

/// Bytes of a payload buffer besides its payloads: counters, table, handle, the allocator's share.
pub const PAYLOAD_BUFFER_OVERHEAD_BYTES: usize = 1_024;

/// Buffers in use that a packetiser checks per access unit before it allocates a new one.
pub const PAYLOAD_POOL_CHECKS_MAX: usize = 64;

/// First bytes of a slice, including its header byte, that contain the first three numbers of the slice header
/// (H.264 7.3.3).
pub const SLICE_HEAD_BYTES: usize = 64;
