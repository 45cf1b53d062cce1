//! PURE: one file of a recording, from its first access unit to the data that finishes it.

use std::io;

use bytes::Bytes;
use rustix::io::Errno;

use super::format::moov::{self, Notes};
use super::format::timeline::{Timeline, plausible};
use super::format::{self, Fragment, Index, Track, annexb, fmp4};
use super::names::Format;
use super::operation::{FileEnding, FileId, Output};
use super::pending_unit::{PendingUnit, StreamHeader};
use super::types::RecorderError;
use crate::base::limits;

/// Retries of an interrupted write. Local: no other module uses this bound.
const WRITE_RETRIES_MAX: u32 = 8; // local bound

/// Result of a completed write.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// The write was short; the rest must be written.
    Partial,
    /// The whole unit is in the file.
    Complete {
        /// Bytes of the unit with all headers.
        bytes: u64,
    },
    /// The camera overwrote the slot during the write. The next unit overwrites these bytes.
    Torn,
}

/// State of one file. At most one disk operation is in flight per file, besides a sync.
pub(super) struct RecordedFile {
    id: FileId,
    container: Container,
    /// Bytes of whole units, headers included.
    committed: u64,
    started_at_s: u64,
    timeline: Timeline,
    index: Index,
    first_captured_ns: i64,
    operation: Operation,
    allocation: Allocation,
    write_retries: u32,
    /// True if units were committed since the last sync started.
    dirty: bool,
    syncing: bool,
    last_sync_ns: i64,
}

enum Container {
    H264,
    /// `None` until the first unit is written.
    Mp4(Option<Mp4>),
}

struct Mp4 {
    track: Track,
    fragments_offset: u64,
}

/// The operation in flight.
enum Operation {
    None,
    Allocating {
        bytes: u64,
    },
    Truncating,
    /// `resubmit`: the next write, first or after a short one, must be submitted.
    Writing {
        fragment: Fragment,
        new_file: Option<Mp4>,
        done: u64,
        total: u64,
        resubmit: bool,
    },
}

/// Disk space reserved ahead with fallocate.
struct Allocation {
    /// File offset up to which space is reserved.
    end: u64,
    /// Bytes of the next reservation; 0 on a file system without fallocate.
    step: u64,
    /// True after a failed reservation: the file must be truncated before the next one.
    truncate_first: bool,
}

impl RecordedFile {
    pub(super) fn new(id: FileId, format: Format, started_at_s: u64, now_ns: i64) -> RecordedFile {
        RecordedFile {
            id,
            container: match format {
                Format::H264 => Container::H264,
                Format::Mp4 => Container::Mp4(None),
            },
            committed: 0,
            started_at_s,
            timeline: Timeline::default(),
            index: Index::default(),
            first_captured_ns: 0,
            operation: Operation::None,
            allocation: Allocation { end: 0, step: limits::ALLOCATE_BYTES, truncate_first: false },
            write_retries: 0,
            dirty: false,
            syncing: false,
            last_sync_ns: now_ns,
        }
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// Returns true if no operation is in flight. A write that was partial and is not resubmitted yet is not in flight.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.operation, Operation::None | Operation::Writing { resubmit: true, .. })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    pub(super) fn started_at_s(&self) -> u64 {
        self.started_at_s
    }

    pub(super) fn duration_s(&self) -> f64 {
        self.index.duration_90k() as f64 / f64::from(format::TIMESCALE)
    }

    /// Returns true if this unit must go to the next file.
    ///
    /// New parameter sets end an `.mp4`, because `avcC` and picture size apply to the whole track. An `.h264` carries
    /// parameter sets in the stream and continues.
    pub(super) fn must_end_before(&self, unit: &PendingUnit) -> bool {
        if self.is_empty() {
            return false;
        }
        let changed = match (&self.container, &unit.stream) {
            (Container::Mp4(Some(mp4)), Some(stream)) => {
                (&mp4.track.configuration, mp4.track.width, mp4.track.height)
                    != (&stream.configuration, stream.width, stream.height)
            }
            _ => false,
        };
        let age_ns = plausible(unit.captured_ns, unit.arrived_ns).saturating_sub(self.first_captured_ns);
        let long =
            age_ns >= limits::RECORDING_DURATION_SOFT_NS || self.committed >= limits::RECORDING_BYTES_SOFT;
        let full = self.index.len() >= limits::RECORDING_UNITS_MAX
            || self.committed + self.bytes_needed(unit) > limits::RECORDING_BYTES_MAX;
        changed || full || (long && unit.is_idr())
    }

