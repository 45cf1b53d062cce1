//! Bounds of a worker and of GOP replays.

use std::time::Duration;

use super::{VIEWER_IN_FLIGHT_MAX, VIEWERS_MAX};

/// Maximum number of worker threads of one process.
pub const WORKERS_MAX: usize = 64;

/// Maximum number of commands queued for one worker.
pub const COMMANDS_MAX: usize = 256;

/// Maximum number of datagrams queued for a worker that gets its datagrams from the receiving worker.
pub const FORWARDED_DATAGRAMS_MAX: usize = 1_024;

/// Maximum number of routes from the receiving worker to sessions of other workers. All viewers have one, and as many
/// sessions may be ending.
pub const ROUTES_MAX: usize = 2 * VIEWERS_MAX;

/// Maximum number of route updates that wait for room in the receiving worker's mailbox.
pub const ROUTE_UPDATES_MAX: usize = 2 * VIEWERS_MAX;

/// Maximum number of commands handled in one turn. The same bound applies to forwarded datagrams.
pub const COMMANDS_PER_TURN_MAX: usize = 64;

/// Maximum number of access units sent in one turn.
pub const UNITS_PER_TURN_MAX: usize = 8;

/// Maximum number of completions handled in one turn, including those of received datagrams.
pub const COMPLETIONS_PER_TURN_MAX: usize = 4_096;

/// Maximum number of units in the ring from which a worker that attaches learns the camera's interval.
pub const INTERVAL_UNITS_SEARCHED: u32 = 8;

/// Maximum payload bytes of a GOP that a worker keeps for joining viewers. They last 16 s at 8 Mbit/s.
pub const GOP_BYTES_MAX: usize = 16 << 20;

/// Maximum number of access units of a GOP that can be replayed to a joining viewer. Chromium queues at most 800
/// pictures.
pub const GOP_UNITS_MAX: usize = 600;

/// A worker saves the content of a slot when this number of units is left until the camera overwrites the slot. The
/// worker may be delayed by as many units without losing content.
pub const GOP_MARGIN_UNITS: u32 = 8;

/// Target duration, in milliseconds, of the replay of the current GOP to a joining viewer.
pub const REPLAY_MS: u64 = 250;

/// Slowest and fastest replay to one viewer in bytes per second. Even the slowest replay is faster than the live
/// stream; the fastest has 96 Mbit/s. Chromium takes 256 kB at a time and may pause for 20 ms.
pub const REPLAY_BYTES_PER_S: std::ops::RangeInclusive<u64> = 4_000_000..=12_000_000;

/// Maximum milliseconds of missed turns that a replay makes up for in one burst.
pub const REPLAY_BURST_MS: u64 = 4;

/// Time between two turns of a worker while it replays a GOP.
pub const REPLAY_TURN: Duration = Duration::from_millis(1);

/// Maximum payload bytes replayed to all viewers together in one turn. Then the worker polls for live units again.
pub const REPLAY_BYTES_PER_TURN: usize = 64 * 1024;

/// Maximum number of units of a GOP that are replayed to a joining viewer without a request for a new IDR. The camera
/// would send that IDR to all viewers.
pub const REPLAY_UNITS_SHORT: usize = 30;

/// Maximum number of datagrams of one viewer that the kernel may hold unsent. Above this number, the viewer's replay
/// pauses.
pub const REPLAY_IN_FLIGHT_MAX: u32 = VIEWER_IN_FLIGHT_MAX / 4;

/// RTP time (90 kHz) between two replayed units.
pub const REPLAY_STEP_90K: u64 = 1;

/// Number of packets in the retransmission cache during and after a replay of more than [`super::RTX_CACHE_PACKETS`].
/// Chromium waits for a lost packet until as many later packets have arrived.
pub const REPLAY_RTX_PACKETS: usize = 2_048;

/// Number of IDRs that one viewer may make the camera produce in a burst. Replays and the camera's own IDRs answer its
/// other requests.
pub const VIEWER_IDRS_BURST: u32 = 3;

/// Nanoseconds after which a viewer may make the camera produce one more IDR.
pub const VIEWER_IDR_INTERVAL_NS: i64 = 4_000_000_000;

/// Number of IDRs that all viewers at one address (one /64 of IPv6) may make the camera produce in a burst. A viewer
/// cannot get a new budget by joining again.
pub const ADDRESS_IDRS_BURST: u32 = 6;

/// Nanoseconds after which the viewers at one address may make the camera produce one more IDR.
pub const ADDRESS_IDR_INTERVAL_NS: i64 = 3_000_000_000;

/// Maximum number of addresses whose IDR budgets are remembered. At the limit, the one with the most tokens left is
/// forgotten.
pub const IDR_ADDRESSES_MAX: usize = 256;

/// Minimum time between two replays that answer one viewer's IDR requests.
pub const REPLAY_INTERVAL: Duration = Duration::from_secs(2);

/// Expected time until the camera's next IDR, below which a viewer's IDR request is not answered with a replay.
pub const REPLAY_WORTH: Duration = Duration::from_millis(300);

/// Time after an IDR was sent in which the viewer's IDR requests are ignored (or 1.5 round trips, if that is longer).
/// The viewer has sent such a request before the IDR arrived.
pub const IDR_ON_ITS_WAY: Duration = Duration::from_millis(100);

/// Number of send operations kept per viewer. An IDR unit of an 8 Mbit/s stream takes about 3 to 6 batches.
pub const SEND_OPERATIONS_PER_VIEWER: usize = 8;

/// Number of send operations kept in addition to those per viewer.
pub const SEND_OPERATIONS_MIN: usize = 32;

/// Stack bytes of a worker thread.
pub const WORKER_STACK_BYTES: usize = 512 * 1024;

/// Value of `--max-viewers` below which one worker is enough. In measurements, one worker with a linear scan served 64
/// sessions.
pub const VIEWERS_OF_ONE_WORKER: usize = 65;

/// Stack bytes of the threads that wait for the camera or simulate it.
pub const HELPER_STACK_BYTES: usize = 512 * 1024;

/// Minimum time between two replays that answer IDR requests of a WHIP server. mediamtx sends one every 2 s, and each
/// replay costs bandwidth and shows the GOP again.
pub const PUBLISHER_REPLAY_INTERVAL: Duration = Duration::from_secs(10);

/// An IDR request of a WHIP server is answered by the camera's next IDR if that follows within this time.
pub const PUBLISHER_REPLAY_WORTH: Duration = Duration::from_secs(2);
