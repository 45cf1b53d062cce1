//! PURE: the types of the inputs and outputs of `recording.rs`.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::detection_log::LogLines;
use super::names::Stem;
use super::sidecar::Sidecar;
use super::types::{RecorderError, StartReply, StopReply};
use crate::camera::UnitView;

/// Number by which the state machine and the disk identify a file.
pub(crate) type FileId = u32;

/// An output of the state machine: an operation for the disk, or the reply to a command.
#[derive(Debug)]
pub(crate) enum Output {
    /// Create a new file, without ever overwriting an existing one. If a file with this name exists, fail if `exact` is
    /// true, else use the next free number.
    Create { file: FileId, stem: Stem, number: u32, exact: bool },
    /// Reserve disk space without changing the length of the file.
    Allocate { file: FileId, offset: u64, bytes: u64 },
    /// Write the parts to the file, one directly after the other, starting at `offset`.
    Write { file: FileId, offset: u64, parts: Vec<Bytes> },
    /// Truncate the file to `bytes` and release the disk space reserved after its end.
    Truncate { file: FileId, bytes: u64 },
    /// Make the written data durable, and check that no other program changed the file. The bytes `whole` must be in
    /// the file; those before `whole` were checked earlier.
    Sync { file: FileId, whole: Range<u64> },
    /// Append lines to the detection log of the file.
    AppendLog { file: FileId, lines: LogLines },
    /// Finish and close the file as `ending` describes.
    Finish { file: FileId, ending: FileEnding },
    /// Close and remove the file, because it holds no access unit.
    Discard { file: FileId },
    /// Reply to the start request.
    Started(Result<StartReply, RecorderError>),
    /// Reply to the stop request.
    Stopped(Result<StopReply, RecorderError>),
}

/// Data that finishes a file. The disk writes the tail after the committed bytes, makes it durable, then writes the
/// `mdat` header.
#[derive(Debug)]
pub(crate) struct FileEnding {
    /// The end is the number of bytes of whole access units in the file, headers included. The bytes before the start
    /// were checked by a sync.
    pub(crate) whole: Range<u64>,
    /// Index that is appended to an MP4. Empty for an `.h264`.
    pub(crate) tail: Vec<u8>,
    /// Offset and content of the header that marks an MP4 as finished. `None` for an `.h264`.
    pub(crate) mdat_header: Option<(u64, [u8; 16])>,
    /// Final content of the sidecar of an `.h264`. `None` for an MP4.
    pub(crate) sidecar: Option<Sidecar>,
}

/// Result of a disk operation. The replies [`Output::Started`] and [`Output::Stopped`] have no completion.
#[derive(Debug)]
pub(crate) enum Completion {
    /// Name of the new file, and the number in that name.
    Created(Result<(String, u32), RecorderError>),
    Allocated(io::Result<()>),
    Written {
        /// Number of bytes written. It is smaller than requested if the write was short.
        result: io::Result<u64>,
        /// True if the camera did not overwrite the unit's slot before the write completed.
        intact: bool,
    },
    Truncated(io::Result<()>),
    Synced(io::Result<FileFate>),
    /// Lines were appended to the detection log.
    Logged(io::Result<()>),
    Finished(Result<(), RecorderError>),
}

/// What other programs did to a file while it was being written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileFate {
    Whole,
    /// The file is no longer at its path.
    Removed,
    /// Bytes that were written are missing.
    Truncated,
}

impl FileFate {
    /// Returns the error with which the recording ends, or `None` if the file is whole.
    pub(crate) fn error(self) -> Option<RecorderError> {
        match self {
            Self::Whole => None,
            Self::Removed => Some(RecorderError::Removed),
            Self::Truncated => Some(RecorderError::Truncated),
        }
    }
}

/// A validated start request.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) stem: Stem,
    /// True if the request contained the name. Then an existing file of this name is an error. Otherwise the next free
    /// number is added to the name.
    pub(crate) exact: bool,
    pub(crate) max_duration_ns: Option<i64>,
    pub(crate) heartbeat_ns: Option<i64>,
    /// Wall-clock time of the start, in seconds since 1970.
    pub(crate) started_at_s: u64,
    /// Class of the detector for which the recording is made. `None` if a request started it.
    pub(crate) event_label: Option<String>,
    /// True if the ring holds no IDR now, so the recording begins at the camera's next IDR.
    pub(crate) waits_for_idr: bool,
}

/// One access unit from the ring.
#[derive(Clone, Debug)]
pub(crate) struct IncomingUnit {
    pub(crate) bytes: Bytes,
    /// Capture time in nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) captured_ns: i64,
    /// The camera's stamp in nanoseconds, usually since 1970. `None` if the camera's clock is not usable.
    pub(crate) captured_at_ns: Option<i64>,
}

/// Converts a camera's stamp to seconds. Returns `None` if the camera's clock is not usable.
pub(crate) fn stamp_s(stamp_ns: Option<i64>) -> Option<u64> {
    u64::try_from(stamp_ns? / 1_000_000_000).ok()
}

impl From<&UnitView> for IncomingUnit {
    fn from(view: &UnitView) -> IncomingUnit {
        IncomingUnit {
            bytes: Bytes::clone(&view.bytes),
            captured_ns: view.captured_monotonic_ns,
            captured_at_ns: view.captured_at_ns,
        }
    }
}
