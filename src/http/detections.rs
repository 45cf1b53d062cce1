//! Detections in the API: the event `detections`, the state in `GET /api/status`, and the body of
//! `POST /api/detections`. Does no I/O.

use serde::Serialize;
use serde_json::{Map, Value};

use super::backend::ApiError;
use crate::base::limits;

/// Data of the event `detections`: what was found in one picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DetectionEvent {
    /// The camera's number of the picture. `None` if the detector did not say.
    pub frame: Option<u64>,
    /// Capture time of the picture in milliseconds since 1970. `None` if it is unknown.
    pub captured_at_ms: Option<f64>,
    /// RTP timestamp of the picture, which is the same for every viewer of this server. `None` if it is unknown.
    pub rtp_time: Option<u32>,
    /// Width in pixels of the picture that the boxes refer to.
    pub width: u32,
    /// Height in pixels of that picture.
    pub height: u32,
    /// What was found. Empty if nothing was found, which clears earlier boxes.
    pub boxes: Vec<EventBox>,
    /// Milliseconds after which the boxes must not be shown any more.
    pub expires_ms: u64,
    /// Milliseconds from the capture of the picture until the server read the result. `None` if it is unknown.
    pub delay_ms: Option<f64>,
}

/// One box of a [`DetectionEvent`], in pixels of the picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventBox {
    /// Class, such as `cat`.
    pub label: String,
    /// From 0 to 1.
    pub confidence: f32,
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

/// State of the detections, as `GET /api/status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DetectionsStatus {
    /// What the detections do now.
    pub state: DetectionsState,
    /// Name of the detector's segment, or `post` if the newest result came over HTTP. `None` if there is neither.
    pub source: Option<String>,
    /// Why no results can be read, as a text for the user.
    pub fault: Option<String>,
    /// Results taken since the start.
    pub results: u64,
    /// Results and single entries that were refused since the start.
    pub rejected: u64,
    /// Learned interval between results in milliseconds. `None` while it is unknown.
    pub interval_ms: Option<u64>,
}

/// What the detections do.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DetectionsState {
    /// No segment is read, and no result has come over HTTP.
    #[default]
    Off,
    /// No result has arrived yet.
    Waiting,
    /// The newest result is shown.
    Live,
    /// The newest result is too old to be shown.
    Expired,
    /// The segment cannot be read.
    Faulty,
}

/// Body of `POST /api/detections`. The fields have the right types, but their values are not checked yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PostedDetections {
    /// The camera's number of the picture.
    pub frame: Option<u64>,
    /// The camera's stamp of the picture in seconds.
    pub timestamp: Option<f64>,
    /// Width and height in pixels of the picture that the boxes refer to.
    pub picture: (u32, u32),
    /// What was found.
    pub boxes: Vec<PostedBox>,
}

/// One entry of [`PostedDetections`]. Its coordinates are rounded to pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct PostedBox {
    /// Value of `class_name`.
    pub label: String,
    /// Value of `confidence`.
    pub confidence: f32,
    /// Values of `x`, `y`, `w` and `h`.
    pub rectangle: [i64; 4],
}

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
    let body: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| super::request::bad_json(expected, &error))?;
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
        let entries = vec![r#"{"class_name":"cat","confidence":1,"x":1,"y":1,"w":1,"h":1}"#; 11].join(",");
        let error = parse_detections(format!(r#"{{"frame":1,"detections":[{entries}]}}"#).as_bytes());
        assert!(error.unwrap_err().message.starts_with("`detections`"));
        let error = parse_detections(br#"{"detections":[]}"#).unwrap_err();
        assert!(error.message.starts_with("`timestamp`"), "{}", error.message);
    }

    #[test]
    fn the_largest_event_is_within_its_bound() {
        let long = EventBox {
            label: "\"".repeat(limits::LABEL_BYTES_MAX),
            confidence: 0.123_456_79,
            x: 8_191,
            y: 8_191,
            width: 8_192,
            height: 8_192,
        };
        let event = DetectionEvent {
            frame: Some(u64::MAX),
            captured_at_ms: Some(1_767_000_000_123.456),
            rtp_time: Some(u32::MAX),
            width: 8_192,
            height: 8_192,
            boxes: vec![long; limits::DETECTED_BOXES_MAX],
            expires_ms: 1_500,
            delay_ms: Some(12_345.678),
        };
        let bytes = serde_json::to_vec(&event).unwrap().len();
        assert!(bytes + 64 <= limits::DETECTIONS_EVENT_BYTES_MAX, "{bytes}");
    }
}
