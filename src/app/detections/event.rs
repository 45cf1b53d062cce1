//! PURE: writes a result as a `detections` event. It is written once for all listeners, by hand, because a derived
//! serialiser takes more time and more room in the program.

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use serde_json::Value;

use super::DetectionResult;
use crate::base::limits::DETECTIONS_EVENT_BYTES_MAX;
use crate::camera::detections::{DetectedBox, Detections};

/// Returns the event in the form in which it is sent. The JSON has no line breaks, so it fits into one `data` line.
pub(super) fn text(result: &DetectionResult) -> Bytes {
    let Detections { frame, captured_at_ns, width, height, boxes } = &result.detections;
    let mut text = String::with_capacity(DETECTIONS_EVENT_BYTES_MAX / 4);
    text.push_str("event: detections\ndata: {");
    let captured_at_ms = captured_at_ns.map(milliseconds);
    let delay_ms = result.delay_ns.map(milliseconds);
    field(&mut text, "frame", frame.as_ref().map(as_display));
    field(&mut text, "captured_at_ms", captured_at_ms.as_ref().map(as_display));
    field(&mut text, "rtp_time", result.rtp_time.as_ref().map(as_display));
    field(&mut text, "width", Some(width));
    field(&mut text, "height", Some(height));
    text.push_str("\"boxes\":[");
    for (index, found) in boxes.iter().enumerate() {
        text.push_str(if index == 0 { "{" } else { ",{" });
        write_box(&mut text, found);
    }
    text.push_str("],");
    field(&mut text, "expires_ms", Some(&(result.expires_ns / 1_000_000)));
    field(&mut text, "delay_ms", delay_ms.as_ref().map(as_display));
    end_object(&mut text);
    text.push_str("\n\n");
    Bytes::from(text)
}

fn write_box(text: &mut String, found: &DetectedBox) {
    let label = Value::from(found.label.as_str());
    let fields: [(&str, &dyn Display); 6] = [
        ("label", &label),
        ("confidence", &found.confidence),
        ("x", &found.x),
        ("y", &found.y),
        ("width", &found.width),
        ("height", &found.height),
    ];
    fields.into_iter().for_each(|(name, value)| field(text, name, Some(value)));
    end_object(text);
}

fn as_display(value: &impl Display) -> &dyn Display {
    value
}

/// Writes a field and a comma. The value must be JSON, or `None` for null.
fn field(text: &mut String, name: &str, value: Option<&dyn Display>) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\"{name}\":{},", value.unwrap_or(&"null"));
}

/// Replaces the comma after the last field.
fn end_object(text: &mut String) {
    text.pop();
    text.push('}');
}

/// Returns nanoseconds as milliseconds, rounded to microseconds.
#[expect(clippy::cast_precision_loss, reason = "microseconds since 1970 have 51 bits")]
fn milliseconds(ns: i64) -> f64 {
    (ns / 1_000) as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::limits::{DETECTED_BOXES_MAX, LABEL_BYTES_MAX};

    fn data(result: &DetectionResult) -> Value {
        let text = text(result);
        let text = std::str::from_utf8(&text).unwrap();
        let line = text.strip_prefix("event: detections\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!line.contains('\n'), "{line}");
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn every_field_is_in_the_event() {
        let cat =
            DetectedBox { label: "a \"cat\"".into(), confidence: 0.91, x: 10, y: 20, width: 30, height: 40 };
        let detections = Detections {
            frame: Some(1_234),
            captured_at_ns: Some(1_767_000_000_123_456_789),
            boxes: vec![cat.clone(), cat],
            ..Detections::default()
        };
        let delay_ns = Some(31_200_000);
        let full = DetectionResult { detections, rtp_time: Some(7), delay_ns, expires_ns: 400_000_000 };
        let cat =
            json!({ "label": "a \"cat\"", "confidence": 0.91, "x": 10, "y": 20, "width": 30, "height": 40 });
        let expected = json!({
            "frame": 1_234, "captured_at_ms": 1_767_000_000_123.456_f64, "rtp_time": 7, "width": 1_280,
            "height": 720, "boxes": [cat, cat], "expires_ms": 400, "delay_ms": 31.2,
        });
        assert_eq!(data(&full), expected);
        let detections = Detections::default();
        let empty = DetectionResult { detections, rtp_time: None, delay_ns: None, expires_ns: 0 };
        let expected = json!({
            "frame": null, "captured_at_ms": null, "rtp_time": null, "width": 1_280, "height": 720,
            "boxes": [], "expires_ms": 0, "delay_ms": null,
        });
        assert_eq!(data(&empty), expected);
    }

    #[test]
    fn the_largest_event_is_within_its_bound() {
        let long = DetectedBox {
            label: "\"".repeat(LABEL_BYTES_MAX),
            confidence: 0.123_456_79,
            x: 8_191,
            y: 8_191,
            width: 8_192,
            height: 8_192,
        };
        let detections = Detections {
            frame: Some(u64::MAX),
            captured_at_ns: Some(i64::MAX),
            width: 8_192,
            height: 8_192,
            boxes: vec![long; DETECTED_BOXES_MAX],
        };
        let (rtp_time, delay_ns) = (Some(u32::MAX), Some(12_345_678_901));
        let bytes = text(&DetectionResult { detections, rtp_time, delay_ns, expires_ns: i64::MAX }).len();
        assert!(bytes <= DETECTIONS_EVENT_BYTES_MAX, "{bytes}");
    }
}
