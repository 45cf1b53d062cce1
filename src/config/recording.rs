//! Parsers for the options about recordings. They do not access any file.

use std::path::PathBuf;

use super::values;
use crate::recorder::names::Format;

pub(super) fn format(text: &str) -> Result<Format, String> {
    values::choice(text, &[Format::H264, Format::Mp4], "h264 or mp4")
}

pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("a directory, such as ./recordings or /var/lib/streaming-server".into());
    }
    Ok(PathBuf::from(text))
}

pub(super) fn days(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(days) if days > 0 => Ok(days),
        _ => Err("a number of days, at least 1".into()),
    }
}

/// Parses a number of bytes, optionally followed by K, M, G or T, which are powers of 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "a number of bytes, such as 500M or 20G (K, M, G, T: powers of 1024)".to_owned();
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.split_at(digits.len()).1.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(expected()),
    };
    let bytes = digits.parse().ok().and_then(|number: u64| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn bytes_accept_a_unit() {
        assert_eq!(bytes("1").unwrap(), 1);
        assert_eq!(bytes("2k").unwrap(), 2048);
        assert_eq!(bytes("3G").unwrap(), 3 << 30);
    }

    #[test]
    fn bad_byte_counts_are_refused() {
        for bad in ["", "0", "G", "-1", "1.5G", "1X", "99999999999T", "1 G", "é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn days_formats_and_directories_are_checked() {
        assert_eq!(days("7").unwrap(), 7);
        assert!(days("0").is_err() && days("x").is_err());
        assert_eq!(format("h264").unwrap(), Format::H264);
        assert!(format("avi").is_err());
        assert!(directory("").is_err());
    }
}
