//! Counters of the recorder. Its threads write them, any thread reads them.

use std::sync::atomic::AtomicBool;

use crate::base::counters::Counter;
use crate::base::histogram::LatencyTotals;

/// What the recorder did since the program started.
#[derive(Debug, Default)]
pub struct RecorderCounters {
    /// A recording runs.
    pub active: AtomicBool,
    /// Access units written whole.
    pub units: Counter,
    /// Bytes of files committed, headers included.
    pub bytes: Counter,
    /// Units that a recording lacks, for whatever reason.
    pub dropped: Counter,
    /// Of those: overwritten by the camera while the disk read them.
    pub torn: Counter,
    /// Of those: overtaken by the camera before they were read (slow disk).
    pub lapped: Counter,
    /// Of those: not an access unit of H.264.
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
    /// Submission to completion of each write.
    pub write_latency: LatencyTotals,
}
