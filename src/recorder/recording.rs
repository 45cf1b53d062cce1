//! PURE: what to do with commands, units and completed disk operations. Opens no file, reads no clock:
//! time is an argument (`CLOCK_MONOTONIC`, nanoseconds), wishes leave through [`Recording::poll_output`].
//!
//! ```text
//!            start            created                stop, limit               units in the ring done
//!   idle ────────► starting ─────────► running ─────────────────► draining ──────────────┐
//!    ▲                 │ failed                │ error                                   ▼
//!    └─────────────────┴───────────────────────┴────────────────────────────────────► closing
//!                                                 all files finished: back to idle
//! ```
//!
//! One write is in flight at a time, and the file's committed length advances only when it completed
//! and the unit's bytes were still the camera's own; else the next write goes to the same place.
//! Every `handle_*` and `push_unit` is to be followed by a full drain of the outputs.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use smallvec::SmallVec;

use super::counters::RecorderCounters;
use super::operation::{Completion, FileId, IncomingUnit, Output, Start};
use super::segment::{Held, Segment, Written};
use super::types::{RecorderError, RecorderState, Report, StartReply, StopReason, StopReply};
use crate::base::limits;
use crate::h264::{Assembler, up_to_first_slice};

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    /// Writing what was published before the stop.
    Draining {
        asked_ns: i64,
    },
    Closing,
}

/// The recorder's decisions: at most one recording, its files, and the numbers of the last one.
pub(crate) struct Recording {
    assembler: Assembler,
    counters: Arc<RecorderCounters>,
    /// How paths of files begin in answers.
    directory: String,
    outputs: VecDeque<Output>,
    active: Option<Active>,
    next_file: FileId,
    last: Option<StopReply>,
    last_error: Option<RecorderError>,
}

struct Active {
    phase: Phase,
    start: Start,
    started_ns: i64,
    heartbeat_at_ns: i64,
    segment: Option<Segment>,
    creating: Option<FileId>,
    number: u32,
    held: Option<Held>,
    waiting_idr: bool,
    in_gap: bool,
    finishing: SmallVec<[FileId; limits::FINISHING_MAX]>,
    report: Report,
    /// Seconds of the files that are closed.
    closed_duration_s: f64,
    reason: StopReason,
    error: Option<RecorderError>,
    stop_asked: bool,
}

impl Recording {
    pub(crate) fn new(counters: Arc<RecorderCounters>, directory: String) -> Recording {
        Recording {
            assembler: Assembler::new(),
            counters,
            directory,
            outputs: VecDeque::new(),
            active: None,
            next_file: 0,
            last: None,
            last_error: None,
        }
    }

    /// The next thing to do.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Starts a recording; the answer comes as [`Output::Started`].
    pub(crate) fn handle_start(&mut self, now_ns: i64, start: Start) -> Result<(), RecorderError> {
        self.may_start()?;
        let file = self.new_file();
        self.last_error = None;
        self.counters.active.store(true, Relaxed);
        self.outputs.push_back(Output::Create {
            file,
            stem: start.stem.clone(),
            number: 1,
            exact: start.exact,
        });
        self.active = Some(Active {
            phase: Phase::Starting,
            start,
            started_ns: now_ns,
            heartbeat_at_ns: now_ns,
            segment: None,
            creating: Some(file),
            number: 1,
            held: None,
            waiting_idr: true,
            in_gap: false,
            finishing: SmallVec::new(),
            report: Report::default(),
            closed_duration_s: 0.0,
            reason: StopReason::Requested,
            error: None,
            stop_asked: false,
        });
        Ok(())
    }

    /// Whether a start would be taken.
    pub(crate) fn may_start(&self) -> Result<(), RecorderError> {
        match &self.active {
            None => Ok(()),
            Some(active) if active.phase == Phase::Closing => Err(RecorderError::Stopping),
            Some(_) => Err(RecorderError::AlreadyRecording),
        }
    }

