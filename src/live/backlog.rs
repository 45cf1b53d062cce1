//! PURE: the units that viewers over HTTP need, and the position of each viewer among them. Does no I/O and reads no
//! clock.
//!
//! ```text
//!  number   41    42    43    44    45    46    47
//!          [ P ][ P ][IDR][ P ][ P ][ P ]  ...           a new viewer begins at `start`, the newest IDR
//!            ▲           ▲ start             ▲ end()
//!            first                a late viewer skips to `start`, one that has taken all waits at the end
//! ```
//!
//! After a gap in the stream, the next unit is always one with which decoding can start. So a viewer may take any unit
//! whose predecessor it has taken, and any start.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::base::limits;
use crate::recorder::endless::FragmentedUnit;

/// Form in which a viewer gets the stream.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// An MP4 of one fragment per unit.
    Mp4,
    /// A byte stream (Rec. ITU-T H.264, Annex B).
    AnnexB,
}

/// The units and the viewers.
#[derive(Default)]
pub(super) struct Backlog {
    units: VecDeque<Unit>,
    /// Number of the oldest unit in `units`.
    first: u64,
    /// Number of the unit with which a new viewer starts. `None` if none is kept.
    start: Option<u64>,
    starts_at_idr: bool,
    /// Number of the current parameter sets, and the bytes of an MP4 with them before its first fragment.
    track: u32,
    file_header: Bytes,
    held: HeldBytes,
    viewers: Vec<Viewer>,
    last_id: u64,
}

struct Unit {
    /// The fragment, see [`FragmentedUnit::bytes`].
    bytes: Bytes,
    header_bytes: usize,
    time_90k: u64,
    track: u32,
}

struct Viewer {
    id: u64,
    origin: ViewerOrigin,
    units_taken: u64,
    bytes_taken: u64,
    units_skipped: u64,
    /// Time of the last unit taken, in 90 kHz ticks.
    taken_time_90k: Option<u64>,
    format: Format,
    /// Number of the unit that follows the last one taken. `None` before the first one.
    next: Option<u64>,
    /// Number of the parameter sets in the header of this viewer's MP4. `None` before the header.
    track: Option<u32>,
    waker: Option<Waker>,
    is_ended: bool,
    /// Notified if the connection must be closed although it does not read.
    must_close: Arc<Notify>,
}

/// What the caller knows about a viewer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ViewerOrigin {
    /// Number of the viewer in the whole program.
    pub id: u32,
    /// Address of the viewer's connection.
    pub remote: SocketAddr,
    /// When the viewer was added.
    pub since: Instant,
}

/// State of a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewerState {
    /// What the caller said about the viewer.
    pub origin: ViewerOrigin,
    /// True after the first unit.
    pub has_begun: bool,
    /// Number of units that the viewer's connection has taken, and their bytes.
    pub units_taken: u64,
    /// Bytes of those units. The connection may not have sent all of them.
    pub bytes_taken: u64,
    /// Number of units that were skipped, because the viewer reads too slowly.
    pub units_skipped: u64,
    /// Time from the last unit that the viewer has taken to the newest one, in 90 kHz ticks.
    pub lag_90k: u64,
}

/// Result of [`Backlog::take`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The next unit of the viewer.
    Unit {
        /// The bytes of the MP4 before its first fragment, if the unit is the first one.
        file_header: Option<Bytes>,
        /// The fragment.
        bytes: Bytes,
        /// Number of bytes before the first NAL unit with its length.
        header_bytes: usize,
        /// Number of units that were skipped before this one, because the viewer reads too slowly.
        skipped: u64,
    },
    /// There is no unit yet. The waker is called when there may be one.
    Wait,
    /// The stream ends for this viewer.
    End,
}

