//! Every bound of the program in one place, tied to each other by const asserts.
//! A bound is not configuration: changing one is changing the program.

mod camera;
mod profiling;
mod security;
mod start_stop;

pub use camera::*;
pub use profiling::*;
pub use security::*;
pub use start_stop::*;

use std::time::Duration;

// ---- h264 ------------------------------------------------------------------------------------------

/// Bytes of a datagram: with the headers of UDP and IPv6 what every IPv6 path takes (1280, RFC 8200 section 5), and
/// most tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1_280 - 40 - 8;

/// RTP payload bytes of one datagram.
pub const RTP_PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - RTP_OVERHEAD_BYTES_MAX;

/// NAL units looked at in one access unit; more is a malformed unit.
pub const NAL_UNITS_MAX: usize = 256;

/// Bytes of one parameter set; a usual one has 10 to 100, one with all scaling lists and HRD below 700.
/// Ids bound their number: at most 32 + 256 of them are kept per consumer.
pub const PARAMETER_SET_BYTES_MAX: usize = 1_024;

/// Macroblocks of a picture's side: sqrt(8 x `MaxFS`) of level 6.2 (H.264 A.3.1).
pub const PICTURE_SIDE_MACROBLOCKS_MAX: u32 = 1_055;

/// Macroblocks of a picture: `MaxFS` of level 6.2 (H.264 table A-1).
pub const PICTURE_MACROBLOCKS_MAX: u32 = 139_264;

/// Bytes of RTP payload buffers one packetiser keeps for reuse, handed out or free.
pub const PAYLOAD_POOL_BYTES_MAX: usize = 5 << 20;

/// Full-size payloads for which one buffer has room: a P-frame is a few buffers, and the last one not too empty.
pub const FULL_PAYLOADS_OF_BUFFER: usize = 8;

/// Payloads of any size in one buffer.
pub const PAYLOADS_OF_BUFFER_MAX: usize = 2 * FULL_PAYLOADS_OF_BUFFER;

/// What a payload buffer costs beside its payloads: counters, table, handle, the allocator's share.
pub const PAYLOAD_BUFFER_OVERHEAD_BYTES: usize = 1_024;

/// Handed-out payload buffers a packetiser looks at in vain before it stops searching, per access unit.
pub const PAYLOAD_POOL_CHECKS_MAX: usize = 64;

/// Bytes of a slice, its header byte included, in which the three numbers lie that its header begins with (H.264 7.3.3).
pub const SLICE_HEAD_BYTES: usize = 64;

const _: () = assert!(
    PARAMETER_SET_BYTES_MAX < RTP_PAYLOAD_BYTES_MAX - RTP_EXTENSIONS_BYTES_MAX,
    "a parameter set never needs fragments"
);
const _: () = assert!(RTP_PAYLOAD_BYTES_MAX <= u16::MAX as usize, "STAP-A sizes have 16 bits");
const _: () = assert!(
    SLOT_DATA_BYTES_MAX / (FULL_PAYLOADS_OF_BUFFER * (RTP_PAYLOAD_BYTES_MAX - 2))
        * (FULL_PAYLOADS_OF_BUFFER * RTP_PAYLOAD_BYTES_MAX + PAYLOAD_BUFFER_OVERHEAD_BYTES)
        < PAYLOAD_POOL_BYTES_MAX,
    "the fragments of the largest unit fit; so do 3 s at 8 Mbps"
);

// ---- session ---------------------------------------------------------------------------------------

/// Viewers one process accepts at most, whatever `--max-viewers` says.
pub const VIEWERS_MAX: usize = 1_024;

/// Bytes of an SDP offer (a browser's is 3 to 10 kB).
pub const OFFER_BYTES_MAX: usize = BODY_BYTES_MAX;

/// Media descriptions (m-lines) of an offer.
pub const OFFER_MEDIA_MAX: usize = 32;

/// Local candidates announced to a viewer, `--advertise` included.
pub const CANDIDATES_MAX: usize = 32;

/// Time from the offer until DTLS must have finished.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without an authenticated STUN request after which a viewer is gone (RFC 7675 allows 30 s;
/// browsers check every 2 to 5 s).
pub const CONSENT_TIMEOUT: Duration = Duration::from_secs(15);

/// First retransmission of a DTLS flight; doubled per retry (RFC 6347 says 1 s; a viewer on the same
/// network answers within milliseconds).
pub const DTLS_FLIGHT_RETRANSMIT: Duration = Duration::from_millis(150);

