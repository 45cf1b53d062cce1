//! Reads access units from the cursor and turns them into RTP payloads. This is all the work on a unit that is the same
//! for all viewers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::base::clock::Now;
use crate::base::limits;
use crate::camera::{Camera, CaptureTimeline, Cursor, Next, UnitView};
use crate::h264::{Assembler, BFrameDetector, Packetizer, Payloads, SlotFaultDetector, UnitError};
use crate::metrics::WorkerCounters;
use crate::session::{PacketizedUnit, UnitInfo};
use crate::worker::gop::{Gop, GopBackfill, Live};
use crate::worker::timing::TimedUnit;

/// Smallest step of the RTP time: one tick, so that the time increases even if the timeline does not advance.
const STEP_90K_MIN: u64 = 1;

/// What is logged when B-frames are found in the stream.
const B_FRAMES_FOUND: &str = "the camera sends B-frames. Turn B-frames off: browsers over WebRTC do not reorder \
                              pictures, so the picture stutters or freezes. Recordings are not affected.";

/// True once a worker has logged [`B_FRAMES_FOUND`].
static B_FRAMES_LOGGED: AtomicBool = AtomicBool::new(false);

/// True once a worker has logged a [`SlotFault`](crate::h264::SlotFault).
static SLOT_FAULT_LOGGED: AtomicBool = AtomicBool::new(false);

/// Result of [`Source::poll_unit`].
pub(super) enum Polled {
    /// A new unit, which [`Source::unit`] returns, with its number and capture time.
    Unit(TimedUnit),
    /// A slot without a usable unit (lapped, rejected, restarted). The caller must poll again.
    Again,
    /// There is no new slot.
    Empty,
}

/// One worker's cursor and the current unit.
pub(super) struct Source {
    cursor: Cursor,
    assembler: Assembler,
    packetizer: Packetizer,
    /// The unit of the last [`Polled::Unit`]. The fields below hold its payloads and the time when the worker took it.
    unit: UnitInfo,
    payloads: Vec<Arc<Payloads>>,
    taken_at: Option<Instant>,
    /// True if units were lost after the last unit that was passed on.
    gap: bool,
    timeline: CaptureTimeline,
    /// True after the first unit was read or the ring was searched.
    knows_interval: bool,
    backfill: GopBackfill,
    b_frames: BFrameDetector,
    slot_faults: SlotFaultDetector,
}

impl Source {
    pub(super) fn new(camera: Camera) -> Self {
        Source {
            cursor: camera.cursor(),
            assembler: Assembler::default(),
            packetizer: Packetizer::for_rtp(),
            unit: UnitInfo::default(),
            payloads: Vec::new(),
            taken_at: None,
            gap: false,
            timeline: CaptureTimeline::default(),
            knows_interval: false,
            backfill: GopBackfill::new(camera),
            b_frames: BFrameDetector::default(),
            slot_faults: SlotFaultDetector::default(),
        }
    }

    /// Reads the next unit from the ring. If there are no viewers, the unit is packetised only if the backfill keeps it
    /// at once. Its parameter sets are always kept. If the ring may hold an IDR that was not read, it is searched now,
    /// even if there is no new unit: later the ring may have lost that IDR.
    pub(super) fn poll_unit(&mut self, now: Now, has_viewers: bool, counters: &WorkerCounters) -> Polled {
        let next = self.cursor.next(now.monotonic_ns);
        counters.lag_slots.set(u64::from(self.cursor.lag_slots()));
        match next {
            Next::Unit(view) => self.packetize(&view, now, has_viewers, counters),
            Next::Lapped { missed_units } => {
                counters.lapped.add(u64::from(missed_units));
                self.handle_loss()
            }
            Next::Rejected(_) => {
                counters.rejected.add(1);
                self.handle_loss()
            }
            Next::Restarted => {
                counters.restarts.add(1);
                counters.b_frames.set(0);
                counters.slot_fault.set(0);
                (self.b_frames, self.slot_faults) = Default::default();
                self.handle_loss()
            }
            Next::Empty | Next::Away => {
                if self.backfill.is_search_due() {
                    self.search(now.monotonic_ns, counters);
                    self.keep_up(now, counters);
                }
                Polled::Empty
            }
        }
    }

