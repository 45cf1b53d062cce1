//! PURE: the recorder's state machine. Its inputs are commands, access units and completed disk operations. Its outputs
//! are returned by [`Recording::poll_output`]. Time is an argument, in nanoseconds of `CLOCK_MONOTONIC`.
//!
//! ```text
//!            start            created                stop, limit                all units written
//!   idle ────────► starting ─────────► running ─────────────────► draining ──────────────┐
//!    ▲                 │ failed                │ error                                   ▼
//!    └─────────────────┴───────────────────────┴────────────────────────────────────► closing
//!                                                 all files finished: back to idle
//! ```
//!
//! Only one write is in flight at a time. The committed length of the file grows only if the write completed and the
//! camera did not overwrite the slot meanwhile. Otherwise the next unit is written to the same offset.
//!
//! After every call of a `handle_*` method or `push_unit`, the caller must poll and carry out all outputs.

mod events;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::active_recording::{ActiveRecording, Phase};
use super::capture_clock::CaptureClock;
use super::counters::RecorderCounters;
use super::detection_log::DetectionLog;
use super::operation::{Completion, FileFate, FileId, IncomingUnit, Output, Start};
use super::pending_unit::{PendingUnit, Skipped};
use super::recorded_file::{RecordedFile, WriteOutcome};
use super::types::{
    Progress, RecorderError, RecorderState, RecordingReport, StartReply, StopReason, StopReply,
};
use crate::base::limits;
use crate::h264::{Assembler, up_to_first_slice};

/// How decoding can start with a unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartPoint {
    Idr,
    /// The unit is not an IDR, but names itself a recovery point.
    RecoveryPoint,
}

impl StartPoint {
    /// Returns how decoding can start with a unit with these properties, or `None` if it cannot.
    pub(super) fn of(is_idr: bool, recovery_point: Option<u16>) -> Option<StartPoint> {
        match recovery_point {
            _ if is_idr => Some(StartPoint::Idr),
            Some(_) => Some(StartPoint::RecoveryPoint),
            None => None,
        }
    }
}

/// State of the recorder: at most one active recording, and the result of the last one.
pub(crate) struct Recording {
    assembler: Assembler,
    clock: CaptureClock,
    /// Capture time of the newest unit with which decoding can start.
    last_start_ns: Option<i64>,
    counters: Arc<RecorderCounters>,
    /// Directory of the recordings, which replies prefix to file names.
    directory: String,
    outputs: VecDeque<Output>,
    active: Option<ActiveRecording>,
    last_file: FileId,
    last: Option<StopReply>,
    last_error: Option<RecorderError>,
}

impl Recording {
    pub(crate) fn new(counters: Arc<RecorderCounters>, directory: String) -> Recording {
        Recording {
            assembler: Assembler::default(),
            clock: CaptureClock::default(),
            last_start_ns: None,
            counters,
            directory,
            outputs: VecDeque::new(),
            active: None,
            last_file: 0,
            last: None,
            last_error: None,
        }
    }

    /// Returns the next operation or reply to carry out.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Starts a recording. The reply follows as [`Output::Started`], unless this function returns an error.
    pub(crate) fn handle_start(&mut self, now_ns: i64, start: Start) -> Result<(), RecorderError> {
        self.check_can_start()?;
        self.last_file = self.last_file.wrapping_add(1);
        let file = self.last_file;
        self.last_error = None;
        self.counters.active.store(true, Relaxed);
        self.outputs.push_back(Output::Create {
            file,
            stem: start.stem.clone(),
            number: 1,
            exact: start.exact,
        });
        self.active = Some(ActiveRecording {
            phase: Phase::Starting,
            stops_with_event: start.event_label.is_some(),
            start,
            started_ns: now_ns,
            heartbeat_at_ns: now_ns,
            file: None,
            creating: Some(file),
            number: 1,
            pending: None,
            waiting_idr: true,
            shown_after: None,
            in_gap: false,
            finishing: 0,
            report: RecordingReport::default(),
            reason: StopReason::Requested,
            error: None,
            stop_requested: false,
            ended_at_ns: None,
        });
        Ok(())
    }

