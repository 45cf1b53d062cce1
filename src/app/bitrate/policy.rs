//! Decides which bit rate is requested from the camera. Pure; time is an argument.
//!
//! ```text
//!  no request ──► request ──► lower request        units are left out for more than a quarter of the viewers: at once
//!      ▲            │  ▲
//!      └── full ────┘  └── higher request          none is left out, and the links carry more: after a while
//! ```
//!
//! `session/media/link.rs` measures what a link carries from the time that bursts of packets take. So the result does
//! not depend on the rate of the stream. Only if the units are too small for a measurement, a higher rate must be tried.
//! Each attempt that fails doubles the time to the next one.

use std::time::{Duration, Instant};

use crate::base::limits;

/// What the decision needs to know about a viewer with a session.
#[derive(Clone, Copy, Debug)]
pub struct ViewerLink {
    /// Number of the viewer.
    pub id: u32,
    /// What the link carries in kbit/s. `None` if the viewer is not paced: its link carries the stream.
    pub link_kbps: Option<u64>,
    /// Number of units that were left out because the link carries less than the stream.
    pub units_thinned: u64,
}

/// State of the stream and its viewers at one check.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// All viewers with a session.
    pub viewers: &'a [ViewerLink],
    /// Number of viewers over HTTP. Their links are unknown, so they count as viewers that can carry the stream.
    pub http_viewers: usize,
    /// Rate of the stream during the last seconds in kbit/s; 0 if it is unknown.
    pub stream_kbps: u64,
    /// True while a recording runs, which must have the camera's own rate.
    pub is_recording: bool,
}

/// The units that were left out for a viewer.
#[derive(Clone, Copy, Debug)]
struct Thinned {
    id: u32,
    units: u64,
    /// When the number last grew.
    at: Option<Instant>,
}

/// The decision and what it depends on.
#[derive(Debug)]
pub struct BitratePolicy {
    min_kbps: u64,
    /// The request in kbit/s. `None` without a request: the camera uses its own rate.
    request: Option<u64>,
    /// Rate of the stream before the first request, at which the request ends.
    full_kbps: u64,
    thinned: Vec<Thinned>,
    /// Since when nothing speaks against a higher request.
    calm_since: Option<Instant>,
    raised_at: Option<Instant>,
    /// A request that was too high, and how often in a row it was.
    too_high_kbps: u64,
    failed_rises: u32,
}

impl BitratePolicy {
    /// Creates a policy that never requests less than `min_kbps` kbit/s.
    #[must_use]
    pub fn new(min_kbps: u32) -> BitratePolicy {
        BitratePolicy {
            min_kbps: min_kbps.into(),
            request: None,
            full_kbps: 0,
            thinned: Vec::new(),
            calm_since: None,
            raised_at: None,
            too_high_kbps: u64::MAX,
            failed_rises: 0,
        }
    }

    /// Returns the rate to request in kbit/s, or 0 for no request. Must be called about twice a second.
    pub fn check(&mut self, now: Instant, situation: &Situation<'_>) -> u32 {
        self.note_thinned(now, situation.viewers);
        let count = situation.viewers.len() + situation.http_viewers;
        if situation.is_recording || situation.viewers.is_empty() {
            self.request = None;
        } else {
            self.adapt(now, situation, count);
        }
        self.request.map_or(0, |kbps| u32::try_from(kbps).unwrap_or(u32::MAX))
    }

    fn adapt(&mut self, now: Instant, situation: &Situation<'_>, count: usize) {
        let viewers = situation.viewers;
        // The lowest quarter of the viewers is left out. Viewers that are not in the list can carry any rate.
        let carried = |links: &mut dyn Iterator<Item = &ViewerLink>| {
            let mut rates: Vec<u64> = links.filter_map(|viewer| viewer.link_kbps).map(usable).collect();
            rates.sort_unstable();
            rates.get(count / 4).copied()
        };
        let in_trouble = carried(&mut viewers.iter().filter(|viewer| self.is_thinned(now, viewer.id)));
        let known = carried(&mut viewers.iter());
        match in_trouble {
            Some(kbps) => {
                self.calm_since = None;
                self.lower(now, kbps, situation.stream_kbps);
            }
            None => self.raise(now, known.unwrap_or(u64::MAX)),
        }
    }

