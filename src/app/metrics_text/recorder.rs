//! The recorder's counters as Prometheus text. May not decide anything.

use std::sync::atomic::Ordering::Relaxed;

use crate::metrics::Exposition;
use crate::recorder::counters::{LATENCY_BOUNDS_US, RecorderCounters};

/// Adds the `recording_*` families.
pub(super) fn expose(text: &mut Exposition, from: &RecorderCounters) {
    text.gauge("recording_active", "1 while a recording runs.").value(u8::from(from.active.load(Relaxed)));
    for (name, help, value) in [
        ("recorded_units_total", "Access units written whole.", &from.units),
        ("recorded_bytes_total", "Bytes of recordings on the disk.", &from.bytes),
        ("recordings_started_total", "Recordings started.", &from.started),
        ("recordings_finished_total", "Files finished with an index.", &from.finished),
        ("recordings_recovered_total", "Files repaired after a crash.", &from.recovered),
        ("recordings_retired_total", "Files deleted by the retention rules.", &from.retired),
        ("recording_dropped_units_total", "Units a recording lacks, for whatever reason.", &from.dropped),
        ("recording_torn_units_total", "Of those: overwritten while the disk read them.", &from.torn),
        ("recording_lapped_units_total", "Of those: overtaken by the camera (slow disk).", &from.lapped),
        ("disk_errors_total", "Failed operations on files.", &from.disk_errors),
    ] {
        text.counter(name, help).value(value.load(Relaxed));
    }
    let writes = from.write_latency.snapshot();
    let bounds = LATENCY_BOUNDS_US.iter().zip(writes.buckets).map(|(&bound_us, count)| (bound_us, count));
    text.histogram_us(
        "recording_write_seconds",
        "Submission to completion of a write.",
        bounds,
        writes.count(),
        writes.sum_ns,
    );
}