    /// Returns an error if a recording cannot be started now.
    pub(crate) fn check_can_start(&self) -> Result<(), RecorderError> {
        match &self.active {
            None => Ok(()),
            Some(active) if active.phase == Phase::Closing => Err(RecorderError::Stopping),
            Some(_) => Err(RecorderError::AlreadyRecording),
        }
    }

    /// Stops the recording. The reply follows as [`Output::Stopped`], unless this function returns an error.
    pub(crate) fn handle_stop(&mut self, now_ns: i64) -> Result<(), RecorderError> {
        let active = self.active.as_mut().ok_or(RecorderError::NotRecording)?;
        if active.stop_requested || active.phase == Phase::Closing {
            return Err(RecorderError::Stopping);
        }
        active.stop_requested = true;
        active.end(now_ns, StopReason::Requested);
        self.advance();
        Ok(())
    }

    /// Stops the recording because the server shuts down. This causes no reply.
    pub(crate) fn handle_shutdown(&mut self, now_ns: i64) {
        if let Some(active) = &mut self.active {
            active.end(now_ns, StopReason::Shutdown);
            self.advance();
        }
    }

    /// Restarts the heartbeat timeout.
    pub(crate) fn handle_heartbeat(&mut self, now_ns: i64) -> Result<(), RecorderError> {
        let active = self.active.as_mut().ok_or(RecorderError::NotRecording)?;
        active.heartbeat_at_ns = now_ns;
        Ok(())
    }

    /// Returns true if [`Recording::push_unit`] may be called.
    pub(crate) fn can_take_unit(&self) -> bool {
        self.active.as_ref().is_some_and(|active| {
            matches!(active.phase, Phase::Running | Phase::Draining { .. })
                && active.pending.is_none()
                && active.file.as_ref().is_some_and(RecordedFile::is_idle)
                && active.finishing < limits::FINISHING_MAX
        })
    }

