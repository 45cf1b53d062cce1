//! Bounds of recordings and of the recorder.

use super::{CONNECTIONS_MAX, DOWNLOADS_MAX, NAL_UNITS_MAX, SLOT_DATA_BYTES_MAX};

/// Maximum number of parts of one gathered write: a header and a body for each NAL unit, and the file header.
pub const WRITE_PARTS_MAX: usize = 2 * NAL_UNITS_MAX + 2;

/// Bytes by which a recording is preallocated in one step. They last 16 s at 32 Mbps, and minutes at usual rates.
pub const ALLOCATE_BYTES: u64 = 64 << 20;

/// Smallest preallocation step in bytes on a nearly full disk. If even a step of this size fails, the disk counts as
/// full.
pub const ALLOCATE_BYTES_MIN: u64 = 256 << 10;

/// Free bytes required to start a recording.
pub const START_FREE_BYTES_MIN: u64 = 1 << 20;

/// Nanoseconds between two fdatasync calls of a recording. A power loss can destroy what was written since the last
/// call.
pub const SYNC_INTERVAL_NS: i64 = 1_000_000_000;

/// Bytes of a file after which the next IDR starts a new file. FAT32 allows files of at most 4 GiB.
pub const RECORDING_BYTES_SOFT: u64 = 3_900_000_000;

/// Bytes of a file at which the file is closed even if no IDR has arrived.
pub const RECORDING_BYTES_MAX: u64 = 4_200_000_000;

/// Duration of a file in nanoseconds after which the next IDR starts a new file.
pub const RECORDING_DURATION_SOFT_NS: i64 = 3_600_000_000_000;

/// Bytes and duration of a file after which the next recovery point starts a new file, if no IDR has arrived.
pub const RECORDING_BYTES_OVERDUE: u64 = 4_050_000_000;
/// See [`RECORDING_BYTES_OVERDUE`].
pub const RECORDING_OVERDUE_NS: i64 = 3_900_000_000_000;

/// Maximum number of access units in one file. Each takes 12 bytes in the index, and 32 more if the
/// stream has B-frames.
pub const RECORDING_UNITS_MAX: usize = 1 << 20;

/// Number of index entries that are allocated together.
pub const SHARED_LIST_CHUNK: usize = 4_096;

/// Maximum number of files of one recording. A size limit, a duration limit or a changed parameter set starts a new
/// file.
pub const RECORDING_FILES_MAX: u32 = 9_999;

/// Maximum number of files of one recording that are being finished (index, fdatasync) while the next file is written.
pub const FINISHING_MAX: usize = 4;

/// Maximum number of names tried (`_2`, `_3`, ...) if a file with the recording's name already exists.
pub const NAME_ATTEMPTS_MAX: u32 = 9_999;

/// Maximum bytes of a recording's file name with its extension (file systems allow 255).
pub const RECORDING_NAME_BYTES_MAX: usize = 200;

/// Maximum number of commands queued for the recorder.
pub const RECORDER_COMMANDS_MAX: usize = 16;

/// Seconds that a request waits for the recorder's reply. If none comes in this time, the disk hangs and the request
/// fails.
pub const RECORDER_REPLY_S: u64 = 10;

/// Maximum nanoseconds for which the recorder, after a stop request, still writes the units that were in the ring at
/// the request.
pub const DRAIN_NS_MAX: i64 = 2_000_000_000;

/// Maximum nanoseconds for which a stop waits for a unit that the camera was still writing. The time is several picture
/// intervals, because the arrival of the next unit may be the only sign that this unit is complete.
pub const DRAIN_BEGUN_NS_MAX: i64 = 200_000_000;

/// Number of slots with the oldest units that the pre-roll of a recording does not use. Two of them may be overwritten
/// at any moment, and two more may be overwritten while the file is created. If a ring has fewer than twice as many
/// slots, the pre-roll leaves out half of its slots.
pub const PRE_ROLL_MARGIN_UNITS: u32 = 4;

/// Milliseconds between two polls of an idle recorder. While idle, it only remembers the stream's parameter sets.
pub const RECORDER_IDLE_POLL_MS: u64 = 400;

/// Milliseconds after which a recorder that waits for units polls the ring even without a wake-up.
pub const RECORDER_POLL_MS: u64 = 100;

/// Maximum number of units that an idle recorder reads per poll.
pub const IDLE_UNITS_PER_POLL_MAX: u32 = 64;

/// Nanoseconds between two checks of the retention rules while recording.
pub const RETENTION_INTERVAL_NS: i64 = 10_000_000_000;

/// Unix time (January 2024) before which the clock counts as not set. A board without a battery starts in 1970.
/// Recordings made before the clock is set would all seem too old afterwards.
pub const AGE_KNOWN_SINCE_S: u64 = 1_704_067_200;

/// Number of attempts, 100 ms apart, of a repair to lock a file. The kernel may release the lock of a killed process
/// with a delay.
pub const REPAIR_LOCK_ATTEMPTS: u32 = 50;

/// Maximum number of recordings read for one listing.
pub const RECORDINGS_LISTED_MAX: usize = 10_000;

/// Maximum number of units of a growing MP4 that is read as a finished file. Its index has 20 bytes for each unit. A
/// file of one hour has fewer up to 72 units/s.
pub const FINISHED_VIEW_UNITS_MAX: usize = 1 << 18;

/// Number of pictures of a recording for which a result of the object detector is expected: 4 s at 30 pictures/s.
pub const LOGGED_PICTURES_MAX: usize = 128;

/// Maximum number of results that wait for their picture to be recorded: those of a pre-roll of 60 s. Beyond it the
/// oldest is dropped.
pub const LOGGED_RESULTS_WAITING_MAX: usize = 2_048;

/// Number of events in the first line of a detection log. The oldest is left out beyond it.
pub const LOGGED_EVENTS_MAX: usize = 8;

/// Number of classes in the first line of a detection log.
pub const LOGGED_LABELS_MAX: usize = 8;

/// Bytes of a detection log that wait for the disk, above which further results are dropped. A line has at most 2 kB.
pub const LOGGED_BYTES_MAX: usize = 64 << 10;

/// Number of listings that are made at the same time. Further ones wait.
pub const LISTINGS_MAX: usize = 1;

/// Maximum number of system calls of the recorder on the disk that wait for their thread: one for each file that is being
/// finished, and a few for the file that is being written.
pub const DISK_JOBS_MAX: usize = FINISHING_MAX + 4;

/// Nanoseconds without a completed operation after which a disk counts as stuck. A sync may take seconds.
pub const DISK_ANSWER_NS_MAX: i64 = 10_000_000_000;

/// Number of threads that read recordings for downloads.
pub const READ_THREADS: usize = 2;

/// Maximum number of reads that wait for such a thread. Each download waits for one read at most, so no read is refused.
pub const READS_QUEUED_MAX: usize = DOWNLOADS_MAX;

/// Maximum number of operations on the directory of recordings (open, list, delete) that wait for their thread. Each
/// connection waits for one at most.
pub const LIBRARY_JOBS_MAX: usize = 2 * CONNECTIONS_MAX;

/// Number of bytes at the end of an unfinished `.h264` file that are searched for the last complete access unit.
pub const RECOVERY_TAIL_BYTES_MAX: u64 = 3 * SLOT_DATA_BYTES_MAX as u64;

/// Largest number of seconds in a request (pre-roll, maximum duration, heartbeat): thirty days.
pub const REQUEST_SECONDS_MAX: f64 = 2_592_000.0;
