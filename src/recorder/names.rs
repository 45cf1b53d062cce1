//! PURE: validates, numbers and generates the names of recordings. Only [`Zone::local`] does I/O: it reads the time
//! zone.

use std::fmt;

use crate::base::limits::RECORDING_NAME_BYTES_MAX;

/// File format of a recording. The extension of the file name states it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Annex-B byte stream with the extension `.h264`.
    H264,
    /// Hybrid MP4 with the extension `.mp4`, see [`fmp4`](super::format::fmp4).
    #[default]
    Mp4,
}

impl Format {
    /// Returns the extension without its dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Format::H264 => "h264",
            Format::Mp4 => "mp4",
        }
    }

    /// Returns the media type for the `Content-Type` header.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::H264 => "video/h264",
            Format::Mp4 => "video/mp4",
        }
    }

    /// Returns the format that the extension of a file name states, or `None` if the extension is unknown.
    #[must_use]
    pub fn of(name: &str) -> Option<Format> {
        match name.rsplit_once('.')?.1 {
            "h264" => Some(Format::H264),
            "mp4" => Some(Format::Mp4),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.extension())
    }
}

/// Why a name is not allowed for a recording.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty or has only an extension.
    #[error("the name is empty")]
    Empty,
    /// The name is longer than [`RECORDING_NAME_BYTES_MAX`].
    #[error("the name is longer than {RECORDING_NAME_BYTES_MAX} bytes")]
    TooLong,
    /// The name contains a path separator, so the file could be outside the directory.
    #[error("the name contains a path separator")]
    Path,
    /// The name begins with a dot: it is `.`, `..` or the name of a hidden file.
    #[error("the name begins with a dot")]
    LeadingDot,
    /// The name contains a control character such as NUL or line feed.
    #[error("the name contains a control character")]
    Control,
    /// The name does not end in `.mp4` or `.h264`. Requests for an existing file must name the extension.
    #[error("recordings end in .mp4 or .h264")]
    Extension,
}

/// A validated file name, split into its stem and its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stem {
    /// File name without the dot and the extension.
    pub stem: String,
    /// Format of the file, which determines the extension.
    pub format: Format,
}

impl Stem {
    /// Validates a requested name and returns it in parts. A name without a known extension gets the format `default`.
    pub fn from_request(name: &str, default: Format) -> Result<Stem, NameError> {
        let (stem, format) = match Format::of(name) {
            Some(format) => (name.rsplit_once('.').map_or("", |(stem, _)| stem), format),
            None => (name, default),
        };
        let stem = Stem { stem: stem.to_owned(), format };
        validate(stem.stem.as_str())?;
        if stem.numbered(1).len() > RECORDING_NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        Ok(stem)
    }

    /// Returns the name of the file with this number: `name.mp4` for 1, `name_2.mp4` for 2, and so on.
    #[must_use]
    pub fn numbered(&self, number: u32) -> String {
        let Stem { stem, format } = self;
        if number <= 1 { format!("{stem}.{format}") } else { format!("{stem}_{number}.{format}") }
    }
}

/// Validates the name of an existing file and returns its format.
pub fn validate_existing(name: &str) -> Result<Format, NameError> {
    validate(name)?;
    if name.len() > RECORDING_NAME_BYTES_MAX + "_9999".len() {
        return Err(NameError::TooLong);
    }
    Format::of(name).ok_or(NameError::Extension)
}

/// Validates the name of a detection log, which has an extension of its own.
pub(super) fn validate_log(name: &str) -> Result<(), NameError> {
    validate(name)?;
    let is_short = name.len() <= RECORDING_NAME_BYTES_MAX + "_9999".len();
    if is_short { Ok(()) } else { Err(NameError::TooLong) }
}

