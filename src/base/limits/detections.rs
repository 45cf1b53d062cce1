//! Bounds of the detections: what an object detector found in the camera's pictures.

use std::time::Duration;

/// Maximum number of boxes of one result. The detector's segment has room for as many.
pub const DETECTED_BOXES_MAX: usize = 10;

/// Maximum bytes of the label of a box. The field in the detector's segment has one more byte, for the NUL.
pub const LABEL_BYTES_MAX: usize = 31;

/// Width and height in pixels of the picture that the boxes of the detector's segment refer to.
pub const REFERENCE_PICTURE: (u32, u32) = (1_280, 720);

/// Shortest time between two polls of the detector's segment while results are needed. The usual time is a quarter of
/// the learned interval between results.
pub const DETECTIONS_POLL_NS_MIN: i64 = 4_000_000;

/// Longest time between two polls of the detector's segment while results are needed.
pub const DETECTIONS_POLL_NS_MAX: i64 = 50_000_000;

/// Time between two polls of the detector's segment while no consumer needs results.
pub const DETECTIONS_IDLE_POLL_NS: i64 = 500_000_000;

/// Nanoseconds between two checks if the name in `/dev/shm` still refers to the open segment.
pub const DETECTIONS_CHECK_NS: i64 = 1_000_000_000;

/// Maximum number of results per second that are taken from HTTP, and as many from the segment.
pub const DETECTIONS_PER_S_MAX: u32 = 120;

/// Number of results that may arrive at once within [`DETECTIONS_PER_S_MAX`].
pub const DETECTIONS_BURST: u32 = 8;

/// Shortest time in nanoseconds for which the boxes of a result are shown. The usual time is twice the learned interval
/// between results.
pub const DETECTIONS_EXPIRE_NS_MIN: i64 = 200_000_000;

/// Longest time in nanoseconds for which the boxes of a result are shown. Also the time before the interval is known.
pub const DETECTIONS_EXPIRE_NS_MAX: i64 = 1_500_000_000;

/// Number of results kept for a consumer that takes them late.
pub const DETECTIONS_KEPT: usize = 32;

/// Maximum bytes of one `detections` event.
pub const DETECTIONS_EVENT_BYTES_MAX: usize = 2_048;

/// Maximum bytes of the body of POST /api/detections.
pub const DETECTIONS_BODY_BYTES_MAX: usize = 16 * 1024;

/// Number of access units of a worker whose RTP times are kept, to be found by their capture time. They cover two
/// seconds at 120 units/s. Detectors take less than a second.
pub const RTP_TIMES_KEPT: usize = 256;

/// Largest difference in nanoseconds between a result's stamp and the capture time of its picture. The stamp of the
/// segment is an `f64`, which is exact to 0.3 us.
pub const RTP_TIME_MATCH_NS: i64 = 1_000_000;

/// Seconds in the Retry-After header of the answer to a result that comes too soon.
pub const DETECTIONS_RETRY_AFTER_S: u32 = 1;

/// Maximum time for which `doctor` waits for a new result.
pub const DETECTIONS_DOCTOR_WAIT_S: i64 = 1;

/// Time between two polls of the segment by `doctor`.
pub const DETECTIONS_DOCTOR_POLL: Duration = Duration::from_millis(10);

/// Maximum number of classes that `--record-on` names.
pub const TRIGGERS_MAX: usize = 8;

/// Largest number of seconds of an option about events: one day.
pub const EVENT_SECONDS_MAX: u32 = 86_400;

/// Longest pre-roll in seconds.
pub const PRE_ROLL_S_MAX: u32 = 60;

/// Default memory for the pre-roll.
pub const PRE_ROLL_BYTES_DEFAULT: usize = 4 << 20;

/// Largest memory for the pre-roll.
pub const PRE_ROLL_BYTES_MAX: u64 = 64 << 20;

/// Largest number of results of which a part must show a class before an event begins.
pub const EVENT_RESULTS_MAX: u8 = 64;

/// Results that are read more than this many nanoseconds apart do not confirm each other.
pub const EVENT_RESULTS_NS_MAX: i64 = 2_000_000_000;

/// Interval in which a running event is checked for its end.
pub const EVENT_CHECK: Duration = Duration::from_millis(100);

/// Maximum number of messages about events that wait for their delivery.
pub const NOTIFICATIONS_MAX: usize = 64;

/// Shortest time in nanoseconds between two log lines about messages that were not delivered.
pub const NOTIFY_LOG_NS: i64 = 60_000_000_000;
