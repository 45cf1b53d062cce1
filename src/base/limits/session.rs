//! Bounds of one viewer's session.

use std::time::Duration;

use super::{BODY_BYTES_MAX, DATAGRAM_BYTES_MAX};

/// Maximum number of viewers of one process, and the upper limit of `--max-viewers`.
pub const VIEWERS_MAX: usize = 1_024;

/// Maximum bytes of an SDP offer. A browser's offer has 3 to 10 kB.
pub const OFFER_BYTES_MAX: usize = BODY_BYTES_MAX;

/// Maximum number of media descriptions (m-lines) of an offer.
pub const OFFER_MEDIA_MAX: usize = 32;

/// Maximum number of formats of an m-line. There are 128 payload types, so an m-line with more repeats some.
pub const OFFER_FORMATS_MAX: usize = 128;

/// Maximum number of attribute lines of an offer. A browser's offer of one video has about 200, and lines of usual
/// length fill [`OFFER_BYTES_MAX`] before this number is reached.
pub const OFFER_ATTRIBUTES_MAX: usize = 4_096;

/// Maximum bytes of an m-line's `mid`.
pub const OFFER_MID_BYTES_MAX: usize = 255;

/// Maximum bytes of a fragment of SDP in a PATCH. Candidates have about 100 bytes each.
pub const FRAGMENT_BYTES_MAX: usize = 16 * 1024;

/// Number of the viewer's ufrags from before its ICE restarts that a session remembers. Late candidates carry them.
pub const EARLIER_UFRAGS_MAX: usize = 4;

/// Minimum time between two ICE restarts of one session. A viewer needs longer to find out that its network has
/// changed.
pub const ICE_RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of local ICE candidates announced to a viewer, including those of `--advertise`.
pub const CANDIDATES_MAX: usize = 32;

/// Nanoseconds for which the list of this machine's addresses is used again without reading it.
pub const ADDRESSES_FRESH_NS: i64 = 1_000_000_000;

/// Maximum time from the offer until the DTLS handshake is complete.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without an authentic STUN request or SRTCP datagram after which a session ends (RFC 7675 section 5.1).
pub const CONSENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time without an authentic STUN request or SRTCP datagram after which no more media is sent. Browsers send STUN every
/// 2 to 5 s and SRTCP about once a second.
pub const CONSENT_PAUSE: Duration = Duration::from_secs(10);

/// Time after an unauthenticated fatal alert in which the handshake may still finish. A forged alert can then end a
/// handshake only if that takes longer.
pub const ALERT_GRACE: Duration = Duration::from_millis(500);

/// Maximum number of ended sessions that `/api/viewers` shows.
pub const ENDED_SESSIONS_MAX: usize = 32;

/// Delay of the first retransmission of a DTLS flight. The delay doubles with every retry. RFC 6347 recommends 1 s, but
/// viewers on the local network answer within milliseconds.
pub const DTLS_FLIGHT_RETRANSMIT: Duration = Duration::from_millis(150);

/// Maximum number of retries of a DTLS flight. The last retry is sent before [`HANDSHAKE_TIMEOUT`] has passed.
pub const DTLS_FLIGHT_RETRIES: usize = 6;

/// Maximum time in milliseconds for which a viewer may ask to hold pictures back (playout-delay extension).
pub const PLAYOUT_DELAY_MAX_MS: u16 = 500;

/// Number of packets in a viewer's retransmission cache. An IDR of an 8 Mbps stream (up to 274 packets) and the next
/// 120 ms fit. Viewers share the payload buffers. For each buffer, which holds several payloads, a viewer's cache needs
/// 48 bytes.
pub const RTX_CACHE_PACKETS: usize = 384;

/// Time after sending for which a packet can be retransmitted. A viewer of a slow camera notices the loss of a unit's
/// last packet only when the next unit arrives, so the age of the unit before counts from the newest unit.
pub const RTX_CACHE_AGE: Duration = Duration::from_secs(1);

/// Maximum number of retransmissions to one viewer per second. Further requests are ignored: they are a NACK flood.
pub const RETRANSMITS_PER_SECOND_MAX: u32 = 1_024;

/// Minimum time between two retransmissions of the same packet. A receiver requests a packet only a few times (str0m
/// five times, one round trip apart). Each ignored request wastes one of these attempts, so this time must be short.
pub const RESEND_GUARD: Duration = Duration::from_millis(5);

/// Time between two sender reports of a stream.
pub const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Number of sent reports that a viewer's report may refer to. Viewers refer to the latest report that they received.
pub const SENDER_REPORTS_KEPT: usize = 4;

/// Maximum number of SSRCs from which one viewer may send RTCP. Browsers use one SSRC for all streams, or one per
/// stream.
pub const RTCP_SENDERS_MAX: usize = 8;

