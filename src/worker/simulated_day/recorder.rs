//! The recorder of a simulated day: the real state machine, a disk in memory that is slow at times, and a separate
//! cursor, as in `recorder/engine.rs`. The finished files are checked, counted and deleted.

use std::collections::VecDeque;

use bytes::Bytes;

use super::MS;
use super::camera::Ledger;
use crate::camera::{Camera, Cursor, Next, UnitView};
use crate::recorder::RecorderState;
use crate::recorder::names::{Format, Stem};
use crate::recorder::operation::{Completion, FileId, IncomingUnit, Start};
use crate::recorder::tests::harness::{Harness, SECOND, start, unit_number_of};
use support::random::Random;

pub(super) struct SimulatedRecorder {
    camera: Camera,
    cursor: Cursor,
    disk: Harness,
    current: Option<UnitView>,
    /// Operations that the disk has not finished, each with the time at which it will finish.
    busy: VecDeque<(i64, FileId, Completion)>,
    /// Extra time of every disk operation.
    pub(super) slowness_ns: i64,
    recordings: u32,
    /// The last unit read from the ring.
    taken: Option<u32>,
    /// True if the camera restarted while units were unread. The number of lost units is then unknown.
    is_blurred: bool,
    pub(super) totals: Totals,
}

/// Sums over all recordings, read from their files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) recordings: u64,
    pub(super) files: u64,
    pub(super) units: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