    /// Returns the next disk operation needed to write this unit. `None` while an operation is in flight.
    pub(super) fn next_operation(&mut self, unit: &PendingUnit) -> Result<Option<Output>, RecorderError> {
        let file = self.id;
        match &self.operation {
            Operation::Writing { resubmit: true, .. } => return Ok(self.next_write(unit)),
            Operation::None => {}
            _ => return Ok(None),
        }
        if self.allocation.truncate_first {
            self.operation = Operation::Truncating;
            return Ok(Some(Output::Truncate { file, bytes: self.committed }));
        }
        // Reserve space for the index too, so that the file can be finished on a full disk.
        let needed = self.committed + self.bytes_needed(unit) + self.tail_bytes_max();
        if needed > self.allocation.end && self.allocation.step > 0 {
            if self.allocation.step < limits::ALLOCATE_BYTES_MIN {
                return Err(RecorderError::DiskFull);
            }
            let (offset, bytes) = (self.allocation.end, self.allocation.step);
            self.operation = Operation::Allocating { bytes };
            return Ok(Some(Output::Allocate { file, offset, bytes }));
        }
        let (fragment, new_file) = self.prepare(unit)?;
        let total = self.bytes_needed(unit);
        self.operation = Operation::Writing { fragment, new_file, done: 0, total, resubmit: true };
        Ok(self.next_write(unit))
    }

    /// Handles the completion of a reservation.
    pub(super) fn handle_allocated(&mut self, result: io::Result<()>) {
        let Operation::Allocating { bytes } = self.operation else { return };
        self.operation = Operation::None;
        match result {
            Ok(()) => self.allocation.end += bytes,
            Err(error) if is_full(&error) => {
                // A failed reservation may have taken all free space: release it and reserve less.
                self.allocation.step /= 2;
                self.allocation.truncate_first = true;
            }
            Err(_) => self.allocation.step = 0,
        }
    }

    /// Handles the completion of a truncation: no space is reserved after the committed bytes.
    pub(super) fn handle_truncated(&mut self) {
        self.operation = Operation::None;
        self.allocation.truncate_first = false;
        self.allocation.end = self.committed;
    }

    /// Handles the completion of a write. `intact` is true if the camera did not overwrite the slot.
    pub(super) fn handle_written(
        &mut self,
        unit: &PendingUnit,
        result: io::Result<u64>,
        intact: bool,
    ) -> Result<WriteOutcome, RecorderError> {
        let Operation::Writing { done, total, resubmit, .. } = &mut self.operation else {
            return Ok(WriteOutcome::Partial);
        };
        let failure = match result {
            Ok(bytes) if bytes > 0 => {
                *done += bytes;
                None
            }
            Ok(_) => Some(RecorderError::DiskFull),
            Err(error) if is_interruption(&error) && self.write_retries < WRITE_RETRIES_MAX => {
                self.write_retries += 1;
                None
            }
            Err(error) => Some(RecorderError::io("writing", &error)),
        };
        if let Some(failure) = failure {
            self.operation = Operation::None;
            return Err(failure);
        }
        if intact && *done < *total {
            *resubmit = true;
            return Ok(WriteOutcome::Partial);
        }
        self.write_retries = 0;
        let Operation::Writing { fragment, new_file, total, .. } =
            std::mem::replace(&mut self.operation, Operation::None)
        else {
            return Ok(WriteOutcome::Partial);
        };
        if !intact {
            return Ok(WriteOutcome::Torn);
        }
        self.commit(unit, &fragment, new_file, total);
        Ok(WriteOutcome::Complete { bytes: total })
    }

    /// Returns when written data must be synced to disk. `None` if there is none, or a sync is in flight.
    pub(super) fn sync_deadline(&self) -> Option<i64> {
        (self.dirty && !self.syncing).then(|| self.last_sync_ns.saturating_add(limits::SYNC_INTERVAL_NS))
    }

    pub(super) fn handle_sync_started(&mut self, now_ns: i64) {
        (self.dirty, self.syncing, self.last_sync_ns) = (false, true, now_ns);
    }

    pub(super) fn handle_sync_done(&mut self) {
        self.syncing = false;
    }

