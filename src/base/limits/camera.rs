//! Bounds of the camera's ring and of the camera wait.

/// Bytes of the data area of a slot in every legacy layout: as many as a picture of 1920x1080 in NV12 has.
pub const SLOT_DATA_BYTES_MAX: usize = 3_110_400;

/// Maximum bytes of one slot of a lease ring. Rings with larger slots are refused. Even in a large slot, a unit of more
/// than [`SLOT_DATA_BYTES_MAX`] is rejected.
pub const LEASE_SLOT_BYTES_MAX: u32 = 16 << 20;

/// Minimum number of slots of a lease ring. One reader may lease at most a quarter of the slots at once.
pub const LEASE_SLOTS_MIN: u32 = 8;

/// Default number of slots of a lease ring. They hold the units of one second at 30 units/s.
pub const LEASE_SLOTS: u32 = 30;

/// Default bytes of one slot of a lease ring: the same as in the legacy layouts.
pub const LEASE_SLOT_BYTES: u32 = 3_110_400;

/// Minimum nanoseconds between two requests to the camera for an IDR. The camera needs time to answer: its IDR comes
/// some units after the request.
pub const IDR_REQUEST_INTERVAL_NS: i64 = 500_000_000;

/// Number of IDRs that all consumers together may request from the camera in a burst.
pub const IDR_BUDGET_BURST: u32 = 4;

/// Nanoseconds after which one more IDR may be requested. An IDR has the bytes of about ten other units, so the stream
/// grows by at most a sixth.
pub const IDR_BUDGET_INTERVAL_NS: i64 = 2_000_000_000;

/// Maximum width and height of a picture in pixels. A slot with a larger value is malformed.
pub const PICTURE_SIDE_MAX: i32 = 8_192;

/// Maximum number of memory ranges of rings that the process maps at the same time. A mapping with a semaphore or with
/// leases has two ranges. A mapping exists as long as a consumer borrows from it.
pub const MAPPED_RANGES_MAX: usize = 256;

/// Largest plausible step of the write index between two polls. Polls are at most 0.2 s apart, so a larger step means
/// that the camera restarted.
pub const INDEX_STEP_MAX: u32 = 1 << 20;

/// Maximum difference in nanoseconds between a capture time and the current time of the clock that it was taken from.
/// If the difference is larger, the capture time is from another clock.
pub const CAPTURE_AGE_MAX_NS: i64 = 10_000_000_000;

/// Longest camera wait in nanoseconds. A waiting thread reads its stop flag after each wait, so it stops after at most
/// this time.
pub const CAMERA_WAIT_MAX_NS: i64 = 200_000_000;

/// Nanoseconds between two attempts to open the camera's segment.
pub const CAMERA_RETRY_NS: i64 = 100_000_000;

/// Nanoseconds between two checks while units arrive. Each check finds out if the name in `/dev/shm` still belongs to
/// the mapped segment.
pub const CAMERA_CHECK_NS: i64 = 1_000_000_000;

/// Nanoseconds between two of these checks while no units arrive. See [`CAMERA_CHECK_NS`].
pub const CAMERA_CHECK_SILENT_NS: i64 = 200_000_000;

/// Nanoseconds without a new unit after which a ring counts as silent.
pub const CAMERA_SILENT_NS: i64 = 1_000_000_000;

/// Minimum nanoseconds without a new unit after which an attached camera counts as stalled. For a slow camera it is
/// [`UNIT_INTERVALS_STALLED`] intervals.
pub const CAMERA_STALLED_NS_MIN: i64 = 1_500_000_000;

/// Number of intervals without a new unit after which a camera counts as stalled.
pub const UNIT_INTERVALS_STALLED: i64 = 3;

/// Longest interval between units, in nanoseconds, that is learned: one unit a minute.
pub const UNIT_INTERVAL_NS_MAX: i64 = 60_000_000_000;

/// Largest step of the capture time in nanoseconds that is believed. After a larger step the camera's clock was set.
pub const CAPTURE_STEP_NS_MAX: i64 = 3_600 * 1_000_000_000;

/// Maximum number of units that H.264 allows to be out of presentation order.
pub const REORDERED_UNITS_MAX: u32 = 16;

/// Age of a capture time in nanoseconds above which the offset between the clocks is measured again before the capture
/// time is used, because the system clock may have been set.
pub const CAPTURE_FRESH_NS: i64 = 200_000_000;

