//! Writes the access units of a ring to standard output as FLV, for peers that read their camera from a program
//! (go2rtc's `exec:`). FLV is used because it marks the end of a unit. In a raw H.264 stream, the end of a unit is
//! known only when the next unit begins, so every unit would be one camera interval late. The output begins with an
//! IDR.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use streaming_server::camera::{Camera, Cursor, Next, Wake, Wakeup, waiter};
use streaming_server::h264::avcc::configuration_record;
use streaming_server::h264::{AssembledUnit, Assembler};

use crate::Fallible;

/// File header of a video-only stream, followed by the size of the previous tag, which is 0.
const HEADER: &[u8] = b"FLV\x01\x01\x00\x00\x00\x09\x00\x00\x00\x00";
const TAG_HEADER_BYTES: usize = 11;
const TAG_VIDEO: u8 = 9;
const TAG_SCRIPT: u8 = 18;
/// The script tag `onMetaData` with an array of one entry, a width of 0. It shows the reader that there is no audio.
const METADATA: &[u8] =
    b"\x02\x00\x0aonMetaData\x08\x00\x00\x00\x01\x00\x05width\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09";

struct Pipe {
    cursor: Cursor,
    assembler: Assembler,
    body: Vec<u8>,
    out: Vec<u8>,
    /// Capture time of the first unit, CLOCK_MONOTONIC ns.
    begun_ns: Option<i64>,
}

impl Pipe {
    /// Writes all available units to the pipe. Exits the process if the reader has closed the pipe.
    fn turn(&mut self) {
        loop {
            match self.cursor.next(crate::clock::monotonic_ns()) {
                Next::Unit(view) => {
                    let Ok(unit) = self.assembler.assemble(&view.bytes) else { continue };
                    if self.begun_ns.is_none() && !unit.is_idr() {
                        continue;
                    }
                    video(&unit, &mut self.body);
                    if !view.is_intact() {
                        continue;
                    }
                    self.out.clear();
                    if self.begun_ns.is_none() {
                        let Some(record) = configuration_record(self.assembler.parameter_sets()) else {
                            continue;
                        };
                        self.out.extend_from_slice(HEADER);
                        tag(TAG_SCRIPT, 0, METADATA, &mut self.out);
                        // 0x17 and 0 mark the body as an AVC sequence header, which counts as an IDR.
                        tag(TAG_VIDEO, 0, &[&[0x17, 0, 0, 0, 0], &record[..]].concat(), &mut self.out);
                    }
                    let begun_ns = *self.begun_ns.get_or_insert(view.captured_monotonic_ns);
                    let ms = (view.captured_monotonic_ns - begun_ns) / 1_000_000;
                    tag(TAG_VIDEO, u32::try_from(ms).unwrap_or_default(), &self.body, &mut self.out);
                    if write(&self.out).is_err() {
                        std::process::exit(0);
                    }
                }
                Next::Empty | Next::Away => return,
                _ => {}
            }
        }
    }
}

/// Writes the body of a video tag to `out`: the NAL units in AVC format, with a composition time of 0.
fn video(unit: &AssembledUnit<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[if unit.is_idr() { 0x17 } else { 0x27 }, 1, 0, 0, 0]);
    for nal in unit.nals() {
        out.extend_from_slice(&u32::try_from(nal.bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(nal.bytes);
    }
}

/// Appends an FLV tag and the size of this tag to `out`.
fn tag(kind: u8, ms: u32, body: &[u8], out: &mut Vec<u8>) {
    let low24 = |value: u32| value.to_be_bytes()[1..].to_vec();
    let bytes = u32::try_from(body.len()).unwrap_or_default();
    out.push(kind);
    out.extend_from_slice(&low24(bytes));
    out.extend_from_slice(&low24(ms));
    out.push(ms.to_be_bytes()[0]);
    out.extend_from_slice(&[0; 3]);
    out.extend_from_slice(body);
    out.extend_from_slice(&(bytes + TAG_HEADER_BYTES as u32).to_be_bytes());
}

fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// A wake-up that writes units to the pipe. The thread of the camera wait calls it, so that units are written at once
/// on that thread.
struct WriteOnWakeup(Mutex<Pipe>);

impl Wakeup for WriteOnWakeup {
    fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).turn();
    }
}

/// Runs the pipe until the process is killed or the reader closes the pipe.
pub(crate) fn run(shm: &str) -> Fallible<()> {
    let camera = Camera::new(shm, Wake::Auto);
    let pipe = Pipe {
        cursor: camera.cursor(),
        assembler: Assembler::default(),
        body: Vec::new(),
        out: Vec::new(),
        begun_ns: None,
    };
    camera.add_wakeup(Arc::new(WriteOnWakeup(Mutex::new(pipe))));
    waiter::run(camera, Arc::new(AtomicBool::new(false)), false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_has_its_size_at_both_ends_and_a_split_timestamp() {
        let mut out = Vec::new();
        tag(TAG_VIDEO, 0x0102_0304, b"body", &mut out);
        assert_eq!(out, b"\x09\x00\x00\x04\x02\x03\x04\x01\x00\x00\x00body\x00\x00\x00\x0f");
    }
}