/// Retries of a DTLS flight: with the above the last one leaves before [`HANDSHAKE_TIMEOUT`] is over.
pub const DTLS_FLIGHT_RETRIES: usize = 6;

/// Packets a viewer can still ask for again: the IDR of an 8 Mbps stream (up to 274) and 120 ms after it.
/// The payloads are shared, several in a buffer, and each buffer takes 48 bytes of every viewer's memory.
pub const RTX_CACHE_PACKETS: usize = 384;

/// How long a packet can be asked for again.
pub const RTX_CACHE_AGE: Duration = Duration::from_secs(1);

/// Retransmissions to one viewer in one second; beyond, nothing is sent again (a NACK flood).
pub const RETRANSMITS_PER_SECOND_MAX: u32 = 1_024;

/// A packet sent again is not sent a third time before this is over. No longer: receivers ask for a packet a few times
/// only (str0m five times, a round trip apart), and each refusal is one of them.
pub const RESEND_GUARD: Duration = Duration::from_millis(5);

/// Between two sender reports of a stream.
pub const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// SSRCs under which one viewer may send RTCP (browsers have one for all streams, or one for each).
pub const RTCP_SENDERS_MAX: usize = 8;

/// What an RTP packet has beside its payload: the header, the original sequence number, the tag.
pub const RTP_OVERHEAD_BYTES_MAX: usize = 12 + 2 + 16;

/// The header extensions of the packet that has them: their head; mid, playout delay and capture time, each with
/// a byte of its own, in whole words.
pub const RTP_EXTENSIONS_BYTES_MAX: usize = 4 + (17 + 4 + 17_usize).next_multiple_of(4);

/// Addresses a viewer may have in one session (candidates of both families, changes of network): str0m
/// keeps a candidate for each and never forgets it.
pub const VIEWER_PATHS_MAX: usize = 64;

/// Datagrams of one viewer the kernel may hold unsent: above half of it non-reference units are
/// skipped, above it the viewer drops to the next IDR.
pub const VIEWER_IN_FLIGHT_MAX: u32 = 1_024;

// ---- service ---------------------------------------------------------------------------------------

/// Looks at the heartbeats within the time a service manager waits for a sign of life.
pub const SIGNS_OF_LIFE_PER_WATCHDOG: u32 = 4;

/// Between two looks at what the service manager is told, where it waits for no sign of life.
pub const STATUS_PERIOD: Duration = Duration::from_secs(5);

// ---- uring -----------------------------------------------------------------------------------------

/// Segments of one GSO send (the kernel's own bound is 64, `UDP_MAX_SEGMENTS`).
pub const GSO_SEGMENTS_MAX: usize = 52;

/// Bytes of one GSO send, headers excluded (an IPv4 datagram's bound).
pub const GSO_BYTES_MAX: usize = 65_000;

/// Send operations of one edge at most, whatever its configuration asks for. With the receive side it
/// bounds the completion queue, so that the queue cannot overflow.
pub const SENDS_MAX: usize = 4_096;

/// Send operations that keep their run's bytes, about 64 kB each, while they are not in use.
pub const SEND_BUFFERS_KEPT: usize = 32;

/// Bells (eventfds) one edge watches at most.
pub const EVENTFDS_MAX: usize = 64;

/// Receive buffers of one edge; a power of two, as the kernel's buffer ring wants it.
pub const RECEIVE_BUFFERS: u16 = 256;

/// Bytes of one receive buffer: the kernel's header, the sender's address, control and a datagram.
pub const RECEIVE_BUFFER_BYTES: usize = 2_048;

/// Receive operations where the kernel has no multishot receive (before 6.0).
pub const RECEIVE_OPERATIONS: u16 = 32;

/// Failed receives in a row after which an edge stops receiving instead of spinning.
pub const RECEIVE_ERRORS_MAX: u32 = 1_000;

/// Remote addresses remembered as unable to take GSO sends; the oldest makes room.
pub const PLAIN_ROUTES_MAX: usize = 64;

/// Datagrams of refused GSO sends waiting to be sent one by one; more are dropped and counted.
pub const RESENDS_MAX: usize = 8 * GSO_SEGMENTS_MAX;

/// Datagrams queued after which the kernel is entered before the turn ends: about a GSO run, which still lies
/// in the processor's cache. Small units of several viewers go out together.
pub const SUBMIT_DATAGRAMS: u32 = 24;

