//! PURE: decides how one file of a recording is written, from its first access unit to the data that finishes it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::detection_log::DetectionLog;
use super::format::moov::{self, Notes};
use super::format::timeline::{PlannedTime, Timeline};
use super::format::{self, Fragment, Index, Track, annexb, fmp4};
use super::names::Format;
use super::operation::{FileEnding, FileId, Output, stamp_s};
use super::pending_unit::PendingUnit;
use super::sidecar::Sidecar;
use super::types::{Progress, RecorderError, UnitsSoFar, is_full};
use crate::base::limits;

/// Largest number of retries while one unit is written. The next interruption of a write fails the recording.
const WRITE_RETRIES_MAX: u32 = 8; // local bound: no other module uses it

/// Result of a completed write.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// Only a part of the unit was written. The rest must be written next.
    Partial,
    /// The whole unit is in the file.
    Complete {
        /// Bytes written for the unit, including all headers.
        bytes: u64,
    },
    /// The camera overwrote the slot during the write. The next unit will be written over these bytes.
    Torn,
}

/// State of one file. At most one disk operation and one sync are in flight for it at the same time.
pub(super) struct RecordedFile {
    pub(super) id: FileId,
    format: Format,
    /// Set when the first unit of an MP4 is written. Always `None` for an `.h264`.
    mp4: Option<Mp4>,
    /// Bytes of whole units in the file, including all headers.
    committed: u64,
    started_at_s: u64,
    index: Index,
    timeline: Timeline,
    first_captured_ns: i64,
    operation: Operation,
    allocation: Allocation,
    write_retries: u32,
    /// True if a unit was committed since the last sync started.
    dirty: bool,
    syncing: bool,
    last_sync_ns: i64,
    pub(super) log: DetectionLog,
    /// Committed bytes at the end of the last sync, and at the start of the sync that is in flight.
    whole: Range<u64>,
}

struct Mp4 {
    track: Arc<Track>,
    /// The bytes before the first fragment.
    header: Bytes,
}

/// The operation in flight. `done` is the number of bytes of the unit and its headers that are already written.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Operation {
    None,
    Allocating,
    Truncating,
    Writing {
        done: u64,
    },
    /// A short write has completed and nothing is in flight. The rest of the unit must be submitted.
    PartlyWritten {
        done: u64,
    },
}

/// Disk space that is reserved with fallocate before it is written.
struct Allocation {
    /// File offset up to which space is reserved.
    end: u64,
    /// Bytes of the next reservation. Zero if the file system does not support fallocate.
    step: u64,
    /// True after a failed reservation. The file must then be truncated before the next reservation.
    truncate_first: bool,
}

impl RecordedFile {
    pub(super) fn new(id: FileId, format: Format, started_at_s: u64, now_ns: i64) -> RecordedFile {
        RecordedFile {
            id,
            format,
            mp4: None,
            committed: 0,
            started_at_s,
            index: Index::default(),
            timeline: Timeline::default(),
            first_captured_ns: 0,
            operation: Operation::None,
            allocation: Allocation { end: 0, step: limits::ALLOCATE_BYTES, truncate_first: false },
            write_retries: 0,
            dirty: false,
            syncing: false,
            last_sync_ns: now_ns,
            log: DetectionLog::default(),
            whole: 0..0,
        }
    }

