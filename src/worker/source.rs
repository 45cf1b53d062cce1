//! From the cursor to RTP payloads: everything a worker does with an access unit that is the same for all viewers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Now;
use crate::camera::{Camera, Cursor, Next, UnitView};
use crate::h264::{Assembler, Packetizer, Payloads, UnitError};
use crate::metrics::WorkerCounters;
use crate::session::PacketizedUnit;
use crate::worker::gop::{Gop, UnitInfo};
use crate::worker::gop_backfill::{GopBackfill, Live};
use crate::worker::rtp_clock::RtpClock;
use crate::worker::timing::TimedUnit;

/// Result of [`Source::poll_unit`].
pub(super) enum Polled {
    /// A new unit: see [`Source::unit`].
    Unit,
    /// A slot without a usable unit (lapped, rejected, restarted). Poll again.
    Again,
    /// No new slot.
    Empty,
}

/// The newest live unit. The units of a catch-up get RTP times just before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewestUnit {
    /// Sequence number in the ring, wrapping.
    pub(super) number: u32,
    pub(super) rtp_time_90k: u64,
    /// When the worker took it.
    pub(super) at: Instant,
}

/// One worker's cursor and the current unit.
pub(super) struct Source {
    cursor: Cursor,
    assembler: Assembler,
    packetizer: Packetizer,
    clock: RtpClock,
    payloads: Vec<Arc<Payloads>>,
    unit: Unit,
    /// Units were lost since the last one that was passed on.
    gap: bool,
    last_captured_ns: Option<i64>,
    backfill: GopBackfill,
    /// Sequence number that the cursor reads next.
    position: u32,
    newest: Option<NewestUnit>,
}

#[derive(Default)]
struct Unit {
    is_idr: bool,
    is_reference: bool,
    rtp_time_90k: u64,
    captured_at_ns: Option<i64>,
    gap_before: bool,
    timed: TimedUnit,
}

impl Source {
    pub(super) fn new(camera: Camera) -> Self {
        Source {
            cursor: camera.cursor(),
            assembler: Assembler::default(),
            packetizer: Packetizer::for_rtp(),
            clock: RtpClock::default(),
            payloads: Vec::new(),
            unit: Unit::default(),
            gap: false,
            last_captured_ns: None,
            backfill: GopBackfill::new(camera),
            position: 0,
            newest: None,
        }
    }

    /// Reads the next unit from the ring. Without viewers it is packetised only where the backfill keeps it; its
    /// parameter sets are always kept.
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
                count_refused(&error, counters);
                // Parameter sets alone are no picture: nothing was lost.
                return if matches!(error, UnitError::NoSlice) { Polled::Again } else { self.handle_loss() };
            }
        };
        if has_viewers || self.backfill.keeps_at_once(self.position) {
            self.packetizer.packetize(&unit, &mut self.payloads);
        }
        let (is_idr, is_reference) = (unit.is_idr(), unit.is_reference());
        if !view.is_intact() {
            self.payloads.clear();
            return self.handle_torn(counters);
        }
        counters.units_processed.add(1);
        counters.payload_allocations.set_total(self.packetizer.allocations());
        self.update_stream_counters(view, counters);
        if is_idr {
            self.backfill.begin(view.sequence, &self.assembler);
        }
        self.unit = Unit {
            is_idr,
            is_reference,
            rtp_time_90k: self.clock.rtp_time_90k(view.captured_monotonic_ns),
            captured_at_ns: view.captured_at_ns,
            gap_before: std::mem::take(&mut self.gap),
            timed: TimedUnit {
                number: view.sequence,
                captured_ns: view.captured_at_ns.map(|_| view.captured_monotonic_ns),
            },
        };
        let rtp_time_90k = self.unit.rtp_time_90k;
        self.newest = Some(NewestUnit { number: view.sequence, rtp_time_90k, at: now.instant });
        let info =
            UnitInfo { number: view.sequence, is_idr, is_reference, captured_at_ns: view.captured_at_ns };
        let live = Live { cursor: &self.cursor, position: self.position, now_ns: now.monotonic_ns };
        self.backfill.keep_up(live, info, &self.payloads, counters);
        Polled::Unit
    }

    /// The camera overwrote the unit while it was read.
    fn handle_torn(&mut self, counters: &WorkerCounters) -> Polled {
        counters.torn.add(1);
        self.assembler.forget_last_unit();
        self.handle_loss()
    }

    /// Returns the current GOP from its IDR up to the newest unit; `None` when a part of it is missing.
    pub(super) fn current_gop(&mut self, now_ns: i64, counters: &WorkerCounters) -> Option<&Gop> {
        let live = Live { cursor: &self.cursor, position: self.position, now_ns };
        self.backfill.fetch(live, counters)
    }

    /// Returns the newest unit. Before the first one, returns unit 0 at `now`.
    pub(super) fn newest(&self, now: Now) -> NewestUnit {
        self.newest.unwrap_or(NewestUnit { number: 0, rtp_time_90k: 0, at: now.instant })
    }

    /// Returns the time until the camera's next IDR, assuming a GOP as long as the last one.
    pub(super) fn next_idr_in(&self, counters: &WorkerCounters) -> Option<Duration> {
        let units = self.backfill.gop().units_to_idr(self.newest?.number)?;
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
        PacketizedUnit {
            payloads: &self.payloads,
            is_idr: self.unit.is_idr,
            is_reference: self.unit.is_reference,
            rtp_time_90k: self.unit.rtp_time_90k,
            captured_at_ns: self.unit.captured_at_ns,
            gap_before: self.unit.gap_before,
        }
    }

    /// Returns the same unit for timing.
    pub(super) fn timed(&self) -> TimedUnit {
        self.unit.timed
    }
}

fn count_refused(error: &UnitError, counters: &WorkerCounters) {
    match error {
        UnitError::MissingParameterSets { .. } => counters.missing_parameter_sets.add(1),
        _ => counters.malformed_units.add(1),
    }
}