fn validate(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.starts_with('.') {
        return Err(NameError::LeadingDot);
    }
    if name.contains(['/', '\\']) {
        return Err(NameError::Path);
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    Ok(())
}

/// The local time zone with its daylight saving rules. It is read once: from the variable `TZ` if that is set, else
/// from `/etc/localtime`.
#[derive(Clone, Debug)]
pub struct Zone(tz::TimeZone);

impl Zone {
    /// Returns the time zone of this machine, or UTC if no valid zone is set.
    #[must_use]
    pub fn local() -> Zone {
        let name = std::env::var("TZ").unwrap_or_default();
        let zone = if name.is_empty() { tz::TimeZone::local() } else { tz::TimeZone::from_posix_tz(&name) };
        Zone(zone.unwrap_or_else(|_| tz::TimeZone::utc()))
    }

    /// Returns the stem for a recording without a requested name: `recording_YYYYMMDD_HHMMSS` in local time.
    #[must_use]
    pub fn default_stem(&self, unix_s: i64) -> String {
        self.stem("recording", unix_s)
    }

    /// Returns the stem for the recording of an event: `event_YYYYMMDD_HHMMSS_LABEL` in local time. Characters of the
    /// label other than letters and digits are replaced by `_`.
    #[must_use]
    pub fn event_stem(&self, unix_s: i64, label: &str) -> String {
        let label: String = label.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        format!("{}_{label}", self.stem("event", unix_s))
    }

    /// Returns year, month and day of a time. Returns `None` if it is out of range.
    #[must_use]
    pub fn day(&self, unix_s: u64) -> Option<(u16, u8, u8)> {
        let time = tz::DateTime::from_timespec(i64::try_from(unix_s).ok()?, 0, self.0.as_ref()).ok()?;
        Some((u16::try_from(time.year()).ok()?, time.month(), time.month_day()))
    }

    /// Returns the minute of the local day, from 0 to 1439.
    #[must_use]
    pub fn minute_of_day(&self, unix_s: i64) -> u16 {
        let time = tz::DateTime::from_timespec(unix_s, 0, self.0.as_ref());
        time.map_or(0, |time| u16::from(time.hour()) * 60 + u16::from(time.minute()))
    }

    fn stem(&self, prefix: &str, unix_s: i64) -> String {
        match tz::DateTime::from_timespec(unix_s, 0, self.0.as_ref()) {
            Ok(time) => {
                let (year, month, day) = (time.year(), time.month(), time.month_day());
                let (hour, minute, second) = (time.hour(), time.minute(), time.second());
                format!("{prefix}_{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
            }
            Err(_) => format!("{prefix}_{unix_s}"),
        }
    }
}

/// Returns a time as RFC 3339 text in UTC, or `None` if the year is out of range.
#[must_use]
pub fn rfc3339(unix_s: u64) -> Option<String> {
    let time = tz::UtcDateTime::from_timespec(i64::try_from(unix_s).ok()?, 0).ok()?;
    let (year, month, day) = (time.year(), time.month(), time.month_day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_names_get_their_extension() {
        let cases = [
            ("cat", "cat.mp4"),
            ("cat.h264", "cat.h264"),
            ("cat.mp4", "cat.mp4"),
            ("cat.txt", "cat.txt.mp4"),
            ("猫 und hund", "猫 und hund.mp4"),
        ];
        for (name, file) in cases {
            assert_eq!(
                Stem::from_request(name, Format::Mp4).map(|stem| stem.numbered(1)),
                Ok(file.to_owned())
            );
        }
        assert_eq!(
            Stem::from_request("cat", Format::H264).map(|stem| stem.numbered(3)),
            Ok("cat_3.h264".to_owned())
        );
    }

    #[test]
    fn hostile_names_are_rejected() {
        let long = "x".repeat(300);
        let cases = [
            ("", NameError::Empty),
            (".mp4", NameError::Empty),
            (".", NameError::LeadingDot),
            ("..", NameError::LeadingDot),
            (".hidden.mp4", NameError::LeadingDot),
            ("../../etc/passwd", NameError::LeadingDot),
            ("a/../../b.mp4", NameError::Path),
            ("/etc/passwd", NameError::Path),
            ("a\\b", NameError::Path),
            ("a\0b.mp4", NameError::Control),
            ("a\nb", NameError::Control),
            ("a\u{85}b", NameError::Control),
            (long.as_str(), NameError::TooLong),
        ];
        for (name, error) in cases {
            assert_eq!(Stem::from_request(name, Format::Mp4), Err(error), "{name:?}");
            assert!(validate_existing(name).is_err(), "{name:?}");
        }
        assert_eq!(validate_existing("a.txt"), Err(NameError::Extension));
        assert_eq!(validate_existing("a.mp4"), Ok(Format::Mp4));
    }

    #[test]
    fn default_names_use_local_time_and_the_api_uses_utc() {
        assert_eq!(Zone(tz::TimeZone::utc()).default_stem(1_766_759_452), "recording_20251226_143052");
        let zone = Zone(tz::TimeZone::from_posix_tz("JST-9").unwrap());
        assert_eq!(zone.day(1_766_759_452), Some((2025, 12, 26)));
        assert_eq!(zone.day(1_766_759_452 + 3_600), Some((2025, 12, 27)));
        assert_eq!(zone.minute_of_day(1_766_759_452), 23 * 60 + 30);
        let event = Zone(tz::TimeZone::utc()).event_stem(1_766_759_452, "food bowl/猫");
        assert_eq!(event, "event_20251226_143052_food_bowl_猫");
        assert_eq!(rfc3339(1_766_759_452).as_deref(), Some("2025-12-26T14:30:52Z"));
        let tokyo = tz::TimeZone::from_posix_tz("JST-9").map(Zone);
        assert_eq!(
            tokyo.map(|zone| zone.default_stem(1_766_759_452)).ok().as_deref(),
            Some("recording_20251226_233052")
        );
    }
}
