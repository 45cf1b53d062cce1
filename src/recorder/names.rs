//! PURE: the names of recordings. Touches no file; reads the time zone only where it says so.

use std::fmt;
use std::str::FromStr;

use crate::base::limits::RECORDING_NAME_BYTES_MAX;

/// The container of a recording, told by its extension.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Annex-B byte stream, `.h264`.
    H264,
    /// Hybrid MP4, `.mp4`.
    #[default]
    Mp4,
}

impl Format {
    /// The extension without its dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Format::H264 => "h264",
            Format::Mp4 => "mp4",
        }
    }

    /// The media type HTTP serves it as.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::H264 => "video/h264",
            Format::Mp4 => "video/mp4",
        }
    }

    /// The format a file name's extension stands for.
    #[must_use]
    pub fn of(name: &str) -> Option<Format> {
        name.rsplit_once('.').and_then(|(_, extension)| extension.parse().ok())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.extension())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        match text {
            "h264" => Ok(Format::H264),
            "mp4" => Ok(Format::Mp4),
            _ => Err(UnknownFormat),
        }
    }
}

/// Neither `h264` nor `mp4`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a recording's format is h264 or mp4")]
pub struct UnknownFormat;

/// Why a name can't be a recording's.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing but an extension.
    #[error("the name is empty")]
    Empty,
    /// Too long.
    #[error("the name is longer than {RECORDING_NAME_BYTES_MAX} bytes")]
    TooLong,
    /// It would leave the directory.
    #[error("the name holds a path separator")]
    Path,
    /// Hidden files and `..`.
    #[error("the name begins with a dot")]
    LeadingDot,
    /// NUL, line feed and the like.
    #[error("the name holds a control character")]
    Control,
    /// Asked for an existing file by something that is no recording's name.
    #[error("recordings end in .mp4 or .h264")]
    Extension,
}

/// A checked name, without its extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stem {
    /// Name without dot and extension.
    pub stem: String,
    /// Stands for the extension.
    pub format: Format,
}

impl Stem {
    /// Checks a name a user asked for; a missing extension is `default`'s.
    pub fn asked(name: &str, default: Format) -> Result<Stem, NameError> {
        let (stem, format) = match Format::of(name) {
            Some(format) => (name.rsplit_once('.').map_or("", |(stem, _)| stem), format),
            None => (name, default),
        };
        let stem = Stem { stem: stem.to_owned(), format };
        check(stem.stem.as_str())?;
        if stem.numbered(1).len() > RECORDING_NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        Ok(stem)
    }

    /// The file name of the `number`th file, from 1: `name.mp4`, `name_2.mp4`, ...
    #[must_use]
    pub fn numbered(&self, number: u32) -> String {
        let Stem { stem, format } = self;
        if number <= 1 { format!("{stem}.{format}") } else { format!("{stem}_{number}.{format}") }
    }
}

/// Checks the name of a file that may exist.
pub fn check_existing(name: &str) -> Result<Format, NameError> {
    check(name)?;
    if name.len() > RECORDING_NAME_BYTES_MAX + "_9999".len() {
        return Err(NameError::TooLong);
    }
    Format::of(name).ok_or(NameError::Extension)
}

fn check(name: &str) -> Result<(), NameError> {
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

/// The local time zone, read once (`TZ`, else `/etc/localtime`), right across changes of the clocks.
#[derive(Clone, Debug)]
pub struct Zone(tz::TimeZone);

impl Zone {
    /// Reads the zone of this machine; UTC if there is none.
    #[must_use]
    pub fn local() -> Zone {
        let name = std::env::var("TZ").unwrap_or_default();
        let zone = if name.is_empty() { tz::TimeZone::local() } else { tz::TimeZone::from_posix_tz(&name) };
        Zone(zone.unwrap_or_else(|_| tz::TimeZone::utc()))
    }

    /// UTC, for tests.
    #[must_use]
    pub fn utc() -> Zone {
        Zone(tz::TimeZone::utc())
    }

    /// `recording_YYYYMMDD_HHMMSS` in local time.
    #[must_use]
    pub fn default_stem(&self, unix_s: i64) -> String {
        match tz::DateTime::from_timespec(unix_s, 0, self.0.as_ref()) {
            Ok(time) => format!(
                "recording_{:04}{:02}{:02}_{:02}{:02}{:02}",
                time.year(),
                time.month(),
                time.month_day(),
                time.hour(),
                time.minute(),
                time.second()
            ),
            Err(_) => format!("recording_{unix_s}"),
        }
    }
}

/// RFC 3339 in UTC, as the API writes times.
#[must_use]
pub fn rfc3339(unix_s: u64) -> Option<String> {
    let time = tz::UtcDateTime::from_timespec(i64::try_from(unix_s).ok()?, 0).ok()?;
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        time.month(),
        time.month_day(),
        time.hour(),
        time.minute(),
        time.second()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_get_their_extension() {
        let cases = [
            ("cat", "cat.mp4"),
            ("cat.h264", "cat.h264"),
            ("cat.mp4", "cat.mp4"),
            ("cat.txt", "cat.txt.mp4"),
            ("猫 und hund", "猫 und hund.mp4"),
        ];
        for (asked, file) in cases {
            assert_eq!(Stem::asked(asked, Format::Mp4).map(|stem| stem.numbered(1)), Ok(file.to_owned()));
        }
        assert_eq!(
            Stem::asked("cat", Format::H264).map(|stem| stem.numbered(3)),
            Ok("cat_3.h264".to_owned())
        );
    }

    #[test]
    fn hostile_names_are_refused() {
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
        for (asked, error) in cases {
            assert_eq!(Stem::asked(asked, Format::Mp4), Err(error), "{asked:?}");
            assert!(check_existing(asked).is_err(), "{asked:?}");
        }
        assert_eq!(check_existing("a.txt"), Err(NameError::Extension));
        assert_eq!(check_existing("a.mp4"), Ok(Format::Mp4));
    }

    #[test]
    fn names_and_times_are_calendar_times() {
        assert_eq!(Zone::utc().default_stem(1_766_759_452), "recording_20251226_143052");
        assert_eq!(rfc3339(1_766_759_452).as_deref(), Some("2025-12-26T14:30:52Z"));
        let tokyo = tz::TimeZone::from_posix_tz("JST-9").map(Zone);
        assert_eq!(
            tokyo.map(|zone| zone.default_stem(1_766_759_452)).ok().as_deref(),
            Some("recording_20251226_233052")
        );
    }
}
