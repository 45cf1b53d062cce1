//! PURE: types that the fragments and the index of an MP4 recording share. They describe the track, its access units
//! and their times.

use super::shared_list::SharedList;

/// Ticks per second of all times in the file.
pub const TIMESCALE: u32 = 90_000;

/// Bytes of a fragment before its access unit: the `moof` box and the header of the `mdat` box.
pub const FRAGMENT_HEADER_BYTES: usize = 108;

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
    /// Presentation time in ticks of [`TIMESCALE`]. The first unit of the file has time 0.
    pub time_90k: u64,
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
    entries: SharedList<IndexEntry>,
    last_time_90k: u64,
    last_duration_90k: u32,
}

/// Size and interval of one unit. `bytes_and_idr` is the size in bytes, with the top bit set if the unit is an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct IndexEntry {
    bytes_and_idr: u32,
    since_previous_90k: u32,
}

const IDR_BIT: u32 = 1 << 31;

impl Index {
    /// Appends a unit that was written to the file.
    pub fn push(&mut self, fragment: &Fragment) {
        let since = if self.is_empty() { 0 } else { fragment.time_90k.saturating_sub(self.last_time_90k) };
        let since_previous_90k = u32::try_from(since).unwrap_or(u32::MAX);
        let idr = if fragment.kind == UnitKind::Idr { IDR_BIT } else { 0 };
        debug_assert!(fragment.unit_bytes < IDR_BIT, "a slot holds 3 MB");
        self.entries.push(IndexEntry { bytes_and_idr: fragment.unit_bytes | idr, since_previous_90k });
        self.last_time_90k = fragment.time_90k;
        self.last_duration_90k = fragment.duration_90k;
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

    /// Returns the presentation time of the last unit, in ticks of [`TIMESCALE`].
    #[must_use]
    pub fn last_time_90k(&self) -> u64 {
        self.last_time_90k
    }

    /// Returns the time from the start of the first unit to the end of the last unit, in ticks of [`TIMESCALE`].
    #[must_use]
    pub fn duration_90k(&self) -> u64 {
        if self.is_empty() { 0 } else { self.last_time_90k + u64::from(self.last_duration_90k) }
    }

    /// Returns the duration to expect for the next unit: the interval between the last two units, or 1/30 s if that
    /// interval is zero or more than a second.
    #[must_use]
    pub fn expected_duration_90k(&self) -> u32 {
        let last = self.entries.last().map_or(0, |entry| entry.since_previous_90k);
        if (1..=TIMESCALE).contains(&last) { last } else { TIMESCALE / 30 }
    }

    /// Returns the index of the first units only: those that end at the file offset `end`. `fragments_offset` is the
    /// offset of the first fragment. Returns `None` if no unit ends there.
    #[must_use]
    pub fn up_to(&self, end: u64, fragments_offset: u64) -> Option<Index> {
        let (mut offset, mut last_time_90k, mut units) = (fragments_offset, 0, 0);
        for entry in self.entries.iter() {
            if offset >= end {
                break;
            }
            offset += FRAGMENT_HEADER_BYTES as u64 + u64::from(entry.bytes_and_idr & !IDR_BIT);
            last_time_90k += u64::from(entry.since_previous_90k);
            units += 1;
        }
        let next = self.entries.get(units).map(|entry| entry.since_previous_90k);
        let last_duration_90k = next.unwrap_or(self.last_duration_90k);
        let entries = self.entries.first(units);
        (units > 0 && offset == end).then_some(Index { entries, last_time_90k, last_duration_90k })
    }

    /// Iterates over all units. Each item is the size of a unit in bytes, and true if the unit is an IDR.
    pub(super) fn units(&self) -> impl Iterator<Item = (u32, bool)> {
        self.entries.iter().map(|entry| (entry.bytes_and_idr & !IDR_BIT, entry.bytes_and_idr & IDR_BIT != 0))
    }

    /// Iterates over the durations of all units, in ticks of [`TIMESCALE`].
    pub(super) fn durations_90k(&self) -> impl Iterator<Item = u32> {
        let next = self.entries.iter().skip(1).map(|entry| entry.since_previous_90k);
        next.chain((!self.is_empty()).then_some(self.last_duration_90k))
    }
}

/// Returns an upper bound for the size in bytes of the `moov` box of a finished file with `units` access units. The
/// recorder keeps this much disk space reserved, so that it can always finish the file.
#[must_use]
pub fn index_bytes_max(units: usize) -> u64 {
    4_096 + 20 * units as u64
}
