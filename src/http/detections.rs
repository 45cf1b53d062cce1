//! Parses the body of `POST /api/detections`. Does no I/O.

use serde_json::{Map, Value};

use super::backend::ApiError;
use super::request;
use super::types::{PostedBox, PostedDetections};
use crate::base::limits;

/// Returns the error for a field of the body that is wrong.
#[must_use]
pub fn bad_detections(field: &str, expected: impl std::fmt::Display) -> ApiError {
    ApiError::new(400, "bad_detections", format!("`{field}`: {expected}"))
}

/// Returns the fields of the body.
///
/// # Errors
/// The error 400, which names the first field that is missing or has the wrong type.
pub(super) fn parse_detections(body: &[u8]) -> Result<PostedDetections, ApiError> {
    let expected = "expected {\"frame\", \"timestamp\", \"width\", \"height\", \"detections\": [...]}";
    let body = request::parse_object(body).map_err(|error| request::bad_json(expected, &error))?;
    let frame = given(&body, "frame").map(|frame| {
        frame.as_u64().ok_or_else(|| bad_detections("frame", "a whole number of at least 0 is required"))
    });
    let timestamp = given(&body, "timestamp").map(|stamp| {
        stamp.as_f64().ok_or_else(|| bad_detections("timestamp", "a number of seconds is required"))
    });
    let (frame, timestamp) = (frame.transpose()?, timestamp.transpose()?);
    if frame.is_none() && timestamp.is_none() {
        return Err(bad_detections("timestamp", "it or `frame` is required"));
    }
    let (width, height) = limits::REFERENCE_PICTURE;
    let picture = (side(&body, "width", width)?, side(&body, "height", height)?);
    let entries = given(&body, "detections").and_then(Value::as_array);
    let entries = entries.ok_or_else(|| bad_detections("detections", "a list is required"))?;
    if entries.len() > limits::DETECTED_BOXES_MAX {
        let expected = format!("at most {} entries are accepted", limits::DETECTED_BOXES_MAX);
        return Err(bad_detections("detections", expected));
    }
    let boxes = entries.iter().enumerate().map(|(index, entry)| posted_box(index, entry));
    Ok(PostedDetections { frame, timestamp, picture, boxes: boxes.collect::<Result<_, _>>()? })
}

/// Returns the value of a field, or `None` if it is missing or null.
fn given<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn side(fields: &Map<String, Value>, name: &str, default: u32) -> Result<u32, ApiError> {
    let Some(value) = given(fields, name) else { return Ok(default) };
    let side = value.as_u64().and_then(|side| u32::try_from(side).ok());
    let max = limits::PICTURE_SIDE_MAX.unsigned_abs();
    side.filter(|side| (1..=max).contains(side))
        .ok_or_else(|| bad_detections(name, format!("1 to {max} pixels are required")))
}

fn posted_box(index: usize, entry: &Value) -> Result<PostedBox, ApiError> {
    let bad = |name: &str, expected| bad_detections(&format!("detections[{index}].{name}"), expected);
    let number =
        |name: &str| entry.get(name).and_then(Value::as_f64).ok_or_else(|| bad(name, "a number is required"));
    #[expect(clippy::cast_possible_truncation, reason = "casts from float saturate")]
    let pixels = |name: &str| number(name).map(|pixels| pixels.round() as i64);
    let label = entry.get("class_name").and_then(Value::as_str);
    #[expect(clippy::cast_possible_truncation, reason = "a number outside 0 to 1 is refused later")]
    let confidence = number("confidence")? as f32;
    Ok(PostedBox {
        label: label.ok_or_else(|| bad("class_name", "a text is required"))?.to_owned(),
        confidence,
        rectangle: [pixels("x")?, pixels("y")?, pixels("w")?, pixels("h")?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"frame":7,"timestamp":1767000000.5,"width":640,"height":360,"detections":[
        {"class_name":"cat","confidence":0.9,"x":1,"y":2.4,"w":3.5,"h":-4}]}"#;

    #[test]
    fn every_field_of_the_body_is_read() {
        let posted = parse_detections(GOOD.as_bytes()).unwrap();
        let cat = PostedBox { label: "cat".to_owned(), confidence: 0.9, rectangle: [1, 2, 4, -4] };
        assert_eq!((posted.frame, posted.timestamp), (Some(7), Some(1_767_000_000.5)));
        assert_eq!((posted.picture, posted.boxes), ((640, 360), vec![cat]));
        let least = parse_detections(br#"{"timestamp":1,"width":null,"detections":[]}"#).unwrap();
        assert_eq!((least.frame, least.picture, least.boxes.len()), (None, (1_280, 720), 0));
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (from, to, field) in [
            ("7", "-7", "`frame`"),
            ("7", "7.5", "`frame`"),
            ("1767000000.5", "\"now\"", "`timestamp`"),
            ("640", "0", "`width`"),
            ("360", "9000", "`height`"),
            ("\"detections\"", "\"boxes\"", "`detections`"),
            ("\"cat\"", "5", "`detections[0].class_name`"),
            ("0.9", "\"0.9\"", "`detections[0].confidence`"),
            ("\"h\"", "\"height\"", "`detections[0].h`"),
        ] {
            let error = parse_detections(GOOD.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert_eq!((error.status, error.code), (400, "bad_detections"), "{to}");
            assert!(error.message.starts_with(field), "{to}: {}", error.message);
        }
        for body in ["", "[]", "{", "5", "\0"] {
            let error = parse_detections(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.code), (400, "bad_json"), "{body}");
        }
        let entries = [r#"{"class_name":"cat","confidence":1,"x":1,"y":1,"w":1,"h":1}"#; 11].join(",");
        let error = parse_detections(format!(r#"{{"frame":1,"detections":[{entries}]}}"#).as_bytes());
        assert!(error.unwrap_err().message.starts_with("`detections`"));
        let error = parse_detections(br#"{"detections":[]}"#).unwrap_err();
        assert!(error.message.starts_with("`timestamp`"), "{}", error.message);
    }
}
