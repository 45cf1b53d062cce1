//! Reads what an object detector found in the camera's pictures. The detector is another program, which writes its
//! newest result into a small segment of shared memory. Results may also arrive by another way (HTTP); the types and
//! checks of this module are the same for both.
//!
//! ```text
//!  detector ─► segment of 576 bytes ─► reader (pread, version before and after) ─► parse ─► Detections
//!                                         ▲
//!                                      schedule: when to poll, how long boxes are shown, how many results pass
//! ```

mod reader;
mod results;
mod schedule;
mod segment;

pub use reader::{DetectionReader, Fault, Polled};
pub use results::Results;
pub use schedule::Schedule;
pub use segment::{SEGMENT_BYTES, entry, field, parse, stamp_ns, version};

use serde::Serialize;

use crate::base::limits::{LABEL_BYTES_MAX, REFERENCE_PICTURE};

/// One result of the detector: everything that it found in one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Detections {
    /// The camera's number of the picture, as in [`UnitView::frame_number`](crate::camera::UnitView). It may jump.
    /// `None` if the detector did not say.
    pub frame: Option<u64>,
    /// Capture time of the picture in nanoseconds. From the reader it is the camera's stamp, on the clock that the camera
    /// uses; in [`Results`] it is on CLOCK_REALTIME. `None` if the detector did not say.
    pub captured_at_ns: Option<i64>,
    /// Width in pixels of the picture that the boxes refer to. The stream may have another size.
    pub width: u32,
    /// Height in pixels of that picture.
    pub height: u32,
    /// At most [`DETECTED_BOXES_MAX`](crate::base::limits::DETECTED_BOXES_MAX) boxes. None means that the picture shows
    /// nothing that the detector knows.
    pub boxes: Vec<DetectedBox>,
}

impl Default for Detections {
    /// Returns a result without boxes that refers to the picture size of the segment.
    fn default() -> Detections {
        let (width, height) = REFERENCE_PICTURE;
        Detections { frame: None, captured_at_ns: None, width, height, boxes: Vec::new() }
    }
}

/// One thing that the detector found. The box lies within the picture and has at least one pixel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DetectedBox {
    /// Class of the thing, such as `cat`: 1 to 31 bytes without control characters.
    pub label: String,
    /// From 0 to 1.
    pub confidence: f32,
    /// Left edge in pixels of the reference picture.
    pub x: u32,
    /// Upper edge in pixels.
    pub y: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// A rectangle in pixels as a detector wrote it, not checked yet.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct RawBox {
    /// Left edge.
    pub x: i64,
    /// Upper edge.
    pub y: i64,
    /// Width.
    pub width: i64,
    /// Height.
    pub height: i64,
}

impl DetectedBox {
    /// Checks one entry of a result. A box that is partly outside the picture is clipped.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn new(
        label: &str,
        confidence: f32,
        raw: RawBox,
        picture: (u32, u32),
    ) -> Result<DetectedBox, Rejection> {
        let is_label = (1..=LABEL_BYTES_MAX).contains(&label.len()) && !label.contains(char::is_control);
        if !is_label {
            return Err(Rejection::Label);
        }
        if !(0.0..=1.0).contains(&confidence) {
            return Err(Rejection::Confidence);
        }
        let (x, width) = clip(raw.x, raw.width, picture.0).ok_or(Rejection::Box)?;
        let (y, height) = clip(raw.y, raw.height, picture.1).ok_or(Rejection::Box)?;
        Ok(DetectedBox { label: label.to_owned(), confidence, x, y, width, height })
    }
}

/// Returns the part of a range that lies within `0..side`, as its start and length. Returns `None` if it is empty.
fn clip(start: i64, length: i64, side: u32) -> Option<(u32, u32)> {
    if length <= 0 {
        return None;
    }
    let end = start.saturating_add(length).min(i64::from(side));
    let start = start.max(0);
    let length = u32::try_from(end.saturating_sub(start)).ok().filter(|length| *length > 0)?;
    Some((u32::try_from(start).ok()?, length))
}

