//! PURE: types that the fragments and the index of an MP4 recording share. They describe the track, its access units
//! and their times.

use std::sync::Arc;

use super::shared_list::{Row, SharedList};

/// Ticks per second of all times in the file.
pub const TIMESCALE: u32 = 90_000;

/// Bytes of a fragment before its access unit: the `moof` box and the header of the `mdat` box.
pub const FRAGMENT_HEADER_BYTES: usize = 108;

/// The same as [`FRAGMENT_HEADER_BYTES`], but for a unit whose presentation time differs from its decoding time.
pub const FRAGMENT_HEADER_BYTES_MAX: usize = FRAGMENT_HEADER_BYTES + 4; // local bound: the size of a box

/// Properties of the one track of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Width of the picture in pixels, after cropping.
    pub width: u16,
    /// Height of the picture in pixels, after cropping.
    pub height: u16,
    /// Decoder configuration record, the content of the `avcC` box, see `h264::avcc`.
    pub configuration: Vec<u8>,
    /// Capture time of the first access unit, in seconds since 1970.
    pub started_at_s: u64,
}

/// How an access unit depends on others.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// The unit is an IDR: it refers to no other unit, and playback can start with it.
    Idr,
    /// The unit refers to earlier units, and later units may refer to it.
    Reference,
    /// The unit refers to earlier units, but no other unit refers to it.
    Disposable,
}

impl UnitKind {
    /// Returns the `sample_flags` field for a unit of this kind (ISO/IEC 14496-12, 8.8.3.1).
    pub(super) fn sample_flags(self) -> u32 {
        match self {
            UnitKind::Idr => 0x0200_0000,
            UnitKind::Reference => 0x0101_0000,
            UnitKind::Disposable => 0x0181_0000,
        }
    }

    pub(super) fn from_sample_flags(flags: u32) -> Option<UnitKind> {
        [UnitKind::Idr, UnitKind::Reference, UnitKind::Disposable]
            .into_iter()
            .find(|kind| kind.sample_flags() == flags)
    }
}

/// Header fields of one fragment, which holds one access unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Number of the fragment in its file, from 1.
    pub sequence: u32,
    /// Decoding time in ticks of [`TIMESCALE`]. The first unit of the file has time 0.
    pub time_90k: u64,
    /// Presentation time less decoding time, in ticks of [`TIMESCALE`]. Not 0 only in a stream with B-frames.
    pub composition_90k: i32,
    /// Expected duration of the unit in ticks of [`TIMESCALE`]. The time of the next fragment overrides it.
    pub duration_90k: u32,
    /// Bytes of the access unit, including the length before each NAL unit.
    pub unit_bytes: u32,
    /// How the access unit depends on others.
    pub kind: UnitKind,
}

/// Table of the access units in a file, with 12 bytes of memory for each. All tables of the final `moov` box are
/// computed from it. A clone is cheap and keeps the units of its time, so that a download can read it while the
/// recorder appends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    entries: SharedList,
    /// Number of each unit with a recovery point, from 1, with its `recovery_frame_cnt`.
    recovery_points: Arc<Vec<(u32, u16)>>,
    last_time_90k: u64,
    last_duration_90k: u32,
}

/// Size and times of one unit. `bytes_and_flags` is the size in bytes, with flags in the two top bits.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct IndexEntry {
    bytes_and_flags: u32,
    since_previous_90k: u32,
    /// Presentation time less decoding time.
    composition_90k: i32,
}

impl IndexEntry {
    fn row(self) -> Row {
        [self.bytes_and_flags, self.since_previous_90k, self.composition_90k.cast_unsigned()]
    }

    fn from_row([bytes_and_flags, since_previous_90k, composition_90k]: Row) -> IndexEntry {
        IndexEntry { bytes_and_flags, since_previous_90k, composition_90k: composition_90k.cast_signed() }
    }
}

/// Flag of a unit that is an IDR.
const IDR_BIT: u32 = 1 << 31;
/// Flag of a unit whose fragment header has [`FRAGMENT_HEADER_BYTES_MAX`] bytes.
const LONG_HEADER_BIT: u32 = 1 << 30;
const BYTES_MASK: u32 = LONG_HEADER_BIT - 1;

/// One unit of an index.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct IndexedUnit {
    pub(super) bytes: u32,
    pub(super) is_idr: bool,
    /// Bytes of the fragment header before the unit.
    pub(super) header_bytes: usize,
}

impl Index {
    /// Appends a unit that was written to the file.
    pub fn push(&mut self, fragment: &Fragment) {
        let since = if self.is_empty() { 0 } else { fragment.time_90k.saturating_sub(self.last_time_90k) };
        let since_previous_90k = u32::try_from(since).unwrap_or(u32::MAX);
        let idr = if fragment.kind == UnitKind::Idr { IDR_BIT } else { 0 };
        let long = if fragment.composition_90k == 0 { 0 } else { LONG_HEADER_BIT };
        debug_assert!(fragment.unit_bytes <= BYTES_MASK, "a slot holds 3 MB");
        let bytes_and_flags = fragment.unit_bytes & BYTES_MASK | idr | long;
        let composition_90k = fragment.composition_90k;
        self.entries.push(IndexEntry { bytes_and_flags, since_previous_90k, composition_90k }.row());
        self.last_time_90k = fragment.time_90k;
        self.last_duration_90k = fragment.duration_90k;
    }

