//! The camera as a pipe: writes the access units of a ring to standard output as FLV, for peers that take their camera
//! from a program (go2rtc's `exec:`). FLV says where a unit ends; in a raw H.264 stream that is known only when the next
//! one begins, and units would come a camera interval late. Begins with an IDR.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use streaming_server::camera::{Camera, Cursor, Next, Wake, Wakeup, waiter};
use streaming_server::h264::avcc::{configuration_record, length_prefix};
use streaming_server::h264::{AssembledUnit, Assembler};

use crate::Fallible;

/// File header of a stream with video only, and the size of the tag before the first, which there is none of.
const HEADER: &[u8] = b"FLV\x01\x01\x00\x00\x00\x09\x00\x00\x00\x00";
const TAG_HEADER_BYTES: usize = 11;
const TAG_VIDEO: u8 = 9;
const TAG_SCRIPT: u8 = 18;
/// `onMetaData` with an array of one: the width, a double that is left at 0. It says that there is no sound.
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
    /// Writes every unit that is there; ends the program with its reader.
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
                        // AVC, a key frame: the sequence header.
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

/// The body of a video tag: AVC, NAL units, no difference between the times of decoding and showing.
fn video(unit: &AssembledUnit<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[if unit.is_idr() { 0x17 } else { 0x27 }, 1, 0, 0, 0]);
    for nal in unit.nals() {
        out.extend_from_slice(&length_prefix(nal.bytes.len()));
        out.extend_from_slice(nal.bytes);
    }
}

/// Appends a tag and its size.
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

/// Rung by the doorbell's thread: writes right there.
struct WriteOnWakeup(Mutex<Pipe>);

impl Wakeup for WriteOnWakeup {
    fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).turn();
    }
}

/// Runs until killed, or until nobody reads any more.
pub(crate) fn run(shm: &str) -> Fallible<()> {
    let camera = Camera::new(shm, Wake::Auto);
    let pipe = Pipe {
        cursor: camera.cursor(),
        assembler: Assembler::new(),
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
    fn a_tag_says_its_size_before_and_behind_and_its_time_in_pieces() {
        let mut out = Vec::new();
        tag(TAG_VIDEO, 0x0102_0304, b"body", &mut out);
        assert_eq!(out, b"\x09\x00\x00\x04\x02\x03\x04\x01\x00\x00\x00body\x00\x00\x00\x0f");
    }
}
