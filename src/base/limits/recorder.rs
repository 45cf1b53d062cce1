//! Bounds of recordings and of the recorder.

use super::{NAL_UNITS_MAX, SLOT_DATA_BYTES_MAX};

/// Parts of one gathered write: a header and a body per NAL unit, and the file header.
pub const WRITE_PARTS_MAX: usize = 2 * NAL_UNITS_MAX + 2;

/// Bytes by which a recording is preallocated in one step (16 s at 32 Mbps, minutes at usual rates).
pub const ALLOCATE_BYTES: u64 = 64 << 20;

/// Smallest preallocation step on a nearly full disk. If it fails too, the disk is full.
pub const ALLOCATE_BYTES_MIN: u64 = 256 << 10;

/// Free bytes required to start a recording.
pub const START_FREE_BYTES_MIN: u64 = 1 << 20;

/// Nanoseconds between two fdatasync calls of a recording: the most that a power loss can destroy.
pub const SYNC_INTERVAL_NS: i64 = 1_000_000_000;

/// Bytes after which the next IDR starts a new file (FAT32 ends at 4 GiB).
pub const RECORDING_BYTES_SOFT: u64 = 3_900_000_000;

/// Bytes at which a file is closed even without an IDR.
pub const RECORDING_BYTES_MAX: u64 = 4_200_000_000;

/// Nanoseconds of recording after which the next IDR starts a new file.
pub const RECORDING_DURATION_SOFT_NS: i64 = 3_600_000_000_000;

/// Access units of one file (8 bytes each in the index).
pub const RECORDING_UNITS_MAX: usize = 1 << 20;

/// Files of one recording, after splits and changed parameter sets.
pub const RECORDING_FILES_MAX: u32 = 9_999;

/// Files of one recording that may be finishing (index, fdatasync) while the next one is written.
pub const FINISHING_MAX: usize = 4;

/// Names tried when a recording's name exists (`_2`, `_3`, ...).
pub const NAME_ATTEMPTS_MAX: u32 = 9_999;

/// Bytes of a recording's file name with extension (file systems allow 255).
pub const RECORDING_NAME_BYTES_MAX: usize = 200;

/// Commands queued for the recorder.
pub const RECORDER_COMMANDS_MAX: usize = 16;

/// Seconds to wait for the recorder's reply. Then the request fails: the disk hangs.
pub const RECORDER_REPLY_S: u64 = 10;

/// Nanoseconds for which a stop continues to write the units that were in the ring when it was requested.
pub const DRAIN_NS_MAX: i64 = 2_000_000_000;

/// Nanoseconds for which a stop waits for a unit that the camera was writing: several picture intervals, because the
/// next unit may be the only sign that it is complete.
pub const DRAIN_BEGUN_NS_MAX: i64 = 200_000_000;

/// Slots at the old end of the ring that a start does not use: two that may be overwritten at any moment, two for the
/// time in which the file is created. A ring of less than twice as many slots keeps half.
pub const PRE_ROLL_MARGIN_UNITS: u32 = 4;

/// Milliseconds between two polls of an idle recorder, which only keeps parameter sets.
pub const RECORDER_IDLE_POLL_MS: u64 = 400;

/// Milliseconds after which a recorder that waits for units polls without a wake-up.
pub const RECORDER_POLL_MS: u64 = 100;

/// Units that an idle recorder reads per poll: more than any ring holds.
pub const IDLE_UNITS_PER_POLL_MAX: u32 = 64;

/// Nanoseconds between two checks of the retention rules while recording.
pub const RETENTION_INTERVAL_NS: i64 = 10_000_000_000;

/// Unix time (2024) before which the clock counts as not set. A board without a battery starts in 1970; after the clock is
/// set, recordings from before would all seem too old.
pub const AGE_KNOWN_SINCE_S: u64 = 1_704_067_200;

/// Attempts of a repair to lock a file, 100 ms apart: the kernel may release the lock of a killed process late.
pub const REPAIR_LOCK_ATTEMPTS: u32 = 50;

/// Recordings read for one listing.
pub const RECORDINGS_LISTED_MAX: usize = 10_000;

/// Bytes at the end of an unfinished `.h264` file that are searched for the last complete access unit.
pub const RECOVERY_TAIL_BYTES_MAX: u64 = 3 * SLOT_DATA_BYTES_MAX as u64;

/// Largest number of seconds in a request (pre-roll, maximum duration, heartbeat): thirty days.
pub const REQUEST_SECONDS_MAX: f64 = 2_592_000.0;
