//! Parses the query of `GET /api/recordings`, which selects recordings. Does no I/O.

use super::backend::ApiError;
use super::ranges;
use crate::metrics::status::{RecordingFilter, RecordingKind};

/// Returns the filter in a query. Parameters with other names are ignored.
///
/// # Errors
/// The error 400, which names the parameter that is malformed.
pub(super) fn parse(query: Option<&str>) -> Result<RecordingFilter, ApiError> {
    let mut filter = RecordingFilter::default();
    for (name, value) in query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "kind" => filter.kind = Some(kind(value).ok_or_else(|| bad(name, "manual or event"))?),
            "label" => {
                let label = ranges::decode_segment(&value.replace('+', " "));
                filter.label = Some(label.ok_or_else(|| bad(name, "percent-encoded text"))?);
            }
            "day" => filter.day = Some(day(value).ok_or_else(|| bad(name, "a day such as 2026-11-29"))?),
            "offset" => filter.offset = value.parse().map_err(|_| bad(name, "a number"))?,
            "limit" => filter.limit = Some(value.parse().map_err(|_| bad(name, "a number"))?),
            _ => {}
        }
    }
    Ok(filter)
}

fn bad(name: &str, expected: &str) -> ApiError {
    ApiError::new(400, "bad_filter", format!("`{name}`: {expected} is required"))
}

fn kind(text: &str) -> Option<RecordingKind> {
    match text {
        "manual" => Some(RecordingKind::Manual),
        "event" => Some(RecordingKind::Event),
        _ => None,
    }
}

/// Returns year, month and day.
fn day(text: &str) -> Option<(u16, u8, u8)> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let is_plain = [year, month, day].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    let lengths = (year.len(), month.len(), day.len());
    let (year, month, day) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    let is_day = (1..=12).contains(&month) && (1..=31).contains(&day);
    (is_plain && lengths == (4, 2, 2) && parts.next().is_none() && is_day).then_some((year, month, day))
}
