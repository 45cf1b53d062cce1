//! Bounds of HTTP live, the stream for viewers over HTTP.

use std::time::Duration;

/// Maximum bytes of access units that all viewers over HTTP together make the program hold: the current GOP, what late
/// viewers still need, and what their connections are sending. They last 16 s at 8 Mbit/s.
pub const LIVE_BYTES_MAX: usize = 16 << 20;

/// Bytes of held access units above which a viewer ends that has not yet taken a unit which all others no longer need.
pub const LIVE_BYTES_SOFT: usize = 12 << 20;

/// Bytes that a held access unit takes besides its content.
pub const LIVE_UNIT_OVERHEAD_BYTES: usize = 256;

/// How late a viewer may be, in ticks of 1/90000 s, before it skips to a newer IDR.
pub const LIVE_LAG_90K_MAX: u64 = 90_000;

/// Maximum number of access units that the shared reader takes from the ring before other tasks run.
pub const LIVE_UNITS_PER_TURN: usize = 8;

/// Time after which the shared reader polls the ring even without a wake-up.
pub const LIVE_POLL: Duration = Duration::from_millis(100);

/// Maximum time until the answer to a new viewer begins. A stream without an IDR in that time is answered with 503.
pub const LIVE_START_TIMEOUT: Duration = Duration::from_secs(3);

/// Seconds in the Retry-After header of that answer.
pub const LIVE_RETRY_AFTER_S: u32 = 2;

/// Time for which the shared reader goes on after its last viewer. A viewer that was refused for lack of an IDR, and
/// tries again, then finds the IDR that came meanwhile.
pub const LIVE_LINGER_NS: i64 = 10_000_000_000;

/// Time without an access unit after which the answers end. Until then they pause, because cameras restart. Without
/// bytes to send, the server does not notice that a viewer has left.
pub const LIVE_PAUSE_NS_MAX: i64 = 300_000_000_000;

/// Time for which a viewer may take no byte before its connection ends. Players over HTTP live never pause.
pub const LIVE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
