//! PURE: the inputs and outputs of `recording.rs`. Types only.

use std::io;

use bytes::Bytes;

use super::names::Stem;
use super::sidecar::Sidecar;
use super::types::{RecorderError, StartReply, StopReply};

/// Identifies one file between the state machine and the disk.
pub(crate) type FileId = u32;

/// An operation for the disk, or a reply to a command.
#[derive(Debug)]
pub(crate) enum Output {
    /// Create a new file; an existing file is never overwritten. If not `exact`, use the next free number.
    Create { file: FileId, stem: Stem, number: u32, exact: bool },
    /// Reserve disk space without changing the length of the file.
    Allocate { file: FileId, offset: u64, bytes: u64 },
    /// Write the parts one after the other.
    Write { file: FileId, offset: u64, parts: Vec<Bytes> },
    /// Truncate the file and release the space reserved after its end.
    Truncate { file: FileId, bytes: u64 },
    /// Make written data durable, and check that the file still has a name.
    Sync { file: FileId },
    /// Finish and close the file.
    Finish { file: FileId, ending: FileEnding },
    /// Close and remove a file that holds no unit.
    Discard { file: FileId },
    /// Reply to the start.
    Started(Result<StartReply, RecorderError>),
    /// Reply to the stop request, if there was one.
    Stopped(Result<StopReply, RecorderError>),
}

/// How to finish a file: write the tail after the committed bytes, make it durable, then write the `mdat` header.
#[derive(Debug)]
pub(crate) struct FileEnding {
    pub(crate) committed: u64,
    pub(crate) tail: Vec<u8>,
    /// Offset and bytes of the header that marks an MP4 as finished.
    pub(crate) mdat_header: Option<(u64, [u8; 16])>,
    /// Final content of the sidecar of an `.h264`.
    pub(crate) sidecar: Option<Sidecar>,
}

/// Result of a disk operation. `Started` and `Stopped` have no completion.
#[derive(Debug)]
pub(crate) enum Completion {
    /// Name and number of the new file.
    Created(Result<(String, u32), RecorderError>),
    Allocated(io::Result<()>),
    Written {
        /// Bytes written; fewer than requested after a short write.
        result: io::Result<u64>,
        /// True if the camera did not overwrite the slot during the write.
        intact: bool,
    },
    Truncated(io::Result<()>),
    /// True if the file still has a name.
    Synced(io::Result<bool>),
    Finished(Result<(), RecorderError>),
}

/// A validated start request.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) stem: Stem,
    /// True if the user chose the name. Then an existing file is an error; otherwise the next free number is used.
    pub(crate) exact: bool,
    pub(crate) max_duration_ns: Option<i64>,
    pub(crate) heartbeat_ns: Option<i64>,
    /// Wall clock, seconds since 1970.
    pub(crate) started_at_s: u64,
    /// True if the first unit from the ring will not be an IDR.
    pub(crate) waits_for_idr: bool,
}

/// One access unit from the ring.
#[derive(Clone, Debug)]
pub(crate) struct IncomingUnit {
    pub(crate) bytes: Bytes,
    /// `CLOCK_MONOTONIC`.
    pub(crate) captured_ns: i64,
    /// Wall clock, seconds since 1970. `None` if the camera's wall clock is not usable.
    pub(crate) captured_at_s: Option<u64>,
}
