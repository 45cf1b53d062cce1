//! Counters of the recorder. Its threads write them; any thread reads them.

use std::sync::atomic::AtomicBool;

use crate::base::counters::Counter;
use crate::base::histogram::LatencyTotals;

/// Counts since the program started.
#[derive(Debug, Default)]
pub struct RecorderCounters {
    /// True while a recording runs.
    pub active: AtomicBool,
    /// Access units written completely.
    pub units: Counter,
    /// Bytes of committed units, headers included.
    pub bytes: Counter,
    /// Access units missing in recordings, for any reason.
    pub dropped: Counter,
    /// Units that the camera overwrote while the disk read them.
    pub torn: Counter,
    /// Units that the camera overwrote before the recorder read them (slow disk).
    pub lapped: Counter,
    /// Units that are not valid H.264 access units.
    pub rejected: Counter,
    /// Failed operations on files.
    pub disk_errors: Counter,
    /// Recordings started.
    pub started: Counter,
    /// Files finished with an index.
    pub finished: Counter,
    /// Files repaired after a crash.
    pub recovered: Counter,
    /// Files deleted by the retention rules.
    pub retired: Counter,
    /// Time of each write from submission to completion.
    pub write_latency: LatencyTotals,
}