/// Bytes of an RTP packet in addition to its payload: header, original sequence number (RTX) and authentication tag.
pub const RTP_OVERHEAD_BYTES_MAX: usize = 12 + 2 + 16;

/// Bytes of the IPv4 and UDP headers of a datagram.
pub const IP_UDP_BYTES: usize = 20 + 8;

/// Maximum bytes of the RTP header extensions. Their common header is followed by mid, playout delay, capture time and
/// transport-wide sequence number, each with a header of one byte. Padding fills the last 32-bit word.
pub const RTP_EXTENSIONS_BYTES_MAX: usize = 4 + (17 + 4 + 17 + 3_usize).next_multiple_of(4);

/// Maximum number of paths of one viewer: pairs of its address and one of ours. A viewer has candidates of both address
/// families, and new addresses after a network change. At the limit, the path that was unused for the longest time is
/// removed.
pub const VIEWER_PATHS_MAX: usize = 16;

/// An address that is not proven gets at most this many times the bytes received from it (RFC 9000 section 8.1).
pub const UNPROVEN_FACTOR: usize = 3;

/// Maximum number of STUN requests to one path until the viewer sends another one there.
pub const PATH_CHECKS_MAX: u32 = 4;

/// Time between the first two STUN requests to one path. It doubles with every further one.
pub const PATH_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Time between the first requests to two candidates of a WHIP server's answer (RFC 8445 section 14.2).
pub const CANDIDATE_PACE: Duration = Duration::from_millis(50);

/// Maximum number of STUN requests to a candidate of a WHIP server's answer. The last one is sent before
/// [`HANDSHAKE_TIMEOUT`] has passed.
pub const CANDIDATE_CHECKS_MAX: u32 = 7;

/// Bytes that count as received from a candidate of a WHIP server's answer. [`UNPROVEN_FACTOR`] times as many allow
/// [`CANDIDATE_CHECKS_MAX`] requests.
pub const CANDIDATE_CREDIT_BYTES: usize = 512;

/// Time between two STUN requests by which a publisher renews consent (RFC 7675 section 5.1). Shorter than for
/// browsers, because the far end's failure must be noticed within [`PUBLISHER_SILENCE_MAX`].
pub const PUBLISHER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time without an authentic datagram from a WHIP server after which the session ends and the publisher connects again.
pub const PUBLISHER_SILENCE_MAX: Duration = Duration::from_secs(5);

/// Number of a viewer's STUN requests that are remembered, so that replays are recognised. Browsers send a request at
/// least every 50 ms while they connect, and every 2 to 5 s afterwards. In a session with more requests, a request
/// alone has less effect.
pub const SEEN_REQUESTS_MAX: usize = 128;

/// Maximum number of STUN answers of one session that wait for its next drain.
pub const STUN_OUTPUT_MAX: usize = 16;

/// Time without an authentic datagram after which an address may pass to another session, although the old session
/// still lasts: the program at that address was probably restarted.
pub const ADDRESS_HELD: Duration = Duration::from_secs(6);

/// Time that a session has to prove an address, before it may pass to another session.
pub const ADDRESS_CLAIMED: Duration = Duration::from_secs(3);

/// Maximum number of datagrams of one viewer that the kernel may hold unsent. Above half of this number, non-reference
/// units are skipped. Above the full number, all units up to the next IDR are dropped.
pub const VIEWER_IN_FLIGHT_MAX: u32 = 1_024;

/// Maximum payload bytes of one viewer that wait: in the kernel, and in the session if the viewer is paced.
pub const UNSENT_BYTES_MAX: usize = VIEWER_IN_FLIGHT_MAX as usize * DATAGRAM_BYTES_MAX;

/// Maximum number of datagrams of a paced viewer that the kernel may hold unsent. Above this number, the viewer drops
/// to the next IDR.
pub const PACED_IN_FLIGHT_MAX: u32 = VIEWER_IN_FLIGHT_MAX / 4;

/// Maximum number of datagrams that wait for a viewer over TCP, without those in the socket's buffer. Above this number,
/// the viewer drops to the next IDR. It is smaller than that of UDP, because everything that waits arrives late.
pub const TCP_IN_FLIGHT_MAX: u32 = VIEWER_IN_FLIGHT_MAX / 2;

/// Maximum bytes of payload buffers that wait in the session of a paced viewer. Together with the datagrams that the
/// kernel may hold, they take at most [`UNSENT_BYTES_MAX`]. A larger IDR leaves at once.
pub const PACED_BYTES_MAX: usize = UNSENT_BYTES_MAX - PACED_IN_FLIGHT_MAX as usize * DATAGRAM_BYTES_MAX;

/// Slowest and fastest estimate of a link in bytes per second: 100 kbit/s and 100 Mbit/s.
pub const LINK_BYTES_PER_S: std::ops::RangeInclusive<u64> = 12_500..=12_500_000;

