//! Counters of the recorder. The threads of the recorder write them, and any thread may read them.

use std::sync::atomic::AtomicBool;

use crate::base::counters::Counter;
use crate::base::histogram::LatencyTotals;

/// Counters of the recorder since the program started.
#[derive(Debug, Default)]
pub struct RecorderCounters {
    /// True while a recording runs.
    pub active: AtomicBool,
    /// Turns of the recorder's loop. The number stops growing if the recorder hangs.
    pub turns: Counter,
    /// Access units written completely.
    pub units: Counter,
    /// Bytes of the access units written completely, including their headers in the file.
    pub bytes: Counter,
    /// Access units that are missing in recordings, for any reason.
    pub dropped: Counter,
    /// Access units that the camera overwrote in the ring while they were written to the disk.
    pub torn: Counter,
    /// Access units that the camera overwrote before the recorder read them, because the disk was slow.
    pub lapped: Counter,
    /// Slots and access units that the recorder skipped because they are not valid. Units without a picture do not
    /// count, unless one of their parameter sets is broken.
    pub rejected: Counter,
    /// Bytes of filler that were removed from access units.
    pub filler_bytes: Counter,
    /// Errors that ended a recording or prevented its start, such as a failed write.
    pub disk_errors: Counter,
    /// Recordings started.
    pub started: Counter,
    /// Files that were closed after a recording without an error.
    pub finished: Counter,
    /// Files that were repaired after a crash.
    pub recovered: Counter,
    /// Files deleted by the retention rules.
    pub retired: Counter,
    /// Time of each write from submission to completion.
    pub write_latency: LatencyTotals,
}
