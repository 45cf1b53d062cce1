//! PURE: one file of a recording, from its first unit to its ending. Opens no file, reads no clock.

use std::io;

use bytes::Bytes;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::names::Format;
use super::operation::{Ending, FileId, IncomingUnit, Output};
use super::types::RecorderError;
use crate::base::limits;
use crate::h264::{Assembler, avcc};
use crate::recorder::format::annexb;
use crate::recorder::format::fmp4::{self, Fragment, Index, Track, UnitKind};
use crate::recorder::format::moov::{self, Notes};
use crate::recorder::format::timeline::{Timeline, plausible};

/// Times an interrupted write is tried again.
const WRITE_RETRIES_MAX: u32 = 8;

/// An access unit between the ring and the file: its NAL units are slices of the slot.
#[derive(Debug)]
pub(crate) struct Held {
    nal_units: SmallVec<[Bytes; 8]>,
    kind: UnitKind,
    captured_ns: i64,
    seen_ns: i64,
    captured_at_s: Option<u64>,
    /// For an IDR: what decoders must know, and the picture's width and height.
    stream: Option<(Vec<u8>, u16, u16)>,
}

impl Held {
    /// Takes a unit apart; `None` if it isn't one that can be recorded.
    pub(crate) fn new(assembler: &mut Assembler, unit: &IncomingUnit, now_ns: i64) -> Option<Held> {
        let assembled = assembler.assemble(&unit.bytes).ok()?;
        if assembled.nal_count() > limits::NAL_UNITS_MAX {
            return None;
        }
        let kind = match (assembled.is_idr(), assembled.is_reference()) {
            (true, _) => UnitKind::Idr,
            (false, true) => UnitKind::Reference,
            (false, false) => UnitKind::Disposable,
        };
        let nal_units = assembled.nals().map(|nal| slice(&unit.bytes, nal.slot_offset, nal.bytes)).collect();
        let stream = match kind {
            UnitKind::Idr => {
                let sets = assembler.parameter_sets();
                let info = sets.stream_info()?;
                let (width, height) = (u16::try_from(info.width).ok()?, u16::try_from(info.height).ok()?);
                Some((avcc::configuration_record(sets)?, width, height))
            }
            _ => None,
        };
        Some(Held {
            nal_units,
            kind,
            captured_ns: unit.captured_ns,
            seen_ns: now_ns,
            captured_at_s: unit.captured_at_s,
            stream,
        })
    }

    pub(crate) fn is_idr(&self) -> bool {
        self.kind == UnitKind::Idr
    }

    fn prefixed_bytes(&self) -> u64 {
        self.nal_units.iter().map(|nal| nal.len() as u64 + 4).sum()
    }
}

/// A NAL unit as a slice of the slot; only an inserted parameter set is copied.
fn slice(slot: &Bytes, offset: Option<u32>, nal: &[u8]) -> Bytes {
    let start = offset.and_then(|offset| usize::try_from(offset).ok());
    let range = start.and_then(|start| Some(start..start.checked_add(nal.len())?));
    match range.filter(|range| range.end <= slot.len()) {
        Some(range) => slot.slice(range),
        None => Bytes::copy_from_slice(nal),
    }
}

/// What a completed write means.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Not all of it yet.
    More,
    /// The unit is in the file.
    Unit {
        /// With all its headers.
        bytes: u64,
    },
    /// The camera overwrote the slot meanwhile: the place will be written again.
    Torn,
}

/// One file.
pub(crate) struct Segment {
    id: FileId,
    container: Container,
    committed: u64,
    started_at_s: u64,
    timeline: Timeline,
    index: Index,
    first_captured_ns: i64,
    operation: Operation,
    allocation: Allocation,
    write_retries: u32,
    dirty: bool,
    syncing: bool,
    last_sync_ns: i64,
}

enum Container {
    H264,
    /// `None` until the first unit says what the stream is.
    Mp4(Option<Mp4>),
}

struct Mp4 {
    track: Track,
    fragments_offset: u64,
}

/// What the file's one operation in flight is.
enum Operation {
    None,
    Allocating { bytes: u64 },
    Truncating,
    Writing { fragment: Fragment, head: Option<Mp4>, done: u64, total: u64, again: bool },
}

/// Space reserved ahead. A file system without fallocate has `step` 0.
struct Allocation {
    end: u64,
    step: u64,
    cut_first: bool,
}

