//! A simulated object detector. It finds the square of the test card in each picture and writes its result into a
//! segment of shared memory, some milliseconds after the picture, as the real detector does: the whole segment is
//! rewritten, the version last.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use rustix::fd::OwnedFd;
use rustix::fs::ftruncate;
use rustix::io::{Errno, pwrite};

use super::picture::Square;
use crate::base::foreign_file;
use crate::base::limits::{LABEL_BYTES_MAX, REFERENCE_PICTURE};
use crate::camera::detections::{DetectedBox, Detections, SEGMENT_BYTES, entry, field};

/// Configuration of the simulated detector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetectorConfig {
    /// Name of the segment in shared memory.
    pub name: String,
    /// Milliseconds from the capture of a picture to its result. Each picture gets another time of this range.
    pub delay_ms: RangeInclusive<u32>,
    /// True if the detector sees nothing for the last 3 s of every 10 s, at 30 units/s.
    pub has_gaps: bool,
    /// What is wrong with every result.
    pub fault: Option<DetectionFault>,
}

impl DetectorConfig {
    /// Returns the configuration of a detector without faults that is as fast as the real one.
    #[must_use]
    pub fn new(name: String) -> DetectorConfig {
        DetectorConfig { name, delay_ms: 16..=40, has_gaps: false, fault: None }
    }
}

/// A fault of the simulated detector.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DetectionFault {
    /// The version is written first, and the rest in two halves with a pause between them.
    Torn,
    /// The confidence is not a number.
    Nan,
    /// The number of entries is 2^31 - 1.
    Count,
    /// The box is outside the picture.
    Outside,
    /// No NUL ends the label.
    Name,
    /// The segment has a wrong size.
    Size,
}

/// Number of units after which the square is seen as another animal.
const UNITS_OF_LABEL: u64 = 300;

/// Number of pictures that may wait for their result. Further ones get none.
const PENDING_MAX: usize = 64; // local bound: two seconds at 30 units/s

/// Bytes of the segment with the fault [`DetectionFault::Size`].
const WRONG_BYTES: u64 = 600; // local bound: any other size

/// A picture whose result is not written yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) unit_number: u64,
    pub(super) frame_number: u64,
    /// The stamp in the slot.
    pub(super) stamp_ns: i64,
    /// Capture time on CLOCK_MONOTONIC.
    pub(super) captured_ns: i64,
    /// Width and height of the picture.
    pub(super) size: (u32, u32),
}

/// The detector and its segment.
pub(super) struct Detector {
    config: DetectorConfig,
    file: OwnedFd,
    version: u32,
    /// Pictures with the times at which their results are written, in order.
    pending: VecDeque<(i64, Seen)>,
}

