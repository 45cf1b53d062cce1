//! Keeps the current GOP, as RTP payloads, for viewers that join. Only the units that the ring is about to lose are
//! kept; the others are read from the ring when a viewer needs them. While the ring holds the whole GOP, nothing is
//! kept.
//!
//! ```text
//!   IDR ──────────────────────────────► newest unit
//!   [ kept here, packetised ][ still safe in the ring ]
//!                            ▲ next()
//! ```
//!
//! If the GOP is longer than the ring, every unit is kept at once, and the live payloads are shared instead of made
//! again. Only units that were not kept at once are assembled and packetised a second time.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::base::limits;
use crate::camera::{Camera, CameraStatus, Cursor, Next, UnitView};
use crate::h264::nal::kind;
use crate::h264::{self, Assembler, Packetizer, Payloads};
use crate::metrics::WorkerCounters;
use crate::session::{GopSize, PacketizedUnit, UnitInfo};

/// The kept GOP, and a second reader of the ring. The reader has its own packetiser, because the buffers that it keeps
/// would otherwise empty the pool of the live packetiser.
pub(super) struct GopBackfill {
    camera: Camera,
    /// The GOP as far as it is kept now.
    pub(super) gop: Gop,
    assembler: Assembler,
    packetizer: Packetizer,
    payloads: Vec<Arc<Payloads>>,
    /// Number of slots of the ring when the GOP began; 0 if no ring was attached.
    slots: u32,
    /// True if the ring was completely searched for an IDR since the worker attached and since the last loss.
    is_searched: bool,
}

/// The live cursor and its position.
#[derive(Clone, Copy)]
pub(super) struct Live<'a> {
    pub(super) cursor: &'a Cursor,
    pub(super) now_ns: i64,
}

impl Live<'_> {
    /// Returns the sequence number that the cursor reads next.
    fn position(&self) -> u32 {
        self.cursor.position()
    }

    /// Returns the unit that is `back` units before the cursor, or `None` if there is none to search.
    fn unit_back(&self, back: u32) -> Option<Next> {
        let number = self.position().wrapping_sub(back);
        let next = self.cursor.units_back(back)?.next(self.now_ns);
        match next {
            Next::Unit(view) if view.sequence == number => Some(Next::Unit(view)),
            Next::Empty => Some(Next::Empty),
            _ => None,
        }
    }
}

impl GopBackfill {
    pub(super) fn new(camera: Camera) -> Self {
        GopBackfill {
            camera,
            gop: Gop::default(),
            assembler: Assembler::default(),
            packetizer: Packetizer::for_rtp(),
            payloads: Vec::new(),
            slots: 0,
            is_searched: false,
        }
    }

    /// Starts a GOP with the live IDR or recovery point at `number`, which `assembler` has just assembled.
    pub(super) fn begin(&mut self, number: u32, assembler: &Assembler, is_recovery_point: bool) {
        self.assembler.copy_from(assembler);
        self.start(number, is_recovery_point);
    }

    /// Returns true if a GOP should start at a recovery point, because no GOP that began with an IDR can be replayed.
    pub(super) fn needs_recovery_point(&self) -> bool {
        self.gop.next().is_none() || self.gop.begins_at_recovery_point
    }

    fn start(&mut self, number: u32, is_recovery_point: bool) {
        self.gop.begin(number);
        self.gop.begins_at_recovery_point = is_recovery_point;
        self.slots = match self.camera.status() {
            CameraStatus::Attached { layout, .. } => layout.slot_count(),
            CameraStatus::Away { .. } => 0,
        };
    }

    /// Drops the kept GOP, because the live side lost a unit.
    pub(super) fn handle_loss(&mut self) {
        self.gop.handle_loss();
        self.is_searched = false;
    }

    /// Returns true if [`GopBackfill::keep_up`] will probably keep the unit before `position` at once. The caller must
    /// then packetise that unit even without viewers.
    pub(super) fn keeps_at_once(&self, position: u32) -> bool {
        self.gop.next().is_some() && self.reach(position) == 0
    }

    /// Keeps the units that the ring is about to lose. Called after every live unit, with that unit as `newest`, which
    /// has no payloads if it was not packetised. If `newest` is `None`, all units of the GOP are kept.
    pub(super) fn keep_up(
        &mut self,
        live: Live<'_>,
        newest: Option<&PacketizedUnit<'_>>,
        counters: &WorkerCounters,
    ) {
        let reach = newest.map_or(0, |_| self.reach(live.position()));
        while let Some(next) = self.gop.next()
            && live.position().wrapping_sub(next) > reach
        {
            match newest.filter(|unit| unit.info.number == next && !unit.payloads.is_empty()) {
                Some(unit) => keep(&mut self.gop, unit, counters),
                None => self.read(next, live, counters),
            }
        }
        counters.gop_bytes.set(self.gop.bytes as u64);
    }

    /// Returns how many of the newest units are left in the ring; 0 if every unit is kept at once.
    fn reach(&self, position: u32) -> u32 {
        if self.gop.is_longer_than(self.slots, position) { 0 } else { ring_reach(self.slots) }
    }