    /// Stops the recording; the answer comes as [`Output::Stopped`].
    pub(crate) fn handle_stop(&mut self, now_ns: i64) -> Result<(), RecorderError> {
        let active = self.active.as_mut().ok_or(RecorderError::NotRecording)?;
        if active.stop_asked || active.phase == Phase::Closing {
            return Err(RecorderError::Stopping);
        }
        active.stop_asked = true;
        active.end(now_ns, StopReason::Requested);
        self.advance();
        Ok(())
    }

    /// The program ends: as a stop, but nobody waits for an answer.
    pub(crate) fn handle_shutdown(&mut self, now_ns: i64) {
        if let Some(active) = &mut self.active {
            active.end(now_ns, StopReason::Shutdown);
            self.advance();
        }
    }

    /// Somebody still watches.
    pub(crate) fn handle_heartbeat(&mut self, now_ns: i64) -> Result<(), RecorderError> {
        let active = self.active.as_mut().ok_or(RecorderError::NotRecording)?;
        active.heartbeat_at_ns = now_ns;
        Ok(())
    }

    /// Whether the next unit of the ring can be taken now.
    pub(crate) fn can_take_unit(&self) -> bool {
        self.active.as_ref().is_some_and(|active| {
            matches!(active.phase, Phase::Running | Phase::Draining { .. })
                && active.held.is_none()
                && active.segment.as_ref().is_some_and(Segment::is_idle)
                && active.finishing.len() < limits::FINISHING_MAX
        })
    }