/// Send and receive buffer of the UDP socket in bytes: several IDR bursts of all viewers.
pub const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
// ---- recorder --------------------------------------------------------------------------------------

/// Parts of one gathered write: a header and a body for each NAL unit, and the file's head.
pub const WRITE_PARTS_MAX: usize = 2 * NAL_UNITS_MAX + 2;

/// Bytes a recording is preallocated ahead in one step (16 s at 32 Mbps, minutes at usual rates).
pub const ALLOCATE_BYTES: u64 = 64 << 20;

/// The smallest step tried on a nearly full disk; if that fails too, the disk is full.
pub const ALLOCATE_BYTES_MIN: u64 = 256 << 10;

/// Bytes that must be free for a recording to start at all.
pub const START_FREE_BYTES_MIN: u64 = 1 << 20;

/// Nanoseconds between two fdatasync of a recording: what a power loss may take.
pub const SYNC_INTERVAL_NS: i64 = 1_000_000_000;

/// Bytes after which a recording goes on in the next file at the next IDR (FAT32 ends at 4 GiB).
pub const RECORDING_BYTES_SOFT: u64 = 3_900_000_000;

/// Bytes at which a file is closed even if no IDR came.
pub const RECORDING_BYTES_MAX: u64 = 4_200_000_000;

/// Nanoseconds of recording after which the next IDR opens the next file.
pub const RECORDING_DURATION_SOFT_NS: i64 = 3_600_000_000_000;

/// Access units of one file (the index takes 8 bytes each).
pub const RECORDING_UNITS_MAX: usize = 1 << 20;

/// Files of one recording (splits and changed parameter sets).
pub const RECORDING_FILES_MAX: u32 = 9_999;

/// Files of one recording that may be finishing (index, fdatasync) while the next is written.
pub const FINISHING_MAX: usize = 4;

/// Names tried for a recording whose name is taken (`_2`, `_3`, ...).
pub const NAME_ATTEMPTS_MAX: u32 = 9_999;

/// Bytes of a recording's file name, extension included (a file system's bound is 255).
pub const RECORDING_NAME_BYTES_MAX: usize = 200;

/// Commands waiting for the recorder.
pub const RECORDER_COMMANDS_MAX: usize = 16;

/// Seconds a caller waits for the recorder's reply before it is told that the disk hangs.
pub const RECORDER_REPLY_S: u64 = 10;

/// Nanoseconds a stop goes on writing what was in the ring when it was asked.
pub const DRAIN_NS_MAX: i64 = 2_000_000_000;

/// Nanoseconds a stop waits for a unit that the camera had begun when it was asked: several pictures, as the next
/// one may be what tells that it is whole.
pub const DRAIN_BEGUN_NS_MAX: i64 = 200_000_000;

/// Slots of the ring that a start doesn't go back to: two that may be overwritten any moment, and two
/// for the camera to go on while the file is created. Half of a ring that is shorter than twice that.
pub const PRE_ROLL_MARGIN_UNITS: u32 = 4;

/// Milliseconds between two looks of an idle recorder at the ring (it only keeps parameter sets).
pub const RECORDER_IDLE_POLL_MS: u64 = 400;

/// Milliseconds after which a recorder that waits for units looks by itself, should no bell have rung.
pub const RECORDER_POLL_MS: u64 = 100;

/// Units an idle recorder looks at in one turn: more than any ring holds.
pub const IDLE_UNITS_PER_POLL_MAX: u32 = 64;

/// Nanoseconds between two checks of the retention rules while recording.
pub const RETENTION_INTERVAL_NS: i64 = 10_000_000_000;

/// Seconds since 1970 before which a clock was not set yet (2024): a board without a battery starts in
/// 1970, and its recordings would all be too old once the network tells the time.
pub const AGE_KNOWN_SINCE_S: u64 = 1_704_067_200;

/// Times, 100 ms apart, that a repair waits for the lock of a file: a killed process may let go late.
pub const REPAIR_LOCK_ATTEMPTS: u32 = 50;

/// Recordings looked at in one listing.
pub const RECORDINGS_LISTED_MAX: usize = 10_000;

/// Bytes at the end of an unfinished `.h264` searched for its last whole access unit.
pub const RECOVERY_TAIL_BYTES_MAX: u64 = 3 * SLOT_DATA_BYTES_MAX as u64;