/// Why a result, or one entry of it, was not taken. The rest of a result with a wrong entry is used.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The result has a negative number of entries, or too many.
    #[error("the number of detections is not within 0 to 10")]
    Count,
    /// The stamp of the result is not a time.
    #[error("the timestamp is not a number of seconds since 1970 or since boot")]
    Stamp,
    /// The detector wrote while the result was read, again and again.
    #[error("the detector wrote while the result was read")]
    Torn,
    /// The confidence is not within 0 to 1.
    #[error("the confidence is not within 0 to 1")]
    Confidence,
    /// The box is empty or completely outside the picture.
    #[error("the box is empty or outside the picture")]
    Box,
    /// The label is empty or too long, is not UTF-8, or has control characters.
    #[error("the label is not 1 to 31 bytes of UTF-8 without control characters")]
    Label,
    /// More results arrived than are forwarded per second.
    #[error("more than 120 results arrived in a second")]
    TooMany,
}

impl Rejection {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Rejection; 7] = [
        Rejection::Count,
        Rejection::Stamp,
        Rejection::Torn,
        Rejection::Confidence,
        Rejection::Box,
        Rejection::Label,
        Rejection::TooMany,
    ];

    /// Returns the value of the metric's label `reason`. It never changes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Rejection::Count => "count",
            Rejection::Stamp => "stamp",
            Rejection::Torn => "torn",
            Rejection::Confidence => "confidence",
            Rejection::Box => "box",
            Rejection::Label => "label",
            Rejection::TooMany => "too_many",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(raw: [i64; 4]) -> Result<[u32; 4], Rejection> {
        let [x, y, width, height] = raw;
        DetectedBox::new("cat", 0.5, RawBox { x, y, width, height }, (1_280, 720))
            .map(|found| [found.x, found.y, found.width, found.height])
    }

    #[test]
    fn a_box_is_clipped_to_the_picture_or_refused() {
        assert_eq!(checked([10, 20, 30, 40]), Ok([10, 20, 30, 40]));
        assert_eq!(checked([0, 0, 1_280, 720]), Ok([0, 0, 1_280, 720]));
        assert_eq!(checked([-5, -6, 30, 40]), Ok([0, 0, 25, 34]));
        assert_eq!(checked([1_270, 700, 30, 40]), Ok([1_270, 700, 10, 20]));
        assert_eq!(checked([i64::MIN, 0, i64::MAX, 5]), Err(Rejection::Box));
        assert_eq!(checked([-1, -1, i64::MAX, i64::MAX]), Ok([0, 0, 1_280, 720]));
        for outside in [[1_280, 0, 5, 5], [0, 720, 5, 5], [-5, 0, 5, 5], [0, 0, 0, 5], [0, 0, 5, -1]] {
            assert_eq!(checked(outside), Err(Rejection::Box), "{outside:?}");
        }
    }

    #[test]
    fn label_and_confidence_are_checked() {
        let raw = RawBox { x: 0, y: 0, width: 5, height: 5 };
        let check = |label: &str, confidence| DetectedBox::new(label, confidence, raw, (1_280, 720)).err();
        for label in ["cat", "food_bowl", "猫", "a b", &"x".repeat(31)] {
            assert_eq!(check(label, 1.0), None, "{label}");
        }
        for label in ["", "a\nb", "a\0", "\u{7f}", "\u{85}", &"x".repeat(32)] {
            assert_eq!(check(label, 1.0), Some(Rejection::Label), "{label:?}");
        }
        for confidence in [f32::NAN, f32::INFINITY, -0.1, 1.1, f32::NEG_INFINITY] {
            assert_eq!(check("cat", confidence), Some(Rejection::Confidence), "{confidence}");
        }
    }

    #[test]
    fn each_rejection_has_its_own_name() {
        let names: std::collections::HashSet<_> = Rejection::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Rejection::ALL.len());
    }
}