    /// Reads the units that are not kept yet from the ring, and returns the GOP up to the newest live unit. Returns
    /// `None` if the GOP is not complete.
    pub(super) fn fetch(&mut self, live: Live<'_>, counters: &WorkerCounters) -> Option<&Gop> {
        self.keep_up(live, None, counters);
        self.gop.next().map(|_| &self.gop)
    }

    /// Returns true if the ring may hold an IDR that the live cursor has not read: the cursor started after that IDR, or
    /// skipped it after a loss. The caller must then call [`GopBackfill::search`], before the ring loses that IDR.
    pub(super) fn is_search_due(&self) -> bool {
        self.gop.is_broken() && !self.is_searched
    }

    /// Starts the kept GOP at the newest IDR in the ring, or at the newest recovery point if the ring holds no IDR. If a
    /// unit cannot be read yet, the search stays due. If `assembler`, the one of the live side, has no parameter sets yet, it gets those of the GOP.
    /// Returns the capture time of the IDR, if one was found.
    pub(super) fn search(&mut self, live: Live<'_>, assembler: &mut Assembler) -> Option<i64> {
        let mut nals = SmallVec::new();
        let (mut idr, mut recovery) = (None, None);
        for back in 1.. {
            let view = match live.unit_back(back) {
                Some(Next::Unit(view)) => view,
                Some(_) => return None,
                None => break,
            };
            let is_readable = h264::scan(&view.bytes, &mut nals).is_ok() && view.is_intact();
            if !is_readable {
                break;
            }
            let found = (back, view.sequence, view.captured_monotonic_ns);
            if nals.iter().any(|nal| nal.kind == kind::IDR_SLICE) {
                idr = Some(found);
                break;
            }
            let has_slice = nals.iter().any(|nal| nal.kind == kind::SLICE);
            if recovery.is_none()
                && has_slice
                && h264::recovery_point(nals.iter().map(|nal| nal.slice(&view.bytes))).is_some()
                && view.is_intact()
            {
                recovery = Some(found);
            }
        }
        self.is_searched = true;
        let (back, number, captured_ns) = idr.or(recovery)?;
        self.learn_parameter_sets(live, back);
        if assembler.parameter_sets().stream_info().is_none() {
            assembler.copy_from(&self.assembler);
        }
        self.start(number, idr.is_none());
        idr.map(|_| captured_ns)
    }

    /// Caches the parameter sets of the IDR that is `back` units before the live cursor. If the IDR does not carry them,
    /// they may be in slots of their own before it.
    fn learn_parameter_sets(&mut self, live: Live<'_>, back: u32) {
        let mut nals = SmallVec::new();
        let mut carries_sets = |view: &UnitView, every: bool| {
            let is_scanned = h264::scan(&view.bytes, &mut nals).is_ok();
            let has = |kind| nals.iter().any(|nal| nal.kind == kind);
            let (sps, pps) = (has(kind::SPS), has(kind::PPS));
            is_scanned && if every { sps && pps } else { sps || pps }
        };
        let mut oldest = back;
        while let Some(Next::Unit(view)) = live.unit_back(oldest)
            && !(oldest == back && carries_sets(&view, true))
        {
            oldest += 1;
        }
        for back in (back..=oldest).rev() {
            let Some(Next::Unit(view)) = live.unit_back(back) else { continue };
            if carries_sets(&view, false) {
                // The result is ignored: a unit without a slice is an error, but its parameter sets are cached.
                let _ = self.assembler.assemble(&view.bytes);
                if !view.is_intact() {
                    self.assembler.forget_last_unit();
                }
            }
        }
    }

    /// Reads unit `number` from the ring a second time and keeps it. If the unit is no longer there, drops the GOP.
    fn read(&mut self, number: u32, live: Live<'_>, counters: &WorkerCounters) {
        match live.unit_back(live.position().wrapping_sub(number)) {
            Some(Next::Unit(view)) => self.packetize(&view, counters),
            _ => self.handle_overwritten(counters),
        }
    }

    fn packetize(&mut self, view: &UnitView, counters: &WorkerCounters) {
        self.payloads.clear();
        let info = match self.assembler.assemble(&view.bytes) {
            Ok(unit) => {
                self.packetizer.packetize(&unit, &mut self.payloads);
                Some(UnitInfo {
                    number: view.sequence,
                    is_idr: unit.is_idr(),
                    is_recovery_point: unit.recovery_point().is_some(),
                    is_reference: unit.is_reference(),
                    captured_at_ns: view.captured_at_ns,
                    ..UnitInfo::default()
                })
            }
            Err(error) if !error.loses_picture() => None,
            Err(_) => return self.handle_overwritten(counters),
        };
        if !view.is_intact() {
            return self.handle_overwritten(counters);
        }
        match info {
            None => self.gop.skip(),
            Some(info) => keep(&mut self.gop, &PacketizedUnit { info, payloads: &self.payloads }, counters),
        }
        self.payloads.clear();
    }

