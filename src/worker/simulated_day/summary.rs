//! Summary of a simulated day, printed in the test output.

use std::fmt;

use super::recorder::Totals;

/// Counts of a day.
pub(super) struct Summary {
    pub(super) seed: u64,
    pub(super) simulated_s: i64,
    pub(super) joined: u32,
    pub(super) units: u32,
    pub(super) whims: [u32; 6],
    pub(super) stalls: u32,
    pub(super) shown: u64,
    pub(super) hidden: u64,
    pub(super) datagrams: u64,
    pub(super) turns: u64,
    pub(super) nacks: u64,
    pub(super) idr_requests: u64,
    pub(super) units_dropped: u64,
    pub(super) recordings: Totals,
    pub(super) held_bytes: Vec<i64>,
    /// Hash over all arrivals in order.
    pub(super) digest: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { seed, simulated_s, joined, units, whims, stalls, .. } = self;
        let Totals { recordings, files, units: recorded, bytes, dropped } = self.recordings;
        writeln!(
            out,
            "seed {seed}: {simulated_s} s, {joined} viewers, {units} units; camera irregularities {whims:?}, \
             {stalls} stalls of the worker, {} turns, {} datagrams",
            self.turns, self.datagrams
        )?;
        writeln!(
            out,
            "  {} units shown, {} not decodable; {} NACKs, {} requests for an IDR, {} units dropped",
            self.shown, self.hidden, self.nacks, self.idr_requests, self.units_dropped
        )?;
        writeln!(
            out,
            "  {recordings} recordings in {files} files: {recorded} units, {bytes} bytes, {dropped} units dropped"
        )?;
        write!(
            out,
            "  held at the end of each round: {:?} bytes; digest {:016x}",
            self.held_bytes, self.digest
        )
    }
}
