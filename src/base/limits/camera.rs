//! Bounds of the camera's ring and of the camera wait.

/// Bytes of the data area of a slot in every legacy layout (1920x1080 NV12 and a little more).
pub const SLOT_DATA_BYTES_MAX: usize = 3_110_400;

/// Bytes of a slot of a lease ring. Rings with larger slots are refused. Units larger than a legacy slot are not read.
pub const LEASE_SLOT_BYTES_MAX: u32 = 16 << 20;

/// Minimum number of slots of a lease ring. One reader may hold a quarter of them.
pub const LEASE_SLOTS_MIN: u32 = 8;

/// Default number of slots of a lease ring: a second at 30 units/s.
pub const LEASE_SLOTS: u32 = 30;

/// Default bytes of a slot of a lease ring, as in the legacy layouts.
pub const LEASE_SLOT_BYTES: u32 = 3_110_400;

/// Nanoseconds between two requests to the camera for an IDR: the camera answers some units later.
pub const IDR_REQUEST_INTERVAL_NS: i64 = 500_000_000;

/// Pixels of a picture's longer side. A slot with a larger value is malformed.
pub const PICTURE_SIDE_MAX: i32 = 8_192;

/// Memory ranges of rings mapped at once in the process: two per mapping with a semaphore or leases. A mapping lives as
/// long as a consumer borrows from it.
pub const MAPPED_RANGES_MAX: usize = 256;

/// Largest step of the write index between two polls. A larger one means that the camera restarted, because polls are at most
/// 0.2 s apart.
pub const INDEX_STEP_MAX: u32 = 1 << 20;

/// Nanoseconds by which a capture time may differ from a clock's current time. With a larger difference, the capture
/// time was not taken from that clock.
pub const CAPTURE_AGE_MAX_NS: i64 = 10_000_000_000;

/// Longest camera wait in nanoseconds: the delay after which a stop flag is noticed.
pub const CAMERA_WAIT_MAX_NS: i64 = 200_000_000;

/// Nanoseconds between two attempts to open the camera's segment.
pub const CAMERA_RETRY_NS: i64 = 100_000_000;

/// Nanoseconds between two checks if the segment's name still means the mapped segment, while units arrive.
pub const CAMERA_CHECK_NS: i64 = 1_000_000_000;

/// The same while no units arrive.
pub const CAMERA_CHECK_SILENT_NS: i64 = 200_000_000;

/// Nanoseconds without a new unit after which a ring counts as silent.
pub const CAMERA_SILENT_NS: i64 = 1_000_000_000;

/// Nanoseconds between two polls of a ring around the expected arrival of a unit.
pub const POLL_STEP_NS: i64 = 500_000;

/// Nanoseconds for which the newest slot of an index-first ring must stay unchanged to count as complete, if the end of
/// the unit was seen to change.
pub const COMMIT_STABLE_NS: i64 = 1_000_000;

/// The same if no change was seen. Longer than a busy machine delays a camera in the middle of its copy. Above two
/// units per second, the next unit arrives earlier and proves that this one is complete.
pub const COMMIT_UNSEEN_NS: i64 = 500_000_000;

/// Units in a row, each seen to be complete in its slot and with one post of the semaphore, after which the posts count
/// as matched to the index.
pub const COUNT_ANCHOR_UNITS: u32 = 3;

/// Bytes of a slot that are remembered to detect that its end was rewritten.
pub const PRE_IMAGE_BYTES_MAX: usize = 256 * 1024;

/// Units in a row without a wake-up after which polling replaces the semaphore.
pub const WAKES_MISSED_MAX: u32 = 8;

/// Wake-ups in a row without a unit after which polling replaces the semaphore.
pub const WAKES_EMPTY_MAX: u32 = 1_000;

/// Intervals between units that can be predicted: 4 to 250 units per second.
pub const PREDICTED_INTERVALS_NS: std::ops::Range<i64> = 4_000_000..250_000_000;

/// Regular units before the next one is predicted.
pub const PREDICTION_UNITS_MIN: u32 = 10;

/// Mean deviation of units from their prediction, in nanoseconds, up to which a camera is regular: the wake-up latency of a
/// thread.
pub const PREDICTION_JITTER_NS_MAX: i64 = 100_000;

/// Viewers up to which a worker polls busily for a unit that is due. With more viewers, sending to the others dominates the
/// latency, not the wake-up.
pub const BUSY_POLL_VIEWERS_MAX: usize = 16;

/// Longest busy poll in nanoseconds: 0.6 % of a core at 30 units/s.
pub const BUSY_POLL_NS_MAX: i64 = 200_000;

/// Nanoseconds added at both ends of a busy poll.
pub const BUSY_POLL_MARGIN_NS: i64 = 5_000;