impl Backlog {
    /// Adds a viewer, which begins at the newest IDR. Returns its number.
    pub(super) fn add_viewer(
        &mut self,
        origin: ViewerOrigin,
        format: Format,
        must_close: Arc<Notify>,
    ) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.viewers.push(Viewer {
            id,
            origin,
            units_taken: 0,
            bytes_taken: 0,
            units_skipped: 0,
            taken_time_90k: None,
            format,
            next: None,
            track: None,
            waker: None,
            is_ended: false,
            must_close,
        });
        id
    }

    pub(super) fn remove_viewer(&mut self, id: u64) {
        self.viewers.retain(|viewer| viewer.id != id);
    }

    pub(super) fn viewer_count(&self) -> usize {
        self.viewers.len()
    }

    /// Returns the state of each viewer.
    pub(super) fn viewer_states(&self) -> Vec<ViewerState> {
        let newest = self.units.back().map_or(0, |unit| unit.time_90k);
        let state = |viewer: &Viewer| ViewerState {
            origin: viewer.origin,
            has_begun: viewer.next.is_some(),
            units_taken: viewer.units_taken,
            bytes_taken: viewer.bytes_taken,
            units_skipped: viewer.units_skipped,
            lag_90k: viewer.taken_time_90k.map_or(0, |taken| newest.saturating_sub(taken)),
        };
        self.viewers.iter().map(state).collect()
    }

    /// Returns the bytes of all units that are kept here or being sent.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.0.load(Ordering::Relaxed)
    }

    /// Adds the next unit and wakes the viewers. Returns false if there is no room for it, because connections hold too
    /// many units that they have not sent yet. The caller must then treat it as a gap.
    pub(super) fn push(&mut self, unit: FragmentedUnit) -> bool {
        let FragmentedUnit { bytes, header_bytes, time_90k, is_idr, is_start, file_header } = unit;
        let is_new_track = file_header.is_some();
        if let Some(header) = file_header {
            self.track = self.track.wrapping_add(1);
            self.file_header = header.into();
        }
        self.drop_old(|front| time_90k.saturating_sub(front.time_90k) > limits::LIVE_LAG_90K_MAX);
        let needed = bytes.len() + limits::LIVE_UNIT_OVERHEAD_BYTES;
        if self.held_bytes() + needed > limits::LIVE_BYTES_SOFT {
            self.drop_old(|_| true);
            self.end_late_viewers();
        }
        if self.held_bytes() + needed > limits::LIVE_BYTES_MAX {
            self.clear();
        }
        if self.held_bytes() + needed > limits::LIVE_BYTES_MAX {
            return false;
        }
        // A recovery point is a start only as long as there is no IDR.
        let needs_start = self.start.is_none() || !self.starts_at_idr || is_new_track;
        if is_idr || (is_start && needs_start) {
            (self.start, self.starts_at_idr) = (Some(self.end()), is_idr);
        }
        let bytes = self.held.hold(bytes);
        self.units.push_back(Unit { bytes, header_bytes, time_90k, track: self.track });
        self.wake_viewers();
        true
    }

    /// Returns the next unit of a viewer. If there is none, stores the waker.
    pub(super) fn take(&mut self, id: u64, waker: &Waker) -> Taken {
        let is_wanted = |viewer: &&Viewer| viewer.id == id && !viewer.is_ended;
        let Some(next) = self.viewers.iter().find(is_wanted).map(|viewer| viewer.next) else {
            return Taken::End;
        };
        let number = self.next_number(next);
        let index = number.and_then(|number| self.index(number));
        let unit = index.and_then(|index| self.units.get(index));
        let Some(viewer) = self.viewers.iter_mut().find(|viewer| viewer.id == id) else { return Taken::End };
        let (Some(number), Some(unit)) = (number, unit) else {
            viewer.waker = Some(waker.clone());
            return Taken::Wait;
        };
        let mut file_header = None;
        if viewer.format == Format::Mp4 {
            match viewer.track {
                None => file_header = Some(self.file_header.clone()),
                Some(track) if track == unit.track => {}
                Some(_) => {
                    // A second header inside the file would serve Media Source Extensions, but FFmpeg ignores it and
                    // would decode with the old parameter sets. An answer that ends is a correct file for all players.
                    viewer.is_ended = true;
                    return Taken::End;
                }
            }
        }
        viewer.track = Some(unit.track);
        let skipped = viewer.next.map_or(0, |next| number.saturating_sub(next));
        viewer.next = Some(number + 1);
        viewer.units_taken += 1;
        viewer.bytes_taken += unit.bytes.len() as u64;
        viewer.units_skipped += skipped;
        viewer.taken_time_90k = Some(unit.time_90k);
        Taken::Unit { file_header, bytes: unit.bytes.clone(), header_bytes: unit.header_bytes, skipped }
    }

    /// Ends the stream for all viewers, after what they have already taken.
    pub(super) fn end_viewers(&mut self) {
        self.viewers.iter_mut().for_each(|viewer| viewer.is_ended = true);
        self.wake_viewers();
    }

    /// Drops all units.
    pub(super) fn clear(&mut self) {
        self.first = self.end();
        self.units = VecDeque::new(); // also frees the memory of the list
        self.start = None;
    }

    /// Returns the number of the next unit of the stream.
    fn end(&self) -> u64 {
        self.first + self.units.len() as u64
    }

    /// Returns the index of a unit in `units`, or `None` if the unit is no longer kept.
    fn index(&self, number: u64) -> Option<usize> {
        number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok())
    }

    /// Returns the number of the unit that a viewer gets next. `next` follows the last unit that it has taken; it is
    /// `None` for a new viewer. Returns `None` if the viewer must wait for a start.
    fn next_number(&self, next: Option<u64>) -> Option<u64> {
        match next {
            Some(next) if next >= self.first => {
                let newer_start = self.start.filter(|start| *start > next && self.is_late(next));
                newer_start.or(Some(next))
            }
            // A unit is missing, so the next one cannot be decoded.
            _ => self.start,
        }
    }

    fn is_late(&self, next: u64) -> bool {
        let unit = self.index(next).and_then(|index| self.units.get(index));
        unit.zip(self.units.back()).is_some_and(|(unit, newest)| {
            newest.time_90k.saturating_sub(unit.time_90k) > limits::LIVE_LAG_90K_MAX
        })
    }

    /// Drops units before the start of the current GOP, from the oldest one on, as long as `is_old` returns true.
    fn drop_old(&mut self, is_old: impl Fn(&Unit) -> bool) {
        let kept_from = self.start.unwrap_or_else(|| self.end());
        while self.first < kept_from
            && let Some(front) = self.units.front()
            && is_old(front)
        {
            self.units.pop_front();
            self.first += 1;
        }
    }

    /// Ends the viewers that missed units which are no longer kept. Their connections may still hold older units.
    fn end_late_viewers(&mut self) {
        let first = self.first;
        let is_late = |viewer: &&mut Viewer| viewer.next.is_some_and(|next| next < first);
        for viewer in self.viewers.iter_mut().filter(is_late) {
            viewer.is_ended = true;
            viewer.must_close.notify_one();
        }
    }

    fn wake_viewers(&mut self) {
        self.viewers.iter_mut().filter_map(|viewer| viewer.waker.take()).for_each(Waker::wake);
    }
}

/// Number of bytes of the units that are kept or being sent.
#[derive(Clone, Default)]
struct HeldBytes(Arc<AtomicUsize>);

impl HeldBytes {
    /// Returns the same bytes. They count until the last reference to them is dropped.
    fn hold(&self, bytes: Vec<u8>) -> Bytes {
        self.0.fetch_add(bytes.len() + limits::LIVE_UNIT_OVERHEAD_BYTES, Ordering::Relaxed);
        Bytes::from_owner(Held { bytes, count: self.clone() })
    }
}

struct Held {
    bytes: Vec<u8>,
    count: HeldBytes,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.0.fetch_sub(self.bytes.len() + limits::LIVE_UNIT_OVERHEAD_BYTES, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
