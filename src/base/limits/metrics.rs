//! Bounds of log, histograms and flight recorder.

/// Nanoseconds between two log lines about the same trouble.
pub const LOG_INTERVAL_NS: i64 = 60_000_000_000;

/// Shortest latency in nanoseconds that the histograms distinguish. Also their resolution.
pub const LATENCY_MIN_NS: u64 = 1_000;

/// Longest latency in nanoseconds. Longer ones count as this.
pub const LATENCY_MAX_NS: u64 = 10_000_000_000;

/// Upper bounds of the buckets of `stage_latency_seconds`, in microseconds.
pub const STAGE_BUCKETS_US: [u64; 14] =
    [20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000];

/// Upper bounds of the buckets of `recording_write_seconds`, in microseconds.
pub const WRITE_BUCKETS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000,
];

/// Access units of one viewer whose sending is timed at the same time. Further ones are not timed.
pub const TIMED_UNITS_MAX: usize = 8;

/// Access units in a worker's flight recorder: a minute at 30 units/s.
pub const TRACE_UNITS_MAX: usize = 2_048;

/// Sent units (one per viewer and access unit) in a worker's flight recorder: a minute with 8 viewers, 640 kB when
/// full.
pub const TRACE_WRITES_MAX: usize = 16_384;

/// Entries of a flight recorder that are allocated at a time, when first needed.
pub const TRACE_CHUNK: usize = 256;