/// First estimate of a link without any measurement, in bytes per second: 4 Mbit/s. The first burst corrects it.
pub const LINK_FIRST_BYTES_PER_S: u64 = 500_000;

/// Number of packets with a transport-wide sequence number whose sending is remembered until the viewer reports them.
/// There are about 30 per second, or 100 if the viewer is paced.
pub const MARKED_PACKETS_MAX: usize = 256;

/// Time after which the next unit of a viewer on a good link is marked.
pub const MARK_REST: Duration = Duration::from_millis(250);

/// Time for which all units are marked after a sign of trouble.
pub const LINK_WATCHED: Duration = Duration::from_secs(2);

/// Number of sender reports from one small marked packet to the next. Of all these packets, the fastest tells the delay
/// of the link without a queue.
pub const REPORTS_PER_MARK: u32 = 5;

/// Time after which a paced viewer gets another marked packet, even if no unit ends.
pub const MARK_INTERVAL: Duration = Duration::from_millis(100);

/// Fewest bytes from which the rate of a link is measured.
pub const MEASURED_BYTES_MIN: u64 = 4_000;

/// Time on a link that is too short to measure a rate, because clocks and browsers are that inexact.
pub const DELAY_NOISE: Duration = Duration::from_millis(3);

/// Time for which the smallest delay of a link is remembered, at least. Afterwards the path may be another one, and the
/// two clocks may have drifted.
pub const DELAY_REMEMBERED: Duration = Duration::from_secs(20);

/// Length of the two periods over which lost packets are counted.
pub const LOSS_PERIOD: Duration = Duration::from_millis(500);

/// Time after a lower pace in which reports of loss are about the time before.
pub const LOSS_SETTLES: Duration = Duration::from_millis(1_500);

/// A viewer is paced if every packet waits at least this long in the link's queue ...
pub const QUEUE_DELAY: Duration = Duration::from_millis(60);

/// ... for at least this time. The queue is then never empty: the stream is faster than the link.
pub const QUEUE_STANDS: Duration = Duration::from_secs(1);

/// Fewest packets with which a queue is found.
pub const QUEUE_PACKETS_MIN: u32 = 10;

/// Share of lost packets in a report, in 256ths, from which a viewer is paced if packets waited: 10 %.
pub const PACED_FROM_LOSS_256THS: u8 = 26;

/// Number of receiver reports in a row with such loss from which a viewer is paced, even if no packet is known to have
/// waited in a queue: a queue that was full from the start has no shorter delay to compare with.
pub const PACED_FROM_HEAVY_REPORTS: u32 = 2;

/// Shortest time between two receiver reports that tell a rate.
pub const REPORT_SPAN_MIN: Duration = Duration::from_millis(250);

/// Loss in 256ths up to which a link that does not report arrivals may carry more than was sent.
pub const NEARLY_NO_LOSS_256THS: u8 = 5;

/// How long a rate that comes from receiver reports is kept before a higher one is tried: the first time, and at most.
pub const PASSED_RATE_TRUSTED: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(30)..=Duration::from_secs(480);

/// Number of consecutive packets requested again at once from which a viewer is paced: a full queue has dropped them.
pub const PACED_FROM_LOST_IN_A_ROW: u32 = 8;

/// Time between two wake-ups for one paced viewer. The packets of this time are sent together.
pub const PACE_SLOT: Duration = Duration::from_millis(2);

/// Maximum time of missed wake-ups that a paced viewer makes up for in one burst.
pub const PACE_BURST: Duration = Duration::from_millis(5);

/// Bytes of a probe: packets that are sent in one burst, between two marked packets.
pub const PROBE_BYTES: std::ops::RangeInclusive<usize> = 6_000..=24_000;

/// Time that a probe should take on the link.
pub const PROBE_MS: u64 = 60;

/// Minimum time between two probes at IDRs, and time after which any large unit is used as a probe.
pub const PROBE_INTERVAL: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(1_200)];

/// Shortest time between two probes of a viewer without RTX, of which each is a whole unit.
pub const UNIT_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum time that a unit may wait for a slow link before it is sent. Later units of the GOP are not sent.
pub const PACED_WAIT_MAX: Duration = Duration::from_millis(665);

/// Maximum time that an IDR may wait until the unit before it is sent. The viewer gets the next IDR instead, with less
/// delay.
pub const PACED_IDR_WAIT_MAX: Duration = Duration::from_millis(750);

/// Time by which the units of a GOP may be late when the next IDR arrives.
pub const PACED_LATE_MAX: Duration = Duration::from_millis(100);

/// Time without trouble after which a viewer is no longer paced. It doubles whenever the trouble comes back.
pub const PACED_AT_LEAST: Duration = Duration::from_secs(10);

/// Longest interval between IDRs that is taken for the length of a GOP.
pub const GOP_INTERVAL_MAX: Duration = Duration::from_secs(10);