    /// Returns true if no operation other than a sync is in flight. This includes the time after a short write, before
    /// the rest is submitted.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.operation, Operation::None | Operation::PartlyWritten { .. })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub(super) fn duration_s(&self) -> f64 {
        self.index.duration_90k() as f64 / f64::from(format::TIMESCALE)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            committed_bytes: self.committed,
            duration_s: self.duration_s(),
            started_at_s: self.started_at_s,
            finished: false,
            units: self.mp4.as_ref().map(|mp4| UnitsSoFar {
                track: Arc::clone(&mp4.track),
                index: self.index.clone(),
                fragments_offset: mp4.header.len() as u64,
            }),
        }
    }

    /// Returns true if this unit must be written to a new file.
    ///
    /// An MP4 ends at new parameter sets, because its `avcC` box and its picture size apply to the whole track. An
    /// `.h264` continues, because its stream contains the new parameter sets. Every file ends when it reaches a limit.
    pub(super) fn must_end_before(&self, unit: &PendingUnit) -> bool {
        if self.is_empty() {
            return false;
        }
        let changed = match (&self.mp4, &unit.track) {
            (Some(Mp4 { track: old, .. }), Some(new)) => {
                (&old.configuration, old.width, old.height) != (&new.configuration, new.width, new.height)
            }
            _ => false,
        };
        let age_ns = unit.time.captured_ns.saturating_sub(self.first_captured_ns);
        let long =
            age_ns >= limits::RECORDING_DURATION_SOFT_NS || self.committed >= limits::RECORDING_BYTES_SOFT;
        // A file that begins with a recovery point may begin with damaged pictures, so an IDR is preferred.
        let overdue =
            age_ns >= limits::RECORDING_OVERDUE_NS || self.committed >= limits::RECORDING_BYTES_OVERDUE;
        let full = self.index.len() >= limits::RECORDING_UNITS_MAX
            || self.committed + self.bytes_needed(unit) > limits::RECORDING_BYTES_MAX;
        changed || full || (long && unit.is_idr()) || (overdue && unit.is_start())
    }

    /// Returns the next disk operation that writing this unit needs, or `None` while an operation is in flight.
    pub(super) fn next_operation(&mut self, unit: &PendingUnit) -> Result<Option<Output>, RecorderError> {
        let file = self.id;
        match self.operation {
            Operation::PartlyWritten { done } => return Ok(Some(self.write(unit, done))),
            Operation::None => {}
            _ => return Ok(None),
        }
        if self.allocation.truncate_first {
            self.operation = Operation::Truncating;
            return Ok(Some(Output::Truncate { file, bytes: self.committed }));
        }
        if self.format == Format::Mp4
            && self.is_empty()
            && let Some(track) = &unit.track
        {
            let started_at_s = stamp_s(unit.captured_at_ns).unwrap_or(self.started_at_s);
            let track = Track { started_at_s, ..track.clone() };
            self.mp4 = Some(Mp4 { header: fmp4::file_header(&track).into(), track: Arc::new(track) });
        }
        // The reservation includes space for the index, so that the file can be finished even if the disk is full.
        let needed = self.committed + self.bytes_needed(unit) + self.tail_bytes_max();
        if needed > self.allocation.end && self.allocation.step > 0 {
            if self.allocation.step < limits::ALLOCATE_BYTES_MIN {
                return Err(RecorderError::DiskFull);
            }
            self.operation = Operation::Allocating;
            let (offset, bytes) = (self.allocation.end, self.allocation.step);
            return Ok(Some(Output::Allocate { file, offset, bytes }));
        }
        Ok(Some(self.write(unit, 0)))
    }

    /// Handles the completion of a reservation.
    pub(super) fn handle_allocated(&mut self, result: io::Result<()>) {
        if self.operation != Operation::Allocating {
            return;
        }
        self.operation = Operation::None;
        match result {
            Ok(()) => self.allocation.end += self.allocation.step,
            Err(error) if is_full(&error) => {
                // A failed reservation may have taken all free space. The next operations truncate the file to release
                // this space, then reserve half as much.
                self.allocation.step /= 2;
                self.allocation.truncate_first = true;
            }
            Err(_) => self.allocation.step = 0,
        }
    }

    /// Handles the completion of a truncation. It has released all space that was reserved after the committed bytes.
    pub(super) fn handle_truncated(&mut self) {
        self.operation = Operation::None;
        self.allocation.truncate_first = false;
        self.allocation.end = self.committed;
    }

    /// Handles the completion of a write. `intact` is true if the camera did not overwrite the slot during the write.
    pub(super) fn handle_written(
        &mut self,
        unit: &PendingUnit,
        result: io::Result<u64>,
        intact: bool,
    ) -> Result<WriteOutcome, RecorderError> {
        let Operation::Writing { done } = self.operation else { return Ok(WriteOutcome::Partial) };
        self.operation = Operation::None;
        let done = match result {
            Ok(0) => return Err(RecorderError::DiskFull),
            Ok(bytes) => done + bytes,
            Err(error) if is_interruption(&error) && self.write_retries < WRITE_RETRIES_MAX => {
                self.write_retries += 1;
                done
            }
            Err(error) => return Err(RecorderError::io("writing", &error)),
        };
        let bytes = self.bytes_needed(unit);
        if intact && done < bytes {
            self.operation = Operation::PartlyWritten { done };
            return Ok(WriteOutcome::Partial);
        }
        self.write_retries = 0;
        if !intact {
            return Ok(WriteOutcome::Torn);
        }
        self.commit(unit, bytes);
        Ok(WriteOutcome::Complete { bytes })
    }

    /// Returns the time at which the next sync must start. Returns `None` if no written data needs a sync, or if a sync
    /// is in flight.
    pub(super) fn sync_deadline(&self) -> Option<i64> {
        (self.dirty && !self.syncing).then(|| self.last_sync_ns.saturating_add(limits::SYNC_INTERVAL_NS))
    }

    /// Returns the operation that makes the written data durable.
    pub(super) fn start_sync(&mut self, now_ns: i64) -> Output {
        (self.dirty, self.syncing, self.last_sync_ns) = (false, true, now_ns);
        let whole = self.whole.start..self.committed;
        self.whole.end = self.committed;
        Output::Sync { file: self.id, whole }
    }

    pub(super) fn handle_sync_done(&mut self) {
        self.syncing = false;
        self.whole.start = self.whole.end;
    }

    /// Returns the data that finishes the file.
    pub(super) fn into_ending(mut self, dropped_units: u64) -> FileEnding {
        self.timeline.finish(&mut self.index);
        let committed = self.committed;
        let whole = self.whole.start..committed;
        let Some(mp4) = &self.mp4 else {
            let sidecar = Sidecar {
                started_at_s: self.started_at_s,
                duration_s: Some(self.duration_s()),
                complete: true,
                recovered: false,
                dropped_units,
            };
            return FileEnding { whole, tail: Vec::new(), mdat_header: None, sidecar: Some(sidecar) };
        };
        let notes = Notes { recovered: false, dropped_units };
        let tail = moov::finished(&mp4.track, &self.index, mp4.header.len() as u64, notes);
        let mdat_header = Some((fmp4::MDAT_HEADER_OFFSET, fmp4::mdat_header(committed)));
        FileEnding { whole, tail, mdat_header, sidecar: None }
    }

    /// Returns the number of bytes that this unit adds to the file, including headers.
    fn bytes_needed(&self, unit: &PendingUnit) -> u64 {
        let headers = match &self.mp4 {
            Some(mp4) if self.is_empty() => mp4.header.len() + self.fragment(unit).header_bytes(),
            Some(_) => self.fragment(unit).header_bytes(),
            None => 0,
        };
        headers as u64 + unit.prefixed_bytes()
    }

    /// Returns an upper bound for the size of the data that finishes the file, if one more unit is written before.
    fn tail_bytes_max(&self) -> u64 {
        match self.format {
            Format::H264 => 0,
            Format::Mp4 => format::index_bytes_max(self.index.len() + 1),
        }
    }

    fn fragment(&self, unit: &PendingUnit) -> Fragment {
        let PlannedTime { time_90k, composition_90k, duration_90k, .. } = self.timeline.plan(&unit.time);
        Fragment {
            sequence: u32::try_from(self.index.len() + 1).unwrap_or(u32::MAX),
            time_90k,
            composition_90k,
            duration_90k,
            unit_bytes: u32::try_from(unit.prefixed_bytes()).unwrap_or(u32::MAX), // 32 bits suffice: a slot holds 3 MB
            kind: unit.kind,
        }
    }

    /// Returns the operation that writes the unit, without its first `done` bytes, which are already in the file.
    fn write(&mut self, unit: &PendingUnit, done: u64) -> Output {
        self.operation = Operation::Writing { done };
        let mut parts = Vec::with_capacity(2 * unit.nal_units.len() + 1);
        if let Some(mp4) = &self.mp4 {
            if self.is_empty() {
                parts.push(mp4.header.clone());
            }
            fmp4::gather(&self.fragment(unit), &unit.nal_units, &mut parts);
        } else {
            annexb::gather(&unit.nal_units, &mut parts);
        }
        skip(&mut parts, done);
        debug_assert!(parts.len() <= limits::WRITE_PARTS_MAX);
        Output::Write { file: self.id, offset: self.committed + done, parts }
    }

    fn commit(&mut self, unit: &PendingUnit, bytes: u64) {
        let fragment = self.fragment(unit);
        if self.is_empty() {
            self.first_captured_ns = unit.time.captured_ns;
            self.started_at_s = stamp_s(unit.captured_at_ns).unwrap_or(self.started_at_s);
        }
        self.index.push(&fragment);
        if let Some(frames) = unit.recovery_point {
            self.index.mark_recovery_point(frames);
        }
        let planned = self.timeline.plan(&unit.time);
        self.timeline.commit(&unit.time, &planned);
        if let Some(stamp_ns) = unit.captured_at_ns {
            let shown_90k = planned.time_90k.saturating_add_signed(i64::from(planned.composition_90k));
            self.log.push_picture(stamp_ns, shown_90k);
        }
        self.committed += bytes;
        self.dirty = true;
    }
}

/// Removes the first `done` bytes from `parts`.
fn skip(parts: &mut Vec<Bytes>, mut done: u64) {
    parts.retain_mut(|part| {
        let now = usize::try_from(done).unwrap_or(usize::MAX).min(part.len());
        *part = part.slice(now..);
        done -= now as u64;
        !part.is_empty()
    });
}

fn is_interruption(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
