//! Reads the detector's segment with `pread`. It is not mapped, so a segment that shrinks cannot end the process.

use rustix::fd::OwnedFd;
use rustix::io::{Errno, pread};

use super::segment::{SEGMENT_BYTES, field, parse, version};
use super::{Detections, Rejection};
use crate::base::foreign_file;
use crate::base::limits::DETECTIONS_CHECK_NS;

/// Number of attempts to read a result that is not being written.
const ATTEMPTS: u32 = 4; // local bound: a write takes microseconds

/// Why there is no segment to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No segment has this name: the detector is not running. The segment may appear at any time.
    #[error("there is no shared memory {0}: the detector is not running")]
    Missing(String),
    /// The name refers to a pipe, a link, a directory or the like.
    #[error("{0} is not shared memory: another program has put a pipe, a link or a directory in its place")]
    NotSegment(String),
    /// The segment has another size.
    #[error("shared memory {name} has {bytes} bytes instead of {SEGMENT_BYTES}: another program wrote it")]
    Size {
        /// Name of the segment.
        name: String,
        /// Bytes of the segment.
        bytes: u64,
    },
    /// The segment cannot be opened or read.
    #[error("cannot read shared memory {name}: {errno}")]
    Read {
        /// Name of the segment.
        name: String,
        /// The kernel's error.
        errno: Errno,
    },
}

/// Result of [`DetectionReader::poll`].
#[derive(Clone, Debug, PartialEq)]
pub enum Polled {
    /// The detector has written nothing new, or the segment has just been opened: what it holds may be old.
    Nothing,
    /// The newest result. Earlier results that were not read are lost.
    New(Detections),
    /// The newest result is wrong.
    Rejected(Rejection),
}

/// The open segment.
#[derive(Debug)]
struct Segment {
    file: OwnedFd,
    /// `st_dev` and `st_ino`.
    inode: (u64, u64),
    /// Version of the newest result that was read.
    version: u32,
}

/// Reads the newest result from the segment of one detector. The segment may appear, vanish and be replaced.
#[derive(Debug)]
pub struct DetectionReader {
    name: String,
    segment: Result<Segment, Fault>,
    checked_at_ns: Option<i64>,
}

impl DetectionReader {
    /// Returns a reader of the segment called `name`. It opens nothing yet.
    #[must_use]
    pub fn new(name: &str) -> DetectionReader {
        let segment = Err(Fault::Missing(name.to_owned()));
        DetectionReader { name: name.to_owned(), segment, checked_at_ns: None }
    }

    /// Returns the reason why there is no segment to read, or `None` if there is one.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.segment.as_ref().err()
    }

    /// Reads the result if its version differs from that of the last one. Every [`DETECTIONS_CHECK_NS`], also finds out
    /// if the name refers to another segment. Calls `on_skipped` for each wrong entry. Never waits.
    pub fn poll(&mut self, now_ns: i64, on_skipped: &mut dyn FnMut(Rejection)) -> Polled {
        let is_due = |at_ns: i64| now_ns.saturating_sub(at_ns) >= DETECTIONS_CHECK_NS;
        if self.checked_at_ns.is_none_or(is_due) {
            self.checked_at_ns = Some(now_ns);
            self.follow_name();
        }
        let Ok(segment) = &mut self.segment else { return Polled::Nothing };
        match segment.read(on_skipped) {
            Ok(polled) => polled,
            Err(Errno::OVERFLOW) => {
                self.segment = Err(Fault::Size { name: self.name.clone(), bytes: 0 });
                self.checked_at_ns = None;
                Polled::Nothing
            }
            Err(errno) => {
                self.segment = Err(Fault::Read { name: self.name.clone(), errno });
                Polled::Nothing
            }
        }
    }

    /// Opens the segment that the name refers to now, unless it is the open one.
    fn follow_name(&mut self) {
        let opened = self.open();
        match (&self.segment, opened) {
            (Ok(known), Ok(opened)) if known.inode == opened.inode => {}
            (_, opened) => self.segment = opened,
        }
    }

    fn open(&self) -> Result<Segment, Fault> {
        let name = || self.name.clone();
        let failed = |error: std::io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => Fault::Missing(name()),
            _ if foreign_file::is_not_regular(&error) => Fault::NotSegment(name()),
            errno => Fault::Read { name: name(), errno: errno.unwrap_or(Errno::IO) },
        };
        let (file, status) = foreign_file::open_shared_memory(&self.name, false).map_err(failed)?;
        let bytes = u64::try_from(status.st_size).unwrap_or(0);
        if bytes != SEGMENT_BYTES as u64 {
            return Err(Fault::Size { name: name(), bytes });
        }
        let inode = (status.st_dev, status.st_ino);
        let mut segment = Segment { file, inode, version: 0 };
        segment.version = segment.read_version().map_err(|errno| Fault::Read { name: name(), errno })?;
        Ok(segment)
    }
}

