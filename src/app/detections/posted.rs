//! PURE: checks a result that came over HTTP.

use crate::camera::detections::{DetectedBox, Detections, RawBox, Rejection, stamp_ns};
use crate::http::{ApiError, PostedDetections, bad_detections};

/// Checks all values. Returns the result with the camera's stamp as its capture time.
///
/// # Errors
/// The first reason, and the error 400 that names the field.
pub(super) fn check(posted: &PostedDetections) -> Result<Detections, (Rejection, ApiError)> {
    let stamp = posted
        .timestamp
        .map(|seconds| stamp_ns(seconds).map_err(|reason| (reason, bad_detections("timestamp", reason))));
    let (width, height) = posted.picture;
    let boxes = posted.boxes.iter().enumerate().map(|(index, posted_box)| {
        let [x, y, width, height] = posted_box.rectangle;
        let raw = RawBox { x, y, width, height };
        DetectedBox::new(&posted_box.label, posted_box.confidence, raw, posted.picture).map_err(|reason| {
            (reason, bad_detections(&format!("detections[{index}].{}", field(reason)), reason))
        })
    });
    Ok(Detections {
        frame: posted.frame,
        captured_at_ns: stamp.transpose()?.flatten(),
        width,
        height,
        boxes: boxes.collect::<Result<_, _>>()?,
    })
}

/// Returns the name of the field that a rejection is about.
fn field(reason: Rejection) -> &'static str {
    match reason {
        Rejection::Label => "class_name",
        Rejection::Confidence => "confidence",
        _ => "x, y, w, h",
    }
}
