//! PURE: what goes into recording.rs and what comes out of it: starts, units, operations for the disk and
//! their completions. Types only.

use std::io;

use bytes::Bytes;

use super::names::Stem;
use super::types::{RecorderError, StartReply, StopReply};

/// One file of a recording, for the disk.
pub(crate) type FileId = u32;

/// What the recorder wants done.
#[derive(Debug)]
pub(crate) enum Output {
    /// Create a file, never over an existing one. `exact`: that very number; else the next free one.
    Create { file: FileId, stem: Stem, number: u32, exact: bool },
    /// Reserve space without changing the file's length.
    Allocate { file: FileId, offset: u64, bytes: u64 },
    /// Write the parts one behind the other.
    Write { file: FileId, offset: u64, parts: Vec<Bytes> },
    /// Cut the file, and free what is reserved behind.
    Truncate { file: FileId, bytes: u64 },
    /// Make durable what was written, and look whether the file still has a name.
    Sync { file: FileId },
    /// Close the file in good order.
    Finish { file: FileId, ending: Ending },
    /// Close and remove a file without a unit.
    Discard { file: FileId },
    /// Answer to the start.
    Started(Result<StartReply, RecorderError>),
    /// Answer to the stop, if one was asked.
    Stopped(Result<StopReply, RecorderError>),
}

/// How a file is closed: the tail is written behind the committed bytes, made durable, and then the
/// switch overwritten.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) committed: u64,
    pub(crate) tail: Vec<u8>,
    pub(crate) switch: Option<(u64, [u8; 16])>,
    pub(crate) started_at_s: u64,
    pub(crate) duration_s: f64,
    pub(crate) dropped_units: u64,
}

/// What became of an output. (`Started` and `Stopped` have no completion.)
#[derive(Debug)]
pub(crate) enum Completion {
    /// The file's name and number.
    Created(Result<(String, u32), RecorderError>),
    Allocated(io::Result<()>),
    /// Bytes written, perhaps fewer than asked; `intact`: the slot was not overwritten meanwhile.
    Written {
        result: io::Result<u64>,
        intact: bool,
    },
    Truncated(io::Result<()>),
    /// Whether the file still has a name.
    Synced(io::Result<bool>),
    Finished(Result<(), RecorderError>),
}

/// A start whose request was checked.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) stem: Stem,
    /// The user chose the name: an existing file is an error, not a reason for another name.
    pub(crate) exact: bool,
    pub(crate) max_duration_ns: Option<i64>,
    pub(crate) heartbeat_ns: Option<i64>,
    /// Wall clock, seconds since 1970.
    pub(crate) started_at_s: u64,
    /// The first unit to come is not an IDR.
    pub(crate) waits_for_idr: bool,
}

/// One access unit as it comes from the ring.
#[derive(Clone, Debug)]
pub(crate) struct IncomingUnit {
    pub(crate) bytes: Bytes,
    /// `CLOCK_MONOTONIC`.
    pub(crate) captured_ns: i64,
    /// Wall clock, seconds since 1970, if the camera's is usable.
    pub(crate) captured_at_s: Option<u64>,
}
