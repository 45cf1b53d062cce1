//! Takes any bytes as a stream of frames. The first byte says in how many parts the stream arrives: this changes nothing.
//! Frames written again are the bytes of the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming_server::uring::framing::{FRAME_HEADER_BYTES, FrameTooLong, first_frame, frame_header};

/// Returns the frames of a stream that arrives in parts of `part_bytes`, the rest, and the error that ended it.
fn frames(stream: &[u8], part_bytes: usize) -> (Vec<Vec<u8>>, Vec<u8>, Option<FrameTooLong>) {
    let (mut frames, mut received) = (Vec::new(), Vec::new());
    for part in stream.chunks(part_bytes) {
        received.extend_from_slice(part);
        loop {
            match first_frame(&received) {
                Ok(Some(frame)) => {
                    frames.push(frame.to_vec());
                    let end = FRAME_HEADER_BYTES + frame.len();
                    received.drain(..end);
                }
                Ok(None) => break,
                Err(error) => return (frames, received, Some(error)),
            }
        }
    }
    (frames, received, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&part_bytes, stream)) = data.split_first() else { return };
    let (all, rest, error) = frames(stream, stream.len().max(1));
    let in_parts = frames(stream, usize::from(part_bytes).max(1));
    assert_eq!((&in_parts.0, in_parts.2), (&all, error));
    let mut written = Vec::new();
    for frame in &all {
        written.extend(frame_header(frame.len()).unwrap());
        written.extend(frame);
    }
    written.extend(rest);
    assert_eq!(written, stream);
});