impl Detector {
    /// Creates the segment, or opens an existing one.
    pub(super) fn create(config: &DetectorConfig) -> std::io::Result<Detector> {
        let file = match foreign_file::create_shared_memory(&config.name, 0o644) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                foreign_file::open_shared_memory(&config.name, true)?.0
            }
            created => created?,
        };
        let is_wrong = config.fault == Some(DetectionFault::Size);
        ftruncate(&file, if is_wrong { WRONG_BYTES } else { SEGMENT_BYTES as u64 })?;
        Ok(Detector { config: config.clone(), file, version: 0, pending: VecDeque::new() })
    }

    pub(super) fn unlink(&self) {
        // The error is ignored: another program may have removed the name already.
        let _ = rustix::shm::unlink(self.config.name.as_str());
    }

    /// Shows a published picture to the detector.
    pub(super) fn on_picture(&mut self, seen: Seen) {
        if self.config.has_gaps && seen.unit_number % UNITS_OF_LABEL >= UNITS_OF_LABEL * 7 / 10 {
            return;
        }
        let (shortest, longest) = (*self.config.delay_ms.start(), *self.config.delay_ms.end());
        let span = u64::from(longest.saturating_sub(shortest)) + 1;
        // Consecutive pictures get different times of the range, without a random number.
        let delay_ms = u64::from(shortest) + seen.unit_number.wrapping_mul(7_919) % span;
        let due_ns = seen.captured_ns + i64::try_from(delay_ms).unwrap_or(0) * 1_000_000;
        let due_ns = self.pending.back().map_or(due_ns, |(before_ns, _)| due_ns.max(*before_ns));
        if self.pending.len() < PENDING_MAX {
            self.pending.push_back((due_ns, seen));
        }
    }

    /// Returns the time on CLOCK_MONOTONIC at which the next result is written, or `None` if no picture waits.
    pub(super) fn next_due_ns(&self) -> Option<i64> {
        self.pending.front().map(|(due_ns, _)| *due_ns)
    }

    /// Writes all results whose time has come.
    pub(super) fn write_due(&mut self, now_ns: i64) {
        while let Some((_, seen)) = self.pending.pop_front_if(|(due_ns, _)| *due_ns <= now_ns) {
            self.version = self.version.wrapping_add(1);
            // The error is ignored: the segment is memory, and its size was set above.
            let _ = self.write(&seen);
        }
    }

    fn write(&self, seen: &Seen) -> Result<(), Errno> {
        let mut segment = [0; SEGMENT_BYTES];
        encode(&find(seen), &mut segment);
        let version = self.version.to_le_bytes();
        let write_version = || pwrite(&self.file, &version, field::VERSION as u64);
        match self.config.fault {
            Some(DetectionFault::Torn) => {
                write_version()?;
                let (first, second) = segment.split_at(field::ENTRIES + entry::CONFIDENCE);
                pwrite(&self.file, first, 0)?;
                std::thread::sleep(std::time::Duration::from_millis(5));
                let (data, _) = second.split_at(field::VERSION - first.len());
                pwrite(&self.file, data, first.len() as u64)?;
                return Ok(());
            }
            Some(fault) => spoil(fault, &mut segment),
            None => {}
        }
        // The real detector also rewrites the semaphore. The version stays the old one until the rest is written.
        put(&mut segment, field::VERSION, &self.version.wrapping_sub(1).to_le_bytes());
        pwrite(&self.file, &segment, 0)?;
        write_version()?;
        Ok(())
    }
}

/// Returns the result for a picture: the square, in pixels of the reference picture.
fn find(seen: &Seen) -> Detections {
    let (width, height) = seen.size;
    let scale = |pixels: u32, side: u32, reference: u32| (pixels * reference + side / 2) / side.max(1);
    let (reference_width, reference_height) = REFERENCE_PICTURE;
    let square = Square::at(seen.unit_number, width, height).map(|square| DetectedBox {
        label: if (seen.unit_number / UNITS_OF_LABEL).is_multiple_of(2) { "cat" } else { "dog" }.to_owned(),
        confidence: 0.5 + f32::from(u8::try_from(seen.unit_number % 50).unwrap_or(0)) / 100.0,
        x: scale(square.left, width, reference_width),
        y: scale(square.top, height, reference_height),
        width: scale(square.side, width, reference_width),
        height: scale(square.side, height, reference_height),
    });
    Detections {
        frame: Some(seen.frame_number),
        captured_at_ns: Some(seen.stamp_ns),
        boxes: square.into_iter().collect(),
        ..Detections::default()
    }
}

/// Writes a result as the detector does, without its version. Boxes and labels beyond the room of the segment are left
/// out.
#[expect(clippy::cast_precision_loss, reason = "the field is an f64, so the detector loses them too")]
pub fn encode(detections: &Detections, segment: &mut [u8; SEGMENT_BYTES]) {
    let stamp_s = detections
        .captured_at_ns
        .map_or(0.0, |ns| ns.div_euclid(1_000_000_000) as f64 + ns.rem_euclid(1_000_000_000) as f64 / 1e9);
    put(segment, field::FRAME, &detections.frame.unwrap_or(0).to_le_bytes());
    put(segment, field::STAMP, &stamp_s.to_le_bytes());
    let count = i32::try_from(detections.boxes.len()).unwrap_or(i32::MAX);
    put(segment, field::COUNT, &count.to_le_bytes());
    let entries = segment.get_mut(field::ENTRIES..field::VERSION).unwrap_or_default();
    for (room, found) in entries.chunks_exact_mut(entry::BYTES).zip(&detections.boxes) {
        room.fill(0);
        let label = found.label.as_bytes();
        put(room, entry::LABEL, label.get(..label.len().min(LABEL_BYTES_MAX)).unwrap_or_default());
        put(room, entry::CONFIDENCE, &found.confidence.to_le_bytes());
        let sides = [found.x, found.y, found.width, found.height];
        let bytes = sides.map(|side| i32::try_from(side).unwrap_or(i32::MAX).to_le_bytes());
        put(room, entry::BOX, bytes.as_flattened());
    }
}