    /// Searches the ring for an IDR that was not read, and learns the interval from the units before the first one that
    /// is read.
    fn search(&mut self, now_ns: i64, counters: &WorkerCounters) {
        if !std::mem::replace(&mut self.knows_interval, true) {
            self.learn_interval(now_ns);
        }
        let live = Live { cursor: &self.cursor, now_ns };
        if let Some(captured_ns) = self.backfill.search(live, &mut self.assembler) {
            counters.last_idr_at_ns.set(captured_ns.unsigned_abs());
        }
        self.publish_interval(counters);
    }

    fn learn_interval(&mut self, now_ns: i64) {
        let mut later_ns = None;
        for back in 1..=limits::INTERVAL_UNITS_SEARCHED {
            match self.cursor.units_back(back).map(|mut cursor| cursor.next(now_ns)) {
                Some(Next::Unit(UnitView { captured_monotonic_ns: captured_ns, .. })) => {
                    let step_ns = later_ns.replace(captured_ns).map(|later_ns: i64| later_ns - captured_ns);
                    step_ns.into_iter().for_each(|step_ns| self.timeline.learn_interval(step_ns));
                }
                // The newest unit may be incomplete.
                Some(Next::Empty) => {}
                _ => return,
            }
        }
    }

    fn keep_up(&mut self, now: Now, counters: &WorkerCounters) {
        let live = Live { cursor: &self.cursor, now_ns: now.monotonic_ns };
        let newest = PacketizedUnit { info: self.unit, payloads: &self.payloads };
        self.backfill.keep_up(live, Some(&newest), counters);
    }

    fn handle_loss(&mut self) -> Polled {
        self.gap = true;
        self.assembler.handle_gap();
        self.backfill.handle_loss();
        Polled::Again
    }

    fn packetize(
        &mut self,
        view: &UnitView,
        now: Now,
        has_viewers: bool,
        counters: &WorkerCounters,
    ) -> Polled {
        counters.units_read.add(1);
        counters.unit_bytes.add(view.bytes.len() as u64);
        counters.last_unit_at_ns.set(now.monotonic_ns.unsigned_abs());
        self.payloads.clear();
        let unit = match self.assembler.assemble(&view.bytes) {
            Ok(unit) => unit,
            Err(error) => {
                if !view.is_intact() {
                    return self.handle_torn(counters);
                }
                counters.filler_bytes.set_total(self.assembler.filler_bytes());
                count_refused(&error, counters);
                return if error.loses_picture() { self.handle_loss() } else { Polled::Again };
            }
        };
        if has_viewers || self.backfill.keeps_at_once(self.cursor.position()) {
            self.packetizer.packetize(&unit, &mut self.payloads);
        }
        if self.b_frames.find(&unit) {
            counters.b_frames.set(1);
            if !B_FRAMES_LOGGED.swap(true, Relaxed) {
                log::warn!("{B_FRAMES_FOUND}");
            }
        }
        if let Some(fault) = self.slot_faults.find(&unit, || view.is_intact()) {
            counters.slot_fault.set(fault as u64);
            if !SLOT_FAULT_LOGGED.swap(true, Relaxed) {
                log::warn!("{}", fault.text());
            }
        }
        let mut timeline = self.timeline;
        timeline.advance(view.captured_monotonic_ns, now.monotonic_ns);
        let info = UnitInfo {
            number: view.sequence,
            is_idr: unit.is_idr(),
            is_recovery_point: unit.recovery_point().is_some(),
            is_reference: unit.is_reference(),
            gap_before: self.gap,
            rtp_time_90k: self.rtp_time_90k(&timeline),
            captured_at_ns: view.captured_at_ns,
            realtime_offset_ns: Some(view.realtime_offset_ns),
        };
        if !view.is_intact() {
            self.payloads.clear();
            return self.handle_torn(counters);
        }
        self.unit = info;
        self.timeline = timeline;
        self.knows_interval = true;
        self.gap = false;
        self.taken_at = Some(now.instant);
        counters.units_processed.add(1);
        counters.payload_allocations.set_total(self.packetizer.allocations());
        counters.filler_bytes.set_total(self.assembler.filler_bytes());
        self.update_stream_counters(view, counters);
        if info.is_idr || (info.is_recovery_point && self.backfill.needs_recovery_point()) {
            self.backfill.begin(view.sequence, &self.assembler, info.is_recovery_point);
        }
        if info.is_idr {
            counters.last_idr_at_ns.set(view.captured_monotonic_ns.unsigned_abs());
        }
        if self.backfill.is_search_due() {
            self.search(now.monotonic_ns, counters);
        }
        self.keep_up(now, counters);
        let captured_ns = view.captured_at_ns.map(|_| view.captured_monotonic_ns);
        Polled::Unit(TimedUnit { number: view.sequence, captured_ns })
    }

