//! Frames in a TCP stream (RFC 4571): two bytes with the length come before each datagram. This module is pure.
//!
//! ```text
//!  | length u16 | datagram | length u16 | datagram | ...
//! ```

use crate::base::limits::TCP_FRAME_BYTES_MAX;

/// Bytes of the length before each datagram.
pub const FRAME_HEADER_BYTES: usize = 2;

/// A frame announces more bytes than a datagram may have. The rest of the stream cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes is too long")]
pub struct FrameTooLong(pub usize);

/// Returns the length that comes before a datagram of `bytes` bytes, or `None` if the datagram is too long for a frame.
pub fn frame_header(bytes: usize) -> Option<[u8; FRAME_HEADER_BYTES]> {
    u16::try_from(bytes).ok().map(u16::to_be_bytes)
}

/// Returns the datagram of the first frame in `stream`, or `None` if that frame is not complete.
///
/// # Errors
/// Returns [`FrameTooLong`] if the frame has more than [`TCP_FRAME_BYTES_MAX`] bytes.
pub fn first_frame(stream: &[u8]) -> Result<Option<&[u8]>, FrameTooLong> {
    let Some((header, rest)) = stream.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let bytes = usize::from(u16::from_be_bytes(*header));
    if bytes > TCP_FRAME_BYTES_MAX {
        return Err(FrameTooLong(bytes));
    }
    Ok(rest.get(..bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frame_that_is_not_complete_is_no_frame() {
        assert_eq!(first_frame(&[]), Ok(None));
        assert_eq!(first_frame(&[0]), Ok(None));
        assert_eq!(first_frame(&[0, 2, 7]), Ok(None));
        assert_eq!(first_frame(&[0, 2, 7, 8, 9]), Ok(Some(&[7, 8][..])));
        assert_eq!(first_frame(&[0, 0, 9]), Ok(Some(&[][..])));
    }

    #[test]
    fn longest_frame_fits_the_buffer_and_a_longer_one_is_refused_at_once() {
        let longest = u16::try_from(TCP_FRAME_BYTES_MAX).unwrap();
        assert_eq!(first_frame(&longest.to_be_bytes()), Ok(None));
        assert_eq!(first_frame(&(longest + 1).to_be_bytes()), Err(FrameTooLong(TCP_FRAME_BYTES_MAX + 1)));
        assert_eq!(first_frame(b"GET / HTTP/1.1\r\n"), Err(FrameTooLong(0x4745)));
        assert_eq!(frame_header(65_536), None);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn datagrams_survive_any_split_of_the_stream(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            cuts in prop::collection::vec(1_usize..300, 1..50),
        ) {
            let mut stream = Vec::new();
            for datagram in &datagrams {
                stream.extend(frame_header(datagram.len()).unwrap());
                stream.extend(datagram);
            }
            let (mut left, mut received, mut out) = (&stream[..], Vec::new(), Vec::new());
            for cut in cuts.iter().cycle() {
                let (part, rest) = left.split_at((*cut).min(left.len()));
                received.extend_from_slice(part);
                left = rest;
                while let Some(frame) = first_frame(&received).unwrap() {
                    out.push(frame.to_vec());
                    let end = FRAME_HEADER_BYTES + frame.len();
                    received.drain(..end);
                }
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(out, datagrams);
            prop_assert!(received.is_empty());
        }
    }
}