/// Change of the offset between the clocks, in nanoseconds, that is logged as a step of the system clock. NTP slews the
/// clock by at most 0.5 ms per second.
pub const CLOCK_STEP_NS_MIN: i64 = 50_000_000;

/// Nanoseconds between two polls of a ring around the expected arrival of a unit.
pub const POLL_STEP_NS: i64 = 500_000;

/// Nanoseconds for which the newest slot of an index-first ring must stay unchanged before its unit counts as complete.
/// This applies if a poll has seen that the end of the unit was rewritten.
pub const COMMIT_STABLE_NS: i64 = 1_000_000;

/// Nanoseconds for which that slot must stay unchanged if no poll has seen a change of the unit's end. The time is
/// longer than a busy machine delays a camera in the middle of its copy. Above two units per second, the next unit
/// arrives before this time is over, which proves that this unit is complete.
pub const COMMIT_UNSEEN_NS: i64 = 500_000_000;

/// Number of consecutive units after which the semaphore's posts count as synchronised with the write index. Each of
/// these units must be seen complete in its slot and must have exactly one post.
pub const COUNT_ANCHOR_UNITS: u32 = 3;

/// Maximum bytes copied from a slot before the camera rewrites it. The copy shows later if the end of the unit was
/// rewritten.
pub const PRE_IMAGE_BYTES_MAX: usize = 256 * 1024;

/// Number of consecutive units without a wake-up after which polling replaces the semaphore.
pub const WAKES_MISSED_MAX: u32 = 8;

/// Number of consecutive wake-ups without a unit after which polling replaces the semaphore.
pub const WAKES_EMPTY_MAX: u32 = 1_000;

/// Intervals between units, in nanoseconds, for which the next arrival is predicted: 4 to 250 units per second.
pub const PREDICTED_INTERVALS_NS: std::ops::Range<i64> = 4_000_000..250_000_000;

/// Number of consecutive regular units that must arrive before the next arrival is predicted.
pub const PREDICTION_UNITS_MIN: u32 = 10;

/// Maximum mean deviation of arrivals from their prediction, in nanoseconds, for a camera that counts as regular. The
/// value is about the wake-up latency of a thread.
pub const PREDICTION_JITTER_NS_MAX: i64 = 100_000;

/// Maximum number of viewers of a worker that uses busy polling for the next unit. With more viewers, sending to the
/// other viewers takes longer than the wake-up that busy polling avoids.
pub const BUSY_POLL_VIEWERS_MAX: usize = 16;

/// Longest busy poll in nanoseconds. It takes at most 0.6 % of a core at 30 units/s.
pub const BUSY_POLL_NS_MAX: i64 = 200_000;

/// Nanoseconds by which a busy poll starts earlier and ends later than the prediction requires.
pub const BUSY_POLL_MARGIN_NS: i64 = 5_000;

/// Time between two checks of which bit rate the viewers' links carry.
pub const BITRATE_CHECK: std::time::Duration = std::time::Duration::from_millis(500);

/// Number of checks over which the rate of the stream is averaged.
pub const BITRATE_CHECKS_KEPT: usize = 7;

/// Time for which a viewer counts as in trouble after a unit was left out for it. It is longer than most GOPs, because
/// units are left out at the end of each GOP.
pub const BITRATE_TROUBLE: std::time::Duration = std::time::Duration::from_secs(3);

/// Time without trouble after which the request is raised, if the links are measured to carry more.
pub const BITRATE_RISE_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// The same time, if the rate is too low to measure the links.
pub const BITRATE_PROBE_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

/// Rate in kbit/s above which the units are large enough to measure the links.
pub const BITRATE_MEASURED_KBPS: u64 = 1_500;

/// Time after a rise in which trouble means that the rise was too high.
pub const BITRATE_SETTLES: std::time::Duration = std::time::Duration::from_secs(6);

/// How often failures double the time to the next rise: 16 times as long at most.
pub const BITRATE_BACKOFFS_MAX: u32 = 4;

/// Minimum nanoseconds between two log lines about the requested bit rate.
pub const BITRATE_LOG_NS: i64 = 5_000_000_000;

/// Values of --min-kbps.
pub const MIN_KBPS: std::ops::RangeInclusive<u32> = 100..=100_000;

/// Change of the offset between the clocks, in nanoseconds, below which it is an error of the measurement.
pub const CLOCK_NOISE_NS: i64 = 100_000;