    /// Whether a unit given by [`Recording::push_unit`] may still be read.
    pub(crate) fn has_pending_unit(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.held.is_some())
    }

    /// Looks at a unit without recording it: parameter sets are remembered.
    pub(crate) fn remember_parameter_sets(&mut self, bytes: &[u8]) -> bool {
        self.assembler.assemble(up_to_first_slice(bytes)).is_ok_and(|unit| unit.is_idr())
    }

    /// The unit observed last was overwritten meanwhile.
    pub(crate) fn forget_parameter_sets(&mut self) {
        self.assembler.forget_last_unit();
    }

    /// Takes the next unit ([`Recording::can_take_unit`] must be true).
    pub(crate) fn push_unit(&mut self, now_ns: i64, unit: &IncomingUnit) {
        let Some(active) = &mut self.active else { return };
        if let Phase::Draining { asked_ns } = active.phase
            && unit.captured_ns > asked_ns
        {
            active.phase = Phase::Closing;
            return self.advance();
        }
        let Some(held) = Held::new(&mut self.assembler, unit, now_ns) else {
            self.counters.rejected.add_shared(1);
            return self.handle_gap(1);
        };
        if active.waiting_idr && !held.is_idr() {
            return self.count_dropped(1);
        }
        active.waiting_idr = false;
        if active.report.frame_count == 0 && held.is_idr() {
            active.begin_with(unit.captured_ns);
        }
        active.held = Some(held);
        self.rotate_if_needed();
        self.advance();
    }

    /// Units are missing from here on: nothing is written until the next IDR.
    pub(crate) fn handle_gap(&mut self, missed_units: u32) {
        self.count_dropped(u64::from(missed_units));
        if let Some(active) = &mut self.active {
            active.waiting_idr = true;
        }
    }

    /// The ring holds no further whole unit now; `begun` says that the camera has begun one, or that it is whole
    /// already but not known to be.
    pub(crate) fn handle_ring_empty(&mut self, now_ns: i64, begun: bool) {
        if let Some(active) = &mut self.active
            && let Phase::Draining { asked_ns } = active.phase
            && active.held.is_none()
            && !(begun && now_ns - asked_ns < limits::DRAIN_BEGUN_NS_MAX)
        {
            active.phase = Phase::Closing;
            self.advance();
        }
    }

    /// When [`Recording::handle_tick`] is to be called at the latest.
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        let active = self.active.as_ref()?;
        let sync = active.segment.as_ref().and_then(Segment::sync_deadline);
        let ending = match active.phase {
            Phase::Running => active.ending_deadline().map(|(deadline, _)| deadline),
            Phase::Draining { asked_ns } => Some(asked_ns.saturating_add(limits::DRAIN_NS_MAX)),
            Phase::Starting | Phase::Closing => None,
        };
        [sync, ending].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(crate) fn handle_tick(&mut self, now_ns: i64) {
        let Some(active) = &mut self.active else { return };
        if let Some(segment) = &mut active.segment
            && segment.sync_deadline().is_some_and(|deadline| deadline <= now_ns)
        {
            segment.sync_started(now_ns);
            self.outputs.push_back(Output::Sync { file: segment.id() });
        }
        match active.phase {
            Phase::Running => {
                if let Some((_, reason)) =
                    active.ending_deadline().filter(|(deadline, _)| *deadline <= now_ns)
                {
                    active.end(now_ns, reason);
                }
            }
            Phase::Draining { asked_ns } if now_ns - asked_ns >= limits::DRAIN_NS_MAX => {
                active.phase = Phase::Closing;
            }
            _ => {}
        }
        self.advance();
    }

    /// An output is done.
    pub(crate) fn handle_completion(&mut self, now_ns: i64, file: FileId, completion: Completion) {
        match completion {
            Completion::Created(result) => self.created(now_ns, file, result),
            Completion::Finished(result) => self.finished(file, result),
            Completion::Synced(result) => self.synced(file, result),
            Completion::Allocated(result) => {
                if let Some(segment) = self.segment(file) {
                    segment.allocated(result);
                }
            }
            Completion::Truncated(result) => {
                if let Some(segment) = self.segment(file) {
                    segment.truncated();
                }
                if let Err(error) = result {
                    self.fail(RecorderError::io("truncating the file", &error));
                }
            }
            Completion::Written { result, intact } => self.written(file, result, intact),
        }
        self.advance();
    }

    pub(crate) fn state(&self) -> RecorderState {
        match self.active.as_ref().map(|active| active.phase) {
            None => RecorderState::Idle,
            Some(Phase::Starting) => RecorderState::Starting,
            Some(Phase::Running) => RecorderState::Recording,
            Some(Phase::Draining { .. } | Phase::Closing) => RecorderState::Stopping,
        }
    }

    /// Numbers of the running recording, if one runs.
    pub(crate) fn report(&self) -> Option<Report> {
        self.active.as_ref().filter(|active| active.phase != Phase::Starting).map(Active::full_report)
    }

    /// The last recording and what ended it, if not a person.
    pub(crate) fn last(&self) -> (Option<&StopReply>, Option<&RecorderError>) {
        let error = self.active.as_ref().and_then(|active| active.error.as_ref());
        (self.last.as_ref(), error.or(self.last_error.as_ref()))
    }

    /// Of a file that is being written: bytes of whole units, seconds, and when it began.
    pub(crate) fn progress(&self, file: FileId) -> Option<(u64, f64, u64)> {
        let segment = self.active.as_ref()?.segment.as_ref()?;
        (segment.id() == file).then(|| (segment.committed(), segment.duration_s(), segment.started_at_s()))
    }

    fn new_file(&mut self) -> FileId {
        self.next_file = self.next_file.wrapping_add(1);
        self.next_file
    }

    fn segment(&mut self, file: FileId) -> Option<&mut Segment> {
        self.active.as_mut()?.segment.as_mut().filter(|segment| segment.id() == file)
    }

    fn count_dropped(&mut self, units: u64) {
        let Some(active) = &mut self.active else { return };
        if active.report.frame_count == 0 || units == 0 {
            return; // the recording begins at its first IDR
        }
        active.report.dropped_units += units;
        active.report.gaps += u64::from(!active.in_gap);
        active.in_gap = true;
        self.counters.dropped.add_shared(units);
    }

    /// The IDR at hand belongs to the next file if the stream changed or the file is long enough.
    fn rotate_if_needed(&mut self) {
        let file = self.next_file.wrapping_add(1);
        let Some(active) = &mut self.active else { return };
        let (Some(held), Some(segment)) = (&active.held, &active.segment) else { return };
        if !segment.must_end_before(held) {
            return;
        }
        if !held.is_idr() {
            active.held = None;
            active.waiting_idr = true;
        }
        if active.number >= limits::RECORDING_SEGMENTS_MAX {
            return self.fail(RecorderError::TooManyFiles);
        }
        self.next_file = file;
        close_segment(active, &mut self.outputs);
        active.creating = Some(file);
        let (stem, number) = (active.start.stem.clone(), active.number + 1);
        self.outputs.push_back(Output::Create { file, stem, number, exact: false });
    }

    /// Moves on whatever can move.
    fn advance(&mut self) {
        let Some(active) = &mut self.active else { return };
        match active.phase {
            Phase::Starting => {}
            Phase::Running | Phase::Draining { .. } => {
                let (Some(held), Some(segment)) = (&active.held, &mut active.segment) else { return };
                match segment.next_operation(held) {
                    Ok(Some(output)) => self.outputs.push_back(output),
                    Ok(None) => {}
                    Err(error) => {
                        self.fail(error);
                        self.advance();
                    }
                }
            }
            Phase::Closing => {
                if active.segment.as_ref().is_some_and(|segment| !segment.is_idle()) {
                    return;
                }
                active.held = None;
                close_segment(active, &mut self.outputs);
                if active.creating.is_none() && active.finishing.is_empty() {
                    self.conclude();
                }
            }
        }
    }

    fn created(&mut self, now_ns: i64, file: FileId, result: Result<(String, u32), RecorderError>) {
        let Some(active) = self.active.as_mut().filter(|active| active.creating == Some(file)) else {
            return;
        };
        active.creating = None;
        let starting = active.phase == Phase::Starting || active.report.files.is_empty();
        match result {
            Ok((name, number)) => {
                active.number = number;
                active.report.files.push(name.clone());
                active.report.name.clone_from(&name);
                active.report.filename = format!("{}/{name}", self.directory);
                active.segment =
                    Some(Segment::new(file, active.start.stem.format, active.start.started_at_s, now_ns));
                if active.phase == Phase::Starting {
                    active.phase = Phase::Running;
                }
                if starting {
                    self.counters.started.add_shared(1);
                    let (filename, waits_for_idr) =
                        (active.report.filename.clone(), active.start.waits_for_idr);
                    let reply = StartReply { filename, name, waits_for_idr };
                    self.outputs.push_back(Output::Started(Ok(reply)));
                }
            }
            Err(error) => {
                if starting {
                    self.outputs.push_back(Output::Started(Err(error.clone())));
                }
                self.fail(error);
            }
        }
    }

    fn written(&mut self, file: FileId, result: io::Result<u64>, intact: bool) {
        let Some(active) = self.active.as_mut() else { return };
        let Some(segment) = active.segment.as_mut().filter(|segment| segment.id() == file) else { return };
        let Some(held) = &active.held else { return };
        match segment.written(held, result, intact) {
            Ok(Written::More) => {}
            Ok(Written::Unit { bytes }) => {
                active.held = None;
                active.in_gap = false;
                active.report.frame_count += 1;
                active.report.bytes_written += bytes;
                self.counters.units.add_shared(1);
                self.counters.bytes.add_shared(bytes);
            }
            Ok(Written::Torn) => {
                active.held = None;
                active.report.torn_units += u64::from(active.report.frame_count > 0);
                self.counters.torn.add_shared(1);
                self.assembler.forget_last_unit();
                self.handle_gap(1);
            }
            Err(error) => {
                active.held = None;
                self.fail(error);
            }
        }
    }

    fn synced(&mut self, file: FileId, result: io::Result<bool>) {
        let Some(segment) = self.segment(file) else { return };
        segment.sync_done();
        match result {
            Ok(true) => {}
            Ok(false) => self.fail(RecorderError::Removed),
            Err(error) => self.fail(RecorderError::io("writing to the disk", &error)),
        }
    }

    fn finished(&mut self, file: FileId, result: Result<(), RecorderError>) {
        let Some(active) = &mut self.active else { return };
        active.finishing.retain(|finishing| *finishing != file);
        match result {
            Ok(()) => self.counters.finished.add_shared(1),
            Err(error) => self.fail(error),
        }
    }

    /// Ends the recording because of an error: what is written stays and is finished.
    fn fail(&mut self, error: RecorderError) {
        let Some(active) = &mut self.active else { return };
        self.counters.disk_errors.add_shared(1);
        active.phase = Phase::Closing;
        active.held = None;
        active.error.get_or_insert(error);
    }

    fn conclude(&mut self) {
        let Some(active) = self.active.take() else { return };
        self.counters.active.store(false, Relaxed);
        let report = active.full_report();
        let reason = active.error.clone().map_or(active.reason, StopReason::Failed);
        let kept = report.frame_count > 0;
        let reply = StopReply { report, reason, kept };
        if active.stop_asked {
            let reply = active.error.clone().map_or(Ok(reply.clone()), Err);
            self.outputs.push_back(Output::Stopped(reply));
        }
        if !active.report.files.is_empty() {
            self.last = Some(reply);
        }
        self.last_error = active.error;
    }
}

