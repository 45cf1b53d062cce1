//! Reads access units from the cursor and turns them into RTP payloads. This is all the work on a unit that is the same
//! for all viewers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::base::clock::Now;
use crate::camera::{Camera, Cursor, Next, UnitView};
use crate::h264::{Assembler, BFrameDetector, Packetizer, Payloads, UnitError};
use crate::metrics::WorkerCounters;
use crate::session::{PacketizedUnit, UnitInfo};
use crate::worker::gop::{Gop, GopBackfill, Live};
use crate::worker::timing::TimedUnit;

/// Largest step of the capture time that is believed. After a larger step the clock was set or the timestamp is wrong,
/// so the RTP time advances by one tick.
const STEP_NS_MAX: i64 = 3_600 * 1_000_000_000; // local bound

/// RTP time step of a unit whose timestamp is not usable: one tick, so that the time still increases.
const STEP_90K_MIN: u64 = 1;

/// What is logged when B-frames are found in the stream.
const B_FRAMES_FOUND: &str = "the camera sends B-frames. Turn B-frames off: browsers over WebRTC do not reorder \
                              pictures, so the picture stutters or freezes. Recordings are not affected.";

/// True once a worker has logged [`B_FRAMES_FOUND`].
static B_FRAMES_LOGGED: AtomicBool = AtomicBool::new(false);

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
    last_captured_ns: Option<i64>,
    backfill: GopBackfill,
    b_frames: BFrameDetector,
    /// Sequence number that the cursor reads next.
    position: u32,
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
            last_captured_ns: None,
            backfill: GopBackfill::new(camera),
            b_frames: BFrameDetector::default(),
            position: 0,
        }
    }

    /// Reads the next unit from the ring. If there are no viewers, the unit is packetised only if the backfill keeps it
    /// at once. Its parameter sets are always kept.
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
                self.b_frames = BFrameDetector::default();
                self.handle_loss()
            }
            Next::Empty | Next::Away => Polled::Empty,
        }
    }

    fn handle_loss(&mut self) -> Polled {
        self.gap = true;
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
        counters.last_unit_at_ns.set(now.monotonic_ns.unsigned_abs());
        self.position = view.sequence.wrapping_add(1);
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
        if has_viewers || self.backfill.keeps_at_once(self.position) {
            self.packetizer.packetize(&unit, &mut self.payloads);
        }
        if self.b_frames.find(&unit) {
            counters.b_frames.set(1);
            if !B_FRAMES_LOGGED.swap(true, Relaxed) {
                log::warn!("{B_FRAMES_FOUND}");
            }
        }
        let last = self.last_captured_ns.map(|last_ns| (last_ns, self.unit.rtp_time_90k));
        let info = UnitInfo {
            number: view.sequence,
            is_idr: unit.is_idr(),
            is_reference: unit.is_reference(),
            gap_before: self.gap,
            rtp_time_90k: rtp_time_90k(view.captured_monotonic_ns, last),
            captured_at_ns: view.captured_at_ns,
        };
        if !view.is_intact() {
            self.payloads.clear();
            return self.handle_torn(counters);
        }
        self.unit = info;
        self.gap = false;
        self.taken_at = Some(now.instant);
        counters.units_processed.add(1);
        counters.payload_allocations.set_total(self.packetizer.allocations());
        counters.filler_bytes.set_total(self.assembler.filler_bytes());
        self.update_stream_counters(view, counters);
        if info.is_idr {
            self.backfill.begin(view.sequence, &self.assembler);
        }
        let live = Live { cursor: &self.cursor, position: self.position, now_ns: now.monotonic_ns };
        let newest = PacketizedUnit { info, payloads: &self.payloads };
        self.backfill.keep_up(live, Some(&newest), counters);
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
        let live = Live { cursor: &self.cursor, position: self.position, now_ns };
        self.backfill.fetch(live, counters)
    }

    /// Returns the newest unit and when the worker took it. Before the first unit, returns unit 0 at `now`.
    pub(super) fn newest(&self, now: Now) -> (UnitInfo, Instant) {
        (self.unit, self.taken_at.unwrap_or(now.instant))
    }

    /// Returns the time until the camera's next IDR, assuming a GOP as long as the last one.
    pub(super) fn next_idr_in(&self, counters: &WorkerCounters) -> Option<Duration> {
        let units = self.backfill.gop.units_to_idr(self.unit.number)?;
        Some(Duration::from_nanos(counters.unit_interval_ns.get()) * units)
    }

    fn update_stream_counters(&mut self, view: &UnitView, counters: &WorkerCounters) {
        let (width, height) = self
            .assembler
            .parameter_sets()
            .stream_info()
            .map_or((view.width, view.height), |info| (info.width, info.height));
        counters.width.set(u64::from(width));
        counters.height.set(u64::from(height));
        let last = self.last_captured_ns.replace(view.captured_monotonic_ns);
        if let Some(last) = last {
            let step =
                view.captured_monotonic_ns.saturating_sub(last).clamp(0, 10_000_000_000).unsigned_abs();
            let smooth = counters.unit_interval_ns.get();
            counters.unit_interval_ns.set(if smooth == 0 { step } else { smooth - smooth / 8 + step / 8 });
        }
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

/// Returns the RTP time (90 kHz, RFC 6184) of a unit captured at `captured_ns` on CLOCK_MONOTONIC. `last` holds the
/// capture time and the RTP time of the unit before. The first RTP time is 0; each session adds its own offset. RTP
/// times always increase, even if the camera's clock does not. After a backward or too large step the RTP time advances
/// by one tick, and the new timestamp becomes the reference for the next step.
fn rtp_time_90k(captured_ns: i64, last: Option<(i64, u64)>) -> u64 {
    let Some((last_ns, last_90k)) = last else { return 0 };
    let is_usable = (0..=STEP_NS_MAX).contains(&captured_ns.saturating_sub(last_ns));
    let step = if is_usable { ticks(captured_ns).saturating_sub(ticks(last_ns)) } else { 0 };
    last_90k + step.max(STEP_90K_MIN)
}

/// Converts nanoseconds to 90 kHz ticks, rounded. The error of a difference between two results does not grow with
/// time.
fn ticks(ns: i64) -> u64 {
    let ns = u128::from(ns.max(0).unsigned_abs());
    u64::try_from((ns * 9 + 50_000) / 100_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the RTP times of units captured at these times.
    fn rtp_times(captured: impl IntoIterator<Item = i64>) -> Vec<u64> {
        let mut last = None;
        let times = captured.into_iter().map(|captured_ns| {
            let time = rtp_time_90k(captured_ns, last);
            last = Some((captured_ns, time));
            time
        });
        times.collect()
    }

    #[test]
    fn hour_at_30_units_per_second_does_not_drift() {
        let times = rtp_times((0..108_000).map(|unit| 1_000_000_000 + unit * 1_000_000_000 / 30));
        assert_eq!(times.last(), Some(&(107_999 * 3_000)));
    }

    #[test]
    fn time_increases_for_any_sequence_of_timestamps() {
        let times = rtp_times([5_000_000_000, 4_000_000_000, 0, -7, i64::MAX, i64::MIN, 1, 1, 33_333_334]);
        for pair in times.windows(2) {
            assert!((1..=3_600 * 90_000).contains(&(pair[1] - pair[0])), "{times:?}");
        }
        assert!(times.is_sorted());
    }

    #[test]
    fn capture_gap_becomes_an_rtp_time_gap() {
        assert_eq!(rtp_times([1_000_000_000, 11_000_000_000]), [0, 900_000]);
    }
}