    /// Returns the data that finishes the file.
    pub(super) fn into_ending(self, dropped_units: u64) -> FileEnding {
        let mut ending = FileEnding {
            committed: self.committed,
            tail: Vec::new(),
            mdat_header: None,
            started_at_s: self.started_at_s,
            duration_s: self.duration_s(),
            dropped_units,
        };
        if let Container::Mp4(Some(mp4)) = &self.container {
            let notes = Notes { recovered: false, dropped_units };
            ending.tail = moov::finished(&mp4.track, &self.index, mp4.fragments_offset, notes);
            ending.mdat_header = Some((fmp4::MDAT_HEADER_OFFSET, fmp4::mdat_header(self.committed)));
        }
        ending
    }

    /// Returns the bytes that writing this unit adds to the file.
    fn bytes_needed(&self, unit: &PendingUnit) -> u64 {
        match &self.container {
            Container::H264 => unit.prefixed_bytes(),
            Container::Mp4(mp4) => {
                let file_header = match (mp4, &unit.stream) {
                    (None, Some(stream)) => fmp4::file_header(&self.track(unit, stream)).len() as u64,
                    _ => 0,
                };
                file_header + format::FRAGMENT_HEADER_BYTES as u64 + unit.prefixed_bytes()
            }
        }
    }

    /// Returns an upper bound for the bytes that finish the file after one more unit.
    fn tail_bytes_max(&self) -> u64 {
        match self.container {
            Container::H264 => 0,
            Container::Mp4(_) => format::index_bytes_max(self.index.len() + 1),
        }
    }

    fn track(&self, unit: &PendingUnit, stream: &StreamHeader) -> Track {
        Track {
            width: stream.width,
            height: stream.height,
            configuration: stream.configuration.clone(),
            started_at_s: unit.captured_at_s.unwrap_or(self.started_at_s),
        }
    }

    /// Returns the fragment header of the unit, and the track if the unit is the first of an MP4.
    fn prepare(&self, unit: &PendingUnit) -> Result<(Fragment, Option<Mp4>), RecorderError> {
        let fragment = Fragment {
            sequence: u32::try_from(self.index.len() + 1).unwrap_or(u32::MAX),
            time_90k: self.timeline.place(unit.captured_ns, unit.arrived_ns),
            duration_90k: self.index.expected_duration_90k(),
            unit_bytes: u32::try_from(unit.prefixed_bytes()).map_err(|_| RecorderError::TooManyFiles)?,
            kind: unit.kind,
        };
        let new_file = match (&self.container, &unit.stream) {
            (Container::Mp4(None), Some(stream)) => {
                let track = self.track(unit, stream);
                let fragments_offset = fmp4::file_header(&track).len() as u64;
                Some(Mp4 { track, fragments_offset })
            }
            _ => None,
        };
        Ok((fragment, new_file))
    }

    /// Returns the write of the rest of the unit.
    fn next_write(&mut self, unit: &PendingUnit) -> Option<Output> {
        let Operation::Writing { fragment, new_file, done, resubmit, .. } = &mut self.operation else {
            return None;
        };
        *resubmit = false;
        let mut parts = Vec::with_capacity(2 * unit.nal_units.len() + 1);
        match &self.container {
            Container::H264 => {
                annexb::gather(&unit.nal_units, &mut parts);
            }
            Container::Mp4(_) => {
                parts.extend(new_file.as_ref().map(|mp4| Bytes::from(fmp4::file_header(&mp4.track))));
                fmp4::gather(fragment, &unit.nal_units, &mut parts);
            }
        }
        skip(&mut parts, *done);
        debug_assert!(parts.len() <= limits::WRITE_PARTS_MAX);
        Some(Output::Write { file: self.id, offset: self.committed + *done, parts })
    }

    fn commit(&mut self, unit: &PendingUnit, fragment: &Fragment, new_file: Option<Mp4>, total: u64) {
        if self.index.is_empty() {
            self.first_captured_ns = plausible(unit.captured_ns, unit.arrived_ns);
            self.started_at_s = unit.captured_at_s.unwrap_or(self.started_at_s);
        }
        if let Some(mp4) = new_file {
            self.container = Container::Mp4(Some(mp4));
        }
        self.timeline.commit(unit.captured_ns, unit.arrived_ns, fragment.time_90k);
        self.index.push(fragment);
        self.committed += total;
        self.dirty = true;
    }
}

/// Removes the first `done` bytes.
fn skip(parts: &mut Vec<Bytes>, mut done: u64) {
    parts.retain_mut(|part| {
        let now = usize::try_from(done).unwrap_or(usize::MAX).min(part.len());
        *part = part.slice(now..);
        done -= now as u64;
        !part.is_empty()
    });
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}

fn is_full(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::NOSPC | Errno::DQUOT))
}

fn is_interruption(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::INTR | Errno::AGAIN))
}