impl Active {
    /// The unit captured then is to be the first of the recording: says how far that is from the request.
    fn begin_with(&mut self, captured_ns: i64) {
        let after_request = captured_ns.saturating_sub(self.started_ns) as f64 / 1e9;
        self.report.pre_roll = (-after_request).max(0.0);
        self.report.start_delay = after_request.max(0.0);
    }

    /// No unit captured after now is wanted.
    fn end(&mut self, now_ns: i64, reason: StopReason) {
        match self.phase {
            Phase::Starting => self.phase = Phase::Closing,
            Phase::Running => self.phase = Phase::Draining { asked_ns: now_ns },
            Phase::Draining { .. } | Phase::Closing => return,
        }
        self.reason = reason;
    }

    fn ending_deadline(&self) -> Option<(i64, StopReason)> {
        let duration = self
            .start
            .max_duration_ns
            .map(|ns| (self.started_ns.saturating_add(ns), StopReason::MaxDuration));
        let heartbeat = self
            .start
            .heartbeat_ns
            .map(|ns| (self.heartbeat_at_ns.saturating_add(ns), StopReason::Heartbeat));
        [heartbeat, duration].into_iter().flatten().min_by_key(|(deadline, _)| *deadline)
    }

    fn full_report(&self) -> Report {
        let mut report = self.report.clone();
        report.duration = self.closed_duration_s + self.segment.as_ref().map_or(0.0, Segment::duration_s);
        report
    }
}

/// Finishes the file at hand, or removes it if it holds nothing.
fn close_segment(active: &mut Active, outputs: &mut VecDeque<Output>) {
    let Some(segment) = active.segment.take() else { return };
    let file = segment.id();
    active.finishing.push(file);
    active.closed_duration_s += segment.duration_s();
    if segment.is_empty() {
        active.report.files.pop();
        outputs.push_back(Output::Discard { file });
    } else {
        let before = segment.committed();
        let ending = segment.into_ending(active.report.dropped_units);
        active.report.bytes_written += ending.tail.len() as u64;
        debug_assert_eq!(before, ending.committed);
        outputs.push_back(Output::Finish { file, ending });
    }
}
