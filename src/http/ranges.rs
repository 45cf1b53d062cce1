//! Parses byte ranges of a file (RFC 9110 section 14), and decodes the percent-encoding of path segments. Does no I/O.

use std::ops::Range;

/// The part of a file that answers a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole file (status 200).
    Whole,
    /// These bytes (status 206). The range is not empty and lies within the file.
    Some(Range<u64>),
    /// No bytes (status 416), because the requested range lies outside of the file.
    Nothing,
}

/// Returns the part of the file that the headers `Range` and `If-Range` select. A single range of bytes selects that
/// part. The whole file is selected by several ranges, another unit than bytes, a malformed header, or an `If-Range`
/// for another version of the file (RFC 9110 sections 14.2, 13.1.5).
#[must_use]
pub fn part(range: Option<&str>, if_range: Option<&str>, etag: &str, file_bytes: u64) -> Part {
    let Some(spec) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else { return Part::Whole };
    if if_range.is_some_and(|tag| tag.trim() != etag) || spec.contains(',') {
        return Part::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Part::Whole };
    match (number(first), number(last)) {
        (Ok(Some(first)), Ok(last)) => {
            if last.is_some_and(|last| last < first) {
                return Part::Whole;
            }
            let end = last.map_or(file_bytes, |last| last.saturating_add(1).min(file_bytes));
            if first < end { Part::Some(first..end) } else { Part::Nothing }
        }
        // A range without a first byte is a suffix range: it selects the last `count` bytes.
        (Ok(None), Ok(Some(count))) if count > 0 && file_bytes > 0 => {
            Part::Some(file_bytes.saturating_sub(count)..file_bytes)
        }
        (Ok(None), Ok(Some(_))) => Part::Nothing,
        _ => Part::Whole,
    }
}

/// Returns the number, or `None` for an empty text. Text with anything but digits is an error. A number above 64 bits
/// becomes `u64::MAX`, which lies behind the end of every file.
fn number(text: &str) -> Result<Option<u64>, ()> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

/// Decodes the percent-encoding of a path segment (RFC 3986 section 2.1). Returns `None` if the encoding is malformed
/// or the result is not UTF-8.
#[must_use]
pub fn decode_segment(segment: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(range: &str) -> Part {
        part(Some(range), None, "\"a\"", 100)
    }

    #[test]
    fn one_range_selects_that_part() {
        assert_eq!(of("bytes=0-"), Part::Some(0..100));
        assert_eq!(of("bytes=10-19"), Part::Some(10..20));
        assert_eq!(of("bytes=90-500"), Part::Some(90..100));
        assert_eq!(of("bytes=-5"), Part::Some(95..100));
        assert_eq!(of("bytes=-500"), Part::Some(0..100));
        assert_eq!(of("bytes=0-99999999999999999999999"), Part::Some(0..100));
    }

    #[test]
    fn a_range_outside_of_the_file_is_416() {
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range), Part::Nothing, "{range}");
        }
        assert_eq!(part(Some("bytes=0-"), None, "", 0), Part::Nothing);
    }

    #[test]
    fn a_malformed_range_selects_the_whole_file() {
        for range in [
            "bytes=",
            "bytes=-",
            "bytes=5",
            "bytes=9-5",
            "bytes=a-b",
            "bytes=+1-2",
            "lines=1-2",
            "bytes=0-1,5-6",
        ] {
            assert_eq!(of(range), Part::Whole, "{range}");
        }
        assert_eq!(part(None, None, "\"a\"", 100), Part::Whole);
    }

    #[test]
    fn another_version_selects_the_whole_file() {
        assert_eq!(part(Some("bytes=1-2"), Some("\"b\""), "\"a\"", 100), Part::Whole);
        assert_eq!(part(Some("bytes=1-2"), Some("\"a\""), "\"a\"", 100), Part::Some(1..3));
    }

    #[test]
    fn segments_are_decoded_or_refused() {
        assert_eq!(decode_segment("a%20b%C3%A9.mp4").as_deref(), Some("a bé.mp4"));
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decode_segment(bad), None, "{bad}");
        }
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn a_part_is_never_empty_and_lies_within_the_file(range: String, bytes: u64) {
            if let Part::Some(part) = part(Some(&format!("bytes={range}")), None, "", bytes) {
                prop_assert!(part.start < part.end && part.end <= bytes);
            }
        }
    }
}
