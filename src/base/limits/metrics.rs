//! Bounds of the log, the histograms and the flight recorder.

/// Minimum nanoseconds between two log lines about the same problem.
pub const LOG_INTERVAL_NS: i64 = 60_000_000_000;

/// Shortest latency in nanoseconds that the histograms distinguish. It is also the finest step between two latencies.
pub const LATENCY_MIN_NS: u64 = 1_000;

/// Longest latency in nanoseconds that the histograms store. Longer latencies are stored as this value.
pub const LATENCY_MAX_NS: u64 = 10_000_000_000;

/// Upper bounds of the buckets of `stage_latency_seconds`, in microseconds.
pub const STAGE_BUCKETS_US: [u64; 14] =
    [20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000];

/// Upper bounds of the buckets of `recording_write_seconds`, in microseconds.
pub const WRITE_BUCKETS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000,
];

/// Maximum number of access units of one viewer whose sending is timed at the same time. Further access units are not
/// timed.
pub const TIMED_UNITS_MAX: usize = 8;

/// Maximum number of access units in a worker's flight recorder: more than a minute at 30 units/s.
pub const TRACE_UNITS_MAX: usize = 2_048;

/// Maximum number of sent units in a worker's flight recorder, one for each viewer and access unit. They cover a minute
/// with 8 viewers and take 640 kB when the recorder is full.
pub const TRACE_WRITES_MAX: usize = 16_384;

/// Number of flight recorder entries that are allocated together when they are first needed.
pub const TRACE_CHUNK: usize = 256;
