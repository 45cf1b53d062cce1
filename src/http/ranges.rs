//! Byte ranges of a file (RFC 9110 section 14). Pure: headers in, what to send out.

use std::ops::Range;

/// What part of a file answers a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// 200: the whole file.
    Whole,
    /// 206: these bytes, not empty, inside the file.
    Some(Range<u64>),
    /// 416: nothing of what was asked is in the file.
    Nothing,
}

/// Reads `Range`, guarded by `If-Range`: one range of bytes is answered with that part; several, another unit, a
/// malformed header or another version of the file with the whole (RFC 9110 sections 14.2, 13.1.5).
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
        // The last so many bytes.
        (Ok(None), Ok(Some(count))) if count > 0 && file_bytes > 0 => {
            Part::Some(file_bytes.saturating_sub(count)..file_bytes)
        }
        (Ok(None), Ok(Some(_))) => Part::Nothing,
        _ => Part::Whole,
    }
}

/// A number, nothing, or something else. A number too large for 64 bits is beyond every file.
fn number(text: &str) -> Result<Option<u64>, ()> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

/// A path segment without its percent-encoding; `None` when it is malformed or not UTF-8 (RFC 3986 section 2.1).
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
    fn one_range_is_answered_with_that_part() {
        assert_eq!(of("bytes=0-"), Part::Some(0..100));
        assert_eq!(of("bytes=10-19"), Part::Some(10..20));
        assert_eq!(of("bytes=90-500"), Part::Some(90..100));
        assert_eq!(of("bytes=-5"), Part::Some(95..100));
        assert_eq!(of("bytes=-500"), Part::Some(0..100));
        assert_eq!(of("bytes=0-99999999999999999999999"), Part::Some(0..100));
    }

    #[test]
    fn nothing_of_the_file_is_416() {
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range), Part::Nothing, "{range}");
        }
        assert_eq!(part(Some("bytes=0-"), None, "", 0), Part::Nothing);
    }

    #[test]
    fn what_cannot_be_read_is_answered_with_the_whole() {
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
    fn another_version_is_answered_with_the_whole() {
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
        fn a_part_is_never_empty_and_always_inside(range: String, bytes: u64) {
            if let Part::Some(part) = part(Some(&format!("bytes={range}")), None, "", bytes) {
                prop_assert!(part.start < part.end && part.end <= bytes);
            }
        }
    }
}
