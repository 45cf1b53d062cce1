//! Bounds of one viewer's session.

use std::time::Duration;

use super::BODY_BYTES_MAX;

/// Viewers of one process. Upper limit of `--max-viewers`.
pub const VIEWERS_MAX: usize = 1_024;

/// Bytes of an SDP offer. A browser's has 3 to 10 kB.
pub const OFFER_BYTES_MAX: usize = BODY_BYTES_MAX;

/// Media descriptions (m-lines) of an offer.
pub const OFFER_MEDIA_MAX: usize = 32;

/// Local candidates announced to a viewer, including those of `--advertise`.
pub const CANDIDATES_MAX: usize = 32;

/// Time from the offer until DTLS must be complete.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without an authenticated STUN request after which a session ends. RFC 7675 allows 30 s; browsers check
/// every 2 to 5 s.
pub const CONSENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Delay of the first retransmission of a DTLS flight, doubled per retry. RFC 6347 recommends 1 s; viewers on the
/// local network answer within milliseconds.
pub const DTLS_FLIGHT_RETRANSMIT: Duration = Duration::from_millis(150);

/// Retries of a DTLS flight. The last one leaves before [`HANDSHAKE_TIMEOUT`].
pub const DTLS_FLIGHT_RETRIES: usize = 6;

/// Packets in a viewer's retransmission cache: the IDR of an 8 Mbps stream (up to 274) and the next 120 ms. Viewers
/// share the payloads; each buffer of several payloads takes 48 bytes of every viewer's memory.
pub const RTX_CACHE_PACKETS: usize = 384;

/// Time for which a packet can be retransmitted.
pub const RTX_CACHE_AGE: Duration = Duration::from_secs(1);

/// Retransmissions to one viewer per second. Further requests are ignored (NACK flood).
pub const RETRANSMITS_PER_SECOND_MAX: u32 = 1_024;

/// Minimum time between two retransmissions of the same packet. Receivers request a packet only a few times (str0m
/// five times, one round trip apart), and a refusal costs one of them: keep this short.
pub const RESEND_GUARD: Duration = Duration::from_millis(5);

/// Time between two sender reports of a stream.
pub const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// SSRCs from which one viewer may send RTCP. Browsers use one for all streams, or one per stream.
pub const RTCP_SENDERS_MAX: usize = 8;

/// Bytes of an RTP packet besides its payload: header, original sequence number, authentication tag.
pub const RTP_OVERHEAD_BYTES_MAX: usize = 12 + 2 + 16;

/// Bytes of the header extensions: their header, then mid, playout delay and capture time with one byte each, padded
/// to whole words.
pub const RTP_EXTENSIONS_BYTES_MAX: usize = 4 + (17 + 4 + 17_usize).next_multiple_of(4);

/// Addresses of one viewer in one session (candidates of both families, network changes). str0m keeps a candidate
/// for each and never removes it.
pub const VIEWER_PATHS_MAX: usize = 64;

/// Datagrams of one viewer that the kernel may hold unsent. Above half of it, non-reference units are skipped. Above
/// it, all units up to the next IDR are dropped.
pub const VIEWER_IN_FLIGHT_MAX: u32 = 1_024;