/// Makes one field of a result wrong.
fn spoil(fault: DetectionFault, segment: &mut [u8; SEGMENT_BYTES]) {
    let first = field::ENTRIES;
    match fault {
        DetectionFault::Nan => put(segment, first + entry::CONFIDENCE, &f32::NAN.to_le_bytes()),
        DetectionFault::Count => put(segment, field::COUNT, &i32::MAX.to_le_bytes()),
        DetectionFault::Outside => put(segment, first + entry::BOX, &5_000_i32.to_le_bytes()),
        DetectionFault::Name => put(segment, first + entry::LABEL, &[b'x'; LABEL_BYTES_MAX + 1]),
        DetectionFault::Torn | DetectionFault::Size => {}
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len())) {
        room.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::camera::detections::{Rejection, parse};

    fn result() -> impl Strategy<Value = Detections> {
        let found = ("[a-z_猫]{1,10}", 0.0..1.0_f32, 0..1_280_u32, 0..720_u32).prop_flat_map(
            |(label, confidence, x, y)| {
                (1..=1_280 - x, 1..=720 - y).prop_map(move |(width, height)| DetectedBox {
                    label: label.clone(),
                    confidence,
                    x,
                    y,
                    width,
                    height,
                })
            },
        );
        (any::<u64>(), 1..2_000_000_000_i64, prop::collection::vec(found, 0..10)).prop_map(
            // Quarters of a second are exact in an f64.
            |(frame, quarters, boxes)| Detections {
                frame: Some(frame),
                captured_at_ns: Some(quarters * 250_000_000),
                boxes,
                ..Detections::default()
            },
        )
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn what_the_simulator_writes_is_parsed_again(result in result()) {
            let mut segment = [0xaa; SEGMENT_BYTES];
            encode(&result, &mut segment);
            prop_assert_eq!(parse(&segment, &mut |_| {}), Ok(result));
        }
    }

    #[test]
    fn each_fault_is_noticed() {
        let seen = Seen { unit_number: 5, frame_number: 5, stamp_ns: 1, captured_ns: 1, size: (1_280, 720) };
        for (fault, reason) in [
            (DetectionFault::Nan, Rejection::Confidence),
            (DetectionFault::Count, Rejection::Count),
            (DetectionFault::Outside, Rejection::Box),
            (DetectionFault::Name, Rejection::Label),
        ] {
            let (mut segment, mut reasons) = ([0; SEGMENT_BYTES], Vec::new());
            encode(&find(&seen), &mut segment);
            spoil(fault, &mut segment);
            let parsed = parse(&segment, &mut |reason| reasons.push(reason));
            reasons.extend(parsed.err());
            assert_eq!(reasons, [reason], "{fault:?}");
        }
    }

    #[test]
    fn results_come_in_order_within_the_delay_of_each_picture() {
        let config = DetectorConfig::new(format!("/ss-test-{}-simulated", std::process::id()));
        let mut detector = Detector::create(&config).unwrap();
        detector.unlink();
        for unit in 0..30_u32 {
            let captured_ns = i64::from(unit) * 33_000_000;
            let (unit_number, frame_number) = (u64::from(unit), 0);
            detector.on_picture(Seen {
                unit_number,
                frame_number,
                stamp_ns: 0,
                captured_ns,
                size: (640, 480),
            });
        }
        let due: Vec<i64> = detector.pending.iter().map(|(due_ns, _)| *due_ns).collect();
        assert!(due.is_sorted());
        for (due_ns, unit) in due.iter().zip(0..) {
            assert!((16_000_000..=40_000_000).contains(&(due_ns - unit * 33_000_000)), "{due_ns}");
        }
        detector.write_due(i64::MAX);
        assert_eq!((detector.next_due_ns(), detector.version), (None, 30));
    }
}
