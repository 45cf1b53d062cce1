//! From the cursor to payloads: what a worker does with an access unit before it knows any viewer.
//! May not touch a session.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Now;
use crate::camera::{Camera, Cursor, Next, UnitView};
use crate::h264::{Assembler, Packetizer, Payloads, UnitError};
use crate::metrics::WorkerCounters;
use crate::session::PacketizedUnit;
use crate::worker::gop::Gop;
use crate::worker::gop_backfill::{GopBackfill, Live};
use crate::worker::replay::NewestUnit;
use crate::worker::rtp_clock::RtpClock;
use crate::worker::timing::TimedUnit;

/// What a look at the ring gave.
pub(super) enum Polled {
    /// A unit lies packetised in the source.
    Unit,
    /// Something else happened (lapped, refused, restarted); look again.
    Again,
    /// Nothing new.
    Empty,
}

/// One worker's own cursor and what it makes of the units.
pub(super) struct Source {
    cursor: Cursor,
    assembler: Assembler,
    packetizer: Packetizer,
    clock: RtpClock,
    payloads: Vec<Arc<Payloads>>,
    unit: Unit,
    /// Units were lost since the last one that was handed on.
    gap: bool,
    last_captured_ns: Option<i64>,
    backfill: GopBackfill,
    /// The unit the cursor reads next.
    position: u32,
    latest: Option<NewestUnit>,
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
            assembler: Assembler::new(),
            packetizer: Packetizer::for_rtp(),
            clock: RtpClock::default(),
            payloads: Vec::new(),
            unit: Unit::default(),
            gap: false,
            last_captured_ns: None,
            backfill: GopBackfill::new(camera),
            position: 0,
            latest: None,
        }
    }

    /// Takes the next unit from the ring. `wanted`: somebody watches; without it the unit is only looked at
    /// (parameter sets are kept, nothing is copied).
    pub(super) fn take(&mut self, now: Now, wanted: bool, counters: &WorkerCounters) -> Polled {
        let next = self.cursor.next(now.monotonic_ns);
        counters.lag_slots.set(u64::from(self.cursor.lag_slots()));
        match next {
            Next::Unit(view) => self.packetize(&view, now, wanted, counters),
            Next::Lapped { missed_units } => {
                counters.lapped.add(u64::from(missed_units));
                self.lose()
            }
            Next::Rejected(_) => {
                counters.rejected.add(1);
                self.lose()
            }
            Next::Restarted => {
                counters.restarts.add(1);
                self.lose()
            }
            Next::Empty | Next::Away => Polled::Empty,
        }
    }

    fn lose(&mut self) -> Polled {
        self.gap = true;
        self.backfill.lose();
        Polled::Again
    }

    fn packetize(&mut self, view: &UnitView, now: Now, wanted: bool, counters: &WorkerCounters) -> Polled {
        counters.units_read.add(1);
        counters.last_unit_at_ns.set(now.monotonic_ns.unsigned_abs());
        self.position = view.sequence.wrapping_add(1);
        self.payloads.clear();
        let unit = match self.assembler.assemble(&view.bytes) {
            Ok(unit) => unit,
            Err(error) => {
                if !view.is_intact() {
                    counters.torn.add(1);
                    self.assembler.forget_last_unit();
                    return self.lose();
                }
                count_refused(&error, counters);
                // Parameter sets alone are no picture: nothing was lost.
                return if matches!(error, UnitError::NoSlice) { Polled::Again } else { self.lose() };
            }
        };
        if wanted {
            self.packetizer.packetize(&unit, &mut self.payloads);
        }
        let (is_idr, is_reference) = (unit.is_idr(), unit.is_reference());
        if !view.is_intact() {
            counters.torn.add(1);
            self.assembler.forget_last_unit();
            self.payloads.clear();
            return self.lose();
        }
        counters.units_processed.add(1);
        counters.payload_allocations.set_total(self.packetizer.allocations());
        self.note_stream(view, counters);
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
        self.latest = Some(NewestUnit { number: view.sequence, rtp_time_90k, at: now.instant });
        let live = Live { cursor: &self.cursor, position: self.position, now_ns: now.monotonic_ns };
        self.backfill.keep_up(live, counters);
        Polled::Unit
    }

    /// The newest GOP from its IDR up to the newest unit taken; `None` where it cannot be given.
    pub(super) fn gop_so_far(&mut self, now_ns: i64, counters: &WorkerCounters) -> Option<&Gop> {
        let live = Live { cursor: &self.cursor, position: self.position, now_ns };
        self.backfill.fetch(live, counters)
    }

    /// The newest unit taken; before the first, one that would be taken now.
    pub(super) fn latest(&self, now: Now) -> NewestUnit {
        self.latest.unwrap_or(NewestUnit { number: 0, rtp_time_90k: 0, at: now.instant })
    }

    /// Time until the camera's next IDR, as far as the last GOP tells.
    pub(super) fn next_idr_in(&self, counters: &WorkerCounters) -> Option<Duration> {
        let units = self.backfill.gop().units_to_idr(self.latest?.number)?;
        Some(Duration::from_nanos(counters.unit_interval_ns.get()) * units)
    }

    fn note_stream(&mut self, view: &UnitView, counters: &WorkerCounters) {
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

    /// The unit that [`Source::take`] left.
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

    /// The same unit as its timing knows it.
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
