//! PURE: the hybrid MP4. Builds and reads its boxes; opens no file and reads no clock.
//!
//! ```text
//! while recording   ftyp 32 | free 16 | moov (mvex) | moof 100, mdat 8 + unit | moof 100, mdat 8 + unit | ...
//! finished          ftyp 32 | mdat 16  ................ all of it ............................ | moov (index)
//! ```
//!
//! One fragment for each access unit, so a file that ends anywhere plays up to its last whole unit.
//! Finishing appends a plain index and turns the 16 bytes of `free` into the header of one big `mdat`
//! that hides the fragments: one write inside one disk sector decides which of the two forms it is.
//! Units keep their parameter sets in front of each IDR although `avc1` has them in `avcC` too: they cost
//! 40 bytes a second, every player skips them, and the stream can be cut out at any IDR.
//! Boxes are those of ISO/IEC 14496-12 (2015): 8.8 for fragments, 8.6 and 8.7 for the index.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::recorder::format::moov;

/// Units of a second in every time of the file.
pub const TIMESCALE: u32 = 90_000;

/// Bytes of `moof` and the header of `mdat` before a unit's bytes.
pub const FRAGMENT_HEADER_BYTES: usize = 108;

/// Where the 16 bytes lie that tell an unfinished file (`free`) from a finished one (`mdat`).
pub const SWITCH_OFFSET: u64 = 32;

/// Bytes of the switch.
pub const SWITCH_BYTES: usize = 16;

/// The first bytes of a file that is being recorded; the last 16 change when it is finished.
pub const START_UNFINISHED: [u8; 48] = *b"\0\0\0\x20ftypisom\0\0\x02\0isomiso6avc1mp41\0\0\0\x10freess-live1";

/// What the whole file says about its one track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Width of the picture in pixels, cropping applied.
    pub width: u16,
    /// Height of the picture in pixels, cropping applied.
    pub height: u16,
    /// The decoder configuration record (`avcC`), see `h264::avcc`.
    pub configuration: Vec<u8>,
    /// When the first unit was captured, seconds since 1970.
    pub started_at_s: u64,
}

/// How a unit depends on others.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// Playback may start here.
    Idr,
    /// Refers to earlier units and is referred to.
    Reference,
    /// Refers to earlier units, nothing refers to it.
    Disposable,
}

impl UnitKind {
    /// `sample_flags` of ISO/IEC 14496-12, 8.8.3.1.
    fn sample_flags(self) -> u32 {
        match self {
            UnitKind::Idr => 0x0200_0000,
            UnitKind::Reference => 0x0101_0000,
            UnitKind::Disposable => 0x0181_0000,
        }
    }

    fn from_sample_flags(flags: u32) -> Option<UnitKind> {
        [UnitKind::Idr, UnitKind::Reference, UnitKind::Disposable]
            .into_iter()
            .find(|kind| kind.sample_flags() == flags)
    }
}

/// One fragment: the header of one access unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Number of the fragment in its file, from 1.
    pub sequence: u32,
    /// When the unit is shown, in [`TIMESCALE`] from the file's first unit.
    pub time_90k: u64,
    /// How long it is shown if nothing follows (the next fragment's time says better).
    pub duration_90k: u32,
    /// Bytes of the unit, length prefixes included.
    pub unit_bytes: u32,
    /// How the unit depends on others.
    pub kind: UnitKind,
}

impl Fragment {
    /// The bytes in front of the unit.
    #[must_use]
    pub fn header(&self) -> [u8; FRAGMENT_HEADER_BYTES] {
        let mut out = [0; FRAGMENT_HEADER_BYTES];
        let mut rest: &mut [u8] = &mut out;
        rest.put_slice(b"\0\0\0\x64moof\0\0\0\x10mfhd\0\0\0\0");
        rest.put_u32(self.sequence);
        // traf; tfhd with default-base-is-moof, track 1; tfdt version 1
        rest.put_slice(b"\0\0\0\x4ctraf\0\0\0\x10tfhd\0\x02\0\0\0\0\0\x01\0\0\0\x14tfdt\x01\0\0\0");
        rest.put_u64(self.time_90k);
        // trun with data offset, and duration, size and flags of its one sample at moof + 108
        rest.put_slice(b"\0\0\0\x20trun\0\0\x07\x01\0\0\0\x01\0\0\0\x6c");
        rest.put_u32(self.duration_90k);
        rest.put_u32(self.unit_bytes);
        rest.put_u32(self.kind.sample_flags());
        rest.put_u32(self.unit_bytes.saturating_add(8));
        rest.put_slice(b"mdat");
        out
    }

    /// Reads a fragment header; `None` if these are not exactly the bytes [`Fragment::header`] makes.
    #[must_use]
    pub fn parse(bytes: &[u8; FRAGMENT_HEADER_BYTES]) -> Option<Fragment> {
        let fragment = Fragment {
            sequence: u32_at(bytes, 20)?,
            time_90k: u64_at(bytes, 60)?,
            duration_90k: u32_at(bytes, 88)?,
            unit_bytes: u32_at(bytes, 92)?,
            kind: UnitKind::from_sample_flags(u32_at(bytes, 96)?)?,
        };
        (fragment.unit_bytes <= u32::MAX - 8 && fragment.header() == *bytes).then_some(fragment)
    }
}