/// Seconds a request may ask for (pre-roll, maximum duration, heartbeat): thirty days.
pub const REQUEST_SECONDS_MAX: f64 = 2_592_000.0;

const _: () = assert!(WRITE_PARTS_MAX <= 1_024, "IOV_MAX");
const _: () = assert!(RECORDING_BYTES_SOFT + 64 * (SLOT_DATA_BYTES_MAX as u64) < RECORDING_BYTES_MAX);
const _: () = assert!(RECORDING_BYTES_MAX < 1 << 32, "32-bit chunk offsets suffice");

// ---- control ---------------------------------------------------------------------------------------

/// Bytes of a request body (an SDP offer of a browser is 3 to 10 kB).
pub const BODY_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(
    CAMERA_CHECK_SILENT_NS <= CAMERA_WAIT_MAX_NS && CAMERA_CHECK_NS <= CAMERA_SILENT_NS,
    "a camera that restarts is found while it is silent"
);
const _: () =
    assert!(COMMIT_STABLE_NS >= 2 * POLL_STEP_NS, "a slot is looked at again before it counts as settled");
const _: () = assert!(LEASE_SLOT_BYTES as usize == SLOT_DATA_BYTES_MAX, "whatever a legacy slot holds fits");
const _: () = assert!(PRE_IMAGE_BYTES_MAX <= SLOT_DATA_BYTES_MAX, "the scout stays inside the slot");
/// Bytes of a request's line and headers; more is answered 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Bytes hyper buffers for one connection in each direction.
pub const CONNECTION_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Between two looks for a change to tell to listeners of events.
pub const EVENTS_LOOK: Duration = Duration::from_millis(100);

/// Between two `status` events.
pub const EVENTS_STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The recorder's part of a status; a disk that hangs longer shows as `unresponsive`.
pub const EVENTS_RECORDER_TIMEOUT: Duration = Duration::from_millis(300);

/// Events kept for a listener that reads late.
pub const EVENTS_KEPT: usize = 16;

/// Listeners to events at once: a part of [`CONNECTIONS_MAX`], as each holds a connection for good.
pub const EVENT_LISTENERS_MAX: usize = 128;

/// Seconds a listener without a place is told to wait.
pub const EVENTS_RETRY_AFTER_S: u32 = 10;

/// Connections served at once; the next one is told 503 and closed.
pub const CONNECTIONS_MAX: usize = 256;

/// Refused connections that may wait at once for their 503 to be read; beyond these, closed at once.
pub const REFUSALS_MAX: usize = 64;

/// Time from accept, or from the end of the last answer, until a request's head is complete: a slow head
/// and an idle connection end alike.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a request's body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time an answer may lie unacknowledged at a browser that reads nothing (`TCP_USER_TIMEOUT`).
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time the rest of the program has to answer a request.
pub const BACKEND_TIMEOUT: Duration = Duration::from_secs(12);

/// Time a connection we close stays open for the last answer to be read.
pub const LINGER: Duration = Duration::from_secs(1);

/// Time that answers in progress have at shutdown.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Workers one process runs at most.
pub const WORKERS_MAX: usize = 64;

const _: () = assert!(GSO_SEGMENTS_MAX <= 64, "UDP_MAX_SEGMENTS");
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two(), "io_uring_register_buf_ring(3)");
const _: () = assert!(RECEIVE_OPERATIONS <= RECEIVE_BUFFERS, "one bound covers both ways of receiving");
const _: () = assert!(
    SENDS_MAX + EVENTFDS_MAX + (RECEIVE_BUFFERS as usize) < 8_192,
    "every operation's completion fits in the completion queue at once"
);
const _: () = assert!(
    (RTP_PAYLOAD_BYTES_MAX + RTP_OVERHEAD_BYTES_MAX) * GSO_SEGMENTS_MAX <= GSO_BYTES_MAX,
    "a full run of full packets is one GSO send"
);

// ---- worker ----------------------------------------------------------------------------------------

/// Commands waiting for one worker.
pub const COMMANDS_MAX: usize = 256;

/// Datagrams waiting for a worker that does not receive itself.
pub const FORWARDED_DATAGRAMS_MAX: usize = 1_024;

/// Routes from the receiving worker to the sessions of other workers: those of all viewers, and as many that end.
pub const ROUTES_MAX: usize = 2 * VIEWERS_MAX;