    /// Drops the GOP, because a unit was overwritten before it could be read a second time.
    fn handle_overwritten(&mut self, counters: &WorkerCounters) {
        counters.gops_missed.add(1);
        self.gop.handle_loss();
    }
}

fn keep(gop: &mut Gop, unit: &PacketizedUnit<'_>, counters: &WorkerCounters) {
    if !gop.keep(unit) {
        counters.gops_too_large.add(1);
    }
}

/// Returns how many of the newest units a ring of `slots` slots holds safely even if the worker is delayed; 0 if the
/// ring is too short for that.
fn ring_reach(slots: u32) -> u32 {
    slots.saturating_sub(2 + limits::GOP_MARGIN_UNITS)
}

// ---- the kept part -----------------------------------------------------------------------------------

/// State of the current GOP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No IDR has arrived yet, or a unit after the latest IDR is missing.
    #[default]
    Broken,
    /// Every unit from the IDR up to the unit before `next` is kept. The units from `next` on are in the ring.
    Whole { next: u32 },
    /// The GOP exceeds [`limits::GOP_BYTES_MAX`] or [`limits::GOP_UNITS_MAX`].
    TooLarge,
}

/// The current GOP.
#[derive(Default)]
pub(super) struct Gop {
    state: State,
    units: Vec<(UnitInfo, Range<usize>)>,
    payloads: Vec<Arc<Payloads>>,
    bytes: usize,
    /// True if the GOP begins with a recovery point, not with an IDR.
    pub(super) begins_at_recovery_point: bool,
    /// Number of the latest IDR; `None` after a loss.
    begun_at: Option<u32>,
    /// Length in units of the GOP before the latest IDR; `None` if there was none or one of its units was lost.
    length_before: Option<u32>,
}

impl Gop {
    /// Starts a new GOP with the IDR at `number` and drops the previous GOP.
    fn begin(&mut self, number: u32) {
        let is_whole = self.state != State::Broken;
        self.clear();
        self.length_before = self.begun_at.filter(|_| is_whole).map(|before| number.wrapping_sub(before));
        self.begun_at = Some(number);
        self.state = State::Whole { next: number };
    }

    /// Drops the GOP, because a unit after its IDR is missing. Nothing is kept until the next IDR.
    fn handle_loss(&mut self) {
        self.clear();
        self.begun_at = None;
        self.state = State::Broken;
    }

    /// Returns true if no complete GOP can be sent, because no IDR has arrived or a unit is missing.
    fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Returns the number of the unit to keep next, or `None` if the GOP cannot be sent.
    fn next(&self) -> Option<u32> {
        match self.state {
            State::Whole { next } => Some(next),
            State::Broken | State::TooLarge => None,
        }
    }

    /// Keeps the unit with the number [`Gop::next`]. Returns false if the GOP became too large; the whole GOP is then
    /// dropped.
    fn keep(&mut self, unit: &PacketizedUnit<'_>) -> bool {
        let bytes = unit.bytes();
        if self.bytes + bytes > limits::GOP_BYTES_MAX || self.units.len() >= limits::GOP_UNITS_MAX {
            self.clear();
            self.state = State::TooLarge;
            return false;
        }
        let begin = self.payloads.len();
        self.payloads.extend_from_slice(unit.payloads);
        self.units.push((unit.info, begin..self.payloads.len()));
        self.bytes += bytes;
        self.skip();
        true
    }

    /// Skips the unit with the number [`Gop::next`], because it has only parameter sets and no picture.
    fn skip(&mut self) {
        if let State::Whole { next } = &mut self.state {
            *next = next.wrapping_add(1);
        }
    }

    /// Returns the kept unit at `index`; the IDR has index 0.
    pub(super) fn at(&self, index: usize) -> Option<PacketizedUnit<'_>> {
        let (info, range) = self.units.get(index)?;
        Some(PacketizedUnit { info: *info, payloads: self.payloads.get(range.clone())? })
    }

    /// Returns the number of kept units.
    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    /// Returns the size of all kept units.
    pub(super) fn size(&self) -> GopSize {
        let packets = self.payloads.iter().map(|payloads| payloads.len()).sum();
        GopSize { units: self.units.len(), packets, bytes: self.bytes }
    }

    /// Returns true if this GOP is longer than a ring of `slots` slots, or if it is expected to be, because the
    /// previous GOP was. `position` is the number of the next unit.
    fn is_longer_than(&self, slots: u32, position: u32) -> bool {
        let length = self.begun_at.map(|begun_at| position.wrapping_sub(begun_at));
        length.max(self.length_before).is_some_and(|length| length > slots)
    }

    /// Returns how many units come from `newest` to the next IDR, if this GOP is as long as the previous one. Returns
    /// `None` if that length is unknown or already exceeded.
    pub(super) fn units_to_idr(&self, newest: u32) -> Option<u32> {
        self.length_before?.checked_sub(newest.wrapping_sub(self.begun_at?))
    }

    fn clear(&mut self) {
        self.units.clear();
        self.payloads.clear();
        self.bytes = 0;
        // The lists keep their capacity, which is small compared with the payloads.
    }
}

#[cfg(test)]
mod tests;
