//! Reception statistics of one viewer: joins RTP packets to access units, reads the stamp of each unit, and records
//! latency and defects. The module is pure: the arrival times come with the packets. Its depacketiser shares no code
//! with that of the server, so that both cannot have the same mistake.
//!
//! A viewer with `checks_all` decrypts every payload and compares the slices with the checksum of the stamp. Other
//! viewers decrypt a unit's packets only until they find the stamp. They detect missing packets by sequence numbers and
//! the marker, which are not encrypted.

use streaming_server::h264::{Stamp, crc32_of_slices};

/// NAL unit types of H.264 and of RFC 6184.
const IDR: u8 = 5;
const SEI: u8 = 6;
const SPS: u8 = 7;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// One access unit that arrived completely.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Unit number assigned by the camera.
    pub(crate) number: u64,
    /// CLOCK_MONOTONIC ns at which the camera published the unit.
    pub(crate) published_ns: i64,
    /// Time from publication to the arrival of the last datagram, in ns.
    pub(crate) latency_ns: i64,
    pub(crate) is_idr: bool,
    /// True if the slices do not match the checksum of the stamp. This is known only with `checks_all`, and false
    /// otherwise.
    pub(crate) is_torn: bool,
}

/// The header fields of one RTP packet and its arrival time.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Arrival {
    /// Extended sequence number, which does not wrap.
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
    /// Sequence number and range in `bytes` of each payload.
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

    /// Returns true if all packets of the unit arrived. `due` is the expected sequence number of the first packet. If
    /// `due` is unknown, the start counts as complete if the stamp, which comes first, has arrived.
    fn is_whole(&self, due: Option<u64>) -> bool {
        let begins = due.map_or(self.stamp.is_some(), |due| due == self.first);
        begins && self.has_marker && self.packets == self.last - self.first + 1
    }
}

/// Reception statistics of one viewer.
#[derive(Default)]
pub(crate) struct Received {
    /// True if every payload is decrypted and every checksum is compared.
    pub(crate) checks_all: bool,
    pub(crate) samples: Vec<Sample>,
    /// CLOCK_MONOTONIC ns of the first datagram and of the first complete IDR unit.
    pub(crate) first_at_ns: Option<i64>,
    pub(crate) first_idr_at_ns: Option<i64>,
    pub(crate) packets: u64,
    /// Units with a missing packet or without a stamp.
    pub(crate) broken_units: u64,
    /// Packets that failed to decrypt.
    pub(crate) refused_packets: u64,
    /// Sequence number that follows the last complete unit.
    due: Option<u64>,
    pending: Pending,
}

impl Received {
    pub(crate) fn new(checks_all: bool) -> Received {
        Received { checks_all, ..Received::default() }
    }

    /// Adds a packet. `open` must append the decrypted payload to the given buffer, and return true if the packet is
    /// authentic.
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
            unit.inspect(start);
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
    /// Searches the payload that begins at `start` for the stamp and the type of the unit.
    fn inspect(&mut self, start: usize) {
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

    /// Returns the checksum of the slices, or `None` if the payloads do not form NAL units.
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

    /// Returns a unit in three payloads: the stamp, and the slice in two fragments.
    fn payloads(number: u64) -> [Vec<u8>; 3] {
        [stamp_nal(number), vec![0x7C, 0x85, 1, 2], vec![0x7C, 0x45, 3, 4]]
    }

    fn push(received: &mut Received, sequence: u64, unit: u64, payload: &[u8], marker: bool) {
        let arrival =
            Arrival { sequence, rtp_time: unit as u32 * 3_000, marker, at_ns: 1_500 + sequence as i64 };
        received.push(arrival, |out| {
            out.extend_from_slice(payload);
            true
        });
    }

    #[test]
    fn reordered_packets_still_make_complete_units() {
        let mut received = Received { checks_all: true, ..Received::default() };
        for (unit, order) in [(0, [0, 1, 2]), (1, [2, 0, 1])] {
            for index in order {
                push(&mut received, unit * 3 + index, unit, &payloads(unit)[index as usize], index == 2);
            }
        }
        let seen: Vec<_> =
            received.samples.iter().map(|s| (s.number, s.latency_ns, s.is_idr, s.is_torn)).collect();
        assert_eq!(seen, [(0, 502, true, false), (1, 505, true, false)]);
        assert_eq!((received.broken_units, received.packets), (0, 6));
    }

    #[test]
    fn lost_packet_breaks_only_its_unit() {
        for checks_all in [true, false] {
            let mut received = Received { checks_all, ..Received::default() };
            for (sequence, unit, index) in [(0, 0, 0), (2, 0, 2), (3, 1, 0), (4, 1, 1), (5, 1, 2)] {
                push(&mut received, sequence, unit, &payloads(unit)[index], index == 2);
            }
            let numbers: Vec<u64> = received.samples.iter().map(|sample| sample.number).collect();
            assert_eq!((numbers, received.broken_units), (vec![1], 1));
        }
    }

    #[test]
    fn changed_slice_is_torn_for_a_checking_viewer() {
        for checks_all in [true, false] {
            let mut received = Received { checks_all, ..Received::default() };
            let [stamp, first, mut second] = payloads(0);
            second[2] = 9;
            for (index, payload) in [stamp, first, second].iter().enumerate() {
                push(&mut received, index as u64, 0, payload, index == 2);
            }
            assert_eq!(received.samples[0].is_torn, checks_all);
        }
    }
}