/// Route updates of one worker that wait for room in the receiving worker's mailbox.
pub const ROUTE_UPDATES_MAX: usize = 2 * VIEWERS_MAX;

/// Commands and forwarded datagrams handled in one turn each.
pub const COMMANDS_PER_TURN_MAX: usize = 64;

/// Access units fanned out in one turn.
pub const UNITS_PER_TURN_MAX: usize = 8;

/// Datagrams and other completions handled in one turn.
pub const COMPLETIONS_PER_TURN_MAX: usize = 4_096;

/// Payload bytes of one GOP that a worker keeps for viewers who join: 16 s at 8 Mbit/s.
pub const GOP_BYTES_MAX: usize = 16 << 20;

/// Access units of one GOP that can be given to a viewer who joins (Chromium queues 800 pictures at most).
pub const GOP_UNITS_MAX: usize = 600;

/// Units before a slot is written again at which a worker keeps what is in it: it may be held up for so long.
pub const GOP_MARGIN_UNITS: u32 = 8;

/// Milliseconds a joining viewer is given the GOP so far in.
pub const REPLAY_MS: u64 = 250;

/// Slowest and fastest replay of one viewer, bytes per second: faster than any stream, and 96 Mbit/s. Chromium takes
/// 256 kB at a time: it may be held up for 20 ms.
pub const REPLAY_BYTES_PER_S: std::ops::RangeInclusive<u64> = 4_000_000..=12_000_000;

/// Milliseconds without a turn that a replay catches up with at most.
pub const REPLAY_BURST_MS: u64 = 4;

/// Between two turns of a worker that replays.
pub const REPLAY_TURN: Duration = Duration::from_millis(1);

/// Payload bytes replayed in one turn to all viewers together, after which live units are looked for again.
pub const REPLAY_BYTES_PER_TURN: usize = 64 * 1024;

/// Units of a GOP that a joining viewer is given without the camera being asked for a new IDR, which all viewers would
/// have to take.
pub const REPLAY_UNITS_SHORT: usize = 30;

/// Datagrams of one viewer the kernel may hold unsent for its replay to go on.
pub const REPLAY_IN_FLIGHT_MAX: u32 = VIEWER_IN_FLIGHT_MAX / 4;

/// RTP time between two replayed units.
pub const REPLAY_STEP_90K: u64 = 1;

/// Packets a viewer can ask for again during and after a replay of more than [`RTX_CACHE_PACKETS`]: as many as
/// Chromium waits with for a lost one.
pub const REPLAY_RTX_PACKETS: usize = 2_048;

/// Between two replays that one viewer's requests for an IDR get.
pub const REPLAY_INTERVAL: Duration = Duration::from_secs(2);

/// A request for an IDR waits for the camera's next one when it comes sooner than this.
pub const REPLAY_WORTH: Duration = Duration::from_millis(300);

/// A request for an IDR this soon after one was sent was made before that one arrived (or a round trip and a half).
pub const IDR_ON_ITS_WAY: Duration = Duration::from_millis(100);

const _: () = assert!(GOP_BYTES_MAX > SLOT_DATA_BYTES_MAX, "the largest IDR fits");
const _: () =
    assert!(REPLAY_IN_FLIGHT_MAX < VIEWER_IN_FLIGHT_MAX / 2, "a replay never congests its viewer's gate");

/// Send operations kept for each viewer: an IDR unit of 8 Mbit/s is about 3 to 6 runs.
pub const SEND_OPERATIONS_PER_VIEWER: usize = 8;

/// Send operations kept beside those.
pub const SEND_OPERATIONS_MIN: usize = 32;

/// Stack of a worker's thread.
pub const WORKER_STACK_BYTES: usize = 512 * 1024;

/// Below this many expected viewers one worker is enough (measured: a linear scan serves 64 sessions).
pub const VIEWERS_OF_ONE_WORKER: usize = 65;

/// Stack of the doorbell's and the simulator's thread.
pub const HELPER_STACK_BYTES: usize = 512 * 1024;
const _: () = assert!(OFFER_BYTES_MAX <= BODY_BYTES_MAX, "an offer arrives as one request body");
const _: () = assert!(
    HEADER_BYTES_MAX < CONNECTION_BUFFER_BYTES_MAX,
    "a head that is too long is told so before the buffer is full"
);

// ---- control: recordings ---------------------------------------------------------------------------

/// Bytes of a recording command's JSON.
pub const COMMAND_BYTES_MAX: usize = 4 * 1024;