impl Segment {
    fn read_version(&self) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        let offset = field::VERSION as u64;
        match pread(&self.file, &mut bytes, offset)? {
            4 => Ok(u32::from_le_bytes(bytes)),
            _ => Err(Errno::OVERFLOW),
        }
    }

    fn copy(&self) -> Result<[u8; SEGMENT_BYTES], Errno> {
        let mut copy = [0; SEGMENT_BYTES];
        match pread(&self.file, &mut copy, 0)? {
            SEGMENT_BYTES => Ok(copy),
            _ => Err(Errno::OVERFLOW),
        }
    }

    /// Reads the result if its version is new. A version that is lower than the last one is also new: the detector has
    /// restarted.
    ///
    /// The detector writes the version last, so an equal version before and after a copy does not prove that the copy is
    /// whole: the detector may have begun to write the next result. Two equal copies make this very unlikely. What is
    /// left is a detector that the kernel has stopped in the middle of a write: its next result corrects the boxes.
    fn read(&mut self, on_skipped: &mut dyn FnMut(Rejection)) -> Result<Polled, Errno> {
        if self.read_version()? == self.version {
            return Ok(Polled::Nothing);
        }
        let mut copy = self.copy()?;
        for _ in 0..ATTEMPTS {
            let again = self.copy()?;
            if again == copy {
                if std::mem::replace(&mut self.version, version(&copy)) == version(&copy) {
                    return Ok(Polled::Nothing);
                }
                return Ok(parse(&copy, on_skipped).map_or_else(Polled::Rejected, Polled::New));
            }
            copy = again;
        }
        Ok(Polled::Rejected(Rejection::Torn))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, symlink};
    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::super::entry;
    use super::*;

    const S: i64 = 1_000_000_000;

    /// A detector whose segment is removed with it.
    struct Detector {
        name: String,
        version: u32,
    }

    impl Detector {
        fn new(name: &str) -> Detector {
            Detector { name: format!("/ss-test-{}-detector-{name}", std::process::id()), version: 0 }
        }

        fn path(&self) -> PathBuf {
            PathBuf::from(format!("/dev/shm{}", self.name))
        }

        /// Creates the segment, or replaces it by a new one.
        fn create(&mut self, bytes: u64) -> File {
            self.remove();
            let file = foreign_file::create_shared_memory(&self.name, 0o600).unwrap();
            let file = File::from(file);
            file.set_len(bytes).unwrap();
            file
        }

        fn remove(&self) {
            let _ = std::fs::remove_file(self.path());
        }

        /// Writes a result with `count` cats, one of which is wrong if there are three.
        fn write(&mut self, file: &File, count: i32) {
            file.write_all_at(&count.to_le_bytes(), field::COUNT as u64).unwrap();
            for index in 0..usize::try_from(count.clamp(0, 10)).unwrap() {
                let at = field::ENTRIES + index * entry::BYTES;
                let confidence = if index == 2 { f32::NAN } else { 0.5 };
                file.write_all_at(b"cat\0", at as u64).unwrap();
                file.write_all_at(&confidence.to_le_bytes(), (at + entry::CONFIDENCE) as u64).unwrap();
                for (side, value) in [10_i32, 20, 30, 40].into_iter().enumerate() {
                    file.write_all_at(&value.to_le_bytes(), (at + entry::BOX + 4 * side) as u64).unwrap();
                }
            }
            self.version = self.version.wrapping_add(1);
            self.write_version(file, self.version);
        }

        fn write_version(&self, file: &File, version: u32) {
            file.write_all_at(&version.to_le_bytes(), field::VERSION as u64).unwrap();
        }
    }

    impl Drop for Detector {
        fn drop(&mut self) {
            self.remove();
        }
    }

    /// Returns the number of boxes of a new result.
    fn boxes(polled: &Polled) -> Option<usize> {
        match polled {
            Polled::New(found) => Some(found.boxes.len()),
            _ => None,
        }
    }

    #[test]
    fn each_version_gives_one_result_and_old_content_gives_none() {
        let mut detector = Detector::new("versions");
        let mut reader = DetectionReader::new(&detector.name);
        assert_eq!(reader.poll(0, &mut |_| {}), Polled::Nothing);
        assert_eq!(reader.fault(), Some(&Fault::Missing(detector.name.clone())));
        let file = detector.create(576);
        detector.write(&file, 1);
        assert_eq!(reader.poll(S / 2, &mut |_| {}), Polled::Nothing, "the name is checked once a second");
        assert_eq!(reader.poll(S, &mut |_| {}), Polled::Nothing, "what the segment held before is old");
        assert_eq!(reader.fault(), None);
        detector.write(&file, 2);
        assert_eq!(boxes(&reader.poll(S, &mut |_| {})), Some(2));
        assert_eq!(reader.poll(S, &mut |_| {}), Polled::Nothing);
        detector.version = 0;
        detector.write(&file, 1);
        assert_eq!(boxes(&reader.poll(S, &mut |_| {})), Some(1), "the version went backwards");
        let mut skipped = Vec::new();
        detector.write(&file, 3);
        assert_eq!(boxes(&reader.poll(S, &mut |reason| skipped.push(reason))), Some(2));
        assert_eq!(skipped, [Rejection::Confidence]);
        detector.write(&file, 11);
        assert_eq!(reader.poll(S, &mut |_| {}), Polled::Rejected(Rejection::Count));
        assert_eq!(reader.poll(S, &mut |_| {}), Polled::Nothing, "it is rejected once");
    }

    #[test]
    fn a_segment_that_is_replaced_or_vanishes_is_followed() {
        let mut detector = Detector::new("replaced");
        let mut reader = DetectionReader::new(&detector.name);
        let old = detector.create(576);
        detector.write(&old, 1);
        assert_eq!(reader.poll(0, &mut |_| {}), Polled::Nothing);
        let new = detector.create(576);
        detector.write(&new, 1);
        assert_eq!(reader.poll(S, &mut |_| {}), Polled::Nothing);
        detector.write(&new, 2);
        assert_eq!(boxes(&reader.poll(S, &mut |_| {})), Some(2));
        detector.write(&old, 3);
        assert_eq!(reader.poll(S, &mut |_| {}), Polled::Nothing, "the old segment is closed");
        detector.remove();
        assert_eq!(reader.poll(2 * S, &mut |_| {}), Polled::Nothing);
        assert!(matches!(reader.fault(), Some(Fault::Missing(_))), "{:?}", reader.fault());
    }

    #[test]
    fn what_is_not_a_segment_is_refused_with_its_reason() {
        let mut detector = Detector::new("kinds");
        let path = detector.path();
        let reason = |name: &str| {
            let mut reader = DetectionReader::new(name);
            reader.poll(0, &mut |_| {});
            reader.fault().cloned()
        };
        for bytes in [0, 575, 577, 1 << 40] {
            detector.create(bytes);
            assert_eq!(reason(&detector.name), Some(Fault::Size { name: detector.name.clone(), bytes }));
        }
        let make: [&dyn Fn(); 3] = [
            &|| mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap(),
            &|| symlink("/dev/zero", &path).unwrap(),
            &|| std::fs::create_dir(&path).unwrap(),
        ];
        for make in make {
            detector.remove();
            make();
            assert_eq!(reason(&detector.name), Some(Fault::NotSegment(detector.name.clone())));
        }
        std::fs::remove_dir(&path).unwrap();
    }

    #[test]
    fn a_segment_that_shrinks_is_a_fault_until_it_has_its_size_again() {
        let mut detector = Detector::new("shrinks");
        let mut reader = DetectionReader::new(&detector.name);
        let file = detector.create(576);
        assert_eq!((reader.poll(0, &mut |_| {}), reader.fault()), (Polled::Nothing, None));
        file.set_len(500).unwrap();
        assert_eq!(reader.poll(1, &mut |_| {}), Polled::Nothing);
        assert!(matches!(reader.fault(), Some(Fault::Size { .. })), "{:?}", reader.fault());
        file.set_len(576).unwrap();
        assert_eq!((reader.poll(2, &mut |_| {}), reader.fault()), (Polled::Nothing, None));
        detector.write(&file, 1);
        assert_eq!(boxes(&reader.poll(3, &mut |_| {})), Some(1));
    }
}