    /// Counts a unit as torn and as lost, because the camera overwrote it while the worker read it.
    fn handle_torn(&mut self, counters: &WorkerCounters) -> Polled {
        counters.torn.add(1);
        self.assembler.forget_last_unit();
        self.handle_loss()
    }

    /// Returns the current GOP from its IDR up to the newest unit, or `None` if a part of the GOP is missing.
    pub(super) fn current_gop(&mut self, now_ns: i64, counters: &WorkerCounters) -> Option<&Gop> {
        if self.backfill.is_search_due() {
            self.search(now_ns, counters);
        }
        self.backfill.fetch(Live { cursor: &self.cursor, now_ns }, counters)
    }

    /// Returns the newest unit and when the worker took it. Before the first unit, returns the unit before the cursor at
    /// `now`, so that what is replayed then comes just before the first live unit.
    pub(super) fn newest(&self, now: Now) -> (UnitInfo, Instant) {
        let Some(taken_at) = self.taken_at else {
            let number = self.cursor.position().wrapping_sub(1);
            let rtp_time_90k = ticks(now.monotonic_ns);
            return (UnitInfo { number, rtp_time_90k, ..UnitInfo::default() }, now.instant);
        };
        (self.unit, taken_at)
    }

    /// Returns the time until the camera's next IDR, assuming a GOP as long as the last one.
    pub(super) fn next_idr_in(&self, counters: &WorkerCounters) -> Option<Duration> {
        let units = self.backfill.gop.units_to_idr(self.unit.number)?;
        Some(Duration::from_nanos(counters.unit_interval_ns.get()) * units)
    }

    fn update_stream_counters(&mut self, view: &UnitView, counters: &WorkerCounters) {
        let info = self.assembler.parameter_sets().stream_info();
        let (width, height) = info.map_or((view.width, view.height), |info| (info.width, info.height));
        let profile_level_id = info.map_or([0; 3], |info| info.profile_level_id);
        let [profile, constraints, level] = profile_level_id;
        counters.profile_level_id.set(u32::from_be_bytes([0, profile, constraints, level]).into());
        counters.width.set(u64::from(width));
        counters.height.set(u64::from(height));
        if let Some(captured_at_ns) = self.unit.captured_at_ns {
            counters.rtp_times.put(view.sequence, captured_at_ns, low32(self.unit.rtp_time_90k));
        }
        self.publish_interval(counters);
    }

    fn publish_interval(&self, counters: &WorkerCounters) {
        let interval = self.timeline.interval();
        counters.unit_interval_ns.set(interval.mean_ns().unsigned_abs());
        counters.stalled_after_ns.set(interval.stalled_after_ns().unsigned_abs());
    }

    /// Returns the RTP time (90 kHz, RFC 6184) of the latest unit of the timeline: its capture time on CLOCK_MONOTONIC,
    /// so that all workers agree. The sessions add the random offset of this process. RTP times always increase: a unit
    /// that does not advance the timeline is one tick after the unit before.
    fn rtp_time_90k(&self, timeline: &CaptureTimeline) -> u64 {
        let earliest = if self.taken_at.is_some() { self.unit.rtp_time_90k + STEP_90K_MIN } else { 0 };
        ticks(timeline.position_ns()).max(earliest)
    }

    /// Returns the unit of the last [`Polled::Unit`].
    pub(super) fn unit(&self) -> PacketizedUnit<'_> {
        PacketizedUnit { info: self.unit, payloads: &self.payloads }
    }
}

fn count_refused(error: &UnitError, counters: &WorkerCounters) {
    match error {
        UnitError::NoSlice => {}
        UnitError::MissingParameterSets { .. } => counters.missing_parameter_sets.add(1),
        _ => counters.malformed_units.add(1),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "RTP times have 32 bits")]
fn low32(rtp_time_90k: u64) -> u32 {
    rtp_time_90k as u32
}

/// Converts nanoseconds to 90 kHz ticks, rounded. The error of a difference between two results does not grow with
/// time.
fn ticks(ns: i64) -> u64 {
    let ns = u128::from(ns.max(0).unsigned_abs());
    u64::try_from((ns * 9 + 50_000) / 100_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