    /// Records that decoding can start with the last unit, although it is not an IDR. The pictures are correct after
    /// `frames` pictures.
    pub fn mark_recovery_point(&mut self, frames: u16) {
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        Arc::make_mut(&mut self.recovery_points).push((number, frames));
    }

    /// Replaces the times of all units. `times` must have the decoding time and the presentation time of each unit in
    /// ticks of [`TIMESCALE`]. The decoding times must increase.
    pub(crate) fn set_times(&mut self, times: &[(u64, u64)]) {
        debug_assert_eq!(times.len(), self.entries.len());
        let mut before = times.first().map_or(0, |(decoded, _)| *decoded);
        let mut entries = SharedList::default();
        for (entry, (decoded, shown)) in self.entries().zip(times) {
            let entry = IndexEntry {
                since_previous_90k: u32::try_from(decoded.saturating_sub(before)).unwrap_or(u32::MAX),
                composition_90k: i32::try_from(shown.cast_signed() - decoded.cast_signed()).unwrap_or(0),
                ..entry
            };
            entries.push(entry.row());
            before = *decoded;
        }
        self.last_time_90k = before;
        self.entries = entries;
    }

    /// Returns the number of units in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if the file holds no unit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    /// Returns the decoding time of the last unit, in ticks of [`TIMESCALE`].
    #[must_use]
    pub fn last_time_90k(&self) -> u64 {
        self.last_time_90k
    }

    /// Returns the time from the start of the first unit to the end of the last unit, in ticks of [`TIMESCALE`].
    #[must_use]
    pub fn duration_90k(&self) -> u64 {
        if self.is_empty() { 0 } else { self.last_time_90k + u64::from(self.last_duration_90k) }
    }

    fn entries(&self) -> impl Iterator<Item = IndexEntry> {
        self.entries.iter().map(IndexEntry::from_row)
    }

    /// Iterates over all units.
    pub(super) fn units(&self) -> impl Iterator<Item = IndexedUnit> {
        self.entries().map(|entry| IndexedUnit {
            bytes: entry.bytes_and_flags & BYTES_MASK,
            is_idr: entry.bytes_and_flags & IDR_BIT != 0,
            header_bytes: if entry.bytes_and_flags & LONG_HEADER_BIT == 0 {
                FRAGMENT_HEADER_BYTES
            } else {
                FRAGMENT_HEADER_BYTES_MAX
            },
        })
    }

    /// Returns presentation time less decoding time of each unit, in ticks of [`TIMESCALE`].
    pub(super) fn compositions_90k(&self) -> impl Iterator<Item = i32> {
        self.entries().map(|entry| entry.composition_90k)
    }

    /// Returns the number of each unit with a recovery point, from 1, with its `recovery_frame_cnt`.
    pub(super) fn recovery_points(&self) -> &[(u32, u16)] {
        &self.recovery_points
    }

    /// Returns the index of the first units only: those that end at the file offset `end`. `fragments_offset` is the
    /// offset of the first fragment. Returns `None` if no unit ends there.
    #[must_use]
    pub fn up_to(&self, end: u64, fragments_offset: u64) -> Option<Index> {
        let (mut offset, mut last_time_90k, mut units) = (fragments_offset, 0, 0);
        for (entry, unit) in self.entries().zip(self.units()) {
            if offset >= end {
                break;
            }
            offset += unit.header_bytes as u64 + u64::from(unit.bytes);
            last_time_90k += u64::from(entry.since_previous_90k);
            units += 1;
        }
        let next = self.entries.get(units).map(|row| IndexEntry::from_row(row).since_previous_90k);
        let last_duration_90k = next.unwrap_or(self.last_duration_90k);
        let entries = self.entries.first(units);
        let is_before =
            |(number, _): &&(u32, u16)| usize::try_from(*number).is_ok_and(|number| number <= units);
        let recovery_points = Arc::new(self.recovery_points.iter().take_while(is_before).copied().collect());
        let index = Index { entries, recovery_points, last_time_90k, last_duration_90k };
        (units > 0 && offset == end).then_some(index)
    }

    /// Iterates over the durations of all units, in ticks of [`TIMESCALE`].
    pub(super) fn durations_90k(&self) -> impl Iterator<Item = u32> {
        let next = self.entries().skip(1).map(|entry| entry.since_previous_90k);
        next.chain((!self.is_empty()).then_some(self.last_duration_90k))
    }
}

/// Maximum bytes of one unit in the `moov` box: a row of stts, stss, stsz, stco and ctts, and two rows of sbgp with a
/// description in sgpd.
const INDEX_BYTES_OF_UNIT: u64 = 8 + 4 + 4 + 4 + 8 + 2 * 8 + 6; // local bound

/// Returns an upper bound for the size in bytes of the `moov` box of a finished file with `units` access units. The
/// recorder keeps this much disk space reserved, so that it can always finish the file.
#[must_use]
pub fn index_bytes_max(units: usize) -> u64 {
    4_096 + INDEX_BYTES_OF_UNIT * units as u64
}