    /// Lowers the request to `kbps`, unless the difference is small.
    fn lower(&mut self, now: Instant, kbps: u64, stream_kbps: u64) {
        if self.request.is_none() && !self.has_just_risen(now) {
            self.full_kbps = if stream_kbps == 0 { u64::MAX } else { stream_kbps };
        }
        let kbps = kbps.max(self.min_kbps);
        let current = self.request.unwrap_or(self.full_kbps);
        if kbps >= current - current / 16 {
            return;
        }
        self.request = Some(kbps);
        if self.has_just_risen(now) {
            self.too_high_kbps = current;
            self.failed_rises = (self.failed_rises + 1).min(limits::BITRATE_BACKOFFS_MAX);
        }
        self.raised_at = None;
    }

    /// Returns true if trouble now means that the latest rise was too high.
    fn has_just_risen(&self, now: Instant) -> bool {
        self.raised_at.is_some_and(|at| now.saturating_duration_since(at) < limits::BITRATE_SETTLES)
    }

    /// Raises the request if nothing has spoken against it for long enough. `known` is what the links carry.
    fn raise(&mut self, now: Instant, known: u64) {
        let Some(request) = self.request else { return };
        let higher = request + request / 8;
        // The bursts of a low rate are too short to measure a faster link, so only a higher rate can show it.
        let (next, wait) = if known >= higher {
            (known.min(request + request / 2), limits::BITRATE_RISE_AFTER)
        } else if request < limits::BITRATE_MEASURED_KBPS {
            (higher, limits::BITRATE_PROBE_AFTER)
        } else {
            self.calm_since = None;
            return;
        };
        if request >= self.too_high_kbps && !self.has_just_risen(now) {
            (self.too_high_kbps, self.failed_rises) = (u64::MAX, 0);
        }
        let backoffs = if next < self.too_high_kbps { 0 } else { self.failed_rises };
        let since = *self.calm_since.get_or_insert(now);
        if now.saturating_duration_since(since) < wait * 2_u32.pow(backoffs) {
            return;
        }
        (self.calm_since, self.raised_at) = (Some(now), Some(now));
        self.request = Some(next).filter(|next| *next < self.full_kbps);
    }

    fn note_thinned(&mut self, now: Instant, viewers: &[ViewerLink]) {
        self.thinned.retain(|known| viewers.iter().any(|viewer| viewer.id == known.id));
        for viewer in viewers {
            let units = viewer.units_thinned;
            match self.thinned.iter_mut().find(|known| known.id == viewer.id) {
                Some(known) if known.units == units => {}
                Some(known) => (known.units, known.at) = (units, Some(now)),
                None => {
                    self.thinned.push(Thinned { id: viewer.id, units, at: (units > 0).then_some(now) });
                }
            }
        }
    }

    fn is_thinned(&self, now: Instant, id: u32) -> bool {
        let at = self.thinned.iter().find(|known| known.id == id).and_then(|known| known.at);
        at.is_some_and(|at| now.saturating_duration_since(at) < limits::BITRATE_TROUBLE)
    }
}

/// Returns the rate of a stream that a link of `link_kbps` carries. The rest is for headers, for retransmissions, and
/// for units that are larger than others.
const fn usable(link_kbps: u64) -> u64 {
    link_kbps * 4 / 5
}

/// The mean rate of the stream during the last seconds.
#[derive(Debug, Default)]
pub struct StreamRate {
    /// Time and number of bytes at the latest checks, the oldest first.
    checks: [Option<(Instant, u64)>; limits::BITRATE_CHECKS_KEPT],
}

impl StreamRate {
    /// Notes that the stream has had this number of bytes so far. Returns the rate in kbit/s; 0 if it is unknown.
    pub fn note(&mut self, now: Instant, bytes: u64) -> u64 {
        self.checks.rotate_left(1);
        if let Some(last) = self.checks.last_mut() {
            *last = Some((now, bytes));
        }
        let Some((since, before)) = self.checks.iter().flatten().next() else { return 0 };
        let passed = now.saturating_duration_since(*since);
        if passed < Duration::from_secs(1) {
            return 0;
        }
        let milliseconds = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        bytes.saturating_sub(*before) * 8 / milliseconds
    }
}

#[cfg(test)]
mod tests;
