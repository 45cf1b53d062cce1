//! Writes the counters of the detections as Prometheus text.

use crate::app::detections::DetectionHub;
use crate::base::clock;
use crate::base::limits::STAGE_BUCKETS_US;
use crate::metrics::Exposition;

/// Adds the metric families of the detections to `text`.
pub(super) fn expose(text: &mut Exposition, from: &DetectionHub) {
    text.counter("detections_total", "Results of the detector, each about one picture.")
        .value(from.taken.get());
    let rejected =
        text.counter("detections_rejected_total", "Results and single boxes that were not taken, by reason.");
    for (reason, count) in from.rejections() {
        rejected.labelled("reason", reason.name(), count);
    }
    text.gauge("detection_boxes", "Boxes that are shown now.").value(from.boxes_shown(clock::monotonic_ns()));
    let delays = from.delay.summary();
    let buckets = STAGE_BUCKETS_US.into_iter().zip(delays.buckets(&STAGE_BUCKETS_US));
    text.histogram(
        "detection_delay_seconds",
        "Time from the capture of a picture until its result was read.",
    )
    .distribution("", buckets, delays.count(), delays.sum_ns());
}
