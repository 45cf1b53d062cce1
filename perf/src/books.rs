//! What one viewer got: RTP packets joined to access units, the stamp of each read, the books kept. Pure: time
//! comes with the packets. A depacketiser of its own on purpose: it must not share the server's mistakes.
//!
//! A viewer that checks everything has every payload decrypted and sums the slices against the stamp. A light
//! one decrypts a unit's packets only until the stamp is found; whether a unit is whole it sees by the sequence
//! numbers and the marker, which are clear text.

use streaming_server::h264::{Stamp, crc32_of_slices};

/// NAL unit types of H.264 and of RFC 6184.
const IDR: u8 = 5;
const SEI: u8 = 6;
const SPS: u8 = 7;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// One access unit that arrived whole.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The camera's number of the unit.
    pub(crate) number: u64,
    /// CLOCK_MONOTONIC ns at which the camera published it.
    pub(crate) published_ns: i64,
    /// From there to the last of its datagrams, in ns.
    pub(crate) latency_ns: i64,
    pub(crate) is_idr: bool,
    /// Its slices do not have the checksum of the stamp. Only a viewer that checks everything knows.
    pub(crate) is_torn: bool,
}

/// One RTP packet, as far as the header tells.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Arrival {
    /// Extended: does not wrap.
    pub(crate) sequence: u64,
    pub(crate) rtp_time: u32,
    pub(crate) marker: bool,
    /// CLOCK_MONOTONIC ns.
    pub(crate) at_ns: i64,
}

/// The unit being received.
#[derive(Default)]
struct Pending {
    rtp_time: Option<u32>,
    packets: u64,
    first: u64,
    last: u64,
    has_marker: bool,
    is_done: bool,
    last_at_ns: i64,
    stamp: Option<Stamp>,
    is_idr: bool,
    /// Sequence number and place in `bytes` of each payload.
    parts: Vec<(u64, std::ops::Range<usize>)>,
    bytes: Vec<u8>,
}

impl Pending {
    fn start(&mut self, rtp_time: u32) {
        let (mut parts, mut bytes) = (std::mem::take(&mut self.parts), std::mem::take(&mut self.bytes));
        parts.clear();
        bytes.clear();
        *self = Pending { rtp_time: Some(rtp_time), first: u64::MAX, parts, bytes, ..Pending::default() };
    }

    /// `due` is the number its first packet must have; where nobody knows, the stamp, which comes first, has to do.
    fn is_whole(&self, due: Option<u64>) -> bool {
        let begins = due.map_or(self.stamp.is_some(), |due| due == self.first);
        begins && self.has_marker && self.packets == self.last - self.first + 1
    }
}

/// The books of one viewer.
#[derive(Default)]
pub(crate) struct Books {
    /// Every payload is decrypted and every unit summed.
    pub(crate) checks_all: bool,
    pub(crate) samples: Vec<Sample>,
    /// CLOCK_MONOTONIC ns of the first datagram and of the first whole IDR unit.
    pub(crate) first_at_ns: Option<i64>,
    pub(crate) first_idr_at_ns: Option<i64>,
    pub(crate) packets: u64,
    /// Units of which something was missing or that had no stamp.
    pub(crate) broken_units: u64,
    /// Packets that did not decrypt.
    pub(crate) refused_packets: u64,
    /// Sequence number after the last whole unit.
    due: Option<u64>,
    pending: Pending,
}

impl Books {
    pub(crate) fn new(checks_all: bool) -> Books {
        Books { checks_all, ..Books::default() }
    }

    /// Takes a packet; `open` decrypts its payload to the end of the buffer and says whether it was genuine.
    pub(crate) fn push(&mut self, arrival: Arrival, open: impl FnOnce(&mut Vec<u8>) -> bool) {
        self.first_at_ns.get_or_insert(arrival.at_ns);
        self.packets += 1;
        if self.pending.rtp_time != Some(arrival.rtp_time) {
            if self.pending.rtp_time.is_some() && !self.pending.is_done {
                self.broken_units += 1;
                self.due = None;
            }
            self.pending.start(arrival.rtp_time);
        }
        let unit = &mut self.pending;
        unit.packets += 1;
        unit.first = unit.first.min(arrival.sequence);
        unit.last = unit.last.max(arrival.sequence);
        unit.has_marker |= arrival.marker;
        unit.last_at_ns = unit.last_at_ns.max(arrival.at_ns);
        if self.checks_all || unit.stamp.is_none() {
            let start = unit.bytes.len();
            if !open(&mut unit.bytes) {
                unit.bytes.truncate(start);
                self.refused_packets += 1;
                return;
            }
            unit.look_at(start);
            unit.parts.push((arrival.sequence, start..unit.bytes.len()));
        }
        if !unit.is_done && unit.is_whole(self.due) {
            self.close();
        }
    }

    fn close(&mut self) {
        let unit = &mut self.pending;
        unit.is_done = true;
        self.due = Some(unit.last + 1);
        let Some(stamp) = unit.stamp else {
            self.broken_units += 1;
            return;
        };
        if unit.is_idr {
            self.first_idr_at_ns.get_or_insert(unit.last_at_ns);
        }
        self.samples.push(Sample {
            number: stamp.unit_number,
            published_ns: stamp.published_monotonic_ns,
            latency_ns: unit.last_at_ns - stamp.published_monotonic_ns,
            is_idr: unit.is_idr,
            is_torn: self.checks_all && unit.slices_crc32() != Some(stamp.slices_crc32),
        });
    }
}