    /// Returns true while the disk may still read the unit of the last [`Recording::push_unit`].
    pub(crate) fn has_pending_unit(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.pending.is_some())
    }

    /// Learns from a unit without recording it: caches its parameter sets, and its capture time. Returns how decoding
    /// can start with the unit, or `None` if it cannot.
    pub(crate) fn remember(&mut self, now_ns: i64, bytes: &[u8], captured_ns: i64) -> Option<StartPoint> {
        let unit = self.assembler.assemble(up_to_first_slice(bytes)).ok()?;
        let time = self.clock.on_unit(&unit, captured_ns, now_ns);
        let start = StartPoint::of(unit.is_idr(), unit.recovery_point());
        if start.is_some() {
            self.last_start_ns = self.last_start_ns.max(Some(time.captured_ns));
        }
        start
    }

    /// Returns an assembler that knows the same parameter sets.
    pub(crate) fn known_sets(&self) -> Assembler {
        let mut assembler = Assembler::default();
        assembler.copy_from(&self.assembler);
        assembler
    }

    /// Must be called if the next unit does not follow the last one, because the cursor was moved.
    pub(crate) fn handle_cursor_moved(&mut self) {
        self.assembler.handle_gap();
        self.clock.restart();
    }

    /// Undoes the caching of the last [`Recording::remember`]. Must be called if the camera overwrote the unit while it
    /// was read.
    pub(crate) fn forget_parameter_sets(&mut self) {
        self.assembler.forget_last_unit();
    }

    /// Takes the next unit of the ring. May be called only if [`Recording::can_take_unit`] returns true. Returns how
    /// decoding can start with this unit, or `None` if it cannot.
    pub(crate) fn push_unit(&mut self, now_ns: i64, unit: &IncomingUnit) -> Option<StartPoint> {
        let active = self.active.as_mut()?;
        if let Phase::Draining { stopped_ns } = active.phase
            && unit.captured_ns > stopped_ns
        {
            active.phase = Phase::Closing;
            self.advance();
            return None;
        }
        let filler_before = self.assembler.filler_bytes();
        let parsed = PendingUnit::new(&mut self.assembler, &mut self.clock, unit, now_ns);
        self.counters.filler_bytes.add_shared(self.assembler.filler_bytes() - filler_before);
        let pending = match parsed {
            Ok(pending) => pending,
            Err(Skipped::NoPicture) => return None,
            Err(skipped) => {
                self.counters.rejected.add_shared(1);
                if skipped == Skipped::Invalid {
                    self.handle_gap(1);
                }
                return None;
            }
        };
        let start = StartPoint::of(pending.is_idr(), pending.recovery_point);
        if pending.is_start() {
            self.last_start_ns = Some(pending.time.captured_ns);
        } else if active.waiting_idr {
            self.count_dropped(1);
            return None;
        }
        if active.waiting_idr || pending.is_idr() {
            active.shown_after = pending.time.order.filter(|_| !pending.is_idr());
        } else if let Some(first) = active.shown_after {
            if pending.time.order.is_some_and(|order| order < first) {
                return None;
            }
            active.shown_after = None;
        }
        active.waiting_idr = false;
        if active.report.frame_count == 0 && pending.is_start() {
            active.set_first_unit(pending.time.captured_ns);
        }
        active.pending = Some(pending);
        self.start_next_file_if_needed();
        self.advance();
        start
    }

    /// Handles units that are missing in the stream. They are counted, and no unit is written until the next IDR.
    pub(crate) fn handle_gap(&mut self, missed_units: u32) {
        self.count_dropped(u64::from(missed_units));
        self.assembler.handle_gap();
        self.clock.restart();
        if let Some(active) = &mut self.active {
            active.waiting_idr = true;
        }
    }

    /// Handles an empty ring: no further complete unit can be read now. `begun` is true if the camera has begun a unit,
    /// which may even be complete already. A stopping recording then waits for that unit for a short time.
    pub(crate) fn handle_ring_empty(&mut self, now_ns: i64, begun: bool) {
        if let Some(active) = &mut self.active
            && let Phase::Draining { stopped_ns } = active.phase
            && active.pending.is_none()
            && !(begun && now_ns - stopped_ns < limits::DRAIN_BEGUN_NS_MAX)
        {
            active.phase = Phase::Closing;
            self.advance();
        }
    }

    /// Returns the time at which [`Recording::handle_tick`] must be called next, or `None` if no deadline is pending.
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        let active = self.active.as_ref()?;
        let sync = active.file.as_ref().and_then(RecordedFile::sync_deadline);
        let ending = match active.phase {
            Phase::Running => active.ending_deadline().map(|(deadline, _)| deadline),
            Phase::Draining { stopped_ns } => Some(stopped_ns.saturating_add(limits::DRAIN_NS_MAX)),
            Phase::Starting | Phase::Closing => None,
        };
        [sync, ending].into_iter().flatten().min()
    }

    /// Handles the deadlines that have passed.
    pub(crate) fn handle_tick(&mut self, now_ns: i64) {
        let Some(active) = &mut self.active else { return };
        if let Some(file) = &mut active.file
            && file.sync_deadline().is_some_and(|deadline| deadline <= now_ns)
        {
            let lines = file.log.take_lines().map(|lines| Output::AppendLog { file: file.id, lines });
            self.outputs.extend(lines);
            self.outputs.push_back(file.start_sync(now_ns));
        }
        match active.phase {
            Phase::Running => {
                if let Some((_, reason)) =
                    active.ending_deadline().filter(|(deadline, _)| *deadline <= now_ns)
                {
                    active.end(now_ns, reason);
                }
            }
            Phase::Draining { stopped_ns } if now_ns - stopped_ns >= limits::DRAIN_NS_MAX => {
                active.phase = Phase::Closing;
            }
            _ => {}
        }
        self.advance();
    }

    /// Handles the completion of a disk operation.
    pub(crate) fn handle_completion(&mut self, now_ns: i64, file: FileId, completion: Completion) {
        match completion {
            Completion::Created(result) => self.handle_created(now_ns, file, result),
            Completion::Finished(result) => self.handle_finished(result),
            Completion::Synced(result) => self.handle_synced(file, result),
            Completion::Logged(result) => {
                if let Some(file) = self.current_file(file) {
                    file.log.handle_appended(result.is_ok());
                }
            }
            Completion::Allocated(result) => {
                if let Some(file) = self.current_file(file) {
                    file.handle_allocated(result);
                }
            }
            Completion::Truncated(result) => {
                if let Some(file) = self.current_file(file) {
                    file.handle_truncated();
                }
                if let Err(error) = result {
                    self.fail(RecorderError::io("truncating the file", &error));
                }
            }
            Completion::Written { result, intact } => self.handle_written(file, result, intact),
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

    /// Returns the figures of the active recording. Returns `None` if no recording is active or its file is not created
    /// yet.
    pub(crate) fn report(&self, now_ns: i64) -> Option<RecordingReport> {
        let active = self.active.as_ref().filter(|active| active.phase != Phase::Starting)?;
        Some(active.full_report(self.last_start_ns.map(|start_ns| now_ns.saturating_sub(start_ns))))
    }

    /// Returns the result of the last recording. Also returns the error of the active recording, or else the error that
    /// ended the last one.
    pub(crate) fn last(&self) -> (Option<&StopReply>, Option<&RecorderError>) {
        let error = self.active.as_ref().and_then(|active| active.error.as_ref());
        (self.last.as_ref(), error.or(self.last_error.as_ref()))
    }

    /// Returns the progress of a file, or `None` if the file is not being written.
    pub(crate) fn progress(&self, file: FileId) -> Option<Progress> {
        let current = self.active.as_ref()?.file.as_ref()?;
        (current.id == file).then(|| current.progress())
    }

    fn current_file(&mut self, id: FileId) -> Option<&mut RecordedFile> {
        self.active.as_mut()?.file.as_mut().filter(|file| file.id == id)
    }

    fn count_dropped(&mut self, units: u64) {
        let Some(active) = &mut self.active else { return };
        if active.report.frame_count == 0 || units == 0 {
            return; // the recording starts at its first IDR, so units before it do not count as missing
        }
        active.report.dropped_units += units;
        active.report.gaps += u64::from(!active.in_gap);
        active.in_gap = true;
        self.counters.dropped.add_shared(units);
    }

    /// Closes the current file and requests a new one, if the pending unit must be written to a new file.
    fn start_next_file_if_needed(&mut self) {
        let next = self.last_file.wrapping_add(1);
        let Some(active) = &mut self.active else { return };
        let (Some(pending), Some(file)) = (&active.pending, &active.file) else { return };
        if !file.must_end_before(pending) {
            return;
        }
        if !pending.is_start() {
            active.pending = None;
            active.waiting_idr = true;
        }
        if active.number >= limits::RECORDING_FILES_MAX {
            return self.fail(RecorderError::TooManyFiles);
        }
        self.last_file = next;
        close_file(active, &mut self.outputs);
        active.creating = Some(next);
        let (stem, number) = (active.start.stem.clone(), active.number + 1);
        self.outputs.push_back(Output::Create { file: next, stem, number, exact: false });
    }

    /// Queues the next disk operation that the current phase needs, if none is in flight. Ends the recording when all
    /// files are finished.
    fn advance(&mut self) {
        let Some(active) = &mut self.active else { return };
        match active.phase {
            Phase::Starting => {}
            Phase::Running | Phase::Draining { .. } => {
                let (Some(pending), Some(file)) = (&active.pending, &mut active.file) else { return };
                match file.next_operation(pending) {
                    Ok(Some(output)) => self.outputs.push_back(output),
                    Ok(None) => {}
                    Err(error) => {
                        self.fail(error);
                        self.advance();
                    }
                }
            }
            Phase::Closing => {
                if active.file.as_ref().is_some_and(|file| !file.is_idle()) {
                    return;
                }
                active.pending = None;
                close_file(active, &mut self.outputs);
                if active.creating.is_none() && active.finishing == 0 {
                    self.conclude();
                }
            }
        }
    }

    fn handle_created(&mut self, now_ns: i64, file: FileId, result: Result<(String, u32), RecorderError>) {
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
                let start = &active.start;
                let mut created = RecordedFile::new(file, start.stem.format, start.started_at_s, now_ns);
                created.log = DetectionLog::new(name.clone(), start.event_label.as_deref());
                active.file = Some(created);
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

    fn handle_written(&mut self, file: FileId, result: io::Result<u64>, intact: bool) {
        let Some(active) = self.active.as_mut() else { return };
        let Some(file) = active.file.as_mut().filter(|current| current.id == file) else { return };
        let Some(pending) = &active.pending else { return };
        match file.handle_written(pending, result, intact) {
            Ok(WriteOutcome::Partial) => {}
            Ok(WriteOutcome::Complete { bytes }) => {
                active.pending = None;
                active.in_gap = false;
                active.report.frame_count += 1;
                active.report.bytes_written += bytes;
                self.counters.units.add_shared(1);
                self.counters.bytes.add_shared(bytes);
            }
            Ok(WriteOutcome::Torn) => {
                active.pending = None;
                active.report.torn_units += u64::from(active.report.frame_count > 0);
                self.counters.torn.add_shared(1);
                self.assembler.forget_last_unit();
                self.handle_gap(1);
            }
            Err(error) => {
                active.pending = None;
                self.fail(error);
            }
        }
    }

    fn handle_synced(&mut self, file: FileId, result: io::Result<FileFate>) {
        let Some(file) = self.current_file(file) else { return };
        file.handle_sync_done();
        match result {
            Ok(fate) => {
                if let Some(error) = fate.error() {
                    self.fail(error);
                }
            }
            Err(error) => self.fail(RecorderError::io("writing to the disk", &error)),
        }
    }

    fn handle_finished(&mut self, result: Result<(), RecorderError>) {
        let Some(active) = &mut self.active else { return };
        active.finishing -= 1;
        match result {
            Ok(()) => self.counters.finished.add_shared(1),
            Err(error) => self.fail(error),
        }
    }

    /// Ends the recording because of an error. Its files keep the units written so far and are finished.
    fn fail(&mut self, error: RecorderError) {
        let Some(active) = &mut self.active else { return };
        self.counters.disk_errors.add_shared(1);
        // A write may be in flight and still read the pending unit. So only `advance` removes the unit, after that
        // write.
        active.phase = Phase::Closing;
        active.error.get_or_insert(error);
    }

    fn conclude(&mut self) {
        let Some(active) = self.active.take() else { return };
        self.counters.active.store(false, Relaxed);
        let last_start_age_ns = active.ended_at_ns.zip(self.last_start_ns).map(|(end, start)| end - start);
        let mut report = active.full_report(last_start_age_ns);
        report.waiting_for_idr = false;
        let reason = active.error.clone().map_or(active.reason, StopReason::Failed);
        let is_removed = active.error == Some(RecorderError::Removed) && report.files.len() < 2;
        let kept = report.frame_count > 0 && !is_removed;
        let reply = StopReply { report, reason, kept };
        if active.stop_requested {
            let reply = active.error.clone().map_or(Ok(reply.clone()), Err);
            self.outputs.push_back(Output::Stopped(reply));
        }
        if !active.report.files.is_empty() {
            self.last = Some(reply);
        }
        self.last_error = active.error;
    }
}

/// Queues an operation that finishes the current file, or that removes the file if it holds no unit.
fn close_file(active: &mut ActiveRecording, outputs: &mut VecDeque<Output>) {
    let Some(mut closed) = active.file.take() else { return };
    let file = closed.id;
    let lines = std::mem::take(&mut closed.log).into_last_lines();
    outputs.extend(lines.map(|lines| Output::AppendLog { file, lines }));
    active.finishing += 1;
    active.report.duration += closed.duration_s();
    if closed.is_empty() {
        active.report.files.pop();
        outputs.push_back(Output::Discard { file });
    } else {
        let ending = closed.into_ending(active.report.dropped_units);
        active.report.bytes_written += ending.tail.len() as u64;
        outputs.push_back(Output::Finish { file, ending });
    }
}
