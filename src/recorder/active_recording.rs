//! PURE: the recording that is active, as `recording.rs` keeps it.

use super::operation::{FileId, Start};
use super::pending_unit::PendingUnit;
use super::recorded_file::RecordedFile;
use super::types::{RecorderError, RecordingReport, StopReason};

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Running,
    /// Units that the camera published before the stop are still written.
    Draining {
        stopped_ns: i64,
    },
    Closing,
}

/// A recording from its start request to the end of its last file.
pub(super) struct ActiveRecording {
    pub(super) phase: Phase,
    pub(super) start: Start,
    pub(super) started_ns: i64,
    pub(super) heartbeat_at_ns: i64,
    pub(super) file: Option<RecordedFile>,
    pub(super) creating: Option<FileId>,
    /// Number in the name of the current file, from 1.
    pub(super) number: u32,
    pub(super) pending: Option<PendingUnit>,
    /// True until the next IDR or recovery point arrives. Other units are dropped until then, because they cannot be
    /// decoded.
    pub(super) waiting_idr: bool,
    /// Order of the recovery point with which writing started. Units that are shown before it refer to older pictures,
    /// so they are dropped. `None` after the first unit that is shown later.
    pub(super) shown_after: Option<i64>,
    /// True if the previous unit was dropped, so that a further dropped unit belongs to the same gap.
    pub(super) in_gap: bool,
    /// Number of files that the disk is finishing.
    pub(super) finishing: usize,
    /// Figures of this recording. The duration does not include the current file.
    pub(super) report: RecordingReport,
    pub(super) reason: StopReason,
    pub(super) error: Option<RecorderError>,
    /// True if the recording stops with its event. False if a request started it, or has taken it over.
    pub(super) stops_with_event: bool,
    /// True if a stop request waits for its reply.
    pub(super) stop_requested: bool,
    /// Time of the stop. `None` while the recording runs, and if an error ended it.
    pub(super) ended_at_ns: Option<i64>,
}

impl ActiveRecording {
    /// Stores how long before or after the start request the first unit was captured.
    pub(super) fn set_first_unit(&mut self, captured_ns: i64) {
        let after_request = captured_ns.saturating_sub(self.started_ns) as f64 / 1e9;
        self.report.pre_roll = (-after_request).max(0.0);
        self.report.start_delay = after_request.max(0.0);
    }

    /// Ends the recording at `now_ns`. Units captured later are not recorded.
    pub(super) fn end(&mut self, now_ns: i64, reason: StopReason) {
        self.ended_at_ns.get_or_insert(now_ns);
        match self.phase {
            Phase::Starting => self.phase = Phase::Closing,
            Phase::Running => self.phase = Phase::Draining { stopped_ns: now_ns },
            Phase::Draining { .. } | Phase::Closing => return,
        }
        self.reason = reason;
    }

    pub(super) fn ending_deadline(&self) -> Option<(i64, StopReason)> {
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

    pub(super) fn full_report(&self, last_start_age_ns: Option<i64>) -> RecordingReport {
        let mut report = self.report.clone();
        report.waiting_for_idr = report.frame_count == 0;
        report.last_idr_age = last_start_age_ns.map(|ns| ns.max(0) as f64 / 1e9);
        report.duration += self.file.as_ref().map_or(0.0, RecordedFile::duration_s);
        report
    }
}