impl Pending {
    /// Looks for the stamp and for what kind of unit this is in the payload that begins at `start`.
    fn look_at(&mut self, start: usize) {
        let payload = &self.bytes[start..];
        let Some(&header) = payload.first() else { return };
        let (mut stamp, mut is_idr) = (None, false);
        let mut see = |nal: &[u8]| {
            match nal.first().map_or(0, |header| header & 0x1F) {
                SEI => stamp = stamp.or(Stamp::parse(nal)),
                SPS | IDR => is_idr = true,
                _ => {}
            };
        };
        match header & 0x1F {
            STAP_A => nals_of_stap(payload, &mut see),
            FU_A => is_idr = payload.get(1).is_some_and(|header| header & 0x1F == IDR),
            _ => see(payload),
        }
        self.stamp = self.stamp.or(stamp);
        self.is_idr |= is_idr;
    }

    /// The checksum of the slices, `None` where the payloads do not form NAL units.
    fn slices_crc32(&mut self) -> Option<u32> {
        self.parts.sort_by_key(|(sequence, _)| *sequence);
        let mut nals: Vec<Vec<u8>> = Vec::new();
        let mut fragment: Option<Vec<u8>> = None;
        for (_, range) in &self.parts {
            let payload = &self.bytes[range.clone()];
            match payload.first()? & 0x1F {
                STAP_A => nals_of_stap(payload, &mut |nal| nals.push(nal.to_vec())),
                FU_A => {
                    let header = *payload.get(1)?;
                    if header & 0x80 != 0 {
                        fragment = Some(vec![(payload[0] & 0xE0) | (header & 0x1F)]);
                    }
                    fragment.as_mut()?.extend_from_slice(&payload[2..]);
                    if header & 0x40 != 0 {
                        nals.push(fragment.take()?);
                    }
                }
                _ => nals.push(payload.to_vec()),
            }
        }
        fragment.is_none().then(|| crc32_of_slices(nals.iter().map(Vec::as_slice)))
    }
}

fn nals_of_stap(payload: &[u8], see: &mut impl FnMut(&[u8])) {
    let mut rest = &payload[1..];
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let Some((nal, more)) = more.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            return;
        };
        see(nal);
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: [u8; 5] = [0x65, 1, 2, 3, 4];

    fn stamp_nal(number: u64) -> Vec<u8> {
        let slices_crc32 = crc32_of_slices(std::iter::once(SLICE.as_slice()));
        Stamp { unit_number: number, published_monotonic_ns: 1_000, slices_crc32 }.encode().to_vec()
    }

    /// Stamp in one packet, the slice in two fragments.
    fn payloads(number: u64) -> [Vec<u8>; 3] {
        [stamp_nal(number), vec![0x7C, 0x85, 1, 2], vec![0x7C, 0x45, 3, 4]]
    }

    fn push(books: &mut Books, sequence: u64, unit: u64, payload: &[u8], marker: bool) {
        let arrival =
            Arrival { sequence, rtp_time: unit as u32 * 3_000, marker, at_ns: 1_500 + sequence as i64 };
        books.push(arrival, |out| {
            out.extend_from_slice(payload);
            true
        });
    }

    #[test]
    fn whole_units_are_counted_in_whatever_order_their_packets_come() {
        let mut books = Books { checks_all: true, ..Books::default() };
        for (unit, order) in [(0, [0, 1, 2]), (1, [2, 0, 1])] {
            for index in order {
                push(&mut books, unit * 3 + index, unit, &payloads(unit)[index as usize], index == 2);
            }
        }
        let seen: Vec<_> =
            books.samples.iter().map(|s| (s.number, s.latency_ns, s.is_idr, s.is_torn)).collect();
        assert_eq!(seen, [(0, 502, true, false), (1, 505, true, false)]);
        assert_eq!((books.broken_units, books.packets), (0, 6));
    }

    #[test]
    fn a_lost_packet_breaks_its_unit_and_no_other() {
        for checks_all in [true, false] {
            let mut books = Books { checks_all, ..Books::default() };
            for (sequence, unit, index) in [(0, 0, 0), (2, 0, 2), (3, 1, 0), (4, 1, 1), (5, 1, 2)] {
                push(&mut books, sequence, unit, &payloads(unit)[index], index == 2);
            }
            let numbers: Vec<u64> = books.samples.iter().map(|sample| sample.number).collect();
            assert_eq!((numbers, books.broken_units), (vec![1], 1));
        }
    }

    #[test]
    fn a_changed_slice_is_torn_for_the_viewer_that_checks() {
        for checks_all in [true, false] {
            let mut books = Books { checks_all, ..Books::default() };
            let [stamp, first, mut second] = payloads(0);
            second[2] = 9;
            for (index, payload) in [stamp, first, second].iter().enumerate() {
                push(&mut books, index as u64, 0, payload, index == 2);
            }
            assert_eq!(books.samples[0].is_torn, checks_all);
        }
    }
}