impl SimulatedRecorder {
    pub(super) fn new(camera: &Camera) -> SimulatedRecorder {
        SimulatedRecorder {
            camera: camera.clone(),
            cursor: camera.cursor(),
            disk: Harness::new(),
            current: None,
            busy: VecDeque::new(),
            slowness_ns: 0,
            recordings: 0,
            taken: None,
            is_blurred: false,
            totals: Totals::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.disk.recording.state() == RecorderState::Idle
    }

    pub(super) fn start(&mut self, now_ns: i64, random: &mut Random) {
        let format = if random.below(2) == 0 { Format::Mp4 } else { Format::H264 };
        self.recordings += 1;
        self.is_blurred = false;
        self.taken = None;
        let stem = Stem { stem: format!("cat-{}", self.recordings), format };
        self.cursor = self.camera.cursor();
        let start = Start { stem, exact: true, ..start(format) };
        self.disk.recording.handle_start(now_ns, start).unwrap();
    }

    pub(super) fn stop(&mut self, now_ns: i64) {
        // The result is ignored: the call fails only if the recording is already stopping.
        let _ = self.disk.recording.handle_stop(now_ns);
    }

    /// Records that the camera restarts; its next unit will be `next`.
    pub(super) fn note_restart(&mut self, next: u32) {
        self.is_blurred |= self.taken.is_some_and(|taken| taken + 1 < next);
    }

    /// Returns the time at which the recorder has work even if no new unit arrives.
    pub(super) fn next_ns(&self) -> Option<i64> {
        let completed = self.busy.front().map(|(at_ns, ..)| *at_ns);
        [completed, self.disk.recording.next_deadline()].into_iter().flatten().min()
    }

    /// Does all work that is due.
    pub(super) fn work(&mut self, now_ns: i64, ledger: &Ledger) -> Result<(), String> {
        self.disk.now_ns = now_ns;
        while let Some((_, file, completion)) = self.busy.pop_front_if(|(at_ns, ..)| *at_ns <= now_ns) {
            self.complete(now_ns, file, completion);
        }
        if self.disk.recording.next_deadline().is_some_and(|deadline| deadline <= now_ns) {
            self.disk.recording.handle_tick(now_ns);
        }
        loop {
            self.submit(now_ns);
            if !self.disk.recording.can_take_unit() || !self.record_next(now_ns) {
                break;
            }
        }
        self.submit(now_ns);
        self.drain_while_idle(now_ns);
        self.check_stopped(ledger)
    }

    fn submit(&mut self, now_ns: i64) {
        self.disk.execute_outputs();
        while let Some((file, completion)) = self.disk.completions.pop_front() {
            // There is only one disk, so its operations complete in order.
            let after = self.busy.back().map_or(now_ns, |(at_ns, ..)| *at_ns);
            self.busy.push_back((after.max(now_ns) + MS + self.slowness_ns, file, completion));
        }
    }

    fn complete(&mut self, now_ns: i64, file: FileId, completion: Completion) {
        let completion = match completion {
            Completion::Written { result, .. } => {
                let intact = self.current.as_ref().is_none_or(UnitView::is_intact);
                Completion::Written { result, intact }
            }
            other => other,
        };
        self.disk.recording.handle_completion(now_ns, file, completion);
        if !self.disk.recording.has_pending_unit() {
            self.current = None;
        }
    }

    fn record_next(&mut self, now_ns: i64) -> bool {
        match self.cursor.next(now_ns) {
            Next::Unit(view) => {
                let unit = IncomingUnit {
                    bytes: Bytes::clone(&view.bytes),
                    captured_ns: view.captured_monotonic_ns,
                    captured_at_ns: Some(1_700_000_000 * SECOND),
                };
                self.taken = Some(unit_number_of(&view.bytes));
                self.current = Some(view);
                self.disk.recording.push_unit(now_ns, &unit);
                if !self.disk.recording.has_pending_unit() {
                    self.current = None;
                }
            }
            Next::Lapped { missed_units } => self.disk.recording.handle_gap(missed_units),
            Next::Rejected(_) => self.disk.recording.handle_gap(1),
            Next::Restarted => self.disk.recording.handle_gap(0),
            Next::Empty | Next::Away => {
                self.disk.recording.handle_ring_empty(now_ns, self.cursor.begun_slots() > 0);
                return false;
            }
        }
        true
    }

    fn drain_while_idle(&mut self, now_ns: i64) {
        while self.is_idle() {
            match self.cursor.next(now_ns) {
                Next::Unit(view) => {
                    self.disk.recording.remember(now_ns, &view.bytes, view.captured_monotonic_ns);
                }
                Next::Empty | Next::Away => return,
                _ => {}
            }
        }
    }

    /// Checks a finished recording: every file is valid and holds published units, and the counts in the report agree
    /// with the files.
    fn check_stopped(&mut self, ledger: &Ledger) -> Result<(), String> {
        self.disk.started.clear();
        let Some(reply) = self.disk.stopped.pop() else { return Ok(()) };
        let report = reply.map_err(|error| format!("a recording failed: {error}"))?.report;
        let written: Vec<u32> = report.files.iter().flat_map(|name| self.disk.unit_numbers(name)).collect();
        let bytes: u64 = self.disk.files.values().map(|file| file.bytes.len() as u64).sum();
        let span = written.first().zip(written.last()).map_or(0, |(first, last)| last - first + 1);
        let missing = u64::from(span) - written.len() as u64;
        let is_in_order = written.is_sorted_by(|a, b| a < b);
        let is_decodable = is_decodable(&written, ledger);
        let counts = report.frame_count == written.len() as u64 && report.bytes_written == bytes;
        let is_reported = missing <= report.dropped_units || self.is_blurred;
        if !(is_in_order && is_decodable && counts && is_reported && self.busy.is_empty()) {
            return Err(format!(
                "a recording is wrong: {report:?}; its files: {} units, {bytes} bytes, {missing} missing; in order \
                 {is_in_order}, decodable {is_decodable}",
                written.len(),
            ));
        }
        if self.disk.files.values().any(|file| !file.finished || file.reserved != 0) {
            return Err("a file is unfinished or keeps its preallocated space".to_owned());
        }
        self.totals.recordings += 1;
        self.totals.files += self.disk.files.len() as u64;
        self.totals.units += report.frame_count;
        self.totals.bytes += bytes;
        self.totals.dropped += report.dropped_units;
        self.disk.files.clear();
        self.disk.removed.clear();
        self.disk.existing_names.clear();
        Ok(())
    }
}

/// Returns true if every unit is an IDR or follows the unit that it refers to.
fn is_decodable(written: &[u32], ledger: &Ledger) -> bool {
    let mut reference = None;
    written.iter().all(|number| {
        // A unit that is no longer in the ledger cannot be checked.
        let Some(unit) = ledger.get(*number) else { return true };
        let is_fine = unit.is_idr || reference.is_none() || reference == Some(unit.refers_to);
        if unit.is_reference {
            reference = Some(*number);
        }
        is_fine
    })
}