impl Segment {
    pub(crate) fn new(id: FileId, format: Format, started_at_s: u64, now_ns: i64) -> Segment {
        Segment {
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
            allocation: Allocation { end: 0, step: limits::ALLOCATE_BYTES, cut_first: false },
            write_retries: 0,
            dirty: false,
            syncing: false,
            last_sync_ns: now_ns,
        }
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.operation, Operation::None)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    pub(crate) fn started_at_s(&self) -> u64 {
        self.started_at_s
    }

    pub(crate) fn duration_s(&self) -> f64 {
        self.index.duration_90k() as f64 / f64::from(fmp4::TIMESCALE)
    }

    /// Whether this unit must not come into this file.
    ///
    /// New parameter sets end an `.mp4`, whose `avcC` and picture size hold for the whole track; an
    /// `.h264` carries them in the stream and goes on.
    pub(crate) fn must_end_before(&self, held: &Held) -> bool {
        if self.is_empty() {
            return false;
        }
        let changed = match (&self.container, &held.stream) {
            (Container::Mp4(Some(mp4)), Some((configuration, width, height))) => {
                (&mp4.track.configuration, mp4.track.width, mp4.track.height)
                    != (configuration, *width, *height)
            }
            _ => false,
        };
        let age_ns = plausible(held.captured_ns, held.seen_ns).saturating_sub(self.first_captured_ns);
        let long =
            age_ns >= limits::RECORDING_DURATION_SOFT_NS || self.committed >= limits::RECORDING_BYTES_SOFT;
        let full = self.index.len() >= limits::RECORDING_UNITS_MAX
            || self.committed + self.bytes_needed(held) > limits::RECORDING_BYTES_MAX;
        changed || full || (long && held.is_idr())
    }

    /// What is to be done next to get this unit into the file.
    pub(crate) fn next_operation(&mut self, held: &Held) -> Result<Option<Output>, RecorderError> {
        let file = self.id;
        match &self.operation {
            Operation::Writing { again: true, .. } => return Ok(self.write_on(held)),
            Operation::None => {}
            _ => return Ok(None),
        }
        if self.allocation.cut_first {
            self.operation = Operation::Truncating;
            return Ok(Some(Output::Truncate { file, bytes: self.committed }));
        }
        // Beside the unit there must stay room for the index, so that even on a full disk a file is
        // finished.
        let needed = self.committed + self.bytes_needed(held) + self.tail_bytes_max();
        if needed > self.allocation.end && self.allocation.step > 0 {
            if self.allocation.step < limits::ALLOCATE_BYTES_MIN {
                return Err(RecorderError::DiskFull);
            }
            let (offset, bytes) = (self.allocation.end, self.allocation.step);
            self.operation = Operation::Allocating { bytes };
            return Ok(Some(Output::Allocate { file, offset, bytes }));
        }
        let (fragment, head) = self.prepare(held)?;
        let total = self.bytes_needed(held);
        self.operation = Operation::Writing { fragment, head, done: 0, total, again: true };
        Ok(self.write_on(held))
    }

    /// Space was reserved, or not.
    pub(crate) fn allocated(&mut self, result: io::Result<()>) {
        let Operation::Allocating { bytes } = self.operation else { return };
        self.operation = Operation::None;
        match result {
            Ok(()) => self.allocation.end += bytes,
            Err(error) if is_full(&error) => {
                // A failed reservation may have taken all that was left: give it back, ask for less.
                self.allocation.step /= 2;
                self.allocation.cut_first = true;
            }
            Err(_) => self.allocation.step = 0,
        }
    }

    /// All behind the committed bytes was given back.
    pub(crate) fn truncated(&mut self) {
        self.operation = Operation::None;
        self.allocation.cut_first = false;
        self.allocation.end = self.committed;
    }

    /// A write completed.
    pub(crate) fn written(
        &mut self,
        held: &Held,
        result: io::Result<u64>,
        intact: bool,
    ) -> Result<Written, RecorderError> {
        let Operation::Writing { done, total, again, .. } = &mut self.operation else {
            return Ok(Written::More);
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
            *again = true;
            return Ok(Written::More);
        }
        self.write_retries = 0;
        let Operation::Writing { fragment, head, total, .. } =
            std::mem::replace(&mut self.operation, Operation::None)
        else {
            return Ok(Written::More);
        };
        if !intact {
            return Ok(Written::Torn);
        }
        self.commit(held, &fragment, head, total);
        Ok(Written::Unit { bytes: total })
    }

