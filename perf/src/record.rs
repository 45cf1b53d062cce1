//! The record of one run, which is stored as one line of JSON, and the quantiles in it.

use serde::{Deserialize, Serialize};

use crate::process::Memory;

/// Quantiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

impl Quantiles {
    /// Returns the quantiles of values in nanoseconds. All quantiles are 0 if there are no values.
    pub(crate) fn of(mut values_ns: Vec<i64>) -> Quantiles {
        values_ns.sort_unstable();
        let at = |fraction: f64| {
            let rank = (values_ns.len() as f64 * fraction).ceil() as usize;
            values_ns.get(rank.saturating_sub(1)).map_or(0.0, |ns| *ns as f64 / 1e3)
        };
        Quantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: at(1.0) }
    }
}

/// The setting of a run. Runs with the same setting can be compared and averaged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) server: String,
    pub(crate) viewers: usize,
    pub(crate) kbps: u32,
    pub(crate) record: bool,
    /// True if viewers receive whole GSO batches, as with a network card that has segmentation offload.
    pub(crate) gro: bool,
    /// True if viewers send transport-wide feedback, as browsers do.
    #[serde(default)]
    pub(crate) feedback: bool,
}

/// Units of all viewers during the measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Units {
    /// Units published by the camera, multiplied by the number of viewers.
    pub(crate) expected: u64,
    pub(crate) received: u64,
    pub(crate) missing: u64,
    pub(crate) duplicated: u64,
    pub(crate) torn: u64,
    /// Units received more than one camera interval (33 ms) after they were published.
    pub(crate) late: u64,
    /// Viewers that compare their units with the stamp's checksum.
    pub(crate) viewers_that_check: u64,
    /// Datagrams lost in the viewers' own buffers: a fault of the harness, not of the server.
    pub(crate) lost_by_harness: u64,
}

/// CPU time of a process per second, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) total_ms: f64,
    pub(crate) user_ms: f64,
    pub(crate) system_ms: f64,
    pub(crate) voluntary_switches: f64,
    pub(crate) involuntary_switches: f64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(flatten)]
    pub(crate) setting: Setting,
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) commit: String,
    pub(crate) machine: String,
    pub(crate) seconds: f64,
    pub(crate) srtp: String,
    pub(crate) units: Units,
    /// Time from publication to the last datagram in us, one sample per viewer and unit.
    pub(crate) latency: Quantiles,
    /// The same time for IDR units only, and for all other units.
    pub(crate) latency_idr: Quantiles,
    pub(crate) latency_other: Quantiles,
    /// Time from publication to the last datagram of the last viewer in us, one sample per unit.
    pub(crate) latency_last_viewer: Quantiles,
    pub(crate) cpu: Cpu,
    pub(crate) memory: Memory,
    pub(crate) start_ms: f64,
    /// Time from posting the offer to the first datagram, and to the first complete IDR unit, in ms.
    pub(crate) first_datagram_ms: Quantiles,
    pub(crate) first_idr_ms: Quantiles,
    /// CPU time of the load thread, and of the camera, in ms per second.
    pub(crate) load_ms: f64,
    pub(crate) camera_ms: f64,
    /// Share of the machine's time that was idle, and the share that the hypervisor took.
    pub(crate) idle: f64,
    pub(crate) stolen: f64,
    /// True if server and camera ran with real-time priority.
    pub(crate) shielded: bool,
    /// Share of the machine's time used by other processes than server, load and camera.
    pub(crate) foreign: f64,
    pub(crate) recorded_units: Option<u64>,
}

/// Maximum of [`Record::foreign`] up to which a run counts as undisturbed.
pub(crate) const FOREIGN_MAX: f64 = 0.08;

impl Record {
    /// Returns true if the run was undisturbed and the harness lost no datagrams.
    pub(crate) fn is_clean(&self) -> bool {
        self.foreign <= FOREIGN_MAX && self.units.lost_by_harness == 0
    }

    /// Returns the CPU time per viewer in ms per second.
    pub(crate) fn cpu_per_viewer_ms(&self) -> f64 {
        self.cpu.total_ms / self.setting.viewers.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values() {
        let quantiles = Quantiles::of((1..=1_000).rev().map(|us| us * 1_000).collect());
        let expected = Quantiles { p50: 500.0, p90: 900.0, p99: 990.0, p99_9: 999.0, max: 1_000.0 };
        assert_eq!(quantiles, expected);
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }
}
