//! Parsers for the options about recordings. Touches no file.

use std::path::PathBuf;

use crate::recorder::names::Format;

pub(super) fn format(text: &str) -> Result<Format, String> {
    match text {
        "h264" => Ok(Format::H264),
        "mp4" => Ok(Format::Mp4),
        _ => Err("h264 or mp4".into()),
    }
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

/// Bytes with an optional K, M, G or T (powers of 1024).
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "a number of bytes, such as 500M or 20G (K, M, G, T: powers of 1024)".to_owned();
    let text = text.trim();
    let (digits, shift) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(expected()),
            };
            (text.get(..at).unwrap_or_default(), shift)
        }
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| expected())?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(expected()),
    }
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
