//! Writes the counters of the recorder as Prometheus text.

use std::sync::atomic::Ordering::Relaxed;

use crate::base::limits::WRITE_BUCKETS_US;
use crate::metrics::Exposition;
use crate::recorder::counters::RecorderCounters;

/// Adds the metric families of the recorder to `text`.
pub(super) fn expose(text: &mut Exposition, from: &RecorderCounters) {
    text.gauge("recording_active", "1 while a recording runs.").value(u8::from(from.active.load(Relaxed)));
    for (name, help, value) in [
        ("recorded_units_total", "Access units written.", &from.units),
        ("recorded_bytes_total", "Bytes of recordings written to disk.", &from.bytes),
        ("recordings_started_total", "Recordings started.", &from.started),
        ("recordings_finished_total", "Files finished with an index.", &from.finished),
        ("recordings_recovered_total", "Files repaired after a crash.", &from.recovered),
        ("recordings_retired_total", "Files deleted by the retention rules.", &from.retired),
        (
            "recording_dropped_units_total",
            "Access units missing in recordings, for any reason.",
            &from.dropped,
        ),
        (
            "recording_torn_units_total",
            "Access units that the camera overwrote while they were being recorded.",
            &from.torn,
        ),
        (
            "recording_lapped_units_total",
            "Access units not recorded because the camera lapped the recorder (slow disk).",
            &from.lapped,
        ),
        (
            "recording_filler_bytes_total",
            "Bytes of filler in access units. They are not recorded.",
            &from.filler_bytes,
        ),
        ("disk_errors_total", "Failed operations on files.", &from.disk_errors),
    ] {
        text.counter(name, help).value(value.get());
    }
    let writes = from.write_latency.summary();
    let buckets = WRITE_BUCKETS_US.into_iter().zip(writes.buckets(&WRITE_BUCKETS_US));
    text.histogram("recording_write_seconds", "Time from submitting a write to its completion.")
        .distribution("", buckets, writes.count(), writes.sum_ns());
}
