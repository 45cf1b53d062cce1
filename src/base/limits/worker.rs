//! Bounds of a worker and of GOP replays.

use std::time::Duration;

use super::{VIEWER_IN_FLIGHT_MAX, VIEWERS_MAX};

/// Worker threads of one process.
pub const WORKERS_MAX: usize = 64;

/// Commands queued for one worker.
pub const COMMANDS_MAX: usize = 256;

/// Datagrams queued for a worker that does not receive itself.
pub const FORWARDED_DATAGRAMS_MAX: usize = 1_024;

/// Routes from the receiving worker to the sessions of other workers: those of all viewers, and as many ending ones.
pub const ROUTES_MAX: usize = 2 * VIEWERS_MAX;

/// Route updates that wait for room in the receiving worker's mailbox.
pub const ROUTE_UPDATES_MAX: usize = 2 * VIEWERS_MAX;

/// Commands handled in one turn; also forwarded datagrams.
pub const COMMANDS_PER_TURN_MAX: usize = 64;

/// Access units sent in one turn.
pub const UNITS_PER_TURN_MAX: usize = 8;

/// Datagrams and other completions handled in one turn.
pub const COMPLETIONS_PER_TURN_MAX: usize = 4_096;

/// Payload bytes of one GOP that a worker keeps for joining viewers: 16 s at 8 Mbit/s.
pub const GOP_BYTES_MAX: usize = 16 << 20;

/// Access units of one GOP that can be replayed to a joining viewer (Chromium queues at most 800 pictures).
pub const GOP_UNITS_MAX: usize = 600;

/// Number of units before a slot is overwritten at which a worker saves its content. This is the delay that the worker
/// tolerates.
pub const GOP_MARGIN_UNITS: u32 = 8;

/// Milliseconds in which the GOP so far is replayed to a joining viewer.
pub const REPLAY_MS: u64 = 250;

/// Slowest and fastest replay to one viewer in bytes per second: faster than any stream, at most 96 Mbit/s. Chromium takes
/// 256 kB at a time and may pause for 20 ms.
pub const REPLAY_BYTES_PER_S: std::ops::RangeInclusive<u64> = 4_000_000..=12_000_000;

/// Milliseconds of missed turns that a replay catches up at most.
pub const REPLAY_BURST_MS: u64 = 4;

/// Time between two turns of a worker that replays.
pub const REPLAY_TURN: Duration = Duration::from_millis(1);

/// Payload bytes replayed to all viewers in one turn, before the worker polls for live units again.
pub const REPLAY_BYTES_PER_TURN: usize = 64 * 1024;

/// Units of a GOP that are replayed to a joining viewer without requesting a new IDR from the camera. All viewers would have
/// to receive that IDR.
pub const REPLAY_UNITS_SHORT: usize = 30;

/// Datagrams of one viewer that the kernel may hold unsent while its replay continues.
pub const REPLAY_IN_FLIGHT_MAX: u32 = VIEWER_IN_FLIGHT_MAX / 4;

/// RTP time between two replayed units.
pub const REPLAY_STEP_90K: u64 = 1;

/// Packets in the retransmission cache during and after a replay of more than [`super::RTX_CACHE_PACKETS`]: Chromium waits for a
/// lost packet for as many.
pub const REPLAY_RTX_PACKETS: usize = 2_048;

/// Minimum time between two replays that answer one viewer's IDR requests.
pub const REPLAY_INTERVAL: Duration = Duration::from_secs(2);

/// A request for an IDR waits for the camera's next one if that is expected within this time.
pub const REPLAY_WORTH: Duration = Duration::from_millis(300);

/// An IDR request is ignored for this time, or 1.5 round trips if that is longer, after an IDR was sent: the viewer
/// sent the request before that IDR arrived.
pub const IDR_ON_ITS_WAY: Duration = Duration::from_millis(100);

/// Send operations kept per viewer: an IDR unit of 8 Mbit/s takes about 3 to 6 batches.
pub const SEND_OPERATIONS_PER_VIEWER: usize = 8;

/// Send operations kept in addition to those per viewer.
pub const SEND_OPERATIONS_MIN: usize = 32;

/// Stack of a worker thread.
pub const WORKER_STACK_BYTES: usize = 512 * 1024;

/// Below this `--max-viewers` one worker is enough (measured: a linear scan serves 64 sessions).
pub const VIEWERS_OF_ONE_WORKER: usize = 65;

/// Stack of the threads for camera wait and simulator.
pub const HELPER_STACK_BYTES: usize = 512 * 1024;