/// Bytes read from a recording at a time.
pub const DOWNLOAD_PIECE_BYTES: usize = 128 * 1024;

/// Pieces of a download waiting for its reader.
pub const DOWNLOAD_PIECES_AHEAD: usize = 2;

// ---- log ---------------------------------------------------------------------------------------------

/// Nanoseconds between two log lines about the same trouble.
pub const LOG_INTERVAL_NS: i64 = 60_000_000_000;

// ---- metrics ---------------------------------------------------------------------------------------

/// Latencies below are counted as this, in nanoseconds; it is also the histograms' resolution.
pub const LATENCY_MIN_NS: u64 = 1_000;

/// Latencies above are counted as this, in nanoseconds.
pub const LATENCY_MAX_NS: u64 = 10_000_000_000;

/// Upper bounds of the buckets of `stage_latency_seconds`, in microseconds.
pub const STAGE_BUCKETS_US: [u64; 14] =
    [20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000];

/// Upper bounds of the buckets of `recording_write_seconds`, in microseconds.
pub const WRITE_BUCKETS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000,
];

/// Access units of one viewer whose sending is timed at a time; those beyond are not timed.
pub const TIMED_UNITS_MAX: usize = 8;

/// Access units a worker's flight recorder remembers: a minute of 30 units a second.
pub const TRACE_UNITS_MAX: usize = 2_048;

/// Sent units (one per viewer and access unit) it remembers: a minute of 8 viewers, 640 kB when full.
pub const TRACE_WRITES_MAX: usize = 16_384;

/// Of both, so many take memory at a time, when they are first needed.
pub const TRACE_CHUNK: usize = 256;

const _: () = assert!(TRACE_UNITS_MAX >= 30 * 60, "the flight recorder holds a minute");
const _: () = assert!(
    TRACE_UNITS_MAX.is_multiple_of(TRACE_CHUNK) && TRACE_WRITES_MAX.is_multiple_of(TRACE_CHUNK),
    "a flight recorder is whole chunks"
);

// ---- control, local -----------------------------------------------------------------------------------

/// Threads of the local control endpoint.
pub const LOCAL_WORKERS: usize = 2;

/// Coroutines kept for reuse.
pub const LOCAL_COROUTINE_POOL: usize = 8;

/// Stack of one of its coroutines: it parses a head and waits, everything else runs elsewhere.
pub const LOCAL_STACK_BYTES: usize = 64 * 1024;

/// What the kernel keeps unread of one of its connections.
pub const LOCAL_RECEIVE_BYTES: usize = 16 * 1024;

/// Connections to it at once; further ones are closed.
pub const LOCAL_CONNECTIONS_MAX: usize = 16;

/// For a request to be complete, from accept or the last answer; also an idle connection's life.
pub const LOCAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks for connections that are late.
pub const LOCAL_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Between two looks at the memory, while a request is waited for.
pub const LOCAL_MEMORY_INTERVAL: Duration = Duration::from_millis(20);

/// Growth of the program's memory at which requests that are not complete yet are given up: the library keeps all it
/// reads of them.
pub const LOCAL_GROWTH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes answered on one connection, after which it is closed: a caller that sends requests and reads no answers
/// makes the endpoint hold this much at most, beside the last answer.
pub const LOCAL_CONNECTION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest path with its query.
pub const LOCAL_TARGET_BYTES_MAX: usize = 2_048;

/// Different header lines it ever answers with.
pub const LOCAL_HEADER_LINES_MAX: usize = 128;

/// Stack of the thread that takes a profile.
pub const INSPECTION_STACK_BYTES: usize = 1024 * 1024;

/// Profiles and traces taken at once; further ones are answered 503.
pub const INSPECTIONS_MAX: u32 = 4;

/// Longest a profile may measure, seconds.
pub const INSPECTION_SECONDS_MAX: u32 = 300;

/// Seconds of the flight recorder at most.
pub const TRACE_SECONDS_MAX: u32 = 60;

/// What a profile may take beside its measuring: symbols, gzip.
pub const INSPECTION_GRACE: Duration = Duration::from_secs(30);

/// Samples of a CPU profile per second of CPU time (Go's).
pub const PROFILE_FREQUENCY_HZ: u32 = 100;
const _: () = assert!(RECORDER_REPLY_S < BACKEND_TIMEOUT.as_secs(), "the recorder's own answer comes first");