/// Appends one fragment as parts of a gathered write: `[header, length][NAL unit][length][NAL unit]...`.
/// Only headers and lengths are copied. Returns the bytes of all parts, or `None` if the unit is
/// too big for a box (4 GiB; a slot holds 3 MB). `fragment.unit_bytes` is filled in.
pub fn gather(fragment: &mut Fragment, nal_units: &[Bytes], parts: &mut Vec<Bytes>) -> Option<u64> {
    let unit_bytes: usize = nal_units.iter().map(|nal| nal.len() + 4).sum();
    fragment.unit_bytes = u32::try_from(unit_bytes).ok().filter(|bytes| *bytes < u32::MAX - 8)?;
    let mut small = BytesMut::with_capacity(FRAGMENT_HEADER_BYTES + 4 * nal_units.len());
    small.put_slice(&fragment.header());
    for nal in nal_units {
        small.put_u32(u32::try_from(nal.len()).ok()?);
        parts.push(small.split().freeze());
        parts.push(nal.clone());
    }
    Some((FRAGMENT_HEADER_BYTES + unit_bytes) as u64)
}

/// The bytes before the first fragment of a file that is being recorded.
#[must_use]
pub fn head(track: &Track) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&START_UNFINISHED);
    moov::write_fragmented(track, &mut out);
    out
}

/// The 16 bytes that turn a file into a plain MP4 whose index starts at `index_offset`.
#[must_use]
pub fn switch_finished(index_offset: u64) -> [u8; SWITCH_BYTES] {
    let mut out = *b"\0\0\0\x01mdat\0\0\0\0\0\0\0\0";
    let (_, size) = out.split_at_mut(8);
    size.copy_from_slice(&index_offset.saturating_sub(SWITCH_OFFSET).to_be_bytes());
    out
}

/// What the first 48 bytes of a file say.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Ours, still being recorded or left so by a crash.
    Unfinished,
    /// Ours, with its index at this offset.
    Finished {
        /// Where the index (`moov`) starts.
        index_offset: u64,
    },
    /// Somebody else's file: never repaired.
    Foreign,
}

/// Tells the form of a file by its first 48 bytes.
#[must_use]
pub fn form(start: &[u8]) -> Form {
    let Some(start) = start.first_chunk::<48>() else { return Form::Foreign };
    let (ftyp, switch) = start.split_at(32);
    if *start == START_UNFINISHED {
        return Form::Unfinished;
    }
    if !START_UNFINISHED.starts_with(ftyp) {
        return Form::Foreign;
    }
    match (switch.starts_with(b"\0\0\0\x01mdat"), u64_at(switch, 8)) {
        (true, Some(bytes)) => match bytes.checked_add(SWITCH_OFFSET) {
            Some(index_offset) => Form::Finished { index_offset },
            None => Form::Foreign,
        },
        _ => Form::Foreign,
    }
}

/// The table of a file's units, 8 bytes each; everything else of the index follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    entries: Vec<Entry>,
    last_time_90k: u64,
    last_duration_90k: u32,
    payload_bytes: u64,
}

/// `bytes_and_idr` holds the unit's bytes and in its top bit whether it is an IDR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Entry {
    bytes_and_idr: u32,
    since_previous_90k: u32,
}

const IDR_BIT: u32 = 1 << 31;

impl Index {
    /// Notes a unit that is in the file, the next after those noted before.
    pub fn push(&mut self, fragment: &Fragment) {
        let since =
            if self.entries.is_empty() { 0 } else { fragment.time_90k.saturating_sub(self.last_time_90k) };
        let since_previous_90k = u32::try_from(since).unwrap_or(u32::MAX);
        let idr = if fragment.kind == UnitKind::Idr { IDR_BIT } else { 0 };
        debug_assert!(fragment.unit_bytes < IDR_BIT, "a slot holds 3 MB");
        self.entries.push(Entry { bytes_and_idr: fragment.unit_bytes | idr, since_previous_90k });
        self.last_time_90k = fragment.time_90k;
        self.last_duration_90k = fragment.duration_90k;
        self.payload_bytes += u64::from(fragment.unit_bytes);
    }

    /// Units in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no unit is in the file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Time of the last unit.
    #[must_use]
    pub fn last_time_90k(&self) -> u64 {
        self.last_time_90k
    }

    /// From the first unit to the end of the last.
    #[must_use]
    pub fn duration_90k(&self) -> u64 {
        if self.entries.is_empty() { 0 } else { self.last_time_90k + u64::from(self.last_duration_90k) }
    }

    /// What a fragment says of its duration before the next unit is known: the previous distance.
    #[must_use]
    pub fn expected_duration_90k(&self) -> u32 {
        let last = self.entries.last().map_or(0, |entry| entry.since_previous_90k);
        if (1..=TIMESCALE).contains(&last) { last } else { TIMESCALE / 30 }
    }

    /// Bytes of each unit and whether it is an IDR.
    pub(in crate::recorder) fn units(&self) -> impl ExactSizeIterator<Item = (u32, bool)> {
        self.entries.iter().map(|entry| (entry.bytes_and_idr & !IDR_BIT, entry.bytes_and_idr & IDR_BIT != 0))
    }

    /// How long each unit is shown.
    pub(in crate::recorder) fn durations_90k(&self) -> impl Iterator<Item = u32> {
        let next = self.entries.iter().skip(1).map(|entry| entry.since_previous_90k);
        next.chain((!self.entries.is_empty()).then_some(self.last_duration_90k))
    }
}

/// A bound for the bytes of the index of that many units: kept free on the disk so that a file
/// can always be finished.
#[must_use]
pub fn index_bytes_max(units: usize) -> u64 {
    4_096 + 20 * units as u64
}

pub(in crate::recorder) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(in crate::recorder) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}
