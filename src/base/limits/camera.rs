//! Bounds of the camera's ring and of waiting for it.

/// Bytes of the data area of one slot in every legacy layout (1920x1080 NV12 and a little more).
pub const SLOT_DATA_BYTES_MAX: usize = 3_110_400;

/// Bytes of one slot of a lease ring; a larger one is refused, and of a unit only what fits a legacy slot is read.
pub const LEASE_SLOT_BYTES_MAX: u32 = 16 << 20;

/// Slots a lease ring must have: a quarter of them is what one reader may hold.
pub const LEASE_SLOTS_MIN: u32 = 8;

/// Slots of a lease ring unless its maker says otherwise: a second at 30 units/s.
pub const LEASE_SLOTS: u32 = 30;

/// Bytes of its slots: as many as the legacy ones have.
pub const LEASE_SLOT_BYTES: u32 = 3_110_400;

/// Between two requests for an IDR made to the camera: its answer is some units away.
pub const IDR_REQUEST_INTERVAL_NS: i64 = 500_000_000;

/// Pixels of a picture's longer side; a slot that says more is lying.
pub const PICTURE_SIDE_MAX: i32 = 8_192;

/// Memory ranges of rings mapped at once in the process (two for a mapping with a semaphore or leases). Old
/// mappings live as long as a consumer borrows from them.
pub const MAPPED_RANGES_MAX: usize = 256;

/// A step forward of the write index beyond this is another run of the camera, not units missed: the
/// doorbell looks at least five times a second.
pub const INDEX_STEP_MAX: u32 = 1 << 20;

/// A capture time further than this from a clock was not taken from that clock.
pub const CAPTURE_AGE_MAX_NS: i64 = 10_000_000_000;

/// Longest sleep of the doorbell: how late it may notice its stop flag.
pub const CAMERA_WAIT_MAX_NS: i64 = 200_000_000;

/// Between two looks of the doorbell for a camera that is not there.
pub const CAMERA_RETRY_NS: i64 = 100_000_000;

/// Between two comparisons of the segment's name with what is mapped, while units come.
pub const CAMERA_CHECK_NS: i64 = 1_000_000_000;

/// The same while none come.
pub const CAMERA_CHECK_SILENT_NS: i64 = 200_000_000;

/// A ring without a new unit for this long is silent.
pub const CAMERA_SILENT_NS: i64 = 1_000_000_000;

/// Between two looks at a ring that is polled around the expected arrival of a unit.
pub const POLL_STEP_NS: i64 = 500_000;

/// How long a slot of an index-first ring must stay unchanged when its end is seen to be rewritten.
pub const COMMIT_STABLE_NS: i64 = 1_000_000;

/// The same when that cannot be seen: longer than any busy machine holds a camera up in the middle of its copy. At
/// more than two units a second the next unit tells before.
pub const COMMIT_UNSEEN_NS: i64 = 500_000_000;

/// The same where the camera posts: the rest that tells once where the count of posts stands. Below the time
/// between two units, or it would never be told.
pub const COMMIT_POSTED_NS: i64 = 10_000_000;

/// Bytes of a slot remembered, at most, to see that its end was rewritten.
pub const PRE_IMAGE_BYTES_MAX: usize = 256 * 1024;

/// Units in a row without their wake, after which the semaphore is given up for polling.
pub const WAKES_MISSED_MAX: u32 = 8;

/// Wakes in a row without a unit, after which the semaphore is given up for polling.
pub const WAKES_EMPTY_MAX: u32 = 1_000;

/// From one unit to the next, for a camera to have a rhythm that may be relied on: 4 to 250 units a second.
pub const PREDICTED_INTERVALS_NS: std::ops::Range<i64> = 4_000_000..250_000_000;

/// Units that have come evenly before the next is expected.
pub const PREDICTION_UNITS_MIN: u32 = 10;

/// How far units of an even camera are from when they were expected, on average: no more than a thread takes to wake.
pub const PREDICTION_JITTER_NS_MAX: i64 = 100_000;

/// Viewers of a worker that polls busily for a unit when it is due. With more of them a viewer waits for others, not for
/// the worker to wake.
pub const BUSY_POLL_VIEWERS_MAX: usize = 16;

/// Longest busy poll: at 30 units a second 0.6 % of a core.
pub const BUSY_POLL_NS_MAX: i64 = 200_000;

/// Added to both ends of a busy poll.
pub const BUSY_POLL_MARGIN_NS: i64 = 5_000;