    /// When what was written is to be made durable.
    pub(crate) fn sync_deadline(&self) -> Option<i64> {
        (self.dirty && !self.syncing).then(|| self.last_sync_ns.saturating_add(limits::SYNC_INTERVAL_NS))
    }

    pub(crate) fn sync_started(&mut self, now_ns: i64) {
        (self.dirty, self.syncing, self.last_sync_ns) = (false, true, now_ns);
    }

    pub(crate) fn sync_done(&mut self) {
        self.syncing = false;
    }

    /// How to close the file.
    pub(crate) fn into_ending(self, dropped_units: u64) -> Ending {
        let mut ending = Ending {
            committed: self.committed,
            tail: Vec::new(),
            switch: None,
            started_at_s: self.started_at_s,
            duration_s: self.duration_s(),
            dropped_units,
        };
        if let Container::Mp4(Some(mp4)) = &self.container {
            let notes = Notes { recovered: false, dropped_units };
            ending.tail = moov::finished(&mp4.track, &self.index, mp4.fragments_offset, notes);
            ending.switch = Some((fmp4::SWITCH_OFFSET, fmp4::switch_finished(self.committed)));
        }
        ending
    }

    fn bytes_needed(&self, held: &Held) -> u64 {
        match &self.container {
            Container::H264 => held.prefixed_bytes(),
            Container::Mp4(mp4) => {
                let head = match (mp4, &held.stream) {
                    (None, Some(stream)) => fmp4::head(&self.track(held, stream)).len() as u64,
                    _ => 0,
                };
                head + fmp4::FRAGMENT_HEADER_BYTES as u64 + held.prefixed_bytes()
            }
        }
    }

    fn tail_bytes_max(&self) -> u64 {
        match self.container {
            Container::H264 => 0,
            Container::Mp4(_) => fmp4::index_bytes_max(self.index.len() + 1),
        }
    }

    fn track(&self, held: &Held, (configuration, width, height): &(Vec<u8>, u16, u16)) -> Track {
        Track {
            width: *width,
            height: *height,
            configuration: configuration.clone(),
            started_at_s: held.captured_at_s.unwrap_or(self.started_at_s),
        }
    }

    /// The unit's header, and the head of the file if it is the first.
    fn prepare(&self, held: &Held) -> Result<(Fragment, Option<Mp4>), RecorderError> {
        let fragment = Fragment {
            sequence: u32::try_from(self.index.len() + 1).unwrap_or(u32::MAX),
            time_90k: self.timeline.place(held.captured_ns, held.seen_ns),
            duration_90k: self.index.expected_duration_90k(),
            unit_bytes: u32::try_from(held.prefixed_bytes()).map_err(|_| RecorderError::TooManyFiles)?,
            kind: held.kind,
        };
        let head = match (&self.container, &held.stream) {
            (Container::Mp4(None), Some(stream)) => {
                let track = self.track(held, stream);
                let fragments_offset = fmp4::head(&track).len() as u64;
                Some(Mp4 { track, fragments_offset })
            }
            _ => None,
        };
        Ok((fragment, head))
    }

    /// The write of what is not written yet of the unit at hand.
    fn write_on(&mut self, held: &Held) -> Option<Output> {
        let Operation::Writing { fragment, head, done, again, .. } = &mut self.operation else { return None };
        *again = false;
        let mut parts = Vec::with_capacity(2 * held.nal_units.len() + 1);
        match &self.container {
            Container::H264 => {
                annexb::gather(&held.nal_units, &mut parts);
            }
            Container::Mp4(_) => {
                parts.extend(head.as_ref().map(|mp4| Bytes::from(fmp4::head(&mp4.track))));
                fmp4::gather(fragment, &held.nal_units, &mut parts);
            }
        }
        skip(&mut parts, *done);
        debug_assert!(parts.len() <= limits::WRITE_PARTS_MAX);
        Some(Output::Write { file: self.id, offset: self.committed + *done, parts })
    }

    fn commit(&mut self, held: &Held, fragment: &Fragment, head: Option<Mp4>, total: u64) {
        if self.index.is_empty() {
            self.first_captured_ns = plausible(held.captured_ns, held.seen_ns);
            self.started_at_s = held.captured_at_s.unwrap_or(self.started_at_s);
        }
        if let Some(mp4) = head {
            self.container = Container::Mp4(Some(mp4));
        }
        self.timeline.commit(held.captured_ns, held.seen_ns, fragment.time_90k);
        self.index.push(fragment);
        self.committed += total;
        self.dirty = true;
    }
}

/// Leaves out the first `done` bytes.
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
